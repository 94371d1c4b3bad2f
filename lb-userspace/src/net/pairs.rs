//! Pairs of interfaces: what goes into one comes out of the other (veth).

use std::io;

use nix::net::if_::{if_indextoname, if_nametoindex};

use super::driver_counts;

/// A pair with both ends in this network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Indices of the end that was asked about, and of the other one.
    pub ifindexes: [u32; 2],
    /// Name of the other one.
    pub other: String,
}

/// The pair that this interface is an end of.
///
/// # Errors
/// There is no such interface, it is none of a pair, or its other end is in another network namespace.
pub fn pair(interface: &str) -> io::Result<Pair> {
    let ifindex = if_nametoindex(interface)?;
    let other = driver_counts::peer_of_veth(interface)?.ok_or_else(|| io::Error::other("it is no veth"))?;
    // The index may be that of another interface here; the ends of a pair name each other.
    let name = if_indextoname(other)?.to_string_lossy().into_owned();
    if other == ifindex || driver_counts::peer_of_veth(&name)? != Some(ifindex) {
        return Err(io::Error::other("its other end is in another network namespace"));
    }
    Ok(Pair {
        ifindexes: [ifindex, other],
        other: name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing::Namespace;

    #[test]
    fn ends_of_a_pair_name_each_other() {
        let test = "ends_of_a_pair_name_each_other";
        let Some((namespace, _peer)) = Namespace::pair_or_skip(test) else {
            return;
        };
        namespace.ip("link add near type veth peer name far");
        namespace.run(|| async {
            let near = pair("near").unwrap();
            assert_eq!(near.other, "far");
            let far = pair("far").unwrap();
            assert_eq!(
                (far.other.as_str(), far.ifindexes),
                ("near", {
                    let [a, b] = near.ifindexes;
                    [b, a]
                })
            );
            for other in ["eth0", "lo", "nothing"] {
                assert!(pair(other).is_err(), "{other}");
            }
        });
    }
}
