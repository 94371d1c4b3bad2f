//! What the agent counts itself: results of checks, verdicts, switches of tables, reloads.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Family, Histogram};
use crate::model::{BackendId, CheckCode, OperState, ServiceKey};

/// Upper bounds of the latencies, in seconds.
const BOUNDS: [f64; 12] = [
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    f64::MAX,
];

/// Counts since this agent began.
#[derive(Clone, Debug, Default)]
pub struct Meter {
    backends: BTreeMap<BackendId, OfBackend>,
    services: BTreeMap<ServiceKey, OfService>,
    reloads: u64,
    refused: u64,
}

#[derive(Clone, Debug, Default)]
struct OfBackend {
    /// By the index of the code.
    results: [u64; CheckCode::ALL.len()],
    found_up: u64,
    found_down: u64,
    suspicions: u64,
}

#[derive(Clone, Debug, Default)]
struct OfService {
    latency_sum: f64,
    latencies: [u64; BOUNDS.len()],
    switches: u64,
    moved_slots: u64,
}

impl Meter {
    /// A result of a check. One that was not made has no latency.
    pub fn result(&mut self, id: &BackendId, code: CheckCode, latency: Duration) {
        let backend = self.backends.entry(*id).or_default();
        backend.results[code as usize] += 1;
        if code.passed().is_none() {
            return;
        }
        let service = self.services.entry(id.service).or_default();
        let seconds = latency.as_secs_f64();
        service.latency_sum += seconds;
        let bucket = BOUNDS.iter().position(|bound| seconds <= *bound);
        service.latencies[bucket.unwrap_or(BOUNDS.len() - 1)] += 1;
    }

    /// A probe because its clients seemed to get no answer.
    pub fn suspicion(&mut self, id: &BackendId) {
        self.backends.entry(*id).or_default().suspicions += 1;
    }

    /// A verdict.
    pub fn verdict(&mut self, id: &BackendId, to: OperState) {
        let backend = self.backends.entry(*id).or_default();
        match to {
            OperState::Up => backend.found_up += 1,
            OperState::Down => backend.found_down += 1,
            OperState::Unknown => {}
        }
    }

    /// A table that was switched.
    pub fn switch(&mut self, service: &ServiceKey, moved_slots: u64) {
        let service = self.services.entry(*service).or_default();
        service.switches += 1;
        service.moved_slots += moved_slots;
    }

    /// A reload that took effect, or was refused.
    pub fn reload(&mut self, done: bool) {
        if done {
            self.reloads += 1;
        } else {
            self.refused += 1;
        }
    }

    /// Forgets what is in no configuration any longer.
    pub fn keep_only(&mut self, backends: &BTreeSet<BackendId>) {
        self.backends.retain(|id, _| backends.contains(id));
        let services: BTreeSet<ServiceKey> = backends.iter().map(|id| id.service).collect();
        self.services.retain(|key, _| services.contains(key));
    }

    /// All of it, with the names of services and backends.
    pub fn families<'a>(
        &self,
        services: impl Iterator<Item = (ServiceKey, &'a str)>,
        backends: impl Iterator<Item = (BackendId, &'a str, String)>,
    ) -> Vec<Family> {
        let mut results = Family::counter("check_results", "Results of checks, by code.");
        let mut verdicts = Family::counter("backend_verdicts", "Changes of the operational state.");
        let help = "Probes because clients seemed to get no answer.";
        let mut suspicions = Family::counter("backend_suspicions", help);
        for (id, service, place) in backends {
            let Some(counts) = self.backends.get(&id) else {
                continue;
            };
            let names = [("service", service), ("backend", place.as_str())];
            for (code, count) in CheckCode::ALL.iter().zip(counts.results) {
                if count > 0 {
                    results.row([names[0], names[1], ("code", &code.to_string())], count);
                }
            }
            verdicts.row([names[0], names[1], ("to", "UP")], counts.found_up);
            verdicts.row([names[0], names[1], ("to", "DOWN")], counts.found_down);
            suspicions.row(names, counts.suspicions);
        }
        let help = "Time that checks took which gave a verdict, passed or failed.";
        let mut latency = Family::histogram("check_latency", help).seconds();
        let mut switches = Family::counter("service_table_switches", "Lookup tables put in force.");
        let help = "Slots that got another owner in these.";
        let mut moved = Family::counter("service_moved_slots", help);
        for (key, service) in services {
            let counts = self.services.get(&key).cloned().unwrap_or_default();
            let buckets = BOUNDS.into_iter().zip(counts.latencies).collect();
            let sum = counts.latency_sum;
            latency.row([("service", service)], Histogram { sum, buckets });
            switches.row([("service", service)], counts.switches);
            moved.row([("service", service)], counts.moved_slots);
        }
        let help = "Reloads of the configuration that took effect, or were refused.";
        let mut reloads = Family::counter("agent_reloads", help);
        reloads.row([("result", "done")], self.reloads);
        reloads.row([("result", "refused")], self.refused);
        vec![results, verdicts, suspicions, latency, switches, moved, reloads]
    }
}
