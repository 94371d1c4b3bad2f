//! Network namespaces.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::{panic, thread};

use anyhow::{Context, bail};
use nix::sched::{CloneFlags, setns};

use super::cleanup::{Cleanup, delete_netns, unique};

/// A named namespace, deleted with its last guard. Its devices go with it.
#[derive(Clone, Debug)]
pub struct Netns(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    file: File,
    _cleanup: Cleanup,
}

impl Netns {
    /// # Errors
    /// Where `ip netns add` fails (no root).
    pub fn new(what: &str) -> anyhow::Result<Self> {
        let name = unique(what);
        let gone = name.clone();
        let cleanup = Cleanup::new(move || delete_netns(&gone));
        run(Command::new("ip").args(["netns", "add", &name]))?;
        let path = Path::new("/run/netns").join(&name);
        let file = File::open(&path).with_context(|| path.display().to_string())?;
        let netns = Self(Arc::new(Inner {
            name,
            file,
            _cleanup: cleanup,
        }));
        // Addresses are used at once: no duplicate address detection.
        netns.sysctl("net/ipv6/conf/all/accept_dad", "0")?;
        netns.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
        netns.sysctl("net/ipv4/conf/all/rp_filter", "0")?;
        netns.sysctl("net/ipv4/conf/default/rp_filter", "0")?;
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0.name)
    }

    /// Runs something on a thread of its own in the namespace. A panic in it goes on here.
    pub fn enter<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        let joined = thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(self.0.file.as_fd(), CloneFlags::CLONE_NEWNET).expect("entering the namespace");
                action()
            });
            thread.join()
        });
        joined.unwrap_or_else(|payload| panic::resume_unwind(payload))
    }

    /// Moves the calling thread, and what it starts, into the namespace for good.
    ///
    /// # Errors
    /// What `setns` returns.
    pub fn move_in(&self) -> anyhow::Result<()> {
        Ok(setns(self.0.file.as_fd(), CloneFlags::CLONE_NEWNET)?)
    }

    /// A command that runs in the namespace. Mounts stay as they are, so `/sys/fs/bpf` is there.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let netns = self.clone();
        // SAFETY: between fork and exec only `setns` is called, on a descriptor the closure keeps open.
        unsafe {
            command.pre_exec(move || {
                let fd = netns.0.file.as_raw_fd();
                match libc::setns(fd, libc::CLONE_NEWNET) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
        command
    }

    /// Runs a command, given as words, to its end.
    ///
    /// # Errors
    /// Where it cannot be started or fails, with what it wrote.
    pub fn run(&self, line: &str) -> anyhow::Result<String> {
        let mut words = line.split_whitespace();
        let program = words.next().context("an empty command")?;
        run(self.command(program).args(words))
    }

    /// Runs `ip` with each of the lines.
    ///
    /// # Errors
    /// Where `ip` fails, with its words.
    pub fn ip(&self, lines: &str) -> anyhow::Result<()> {
        ip(Some(self.name()), lines)
    }

    /// Sets a variable below `/proc/sys`.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn sysctl(&self, variable: &str, value: &str) -> anyhow::Result<()> {
        let path = Path::new("/proc/sys").join(variable);
        self.enter(|| fs::write(&path, value))
            .with_context(|| format!("{} = {value}", path.display()))
    }

    /// A counter of `/proc/net/snmp` or `/proc/net/netstat`, by group and name (`Tcp`, `InCsumErrors`).
    ///
    /// # Errors
    /// Where there is no such counter.
    pub fn counter(&self, group: &str, name: &str) -> anyhow::Result<u64> {
        let read =
            |file: &str| self.enter(|| fs::read_to_string(Path::new("/proc/thread-self/net").join(file)));
        for text in [read("snmp")?, read("netstat")?] {
            let lines: Vec<&str> = text
                .lines()
                .filter(|line| line.split(':').next() == Some(group))
                .collect();
            let [names, values] = lines[..] else { continue };
            let found = names
                .split_whitespace()
                .zip(values.split_whitespace())
                .find(|(n, _)| *n == name);
            if let Some((_, value)) = found {
                return Ok(value.parse()?);
            }
        }
        bail!("no counter {group} {name}")
    }
}

/// Runs `ip` with each of the lines, in a namespace or in our own.
///
/// # Errors
/// Where `ip` fails, with its words.
pub fn ip(netns: Option<&str>, lines: &str) -> anyhow::Result<()> {
    let mut command = Command::new("ip");
    if let Some(name) = netns {
        command.args(["-n", name]);
    }
    command.args(["-batch", "-"]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting ip (package iproute2)")?;
    child
        .stdin
        .take()
        .context("a pipe")?
        .write_all(lines.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("ip: {}in:\n{lines}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// Runs a command to its end and returns what it wrote to standard output.
///
/// # Errors
/// Where it cannot be started or fails, with what it wrote.
pub fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command
        .output()
        .with_context(|| format!("starting {}", command.get_program().display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!(
            "{command:?}: {}\n{text}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(text)
}
