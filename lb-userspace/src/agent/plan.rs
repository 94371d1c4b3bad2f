//! `xlb plan`: what a reload would do, with nothing changed.
//!
//! The same functions say what a reload does and what one would do: [`control::desired`], the steps of the tables
//! ([`crate::datapath::apply::Dataplane::foresee`]), and the differences of two configurations. What a plan cannot know
//! is what checks will say of backends that are not checked yet: they count as UP and as neighbours.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use lb_common::layout::{SLAB_SLOTS, Slot};

use super::Agent;
use super::pool::Sharing;
use super::reconcile::Tense;
use super::reload::{self, bad_config};
use super::startup::{features, read_config};
use crate::api::command::{Planned, Refusal};
use crate::api::types::{Plan, PlanMemory, PlanOrder, ServiceChange, ServicePlan};
use crate::config::{Config, Faults, LoadError, Machine};
use crate::control::{BackendStatus, HopView};
use crate::datapath::apply::{ChangeKind, Foreseen};
use crate::datapath::clock::monotonic_ns;
use crate::maglev;
use crate::model::{BackendId, OperState, Tracking};
use crate::net::NextHop;

/// Bytes of a prefix of an access list, at most.
const PREFIX_BYTES: u64 = 200;
const SLOT_BYTES: u64 = size_of::<Slot>() as u64;

impl Agent {
    pub(super) fn plan(&self, order: &PlanOrder) -> Result<Planned, Refusal> {
        if self.starting() {
            return Err(Refusal::Conflict(
                "the agent is starting; try again in a moment".into(),
            ));
        }
        let file = order
            .name
            .clone()
            .unwrap_or_else(|| self.options.config.display().to_string());
        let mut config = read(order, &self.options.config).map_err(|error| bad_config(&error))?;
        let kept = self.keep_what_needs_a_restart(&mut config);
        let warnings = config.warnings().into_iter().chain(kept);
        let warnings: Vec<_> = warnings.map(|warning| format!("{file}: {warning}")).collect();
        let Expected { statuses, assumed } = self.expected(&config);
        let desired = self.desired_of(&config, &statuses, &self.expected_hops(&config));
        let foreseen = self
            .dataplane
            .foresee(&desired, &monotonic_ns)
            .map_err(|error| Refusal::Failed(error.to_string()))?;
        let mut done = reload::describe(&foreseen.changes, &self.config, &config, Tense::Would);
        done.changes.extend(self.attachments_to_change(&config)?);
        let services = self.planned_services(&foreseen, done.services, &config);
        let memory = self.planned_memory(&foreseen, &config);
        let counted = self.moved_only(&foreseen);
        Ok(Planned {
            plan: Plan {
                changed: !done.changes.is_empty(),
                changes: done.changes,
                services,
                warnings,
                counted_as_up: assumed.iter().map(|id| place(id, &config)).collect(),
                memory,
            },
            moving: counted,
        })
    }

    /// The states that backends would have: those that nothing is known of count as UP.
    fn expected(&self, config: &Config) -> Expected {
        let sharing = Sharing::of(&[config, &self.config], &self.sharing);
        let mut expected = Expected::default();
        for service in &config.services {
            for backend in &service.backends {
                let id = backend.id(service.key);
                let with = sharing.with(&id);
                let known = [id].iter().chain(&with).find_map(|id| self.statuses.get(id));
                let status = known.copied().unwrap_or_else(|| {
                    expected.assumed.push(id);
                    BackendStatus {
                        state: OperState::Up,
                        ever_up: true,
                        ..BackendStatus::UNSEEN
                    }
                });
                expected.statuses.insert(id, status);
            }
        }
        expected
    }

    /// The ways to the backends: one that was not looked up yet counts as a neighbour on the first interface.
    fn expected_hops(&self, config: &Config) -> BTreeMap<IpAddr, HopView> {
        let mut hops = self.hops.clone();
        let interface = config.agent.interfaces.first().cloned().unwrap_or_default();
        for address in Self::backend_addresses(config) {
            hops.entry(address).or_insert_with(|| HopView {
                hop: Ok(NextHop {
                    ifindex: 1,
                    interface: interface.clone(),
                    below: None,
                    destination_mac: [2, 0, 0, 0, 0, 1],
                    source_mac: [2, 0, 0, 0, 0, 2],
                    source: address,
                    gateway: None,
                    mtu: 1500,
                }),
                last: None,
                doubted: false,
            });
        }
        hops
    }

