//! What the agent says of itself: `status` and `stats`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Instant, SystemTime};

use lb_common::layout::Counters;

use super::Agent;
use crate::api::command::Refusal;
use crate::api::frozen;
use crate::api::types::{
    AgentCheckStatus, AgentStatus, BackendStats, BackendStatus, DriverStats, InterfaceStatus, MemoryStatus,
    QuicStats, RefusedStats, ServiceStats, ServiceStatus, Stats, Status,
};
use crate::config::Role;
use crate::control::DesiredService;
use crate::control::slow_start::STEPS;
use crate::datapath::maps::add;
use crate::datapath::memory;
use crate::model::{BackendId, OperState, ServiceKey};
use crate::net::{ethtool, link};

/// Who has how many slots of a service's table.
#[derive(Debug, Default)]
pub(super) struct Slots {
    /// Of the table they were counted in.
    generation: u64,
    all: usize,
    by_index: BTreeMap<u32, usize>,
}

impl Agent {
    pub(super) async fn status(&mut self) -> Result<Status, Refusal> {
        self.count_slots();
        let failed = |error: crate::datapath::Error| Refusal::Failed(error.to_string());
        let mut interfaces = Vec::new();
        for name in &self.config.agent.interfaces {
            let link = link::link_by_name(&self.netlink, name).await.ok().flatten();
            let attached = self.attachments.get(name);
            interfaces.push(InterfaceStatus {
                name: name.clone(),
                mode: match attached {
                    Some(attached) if attached.native => "native",
                    Some(_) => "generic",
                    None => "detached",
                }
                .into(),
                driver: ethtool::driver(name).ok().map(|info| info.driver),
                program_id: attached.map(|a| a.program_id),
                mtu: link.map(|link| link.mtu),
            });
        }
        let desired = self.desired();
        let mut services = Vec::new();
        for service in &self.config.services {
            if let Some(wanted) = desired.services.get(&service.key) {
                services.push(self.service_status(service, wanted).map_err(failed)?);
            }
        }
        Ok(Status {
            agent: self.agent_status(),
            interfaces,
            services,
            migrations: self.migration_status(),
            flow_table: Some(self.flow_table_status().map_err(failed)?),
            flow_cache: self.flow_cache_status().map_err(failed)?,
            nat: self.nat_status().map_err(failed)?,
            memory: self.memory_status(),
        })
    }

    pub(super) fn memory_status(&self) -> Option<MemoryStatus> {
        Some(MemoryStatus {
            agent_bytes: memory::of_process(std::process::id()).ok()?,
            maps_bytes: memory::of_maps(&self.config.agent.pin_dir).ok()?,
        })
    }

    fn agent_status(&self) -> AgentStatus {
        AgentStatus {
            running: true,
            version: env!("CARGO_PKG_VERSION").into(),
            since: humantime::format_rfc3339_seconds(self.started).to_string(),
            pid: std::process::id(),
            detached: !self.given_up.is_empty(),
            confirm_within_s: self.unconfirmed.as_ref().map(|unconfirmed| {
                unconfirmed
                    .deadline
                    .saturating_duration_since(Instant::now())
                    .as_secs()
            }),
            isolated_since: self.doubts.isolated_since().map(rfc3339),
            config: self.options.config.display().to_string(),
            warnings: self
                .config
                .warnings()
                .into_iter()
                .chain(self.keeper.failed())
                .collect(),
        }
    }

    fn service_status(
        &self,
        service: &crate::config::Service,
        wanted: &DesiredService,
    ) -> Result<ServiceStatus, crate::datapath::Error> {
        let key = service.key;
        let (generation, mut total) = self
            .dataplane
            .service_history(&key)
            .unwrap_or((0, Counters::default()));
        let counted_slots = self.slots.get(&key);
        let slots = counted_slots.map_or(0, |slots| slots.all);
        let taking: BTreeSet<_> = wanted.candidates.iter().map(|c| (c.address, c.port)).collect();
        let mut backends = Vec::new();
        for backend in &service.backends {
            let id = backend.id(key);
            let Some(want) = wanted.backends.get(&id) else {
                continue;
            };
            let counted = self.counted(&id)?;
            total = add(&total, &counted);
            let observed = self.observed.get(&id).cloned().unwrap_or_default();
            let share = self
                .dataplane
                .index_of(&id)
                .and_then(|index| counted_slots?.by_index.get(&index))
                .copied()
                .unwrap_or(0);
            backends.push(BackendStatus {
                address: id.address,
                port: id.port,
                weight: want.weight,
                effective_weight: want.effective_weight(),
                role: want.role,
                slow_start_percent: (want.steps < STEPS).then_some(want.steps * 100 / STEPS),
                held_until: self.held_until(&id).map(rfc3339),
                old_flows: Some(want.old_flows),
                host_answers: (want.status.state == OperState::Down).then_some(!want.status.host_silent),
                state: want.status.state_in_force(),
                admin: want.status.admin,
                serving: want.eligible() && taking.contains(&(id.address, id.port)),
                doubted: want.doubted || self.doubted(&id),
                unresolved: want.unresolved.clone(),
                check: observed.check,
                agent_check: self
                    .agents
                    .status(&self.sharing.probed(&id))
                    .map(|said| AgentCheckStatus {
                        full: want.status.steer.full,
                        ..said
                    }),
                share_percent: if slots == 0 {
                    0.0
                } else {
                    100.0 * share as f64 / slots as f64
                },
                packets: counted.packets,
                bytes: counted.bytes,
                new_flows: counted.new_flows,
                remembered_flows: Some(self.dataplane.flows_on(&id) + self.nat_flows_on(&id)),
                unseen_flows_until: self.unseen_flows_until(&id),
                packet_mtu: want.packet_mtu,
                path_mtu_until: self.paths.until(id.address).map(|until| {
                    rfc3339(SystemTime::now() + until.saturating_duration_since(Instant::now()))
                }),
                changed: observed.changed.map(rfc3339),
            });
        }
        Ok(ServiceStatus {
            name: service.name.clone(),
            address: key.address,
            port: key.port,
            last_port: service.last_port,
            protocol: key.protocol,
            forward: service.forward,
            scheduler: service.scheduler,
            tracking: wanted.tracking.to_string(),
            idle_timeout_ms: Some(u64::try_from(wanted.idle_timeout.as_millis()).unwrap_or(u64::MAX)),
            persistence: self.persistence_status(service)?,
            table_size: slots as u32,
            generation,
            all_down: wanted.all_down,
            pool: service.pool.clone(),
            selection: Some(wanted.why),
            backups_in_use: wanted.backups
                && wanted
                    .backends
                    .values()
                    .any(|backend| backend.role == Role::Backup),
            packets: total.packets,
            bytes: total.bytes,
            new_flows: total.new_flows,
            backends,
        })
    }

