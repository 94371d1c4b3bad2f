//! Running a loaded XDP program on one packet (`BPF_PROG_TEST_RUN`): no interface, no traffic.
//!
//! The kernel gives the program a frame of at least [`MIN_FRAME`] bytes that came in by the loopback
//! interface of the caller's network namespace, whose index is always [`INGRESS_IFINDEX`]. `XDP_TX` and
//! `XDP_REDIRECT` are decisions only: nothing is sent.

use std::time::Duration;

use aya::programs::{ProgramError, TestRun, TestRunOptions, Xdp};

/// The shortest frame that the kernel runs a program on: an Ethernet header.
pub const MIN_FRAME: usize = 14;

/// The longest frame that programs see whole: a page, less the room before the frame (256 bytes) and the
/// kernel's bookkeeping behind it (320 bytes). A longer one has several buffers: programs that take those get it whole,
/// others its first part, where the kernel does not refuse it.
pub const MAX_FRAME: usize = 4096 - 256 - 320;

/// The index of the loopback interface, which test frames come in by.
pub const INGRESS_IFINDEX: u32 = 1;

/// Room for what a program may put before the packet (`XDP_PACKET_HEADROOM`).
const HEADROOM: usize = 256;

/// What an XDP program returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Aborted,
    Drop,
    Pass,
    Tx,
    Redirect,
    /// No action that the kernel knows; a driver treats it as [`Action::Aborted`].
    Unknown(u32),
}

impl From<u32> for Action {
    /// By `enum xdp_action` of the kernel's interface.
    fn from(value: u32) -> Self {
        match value {
            0 => Self::Aborted,
            1 => Self::Drop,
            2 => Self::Pass,
            3 => Self::Tx,
            4 => Self::Redirect,
            other => Self::Unknown(other),
        }
    }
}

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// What the program returned, the last time where it ran several times.
    pub action: Action,
    /// The frame as the program left it.
    pub packet: Vec<u8>,
    /// Time a run, the mean of all of them, in whole nanoseconds; includes what the kernel's loop costs.
    pub duration: Duration,
}

/// Why a program could not be run on a packet.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("a frame of {len} bytes: the kernel runs programs on {MIN_FRAME} bytes at least")]
    TooShort { len: usize },
    #[error("a frame of {len} bytes: the kernel refuses to run the program on one so long")]
    TooLong { len: usize },
    #[error(transparent)]
    Program(#[from] ProgramError),
}

/// Runs a program once on a copy of `packet`, a frame that begins with its Ethernet header.
///
/// # Errors
/// [`Error::TooShort`] and [`Error::TooLong`] for frames that the kernel does not take, [`Error::Program`]
/// where the program is not loaded or may not be run.
pub fn run(program: &Xdp, packet: &[u8]) -> Result<Run, Error> {
    repeat(program, packet, 1)
}

/// Like [`run`], `times` times in a row on the same frame: each run sees what the one before left.
///
/// # Errors
/// As [`run`].
pub fn repeat(program: &Xdp, packet: &[u8], times: u32) -> Result<Run, Error> {
    let len = packet.len();
    if len < MIN_FRAME {
        return Err(Error::TooShort { len });
    }
    let mut out = vec![0; len + HEADROOM];
    let options = TestRunOptions {
        data_in: Some(packet),
        data_out: Some(&mut out),
        repeat: times,
        ..TestRunOptions::default()
    };
    let result = program.test_run(options).map_err(|error| match error {
        ProgramError::SyscallError(error)
            if len > MAX_FRAME / 2
                && matches!(
                    error.io_error.raw_os_error(),
                    Some(libc::EINVAL | libc::E2BIG | libc::ENOMEM)
                ) =>
        {
            Error::TooLong { len }
        }
        other => other.into(),
    })?;
    out.truncate(result.data_size_out as usize);
    Ok(Run {
        action: result.return_value.into(),
        packet: out,
        duration: result.duration,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_actions_are_the_kernels() {
        let actions: Vec<Action> = (0..6).map(Action::from).collect();
        let known = [
            Action::Aborted,
            Action::Drop,
            Action::Pass,
            Action::Tx,
            Action::Redirect,
        ];
        assert_eq!(actions[..5], known);
        assert_eq!(actions[5], Action::Unknown(5));
    }
}
