//! Commands of operators: admin states, weights, confirmation, and the clock's tick.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use super::reconcile::Tense;
use super::reload::done;
use super::{Agent, End, Observed};
use crate::api::command::{Command, Refusal};
use crate::api::types::{BackendOrder, Done, Order, WeightOrder};
use crate::control::BackendStatus;
use crate::datapath::clock::monotonic_ns;
use crate::model::{AdminState, BackendId, OperState};

/// How often service addresses are announced. Switches that look into multicast forget a group that nobody
/// reports for about four minutes (RFC 3810 section 9.4), and caches of neighbours may have lost an entry.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(60);

impl Agent {
    /// Carries out one command; `Some` ends the agent.
    pub(super) async fn obey(&mut self, command: Command) -> Option<End> {
        // A client that went away does not need its answer.
        match command {
            Command::Status(reply) => drop(reply.send(self.status().await)),
            Command::Stats(reply) => drop(reply.send(self.stats())),
            Command::Measure(reply) => drop(reply.send(Ok(self.measure()))),
            Command::Reload(reply) => self.begin_reload(Some(reply)).await,
            Command::Plan(order, reply) => drop(reply.send(self.plan(&order))),
            Command::Backend(order, reply) => {
                let result = self.order(&order);
                self.answer_when_kept(reply, result);
            }
            Command::Confirm(reply) => drop(reply.send(self.confirm())),
            Command::Detach(reply) => {
                if let Err(error) = self.take_away() {
                    log::error!("detaching: {error}");
                    drop(reply.send(Err(Refusal::Failed(error.to_string()))));
                    return None;
                }
                let changes = vec![format!("detached from {}", self.interface_names())];
                drop(reply.send(Ok(Done {
                    changed: true,
                    changes,
                    ..Done::default()
                })));
                return Some(End::Detached);
            }
        }
        None
    }

    fn confirm(&mut self) -> Result<Done, Refusal> {
        if self.unconfirmed.take().is_some() {
            log::info!("confirmed: the program stays attached");
            return Ok(Done {
                changed: true,
                changes: vec!["the program stays attached".into()],
                ..Done::default()
            });
        }
        if !self.given_up.is_empty() {
            return Err(Refusal::Conflict(
                "too late: the program was taken off; restart the agent to attach again".into(),
            ));
        }
        Ok(Done::default())
    }

    /// Every 200 ms; `second` each fifth time.
    pub(super) async fn tick(&mut self, second: bool) -> anyhow::Result<()> {
        if self
            .round
            .as_ref()
            .is_some_and(|round| Instant::now() >= round.deadline)
        {
            self.after_change().await?;
        }
        self.keep(Instant::now());
        self.renew_allowances();
        self.end_incidents(Instant::now());
        self.judge_isolation();
        self.look_who_is_full();
        if (self.ramping || self.behind) && !self.starting() {
            self.reconcile_or_log();
        }
        if !self.starting()
            && let Err(error) = self.dataplane.reserve()
        {
            log::error!("making room for tables: {error}");
        }
        if second {
            if self.pins.path(crate::datapath::pins::AGENT_META.pin).exists() {
                self.beat()?;
            }
            self.go_on_moving();
            self.dataplane.forget_idle(monotonic_ns());
            self.look_after_nat();
            let now = Instant::now();
            self.look_after_paths(now);
            self.look_after(now).await;
            if self.announce_at.is_some_and(|at| now >= at) {
                self.announce().await;
                self.announce_at = Some(now + ANNOUNCE_INTERVAL);
            }
        }
        Ok(())
    }

