//! What events add up to: verdicts of each backend, incidents, MTBF, MTTR, availability. Pure.
//!
//! Only time in which an agent watched counts, and none in maintenance:
//!
//! - MTBF: the time UP, divided by how often the backend was found DOWN;
//! - MTTR: the time DOWN, an outage that goes on included, divided by the same;
//! - availability: MTBF / (MTBF + MTTR), which is the time UP by the time UP or DOWN.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::event::{Event, Kind, Timeline, Timestamp};
use super::trail::Probe;
use crate::model::{AdminState, CheckCode, OperState};

/// Verdicts kept of one backend.
const VERDICTS: usize = 64;
/// Backends kept, those that were removed included.
const BACKENDS: usize = 65_536;

/// One change of the verdict.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Verdict {
    pub time: Timestamp,
    pub from: OperState,
    pub to: OperState,
    pub code: CheckCode,
    pub cause: String,
    /// The last results before it, the oldest first.
    pub results: Vec<Probe>,
    /// What followed, where it took a backend out.
    pub timeline: Option<Timeline>,
}

/// `GET /v1/history`: one backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BackendHistory {
    pub service: String,
    #[schemars(with = "String")]
    pub backend: SocketAddr,
    pub state: OperState,
    /// In that state since.
    pub since: Timestamp,
    /// It is in no configuration any longer.
    pub removed: bool,
    /// How often it was found DOWN.
    pub failures: u64,
    pub up_s: f64,
    pub down_s: f64,
    /// Mean time between failures; none where it never failed.
    pub mtbf_s: Option<f64>,
    /// Mean time to repair; none where it never failed.
    pub mttr_s: Option<f64>,
    /// From 0 to 1; none where it was never UP nor DOWN.
    pub availability: Option<f64>,
    /// The oldest first.
    pub verdicts: Vec<Verdict>,
}

/// `GET /v1/history`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Answer {
    /// From when on events are kept.
    pub since: Timestamp,
    pub backends: Vec<BackendHistory>,
}

/// Which backends are asked for; nothing means all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    pub service: Option<String>,
    pub address: Option<std::net::IpAddr>,
    pub port: Option<u16>,
}

impl Selection {
    fn wants(&self, (service, place): &Name) -> bool {
        self.service.as_ref().is_none_or(|wanted| wanted == service)
            && self.address.is_none_or(|wanted| wanted == place.ip())
            && self.port.is_none_or(|wanted| wanted == place.port())
    }
}

/// Service and backend.
type Name = (String, SocketAddr);

/// The fold of all events so far.
#[derive(Clone, Debug, Default)]
pub struct History {
    since: Option<Timestamp>,
    /// Number and time of the last event in it.
    last: u64,
    last_time: Timestamp,
    backends: BTreeMap<Name, Past>,
}

#[derive(Clone, Debug)]
struct Past {
    state: OperState,
    since: Timestamp,
    /// Up to here its time is in `up` and `down`.
    counted: Timestamp,
    removed: bool,
    failures: u64,
    up: Duration,
    down: Duration,
    verdicts: VecDeque<Verdict>,
}

impl Past {
    fn new(state: OperState, now: Timestamp) -> Self {
        Self {
            state,
            since: now,
            counted: now,
            removed: false,
            failures: 0,
            up: Duration::ZERO,
            down: Duration::ZERO,
            verdicts: VecDeque::new(),
        }
    }

    /// Counts the time until `now` for the state it is in.
    fn count(&mut self, now: Timestamp) {
        let time = now.since(self.counted);
        match self.state {
            OperState::Up => self.up += time,
            OperState::Down => self.down += time,
            OperState::Unknown => {}
        }
        self.counted = self.counted.max(now);
    }

    fn enter(&mut self, state: OperState, now: Timestamp) {
        self.count(now);
        if self.state != state {
            self.since = now;
            self.failures += u64::from(state == OperState::Down);
        }
        self.state = state;
        self.removed = false;
    }
}

