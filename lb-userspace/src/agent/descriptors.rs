//! Open files: as many as may be, and room for them before they are opened.
//!
//! The kernel's table of the files of a process grows by doubling. Where the process has threads it waits for a grace
//! period of RCU each time, and whatever thread opens a file meanwhile waits with it (`expand_files` in fs/file.c): 14 ms on
//! a busy machine with two processors. Left to itself it grows when more probes are under way than ever before, which is
//! when many backends have died. So it grows at the start, and at a reload that brings more backends; it never shrinks.

use std::fs::File;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::close;

/// Of one probe at most: of an exec check both ends of a pipe, the process, and what it is started with.
const OF_A_PROBE: u64 = 4;
/// Maps, slabs, the API, and the like.
const OF_OTHERS: u64 = 1024;

/// Thousands of probes are thousands of sockets.
pub(super) fn raise_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        log::warn!("raising the limit of open files: {error}");
    }
}

/// Makes room for so many probes at once, as far as the limit allows.
pub(super) fn reserve(probes: usize) {
    if let Err(error) = grow(probes as u64 * OF_A_PROBE + OF_OTHERS) {
        log::debug!("room for open files: {error}");
    }
}

/// A descriptor with a number makes the table as large as the number.
fn grow(count: u64) -> std::io::Result<()> {
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let last = i32::try_from(count.min(limit))
        .unwrap_or(i32::MAX)
        .saturating_sub(1);
    let number = fcntl(File::open("/dev/null")?, FcntlArg::F_DUPFD_CLOEXEC(last))?;
    Ok(close(number)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As proc_pid_status(5) tells it.
    fn slots() -> u64 {
        let text = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("FDSize:"))
            .unwrap();
        line.trim().parse().unwrap()
    }

    #[test]
    fn there_is_room_before_there_are_files() {
        let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let wanted = limit.min(3000);
        grow(wanted).unwrap();
        assert!(slots() >= wanted, "{} of {wanted}", slots());
    }
}