    fn order(&mut self, order: &BackendOrder) -> Result<Done, Refusal> {
        if self.starting() {
            // Next hops are not known yet: tables written from what is known would be empty.
            return Err(Refusal::Conflict(
                "the agent is starting; try again in a moment".into(),
            ));
        }
        let ids = self.find(order)?;
        let mut warnings = Vec::new();
        let mut statuses = self.statuses.clone();
        let mut lines = Vec::new();
        for (id, weight) in ids.iter().copied() {
            let status = statuses.entry(id).or_default();
            let before = *status;
            let line = match order.order {
                Order::Ready => {
                    status.admin = AdminState::Ready;
                    format!("{} -> {}", before.admin, status.admin)
                }
                Order::Drain => {
                    status.admin = AdminState::Drain;
                    format!("{} -> {}", before.admin, status.admin)
                }
                Order::Maint => {
                    status.admin = AdminState::Maint;
                    // Its checks stop: what they said is not known to hold.
                    status.state = OperState::Unknown;
                    format!("{} -> {}", before.admin, status.admin)
                }
                Order::Weight(weight_order) => {
                    status.runtime_weight = runtime_weight(weight_order, weight);
                    let (old, new) = (
                        before.runtime_weight.unwrap_or(weight),
                        status.runtime_weight.unwrap_or(weight),
                    );
                    warnings.extend(rounded(weight_order, weight, &self.describe(&id)));
                    format!("weight {old} -> {new} (file {weight})")
                }
            };
            if *status != before {
                lines.push(format!("backend {}: {line}", self.describe(&id)));
            }
        }
        let mut released = Vec::new();
        if order.order == Order::Ready {
            released.extend(ids.iter().map(|(id, _)| *id).filter(|id| self.release(id)));
            lines.extend(
                released
                    .iter()
                    .map(|id| format!("backend {}: no longer held DOWN", self.describe(id))),
            );
        }
        if lines.is_empty() {
            return Ok(Done {
                warnings,
                ..Done::default()
            });
        }
        if !order.force {
            self.refuse_to_empty(&statuses)?;
        }
        let stopped: Vec<_> = statuses
            .iter()
            .filter(|(id, status)| {
                status.admin == AdminState::Maint
                    && self
                        .statuses
                        .get(id)
                        .is_none_or(|was| was.admin != AdminState::Maint)
            })
            .map(|(id, _)| *id)
            .collect();
        let before = std::mem::replace(&mut self.statuses, statuses);
        self.moves_for = lines.join("; ");
        let changes = match self.reconcile() {
            Ok(changes) => changes,
            Err(error) => {
                self.statuses = before;
                return Err(Refusal::Failed(error.to_string()));
            }
        };
        for line in &lines {
            log::info!("{line} (ordered)");
        }
        for (id, weight) in &ids {
            let was = before.get(id).copied().unwrap_or_default();
            self.emit_orders(id, &was, &self.statuses[id], *weight);
        }
        for id in stopped {
            let unchecked = Observed {
                changed: Some(SystemTime::now()),
                ..Observed::default()
            };
            self.observed.insert(id, unchecked);
        }
        self.set_targets();
        for id in released {
            self.prober.probe_now(&self.sharing.probed(&id));
        }
        let mut done = done(&changes, Tense::Did);
        done.changed = true;
        done.warnings = warnings;
        lines.append(&mut done.changes);
        done.changes = lines;
        Ok(done)
    }

    /// The backends an order is about, with their weights from the file.
    fn find(&self, order: &BackendOrder) -> Result<Vec<(BackendId, u16)>, Refusal> {
        let services: Vec<_> = match &order.service {
            None => self.config.services.iter().collect(),
            Some(name) => {
                let services = self.config.services.iter();
                let found = services
                    .clone()
                    .find(|s| s.name == *name)
                    .or_else(|| services.clone().find(|s| s.pool.as_ref() == Some(name)));
                let known = || {
                    self.config
                        .services
                        .iter()
                        .map(|s| s.name.as_str())
                        .collect::<Vec<_>>()
                        .join(", ")
                };
                vec![found.ok_or_else(|| {
                    Refusal::NotFound(format!(
                        "there is no service {name}; the services are: {}",
                        known()
                    ))
                })?]
            }
        };
        let mut found = Vec::new();
        for service in services {
            for backend in &service.backends {
                if backend.address == order.address && order.port.is_none_or(|port| port == backend.port) {
                    found.push((backend.id(service.key), backend.weight));
                }
            }
        }
        if found.is_empty() {
            let port = order
                .port
                .map(|port| format!(" with port {port}"))
                .unwrap_or_default();
            let place = order
                .service
                .as_ref()
                .map_or("no service has".to_owned(), |name| {
                    format!("service {name} has no")
                });
            return Err(Refusal::NotFound(format!(
                "{place} backend {}{port}; see: xlb backend list",
                order.address
            )));
        }
        // What is ordered for a backend of a pool holds in all its services.
        let mut ids: BTreeMap<BackendId, u16> = BTreeMap::new();
        for (id, weight) in found {
            let shared = self.sharing.with(&id).into_iter();
            ids.extend(shared.filter(|id| self.configured(id)).map(|id| (id, weight)));
        }
        Ok(ids.into_iter().collect())
    }

