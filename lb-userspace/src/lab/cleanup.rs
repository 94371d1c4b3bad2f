//! The registry of everything that has to be taken away again.
//!
//! A guard's [`Cleanup`] runs when it is dropped, or, where SIGINT or SIGTERM comes first, on the thread that
//! waits for signals: all of them then, youngest first, and the process ends with status 130.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::{env, fs, thread};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

type Action = Box<dyn FnOnce() + Send>;

/// Held while an action runs, so that the process cannot end in the middle of one.
static REGISTRY: Mutex<Registry> = Mutex::new(Registry {
    last: 0,
    actions: BTreeMap::new(),
});

struct Registry {
    last: u64,
    actions: BTreeMap<u64, Action>,
}

/// Takes something away when dropped. Actions must not make or drop a [`Cleanup`] themselves.
#[derive(Debug)]
pub struct Cleanup(u64);

impl Cleanup {
    pub fn new(action: impl FnOnce() + Send + 'static) -> Self {
        start();
        let mut registry = lock();
        registry.last += 1;
        let id = registry.last;
        registry.actions.insert(id, Box::new(action));
        Self(id)
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        let mut registry = lock();
        if let Some(action) = registry.actions.remove(&self.0) {
            action();
        }
    }
}

fn lock() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for signals from now on, and removes what dead processes of ours left behind. Further calls do nothing.
pub fn start() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let (mut interrupt, mut terminate) = {
            let _context = runtime.enter();
            (
                signal(SignalKind::interrupt()).expect("a handler for SIGINT"),
                signal(SignalKind::terminate()).expect("a handler for SIGTERM"),
            )
        };
        thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
            });
            end();
        });
        sweep();
    });
}

/// The lock is kept until the process is gone: nobody makes anything any longer.
fn end() -> ! {
    let mut registry = lock();
    while let Some((_, action)) = registry.actions.pop_last() {
        action();
    }
    std::process::exit(130)
}

/// A name that tells whose it is, unique on this machine: `xlb<pid>-<n>-<what>`.
#[must_use]
pub fn unique(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!(
        "{MARK}{}-{}-{what}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

const MARK: &str = "xlb";

/// Where agents of tests pin.
pub const BPFFS: &str = "/sys/fs/bpf";

/// Removes the namespaces, pins and folders of processes of ours that are dead.
fn sweep() {
    for name in orphans(Path::new("/run/netns")) {
        delete_netns(&name);
    }
    for folder in [Path::new(BPFFS), &env::temp_dir()] {
        for name in orphans(folder) {
            let _ = fs::remove_dir_all(folder.join(name));
        }
    }
}

/// Names below `folder` that [`unique`] made in a process that lives no longer.
fn orphans(folder: &Path) -> Vec<String> {
    let dead = |pid: u32| !Path::new(&format!("/proc/{pid}")).exists();
    names(folder)
        .into_iter()
        .filter(|name| owner(name).is_some_and(dead))
        .collect()
}

/// What this process made and has not taken away: namespaces, pins, folders, child processes.
#[must_use]
pub fn left_by_us() -> Vec<String> {
    let mut left = left_by(std::process::id());
    for thread in names(Path::new("/proc/self/task")) {
        let children = fs::read_to_string(format!("/proc/self/task/{thread}/children")).unwrap_or_default();
        left.extend(children.split_whitespace().map(|pid| format!("process {pid}")));
    }
    left
}

/// The namespaces, pins and folders that a process made and has not taken away.
#[must_use]
pub fn left_by(pid: u32) -> Vec<String> {
    let mut left = Vec::new();
    for folder in [Path::new("/run/netns"), Path::new(BPFFS), &env::temp_dir()] {
        let made = names(folder).into_iter().filter(|name| owner(name) == Some(pid));
        left.extend(made.map(|name| folder.join(name).display().to_string()));
    }
    left
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// The process that made a name.
fn owner(name: &str) -> Option<u32> {
    let (pid, rest) = name.strip_prefix(MARK)?.split_once('-')?;
    let (number, _) = rest.split_once('-')?;
    number.parse::<u32>().ok()?;
    pid.parse().ok()
}

/// Deletes a named namespace, if it is there.
pub fn delete_netns(name: &str) {
    let path = Path::new("/run/netns").join(name);
    let _ = nix::mount::umount2(&path, nix::mount::MntFlags::MNT_DETACH);
    let _ = fs::remove_file(path);
}

/// A folder for logs, sockets and state.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    _cleanup: Cleanup,
}

impl Folder {
    /// # Errors
    /// Where it cannot be made.
    pub fn new(what: &str) -> anyhow::Result<Self> {
        let path = env::temp_dir().join(unique(what));
        let gone = path.clone();
        let cleanup = Cleanup::new(move || {
            let _ = fs::remove_dir_all(gone);
        });
        fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        Ok(Self {
            path,
            _cleanup: cleanup,
        })
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file in it.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_whose_it_is() {
        assert_eq!(owner(&unique("client")), Some(std::process::id()));
        assert_eq!(owner("xlb12-3-b1"), Some(12));
        for foreign in [
            "xlb",
            "xlb-3-b1",
            "xlbtest",
            "xlb12",
            "xlb12-b1",
            "xlb12-b1-0",
            "abc",
        ] {
            assert_eq!(owner(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn what_a_dead_process_left_is_an_orphan_and_what_a_living_one_has_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let mut dead = std::process::Command::new("true").spawn().unwrap();
        dead.wait().unwrap();
        let left = format!("xlb{}-0-client", dead.id());
        for name in [left.as_str(), &unique("client"), "other"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(orphans(folder.path()), [left]);
    }

    #[test]
    fn a_folder_goes_with_its_guard() {
        let folder = Folder::new("test").unwrap();
        let path = folder.path().to_owned();
        fs::write(folder.file("x"), "y").unwrap();
        drop(folder);
        assert!(!path.exists());
    }
}
