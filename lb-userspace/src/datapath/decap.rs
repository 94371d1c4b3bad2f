//! `xlb decap`: on a backend without a tunnel device, a small XDP program takes the outer header off packets
//! that come from the load balancers named. It stays without us: link, program and maps are pinned in a
//! folder for each interface below a root ([`ROOT`] unless told otherwise: network namespaces that share a BPF file
//! system need one each), and `rm -r` of that folder detaches it.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Map, MapData, PerCpuArray};
use aya::{Ebpf, EbpfLoader, Pod};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use lb_common::decap::{MAX_PREFIXES, Outcome};

use super::attach::{self, Attachment, Target};
use super::mss::{self, Limit};
use super::pins::{self, PinDir, Pinned};
use super::{Error, check_system, has_frags, object};
use crate::config::XdpMode;

/// Where the pins are.
pub const ROOT: &str = "/sys/fs/bpf/xlb-decap";

const PROGRAM: &str = "decap";

const FROM_V4: Pinned = Pinned::lpm_trie("FROM_V4", "from_v4", size_of::<Key<[u8; 4]>>());
const FROM_V6: Pinned = Pinned::lpm_trie("FROM_V6", "from_v6", size_of::<Key<[u8; 16]>>());
const COUNTS: Pinned = Pinned::per_cpu_counts("DECAP_COUNTS", "counts");
const MAPS: [Pinned; 3] = [FROM_V4, FROM_V6, COUNTS];

/// The program on one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub interface: String,
    /// `None`: the interface is gone, or somebody removed the link.
    pub attached: Option<Attached>,
    /// Whose packets are unwrapped, in order.
    pub prefixes: Vec<IpNet>,
    /// Packets by what became of them, all CPUs together, in the order of [`Outcome::ALL`].
    pub counts: Vec<(Outcome, u64)>,
    /// `None`: the MSS of what leaves is left alone.
    pub mss: Option<mss::Status>,
}

/// What the kernel says of the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attached {
    pub ifindex: u32,
    pub program_id: u32,
}

/// Puts the program on an interface, and with `limits` the one that lowers the MSS of what leaves. Where they are already,
/// their prefixes become those given, and they are replaced by this version's, without a gap; counts go on. Without
/// `limits` the second is taken off.
///
/// # Errors
/// [`Error::ForeignProgram`] where another program holds the interface, [`Error::TooManyPrefixes`],
/// [`Error::LayoutMismatch`], and those of [`attach::attach`]. What was not there before is taken away again.
pub fn attach(
    root: &Path,
    target: Target<'_>,
    prefixes: &[IpNet],
    limits: &[Limit],
    mode: XdpMode,
) -> Result<Attachment, Error> {
    check_system()?;
    let (v4, v6) = by_family(prefixes)?;
    let folder = folder(root, target.interface);
    let fresh = !folder.exists();
    let pins = PinDir::create(&folder)?;
    let _lock = pins.lock()?;
    let result = attach_in(&pins, target, mode, &v4, &v6).and_then(|attachment| {
        match limits {
            [] => mss::detach(&pins, target.interface)?,
            limits => mss::attach(&pins, target.interface, target.ifindex, limits)?,
        }
        Ok(attachment)
    });
    if result.is_err() && fresh {
        mss::detach(&pins, target.interface)?;
        remove(root, &pins)?;
    }
    result
}

fn attach_in(
    pins: &PinDir,
    target: Target<'_>,
    mode: XdpMode,
    v4: &BTreeSet<Ipv4Net>,
    v6: &BTreeSet<Ipv6Net>,
) -> Result<Attachment, Error> {
    let mut ebpf = load(pins)?;
    attach::verify(&mut ebpf, PROGRAM)?;
    let mut from_v4 = trie(take(&mut ebpf, &FROM_V4)?)?;
    let mut from_v6 = trie(take(&mut ebpf, &FROM_V6)?)?;
    let keys_v4 = v4.iter().map(|net| (net.prefix_len(), net.network().octets()));
    let keys_v6 = v6.iter().map(|net| (net.prefix_len(), net.network().octets()));
    // Those that are wanted come before the others go.
    insert(&mut from_v4, keys_v4.clone())?;
    insert(&mut from_v6, keys_v6.clone())?;
    let attachment = attach::attach(&mut ebpf, PROGRAM, pins, target, mode)?;
    retain(&mut from_v4, keys_v4)?;
    retain(&mut from_v6, keys_v6)?;
    attach::pin_program(&mut ebpf, PROGRAM, pins)?;
    Ok(attachment)
}

/// Takes the program off an interface, with its counts.
///
/// # Errors
/// [`Error::NothingPinned`] where it is not attached, [`Error::Io`].
pub fn detach(root: &Path, interface: &str) -> Result<(), Error> {
    let pins = existing(root, interface)?;
    mss::detach(&pins, interface)?;
    remove(root, &pins)
}

