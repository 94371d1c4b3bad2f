//! The pin folder: what keeps forwarding alive without us. Names of the pins, and the check that a pinned map
//! has the layout this version was compiled for before it is used: the kernel and the loader compare nothing.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use aya::maps::{Array, Map, MapData, MapInfo, MapType};
use lb_common::{cache, client, hint, layout, nat, quic, suspect};

use super::Error;
use super::sys;

/// A pinned map: its name in the object, the name of its pin, and its layout.
#[derive(Clone, Copy, Debug)]
pub struct Pinned {
    /// Name in the object; empty for maps that only user space has.
    pub map: &'static str,
    pub pin: &'static str,
    kind: MapType,
    key: usize,
    value: usize,
    flags: u32,
}

const WORD: usize = size_of::<u32>();

macro_rules! pinned {
    ($($name:ident: $map:literal, $pin:literal, $kind:ident, $key:expr, $value:expr, $flags:expr;)+) => {
        $(pub const $name: Pinned = Pinned {
            map: $map, pin: $pin, kind: MapType::$kind, key: $key, value: $value, flags: $flags,
        };)+
        /// All of them.
        pub const ALL: &[Pinned] = &[$($name,)+];
    };
}

pinned! {
    SERVICES: "SERVICES", "services", Hash, size_of::<layout::ServiceKey>(), WORD, 0;
    BUCKETS: "BUCKETS", "service_buckets", Array, WORD, size_of::<layout::ServiceBucket>(), layout::MMAPABLE;
    RANGES: "RANGES", "port_ranges", LpmTrie, size_of::<layout::PortPrefix>(), WORD, NO_PREALLOC;
    RECORDS: "RECORDS", "records", Array, WORD, size_of::<layout::ServiceRecord>(), layout::MMAPABLE;
    SLABS: "SLABS", "slabs", ArrayOfMaps, WORD, WORD, 0;
    BACKENDS: "BACKENDS", "backends", Array, WORD, size_of::<layout::Backend>(), layout::MMAPABLE;
    TAGS: "TAGS", "backend_tags", Array, WORD, size_of::<layout::Tags>(), 0;
    COUNTERS: "COUNTERS", "counters", PerCpuArray, WORD, size_of::<layout::Counters>(), 0;
    REASONS: "REASONS", "reasons", PerCpuArray, WORD, size_of::<u64>(), 0;
    FLOWS: "FLOWS", "flows", Hash, size_of::<layout::FlowKey>(), size_of::<layout::FlowEntry>(), NO_PREALLOC;
    HINTS: "HINTS", "hints", Array, WORD, size_of::<hint::Line>(), layout::MMAPABLE;
    FLOW_CONTROL: "FLOW_CONTROL", "flow_control", Array, WORD, size_of::<layout::FlowControl>(), layout::MMAPABLE;
    FLOW_COUNTERS: "FLOW_COUNTERS", "flow_counters", PerCpuArray, WORD, size_of::<layout::FlowCounters>(), 0;
    GUARDS: "GUARDS", "guards", Array, WORD, size_of::<layout::Guard>(), layout::MMAPABLE;
    LISTS: "LISTS", "lists", ArrayOfMaps, WORD, WORD, 0;
    GUARD_COUNTERS: "GUARD_COUNTERS", "guard_counters", PerCpuArray, WORD, size_of::<layout::GuardCounters>(), 0;
    NAT_FLOWS: "NAT_FLOWS", "nat_flows", Hash, size_of::<nat::NatKey>(), size_of::<nat::NatEntry>(), NO_PREALLOC;
    SNAT_POOLS: "SNAT_POOLS", "snat_pools", Array, WORD, size_of::<nat::SnatPool>(), 0;
    NAT_COUNTERS: "NAT_COUNTERS", "nat_counters", PerCpuArray, WORD, size_of::<nat::NatCounters>(), 0;
    QUIC_SERVERS: "QUIC_SERVERS", "quic_servers", Hash, size_of::<quic::ServerKey>(), WORD, NO_PREALLOC;
    QUIC_LENGTHS: "QUIC_LENGTHS", "quic_lengths", Array, WORD, size_of::<quic::Lengths>(), layout::MMAPABLE;
    QUIC_COUNTERS: "QUIC_COUNTERS", "quic_counters", PerCpuArray, WORD, size_of::<quic::QuicCounters>(), 0;
    CACHE: "CACHE", "flow_cache", Array, WORD, size_of::<cache::Line>(), layout::MMAPABLE;
    NURSERY: "NURSERY", "nursery", Array, WORD, size_of::<cache::Opening>(), layout::MMAPABLE;
    LOADS: "LOADS", "loads", Array, WORD, size_of::<cache::Load>(), layout::MMAPABLE;
    SYNS: "SYNS", "syns", PerCpuArray, WORD, size_of::<suspect::Syns>(), 0;
    SIGNS: "SIGNS", "signs", Array, WORD, size_of::<u64>(), layout::MMAPABLE;
    CLIENTS: "CLIENTS", "clients", Array, WORD, size_of::<cache::Line>(), layout::MMAPABLE;
    PERSISTENCE: "PERSISTENCE", "persistence", Array, WORD, size_of::<client::Persistence>(), layout::MMAPABLE;
    CLIENT_COUNTERS: "CLIENT_COUNTERS", "client_counters", PerCpuArray, WORD, size_of::<client::ClientCounters>(), 0;
    EGRESS: "EGRESS", "egress", DevMapHash, WORD, 2 * WORD, 0;
    INTERFACES: "INTERFACES", "interfaces", Hash, WORD, size_of::<layout::Interface>(), 0;
    SERVICE_META: "", "service_meta", Array, WORD, size_of::<layout::ServiceMeta>(), 0;
    BACKEND_META: "", "backend_meta", Array, WORD, size_of::<layout::BackendMeta>(), 0;
    AGENT_META: "", "agent", Array, WORD, size_of::<layout::AgentMeta>(), 0;
    HASH_KEY: "", "hash_key", Array, WORD, size_of::<lb_common::hash::HashKey>(), 0;
}

