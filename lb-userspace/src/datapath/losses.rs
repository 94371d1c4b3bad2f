//! The counts of what the kernel and its drivers lose after the verdict, from tracepoints. Programs and counters are
//! pinned beside the rest, and go on without an agent.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use aya::maps::{Map, MapData, PerCpuHashMap};
use aya::programs::RawTracePoint;
use aya::programs::links::FdLink;
use aya::{EbpfLoader, Pod};
use lb_common::losses::{LossKey, Tracepoint};
use nix::net::if_::if_nametoindex;

use super::kernel_types::{self, Types};
use super::pins::{PinDir, Pinned};
use super::{Error, object};

/// What the programs at tracepoints count in.
pub const LOSSES: Pinned = Pinned::per_cpu_hash("LOSSES", "losses", size_of::<LossKey>());

/// What names of pins begin with; that of the tracepoint follows.
pub const PIN: &str = "trace_";

/// What names of counters begin with, as `perf` calls the tracepoints.
pub const PREFIX: &str = "xdp:";

/// [`LossKey`], which user space reads from a map.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Key(LossKey);

// SAFETY: `repr(C)` words without padding; every pattern of bits is one.
unsafe impl Pod for Key {}

/// Why losses are not counted.
#[derive(Debug, thiserror::Error)]
pub enum NotCounted {
    #[error(transparent)]
    Types(#[from] kernel_types::Error),
    #[error(transparent)]
    Datapath(#[from] Error),
}

/// Puts the programs on the tracepoints, in place of those of the version before; counts go on.
///
/// # Errors
/// [`NotCounted::Types`] where the kernel does not describe its types, [`NotCounted::Datapath`] where it takes the programs
/// not.
pub fn attach(pins: &PinDir) -> Result<(), NotCounted> {
    let types = Types::of_kernel()?;
    let offsets = [
        ("IFINDEX_AT", types.offset("net_device", &["ifindex"])?),
        ("NET_AT", types.offset("net_device", &["nd_net", "net"])?),
        ("INUM_AT", types.offset("net", &["ns", "inum"])?),
    ];
    attach_with(pins, &offsets)?;
    Ok(())
}

fn attach_with(pins: &PinDir, offsets: &[(&str, u32)]) -> Result<(), Error> {
    let path = pins.path(LOSSES.pin);
    if path.exists() {
        LOSSES.verify(&path)?;
    }
    let mut loader = EbpfLoader::new();
    loader.map_pin_path(LOSSES.map, &path);
    for (name, offset) in offsets {
        loader.override_global(name, offset, true);
    }
    let mut ebpf = loader.load(object::LOSSES)?;
    for tracepoint in Tracepoint::ALL {
        let name = tracepoint.name();
        let program: &mut RawTracePoint = ebpf
            .program_mut(name)
            .ok_or(Error::MissingMap(name))?
            .try_into()?;
        program.load()?;
        let link = program.attach(name)?;
        let link: FdLink = program.take_link(link)?.into();
        let (fresh, place) = (
            pins.path(&format!("{PIN}new")),
            pins.path(&format!("{PIN}{name}")),
        );
        if fresh.exists() {
            fs::remove_file(&fresh).map_err(Error::io(&fresh))?;
        }
        // The one of before ends with its pin; in between both may count a packet.
        link.pin(&fresh)?;
        fs::rename(&fresh, &place).map_err(Error::io(&place))?;
    }
    Ok(())
}

/// Packets lost on an interface of this network namespace, by tracepoint; `None`: they are not counted.
#[must_use]
pub fn lost(pin_dir: &Path, interface: &str) -> Option<BTreeMap<String, u64>> {
    let map = Map::from_map_data(MapData::from_pin(pin_dir.join(LOSSES.pin)).ok()?).ok()?;
    let map: PerCpuHashMap<MapData, Key, u64> = map.try_into().ok()?;
    let ifindex = if_nametoindex(interface).ok()?;
    let namespace = fs::metadata("/proc/thread-self/ns/net").ok()?.ino();
    let count = |tracepoint: Tracepoint| {
        let key = LossKey {
            // The kernel numbers them with 32 bits.
            namespace: namespace as u32,
            ifindex,
            tracepoint: tracepoint as u32,
        };
        // Not there: none was lost yet.
        let packets = map.get(&Key(key), 0).map_or(0, |counts| counts.iter().sum());
        (format!("{PREFIX}{}", tracepoint.name()), packets)
    };
    Some(Tracepoint::ALL.map(count).into())
}
