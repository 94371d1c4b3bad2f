//! What people are told of flows and clients that services remember.

use super::Agent;
use crate::api::types::{FlowCacheStatus, PersistenceStatus};
use crate::config::Service;
use crate::datapath::Error;
use crate::datapath::apply::{Cached, Kept};
use crate::model::Tracking;
use crate::observe::metrics::Family;

impl Agent {
    /// `None` where no service remembers every flow.
    pub(super) fn flow_cache_status(&self) -> Result<Option<FlowCacheStatus>, Error> {
        let services = self.config.services.iter();
        let mut full = services.filter(|s| s.tracking() == Tracking::Full).peekable();
        if full.peek().is_none() {
            return Ok(None);
        }
        let Cached {
            capacity,
            flows,
            bytes,
        } = self.dataplane.cached();
        let mut status = FlowCacheStatus {
            capacity: capacity as u64,
            flows,
            memory_bytes: bytes as u64,
            ..FlowCacheStatus::default()
        };
        for service in full {
            let counted = self.dataplane.flow_counters_of(&service.key)?;
            status.evicted += counted.evicted;
            status.crowded += counted.crowded;
        }
        Ok(Some(status))
    }

    /// `None` where the service does not keep its clients.
    pub(super) fn persistence_status(&self, service: &Service) -> Result<Option<PersistenceStatus>, Error> {
        let Some(timeout) = service.rules.persistence_timeout else {
            return Ok(None);
        };
        let Kept { clients, counters } = self.dataplane.kept(&service.key)?;
        Ok(Some(PersistenceStatus {
            timeout_s: timeout.as_secs_f64(),
            prefix: service.persistence_prefix(),
            clients,
            room: self.dataplane.client_capacity() as u64,
            remembered: counters.remembered,
            kept: counters.kept,
            moved: counters.moved,
            refused: counters.refused,
        }))
    }

    /// Of the cache of flows, and of clients; nothing where no service remembers any.
    pub(super) fn of_what_is_remembered(&self) -> Result<Vec<Family>, Error> {
        let Some(cache) = self.flow_cache_status()? else {
            return Ok(Vec::new());
        };
        let mut room = Family::gauge(
            "flow_cache_capacity",
            "Flows that the cache of flows has room for.",
        );
        room.row([], cache.capacity);
        let mut flows = Family::gauge("flow_cache_flows", "Flows in the cache of flows.");
        flows.row([], cache.flows);
        let help = "Flows that lost their place in the cache of flows to another.";
        let mut evicted = Family::counter("flow_cache_evicted", help);
        let help = "Connections that the hash chose for, because too many were being opened.";
        let mut crowded = Family::counter("flow_cache_crowded", help);
        let mut clients = Family::gauge("clients", "Clients that are remembered.");
        let mut kept = Family::counter("clients_kept", "New flows led to the backend of their client.");
        let help = "New flows whose client's backend takes none any longer.";
        let mut moved = Family::counter("clients_moved", help);
        let mut refused = Family::counter("clients_refused", "Clients that found no room.");
        for service in &self.config.services {
            let name = [("service", service.name.as_str())];
            if service.tracking() == Tracking::Full {
                let counted = self.dataplane.flow_counters_of(&service.key)?;
                evicted.row(name, counted.evicted);
                crowded.row(name, counted.crowded);
            }
            if let Some(status) = self.persistence_status(service)? {
                clients.row(name, status.clients);
                kept.row(name, status.kept);
                moved.row(name, status.moved);
                refused.row(name, status.refused);
            }
        }
        Ok(vec![room, flows, evicted, crowded, clients, kept, moved, refused])
    }
}
