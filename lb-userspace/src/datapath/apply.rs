//! Writing the difference between what the maps hold and what they must hold.
//!
//! Order matters, because packets come and the agent may die at any moment: records of backends that are new or serve
//! again, then tables that name them, then the service's key; after the tables, that a backend serves no longer, and
//! last the metadata of what is removed. [`write`] has every single write.

mod adopt;
pub mod allow;
mod foresee;
mod guard;
mod members;
mod meta;
mod pressure;
mod quic;
mod remember;
mod tables;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use lb_common::layout::{Backend as Record, BackendMeta, Counters, ServiceMeta, TableWord, Tags};
use lb_common::quic::Lengths;

use self::tables::{InForce, Switched};
use super::clock::Clock;
use super::grace::Grace;
use super::maps::Maps;
use super::slabs::Allocator;
use super::sweep::Report;
use super::{Error, identity, ranges};
use crate::control::indices::Indices;
use crate::control::step::GRACE_NS;
use crate::control::{Desired, DesiredService, Earlier};
use crate::model::{BackendId, ServiceKey};

pub use self::foresee::Foreseen;
pub use self::meta::{Remembered, forward_of, name_of, remembered, tracking_of};
pub use self::pressure::{Leaving, Pressure};
pub use self::remember::{Cached, Kept};
pub use self::tables::Progress;

/// What a change did to one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub name: String,
    pub key: ServiceKey,
    pub kind: ChangeKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    Added {
        slots: u32,
    },
    Removed,
    /// Its table was replaced: so many of its slots have another owner.
    Table {
        moved: usize,
        slots: u32,
        generation: u64,
    },
}

#[derive(Debug)]
struct Installed {
    index: u32,
    in_force: InForce,
    generation: u64,
    retired: Counters,
    meta: Option<ServiceMeta>,
    guard: guard::InForce,
    /// Its keys are known to be in the map.
    published: bool,
}

/// The maps, and what is known to be in them.
pub struct Dataplane {
    pub maps: Maps,
    services: BTreeMap<ServiceKey, Installed>,
    backends: BTreeMap<BackendId, u32>,
    records: BTreeMap<u32, Record>,
    /// Of the backends that are in a VLAN.
    tags: BTreeMap<u32, Tags>,
    metas: BTreeMap<u32, BackendMeta>,
    /// Last check results (code, latency in microseconds), also of backends that have no index yet.
    checks: BTreeMap<BackendId, (u8, u32)>,
    /// Indices that nobody has. A service that comes back gets another one: entries name its index.
    service_indices: Indices<ServiceKey>,
    backend_indices: Indices<BackendId>,
    /// By index: entries that were last seen before this are not its flows any longer.
    dead_before: BTreeMap<u32, u64>,
    walks: remember::Walks,
    egress: BTreeSet<u32>,
    /// Interfaces that answers leave by.
    replies_by: BTreeSet<u32>,
    /// Interfaces that no backend is reached by, and since when.
    idle_egress: BTreeMap<u32, u64>,
    allocator: Allocator,
    /// Tells when packets are through with what was switched away from.
    grace: Grace,
    /// The last full scan of the flow table.
    scan: Arc<Report>,
    allowances: allow::Allowances,
    #[cfg_attr(not(debug_assertions), expect(dead_code, reason = "only tests count writes"))]
    budget: write::Budget,
}

/// Tables of the largest size that there is room for besides those in force. In the time that packets take to be through,
/// up to two grace periods of the kernel's RCU, so many changes may follow: backends that die together are found out one
/// after the other.
const RESERVE: usize = 8;

/// Tables of so many services are built at once: all of thousands would take hundreds of megabytes.
const BUILT_TOGETHER: usize = 256;

impl Dataplane {
    /// What the next call of [`crate::control::desired`] must know of the present.
    #[must_use]
    pub fn earlier(&self) -> BTreeMap<ServiceKey, Earlier> {
        let of = |installed: &Installed| Earlier {
            size: installed.in_force.size(),
        };
        self.services.iter().map(|(key, s)| (*key, of(s))).collect()
    }

    /// States, weights and orders as the maps hold them.
    #[must_use]
    pub fn remembered(&self) -> BTreeMap<BackendId, Remembered> {
        self.backends
            .iter()
            .filter_map(|(id, index)| Some((*id, remembered(self.metas.get(index)?))))
            .collect()
    }