    /// Counts the slots of each backend where a table is another one than at the last time: to walk through all
    /// tables of a thousand services for each `status` would hold up the loop.
    fn count_slots(&mut self) {
        for service in &self.config.services {
            let key = service.key;
            let generation = self
                .dataplane
                .service_history(&key)
                .map_or(0, |(generation, _)| generation);
            if self
                .slots
                .get(&key)
                .is_some_and(|slots| slots.generation == generation)
            {
                continue;
            }
            let owners = self.dataplane.owners(&key);
            let mut slots = Slots {
                generation,
                all: owners.len(),
                ..Slots::default()
            };
            for owner in owners {
                *slots.by_index.entry(owner).or_default() += 1;
            }
            self.slots.insert(key, slots);
        }
    }

    fn counted(&self, id: &BackendId) -> Result<Counters, crate::datapath::Error> {
        match self.dataplane.index_of(id) {
            Some(index) => self.dataplane.maps.backend_counters(index),
            None => Ok(Counters::default()),
        }
    }

    pub(super) fn stats(&self) -> Result<Stats, Refusal> {
        let failed = |error: crate::datapath::Error| Refusal::Failed(error.to_string());
        let mut services = Vec::new();
        let mut sent = Counters::default();
        for service in &self.config.services {
            let key = service.key;
            let (_, mut total) = self
                .dataplane
                .service_history(&key)
                .unwrap_or((0, Counters::default()));
            let mut backends = Vec::new();
            for backend in &service.backends {
                let id = backend.id(key);
                let counted = self.counted(&id).map_err(failed)?;
                total = add(&total, &counted);
                backends.push(BackendStats::new(id.address, id.port, &counted));
            }
            sent = add(&sent, &total);
            let refused = self.refused(&key).map_err(failed)?;
            let stats = ServiceStats::new(
                service.name.clone(),
                key,
                service.last_port,
                &total,
                refused,
                backends,
            );
            services.push(stats.with_quic(self.quic_counts(&key).map_err(failed)?));
        }
        let counts = self.dataplane.maps.reason_counts().map_err(failed)?;
        Ok(Stats {
            at_ms: now_ms(),
            services,
            reasons: frozen::reason_stats(counts, &sent),
            // To ask drivers may take a while: who needs to know does it beside the loop.
            drivers: self
                .senders()
                .into_iter()
                .map(|interface| DriverStats {
                    interface,
                    lost: Vec::new(),
                })
                .collect(),
        })
    }

    /// The names of the interfaces that packets leave by.
    pub(super) fn senders(&self) -> Vec<String> {
        let attached = self.attachments.keys().cloned().collect();
        frozen::senders(attached, self.dataplane.egress())
    }

    /// What connection ids of QUIC said, of a service that has them.
    pub(super) fn quic_counts(&self, key: &ServiceKey) -> Result<Option<QuicStats>, crate::datapath::Error> {
        match self.dataplane.index_of_service(key) {
            Some(index) => Ok(self.dataplane.maps.quic_counters(index)?.map(QuicStats::from)),
            None => Ok(None),
        }
    }

    /// What was refused to clients of a service.
    pub(super) fn refused(&self, key: &ServiceKey) -> Result<RefusedStats, crate::datapath::Error> {
        let guards = &self.dataplane.maps.guards;
        match self.dataplane.index_of_service(key) {
            Some(index) => Ok(RefusedStats::new(&guards.counters(index)?, guards.asks(index))),
            None => Ok(RefusedStats::default()),
        }
    }
}

fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}
