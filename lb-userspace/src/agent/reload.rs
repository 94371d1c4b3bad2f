//! Rounds of checks: the first one, and the one a reload waits for.

use std::collections::BTreeSet;
use std::time::Instant;

use super::startup::{read_config, round_limit};
use super::{Agent, Refusal, Reply, Round, reconcile};
use crate::api::types::{Done, ServiceChange};
use crate::config::{Config, LoadError};
use crate::datapath::apply::{Change, ChangeKind};
use crate::datapath::attach;
use crate::model::{BackendId, OperState};

impl Agent {
    /// Reads the configuration again. A bad one is rejected whole and the running one goes on; a good one takes
    /// effect once its new backends were checked.
    pub(super) async fn begin_reload(&mut self, reply: Option<Reply<Done>>) {
        let refuse = |reply: Option<Reply<Done>>, refusal: Refusal| {
            if let Some(reply) = reply {
                let _ = reply.send(Err(refusal));
            }
        };
        if self.round.as_ref().is_some_and(|round| round.reload.is_none()) {
            log::warn!("reload refused: the first round of checks is not over");
            return refuse(
                reply,
                Refusal::Conflict("the agent is starting; try again in a moment".into()),
            );
        }
        let mut config = match read_config(&self.options.config) {
            Ok(config) => config,
            Err(error) => {
                log::error!("reload refused, the running configuration goes on: {error:#}");
                return refuse(reply, bad_config(&error));
            }
        };
        let warnings = self.keep_what_needs_a_restart(&mut config);
        for warning in config.warnings().iter().chain(&warnings) {
            log::warn!("{}: {warning}", self.options.config.display());
        }
        let mut replies: Vec<_> = reply.into_iter().collect();
        if let Some(Round {
            reload: Some((_, earlier)),
            ..
        }) = self.round.take()
        {
            replies.extend(earlier);
        }
        let known: BTreeSet<BackendId> = self.targets(&[&self.config]).iter().map(|t| t.id).collect();
        let targets = self.targets(&[&config, &self.config]);
        let awaiting: BTreeSet<_> = targets
            .iter()
            .map(|t| t.id)
            .filter(|id| !known.contains(id))
            .collect();
        let mut addresses = Self::backend_addresses(&config);
        addresses.extend(Self::backend_addresses(&self.config));
        self.resolver.set_targets(addresses.clone());
        let deadline = Instant::now() + round_limit(&targets);
        self.prober.set_targets(targets);
        self.round = Some(Round {
            awaiting,
            addresses,
            deadline,
            reload: Some((config, replies)),
        });
        if let Err(error) = self.after_change().await {
            log::error!("reload: {error:#}");
        }
    }

    /// Every awaited result is there, or the deadline passed.
    pub(super) async fn end_round(&mut self) -> anyhow::Result<()> {
        let Some(round) = self.round.take() else {
            return Ok(());
        };
        for id in &round.awaiting {
            log::warn!(
                "backend {}: no check result yet; it counts as DOWN",
                self.describe(id)
            );
        }
        match round.reload {
            None => self.first_round_over().await,
            Some((config, replies)) => {
                let result = self.commit(config).await;
                if let Err(Refusal::Failed(error)) = &result {
                    log::error!("reload: {error}");
                }
                for reply in replies {
                    let _ = reply.send(result.clone());
                }
                Ok(())
            }
        }
    }

    async fn first_round_over(&mut self) -> anyhow::Result<()> {
        let up = self
            .statuses
            .values()
            .filter(|status| status.state == OperState::Up)
            .count();
        log::info!(
            "first round of checks is over: {up} of {} backends are UP",
            self.statuses.len()
        );
        self.reconcile()?;
        if let Err(error) = self.attach_all().await {
            if self.attachments.is_empty() && self.pins.links()?.is_empty() {
                // Nothing of ours is in use: leave nothing behind.
                self.pins.remove()?;
            }
            return Err(error);
        }
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        log::info!("ready");
        Ok(())
    }

