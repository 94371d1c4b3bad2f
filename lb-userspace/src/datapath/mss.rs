//! `xlb decap --mss`: the classifier that lowers the MSS in SYNs and SYN-ACKs which leave with a service address as source.
//! Its maps are pinned beside those of `decap`. From Linux 6.6 on it is held by a link that is pinned too; before, it is a
//! filter of the interface's `clsact`, which lives until it is taken off by name or the interface goes.

use std::net::IpAddr;
use std::os::fd::AsFd;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Map, MapData, PerCpuArray};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{self, NlOptions, TcAttachOptions, TcError};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType};
use aya::{Ebpf, EbpfLoader, Pod};
use ipnet::IpNet;
use lb_common::mss::{Fate, MAX_PREFIXES};
use nix::net::if_::if_nametoindex;

use super::pins::{self, PinDir, Pinned};
use super::{Error, object, sys};

const PROGRAM: &str = "xlb_mss";

/// Not the name of an interface: those have no `%` but before two digits (see [`pins::encode`]).
const LINK: &str = "link_%mss";

const MSS_V4: Pinned = Pinned::lpm_trie("MSS_V4", "mss_v4", size_of::<Key<[u8; 4]>>());
const MSS_V6: Pinned = Pinned::lpm_trie("MSS_V6", "mss_v6", size_of::<Key<[u8; 16]>>());
const COUNTS: Pinned = Pinned::per_cpu_counts("MSS_COUNTS", "mss_counts");
const MAPS: [Pinned; 3] = [MSS_V4, MSS_V6, COUNTS];

/// The greatest MSS that SYNs and SYN-ACKs out of these addresses may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Limit {
    pub addresses: IpNet,
    pub most: u16,
}

/// The classifier on one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// In order of their addresses.
    pub limits: Vec<Limit>,
    /// SYNs and SYN-ACKs by what became of them, all CPUs together, in the order of [`Fate::ALL`].
    pub counts: Vec<(Fate, u64)>,
}

/// How a classifier is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// By a link (tcx, Linux 6.6), which is pinned.
    Link,
    /// As a filter.
    Filter,
}

impl Way {
    fn of_kernel() -> Self {
        if super::has_tcx() {
            Self::Link
        } else {
            Self::Filter
        }
    }
}

/// Puts the classifier on the way out of an interface. Where it is already, its limits become those given; counts go on.
///
/// # Errors
/// [`Error::TooManyPrefixes`], [`Error::LayoutMismatch`], [`Error::Program`].
pub(super) fn attach(pins: &PinDir, interface: &str, ifindex: u32, limits: &[Limit]) -> Result<(), Error> {
    attach_by(Way::of_kernel(), pins, interface, ifindex, limits)
}

fn attach_by(way: Way, pins: &PinDir, interface: &str, ifindex: u32, limits: &[Limit]) -> Result<(), Error> {
    let of_v4 = |limit: &&Limit| limit.addresses.addr().is_ipv4();
    let of_v4 = limits.iter().filter(of_v4).count();
    let needed = of_v4.max(limits.len() - of_v4);
    if needed > MAX_PREFIXES as usize {
        return Err(Error::TooManyPrefixes {
            room: MAX_PREFIXES,
            needed,
        });
    }
    let mut ebpf = load(pins)?;
    // Loaded first: it names the maps by their descriptors, which are closed once they are written.
    classifier(&mut ebpf)?.load()?;
    write(&mut ebpf, limits)?;
    let program = classifier(&mut ebpf)?;
    match way {
        Way::Link => link(program, pins, interface, ifindex),
        Way::Filter => filter(program, interface),
    }
}

fn classifier(ebpf: &mut Ebpf) -> Result<&mut SchedClassifier, Error> {
    let program = ebpf.program_mut(PROGRAM).ok_or(Error::MissingMap(PROGRAM))?;
    Ok(program.try_into()?)
}

fn link(program: &mut SchedClassifier, pins: &PinDir, interface: &str, ifindex: u32) -> Result<(), Error> {
    let pin = pins.path(LINK);
    if pin.exists() {
        let found = sys::open_pin(&pin).map_err(Error::io(&pin))?;
        // The fields that are read are in the same place in links of XDP and tcx.
        let found = sys::xdp_link_info(found.as_fd()).map_err(Error::io(&pin))?;
        if found.ifindex == ifindex {
            program.attach_to_link(FdLink::from(PinnedLink::from_pin(&pin)?).try_into()?)?;
            return Ok(());
        }
        // The interface was deleted and made again: the link leads nowhere.
        pins::unpin(&pin).map_err(Error::io(&pin))?;
    }
    let options = TcAttachOptions::TcxOrder(LinkOrder::default());
    let link = program.attach_with_options(interface, TcAttachType::Egress, options)?;
    let link: FdLink = program.take_link(link)?.try_into()?;
    link.pin(&pin)?;
    Ok(())
}