/// The program on one interface.
///
/// # Errors
/// [`Error::NothingPinned`] where it is not attached, [`Error::LayoutMismatch`], [`Error::Map`].
pub fn status(root: &Path, interface: &str) -> Result<Status, Error> {
    let pins = existing(root, interface)?;
    verify(&pins)?;
    let attached = attach::own_link(&pins, interface)?
        .filter(|link| link.ifindex != 0)
        .map(|link| Attached {
            ifindex: link.ifindex,
            program_id: link.program_id,
        });
    let v4 = nets::<[u8; 4]>(pinned(&pins, &FROM_V4)?)?;
    let v6 = nets::<[u8; 16]>(pinned(&pins, &FROM_V6)?)?;
    let counts: PerCpuArray<MapData, u64> = pinned(&pins, &COUNTS)?.try_into()?;
    let counts = Outcome::ALL
        .iter()
        .map(|outcome| Ok((*outcome, counts.get(&(*outcome as u32), 0)?.iter().sum())))
        .collect::<Result<_, Error>>()?;
    Ok(Status {
        interface: interface.into(),
        attached,
        prefixes: v4.into_iter().chain(v6).collect(),
        counts,
        mss: mss::status(&pins)?,
    })
}

/// The interfaces that have pins.
///
/// # Errors
/// [`Error::Io`].
pub fn interfaces(root: &Path) -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(root) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(Error::io(root))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(Error::io(root))?.file_name();
        names.extend(name.to_str().map(pins::decode));
    }
    names.sort();
    Ok(names)
}

fn folder(root: &Path, interface: &str) -> PathBuf {
    root.join(pins::encode(interface))
}

fn existing(root: &Path, interface: &str) -> Result<PinDir, Error> {
    let folder = folder(root, interface);
    if !folder.try_exists().map_err(Error::io(&folder))? {
        return Err(Error::NothingPinned { path: folder });
    }
    PinDir::create(&folder)
}

/// Removes the pins, and the folder of all where these were the last.
fn remove(root: &Path, pins: &PinDir) -> Result<(), Error> {
    pins.remove()?;
    match fs::remove_dir(root) {
        Err(error)
            if !matches!(
                error.kind(),
                std::io::ErrorKind::DirectoryNotEmpty | std::io::ErrorKind::NotFound
            ) =>
        {
            Err(Error::io(root)(error))
        }
        _ => Ok(()),
    }
}

fn by_family(prefixes: &[IpNet]) -> Result<(BTreeSet<Ipv4Net>, BTreeSet<Ipv6Net>), Error> {
    let v4: BTreeSet<_> = prefixes
        .iter()
        .filter_map(|net| match net {
            IpNet::V4(net) => Some(net.trunc()),
            IpNet::V6(_) => None,
        })
        .collect();
    let v6: BTreeSet<_> = prefixes
        .iter()
        .filter_map(|net| match net {
            IpNet::V6(net) => Some(net.trunc()),
            IpNet::V4(_) => None,
        })
        .collect();
    match v4.len().max(v6.len()) {
        needed if needed > MAX_PREFIXES as usize => Err(Error::TooManyPrefixes {
            room: MAX_PREFIXES,
            needed,
        }),
        _ => Ok((v4, v6)),
    }
}

fn load(pins: &PinDir) -> Result<Ebpf, Error> {
    verify(pins)?;
    let paths = MAPS.map(|map| (map.map, pins.path(map.pin)));
    let mut loader = EbpfLoader::new();
    for (map, path) in &paths {
        loader.map_pin_path(map, path.as_path());
    }
    let frags = has_frags();
    let object = if frags { object::DECAP } else { object::DECAP_PLAIN };
    Ok(loader
        .override_global("FRAGS", &u8::from(frags), true)
        .load(object)?)
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

fn take(ebpf: &mut Ebpf, map: &Pinned) -> Result<Map, Error> {
    ebpf.take_map(map.map).ok_or(Error::MissingMap(map.map))
}

fn pinned(pins: &PinDir, map: &Pinned) -> Result<Map, Error> {
    Ok(Map::from_map_data(MapData::from_pin(pins.path(map.pin))?)?)
}

type Trie<A> = LpmTrie<MapData, A, u32>;

fn trie<A: Pod>(map: Map) -> Result<Trie<A>, Error> {
    Ok(map.try_into()?)
}

fn insert<A: Pod>(trie: &mut Trie<A>, keys: impl Iterator<Item = (u8, A)>) -> Result<(), Error> {
    for (len, address) in keys {
        trie.insert(&Key::new(len.into(), address), 1, 0)?;
    }
    Ok(())
}

/// Removes all keys but those given.
fn retain<A: Pod + Ord>(trie: &mut Trie<A>, keys: impl Iterator<Item = (u8, A)>) -> Result<(), Error> {
    let wanted: BTreeSet<(u32, A)> = keys.map(|(len, address)| (len.into(), address)).collect();
    let present: Vec<_> = trie.keys().collect::<Result<_, _>>()?;
    for key in present {
        if !wanted.contains(&(key.prefix_len(), key.data())) {
            trie.remove(&key)?;
        }
    }
    Ok(())
}

/// The prefixes in a map, in order.
fn nets<A: Pod + Into<IpAddr>>(map: Map) -> Result<BTreeSet<IpNet>, Error> {
    let trie: Trie<A> = trie(map)?;
    let mut nets = BTreeSet::new();
    for key in trie.keys() {
        let key = key?;
        // The kernel keeps no prefix longer than its address.
        nets.extend(IpNet::new(key.data().into(), key.prefix_len() as u8));
    }
    Ok(nets)
}