    /// Puts a reloaded configuration in force.
    async fn commit(&mut self, config: Config) -> Result<Done, Refusal> {
        let failed = |error: &dyn std::fmt::Display| Refusal::Failed(error.to_string());
        let old = std::mem::replace(&mut self.config, config);
        self.statuses.retain(|id, _| {
            self.config
                .services
                .iter()
                .any(|s| s.backends.iter().any(|b| b.id(s.key) == *id))
        });
        let statuses = &self.statuses;
        self.observed.retain(|id, _| statuses.contains_key(id));
        for service in &self.config.services {
            for backend in &service.backends {
                self.statuses.entry(backend.id(service.key)).or_default();
            }
        }
        let changes = match self.reconcile() {
            Ok(changes) => changes,
            Err(error) => {
                self.config = old;
                return Err(failed(&error));
            }
        };
        self.prober.set_targets(self.targets(&[&self.config]));
        self.resolver.set_targets(Self::backend_addresses(&self.config));
        let mut done = describe(&changes, &old, &self.config);
        let interfaces: BTreeSet<String> = old.agent.interfaces.iter().cloned().collect();
        let wanted: BTreeSet<String> = self.config.agent.interfaces.iter().cloned().collect();
        for gone in interfaces.difference(&wanted) {
            attach::detach(&self.pins, gone).map_err(|e| failed(&e))?;
            self.attachments.remove(gone);
            self.watches.retain(|watch| !watch.is_of(gone));
            done.changes.push(format!("detached from {gone}"));
        }
        let respecialised = self.respecialise().map_err(|e| failed(&e))?;
        if respecialised || wanted.difference(&interfaces).next().is_some() {
            self.attach_all().await.map_err(|e| failed(&e))?;
            if respecialised {
                done.changes
                    .push("program replaced: it needs other features".into());
            }
        } else if changes.iter().any(|c| matches!(c.kind, ChangeKind::Added { .. })) {
            self.announce().await;
        }
        done.changed = !done.changes.is_empty();
        log::info!(
            "configuration reloaded: {}",
            if done.changed {
                "changed"
            } else {
                "nothing to change"
            }
        );
        Ok(done)
    }

    /// Keys that a reload cannot change keep their values; gives back what to say.
    fn keep_what_needs_a_restart(&self, config: &mut Config) -> Vec<String> {
        let (now, new) = (&self.config.agent, &mut config.agent);
        let mut warnings = Vec::new();
        let mut keep = |key: &str| warnings.push(format!("{key} changes only with a restart of the agent"));
        macro_rules! keep {
            ($($key:ident),+) => { $(
                if new.$key != now.$key {
                    new.$key = now.$key.clone();
                    keep(stringify!($key));
                }
            )+ };
        }
        keep!(
            api_socket,
            state_dir,
            pin_dir,
            hash_key,
            xdp_mode,
            max_services,
            max_backends
        );
        warnings
    }
}

fn bad_config(error: &anyhow::Error) -> Refusal {
    match error.downcast_ref::<LoadError>() {
        Some(error) => Refusal::BadConfig {
            summary: "the configuration is refused; the running one goes on".into(),
            faults: error.to_string().lines().map(str::to_owned).collect(),
        },
        None => Refusal::Failed(format!("{error:#}")),
    }
}

/// What people read of a change.
pub(super) fn done(changes: &[Change]) -> Done {
    let services = changes
        .iter()
        .map(|change| {
            let (kind, moved_slots, slots) = match change.kind {
                ChangeKind::Added { slots } => ("added", 0, slots),
                ChangeKind::Removed => ("removed", 0, 0),
                ChangeKind::Table { moved, slots, .. } => ("table", moved, slots),
            };
            ServiceChange {
                name: change.name.clone(),
                kind: kind.into(),
                moved_slots,
                slots,
            }
        })
        .collect();
    Done {
        changed: !changes.is_empty(),
        changes: changes.iter().map(reconcile::describe_change).collect(),
        services,
        warnings: Vec::new(),
    }
}

fn describe(changes: &[Change], old: &Config, new: &Config) -> Done {
    let mut done = done(changes);
    for service in &new.services {
        let Some(before) = old.services.iter().find(|s| s.key == service.key) else {
            continue;
        };
        let name = &service.name;
        for backend in &service.backends {
            let address = std::net::SocketAddr::new(backend.address, backend.port);
            match before
                .backends
                .iter()
                .find(|b| b.address == backend.address && b.port == backend.port)
            {
                None => done
                    .changes
                    .push(format!("service {name}: backend {address} added")),
                Some(was) if was.weight != backend.weight => done.changes.push(format!(
                    "service {name}: weight of backend {address} {} -> {}",
                    was.weight, backend.weight
                )),
                Some(was) if was.check != backend.check => {
                    done.changes
                        .push(format!("service {name}: check of backend {address} changed"));
                }
                Some(_) => {}
            }
        }
        for was in &before.backends {
            if !service
                .backends
                .iter()
                .any(|b| b.address == was.address && b.port == was.port)
            {
                let address = std::net::SocketAddr::new(was.address, was.port);
                done.changes
                    .push(format!("service {name}: backend {address} removed"));
            }
        }
        if before.forward != service.forward {
            done.changes.push(format!(
                "service {name}: forward mode {} -> {}",
                before.forward, service.forward
            ));
        }
        if before.name != service.name {
            done.changes
                .push(format!("service {}: renamed to {name}", before.name));
        }
    }
    if old.agent.announce != new.agent.announce || old.agent.on_stop != new.agent.on_stop {
        done.changes.push("agent settings changed".into());
    }
    done
}
