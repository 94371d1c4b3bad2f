//! Passive detection: backends whose clients seem to get no answer are probed at once. What the program notes is a
//! reason to ask ([`lb_common::suspect`]); the probes decide, as ever.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use super::Agent;
use crate::model::{BackendId, OperState};
use crate::observe::Timestamp;

/// How often the program's notes are looked at.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How many backends are asked for one look. Others are asked for the next.
const ASK_AT_ONCE: usize = 200;

impl Agent {
    /// Looks for signs that came since the last time, and has their backends asked.
    pub(super) fn look_for_signs(&mut self) {
        let mut signs = Vec::new();
        self.dataplane.maps.signs.fresh(&mut self.signs_known, |index| {
            signs.push(index);
            signs.len() < ASK_AT_ONCE
        });
        if signs.is_empty() || self.starting() {
            return;
        }
        let members = self.members_by_index();
        let now = Instant::now();
        for index in signs {
            let Some(id) = members.get(&index).copied() else {
                continue;
            };
            let up = self
                .statuses
                .get(&id)
                .is_some_and(|status| status.state == OperState::Up);
            let probed = self.sharing.probed(&id);
            if up && self.checks(&id) && self.prober.suspect(&probed, now) {
                log::debug!(
                    "backend {}: its clients seem to get no answer",
                    self.describe(&id)
                );
                self.meter.suspicion(&id);
                for id in self.sharing.with(&id) {
                    self.observed.entry(id).or_default().suspected = Some(Timestamp::of(SystemTime::now()));
                }
            }
        }
    }

    fn members_by_index(&self) -> BTreeMap<u32, BackendId> {
        let ids = self.members.all();
        ids.filter_map(|id| Some((self.dataplane.index_of(id)?, *id)))
            .collect()
    }
}
