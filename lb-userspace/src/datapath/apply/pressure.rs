//! The flow table beside the tables: how full it is, what packets may still write to it, what a sweep must know, and
//! what it found.

use std::collections::BTreeMap;
use std::sync::Arc;

use lb_common::layout::{FlowControl, FlowCounters};
use lb_common::rule::Standing;

use super::allow::{self, Demand, Rates};
use super::tables::Progress;
use super::{Dataplane, Installed};
use crate::control::room;
use crate::control::step::GRACE_NS;
use crate::datapath::Error;
use crate::datapath::clock::Clock;
use crate::datapath::sweep::{BackendView, Report, ServiceView, View};
use crate::model::{BackendId, ServiceKey, Tracking};

/// How full the flow table is, and what became of attempts to write to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    pub capacity: u64,
    /// Since the maps were made.
    pub counters: FlowCounters,
}

/// The slots that a backend's flows without an entry still belong to it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaving {
    pub slots: usize,
    /// When the last of their windows ends unless an entry is refused until then, `CLOCK_MONOTONIC`.
    pub until_ns: u64,
}

impl Dataplane {
    /// How many entries packets may make each second.
    pub fn set_rates(&mut self, rates: Rates) {
        self.allowances.rates = rates;
    }

    /// Whether time alone changes something: slots on the move, or indices that wait for a scan.
    #[must_use]
    pub fn moving(&self) -> bool {
        self.services.values().any(|s| s.in_force.busy())
            || self.backend_indices.resting() > 0
            || self.service_indices.resting() > 0
            || !self.idle_egress.is_empty()
    }

    /// Whether a scan of the flow table is wanted soon.
    #[must_use]
    pub fn wants_scan(&self) -> bool {
        let scan_ns = self.scan.begun_ns;
        let resting = self.backend_indices.resting() + self.service_indices.resting() > 0;
        self.services.values().any(|s| s.in_force.busy())
            || self.backend_indices.unscanned(scan_ns)
            || self.service_indices.unscanned(scan_ns)
            || (resting && self.scan.removed > 0)
    }

    /// Takes in what a scan found; the next steps depend on it.
    pub fn take_scan(&mut self, report: Arc<Report>) -> Result<(), Error> {
        self.scan = report;
        self.allowances.inserted.clear();
        for installed in self.services.values().filter(|s| s.in_force.busy()) {
            let counters = self.maps.flow_counters(installed.index)?;
            self.allowances.inserted.insert(installed.index, counters);
        }
        Ok(())
    }

    /// The last full scan of the flow table.
    #[must_use]
    pub fn last_scan(&self) -> &Report {
        &self.scan
    }