/// `BPF_F_NO_PREALLOC`: memory is taken as entries come. A prefix tree must have it.
pub(super) const NO_PREALLOC: u32 = 1;

impl Pinned {
    /// A prefix tree of 32-bit values; `key` bytes with the prefix length.
    pub(super) const fn lpm_trie(map: &'static str, pin: &'static str, key: usize) -> Self {
        Self {
            map,
            pin,
            kind: MapType::LpmTrie,
            key,
            value: WORD,
            flags: NO_PREALLOC,
        }
    }

    /// 64-bit counters for each CPU, made as their keys come.
    pub(super) const fn per_cpu_hash(map: &'static str, pin: &'static str, key: usize) -> Self {
        Self {
            map,
            pin,
            kind: MapType::PerCpuHash,
            key,
            value: size_of::<u64>(),
            flags: 0,
        }
    }

    /// 64-bit counters for each CPU.
    pub(super) const fn per_cpu_counts(map: &'static str, pin: &'static str) -> Self {
        Self {
            map,
            pin,
            kind: MapType::PerCpuArray,
            key: WORD,
            value: size_of::<u64>(),
            flags: 0,
        }
    }
}

/// Set by the kernel itself on device maps (`BPF_F_RDONLY_PROG`).
const FLAGS_OF_THE_KERNEL: u32 = 1 << 7;

/// The folder of one agent's pins.
#[derive(Clone, Debug)]
pub struct PinDir(PathBuf);

impl PinDir {
    /// Makes the folder where it is missing, and checks that it is on a BPF file system.
    ///
    /// # Errors
    /// [`Error::NotBpffs`], [`Error::Io`].
    pub fn create(path: &Path) -> Result<Self, Error> {
        let existing = path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
        if !sys::is_bpffs(existing).map_err(Error::io(existing))? {
            return Err(Error::NotBpffs {
                path: path.into(),
                mount_point: "/sys/fs/bpf".into(),
            });
        }
        fs::create_dir_all(path).map_err(Error::io(path))?;
        Ok(Self(path.into()))
    }

