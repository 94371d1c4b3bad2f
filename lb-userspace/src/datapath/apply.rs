//! Writing the difference between what the maps hold and what they must hold.
//!
//! Order matters: a backend's record is written before a table names it, a table before the record of its
//! service names it, and that before the service's key becomes visible. Taking away goes the other way
//! round. An index of a removed backend is given to another one only after [`QUARANTINE`], when no packet
//! can hold it any more.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::time::Instant;

use aya::maps::MapError;
use lb_common::layout::{
    self, Backend as Record, BackendMeta, Counters, NAME_LEN, ServiceMeta, Slot, TableWord,
};

use super::Error;
use super::identity;
use super::maps::{self, Maps};
use super::slabs::{Allocator, QUARANTINE};
use crate::control::{self, Desired, DesiredBackend, DesiredService, Earlier};
use crate::maglev::{self, Candidate};
use crate::model::{AdminState, BackendId, Forward, OperState, ServiceKey};

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
    table: TableWord,
    /// What the table was built from; unknown for one that was found pinned.
    built_from: Option<Vec<Candidate>>,
    generation: u64,
    retired: Counters,
    meta: Option<ServiceMeta>,
    /// Its keys are known to be in the map.
    published: bool,
}

/// The maps, and what is known to be in them.
pub struct Dataplane {
    pub maps: Maps,
    services: BTreeMap<ServiceKey, Installed>,
    backends: BTreeMap<BackendId, u32>,
    records: BTreeMap<u32, Record>,
    metas: BTreeMap<u32, BackendMeta>,
    /// Last check results (code, latency in microseconds), also of backends that have no index yet.
    checks: BTreeMap<BackendId, (u8, u32)>,
    free_services: BTreeSet<u32>,
    free_backends: BTreeSet<u32>,
    /// Indices of removed backends that packets may still hold.
    resting: Vec<(Instant, u32)>,
    egress: BTreeSet<u32>,
    allocator: Allocator,
}

/// What the pinned maps say of a backend: where the next agent goes on.
#[derive(Clone, Copy, Debug)]
pub struct Remembered {
    pub state: OperState,
    pub admin: AdminState,
    pub runtime_weight: Option<u16>,
    pub ever_up: bool,
}

