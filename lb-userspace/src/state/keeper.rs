//! When the checkpoint is written: at most once a second, at once for an order, and never by the agent's loop.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::Checkpoint;
use crate::observe::{Bus, Kind};

/// Verdicts that come together are written together.
const APART: Duration = Duration::from_secs(1);
/// After a failure.
const AGAIN: Duration = Duration::from_secs(10);

/// Whether what was ordered is on the disk; else why not.
pub type Kept = Result<(), String>;

/// Writes checkpoints behind the back of the loop.
#[derive(Debug)]
pub struct Keeper {
    folder: PathBuf,
    seq: u64,
    /// Something changed since the last one.
    changed: bool,
    /// Who waits for the next one.
    waiting: Vec<oneshot::Sender<Kept>>,
    /// When the last one was begun.
    last: Option<Instant>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    bus: Bus,
    /// One is being written.
    busy: AtomicBool,
    /// Why the last one failed.
    failed: Mutex<Option<String>>,
}

impl Keeper {
    /// A keeper that goes on after the checkpoint with number `seq`.
    #[must_use]
    pub fn new(folder: &Path, seq: u64, bus: Bus) -> Self {
        Self {
            folder: folder.into(),
            seq,
            changed: true,
            waiting: Vec::new(),
            last: None,
            shared: Arc::new(Shared {
                bus,
                busy: AtomicBool::new(false),
                failed: Mutex::new(None),
            }),
        }
    }

    /// There is something to keep.
    pub fn mark(&mut self) {
        self.changed = true;
    }

    /// There is something to keep at once; tells when it is on the disk.
    pub fn mark_order(&mut self) -> oneshot::Receiver<Kept> {
        self.changed = true;
        let (done, kept) = oneshot::channel();
        self.waiting.push(done);
        kept
    }

    /// Why nothing can be kept, where it cannot.
    #[must_use]
    pub fn failed(&self) -> Option<String> {
        self.shared.failed().clone()
    }

    /// Whether a checkpoint is to be made now.
    #[must_use]
    pub fn due(&self, now: Instant) -> bool {
        if self.shared.busy.load(Ordering::Acquire) {
            return false;
        }
        let failed = self.shared.failed().is_some();
        let apart = if failed { AGAIN } else { APART };
        let rested = self
            .last
            .is_none_or(|last| now.saturating_duration_since(last) >= apart);
        !self.waiting.is_empty() || ((self.changed || failed) && rested)
    }

    /// Writes a checkpoint, for which [`Keeper::due`] asked.
    pub fn write(&mut self, mut checkpoint: Checkpoint, now: Instant) {
        self.seq += 1;
        checkpoint.seq = self.seq;
        self.changed = false;
        self.last = Some(now);
        self.shared.busy.store(true, Ordering::Release);
        let (folder, waiting) = (self.folder.clone(), std::mem::take(&mut self.waiting));
        let shared = Arc::clone(&self.shared);
        tokio::task::spawn_blocking(move || {
            let kept = shared.note(&folder, checkpoint.store(&folder));
            shared.busy.store(false, Ordering::Release);
            for waiting in waiting {
                // Who does not want to know any longer may go.
                let _ = waiting.send(kept.clone());
            }
        });
    }

    /// The last one, written before this returns; one under way does not come after it.
    pub fn finish(mut self, mut checkpoint: Checkpoint) {
        let patience = Instant::now() + Duration::from_secs(2);
        while self.shared.busy.load(Ordering::Acquire) && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.seq += 1;
        checkpoint.seq = self.seq;
        let kept = self.shared.note(&self.folder, checkpoint.store(&self.folder));
        for waiting in self.waiting {
            let _ = waiting.send(kept.clone());
        }
    }
}

impl Shared {
    /// Says, once, that nothing can be kept, or can again.
    fn note(&self, folder: &Path, result: std::io::Result<()>) -> Kept {
        let folder = folder.display();
        let why = result
            .err()
            .map(|error| format!("state_dir {folder} cannot be written: {error}"));
        let before = std::mem::replace(&mut *self.failed(), why.clone());
        match (&before, &why) {
            (None, Some(why)) => {
                log::error!(
                    "{why}; admin states, weights and verdicts of now are lost with a reboot unless it can be written again"
                );
                self.bus.emit(Kind::StateDir { writable: false }.because(why));
            }
            (Some(_), None) => {
                log::info!("state_dir {folder} is written again");
                self.bus.emit(Kind::StateDir { writable: true });
            }
            _ => {}
        }
        why.map_or(Ok(()), Err)
    }

    fn failed(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "tests/keeper.rs"]
mod tests;
