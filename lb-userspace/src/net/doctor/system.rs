//! Findings about the machine: kernel, BPF file system, settings.

use std::fs;
use std::path::Path;

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::Finding;
use crate::datapath::kernel::{self, MIN_KERNEL, Version};
use crate::net::sysctl::RpFilter;

/// The running kernel's; empty where it does not tell.
pub(super) fn kernel_release() -> String {
    kernel::release().unwrap_or_default()
}

/// Major and minor version of a release such as `6.1.0-18-amd64`; zeroes where it is none.
pub(super) fn version_of(release: &str) -> Version {
    kernel::version_of(release).unwrap_or_default()
}

pub(super) fn kernel(release: &str) -> Finding {
    const TOPIC: &str = "kernel";
    let (major, minor) = MIN_KERNEL;
    let lacks = kernel::lacks(version_of(release));
    if lacks.is_empty() {
        Finding::ok(TOPIC, format!("{release}, {major}.{minor} or later is needed"))
    } else {
        Finding::fail(
            TOPIC,
            format!("{release} is too old: it lacks {lacks}"),
            format!("install Linux {major}.{minor} or later"),
        )
    }
}

/// Whether a folder is, or would be made, on a BPF file system. `None` if that cannot be seen.
pub(super) fn is_bpffs(pin_dir: &Path) -> Option<bool> {
    let existing = pin_dir.ancestors().find(|path| path.exists())?;
    Some(statfs(existing).ok()?.filesystem_type() == BPF_FS_MAGIC)
}

pub(super) fn bpffs(pin_dir: &Path, is_bpffs: Option<bool>) -> Finding {
    const TOPIC: &str = "bpffs";
    let folder = pin_dir.display();
    match is_bpffs {
        Some(true) => Finding::ok(TOPIC, format!("{folder} is on a BPF file system")),
        Some(false) => Finding::fail(
            TOPIC,
            format!("{folder} is not on a BPF file system"),
            mount_advice(),
        ),
        None => Finding::warn(
            TOPIC,
            format!("{folder} cannot be looked at"),
            "run as root to see whether it is on a BPF file system",
        ),
    }
}

fn mount_advice() -> String {
    let mount = "mount -t bpf bpf /sys/fs/bpf";
    if in_first_namespace() {
        mount.to_owned()
    } else {
        format!(
            "`ip netns exec` hides it behind a /sys of its own: enter with \
             `nsenter --net=/run/netns/NAME` instead; if it is nowhere mounted, {mount}"
        )
    }
}

fn in_first_namespace() -> bool {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).ok();
    match (namespace("thread-self"), namespace("1")) {
        (Some(ours), Some(first)) => ours == first,
        _ => true,
    }
}

pub(super) fn jit(enabled: Option<bool>) -> Option<Finding> {
    const TOPIC: &str = "BPF compiler";
    enabled.map(|enabled| {
        if enabled {
            Finding::ok(TOPIC, "programs are compiled")
        } else {
            Finding::warn(
                TOPIC,
                "programs are interpreted, which takes several times as long for each packet",
                "sysctl -w net.core.bpf_jit_enable=1",
            )
        }
    })
}

pub(super) fn rp_filter(interface: &str, filter: RpFilter) -> Finding {
    const TOPIC: &str = "rp_filter";
    match filter {
        RpFilter::Off => Finding::ok(TOPIC, "off"),
        RpFilter::Loose => Finding::ok(TOPIC, "loose"),
        RpFilter::Strict => Finding::warn(
            TOPIC,
            format!(
                "strict: the kernel drops what comes in on {interface} but would be answered through another \
                 interface, answers to health checks among it; XDP is not affected"
            ),
            format!("where routes are not symmetric: sysctl -w net.ipv4.conf.{interface}.rp_filter=2"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::doctor::Severity;

    #[test]
    fn releases_are_compared_as_numbers() {
        assert_eq!(version_of("6.1.0-18-amd64"), (6, 1));
        assert_eq!(version_of("5.10"), (5, 10));
        assert_eq!(version_of("6.18-rc1"), (6, 18));
        assert_eq!(version_of(""), (0, 0));
        assert_eq!(kernel("5.10.0").severity, Severity::Ok);
        let old = kernel("5.9.16");
        assert_eq!(old.severity, Severity::Fail);
        assert!(old.what.ends_with("have functions (5.10)"), "{}", old.what);
        assert_eq!(kernel("4.19.0").severity, Severity::Fail);
    }

    #[test]
    fn the_file_system_of_a_folder_is_that_of_what_exists_of_it() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(is_bpffs(folder.path()), Some(false));
        assert_eq!(is_bpffs(&folder.path().join("not/there")), Some(false));
        let finding = bpffs(folder.path(), Some(false));
        assert_eq!(finding.severity, Severity::Fail);
        assert!(finding.fix.unwrap().contains("mount -t bpf"));
        assert_eq!(bpffs(folder.path(), Some(true)).severity, Severity::Ok);
        assert_eq!(bpffs(folder.path(), None).severity, Severity::Warn);
    }

    #[test]
    fn only_a_strict_filter_is_worth_a_word() {
        assert_eq!(rp_filter("eth0", RpFilter::Off).severity, Severity::Ok);
        assert_eq!(rp_filter("eth0", RpFilter::Loose).severity, Severity::Ok);
        let strict = rp_filter("eth0", RpFilter::Strict);
        assert_eq!(strict.severity, Severity::Warn);
        assert!(strict.fix.unwrap().contains("net.ipv4.conf.eth0.rp_filter=2"));
    }

    #[test]
    fn the_compiler_is_judged_where_it_can_be_seen() {
        assert_eq!(jit(None), None);
        assert_eq!(jit(Some(true)).unwrap().severity, Severity::Ok);
        assert_eq!(jit(Some(false)).unwrap().severity, Severity::Warn);
    }
}
