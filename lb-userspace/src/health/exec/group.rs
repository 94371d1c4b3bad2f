//! A program and all that it starts: a process group that does not outlive this value.

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::process::ExitStatus;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, ChildStdout, Command};

use crate::health::socket::watch;

#[derive(Debug)]
pub(super) struct Group {
    child: Child,
    /// `None`: the leader was waited for; its number may be another process's by now.
    leader: Option<Pid>,
    /// Readable once the leader has ended.
    ended: AsyncFd<OwnedFd>,
}

impl Group {
    /// Starts `command`, in a new process group.
    pub fn start(mut command: Command) -> io::Result<Self> {
        let child = command.process_group(0).spawn()?;
        let number = child.id().and_then(|id| i32::try_from(id).ok());
        let leader = Pid::from_raw(number.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?);
        let mut starting = Starting(Some(leader));
        let ended = watch(pidfd_open(leader)?, Interest::READABLE)?;
        starting.0 = None;
        Ok(Self {
            child,
            leader: Some(leader),
            ended,
        })
    }

    pub fn take_output(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Waits until the leader ends, and ends the others.
    pub async fn end(&mut self) -> io::Result<ExitStatus> {
        // Not by waiting for the process: as long as nobody has, its number is not given to another group.
        let _ended = self.ended.readable().await?;
        self.kill();
        self.leader = None;
        self.child.wait().await
    }

    fn kill(&self) {
        if let Some(leader) = self.leader {
            // An error means that nobody is left.
            let _ = killpg(leader, Signal::SIGKILL);
        }
    }
}

impl Drop for Group {
    /// tokio waits for the leader afterwards.
    fn drop(&mut self) {
        self.kill();
    }
}

/// Kills the group where it cannot be watched.
struct Starting(Option<Pid>);

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            let _ = killpg(leader, Signal::SIGKILL);
        }
    }
}

/// Linux 5.3.
fn pidfd_open(process: Pid) -> io::Result<OwnedFd> {
    // SAFETY: two integers go in, a new descriptor or an error comes out.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, process.as_raw(), 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