    /// The index of a backend.
    #[must_use]
    pub fn index_of(&self, id: &BackendId) -> Option<u32> {
        self.backends.get(id).copied()
    }

    /// The index of a service.
    #[must_use]
    pub fn service_index(&self, key: &ServiceKey) -> Option<u32> {
        self.services.get(key).map(|installed| installed.index)
    }

    /// The backend with an index.
    #[must_use]
    pub fn backend_at(&self, index: u32) -> Option<BackendId> {
        self.backends
            .iter()
            .find(|(_, i)| **i == index)
            .map(|(id, _)| *id)
    }

    /// The index of a service.
    #[must_use]
    pub fn index_of_service(&self, key: &ServiceKey) -> Option<u32> {
        self.services.get(key).map(|installed| installed.index)
    }

    /// The service with an index.
    #[must_use]
    pub fn service_at(&self, index: u32) -> Option<ServiceKey> {
        self.services
            .iter()
            .find(|(_, s)| s.index == index)
            .map(|(key, _)| *key)
    }

    /// The owner of each slot of a service's table, as indices of backends.
    #[must_use]
    pub fn owners(&self, key: &ServiceKey) -> Vec<u32> {
        let slots = |installed: &Installed| {
            let slots = installed.in_force.tables.now.slots.iter();
            slots.map(|slot| slot.current()).collect()
        };
        self.services.get(key).map_or_else(Vec::new, slots)
    }

    /// Generation of a service's table, and what its removed backends had counted.
    #[must_use]
    pub fn service_history(&self, key: &ServiceKey) -> Option<(u64, Counters)> {
        self.services.get(key).map(|s| (s.generation, s.retired))
    }

    /// The interfaces that packets of backends leave by.
    pub fn egress(&self) -> impl Iterator<Item = u32> {
        self.egress.iter().copied()
    }