    /// An existing folder with something of ours in it.
    ///
    /// # Errors
    /// [`Error::NothingPinned`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        let dir = Self(path.into());
        if dir.path(AGENT_META.pin).exists() {
            Ok(dir)
        } else {
            Err(Error::NothingPinned { path: path.into() })
        }
    }

    /// Locks the folder against a second agent; the lock ends with the file.
    ///
    /// # Errors
    /// [`Error::Locked`], [`Error::Io`].
    pub fn lock(&self) -> Result<File, Error> {
        let folder = File::open(&self.0).map_err(Error::io(&self.0))?;
        match sys::try_lock(&folder) {
            Ok(()) => Ok(folder),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(Error::Locked { path: self.0.clone() })
            }
            Err(error) => Err(Error::Io {
                path: self.0.clone(),
                source: error,
            }),
        }
    }

    #[must_use]
    pub fn root(&self) -> &Path {
        &self.0
    }

    #[must_use]
    pub fn path(&self, pin: &str) -> PathBuf {
        self.0.join(pin)
    }

    #[must_use]
    pub fn slab(&self, index: u32) -> PathBuf {
        self.0.join(format!("slab_{index}"))
    }

    /// The pinned link of an interface.
    #[must_use]
    pub fn link(&self, interface: &str) -> PathBuf {
        self.0.join(format!("{LINK}{}", encode(interface)))
    }

    /// The interfaces that have a pinned link.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn links(&self) -> Result<Vec<String>, Error> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.0).map_err(Error::io(&self.0))? {
            let name = entry.map_err(Error::io(&self.0))?.file_name();
            if let Some(name) = name.to_str().and_then(|n| n.strip_prefix(LINK)) {
                found.push(decode(name));
            }
        }
        found.sort();
        Ok(found)
    }

    /// Compares every pinned map with the layout of this version.
    ///
    /// # Errors
    /// [`Error::LayoutMismatch`] names the first that differs; [`Error::Map`] where it cannot be asked.
    pub fn verify(&self) -> Result<(), Error> {
        for pinned in ALL {
            let path = self.path(pinned.pin);
            if path.exists() {
                pinned.verify(&path)?;
            }
        }
        let path = self.path(AGENT_META.pin);
        if !path.exists() {
            return Ok(());
        }
        let meta: Array<MapData, layout::AgentMeta> =
            Map::from_map_data(MapData::from_pin(&path)?)?.try_into()?;
        let layout::AgentMeta { layout: found, .. } = meta.get(&0, 0)?;
        // 0: the maps were made, but no agent has lived in them yet.
        if found == 0 || found == layout::LAYOUT_VERSION {
            return Ok(());
        }
        Err(Error::LayoutMismatch {
            path,
            found: format!("layout version {found}"),
            needed: format!("layout version {}", layout::LAYOUT_VERSION),
        })
    }

    /// Removes the pins, links first, and the folder. Without the pins the kernel lets go of all of it.
    ///
    /// # Errors
    /// [`Error::Io`] for the first that cannot be removed; the others are removed all the same.
    pub fn remove(&self) -> Result<(), Error> {
        let mut first = None;
        let mut names: Vec<_> = match fs::read_dir(&self.0) {
            Ok(entries) => entries.filter_map(|e| e.ok().map(|e| e.path())).collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => {
                return Err(Error::Io {
                    path: self.0.clone(),
                    source: error,
                });
            }
        };
        names.sort_by_key(|path| !is_link(path));
        for path in names {
            if let Err(error) = unpin(&path) {
                first.get_or_insert(Error::Io { path, source: error });
            }
        }
        if let Err(error) = fs::remove_dir(&self.0) {
            first.get_or_insert(Error::Io {
                path: self.0.clone(),
                source: error,
            });
        }
        first.map_or(Ok(()), Err)
    }
}

const LINK: &str = "link_";

/// Removes a pin; what a pinned link attached is off its interface when this returns.
pub(super) fn unpin(path: &Path) -> io::Result<()> {
    if is_link(path)
        && let Ok(link) = sys::open_pin(path)
        && let Err(error) = sys::detach_link(link.as_fd())
        && error.raw_os_error() != Some(libc::ENOLINK)
    {
        // Without the pin the kernel takes it off by itself, a little later.
        log::debug!("{}: detaching: {error}", path.display());
    }
    fs::remove_file(path)
}

fn is_link(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with(LINK))
}

/// The name of an interface as the name of a pin: bpffs refuses dots.
pub(super) fn encode(interface: &str) -> String {
    interface.replace('%', "%25").replace('.', "%2e")
}

/// The interface that [`encode`] gave the name of.
pub(super) fn decode(name: &str) -> String {
    name.replace("%2e", ".").replace("%25", "%")
}

impl Pinned {
    /// Compares the map pinned at `path`.
    ///
    /// # Errors
    /// [`Error::LayoutMismatch`], [`Error::Map`].
    pub(super) fn verify(&self, path: &Path) -> Result<(), Error> {
        let info = MapInfo::from_pin(path)?;
        let found = (
            info.map_type()?,
            info.key_size(),
            info.value_size(),
            info.map_flags() & !FLAGS_OF_THE_KERNEL,
        );
        let needed = (self.kind, self.key as u32, self.value as u32, self.flags);
        if found == needed {
            return Ok(());
        }
        let text = |(kind, key, value, flags): (MapType, u32, u32, u32)| {
            format!("type {kind:?}, key {key} B, value {value} B, flags {flags:#x}")
        };
        Err(Error::LayoutMismatch {
            path: path.into(),
            found: text(found),
            needed: text(needed),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_survive_the_way_through_a_pin() {
        let dir = PinDir("/sys/fs/bpf/x".into());
        assert_eq!(dir.link("eth0.100"), Path::new("/sys/fs/bpf/x/link_eth0%2e100"));
        assert_eq!(dir.link("a%2e"), Path::new("/sys/fs/bpf/x/link_a%252e"));
    }
}
