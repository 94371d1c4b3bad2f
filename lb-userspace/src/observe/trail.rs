//! The last probes of one backend: what a verdict was made of. Pure.

use std::collections::VecDeque;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::event::Timestamp;
use crate::model::CheckCode;

/// How many results are remembered.
const ROOM: usize = 5;
/// A detail may carry what a server said; so many characters of it are enough.
const DETAIL: usize = 120;

/// One result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Probe {
    /// When it began.
    pub time: Timestamp,
    pub code: CheckCode,
    pub latency_ms: f64,
    pub detail: String,
}

/// What is remembered of the probes of a backend.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trail {
    recent: VecDeque<Probe>,
    /// When the last probe that passed began.
    last_good: Option<Timestamp>,
    /// When the first of the failed probes since then began.
    first_bad: Option<Timestamp>,
}

impl Trail {
    pub fn note(&mut self, mut probe: Probe) {
        if let Some((end, _)) = probe.detail.char_indices().nth(DETAIL) {
            probe.detail.truncate(end);
        }
        match probe.code.passed() {
            Some(true) => (self.last_good, self.first_bad) = (Some(probe.time), None),
            Some(false) => _ = self.first_bad.get_or_insert(probe.time),
            None => {}
        }
        if self.recent.len() == ROOM {
            self.recent.pop_front();
        }
        self.recent.push_back(probe);
    }

    /// The last results, the oldest first.
    #[must_use]
    pub fn recent(&self) -> Vec<Probe> {
        self.recent.iter().cloned().collect()
    }

    #[must_use]
    pub fn last_good(&self) -> Option<Timestamp> {
        self.last_good
    }

    #[must_use]
    pub fn first_bad(&self) -> Option<Timestamp> {
        self.first_bad
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(ms: u64, code: CheckCode) -> Probe {
        Probe {
            time: Timestamp(ms),
            code,
            latency_ms: 1.0,
            detail: "é".repeat(200),
        }
    }

    #[test]
    fn the_first_failure_in_a_row_is_remembered() {
        let mut trail = Trail::default();
        for (ms, code) in [
            (1, CheckCode::L4ok),
            (2, CheckCode::L4con),
            (3, CheckCode::L4ok),
            (4, CheckCode::L4con),
            (5, CheckCode::Sockerr),
            (6, CheckCode::L4tout),
        ] {
            trail.note(probe(ms, code));
        }
        assert_eq!(
            (trail.last_good(), trail.first_bad()),
            (Some(Timestamp(3)), Some(Timestamp(4)))
        );
        let recent: Vec<u64> = trail.recent().iter().map(|probe| probe.time.0).collect();
        assert_eq!(recent, [2, 3, 4, 5, 6]);
        assert_eq!(trail.recent()[0].detail.chars().count(), DETAIL);
        trail.note(probe(7, CheckCode::L4ok));
        assert_eq!(trail.first_bad(), None);
    }
}
