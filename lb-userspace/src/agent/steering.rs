//! Agent checks: what backends say of themselves takes effect, beside checks and orders.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::SystemTime;

use tokio::sync::mpsc;

use super::Agent;
use crate::api::types::AgentCheckStatus;
use crate::config::Config;
use crate::control::Steer;
use crate::health::agent_check::AgentHealth;
use crate::health::{AgentProber, AgentReport, AgentTarget, Steering};
use crate::model::{AdminState, BackendId, CheckCode, OperState};
use crate::observe::Kind;

/// The agents of the backends, and what they said.
pub(super) struct Agents {
    prober: AgentProber,
    reports: mpsc::Receiver<AgentReport>,
    said: BTreeMap<BackendId, AgentReport>,
    /// What they said to the agent before this one, until they are asked.
    before: BTreeMap<BackendId, Steering>,
    /// Never asked to the end yet: a round of checks waits for them too.
    unheard: BTreeSet<BackendId>,
}

impl Agents {
    /// `before`: what agents said to an earlier run.
    pub fn new(before: BTreeMap<BackendId, Steering>) -> Self {
        let (sender, reports) = mpsc::channel(1024);
        Self {
            prober: AgentProber::new(sender),
            reports,
            said: BTreeMap::new(),
            before,
            unheard: BTreeSet::new(),
        }
    }

    /// The next report. Without agents there never is one.
    pub async fn next(&mut self) -> Option<AgentReport> {
        self.reports.recv().await
    }

    pub fn all_heard(&self) -> bool {
        self.unheard.is_empty()
    }

    /// What the agent of a backend said, to us or to the run before.
    pub fn said(&self, id: &BackendId) -> Option<&Steering> {
        let said = self.said.get(id).map(|report| &report.steering);
        said.or_else(|| self.before.get(id))
    }

    /// How many connections backends take, where their agents said so.
    pub fn limits(&self) -> impl Iterator<Item = (BackendId, u32)> {
        let said = self.said.iter();
        said.filter_map(|(id, report)| Some((*id, report.steering.max_connections?)))
    }

    /// What status tells of the agent of a backend; `None`: it has none.
    pub fn status(&self, id: &BackendId) -> Option<AgentCheckStatus> {
        let report = self.said.get(id)?;
        let Steering {
            health,
            description,
            admin,
            weight_percent,
            max_connections,
        } = report.steering.clone();
        Some(AgentCheckStatus {
            health: health.map(|health| health.word().to_owned()),
            description,
            admin,
            weight_percent,
            max_connections,
            full: false,
            problem: report.problem.clone(),
        })
    }
}

fn steer(said: &Steering) -> Steer {
    Steer {
        down: said.health.is_some_and(|health| health != AgentHealth::Up),
        admin: said.admin.unwrap_or_default(),
        weight_percent: said.weight_percent,
        full: false,
    }
}

impl Agent {
    /// The agents that these configurations name; the first that names a backend says how. In an operator's MAINT none is
    /// asked.
    pub(super) fn agent_targets(&self, configs: &[&Config]) -> BTreeMap<BackendId, AgentTarget> {
        let mut targets = BTreeMap::new();
        for service in configs.iter().flat_map(|config| &config.services) {
            for backend in &service.backends {
                let id = backend.id(service.key);
                let admin = self
                    .statuses
                    .get(&id)
                    .map_or(AdminState::Ready, |status| status.admin);
                let another = self.sharing.probed(&id) != id;
                if admin == AdminState::Maint || another || targets.contains_key(&id) {
                    continue;
                }
                targets.insert(
                    id,
                    backend.agent_check.as_ref().map(|check| AgentTarget {
                        id,
                        address: SocketAddr::new(check.address.unwrap_or(backend.address), check.port),
                        check: check.clone(),
                        said: self.agents.said(&id).cloned().unwrap_or_default(),
                    }),
                );
            }
        }
        targets
            .into_iter()
            .filter_map(|(id, target)| Some((id, target?)))
            .collect()
    }