impl Dataplane {
    /// Reads what the maps hold: nothing in fresh ones, the last agent's work in pinned ones.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn adopt(mut maps: Maps) -> Result<Self, Error> {
        maps.services.put_right()?;
        let mut services = BTreeMap::new();
        let mut by_index = BTreeMap::new();
        let mut free_services: BTreeSet<u32> = (0..maps.records.room()).collect();
        for index in 0..maps.service_meta.len().min(maps.records.room()) {
            let meta = maps.service_meta.get(&index, 0)?;
            let Some(key) = (meta.in_use != 0)
                .then(|| identity::service_of(&meta.key))
                .flatten()
                .filter(|key| !services.contains_key(key))
            else {
                continue;
            };
            free_services.remove(&index);
            by_index.insert(index, key);
            // A word that names no table, in damaged pins: it is built anew.
            let mut table = maps.records.table(index);
            if !maps.slabs.hold(table) {
                table = TableWord::NONE;
                maps.records.set_table(index, table);
            }
            services.insert(
                key,
                Installed {
                    index,
                    table,
                    built_from: None,
                    generation: meta.generation,
                    retired: meta.retired,
                    meta: Some(meta),
                    published: false,
                },
            );
        }
        let mut backends = BTreeMap::new();
        let (mut records, mut metas) = (BTreeMap::new(), BTreeMap::new());
        let room = maps
            .backends
            .len()
            .min(maps.backend_meta.len())
            .min(maps.counters.len());
        let mut free_backends: BTreeSet<u32> = (1..room).collect();
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
                .filter(|id| !backends.contains_key(id));
            let Some(id) = id else {
                if meta.in_use != 0 {
                    // Else it would count for the next service that gets the index of the one it names.
                    meta.in_use = 0;
                    maps.backend_meta.set(index, meta, 0)?;
                }
                continue;
            };
            free_backends.remove(&index);
            records.insert(index, maps.backends.get(&index, 0)?);
            metas.insert(index, meta);
            backends.insert(id, index);
        }
        let egress: BTreeSet<u32> = maps.egress.keys().collect::<Result<_, _>>()?;
        // A service that was being added when the last agent died has no key yet, one that was being removed
        // none any longer: the keys are made to follow the metadata.
        let keys = maps.services.keys()?;
        for key in keys {
            let known = match identity::service_of(&key) {
                Some(service) => services.contains_key(&service),
                None => services.keys().any(|s| identity::address_key(s.address) == key),
            };
            if !known {
                maps.services.remove(&key)?;
            }
        }
        let allocator = Allocator::with(services.values().map(|s| s.table));
        Ok(Self {
            maps,
            services,
            backends,
            records,
            metas,
            checks: BTreeMap::new(),
            free_services,
            free_backends,
            resting: Vec::new(),
            egress,
            allocator,
        })
    }

    /// What the next call of [`control::desired`] must know of the present.
    #[must_use]
    pub fn earlier(&self) -> BTreeMap<ServiceKey, Earlier> {
        self.services
            .iter()
            .map(|(key, s)| (*key, Earlier { size: s.table.size() }))
            .collect()
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

    /// The backend with an index.
    #[must_use]
    pub fn backend_at(&self, index: u32) -> Option<BackendId> {
        self.backends
            .iter()
            .find(|(_, i)| **i == index)
            .map(|(id, _)| *id)
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
        self.services
            .get(key)
            .map_or_else(Vec::new, |s| self.maps.owners(s.table))
    }

    /// Generation of a service's table, and what its removed backends had counted.
    #[must_use]
    pub fn service_history(&self, key: &ServiceKey) -> Option<(u64, Counters)> {
        self.services.get(key).map(|s| (s.generation, s.retired))
    }

    /// An interface is gone: the kernel took it out of the device map by itself.
    pub fn forget_interface(&mut self, ifindex: u32) {
        self.egress.remove(&ifindex);
    }

    /// Makes the maps hold what is desired.
    ///
    /// # Errors
    /// [`Error::Full`] before anything is written; [`Error::Map`], [`Error::NoSlabs`] where writing fails:
    /// services written so far are whole, the others as they were.
    pub fn apply(&mut self, desired: &Desired, now: Instant) -> Result<Vec<Change>, Error> {
        self.wake(now);
        self.check_room(desired)?;
        let mut changes = Vec::new();
        self.apply_egress(desired)?;
        for (key, service) in &desired.services {
            changes.extend(self.apply_service(key, service, now)?);
        }
        let gone: Vec<_> = self
            .services
            .keys()
            .filter(|k| !desired.services.contains_key(k))
            .copied()
            .collect();
        for key in gone {
            changes.push(self.remove_service(&key, now)?);
        }
        Ok(changes)
    }

    fn check_room(&self, desired: &Desired) -> Result<(), Error> {
        let services = desired
            .services
            .keys()
            .filter(|k| !self.services.contains_key(k))
            .count();
        if services > self.free_services.len() {
            return Err(Error::Full {
                what: "services",
                room: self.maps.records.room(),
                needed: self.services.len() + services,
                key: "max_services",
            });
        }
        let backends = desired
            .services
            .values()
            .flat_map(|s| s.backends.keys())
            .filter(|id| !self.backends.contains_key(id))
            .count();
        if backends > self.free_backends.len() {
            return Err(Error::Full {
                what: "backends",
                room: self.maps.backends.len().saturating_sub(1),
                needed: self.backends.len() + self.resting.len() + backends,
                key: "max_backends",
            });
        }
        Ok(())
    }

    /// Interfaces that packets leave by. One that is not used any longer stays: an entry costs nothing, and
    /// a packet may be on its way to it.
    fn apply_egress(&mut self, desired: &Desired) -> Result<(), Error> {
        let used = desired
            .services
            .values()
            .flat_map(|s| s.backends.values())
            .map(|b| b.record.ifindex);
        for ifindex in used.filter(|i| *i != 0).collect::<BTreeSet<_>>() {
            if !self.egress.contains(&ifindex) {
                // An interface that cannot transmit XDP frames is refused here; its packets are then counted
                // as `cannot_send`.
                if let Err(error) = self.maps.egress.insert(ifindex, ifindex, None, 0) {
                    log::warn!("interface with index {ifindex} cannot be a target of redirection: {error}");
                    continue;
                }
                self.egress.insert(ifindex);
            }
        }
        Ok(())
    }

    fn apply_service(
        &mut self,
        key: &ServiceKey,
        service: &DesiredService,
        now: Instant,
    ) -> Result<Option<Change>, Error> {
        let added = !self.services.contains_key(key);
        if added {
            let index = self.free_services.pop_first().ok_or(Error::Full {
                what: "services",
                room: self.maps.records.room(),
                needed: self.services.len() + 1,
                key: "max_services",
            })?;
            self.maps.records.set_table(index, TableWord::NONE);
            let installed = Installed {
                index,
                table: TableWord::NONE,
                built_from: None,
                generation: 0,
                retired: Counters::default(),
                meta: None,
                published: false,
            };
            self.services.insert(*key, installed);
        }
        self.write_service_meta(key, service)?;
        for (id, backend) in &service.backends {
            self.write_backend(id, backend)?;
        }
        let moved = self.write_table(key, service, now)?;
        self.publish(key)?;
        self.remove_backends(key, Some(service), now)?;
        let change = |kind| Change {
            name: service.name.clone(),
            key: *key,
            kind,
        };
        if added {
            return Ok(Some(change(ChangeKind::Added { slots: service.size })));
        }
        let generation = self.services[key].generation;
        Ok(moved.map(|moved| {
            change(ChangeKind::Table {
                moved,
                slots: service.size,
                generation,
            })
        }))
    }

    /// Makes the service visible to packets.
    fn publish(&mut self, key: &ServiceKey) -> Result<(), Error> {
        let installed = self.services.get_mut(key).expect("installed by the caller");
        if installed.published {
            return Ok(());
        }
        for (key, value) in [
            (identity::address_key(key.address), 0),
            (identity::service_key(key), installed.index),
        ] {
            if self.maps.services.get(&key).ok() != Some(value) {
                self.maps.services.insert(key, value)?;
            }
        }
        installed.published = true;
        Ok(())
    }

    /// Takes a key out of the map. It may be missing already: the last agent died while it took the service
    /// away, or before it made it visible.
    fn unpublish(&mut self, key: &layout::ServiceKey) -> Result<(), MapError> {
        match self.maps.services.remove(key) {
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => {
                Ok(())
            }
            result => result,
        }
    }

    /// Builds, fills and switches to a new table where the owners changed. Gives back how many slots moved.
    fn write_table(
        &mut self,
        key: &ServiceKey,
        service: &DesiredService,
        now: Instant,
    ) -> Result<Option<usize>, Error> {
        let installed = &self.services[key];
        let (index, before) = (installed.index, installed.table);
        let same_size = before.size() == service.size || service.candidates.is_empty();
        if same_size && installed.built_from.as_ref() == Some(&service.candidates) {
            return Ok(None);
        }
        let old_owners = self.maps.owners(before);
        let new_owners: Vec<u32> = if service.candidates.is_empty() {
            Vec::new()
        } else {
            let indices: Vec<u32> = service
                .candidates
                .iter()
                .map(|c| {
                    let id = BackendId {
                        service: *key,
                        address: c.address,
                        port: c.port,
                    };
                    self.backends.get(&id).copied().unwrap_or(0)
                })
                .collect();
            control::owners(service)
                .into_iter()
                .map(|o| o.map_or(0, |o| indices[o as usize]))
                .collect()
        };
        let built_from = Some(service.candidates.clone());
        let installed = self.services.get_mut(key).expect("installed by the caller");
        if old_owners == new_owners {
            installed.built_from = built_from;
            return Ok(None);
        }
        let moved = maglev::moved(&old_owners, &new_owners);
        let table = if new_owners.is_empty() {
            TableWord::NONE
        } else {
            let table = self
                .allocator
                .allocate(service.size, now)
                .ok_or(Error::NoSlabs { size: service.size })?;
            if let Err(error) = self.maps.slabs.grow(self.allocator.slabs()) {
                self.allocator.release(table, now);
                return Err(error);
            }
            self.maps
                .slabs
                .write(table, new_owners.into_iter().map(Slot::stable));
            table
        };
        self.maps.records.set_table(index, table);
        self.allocator.release(before, now);
        installed.table = table;
        installed.built_from = built_from;
        installed.generation += 1;
        if let Some(meta) = &mut installed.meta {
            meta.generation = installed.generation;
            self.maps.service_meta.set(index, *meta, 0)?;
        }
        Ok(Some(moved))
    }

    fn write_service_meta(&mut self, key: &ServiceKey, service: &DesiredService) -> Result<(), Error> {
        let installed = self.services.get_mut(key).expect("installed by the caller");
        let mut name = [0; NAME_LEN];
        let bytes = service.name.as_bytes();
        let len = bytes.len().min(NAME_LEN - 1);
        name[..len].copy_from_slice(&bytes[..len]);
        let meta = ServiceMeta {
            key: identity::service_key(key),
            in_use: 1,
            forward: forward_code(service.forward),
            reserved: [0; 2],
            retired: installed.retired,
            generation: installed.generation,
            name,
        };
        if installed.meta != Some(meta) {
            self.maps.service_meta.set(installed.index, meta, 0)?;
            installed.meta = Some(meta);
        }
        Ok(())
    }

    fn write_backend(&mut self, id: &BackendId, backend: &DesiredBackend) -> Result<(), Error> {
        let index = match self.backends.get(id) {
            Some(index) => *index,
            None => {
                let index = self.fresh_index()?;
                self.backends.insert(*id, index);
                index
            }
        };
        let meta = self.meta_of(id, backend, self.metas.get(&index));
        if self.metas.get(&index) != Some(&meta) {
            self.maps.backend_meta.set(index, meta, 0)?;
            self.metas.insert(index, meta);
        }
        if self.records.get(&index) != Some(&backend.record) {
            self.maps.backends.set(index, backend.record, 0)?;
            self.records.insert(index, backend.record);
        }
        Ok(())
    }

    fn meta_of(&self, id: &BackendId, backend: &DesiredBackend, before: Option<&BackendMeta>) -> BackendMeta {
        let (address, family) = identity::words(id.address);
        let runtime = backend.status.runtime_weight;
        let known = before.map_or((0, 0), |m| (m.check_code, m.latency_us));
        let (check_code, latency_us) = self.checks.get(id).copied().unwrap_or(known);
        BackendMeta {
            address,
            service: self.services[&id.service].index,
            port: id.port.to_be(),
            weight: backend.weight,
            family,
            in_use: 1,
            state: state_code(backend.status.state),
            admin: admin_code(backend.status.admin),
            flags: u8::from(runtime.is_some()) * HAS_RUNTIME_WEIGHT
                + u8::from(backend.status.ever_up) * EVER_UP,
            check_code,
            runtime_weight: runtime.unwrap_or(0),
            latency_us,
        }
    }

    /// Keeps the last check result of a backend beside its states, for `status` without an agent.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn note_check(&mut self, id: &BackendId, code: u8, latency_us: u32) -> Result<(), Error> {
        self.checks.insert(*id, (code, latency_us));
        let Some(index) = self.backends.get(id) else {
            return Ok(());
        };
        let Some(meta) = self.metas.get_mut(index) else {
            return Ok(());
        };
        meta.check_code = code;
        meta.latency_us = latency_us;
        Ok(self.maps.backend_meta.set(*index, *meta, 0)?)
    }

    /// Takes away the backends of a service that are not wanted any longer; `None` wants none.
    fn remove_backends(
        &mut self,
        key: &ServiceKey,
        wanted: Option<&DesiredService>,
        now: Instant,
    ) -> Result<(), Error> {
        let gone: Vec<_> = self
            .backends
            .range(every_backend_of(*key))
            .filter(|(id, _)| !wanted.is_some_and(|s| s.backends.contains_key(id)))
            .map(|(id, index)| (*id, *index))
            .collect();
        for (id, index) in gone {
            let counted = self.maps.backend_counters(index)?;
            if let Some(installed) = self.services.get_mut(key) {
                installed.retired = maps::add(&installed.retired, &counted);
                if let Some(meta) = &mut installed.meta {
                    meta.retired = installed.retired;
                    self.maps.service_meta.set(installed.index, *meta, 0)?;
                }
            }
            self.backends.remove(&id);
            self.checks.remove(&id);
            self.records.remove(&index);
            if let Some(mut meta) = self.metas.remove(&index) {
                meta.in_use = 0;
                self.maps.backend_meta.set(index, meta, 0)?;
            }
            self.resting.push((now, index));
        }
        Ok(())
    }

    fn remove_service(&mut self, key: &ServiceKey, now: Instant) -> Result<Change, Error> {
        self.unpublish(&identity::service_key(key))?;
        if !self
            .services
            .keys()
            .any(|other| other != key && other.address == key.address)
        {
            self.unpublish(&identity::address_key(key.address))?;
        }
        self.remove_backends(key, None, now)?;
        let installed = self.services.remove(key).expect("the caller found it");
        self.maps.records.set_table(installed.index, TableWord::NONE);
        self.allocator.release(installed.table, now);
        let mut name = String::new();
        if let Some(mut meta) = installed.meta {
            name = name_of(&meta);
            meta.in_use = 0;
            self.maps.service_meta.set(installed.index, meta, 0)?;
        }
        self.free_services.insert(installed.index);
        Ok(Change {
            name,
            key: *key,
            kind: ChangeKind::Removed,
        })
    }

    /// Gives back the indices of backends that were removed long enough ago.
    fn wake(&mut self, now: Instant) {
        let free = &mut self.free_backends;
        self.resting.retain(|(since, index)| {
            let waiting = now.saturating_duration_since(*since) < QUARANTINE;
            if !waiting {
                free.insert(*index);
            }
            waiting
        });
    }

    /// A free index, with empty counters and a record that nothing can be sent to.
    fn fresh_index(&mut self) -> Result<u32, Error> {
        let index = self.free_backends.pop_first().ok_or(Error::Full {
            what: "backends",
            room: self.maps.backends.len().saturating_sub(1),
            needed: self.backends.len() + 1,
            key: "max_backends",
        })?;
        let cpus = aya::util::nr_cpus().map_err(|(path, e)| Error::io(path)(e))?;
        let zeros = aya::maps::PerCpuValues::try_from(vec![Counters::default(); cpus]).map_err(|source| {
            Error::Syscall {
                call: "per-CPU counters",
                source,
            }
        })?;
        self.maps.counters.set(index, zeros, 0)?;
        self.maps.backends.set(index, Record::UNRESOLVED, 0)?;
        Ok(index)
    }

    /// The addresses of all services.
    #[must_use]
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        self.services.keys().map(|key| key.address).collect()
    }
}

