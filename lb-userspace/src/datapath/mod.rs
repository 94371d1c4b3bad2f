//! The kernel side as user space sees it: loading and attaching the program, typed maps, and writing the
//! difference between what the maps hold and what [`crate::control`] wants them to hold.

pub mod apply;
pub mod attach;
mod backends;
mod btf;
pub mod clients;
pub mod clock;
pub mod connections;
pub mod counters;
pub mod decap;
pub mod explain;
pub mod flow_cache;
pub mod flows;
pub mod grace;
pub mod guards;
pub mod identity;
pub mod kernel;
mod kernel_types;
pub mod load;
pub mod losses;
pub mod maps;
pub mod measure;
pub mod memory;
pub mod mmap;
pub mod mss;
pub mod nat;
#[cfg(test)]
mod oldest;
pub mod parts;
pub mod pins;
pub mod quic;
pub mod ranges;
pub mod record;
pub mod services;
pub mod signs;
pub mod simulate;
mod slab_map;
pub mod slabs;
pub mod sweep;
pub mod sys;
pub mod testrun;

/// The programs, compiled by the build script. Aligned as the ELF parser wants them.
pub mod object {
    /// The load balancer.
    pub static LB: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb"));
    /// The same for kernels without [`super::has_frags`].
    pub static LB_PLAIN: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb_plain"));
    /// `xlb decap`.
    pub static DECAP: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/decap"));
    pub static DECAP_PLAIN: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/decap_plain"));
    /// Programs on tracepoints.
    pub static LOSSES: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/losses"));
    /// `xlb decap --mss`, a classifier.
    pub static MSS: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/mss"));
    /// What speed is measured with.
    pub static HARNESS: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/harness"));
    pub static HARNESS_PLAIN: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/harness_plain"));
    /// Bare ways to a backend, to be measured against.
    pub static YARDSTICK: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/yardstick"));
    pub static YARDSTICK_PLAIN: &[u8] =
        aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/yardstick_plain"));
    /// What the cache of flows is measured with.
    pub static FLOW_BENCH: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/flowbench"));

    /// Which of [`YARDSTICK`] goes with the harness.
    #[must_use]
    pub fn yardstick() -> &'static [u8] {
        if super::has_frags() {
            YARDSTICK
        } else {
            YARDSTICK_PLAIN
        }
    }

    /// Which of [`HARNESS`] goes with the load balancer: programs that call each other are alike in what they take.
    #[must_use]
    pub fn harness() -> &'static [u8] {
        if super::has_frags() {
            HARNESS
        } else {
            HARNESS_PLAIN
        }
    }
}

use kernel::has_tcx;
pub use kernel::{FRAGS_KERNEL, MIN_KERNEL, has_frags};

use std::path::PathBuf;

use aya::EbpfError;
use aya::maps::MapError;
use aya::pin::PinError;
use aya::programs::ProgramError;
use aya::programs::links::LinkError;