    /// Has exactly these asked. An agent that is no longer asked has no say.
    pub(super) fn set_agents(&mut self, targets: BTreeMap<BackendId, AgentTarget>) {
        let agents = &mut self.agents;
        agents.said.retain(|id, _| targets.contains_key(id));
        agents.before.retain(|id, _| targets.contains_key(id));
        agents.unheard = targets
            .keys()
            .filter(|id| !agents.said.contains_key(id))
            .copied()
            .collect();
        for (id, status) in &mut self.statuses {
            if status.steer != Steer::NONE && !targets.contains_key(&self.sharing.probed(id)) {
                status.steer = Steer::NONE;
                self.behind = true;
            }
        }
        agents.prober.set_targets(targets.into_values().collect());
    }

    /// Takes what an agent said.
    pub(super) fn take_agent_report(&mut self, report: AgentReport) {
        let id = report.id;
        let known = self.agents.unheard.remove(&id) || self.agents.said.contains_key(&id);
        if !known {
            // Said before it was no longer asked.
            return;
        }
        if let Some(problem) = &report.problem {
            log::warn!("agent of {}: {problem}", self.describe(&id));
        }
        let steering = report.steering.clone();
        self.agents.said.insert(id, report);
        self.agents.before.remove(&id);
        self.keeper.mark();
        // What the agent of a backend of a pool says holds in all its services.
        let mut stopped = false;
        for id in self.sharing.with(&id) {
            self.inherit(&id);
            stopped |= self.steer_by(id, &steering);
        }
        if stopped {
            self.set_targets();
        }
    }

    /// What an agent said takes effect on a backend. Says whether its checks begin or stop.
    fn steer_by(&mut self, id: BackendId, steering: &Steering) -> bool {
        let steer = steer(steering);
        let cause = describe(steering);
        let status = self.statuses.entry(id).or_default();
        let was = *status;
        status.steer = Steer {
            full: status.steer.full,
            ..steer
        };
        if status.admin_in_force() == AdminState::Maint && was.admin_in_force() != AdminState::Maint {
            // Its checks stop: what they said is not known to hold.
            status.state = OperState::Unknown;
        }
        let is = *status;
        if is == was {
            return false;
        }
        self.behind = true;
        log::info!("agent of {}: {cause}", self.describe(&id));
        let backend = self
            .service(&id.service)
            .into_iter()
            .flat_map(|service| &service.backends)
            .find(|backend| backend.id(id.service) == id);
        self.emit_orders(&id, &was, &is, backend.map_or(1, |backend| backend.weight));
        let (from, to) = (was.state_in_force(), is.state_in_force());
        if from != to && is.state == was.state {
            let kind = Kind::BackendState {
                from,
                to,
                code: if to == OperState::Up {
                    CheckCode::L7ok
                } else {
                    CheckCode::L7sts
                },
                latency_ms: 0.0,
                results: Vec::new(),
            };
            self.observed.entry(id).or_default().changed = Some(SystemTime::now());
            self.emit(self.about(&id, kind).because(format!("its agent says: {cause}")));
        }
        was.admin_in_force() != is.admin_in_force()
    }
}

/// `down # no disk, drain, 75%`.
fn describe(steering: &Steering) -> String {
    let Steering {
        health,
        description,
        admin,
        weight_percent,
        max_connections,
    } = steering;
    let health = health.map(|health| match description {
        Some(description) => format!("{} # {description}", health.word()),
        None => health.word().to_owned(),
    });
    let words = [
        health,
        admin.map(|admin| admin.to_string().to_lowercase()),
        weight_percent.map(|percent| format!("{percent}%")),
        max_connections.map(|limit| format!("maxconn:{limit}")),
    ];
    words.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_agent_said_takes_effect() {
        let mut said = Steering::default();
        assert_eq!(steer(&said), Steer::NONE);
        assert_eq!(said.take("stopped drain 30% # at noon"), None);
        let expected = Steer {
            down: true,
            admin: AdminState::Drain,
            weight_percent: Some(30),
            full: false,
        };
        assert_eq!(steer(&said), expected);
        assert_eq!(describe(&said), "stopped # at noon, drain, 30%");
        assert_eq!(said.take("up ready"), None);
        let expected = Steer {
            weight_percent: Some(30),
            ..Steer::NONE
        };
        assert_eq!(steer(&said), expected);
    }
}
