//! What the running kernel must have, and since when Linux has it.

use super::Error;

/// Major and minor version.
pub type Version = (u32, u32);

/// The oldest kernel that has everything the programs and the agent use ([`NEEDS`]), and the first long-term release
/// that does.
pub const MIN_KERNEL: Version = (5, 10);

/// The oldest kernel that gives programs frames of several buffers, as jumbo frames are (`BPF_F_XDP_HAS_FRAGS`).
pub const FRAGS_KERNEL: Version = (5, 18);

/// What cannot be done without.
const NEEDS: [(Version, &str); 6] = [
    ((5, 4), "the device hash map"),
    ((5, 5), "memory-mapped arrays"),
    ((5, 8), "the BPF ring buffer"),
    ((5, 8), "CAP_BPF"),
    ((5, 9), "attaching XDP through BPF links"),
    ((5, 10), "tail calls in programs that have functions"),
];

/// What a kernel of this version does not have, for people: `a (5.9), b (5.10)`. Empty where it has everything.
#[must_use]
pub fn lacks(version: Version) -> String {
    let missing = NEEDS.iter().filter(|(since, _)| version < *since);
    let words: Vec<String> = missing
        .map(|((major, minor), what)| format!("{what} ({major}.{minor})"))
        .collect();
    words.join(", ")
}

/// Major and minor version of a release such as `6.1.0-18-amd64`; `None` where it is none.
#[must_use]
pub fn version_of(release: &str) -> Option<Version> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Whether programs may be loaded that take frames of several buffers.
#[must_use]
pub fn has_frags() -> bool {
    has(FRAGS_KERNEL)
}

/// The oldest kernel that holds classifiers by links (tcx).
const TCX_KERNEL: Version = (6, 6);

pub(super) fn has_tcx() -> bool {
    has(TCX_KERNEL)
}

/// Whether the kernel is this one or a later one; `false` where it does not say.
fn has(least: Version) -> bool {
    let release = release().ok();
    release
        .and_then(|release| version_of(&release))
        .is_some_and(|version| version >= least)
}

/// # Errors
/// [`Error::KernelTooOld`].
pub fn check() -> Result<(), Error> {
    judge(&release()?)
}

/// A release that is written in no way we know is given the benefit of the doubt.
fn judge(release: &str) -> Result<(), Error> {
    match version_of(release) {
        Some(version) if version < MIN_KERNEL => Err(Error::KernelTooOld {
            found: release.to_owned(),
            lacks: lacks(version),
        }),
        _ => Ok(()),
    }
}

/// The running kernel's, as `uname -r` says it.
///
/// # Errors
/// [`Error::Syscall`].
pub fn release() -> Result<String, Error> {
    let uname = nix::sys::utsname::uname().map_err(|e| Error::Syscall {
        call: "uname",
        source: e.into(),
    })?;
    Ok(uname.release().to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_as_numbers() {
        assert_eq!(version_of("5.4.0-42-generic"), Some((5, 4)));
        assert_eq!(version_of("6.18.44"), Some((6, 18)));
        assert_eq!(version_of("5.10-rc1"), Some((5, 10)));
        assert_eq!(version_of("weird"), None);
        assert!(version_of("5.9.16").unwrap() < MIN_KERNEL);
        assert!(version_of("5.10.0").unwrap() >= MIN_KERNEL);
    }

    #[test]
    fn an_old_kernel_is_refused_with_what_it_lacks() {
        assert_eq!(
            judge("5.8.0-63-generic").unwrap_err().to_string(),
            "the kernel is 5.8.0-63-generic, at least 5.10 is needed: it lacks attaching XDP through BPF links (5.9), \
             tail calls in programs that have functions (5.10)"
        );
        let oldest = judge("4.19.0").unwrap_err().to_string();
        assert!(NEEDS.iter().all(|(_, what)| oldest.contains(what)), "{oldest}");
        for release in ["5.10.0", "5.15.0-1-amd64", "6.1.0-18-amd64", "weird"] {
            assert!(judge(release).is_ok(), "{release}");
        }
    }

    #[test]
    fn nothing_is_needed_that_the_oldest_kernel_lacks() {
        assert_eq!(lacks(MIN_KERNEL), "");
        assert_ne!(lacks((5, 9)), "", "an older one would do as well");
    }
}
