//! Child processes: killed with their guard, and by the kernel if we die without a word.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{env, thread};

use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::cleanup::{Cleanup, Folder};
use super::wait::PATIENCE;

/// A running program. It must be started by a thread that outlives it: the kernel ends it with that thread.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: u32,
    child: Arc<Mutex<Child>>,
    log: PathBuf,
    _cleanup: Cleanup,
    _folder: Arc<Folder>,
}

impl Process {
    /// Starts a program; what it writes goes to `NAME.log` in the folder, after what is there already.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn spawn(name: &str, command: &mut Command, folder: &Arc<Folder>) -> anyhow::Result<Self> {
        let log = folder.file(&format!("{name}.log"));
        let out = File::options().create(true).append(true).open(&log)?;
        let parent = std::process::id();
        // SAFETY: only system calls without memory effects between fork and exec.
        unsafe {
            command.pre_exec(move || {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                // We may have died before the kernel knew what to do then.
                if libc::getppid().cast_unsigned() == parent {
                    Ok(())
                } else {
                    Err(std::io::Error::other("the parent is gone"))
                }
            });
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("starting {}", command.get_program().display()))?;
        let pid = child.id();
        let child = Arc::new(Mutex::new(child));
        let kept = Arc::clone(&child);
        let cleanup = Cleanup::new(move || {
            let mut child = lock(&kept);
            let _ = child.kill();
            let _ = child.wait();
        });
        Ok(Self {
            name: name.into(),
            pid,
            child,
            log,
            _cleanup: cleanup,
            _folder: Arc::clone(folder),
        })
    }

    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// # Errors
    /// What `kill` returns.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        // Not reaped while locked: the pid is still its own.
        let mut child = lock(&self.child);
        if let Some(status) = child.try_wait()? {
            bail!("{} ended before: {status}\n{}", self.name, self.log());
        }
        Ok(nix::sys::signal::kill(
            Pid::from_raw(self.pid.cast_signed()),
            signal,
        )?)
    }

    /// SIGKILL, and waits until it is gone.
    ///
    /// # Errors
    /// What `kill` returns.
    pub fn kill(&self) -> anyhow::Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.wait().map(drop)
    }

    /// SIGTERM, and waits for its end.
    ///
    /// # Errors
    /// Where it does not end.
    pub fn stop(&self) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait()
    }

    /// How it ended, if it did.
    ///
    /// # Errors
    /// What `wait` returns.
    pub fn ended(&self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(lock(&self.child).try_wait()?)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// Where it does not end.
    pub fn wait(&self) -> anyhow::Result<ExitStatus> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(2));
        }
        bail!("{} does not end\n{}", self.name, self.log())
    }

    /// What it wrote.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("---- {} (pid {}) wrote:\n{}----", self.name, self.pid, self.log());
        }
    }
}

fn lock(child: &Mutex<Child>) -> MutexGuard<'_, Child> {
    child.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A binary of this workspace, built beside the one that runs.
///
/// # Errors
/// Where it is not there, with the command that builds it.
pub fn binary(name: &str) -> anyhow::Result<PathBuf> {
    let exe = env::current_exe()?;
    let folders = exe.ancestors().skip(1).take(2);
    let found = folders.map(|folder| folder.join(name)).find(|path| is_file(path));
    found.with_context(|| format!("{name} is not built: cargo build --workspace --bins"))
}

fn is_file(path: &Path) -> bool {
    path.metadata().is_ok_and(|meta| meta.is_file())
}