fn filter(program: &mut SchedClassifier, interface: &str) -> Result<(), Error> {
    // It may be there already; where it could not be made, attaching says why.
    if let Err(error) = tc::qdisc_add_clsact(interface) {
        log::debug!("{interface}: clsact: {error}");
    }
    // For a moment there is none: a client whose connection begins just then is told by ICMP instead.
    take_filter_off(interface)?;
    let options = TcAttachOptions::Netlink(NlOptions::default());
    let filter = program.attach_with_options(interface, TcAttachType::Egress, options)?;
    // Nobody takes it off again when this process ends.
    std::mem::forget(program.take_link(filter)?);
    Ok(())
}

/// Takes the classifier off, with its counts. Nothing where it is not there.
///
/// # Errors
/// [`Error::Io`], [`Error::Program`].
pub(super) fn detach(pins: &PinDir, interface: &str) -> Result<(), Error> {
    if !is_there(pins) {
        return Ok(());
    }
    detach_by(Way::of_kernel(), pins, interface)
}

fn detach_by(way: Way, pins: &PinDir, interface: &str) -> Result<(), Error> {
    if way == Way::Filter {
        take_filter_off(interface)?;
    }
    // The link first.
    for pin in [LINK].into_iter().chain(MAPS.map(|map| map.pin)) {
        let path = pins.path(pin);
        match pins::unpin(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(Error::io(path)(error)),
            _ => {}
        }
    }
    Ok(())
}

fn take_filter_off(interface: &str) -> Result<(), Error> {
    match tc::qdisc_detach_program(interface, TcAttachType::Egress, PROGRAM) {
        Err(TcError::IoError(error)) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        // The interface is gone, and its filters with it.
        Err(_) if if_nametoindex(interface).is_err() => Ok(()),
        result => Ok(result.map_err(ProgramError::from)?),
    }
}

/// The classifier's limits and counts; `None` where it is not attached.
///
/// # Errors
/// [`Error::LayoutMismatch`], [`Error::Map`].
pub(super) fn status(pins: &PinDir) -> Result<Option<Status>, Error> {
    if !is_there(pins) {
        return Ok(None);
    }
    verify(pins)?;
    let mut limits = read::<[u8; 4]>(pinned(pins, &MSS_V4)?)?;
    limits.extend(read::<[u8; 16]>(pinned(pins, &MSS_V6)?)?);
    limits.sort_unstable();
    let counts: PerCpuArray<MapData, u64> = pinned(pins, &COUNTS)?.try_into()?;
    let counts = Fate::ALL
        .iter()
        .map(|fate| Ok((*fate, counts.get(&(*fate as u32), 0)?.iter().sum())))
        .collect::<Result<_, Error>>()?;
    Ok(Some(Status { limits, counts }))
}

fn is_there(pins: &PinDir) -> bool {
    pins.path(COUNTS.pin).exists()
}

fn load(pins: &PinDir) -> Result<Ebpf, Error> {
    verify(pins)?;
    let paths = MAPS.map(|map| (map.map, pins.path(map.pin)));
    let mut loader = EbpfLoader::new();
    for (map, path) in &paths {
        loader.map_pin_path(map, path.as_path());
    }
    Ok(loader.load(object::MSS)?)
}

fn verify(pins: &PinDir) -> Result<(), Error> {
    for map in MAPS {
        let path = pins.path(map.pin);
        if path.exists() {
            map.verify(&path)?;
        }
    }
    Ok(())
}

fn pinned(pins: &PinDir, map: &Pinned) -> Result<Map, Error> {
    Ok(Map::from_map_data(MapData::from_pin(pins.path(map.pin))?)?)
}

