//! Rounds of checks: the first one, and the one a reload waits for.

use std::collections::BTreeSet;
use std::time::Instant;

use super::reconcile::{self, Tense};
use super::startup::{read_config, round_limit};
use super::{Agent, Reload, Round, differences};
use crate::api::command::{Refusal, Reply};
use crate::api::types::{Done, ServiceChange};
use crate::config::{self, Config, LoadError};
use crate::datapath::apply::{Change, ChangeKind};
use crate::datapath::attach;
use crate::datapath::memory;
use crate::model::{BackendId, OperState};
use crate::net::link;
use crate::observe::Kind;

/// What is said of a program whose features change.
pub(super) const REPLACED: &str = "program replaced: it needs other features";

impl Agent {
    /// Reads the configuration again. A bad one is rejected whole and the running one goes on; a good one takes
    /// effect once its new backends were checked.
    pub(super) async fn begin_reload(&mut self, reply: Option<Reply<Done>>) {
        let refuse = |reply: Option<Reply<Done>>, refusal: Refusal| {
            if let Some(reply) = reply {
                let _ = reply.send(Err(refusal));
            }
        };
        if self.starting() {
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
                self.meter.reload(false);
                self.emit(Kind::ReloadRefused.because(format!("{error:#}")));
                return refuse(reply, bad_config(&error));
            }
        };
        let file = self.options.config.display().to_string();
        let kept = self.keep_what_needs_a_restart(&mut config);
        let warnings: Vec<_> = config
            .warnings()
            .into_iter()
            .chain(kept)
            .map(|warning| format!("{file}: {warning}"))
            .collect();
        for warning in &warnings {
            log::warn!("{warning}");
        }
        let mut replies: Vec<_> = reply.into_iter().collect();
        if let Some(Reload { replies: earlier, .. }) = self.round.take().and_then(|round| round.reload) {
            replies.extend(earlier);
        }
        let known: BTreeSet<BackendId> = self.targets(&[&self.config]).iter().map(|t| t.id).collect();
        let mut addresses = Self::backend_addresses(&config);
        addresses.extend(Self::backend_addresses(&self.config));
        self.round = Some(Round {
            awaiting: BTreeSet::new(),
            addresses,
            deadline: Instant::now(),
            reload: Some(Reload {
                config,
                warnings,
                replies,
            }),
        });
        let targets = self.set_targets();
        let round = self.round.as_mut().expect("made above");
        round.deadline += round_limit(&targets);
        // What an earlier reload, that this one takes the place of, had checked need not be awaited again.
        let statuses = &self.statuses;
        let unheard = |id: &BackendId| statuses.get(id).is_none_or(|s| s.state == OperState::Unknown);
        round.awaiting = targets
            .iter()
            .map(|target| target.id)
            .filter(|id| !known.contains(id) && unheard(id))
            .collect();
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
            None => {
                let ended = self.first_round_over().await;
                // To load a program takes twice of what the agent needs afterwards.
                memory::give_back();
                ended
            }
            Some(Reload {
                config,
                warnings,
                replies,
            }) => {
                let result = self.commit(config).await.map(|done| Done { warnings, ..done });
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
        if let Err(error) = self.begin_forwarding().await {
            if self.attachments.is_empty() && self.pins.links()?.is_empty() {
                // Nothing of ours is in use: leave nothing behind.
                self.pins.remove()?;
            }
            return Err(error);
        }
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        self.emit(Kind::AgentReady);
        self.note_members();
        log::info!("ready");
        Ok(())
    }

    async fn begin_forwarding(&mut self) -> anyhow::Result<()> {
        if !self.pins.links()?.is_empty() {
            // The program of the last agent may not know of slots that move.
            self.attach_all().await?;
            self.reconcile_known()?;
        } else {
            self.reconcile()?;
            self.attach_all().await?;
        }
        self.start_sweeping()?;
        self.detach_unwanted()?;
        Ok(())
    }

    /// Takes the program off the interfaces that the configuration does not name. Gives back their names.
    fn detach_unwanted(&mut self) -> anyhow::Result<Vec<String>> {
        let mut unwanted = self.pins.links()?;
        unwanted.retain(|interface| !self.config.agent.interfaces.contains(interface));
        for interface in &unwanted {
            self.take_off(interface, "the configuration does not name it")?;
            log::info!("detached from {interface}: the configuration does not name it");
        }
        let mut renamed: Vec<_> = self.attachments.keys().cloned().collect();
        renamed.retain(|interface| !self.config.agent.interfaces.contains(interface));
        for interface in renamed {
            self.forget_attachment(&interface);
        }
        self.sync_groups();
        Ok(unwanted)
    }

    /// Puts a reloaded configuration in force; where that fails, everything stays as it was.
    async fn commit(&mut self, config: Config) -> Result<Done, Refusal> {
        let old = std::mem::replace(&mut self.config, config);
        let (statuses, observed) = (self.statuses.clone(), self.observed.clone());
        let result = self.put_in_force(&old).await;
        if let Err(error) = &result {
            log::error!("reload failed, the configuration of before goes on: {error:#}");
            self.meter.reload(false);
            self.emit(Kind::ReloadRefused.because(format!("{error:#}")));
            self.config = old;
            self.statuses = statuses;
            self.observed = observed;
            self.reconcile_or_log();
            if let Err(error) = self.attach_as_configured().await {
                log::error!("the configuration of before: {error:#}");
            }
        }
        self.set_targets();
        let addresses = Self::backend_addresses(&self.config);
        self.hops.retain(|address, _| addresses.contains(address));
        result.map_err(|error| Refusal::Failed(format!("{error:#}")))
    }