impl History {
    /// Takes the next event. One with a number that was there already changes nothing.
    pub fn take(&mut self, event: &Event) {
        if event.seq <= self.last {
            return;
        }
        self.last = event.seq;
        self.last_time = event.time;
        self.since.get_or_insert(event.time);
        let now = event.time;
        if let Kind::AgentStarted { observed_until, .. } = &event.kind {
            // Nobody watched since the last sign of life.
            for past in self.backends.values_mut() {
                past.count(observed_until.unwrap_or(past.counted));
                past.counted = past.counted.max(now);
            }
            return;
        }
        let (Some(service), Some(place)) = (&event.service, event.backend) else {
            return;
        };
        let name = (service.clone(), place);
        match &event.kind {
            Kind::BackendState {
                from,
                to,
                code,
                results,
                ..
            } => {
                let Some(past) = self.past(name, *from, now) else {
                    return;
                };
                past.enter(*to, now);
                if past.verdicts.len() == VERDICTS {
                    past.verdicts.pop_front();
                }
                past.verdicts.push_back(Verdict {
                    time: now,
                    from: *from,
                    to: *to,
                    code: *code,
                    cause: event.cause.clone().unwrap_or_default(),
                    results: results.clone(),
                    timeline: None,
                });
            }
            Kind::Rerouted(timeline) => {
                let verdicts = self.backends.get_mut(&name).map(|past| &mut past.verdicts);
                // Where no packet came, later verdicts were told of before.
                let latest = match timeline.verdict {
                    Timestamp(0) => now,
                    verdict => verdict.min(now),
                };
                let taken_out = verdicts
                    .into_iter()
                    .flatten()
                    .rfind(|verdict| verdict.to == OperState::Down && verdict.time <= latest);
                if let Some(verdict) = taken_out {
                    verdict.timeline = Some(timeline.clone());
                }
            }
            Kind::BackendAdmin {
                to: AdminState::Maint,
                ..
            } => {
                if let Some(past) = self.past(name, OperState::Unknown, now) {
                    past.enter(OperState::Unknown, now);
                }
            }
            Kind::BackendRemoved => {
                if let Some(past) = self.backends.get_mut(&name) {
                    past.enter(OperState::Unknown, now);
                    past.removed = true;
                }
            }
            _ => {}
        }
    }

    /// A backend that is known to be in a state, of which no event may be kept.
    pub fn know(&mut self, service: &str, place: SocketAddr, state: OperState, now: Timestamp) {
        let _ = self.past((service.to_owned(), place), state, now);
    }

    /// Number of the last event in it.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Time of the last event in it.
    #[must_use]
    pub fn last_time(&self) -> Timestamp {
        self.last_time
    }

    /// The backends that are asked for, at `now`, with at most `limit` verdicts each, the last ones.
    #[must_use]
    pub fn answer(&self, selection: &Selection, limit: usize, now: Timestamp) -> Answer {
        let chosen = self.backends.iter().filter(|(name, _)| selection.wants(name));
        let backends = chosen.map(|((service, place), past)| {
            let mut past = past.clone();
            past.count(now);
            let (up_s, down_s) = (past.up.as_secs_f64(), past.down.as_secs_f64());
            let mean = |sum: f64| (past.failures > 0).then(|| sum / past.failures as f64);
            BackendHistory {
                service: service.clone(),
                backend: *place,
                state: past.state,
                since: past.since,
                removed: past.removed,
                failures: past.failures,
                up_s,
                down_s,
                mtbf_s: mean(up_s),
                mttr_s: mean(down_s),
                availability: (up_s + down_s > 0.0).then(|| up_s / (up_s + down_s)),
                verdicts: {
                    let surplus = past.verdicts.len().saturating_sub(limit);
                    past.verdicts.into_iter().skip(surplus).collect()
                },
            }
        });
        Answer {
            since: self.since.unwrap_or(now),
            backends: backends.collect(),
        }
    }

    /// What is known of a backend; none where there is no room for another.
    fn past(&mut self, name: Name, state: OperState, now: Timestamp) -> Option<&mut Past> {
        if self.backends.len() >= BACKENDS && !self.backends.contains_key(&name) {
            let removed = self.backends.iter().find(|(_, past)| past.removed);
            let removed = removed.map(|(name, _)| name.clone())?;
            self.backends.remove(&removed);
        }
        Some(self.backends.entry(name).or_insert_with(|| Past::new(state, now)))
    }
}

#[cfg(test)]
#[path = "tests/history.rs"]
mod tests;