    /// Gives packets of services with slots on the move what they may write until the next call.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn renew_allowances(&mut self, now_ns: u64) -> Result<(), Error> {
        let elapsed_ns = now_ns.saturating_sub(self.allowances.renewed_ns).min(GRACE_NS);
        self.allowances.renewed_ns = now_ns;
        let busy: Vec<u32> = self
            .services
            .values()
            .filter(|s| s.in_force.busy())
            .map(|s| s.index)
            .collect();
        let mut own = BTreeMap::new();
        for index in &busy {
            own.insert(*index, self.entries_of(*index)?);
        }
        let grown: u64 = own
            .iter()
            .map(|(index, (own, _))| own.saturating_sub(self.scanned(*index).0))
            .sum();
        let entries = self.scan.states.total() + grown;
        for (index, (own, unconfirmed)) in own {
            let demand = Demand {
                left: self.maps.flow_control.get(index),
                elapsed_ns,
                capacity: u64::from(self.maps.flows.capacity()),
                entries,
                own,
                unconfirmed,
                sharing: busy.len() as u64,
            };
            let next = allow::allowances(self.allowances.rates, &demand);
            self.maps.flow_control.allow(index, next);
        }
        Ok(())
    }

    /// Before slots of a service open: what it may write in the first second. What it writes is counted from here on,
    /// since no scan has seen any of it for a while.
    pub(super) fn allow_at_once(&mut self, index: u32) -> Result<(), Error> {
        if !self.allowances.inserted.contains_key(&index) {
            let counters = self.maps.flow_counters(index)?;
            self.allowances.inserted.insert(index, counters);
        }
        let left = self.maps.flow_control.get(index);
        if left.syn_left.min(left.data_left).min(left.udp_left) > 0 {
            return Ok(());
        }
        let (own, unconfirmed) = self.scanned(index);
        // Services whose slots open together are asked one by one: what SYNs may take of the table is at most half of it
        // for all of them.
        let others = self
            .services
            .values()
            .filter(|s| s.in_force.busy() && s.index != index);
        let promised: u64 = others.map(|s| self.maps.flow_control.get(s.index).syn_left).sum();
        let demand = Demand {
            left,
            elapsed_ns: GRACE_NS,
            capacity: u64::from(self.maps.flows.capacity()),
            entries: self
                .scan
                .states
                .total()
                .saturating_add(promised.saturating_mul(2)),
            own,
            unconfirmed,
            sharing: self.sharing() + 1,
        };
        let next = allow::allowances(self.allowances.rates, &demand);
        let most = |a: u64, b: u64| a.max(b);
        self.maps.flow_control.allow(
            index,
            FlowControl {
                refused_ns: left.refused_ns,
                syn_left: most(left.syn_left, next.syn_left),
                data_left: most(left.data_left, next.data_left),
                udp_left: most(left.udp_left, next.udp_left),
            },
        );
        Ok(())
    }

    /// How many slots of a service may be opened for moves that can wait.
    pub(super) fn room(&self, key: &ServiceKey) -> Result<usize, Error> {
        let installed = &self.services[key];
        let sharing = self.sharing() + u64::from(!installed.in_force.busy());
        let quota = allow::quota(u64::from(self.maps.flows.capacity()), sharing);
        let opened_ns = installed.in_force.tables.now.since_ns.latest();
        let (own, _) = self.entries_of(installed.index)?;
        Ok(room::room(&room::Demand {
            quota,
            own,
            open: installed.in_force.progress.open as u64,
            measured: opened_ns.is_some_and(|ns| self.scan.begun_ns > ns.saturating_add(MEASURED_NS)),
        }))
    }

    fn sharing(&self) -> u64 {
        let busy = self.services.values().filter(|s| s.in_force.busy()).count();
        (busy as u64).max(1)
    }

    /// Entries of a service, and the unconfirmed ones among them: those of the last scan, and what packets made since.
    fn entries_of(&self, index: u32) -> Result<(u64, u64), Error> {
        let (own, unconfirmed) = self.scanned(index);
        let Some(then) = self.allowances.inserted.get(&index) else {
            return Ok((own, unconfirmed));
        };
        let now = self.maps.flow_counters(index)?;
        let by_syn = now.inserted_syn.saturating_sub(then.inserted_syn);
        let by_others =
            (now.inserted_data + now.inserted_udp).saturating_sub(then.inserted_data + then.inserted_udp);
        Ok((own + by_syn + by_others, unconfirmed + by_syn))
    }

    fn scanned(&self, index: u32) -> (u64, u64) {
        let found = self.scan.services.get(&index);
        found.map_or((0, 0), |found| (found.states.total(), found.states.unconfirmed))
    }

    /// What a sweep must know.
    #[must_use]
    pub fn view(&self, clock: Clock<'_>) -> View {
        let made_ns = clock();
        let of = |installed: &Installed| {
            let view = ServiceView {
                idle_ns: installed.in_force.window_ns,
                tracked: installed.in_force.tracking != Tracking::None,
            };
            (installed.index, view)
        };
        let there = |index: &u32| {
            let standing = self.records.get(index)?.standing;
            let gone = Standing::from_bits(standing) == Standing::Gone;
            let view = BackendView {
                dead_before_ns: self.dead_before.get(index).copied().unwrap_or(0),
                closed: standing & Standing::CLOSED != 0,
            };
            (!gone).then_some((*index, view))
        };
        View {
            made_ns,
            services: self.services.values().map(of).collect(),
            backends: self.backends.values().filter_map(there).collect(),
            tables: self.maps.reader(),
        }
    }

    /// How far the moves of a service's slots have come.
    #[must_use]
    pub fn progress(&self, key: &ServiceKey) -> Option<Progress> {
        self.services
            .get(key)
            .map(|installed| installed.in_force.progress)
    }

    /// How full the flow table is.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn pressure(&self) -> Result<Pressure, Error> {
        let mut counters = FlowCounters::default();
        for installed in self.services.values() {
            let of = self.maps.flow_counters(installed.index)?;
            counters = crate::datapath::flows::add_counters(&counters, &of);
        }
        Ok(Pressure {
            capacity: u64::from(self.maps.flows.capacity()),
            counters,
        })
    }

    /// What a service's packets did in the flow table, and what the last scan found of it.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn service_flows(&self, key: &ServiceKey) -> Result<Option<(FlowCounters, u64)>, Error> {
        let Some(installed) = self.services.get(key) else {
            return Ok(None);
        };
        let counters = self.maps.flow_counters(installed.index)?;
        Ok(Some((counters, self.scanned(installed.index).0)))
    }

    /// Flows that are remembered as a backend's: entries that name it, by the last scan, and with `tracking = "full"` all
    /// that have not ended, as far as one direction tells.
    #[must_use]
    pub fn flows_on(&self, id: &BackendId) -> u64 {
        self.index_of(id).map_or(0, |index| {
            let entries = self.scan.backends.get(&index).copied().unwrap_or(0);
            entries + self.maps.flow_cache.active(index)
        })
    }

    /// The open slots whose flows without an entry belong to a backend that does not own them any longer; `None` where
    /// there are none.
    #[must_use]
    pub fn leaving(&self, id: &BackendId) -> Option<Leaving> {
        let index = self.index_of(id)?;
        let installed = self.services.get(&id.service)?;
        let in_force = &installed.in_force;
        let refused_ns = self.maps.flow_control.get(installed.index).refused_ns;
        let end = |since_ns: u64| {
            let window_ns = in_force.window_ns.saturating_add(GRACE_NS);
            since_ns.max(refused_ns).saturating_add(window_ns)
        };
        if let Some(before) = &in_force.tables.before {
            let slots = before
                .slots
                .iter()
                .filter(|slot| slot.previous() == index)
                .count();
            return (slots > 0).then(|| Leaving {
                slots,
                until_ns: end(before.since_ns),
            });
        }
        let now = &in_force.tables.now;
        let open = now.since_ns.iter().filter(|(i, _)| {
            let slot = now.slots.get(*i as usize);
            slot.is_some_and(|slot| slot.previous() == index && slot.current() != index)
        });
        let (slots, latest_ns) = open.fold((0, 0), |(n, latest), (_, since)| (n + 1, latest.max(since)));
        (slots > 0).then(|| Leaving {
            slots,
            until_ns: end(latest_ns),
        })
    }
}

/// How long slots must have been open until their entries say something.
const MEASURED_NS: u64 = 10 * GRACE_NS;
