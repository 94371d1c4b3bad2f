//! The state machine of one target: what results mean, and when the next probe is due.
//!
//! ```text
//!                   first result passed
//!     ┌─────────┐ ────────────────────────────────────────► ┌──────┐ passed:
//!     │ UNKNOWN │            rise results in a row passed   │  UP  │ failures = 0
//!     └─────────┘            ┌────────────────────────────► └──────┘
//!          │             ┌──────┐                               │
//!          └───────────► │ DOWN │ ◄─────────────────────────────┘
//!     first result       └──────┘  fall results in a row failed,
//!     failed              failed:  and the last is believed
//!                         passes = 0
//! ```
//!
//! Only consecutive results count: one that agrees with the state starts the count anew. A probe that could
//! not be sent (`SOCKERR`) says nothing about the target; it neither counts nor starts anew.
//!
//! Silence is believed only when something else answered meanwhile ([`super::doubt`]). Until then a target with
//! `fall` failures in a row stays UP, *doubted*.
//!
//! # Pace
//!
//! A verdict is *in transition* while some results contradict the state, but not enough of them, and
//! until this run has its first result. Then probes are `fast_interval` apart and have `fast_timeout`
//! to answer. Else they are `interval` apart (`down_interval` while DOWN, where set) and have `timeout`. A doubted
//! target is at rest: whoever doubts asks for a probe when there is reason to.
//!
//! Intervals run from start to start, so that slow answers do not stretch them; a probe that takes
//! longer than its interval is followed by the next at once. Jitter only shortens them. From this
//! follow the bounds on the time between the start of the first failing probe and the verdict:
//!
//! - Failures at once (refused): the other `fall - 1` probes start at most `fast_interval` apart, so
//!   `(fall - 1) * fast_interval`.
//! - Silence: the first takes `timeout`, each of the others `fast_timeout`, and they start at most
//!   `max(fast_interval, fast_timeout)` apart, so
//!   `timeout + (fall - 1) * max(fast_interval, fast_timeout)`. Where `timeout` is the shorter of the two it is
//!   used for both: the wait for the second probe is then covered by the saving in the last.
//!
//! So that targets which came to rest together (at start, or when their common switch came back) do not stay
//! together, the first wait at rest is anything from `fast_interval` to the full interval.

use std::time::{Duration, Instant};

use crate::model::OperState;

/// No two probes of a target start closer than this, whatever the policy says.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);

/// When to probe, and how many results make a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// From start to start of probes at rest.
    pub interval: Duration,
    /// What a probe at rest may take as a whole.
    pub timeout: Duration,
    /// From start to start of probes while a verdict is in transition.
    pub fast_interval: Duration,
    /// What a probe may take while UP is in doubt; at most `timeout` is used.
    pub fast_timeout: Duration,
    /// In place of `interval` while DOWN.
    pub down_interval: Option<Duration>,
    /// Results in a row that must pass before DOWN becomes UP; 0 means 1.
    pub rise: u32,
    /// Results in a row that must fail before UP becomes DOWN; 0 means 1.
    pub fall: u32,
    /// Each interval is shortened by a random part of up to this many percent (at most 100). 0 switches all
    /// randomness off.
    pub jitter_percent: u8,
}

/// Where an earlier run left a target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Previous {
    pub state: OperState,
    /// Results in a row that passed, or failed; one of them is 0.
    pub passes: u32,
    pub failures: u32,
}

impl From<OperState> for Previous {
    fn from(state: OperState) -> Self {
        Self {
            state,
            ..Self::default()
        }
    }
}

/// A change of state: from, to.
pub type Change = (OperState, OperState);

/// The check of one target.
#[derive(Clone, Debug)]
pub struct Machine {
    policy: Policy,
    state: OperState,
    /// Results in a row that passed; one of this and `failures` is 0.
    passes: u32,
    failures: u32,
    /// The last result ended a transition.
    came_to_rest: bool,
}

impl Machine {
    /// A target in the state an earlier run left it in, or [`OperState::Unknown`].
    #[must_use]
    pub fn new(policy: Policy, previous: OperState) -> Self {
        Self {
            policy,
            state: previous,
            passes: 0,
            failures: 0,
            came_to_rest: false,
        }
    }

    /// As [`Machine::new`], after so many results in a row that passed, or failed.
    #[must_use]
    pub fn resumed(policy: Policy, previous: Previous) -> Self {
        let Previous {
            state,
            passes,
            failures,
        } = previous;
        Self {
            // One of them is 0.
            passes: if failures > 0 { 0 } else { passes },
            failures,
            ..Self::new(policy, state)
        }
    }

    #[must_use]
    pub fn state(&self) -> OperState {
        self.state
    }