/// The identities that the backends of a service can have, in their order.
fn every_backend_of(service: ServiceKey) -> RangeInclusive<BackendId> {
    let end = |address, port| BackendId {
        service,
        address,
        port,
    };
    // IPv4 addresses come before IPv6 ones.
    let (first, last) = (
        Ipv4Addr::UNSPECIFIED.into(),
        Ipv6Addr::from_bits(u128::MAX).into(),
    );
    end(first, 0)..=end(last, u16::MAX)
}

const HAS_RUNTIME_WEIGHT: u8 = 1;
const EVER_UP: u8 = 2;

/// What a backend's metadata says of its states.
#[must_use]
pub fn remembered(meta: &BackendMeta) -> Remembered {
    Remembered {
        state: match meta.state {
            1 => OperState::Down,
            2 => OperState::Up,
            _ => OperState::Unknown,
        },
        admin: match meta.admin {
            1 => AdminState::Drain,
            2 => AdminState::Maint,
            _ => AdminState::Ready,
        },
        runtime_weight: (meta.flags & HAS_RUNTIME_WEIGHT != 0).then_some(meta.runtime_weight),
        ever_up: meta.flags & EVER_UP != 0,
    }
}

/// The name in a service's metadata.
#[must_use]
pub fn name_of(meta: &ServiceMeta) -> String {
    let len = meta.name.iter().position(|b| *b == 0).unwrap_or(NAME_LEN);
    String::from_utf8_lossy(&meta.name[..len]).into_owned()
}

/// The forward mode in a service's metadata.
#[must_use]
pub fn forward_of(meta: &ServiceMeta) -> Option<Forward> {
    match meta.forward {
        1 => Some(Forward::DsrL2),
        2 => Some(Forward::DsrIpip),
        _ => None,
    }
}

fn forward_code(forward: Forward) -> u8 {
    match forward {
        Forward::DsrL2 => 1,
        Forward::DsrIpip => 2,
    }
}

fn state_code(state: OperState) -> u8 {
    match state {
        OperState::Unknown => 0,
        OperState::Down => 1,
        OperState::Up => 2,
    }
}

fn admin_code(admin: AdminState) -> u8 {
    match admin {
        AdminState::Ready => 0,
        AdminState::Drain => 1,
        AdminState::Maint => 2,
    }
}