    /// What a reload would do to program and interfaces.
    fn attachments_to_change(&self, config: &Config) -> Result<Vec<String>, Refusal> {
        let links = self
            .pins
            .links()
            .map_err(|error| Refusal::Failed(error.to_string()))?;
        let interfaces = &config.agent.interfaces;
        let mut changes: Vec<String> = links
            .iter()
            .filter(|link| !interfaces.contains(link))
            .map(|link| format!("detached from {link}"))
            .collect();
        let fresh = interfaces
            .iter()
            .filter(|name| !links.contains(name) && !self.given_up.contains(*name));
        changes.extend(fresh.map(|name| format!("attached to {name}")));
        if features(config, self.features.trace_drops) != self.features {
            changes.push(reload::REPLACED.into());
        }
        Ok(changes)
    }

    /// `changes`: those that are foreseen, as a reload tells them.
    fn planned_services(
        &self,
        foreseen: &Foreseen,
        changes: Vec<ServiceChange>,
        config: &Config,
    ) -> Vec<ServicePlan> {
        let earlier = self.dataplane.earlier();
        let mut plans = Vec::new();
        for (change, told) in foreseen.changes.iter().zip(changes) {
            let service = config.services.iter().find(|service| service.key == change.key);
            plans.push(ServicePlan {
                name: told.name,
                kind: told.kind,
                moved_slots: told.moved_slots,
                slots: told.slots,
                slots_before: earlier.get(&change.key).map_or(0, |earlier| earlier.size),
                slots_by_rule: service.map_or(0, |service| maglev::size_for(service.backends.len())),
                flows_in_moved_slots: None,
            });
        }
        plans
    }

    fn planned_memory(&self, foreseen: &Foreseen, config: &Config) -> Option<PlanMemory> {
        let now = self.memory_status()?;
        let prefixes = |config: &Config| -> u64 {
            let lists = config
                .services
                .iter()
                .filter_map(|service| service.access.as_ref());
            lists.map(|list| list.prefixes().len() as u64).sum()
        };
        let tables: u64 = self.dataplane.earlier().values().map(|e| u64::from(e.size)).sum();
        let tables_after: u64 = foreseen.sizes.values().map(|size| u64::from(*size)).sum();
        let slabs = u64::from(foreseen.slabs.1 - foreseen.slabs.0);
        let lists = prefixes(config).saturating_sub(prefixes(&self.config));
        Some(PlanMemory {
            agent_bytes: now.agent_bytes,
            maps_bytes: now.maps_bytes,
            maps_bytes_after: now.maps_bytes
                + slabs * u64::from(SLAB_SLOTS) * SLOT_BYTES
                + lists * PREFIX_BYTES,
            tables_bytes: tables * SLOT_BYTES,
            tables_bytes_after: tables_after * SLOT_BYTES,
        })
    }

    /// The slots that move, of services whose flows the flow table knows by slot.
    fn moved_only(&self, foreseen: &Foreseen) -> BTreeMap<String, (u32, Vec<bool>)> {
        let mut moving = BTreeMap::new();
        for change in &foreseen.changes {
            let index = self.dataplane.index_of_service(&change.key);
            let tracked = self.service(&change.key).is_some_and(|service| {
                service.tracking() == Tracking::Moved && !service.forward.translates()
            });
            if let (ChangeKind::Table { .. }, Some(index), true) = (change.kind, index, tracked)
                && let Some(slots) = foreseen.moving.get(&index)
            {
                moving.insert(change.name.clone(), (index, slots.clone()));
            }
        }
        moving
    }
}

#[derive(Default)]
struct Expected {
    statuses: BTreeMap<BackendId, BackendStatus>,
    /// Whose state is not known.
    assumed: Vec<BackendId>,
}

fn read(order: &PlanOrder, own: &Path) -> anyhow::Result<Config> {
    let Some(text) = &order.config else {
        return read_config(own);
    };
    let path = order.name.as_ref().map_or_else(|| own.to_owned(), PathBuf::from);
    let machine = Machine::read()?;
    Config::parse_for(text, &machine).map_err(|faults: Faults| LoadError::Invalid { path, faults }.into())
}

fn place(id: &BackendId, config: &Config) -> String {
    let address = SocketAddr::new(id.address, id.port);
    let mut services = config.services.iter();
    let name = services.find(|service| service.key == id.service);
    let name = name.map_or_else(|| id.service.to_string(), |service| service.name.clone());
    format!("{address} of {name}")
}
