//! What the maps hold when an agent starts: nothing in fresh ones, the last agent's work in pinned ones.

use std::collections::{BTreeMap, BTreeSet};

use super::tables::InForce;
use super::{Dataplane, Installed, meta};
use crate::control::indices::Indices;
use crate::datapath::Error;
use crate::datapath::grace::Grace;
use crate::datapath::identity;
use crate::datapath::maps::Maps;
use crate::datapath::slabs::Allocator;
use crate::datapath::sweep::Report;
use crate::model::{BackendId, ServiceKey};

impl Dataplane {
    /// Reads what the maps hold. The tables are the truth, and every window of a slot stays open for one more. Indices
    /// that were somebody's rest until the flow table was scanned.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn adopt(maps: Maps, now_ns: u64) -> Result<Self, Error> {
        let mut dataplane = Self::empty(maps);
        dataplane.maps.services.put_right()?;
        let by_index = dataplane.adopt_services(now_ns)?;
        dataplane.adopt_backends(&by_index, now_ns)?;
        dataplane.egress = dataplane.maps.egress.keys().collect::<Result<_, _>>()?;
        dataplane.drop_stray_keys()?;
        let in_force = || dataplane.services.values().map(|installed| &installed.in_force);
        let tables = in_force().flat_map(|tables| [tables.word.place(), tables.before]);
        dataplane.allocator = Allocator::with(tables);
        Ok(dataplane)
    }

    fn empty(maps: Maps) -> Self {
        Self {
            maps,
            services: BTreeMap::new(),
            backends: BTreeMap::new(),
            records: BTreeMap::new(),
            tags: BTreeMap::new(),
            metas: BTreeMap::new(),
            checks: BTreeMap::new(),
            service_indices: Indices::default(),
            backend_indices: Indices::default(),
            dead_before: BTreeMap::new(),
            walks: super::remember::Walks::default(),
            egress: BTreeSet::new(),
            replies_by: BTreeSet::new(),
            idle_egress: BTreeMap::new(),
            allocator: Allocator::default(),
            grace: Grace::default(),
            scan: std::sync::Arc::new(Report::default()),
            allowances: super::allow::Allowances::default(),
            budget: super::write::Budget::default(),
        }
    }

    fn adopt_services(&mut self, now_ns: u64) -> Result<BTreeMap<u32, ServiceKey>, Error> {
        let mut by_index = BTreeMap::new();
        for index in 0..self.maps.service_meta.len().min(self.maps.records.room()) {
            let meta = self.maps.service_meta.get(&index, 0)?;
            let key = (meta.in_use != 0)
                .then(|| identity::service_of(&meta.key))
                .flatten()
                .filter(|key| !self.services.contains_key(key));
            let Some(key) = key else {
                // Entries of whoever had it may be left.
                if meta.key.family == 0 {
                    self.service_indices.add(index);
                } else {
                    self.service_indices.rest(index, now_ns, None);
                }
                continue;
            };
            by_index.insert(index, key);
            let in_force = InForce::found(&self.maps, index, meta::tracking_of(&meta), now_ns);
            // In damaged pins it may name no table: one is built anew.
            if self.maps.records.table(index) != in_force.word {
                self.maps.records.set_table(index, in_force.word);
            }
            if self.maps.records.before(index) != in_force.before {
                self.maps.records.set_before(index, in_force.before);
            }
            let installed = Installed {
                index,
                in_force,
                generation: meta.generation,
                retired: meta.retired,
                meta: Some(meta),
                guard: super::guard::InForce::Unknown,
                published: false,
            };
            self.services.insert(key, installed);
        }
        Ok(by_index)
    }

    fn adopt_backends(&mut self, by_index: &BTreeMap<u32, ServiceKey>, now_ns: u64) -> Result<(), Error> {
        let tables = self.services.values().map(|installed| &installed.in_force);
        let named: BTreeSet<u32> = tables.flat_map(InForce::named).collect();
        let maps = &mut self.maps;
        let room = maps
            .backends
            .room()
            .min(maps.backend_meta.len())
            .min(maps.counters.len());
        for index in 1..room {
            let mut meta = maps.backend_meta.get(&index, 0)?;
            let id = (meta.in_use != 0)
                .then(|| {
                    let service = *by_index.get(&meta.service)?;
                    let address = identity::address(meta.address, meta.family)?;
                    Some(BackendId {
                        service,
                        address,
                        port: u16::from_be(meta.port),
                    })
                })
                .flatten()
                .filter(|id| !self.backends.contains_key(id));
            if let Some(id) = id {
                self.records.insert(index, maps.backends.get(index));
                self.tags.insert(index, maps.tags.get(&index, 0)?);
                self.metas.insert(index, meta);
                self.dead_before.insert(index, 0);
                self.backends.insert(id, index);
                continue;
            }
            if meta.in_use != 0 {
                // Else it would count for the next service that gets the index of the one it names.
                meta.in_use = 0;
                maps.backend_meta.set(index, meta, 0)?;
            }
            if meta.family == 0 && !named.contains(&index) {
                self.backend_indices.add(index);
            } else {
                self.backend_indices.rest(index, now_ns, None);
            }
        }
        Ok(())
    }

    /// A service that was being added when the last agent died has no key yet, one that was being removed none any
    /// longer: the keys are made to follow the metadata.
    fn drop_stray_keys(&mut self) -> Result<(), Error> {
        let keys = self.maps.services.keys()?;
        for key in keys {
            let known = match identity::service_of(&key) {
                Some(service) => self.services.contains_key(&service),
                None => self
                    .services
                    .keys()
                    .any(|s| identity::address_key(s.address) == key),
            };
            if !known {
                self.maps.services.remove(&key)?;
            }
        }
        Ok(())
    }
}

impl Installed {
    /// A service that is being added.
    pub(super) fn fresh(index: u32) -> Self {
        Self {
            index,
            in_force: InForce::default(),
            generation: 0,
            retired: lb_common::layout::Counters::default(),
            meta: None,
            guard: super::guard::InForce::Unknown,
            published: false,
        }
    }
}