    /// Whether the configuration in force has it.
    fn configured(&self, id: &BackendId) -> bool {
        let mut services = self.config.services.iter();
        services.any(|s| s.key == id.service && s.backends.iter().any(|b| b.id(s.key) == *id))
    }

    /// Refuses what would leave a service that serves without a serving backend.
    fn refuse_to_empty(&self, statuses: &BTreeMap<BackendId, BackendStatus>) -> Result<(), Refusal> {
        let after = self.desired_with(statuses);
        let before = self.desired();
        for (key, service) in &after.services {
            let served = before.services.get(key).is_some_and(|service| !service.all_down);
            if served && service.all_down {
                return Err(Refusal::Conflict(format!(
                    "service {} would be left without a serving backend; --force does it all the same",
                    service.name
                )));
            }
        }
        Ok(())
    }
}

/// What to say where a percentage does not come out as asked: weights are whole numbers.
fn rounded(order: WeightOrder, file: u16, backend: &str) -> Option<String> {
    let WeightOrder::Percent(percent) = order else {
        return None;
    };
    let weight = u32::from(runtime_weight(order, file)?);
    let exact = u32::from(file) * u32::from(percent);
    // Off by more than a tenth.
    (exact.abs_diff(weight * 100) * 10 > exact).then(|| {
        format!(
            "backend {backend}: {percent}% of {file} is {}, which is no weight: it is {weight}; greater weights in the \
             file give finer steps",
            f64::from(exact) / 100.0
        )
    })
}

/// The weight an order sets. A percentage of a weight that is not 0 stays at least 1, unless it is 0 %.
fn runtime_weight(order: WeightOrder, file: u16) -> Option<u16> {
    match order {
        WeightOrder::Default => None,
        WeightOrder::Absolute(weight) => Some(weight),
        WeightOrder::Percent(percent) => {
            let weight = (u32::from(file) * u32::from(percent) + 50) / 100;
            let least = u32::from(percent > 0 && file > 0);
            Some(u16::try_from(weight.max(least)).unwrap_or(u16::MAX))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentage_is_of_the_weight_in_the_file() {
        assert_eq!(runtime_weight(WeightOrder::Percent(50), 10), Some(5));
        assert_eq!(runtime_weight(WeightOrder::Percent(1), 10), Some(1));
        assert_eq!(runtime_weight(WeightOrder::Percent(0), 10), Some(0));
        assert_eq!(runtime_weight(WeightOrder::Percent(200), 60000), Some(u16::MAX));
        assert_eq!(runtime_weight(WeightOrder::Absolute(7), 10), Some(7));
        assert_eq!(runtime_weight(WeightOrder::Default, 10), None);
        assert!(
            rounded(WeightOrder::Percent(50), 1, "b")
                .unwrap()
                .contains("50% of 1 is 0.5")
        );
        assert_eq!(rounded(WeightOrder::Percent(50), 10, "b"), None);
        assert_eq!(rounded(WeightOrder::Percent(33), 100, "b"), None);
        assert_eq!(rounded(WeightOrder::Percent(0), 1, "b"), None);
        assert_eq!(rounded(WeightOrder::Absolute(5), 1, "b"), None);
    }
}
