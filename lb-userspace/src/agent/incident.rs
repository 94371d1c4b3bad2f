//! The course of an incident: from the verdict to the table without the backend, and on to the first packet
//! elsewhere, for which [`crate::observe::incident`] looks.

use std::time::{Duration, Instant, SystemTime};

use super::Agent;
use crate::control::Desired;
use crate::datapath::apply::{Change, ChangeKind};
use crate::health::Report;
use crate::model::{BackendId, OperState};
use crate::observe::incident::{self, Watch};
use crate::observe::{Kind, Probe, Timeline, Timestamp, Trail};

/// A verdict that has not changed a table for so long will not.
const PATIENCE: Duration = Duration::from_secs(1);

/// A backend that was found DOWN, and may still be in its table.
#[derive(Debug)]
pub(super) struct Opened {
    id: BackendId,
    at: Instant,
    timeline: Timeline,
}

/// A result as events show it.
pub(super) fn probe(report: &Report) -> Probe {
    let begun = SystemTime::now().checked_sub(report.started.elapsed());
    Probe {
        time: begun.map(Timestamp::of).unwrap_or_default(),
        code: report.result.code,
        latency_ms: report.result.latency.as_micros() as f64 / 1000.0,
        detail: report.result.detail.clone(),
    }
}

impl Agent {
    /// A backend changed its state.
    pub(super) fn open_incident(&mut self, id: BackendId, from: OperState, to: OperState) {
        if (from, to) != (OperState::Up, OperState::Down) {
            return;
        }
        let trail = self.observed.get(&id).map(|observed| &observed.trail);
        let last_good = trail.and_then(Trail::last_good);
        let suspected = self.observed.get(&id).and_then(|observed| observed.suspected);
        let timeline = Timeline {
            suspected: suspected.filter(|at| last_good.is_none_or(|good| *at >= good)),
            last_good,
            first_bad: trail.and_then(Trail::first_bad),
            verdict: Timestamp::of(SystemTime::now()),
            ..Timeline::default()
        };
        let at = Instant::now();
        self.incidents.push(Opened { id, at, timeline });
    }

    /// Tables were switched: the incidents of their services wait for packets from here on.
    pub(super) fn follow_incidents(&mut self, changes: &[Change], desired: &Desired) {
        if self.incidents.is_empty() {
            return;
        }
        let switched = Instant::now();
        let clock = Timestamp::of(SystemTime::now());
        for change in changes {
            let ChangeKind::Table { moved, .. } = change.kind else {
                continue;
            };
            let ours = self
                .incidents
                .extract_if(.., |opened| opened.id.service == change.key);
            let ours: Vec<Opened> = ours.collect();
            let Some(service) = desired.services.get(&change.key).filter(|_| !ours.is_empty()) else {
                continue;
            };
            let takers = service.candidates.iter().map(|candidate| BackendId {
                service: change.key,
                address: candidate.address,
                port: candidate.port,
            });
            let takers = takers.filter(|id| ours.iter().all(|opened| opened.id != *id));
            let indices = takers
                .filter_map(|id| self.dataplane.index_of(&id))
                .take(incident::LOOKED_AT);
            let before: Vec<(u32, u64)> = indices
                .filter_map(|index| {
                    let counted = self.dataplane.maps.backend_counters(index).ok()?;
                    Some((index, counted.packets))
                })
                .collect();
            let begun = tokio::time::Instant::now();
            for Opened { id, mut timeline, .. } in ours {
                timeline.table_switched = Some(clock);
                timeline.moved_slots = moved as u64;
                self.follower.watch(Watch {
                    about: self.about(&id, Kind::Rerouted(Timeline::default())),
                    timeline,
                    before: before.clone(),
                    begun,
                    late: begun.into_std().saturating_duration_since(switched),
                });
            }
        }
    }

    /// Incidents that changed no table are over.
    pub(super) fn end_incidents(&mut self, now: Instant) {
        if self.starting() {
            return;
        }
        let over = |opened: &mut Opened| now.saturating_duration_since(opened.at) >= PATIENCE;
        let over: Vec<Opened> = self.incidents.extract_if(.., over).collect();
        for Opened { id, timeline, .. } in over {
            self.emit(self.about(&id, Kind::Rerouted(timeline)));
        }
    }
}
