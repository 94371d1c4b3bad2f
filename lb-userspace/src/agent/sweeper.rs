//! The thread that sweeps the flow table, so that a scan of many entries holds up nothing else.
//!
//! The agent says when the next sweep is due and what it must know; the thread leaves its report for the agent to
//! fetch. Without slots on the move and without entries it sleeps.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::datapath::clock::monotonic_ns;
use crate::datapath::flows::Flows;
use crate::datapath::sweep::{self, Report, View};

/// Between two sweeps while something waits for what they find.
const SOON: Duration = Duration::from_secs(1);
/// While there are entries, but nothing waits.
const USUAL: Duration = Duration::from_secs(10);
/// While there is nothing.
const SELDOM: Duration = Duration::from_secs(60);
/// At most such a part of the time is spent on sweeps.
const SHARE: u32 = 20;
/// Between two batches, so that others get at the processor and at the table.
const BREATH: Duration = Duration::from_micros(100);

/// How long to wait until the next sweep.
#[must_use]
pub(super) fn pause(wanted: bool, last: &Report) -> Duration {
    let least = match (wanted, last.states.total()) {
        (true, _) => SOON,
        (false, 1..) => USUAL,
        (false, 0) => SELDOM,
    };
    least.max(Duration::from_nanos(last.took_ns()) * SHARE)
}

/// The thread, which ends with this value.
pub(super) struct Sweeper {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    view: Arc<View>,
    due: Option<Instant>,
    report: Option<Arc<Report>>,
    stopped: bool,
}

impl Sweeper {
    /// Starts the thread. No sweep is due yet.
    pub fn spawn(flows: Flows, view: View) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                view: Arc::new(view),
                due: None,
                report: None,
                stopped: false,
            }),
            changed: Condvar::new(),
        });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("sweeper".into())
            .spawn(move || theirs.run(flows))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// What sweeps must know from here on.
    pub fn show(&self, view: View) {
        self.shared.state().view = Arc::new(view);
    }

    /// Has the next sweep begin at `at`, unless one is due earlier.
    pub fn due(&self, at: Instant) {
        let mut state = self.shared.state();
        if state.due.is_none_or(|due| due > at) {
            state.due = Some(at);
            self.shared.changed.notify_all();
        }
    }

    /// The report of a sweep that ended since the last call.
    pub fn report(&self) -> Option<Arc<Report>> {
        self.shared.state().report.take()
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        self.shared.state().stopped = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the sweeper of the flow table panicked");
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // What is in there is whole whoever panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, mut flows: Flows) {
        while self.wait() {
            let view = || Arc::clone(&self.state().view);
            let go_on = || {
                std::thread::sleep(BREATH);
                !self.state().stopped
            };
            match sweep::sweep(&mut flows, &view, &monotonic_ns, &go_on) {
                Ok(Some(report)) => self.state().report = Some(Arc::new(report)),
                Ok(None) => {}
                Err(error) => {
                    log::error!("sweeping the flow table: {error}");
                    let mut state = self.state();
                    state.due.get_or_insert(Instant::now() + SELDOM);
                }
            }
        }
    }

    /// Waits until a sweep is due; `false`: this was the end.
    fn wait(&self) -> bool {
        let mut state = self.state();
        loop {
            if state.stopped {
                return false;
            }
            let now = Instant::now();
            let wait = state.due.map(|due| due.saturating_duration_since(now));
            state = match wait {
                Some(Duration::ZERO) => {
                    state.due = None;
                    return true;
                }
                Some(wait) => {
                    let woken = self.changed.wait_timeout(state, wait);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::sweep::States;

    #[test]
    fn sweeps_are_as_frequent_as_they_are_of_use() {
        let mut last = Report::begin(5);
        last.ended_ns = 5;
        assert_eq!(pause(true, &last), SOON);
        assert_eq!(pause(false, &last), SELDOM);
        last.states = States {
            established: 1,
            ..States::default()
        };
        assert_eq!(pause(false, &last), USUAL);
        last.ended_ns += 300_000_000;
        assert_eq!(pause(true, &last), Duration::from_secs(6));
    }
}
