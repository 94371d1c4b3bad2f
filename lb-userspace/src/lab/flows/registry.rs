//! What the clients tell and others ask.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::lab::ledger::End;
use crate::lab::wire::Name;

/// A flow that was answered and goes on.
#[derive(Clone, Copy, Debug)]
pub struct Live {
    pub service: usize,
    /// The client's port.
    pub port: u16,
    pub backend: Name,
}

/// A first request.
#[derive(Clone, Copy, Debug)]
pub struct Open {
    pub service: usize,
    /// The client's port.
    pub port: u16,
    /// When the client set out.
    pub at: Instant,
    /// Who answered; `None`: nobody in time.
    pub backend: Option<Name>,
}

#[derive(Debug, Default)]
pub struct Registry {
    live: Mutex<HashMap<u64, Live>>,
    ends: Mutex<Vec<End>>,
    opens: Mutex<Vec<Open>>,
    answers: AtomicU64,
    last_id: AtomicU64,
    stop: AtomicBool,
}

impl Registry {
    pub fn opened(&self, open: Open) {
        lock(&self.opens).push(open);
    }

    /// A first answer came: the flow lives until the guard goes.
    pub fn lives(&self, live: Live) -> Living<'_> {
        let id = self.last_id.fetch_add(1, Ordering::Relaxed);
        lock(&self.live).insert(id, live);
        Living { registry: self, id }
    }

    pub fn answered(&self) {
        self.answers.fetch_add(1, Ordering::Relaxed);
    }

    pub fn ended(&self, end: End) {
        if !self.stopped() {
            lock(&self.ends).push(end);
        }
    }

    pub fn live(&self) -> Vec<(u64, Live)> {
        lock(&self.live).iter().map(|(id, live)| (*id, *live)).collect()
    }

    pub fn take_ends(&self) -> Vec<End> {
        std::mem::take(&mut *lock(&self.ends))
    }

    pub fn take_opens(&self) -> Vec<Open> {
        std::mem::take(&mut *lock(&self.opens))
    }

    pub fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }

    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Takes the flow from the list of those that live.
pub struct Living<'a> {
    registry: &'a Registry,
    id: u64,
}

impl Drop for Living<'_> {
    fn drop(&mut self) {
        lock(&self.registry.live).remove(&self.id);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