    /// The addresses of all services.
    #[must_use]
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        self.services.keys().map(|key| key.address).collect()
    }

    /// An interface is gone: the kernel took it out of the device map by itself.
    pub fn forget_interface(&mut self, ifindex: u32) {
        self.egress.remove(&ifindex);
        self.replies_by.remove(&ifindex);
        self.idle_egress.remove(&ifindex);
    }

    /// Makes the maps hold what is desired, as far as flows let it: slots that wait, and windows that end, need
    /// further calls.
    ///
    /// # Errors
    /// [`Error::Full`] before anything is written; [`Error::Map`], [`Error::NoSlabs`] where writing fails:
    /// services written so far are whole, the others as they were.
    pub fn apply(&mut self, desired: &Desired, clock: Clock<'_>) -> Result<Vec<Change>, Error> {
        self.wake(clock());
        self.check_room(desired)?;
        let mut changes = Vec::new();
        self.drop_quic_ids(desired)?;
        self.apply_egress(desired, clock())?;
        let services: Vec<_> = desired.services.iter().collect();
        for some in services.chunks(BUILT_TOGETHER) {
            let mut built = self.build_all(some);
            for (key, service) in some {
                changes.extend(self.apply_service(key, service, built.remove(*key), clock)?);
            }
        }
        self.put_quic_ids(desired)?;
        self.apply_ranges(desired)?;
        let gone: Vec<_> = self
            .services
            .keys()
            .filter(|k| !desired.services.contains_key(k))
            .copied()
            .collect();
        for key in gone {
            changes.push(self.remove_service(&key, clock)?);
        }
        Ok(changes)
    }

    /// Like [`Dataplane::apply`], with nobody that there is no room for: what is there goes on, and when windows end
    /// the indices of those that are gone become free.
    ///
    /// # Errors
    /// As there, but [`Error::Full`].
    pub fn apply_known(&mut self, desired: &Desired, clock: Clock<'_>) -> Result<Vec<Change>, Error> {
        let mut known = desired.clone();
        known.services.retain(|key, _| self.services.contains_key(key));
        for (key, service) in &mut known.services {
            service.backends.retain(|id, _| self.has_index(id));
            service.candidates.retain(|candidate| {
                self.has_index(&BackendId {
                    service: *key,
                    address: candidate.address,
                    port: candidate.port,
                })
            });
        }
        self.apply(&known, clock)
    }

    /// Makes room in advance for tables that change in quick succession, at most one slab a call: that takes the kernel
    /// some milliseconds.
    ///
    /// # Errors
    /// [`Error::Map`], [`Error::Pin`], [`Error::Syscall`].
    pub fn reserve(&mut self) -> Result<(), Error> {
        let sizes = self.services.values().map(|s| s.in_force.size());
        let largest = sizes.max().filter(|size| *size > 0);
        if let Some(size) = largest
            && self.allocator.reserve(size, RESERVE)
        {
            self.maps.slabs.grow(self.allocator.slabs())?;
        }
        Ok(())
    }

    /// Whether a backend has an index, or one that is kept for it.
    fn has_index(&self, id: &BackendId) -> bool {
        self.backends.contains_key(id) || self.backend_indices.remembers(id)
    }

    fn check_room(&self, desired: &Desired) -> Result<(), Error> {
        let services = desired
            .services
            .keys()
            .filter(|k| !self.services.contains_key(k))
            .count();
        if services > self.service_indices.free() {
            return Err(Error::Full {
                what: "services",
                room: self.maps.records.room(),
                needed: self.services.len() + self.service_indices.resting() + services,
                key: "max_services",
            });
        }
        let backends = desired
            .services
            .values()
            .flat_map(|s| s.backends.keys())
            .filter(|id| !self.has_index(id))
            .count();
        if backends > self.backend_indices.free() {
            return Err(Error::Full {
                what: "backends",
                room: self.maps.backends.room().saturating_sub(1),
                needed: self.backends.len() + self.backend_indices.resting() + backends,
                key: "max_backends",
            });
        }
        Ok(())
    }

    /// Interfaces that packets leave by. One that is not used any longer goes when no packet can be on its way to it.
    fn apply_egress(&mut self, desired: &Desired, now_ns: u64) -> Result<(), Error> {
        let used = desired
            .services
            .values()
            .flat_map(|s| s.backends.values())
            .map(|b| b.record.ifindex);
        let replies = self.replies_by.iter().copied();
        let used: BTreeSet<u32> = used.chain(replies).filter(|i| *i != 0).collect();
        for ifindex in used.difference(&self.egress.clone()) {
            // An interface that cannot transmit XDP frames is refused here; its packets are then counted as
            // `cannot_send`.
            match self.put_egress(*ifindex)? {
                Ok(()) => drop(self.egress.insert(*ifindex)),
                Err(error) => {
                    log::warn!("interface with index {ifindex} cannot be a target of redirection: {error}");
                }
            }
        }
        self.idle_egress.retain(|ifindex, _| !used.contains(ifindex));
        for ifindex in self.egress.clone().difference(&used) {
            let since_ns = *self.idle_egress.entry(*ifindex).or_insert(now_ns);
            if now_ns.saturating_sub(since_ns) > GRACE_NS {
                self.remove_egress(*ifindex)?;
                self.forget_interface(*ifindex);
            }
        }
        Ok(())
    }

    /// Packets may leave by this interface although no backend is there: answers that are translated do.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn add_egress(&mut self, ifindex: u32) -> Result<(), Error> {
        self.replies_by.insert(ifindex);
        if !self.egress.contains(&ifindex) {
            match self.put_egress(ifindex)? {
                Ok(()) => drop(self.egress.insert(ifindex)),
                Err(error) => {
                    log::warn!("interface with index {ifindex} cannot be a target of redirection: {error}");
                }
            }
        }
        Ok(())
    }

    /// Takes that back; the interface goes when nothing else needs it.
    pub fn drop_egress(&mut self, ifindex: u32) {
        self.replies_by.remove(&ifindex);
    }

    /// The ranges of ports: once all services are there that they lead to, and before any goes.
    fn apply_ranges(&mut self, desired: &Desired) -> Result<(), Error> {
        let ranges = desired.services.iter().filter_map(|(key, service)| {
            let last = service.last_port?;
            Some((identity::service_key(key), last, self.services.get(key)?.index))
        });
        let wanted = ranges.flat_map(|(key, last, index)| {
            ranges::blocks(&key, last)
                .into_iter()
                .map(move |block| (block, index))
        });
        let wanted = wanted.collect();
        for (block, index) in self.maps.ranges.missing(&wanted) {
            self.put_block(block, index)?;
        }
        for block in self.maps.ranges.stale(&wanted) {
            self.remove_block(&block)?;
        }
        Ok(())
    }

    fn apply_service(
        &mut self,
        key: &ServiceKey,
        service: &DesiredService,
        built: Option<Vec<Option<u32>>>,
        clock: Clock<'_>,
    ) -> Result<Option<Change>, Error> {
        let added = !self.services.contains_key(key);
        if added {
            self.add_service(key)?;
        }
        self.write_service_meta(key, service)?;
        self.write_guard(key, service)?;
        self.write_persistence(key, service)?;
        let standings = self.write_backends(service, clock)?;
        let switched = self.step_tables(key, service, &standings, built, clock)?;
        self.publish(key)?;
        self.write_standings(&standings)?;
        self.remove_backends(key, Some(service), clock)?;
        let slots = self.services[key].in_force.size();
        let change = |kind| Change {
            name: service.name.clone(),
            key: *key,
            kind,
        };
        if added {
            return Ok(Some(change(ChangeKind::Added { slots })));
        }
        Ok(match switched {
            Some(Switched { moved, generation }) if moved > 0 => Some(change(ChangeKind::Table {
                moved,
                slots,
                generation,
            })),
            _ => None,
        })
    }

    fn add_service(&mut self, key: &ServiceKey) -> Result<(), Error> {
        let taken = self.service_indices.take(key).ok_or(Error::Full {
            what: "services",
            room: self.maps.records.room(),
            needed: self.services.len() + self.service_indices.resting() + 1,
            key: "max_services",
        })?;
        let index = taken.index;
        self.put_table(index, TableWord::NONE)?;
        self.put_before(index, TableWord::NONE)?;
        self.clear_flow_counts(index)?;
        self.maps.clients.clear_counters(index)?;
        self.services.insert(*key, Installed::fresh(index));
        Ok(())
    }

    /// Makes the service visible to packets.
    fn publish(&mut self, key: &ServiceKey) -> Result<(), Error> {
        let Installed { index, published, .. } = self.services[key];
        if published {
            return Ok(());
        }
        for (key, value) in [
            (identity::address_key(key.address), 0),
            (identity::service_key(key), index),
        ] {
            if self.maps.services.get(&key).ok() != Some(value) {
                self.put_key(key, value)?;
            }
        }
        self.services.get_mut(key).expect("there above").published = true;
        Ok(())
    }

    fn write_service_meta(&mut self, key: &ServiceKey, service: &DesiredService) -> Result<(), Error> {
        let installed = &self.services[key];
        let index = installed.index;
        let meta = ServiceMeta {
            key: identity::service_key(key),
            in_use: 1,
            forward: meta::forward_code(service.forward),
            tracking: meta::tracking_code(installed.in_force.tracking),
            reserved: 0,
            retired: installed.retired,
            generation: installed.generation,
            name: meta::name_bytes(&service.name),
        };
        if installed.meta != Some(meta) {
            self.put_service_meta(index, meta)?;
            self.services.get_mut(key).expect("there above").meta = Some(meta);
        }
        Ok(())
    }

    fn write_persistence(&mut self, key: &ServiceKey, service: &DesiredService) -> Result<(), Error> {
        let index = self.services[key].index;
        if self.maps.clients.settings(index) != service.persistence {
            self.put_persistence(index, service.persistence)?;
        }
        Ok(())
    }

    fn remove_service(&mut self, key: &ServiceKey, clock: Clock<'_>) -> Result<Change, Error> {
        self.remove_key(&identity::service_key(key))?;
        let mut others = self.services.keys().filter(|other| *other != key);
        if !others.any(|other| other.address == key.address) {
            self.remove_key(&identity::address_key(key.address))?;
        }
        let index = self.services[key].index;
        self.put_table(index, TableWord::NONE)?;
        self.put_before(index, TableWord::NONE)?;
        self.remove_guard(index)?;
        if self.maps.quic.lengths(index) != Lengths::default() {
            self.put_quic_lengths(index, Lengths::default())?;
        }
        self.remove_backends(key, None, clock)?;
        let mut name = String::new();
        if let Some(mut meta) = self.services[key].meta {
            name = name_of(&meta);
            meta.in_use = 0;
            self.put_service_meta(index, meta)?;
        }
        let installed = self.services.remove(key).expect("there above");
        let now_ns = clock();
        let until = self.grace.ask();
        self.allocator
            .release(installed.in_force.word.place(), now_ns, until);
        self.allocator.release(installed.in_force.before, now_ns, until);
        self.service_indices.rest(index, now_ns, None);
        Ok(Change {
            name,
            key: *key,
            kind: ChangeKind::Removed,
        })
    }
}
