//! What the screen shows, as plain values: drawing needs nothing else.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use crate::api::types::{BackendStatus, Status};
use crate::lab::wire::Name;

#[derive(Clone, Debug, Default)]
pub(super) struct View {
    pub elapsed: Duration,
    /// Live flows.
    pub connections: usize,
    pub datagrams: usize,
    pub opens_per_s: f64,
    pub answers_per_s: f64,
    pub broken: usize,
    pub lost: usize,
    /// What Maglev alone would have broken.
    pub maglev: usize,
    /// Whether flows are remembered.
    pub tracked: bool,
    /// Slots that moved and have not settled, of how many.
    pub unstable: usize,
    pub entries: usize,
    /// Whether the agent answers.
    pub agent: bool,
    pub backends: Vec<Row>,
    pub selected: usize,
    /// What happened, the youngest last.
    pub events: VecDeque<(Duration, String)>,
    /// What is being done.
    pub busy: Option<String>,
}

/// One backend.
#[derive(Clone, Debug, Default)]
pub(super) struct Row {
    pub name: String,
    pub address: Option<IpAddr>,
    pub live: usize,
    /// Its share of the slots, 0 to 1.
    pub share: f64,
    pub weight: u16,
    /// `UP`, `DOWN`, `DRAIN`, ...
    pub state: String,
    /// Why, where it is not `UP`.
    pub detail: String,
}

/// Events that are kept.
const EVENTS: usize = 100;

impl View {
    pub fn happened(&mut self, what: String) {
        self.events.push_back((self.elapsed, what));
        if self.events.len() > EVENTS {
            self.events.pop_front();
        }
    }

    /// Takes over what the agent says; changes of state become events. Without an answer everything stays as it was.
    pub fn agent_says(&mut self, status: Option<&Status>, members: &[(String, IpAddr)]) {
        let was = std::mem::replace(&mut self.agent, status.is_some());
        if was != self.agent {
            let what = if was {
                "AGENT NOT RUNNING; forwarding goes on"
            } else {
                "agent running"
            };
            self.happened(what.into());
        }
        for (name, address) in members {
            if !self.backends.iter().any(|row| row.name == *name) {
                self.backends.push(Row {
                    name: name.clone(),
                    address: Some(*address),
                    weight: 1,
                    ..Row::default()
                });
            }
        }
        let Some(service) = status.and_then(|status| status.services.first()) else {
            return;
        };
        let mut changes = Vec::new();
        for row in &mut self.backends {
            let of = |backend: &&BackendStatus| Some(backend.address) == row.address;
            let Some(backend) = service.backends.iter().find(of) else {
                continue;
            };
            let (state, detail) = words(backend);
            if !row.state.is_empty() && row.state != state {
                changes.push(format!("{}: {} -> {state} {detail}", row.name, row.state));
            }
            (row.state, row.detail) = (state, detail);
            row.weight = backend.effective_weight;
        }
        for change in changes {
            self.happened(change.trim_end().into());
        }
    }

    /// Takes over who serves how many, and who owns how much.
    pub fn count(&mut self, live: &BTreeMap<Name, usize>, shares: &BTreeMap<Name, usize>) {
        let slots: usize = shares.values().sum();
        for row in &mut self.backends {
            let name = Name::new(&row.name);
            row.live = live.get(&name).copied().unwrap_or(0);
            row.share = shares.get(&name).copied().unwrap_or(0) as f64 / slots.max(1) as f64;
        }
    }
}

/// Its state in one word, and why.
fn words(backend: &BackendStatus) -> (String, String) {
    use crate::model::{AdminState, OperState};
    let code = backend.check.code.to_string();
    match (backend.admin, backend.state) {
        (AdminState::Ready, OperState::Up) => ("UP".into(), String::new()),
        (AdminState::Ready, state) => (state.to_string(), code),
        (admin, OperState::Up) => (admin.to_string(), String::new()),
        (admin, state) => (admin.to_string(), format!("{state} {code}")),
    }
}
