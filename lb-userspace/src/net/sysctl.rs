//! Settings of the kernel's network stack under `/proc/sys/net`, which shows those of the namespace of
//! the thread that reads.

use std::fs;
use std::io;
use std::path::Path;

/// Whether the source of a received packet must be reachable through the interface it came from
/// (`rp_filter`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RpFilter {
    Off,
    /// It must be reachable through that very interface (RFC 3704 section 2.2).
    Strict,
    /// It must be reachable through any interface.
    Loose,
}

/// The filter in effect: the kernel uses the larger of the interface's value and that of `all`.
///
/// # Errors
/// No such interface, or `/proc` is not mounted.
pub fn rp_filter(interface: &str) -> io::Result<RpFilter> {
    let all = number("ipv4/conf/all/rp_filter")?;
    let own = number(&format!("ipv4/conf/{interface}/rp_filter"))?;
    Ok(match all.max(own) {
        0 => RpFilter::Off,
        1 => RpFilter::Strict,
        _ => RpFilter::Loose,
    })
}

/// Whether the kernel forwards IPv4 packets between interfaces. XDP does not need it.
///
/// # Errors
/// If `/proc` is not mounted.
pub fn ip_forward() -> io::Result<bool> {
    Ok(number("ipv4/ip_forward")? != 0)
}

/// Whether BPF programs are compiled; `None` where that cannot be seen (only the first namespace and
/// root can) or the kernel always does.
#[must_use]
pub fn bpf_jit() -> Option<bool> {
    number("core/bpf_jit_enable").ok().map(|value| value != 0)
}

/// The first and the last port that the machine gives its own connections (`ip_local_port_range`).
///
/// # Errors
/// If `/proc` is not mounted.
pub fn local_ports() -> io::Result<(u16, u16)> {
    let name = "ipv4/ip_local_port_range";
    let text = fs::read_to_string(Path::new("/proc/sys/net").join(name))?;
    let mut numbers = text.split_whitespace().map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(first)), Some(Ok(last))) => Ok((first, last)),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{name}: {text:?}"),
        )),
    }
}

fn number(name: &str) -> io::Result<i64> {
    let text = fs::read_to_string(Path::new("/proc/sys/net").join(name))?;
    text.trim()
        .parse()
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("{name}: {text:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing::Namespace;

    #[test]
    fn the_settings_of_the_namespace_are_read() {
        let Some((namespace, _peer)) = Namespace::pair_or_skip("the_settings_of_the_namespace_are_read")
        else {
            return;
        };
        namespace.run(|| async {
            let set = |name: &str, value: &str| {
                fs::write(Path::new("/proc/sys/net/ipv4").join(name), value).unwrap();
            };
            set("ip_forward", "1");
            assert!(ip_forward().unwrap());
            set("ip_forward", "0");
            assert!(!ip_forward().unwrap());
            for (all, own, effective) in [
                ("0", "0", RpFilter::Off),
                ("0", "1", RpFilter::Strict),
                ("2", "1", RpFilter::Loose),
                ("1", "0", RpFilter::Strict),
            ] {
                set("conf/all/rp_filter", all);
                set("conf/eth0/rp_filter", own);
                assert_eq!(rp_filter("eth0").unwrap(), effective, "{all} and {own}");
            }
            assert!(rp_filter("eth9").is_err());
        });
    }
}
