//! Events in memory, in the history, and on disk: brought together when the agent starts, kept together while it
//! runs.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use super::bus::{self, Bus};
use super::event::Timestamp;
use super::history::{Answer, History, Selection};
use super::record::{self, Recorder};

/// Events that come together are flushed together.
const APART: Duration = Duration::from_millis(200);

/// The history and the file behind a bus; clones are the same.
#[derive(Clone, Debug)]
pub struct Archive(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    bus: Bus,
    history: Mutex<History>,
    recorder: Mutex<Recorder>,
}

impl Archive {
    /// Reads what is kept in `state_dir`. What cannot be read is logged and left out.
    #[must_use]
    pub fn open(folder: &Path) -> Self {
        let (events, recorder) = record::open(folder);
        let mut history = History::default();
        for event in &events {
            history.take(event);
        }
        let surplus = events.len().saturating_sub(bus::ROOM);
        Self(Arc::new(Shared {
            bus: Bus::with(events.into_iter().skip(surplus)),
            history: Mutex::new(history),
            recorder: Mutex::new(recorder),
        }))
    }

    #[must_use]
    pub fn bus(&self) -> &Bus {
        &self.0.bus
    }

    /// Takes every event into the history and to the disk, until the task is dropped.
    pub async fn follow(self) {
        let folding = async {
            loop {
                let last = self.history().last();
                self.0.bus.beyond(last).await;
                drop(self.history());
            }
        };
        let recording = async {
            loop {
                let last = lock(&self.0.recorder).last();
                self.0.bus.beyond(last).await;
                let shared = Arc::clone(&self.0);
                let caught_up =
                    tokio::task::spawn_blocking(move || lock(&shared.recorder).catch_up(&shared.bus));
                let again = caught_up.await.unwrap_or(APART);
                tokio::time::sleep(again.max(APART)).await;
            }
        };
        tokio::join!(folding, recording);
    }

    /// Writes what is not on disk yet, before the agent ends.
    pub fn finish(&self) {
        let _ = lock(&self.0.recorder).catch_up(&self.0.bus);
    }

    /// What is known of the backends that are asked for.
    #[must_use]
    pub fn answer(&self, selection: &Selection, limit: usize) -> Answer {
        let now = Timestamp::of(SystemTime::now());
        self.history().answer(selection, limit, now)
    }

    /// The history with everything that happened so far.
    pub fn history(&self) -> MutexGuard<'_, History> {
        let mut history = lock(&self.0.history);
        loop {
            let batch = self.0.bus.since(history.last(), 1024);
            if batch.events.is_empty() {
                return history;
            }
            for event in &batch.events {
                history.take(event);
            }
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