/// What can go wrong between user space and the kernel's BPF objects.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the kernel is {found}, at least {}.{} is needed: it lacks {lacks}", MIN_KERNEL.0, MIN_KERNEL.1)]
    KernelTooOld { found: String, lacks: String },
    #[error("{} is not on a BPF file system; mount one with: mount -t bpf bpf {} \
             (inside `ip netns exec` /sys is a fresh mount without it: enter with nsenter --net=/run/netns/NAME instead)",
            path.display(), mount_point.display())]
    NotBpffs { path: PathBuf, mount_point: PathBuf },
    #[error(
        "no permission: {missing} is missing; run as root, or with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN"
    )]
    NoPermission { missing: String },
    #[error("another agent (or another run) holds {}; stop it first, or give this one its own pin_dir", path.display())]
    Locked { path: PathBuf },
    #[error("the pinned map {} has {found}, this version needs {needed}; \
             run `xlb detach` with the old version (forwarding stops meanwhile), then start this one", path.display())]
    LayoutMismatch {
        path: PathBuf,
        found: String,
        needed: String,
    },
    #[error(
        "interface {interface} already has an XDP program (id {program_id}) that is not ours; nothing was replaced. \
             See `bpftool prog show id {program_id}`; take it off with what put it there (another xlb: xlb detach \
             --pin-dir DIR), else with: ip link set dev {interface} xdpdrv off, in generic mode xdpgeneric off"
    )]
    ForeignProgram { interface: String, program_id: u32 },
    #[error(
        "{} holds a program on another interface (index {ifindex}): renamed since, or in another network \
         namespace; give this one a pin folder of its own, or detach that one first", path.display()
    )]
    PinElsewhere { path: PathBuf, ifindex: u32 },
    #[error("interface {0} does not exist")]
    NoInterface(String),
    #[error(
        "interface {interface}: the driver refuses native XDP ({source}); use xdp_mode = \"auto\" or \"generic\""
    )]
    NativeRefused {
        interface: String,
        source: Box<ProgramError>,
    },
    #[error("interface {interface}: attaching failed: {source}")]
    Attach {
        interface: String,
        source: Box<ProgramError>,
    },
    #[error(
        "interface {interface}: this kernel attached the program without a BPF link, which cannot be pinned"
    )]
    NoLink { interface: String },
    #[error(
        "too many {what}: the pinned maps have room for {room}, {needed} are needed; \
             raise {key} in [agent], run `xlb detach` and start again"
    )]
    Full {
        what: &'static str,
        room: u32,
        needed: usize,
        key: &'static str,
    },
    #[error("no room for another lookup table of {size} slots")]
    NoSlabs { size: u32 },
    #[error("{needed} prefixes are too many: there is room for {room} of each address family")]
    TooManyPrefixes { room: u32, needed: usize },
    #[error("the program lacks the map {0}")]
    MissingMap(&'static str),
    #[error("nothing is pinned in {}", path.display())]
    NothingPinned { path: PathBuf },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{call}: {source}")]
    Syscall {
        call: &'static str,
        source: std::io::Error,
    },
    #[error("loading the program: {0}")]
    Load(#[from] EbpfError),
    #[error("{0}")]
    Map(#[from] MapError),
    #[error("{0}")]
    Program(#[from] ProgramError),
    #[error("{0}")]
    Link(#[from] LinkError),
    #[error("{0}")]
    Pin(#[from] PinError),
}

impl Error {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

/// Refuses kernels that are too old, naming the version needed, and processes that may not load programs, naming
/// the capabilities that are missing.
///
/// # Errors
/// [`Error::KernelTooOld`], [`Error::NoPermission`].
pub fn check_system() -> Result<(), Error> {
    kernel::check()?;
    let path = "/proc/self/status";
    let status = std::fs::read_to_string(path).map_err(Error::io(path))?;
    match missing_capabilities(&status) {
        missing if missing.is_empty() => Ok(()),
        missing => Err(Error::NoPermission {
            missing: missing.join(", "),
        }),
    }
}

/// Numbers of capabilities (`include/uapi/linux/capability.h`). `CAP_SYS_ADMIN` stands for the two of BPF.
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// What of the capabilities needed is not effective, by `/proc/self/status`.
fn missing_capabilities(status: &str) -> Vec<&'static str> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(effective) = line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()) else {
        return Vec::new();
    };
    let has = |number: u32| effective & 1 << number != 0;
    let needed = [
        ("CAP_BPF", has(CAP_BPF) || has(CAP_SYS_ADMIN)),
        ("CAP_PERFMON", has(CAP_PERFMON) || has(CAP_SYS_ADMIN)),
        ("CAP_NET_ADMIN", has(CAP_NET_ADMIN)),
    ];
    needed
        .iter()
        .filter(|(_, there)| !there)
        .map(|(name, _)| *name)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        let status = |effective: u64| format!("Name:\txlb\nCapEff:\t{effective:016x}\nNoNewPrivs:\t0\n");
        assert_eq!(missing_capabilities(&status(u64::MAX)), [""; 0]);
        assert_eq!(missing_capabilities(&status(1 << 12 | 1 << 21)), [""; 0]);
        assert_eq!(missing_capabilities(&status(1 << 12 | 1 << 39)), ["CAP_PERFMON"]);
        assert_eq!(
            missing_capabilities(&status(0)),
            ["CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN"]
        );
    }
}