    async fn put_in_force(&mut self, old: &Config) -> anyhow::Result<Done> {
        let services = self.config.services.iter();
        let ids: BTreeSet<BackendId> = services
            .flat_map(|service| service.backends.iter().map(|backend| backend.id(service.key)))
            .collect();
        self.statuses.retain(|id, _| ids.contains(id));
        self.observed.retain(|id, _| ids.contains(id));
        self.meter.keep_only(&ids);
        self.flaps.retain(|id, _| ids.contains(id));
        for id in ids {
            self.inherit(&id);
        }
        if old.agent.witness != self.config.agent.witness {
            self.change_witness(self.config.agent.witness);
        }
        self.moves_for = "the configuration was reloaded".into();
        self.dataplane.set_rates(super::startup::rates(&self.config));
        if let Err(error) = self.dataplane.maps.nat.set_pools(&self.config.agent.snat) {
            log::error!("writing what sources are rewritten to: {error}");
        }
        let changes = self.reconcile()?;
        let mut done = describe(&changes, old, &self.config, Tense::Did);
        done.changes.append(&mut self.attach_as_configured().await?);
        if changes.iter().any(|c| matches!(c.kind, ChangeKind::Added { .. })) {
            self.announce().await;
        }
        done.changed = !done.changes.is_empty();
        self.keeper.mark();
        self.meter.reload(true);
        self.notifier.set(&self.config.agent.notify);
        self.emit_membership(old);
        self.emit(Kind::Reloaded {
            changes: done.changes.clone(),
        });
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

    /// Brings program and interfaces to what the configuration says. Gives back what changed.
    async fn attach_as_configured(&mut self) -> anyhow::Result<Vec<String>> {
        let mut changes = Vec::new();
        let interfaces = &self.config.agent.interfaces;
        self.given_up.retain(|interface| interfaces.contains(interface));
        for interface in interfaces {
            if let Some(link) = link::link_by_name(&self.netlink, interface).await?
                && let Some(xdp) = link.xdp
            {
                attach::follow_rename(&self.pins, interface, link.ifindex, xdp.program_id)?;
            }
        }
        for interface in self.detach_unwanted()? {
            changes.push(format!("detached from {interface}"));
        }
        let replaced = self.respecialise()?;
        for interface in self.attach_all().await? {
            changes.push(format!("attached to {interface}"));
        }
        if replaced {
            changes.push(REPLACED.into());
        }
        Ok(changes)
    }

    /// Keys that a reload cannot change keep their values; gives back what to say.
    pub(super) fn keep_what_needs_a_restart(&self, config: &mut Config) -> Vec<String> {
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
            metrics,
            xdp_mode,
            max_services,
            max_backends,
            flow_table_size,
            flow_cache_size,
            client_table_size,
            nat_table_size
        );
        warnings
    }
}

pub(super) fn bad_config(error: &anyhow::Error) -> Refusal {
    match error.downcast_ref::<LoadError>() {
        Some(error) => Refusal::BadConfig {
            summary: "the configuration is refused; the running one goes on".into(),
            faults: error.to_string().lines().map(str::to_owned).collect(),
        },
        None => Refusal::Failed(format!("{error:#}")),
    }
}

/// What people read of a change.
pub(super) fn done(changes: &[Change], tense: Tense) -> Done {
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
        changes: changes
            .iter()
            .map(|change| reconcile::describe_change(change, tense))
            .collect(),
        services,
        warnings: Vec::new(),
    }
}

/// What a reload changes, besides program and interfaces.
pub(super) fn describe(changes: &[Change], old: &Config, new: &Config, tense: Tense) -> Done {
    let mut done = done(changes, tense);
    for service in &new.services {
        let Some(before) = old.services.iter().find(|s| s.key == service.key) else {
            continue;
        };
        let name = &service.name;
        for backend in &service.backends {
            let address = std::net::SocketAddr::new(backend.address, backend.port);
            let was = before
                .backends
                .iter()
                .find(|b| b.address == backend.address && b.port == backend.port);
            let Some(was) = was else {
                done.changes
                    .push(format!("service {name}: backend {address} added"));
                continue;
            };
            if was.weight != backend.weight {
                done.changes.push(format!(
                    "service {name}: weight of backend {address} {} -> {}",
                    was.weight, backend.weight
                ));
            }
            done.changes.extend(
                differences::of_backend(was, backend)
                    .into_iter()
                    .map(|what| format!("service {name}: {what} of backend {address} changed")),
            );
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
        done.changes.extend(
            differences::of_service(before, service)
                .into_iter()
                .map(|change| format!("service {name}: {change}")),
        );
        let (was, is) = (before.access.as_ref(), service.access.as_ref());
        if let Some(change) = config::describe_access_change(was, is) {
            done.changes.push(format!("service {name}: {change}"));
        }
        if before.last_port != service.last_port {
            let said = |of: &config::Service| of.last_port.unwrap_or(of.key.port);
            done.changes.push(format!(
                "service {name}: last port {} -> {}",
                said(before),
                said(service)
            ));
        }
        if before.limits != service.limits {
            let said = |limits: Option<config::Limits>| limits.map_or("none".to_owned(), |l| l.to_string());
            let (was, is) = (said(before.limits), said(service.limits));
            done.changes.push(format!("service {name}: limits {was} -> {is}"));
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
    let settings = |agent: &config::Agent| (agent.announce, agent.on_stop, agent.notify.clone());
    if settings(&old.agent) != settings(&new.agent) {
        done.changes.push("agent settings changed".into());
    }
    done
}