    /// Results in a row that passed.
    #[must_use]
    pub fn passes(&self) -> u32 {
        self.passes
    }

    /// Results in a row that failed.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }

    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Other parameters from the next result on; state and counts stay.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// The results so far were about something else: the state stays until new ones contradict it.
    pub fn forget_results(&mut self) {
        self.passes = 0;
        self.failures = 0;
    }

    /// Sets the state without a result.
    pub fn assume(&mut self, state: OperState) -> Option<Change> {
        self.forget_results();
        self.enter(state)
    }

    /// `fall` results in a row failed, and are not believed.
    #[must_use]
    pub fn doubted(&self) -> bool {
        self.state == OperState::Up && self.failures >= self.policy.fall.max(1)
    }

    /// Takes the result of a probe: passed, failed, or none (it could not be sent). `believed`: an UP target may be
    /// DOWN by it.
    pub fn observe(&mut self, passed: Option<bool>, believed: bool) -> Option<Change> {
        let was_in_transition = self.in_transition();
        match passed {
            Some(true) => (self.passes, self.failures) = (self.passes.saturating_add(1), 0),
            Some(false) => (self.passes, self.failures) = (0, self.failures.saturating_add(1)),
            None => {}
        }
        let changed = self.enter(match self.state {
            OperState::Unknown if self.passes > 0 => OperState::Up,
            OperState::Unknown if self.failures > 0 => OperState::Down,
            // Not by a result that says nothing.
            OperState::Up if passed == Some(false) && believed && self.doubted() => OperState::Down,
            OperState::Down if self.passes >= self.policy.rise.max(1) => OperState::Up,
            same => same,
        });
        self.came_to_rest = changed.is_some() || (was_in_transition && !self.in_transition());
        changed
    }

    /// Whether results contradict the state, but not enough of them, or there are none yet.
    #[must_use]
    pub fn in_transition(&self) -> bool {
        match self.state {
            OperState::Unknown => true,
            OperState::Up => self.passes == 0 && !self.doubted(),
            OperState::Down => self.failures == 0,
        }
    }

    /// How long the next probe may take.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        let Policy {
            timeout,
            fast_timeout,
            ..
        } = self.policy;
        // Only on the way down, where the time until the verdict counts. A backend that answers slowly but
        // within `timeout` must be able to come UP.
        if self.state == OperState::Up && (self.in_transition() || self.doubted()) {
            fast_timeout.min(timeout)
        } else {
            timeout
        }
    }

    /// How long a probe may take that a suspicion brought forward, where the last that passed took `passed_in`: as in
    /// transition, unless the target is so slow that it might not answer by then.
    #[must_use]
    pub fn suspicious_timeout(&self, passed_in: Duration) -> Duration {
        let fast = self.policy.fast_timeout;
        if passed_in * 2 <= fast {
            fast.min(self.timeout())
        } else {
            self.timeout()
        }
    }

    /// From the end of the first probe of a silent target to its verdict, `timeout` at most and long enough for an
    /// answer.
    #[must_use]
    pub fn patience(&self) -> Duration {
        let Policy {
            timeout,
            fast_interval,
            fast_timeout,
            fall,
            ..
        } = self.policy;
        let to_verdict = fast_interval.max(fast_timeout) * fall.max(1).saturating_sub(1);
        to_verdict.max(fast_timeout).min(timeout)
    }

    /// When the next probe starts, after one that lasted from `started` to `ended`. `draw` is a random number
    /// from 0 to 1.
    #[must_use]
    pub fn next_probe(&self, started: Instant, ended: Instant, draw: f64) -> Instant {
        (started + self.wait(draw)).max(ended)
    }

    fn wait(&self, draw: f64) -> Duration {
        let Policy {
            interval,
            fast_interval,
            down_interval,
            jitter_percent,
            ..
        } = self.policy;
        let longest = match self.state {
            _ if self.in_transition() => fast_interval,
            OperState::Down => down_interval.unwrap_or(interval),
            OperState::Up | OperState::Unknown => interval,
        };
        let jitter = if self.came_to_rest && jitter_percent > 0 {
            longest.saturating_sub(fast_interval)
        } else {
            longest * u32::from(jitter_percent.min(100)) / 100
        };
        longest
            .saturating_sub(jitter.mul_f64(draw.clamp(0.0, 1.0)))
            .max(SHORTEST_WAIT)
    }

    fn enter(&mut self, state: OperState) -> Option<Change> {
        let from = std::mem::replace(&mut self.state, state);
        (from != state).then_some((from, state))
    }
}

#[cfg(test)]
#[path = "tests/machine.rs"]
mod tests;
