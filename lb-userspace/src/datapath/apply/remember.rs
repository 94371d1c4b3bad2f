//! Flows and clients that services remember as a whole: forgetting those that are idle, and counting the others.

use lb_common::client::ClientCounters;
use lb_common::layout::FlowCounters;

use super::Dataplane;
use crate::datapath::Error;
use crate::datapath::flow_cache::Walk;
use crate::model::{ServiceKey, Tracking};

/// How far the walks through the caches have come.
#[derive(Debug, Default)]
pub(super) struct Walks {
    flows: Walk,
    clients: Walk,
}

/// The cache of `tracking = "full"`, all services together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cached {
    pub capacity: usize,
    /// By the last walk through it.
    pub flows: u64,
    pub bytes: usize,
}

/// The clients of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// By the last walk through the clients.
    pub clients: u64,
    pub counters: ClientCounters,
}

impl Dataplane {
    /// Once a second: goes on through the caches, and forgets what is idle for longer than its service allows.
    pub fn forget_idle(&mut self, now_ns: u64) {
        let full = |tracking| tracking == Tracking::Full;
        let full = self.services.values().any(|s| full(s.in_force.tracking));
        if full || self.walks.flows.total() > 0 {
            let idle_ns = self.by_backend(|service| service.in_force.window_ns);
            let (cache, walk) = (&self.maps.flow_cache, &mut self.walks.flows);
            cache.expire_next(walk, now_ns, &idle_ns);
        }
        let settings = |service: &super::Installed| self.maps.clients.settings(service.index).timeout_ns;
        let kept = self.services.values().any(|s| settings(s) != 0);
        if kept || self.walks.clients.total() > 0 {
            let idle_ns = self.by_backend(settings);
            let (clients, walk) = (&self.maps.clients, &mut self.walks.clients);
            clients.expire_next(walk, now_ns, &idle_ns);
        }
    }

    /// What `of` says of the service of each backend, by its index; 0 where there is none.
    fn by_backend(&self, of: impl Fn(&super::Installed) -> u64) -> Vec<u64> {
        let last = self
            .backends
            .values()
            .max()
            .map_or(0, |index| *index as usize + 1);
        let mut all = vec![0; last];
        for (id, index) in &self.backends {
            if let Some(service) = self.services.get(&id.service) {
                all[*index as usize] = of(service);
            }
        }
        all
    }

    /// How full the cache of flows is.
    #[must_use]
    pub fn cached(&self) -> Cached {
        let capacity = self.maps.flow_cache.capacity();
        Cached {
            capacity,
            flows: self.walks.flows.total(),
            bytes: capacity * size_of::<lb_common::cache::Way>(),
        }
    }

    /// How many clients there is room for.
    #[must_use]
    pub fn client_capacity(&self) -> usize {
        self.maps.clients.capacity()
    }

    /// What is known of the clients of a service.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn kept(&self, key: &ServiceKey) -> Result<Kept, Error> {
        let Some(service) = self.services.get(key) else {
            return Ok(Kept::default());
        };
        let ours = self.backends.iter().filter(|(id, _)| id.service == *key);
        Ok(Kept {
            clients: ours.map(|(_, index)| self.walks.clients.of(*index)).sum(),
            counters: self.maps.clients.counters(service.index)?,
        })
    }

    /// What packets of a service did to the cache of flows.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn flow_counters_of(&self, key: &ServiceKey) -> Result<FlowCounters, Error> {
        match self.services.get(key) {
            Some(service) => self.maps.flow_counters(service.index),
            None => Ok(FlowCounters::default()),
        }
    }
}