fn write(ebpf: &mut Ebpf, limits: &[Limit]) -> Result<(), Error> {
    let mut take = |map: &Pinned| ebpf.take_map(map.map).ok_or(Error::MissingMap(map.map));
    let (mut v4, mut v6): (Trie<[u8; 4]>, Trie<[u8; 16]>) =
        (take(&MSS_V4)?.try_into()?, take(&MSS_V6)?.try_into()?);
    let mut of_v4 = Vec::new();
    let mut of_v6 = Vec::new();
    for Limit { addresses, most } in limits {
        let addresses = addresses.trunc();
        let (len, most) = (u32::from(addresses.prefix_len()), u32::from(*most));
        match addresses.network() {
            IpAddr::V4(address) => of_v4.push((len, address.octets(), most)),
            IpAddr::V6(address) => of_v6.push((len, address.octets(), most)),
        }
    }
    replace(&mut v4, &of_v4)?;
    replace(&mut v6, &of_v6)
}

type Trie<A> = LpmTrie<MapData, A, u32>;

/// Those that are wanted come before the others go.
fn replace<A: Pod + Ord>(trie: &mut Trie<A>, wanted: &[(u32, A, u32)]) -> Result<(), Error> {
    for (len, address, most) in wanted {
        trie.insert(&Key::new(*len, *address), *most, 0)?;
    }
    let present: Vec<_> = trie.keys().collect::<Result<_, _>>()?;
    for key in present {
        let is_key = |(len, address, _): &(u32, A, u32)| (*len, *address) == (key.prefix_len(), key.data());
        if !wanted.iter().any(is_key) {
            trie.remove(&key)?;
        }
    }
    Ok(())
}

fn read<A: Pod + Into<IpAddr>>(map: Map) -> Result<Vec<Limit>, Error> {
    let trie: Trie<A> = map.try_into()?;
    let mut limits = Vec::new();
    for entry in trie.iter() {
        let (key, most) = entry?;
        // The kernel keeps no prefix longer than its address.
        let addresses = IpNet::new(key.data().into(), key.prefix_len() as u8);
        limits.extend(addresses.map(|addresses| Limit {
            addresses,
            most: most as u16,
        }));
    }
    Ok(limits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing::Namespace;

    fn limit(addresses: &str, most: u16) -> Limit {
        Limit {
            addresses: addresses.parse().unwrap(),
            most,
        }
    }

    /// Gone when dropped, with the pins in it.
    struct Folder(String);

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    /// Both ways, whatever the kernel: attached, attached again with other limits, taken off.
    #[test]
    fn limits_are_those_given_last_until_it_is_taken_off() {
        let Some((namespace, _peer)) =
            Namespace::pair_or_skip("limits_are_those_given_last_until_it_is_taken_off")
        else {
            return;
        };
        let folder = Folder(format!("/sys/fs/bpf/xlb-mss-test-{}", std::process::id()));
        let ways = match super::super::has_tcx() {
            true => vec![Way::Filter, Way::Link],
            false => vec![Way::Filter],
        };
        for way in ways {
            let pins = PinDir::create(folder.0.as_ref()).unwrap();
            namespace.run({
                let pins = pins.clone();
                move || async move {
                    let ifindex = if_nametoindex("eth0").unwrap();
                    let first = [limit("192.0.2.10/32", 1432), limit("2001:db8::/64", 1392)];
                    attach_by(way, &pins, "eth0", ifindex, &first).unwrap();
                    assert_eq!(status(&pins).unwrap().unwrap().limits, first, "{way:?}");
                    assert_eq!(programs(way), 1, "{way:?}");
                    let second = [limit("192.0.2.0/24", 1400)];
                    attach_by(way, &pins, "eth0", ifindex, &second).unwrap();
                    assert_eq!(status(&pins).unwrap().unwrap().limits, second, "{way:?}");
                    assert_eq!(programs(way), 1, "{way:?}");
                    detach_by(way, &pins, "eth0").unwrap();
                    assert_eq!(status(&pins).unwrap(), None, "{way:?}");
                    assert_eq!(programs(way), 0, "{way:?}");
                }
            });
            pins.remove().unwrap();
        }
    }

    /// How many of ours are on the way out.
    fn programs(way: Way) -> usize {
        match way {
            Way::Link => {
                let (_, found) = SchedClassifier::query_tcx("eth0", TcAttachType::Egress).unwrap();
                found.len()
            }
            Way::Filter => {
                let found = std::process::Command::new("tc")
                    .args(["filter", "show", "dev", "eth0", "egress"])
                    .output()
                    .unwrap();
                let text = String::from_utf8_lossy(&found.stdout).into_owned();
                text.lines().filter(|line| line.contains(PROGRAM)).count()
            }
        }
    }
}
