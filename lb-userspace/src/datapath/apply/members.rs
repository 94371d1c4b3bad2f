//! Backends: their records and indices ([`crate::control::indices`]).

use std::collections::{BTreeMap, HashSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use lb_common::layout::{Backend as Record, Tags};
use lb_common::rule::Standing;

use super::{Dataplane, meta};
use crate::control::{DesiredBackend, DesiredService, OldFlows};
use crate::datapath::Error;
use crate::datapath::clock::Clock;
use crate::datapath::maps;
use crate::model::{BackendId, ServiceKey};

/// The program's times of packets are late by up to a tick of the kernel (10 ms at most): a packet that came after a
/// backend's return may bear one from before it. While the backend was gone no entry of its flows was touched, so what is
/// older than its return by so much is what was there before it went.
const LATE_NS: u64 = 50_000_000;

/// What a backend still takes.
pub(super) fn standing(takes_new: bool, backend: &DesiredBackend) -> Standing {
    match backend.old_flows {
        _ if takes_new => Standing::Serves,
        OldFlows::Keep => Standing::Serves,
        OldFlows::Move => Standing::Gone,
        OldFlows::Reset => Standing::Resets,
    }
}

impl Dataplane {
    /// Writes records of backends that are new, serve again, or are reached another way. One that is to stop serving
    /// goes on until the tables lead nobody there. Gives back what each takes afterwards, by index.
    pub(super) fn write_backends(
        &mut self,
        service: &DesiredService,
        clock: Clock<'_>,
    ) -> Result<BTreeMap<u32, Standing>, Error> {
        let mut standings = BTreeMap::new();
        let candidates = service.candidates.iter();
        let owners: HashSet<_> = candidates
            .map(|candidate| (candidate.address, candidate.port))
            .collect();
        for (id, backend) in &service.backends {
            let index = match self.backends.get(id) {
                Some(index) => *index,
                None => {
                    let index = self.fresh_index(id, clock)?;
                    self.backends.insert(*id, index);
                    index
                }
            };
            self.write_backend_meta(id, index, backend)?;
            let takes_new = owners.contains(&(id.address, id.port));
            let standing = standing(takes_new, backend);
            standings.insert(index, standing);
            let before = self
                .records
                .get(&index)
                .map(|record| Standing::from_bits(record.standing));
            let now = match (before, standing) {
                (Some(before), Standing::Gone | Standing::Resets) => before,
                _ => standing,
            };
            if before == Some(Standing::Gone) && now != Standing::Gone {
                // Entries from before that are not its flows any longer.
                self.dead_before.insert(index, clock().saturating_sub(LATE_NS));
            }
            self.write_tags(index, backend.tags)?;
            let closed = if takes_new { 0 } else { Standing::CLOSED };
            self.write_record(index, backend.record, now.bits() | closed)?;
        }
        Ok(standings)
    }

    /// Ends what the tables lead nobody to any longer.
    pub(super) fn write_standings(&mut self, standings: &BTreeMap<u32, Standing>) -> Result<(), Error> {
        for (index, standing) in standings {
            if let Some(record) = self.records.get(index).copied() {
                let closed = record.standing & Standing::CLOSED;
                self.write_record(*index, record, standing.bits() | closed)?;
            }
        }
        Ok(())
    }

    fn write_record(&mut self, index: u32, record: Record, standing: u8) -> Result<(), Error> {
        let record = Record { standing, ..record };
        if self.records.get(&index) != Some(&record) {
            self.put_record(index, record)?;
        }
        Ok(())
    }

    /// An index keeps the tags of whoever had it before; without VLANs all of them are none.
    fn write_tags(&mut self, index: u32, tags: Tags) -> Result<(), Error> {
        let known = match self.tags.get(&index) {
            Some(known) => *known,
            None => self.maps.tags.get(&index, 0)?,
        };
        if known == tags {
            self.tags.insert(index, tags);
            return Ok(());
        }
        self.put_tags(index, tags)
    }

    fn write_backend_meta(
        &mut self,
        id: &BackendId,
        index: u32,
        backend: &DesiredBackend,
    ) -> Result<(), Error> {
        self.maps.flow_cache.set_weight(index, backend.effective_weight());
        let service = self.services[&id.service].index;
        let before = self.metas.get(&index);
        let known = before.map_or((0, 0), |meta| (meta.check_code, meta.latency_us));
        let check = self.checks.get(id).copied().unwrap_or(known);
        let meta = meta::of_backend(id, service, backend, check);
        if before != Some(&meta) {
            self.put_backend_meta(index, meta)?;
        }
        Ok(())
    }

    /// Keeps the last check result of a backend beside its states, for `status` without an agent.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn note_check(&mut self, id: &BackendId, code: u8, latency_us: u32) -> Result<(), Error> {
        self.checks.insert(*id, (code, latency_us));
        let Some(index) = self.backends.get(id).copied() else {
            return Ok(());
        };
        let Some(mut meta) = self.metas.get(&index).copied() else {
            return Ok(());
        };
        meta.check_code = code;
        meta.latency_us = latency_us;
        self.put_backend_meta(index, meta)
    }

    /// Takes away the backends of a service that are not wanted any longer; `None` wants none.
    pub(super) fn remove_backends(
        &mut self,
        key: &ServiceKey,
        wanted: Option<&DesiredService>,
        clock: Clock<'_>,
    ) -> Result<(), Error> {
        let gone: Vec<_> = self
            .backends
            .range(every_backend_of(*key))
            .filter(|(id, _)| !wanted.is_some_and(|s| s.backends.contains_key(id)))
            .map(|(id, index)| (*id, *index))
            .collect();
        for (id, index) in gone {
            if let Some(record) = self.records.get(&index).copied() {
                self.write_record(index, record, Standing::Gone.bits())?;
            }
            let counted = self.maps.backend_counters(index)?;
            if let Some(installed) = self.services.get_mut(key) {
                installed.retired = maps::add(&installed.retired, &counted);
                let index = installed.index;
                if let Some(meta) = &mut installed.meta {
                    meta.retired = installed.retired;
                    let meta = *meta;
                    self.put_service_meta(index, meta)?;
                }
            }
            if let Some(mut meta) = self.metas.get(&index).copied() {
                meta.in_use = 0;
                self.put_backend_meta(index, meta)?;
            }
            self.backends.remove(&id);
            self.checks.remove(&id);
            self.records.remove(&index);
            self.tags.remove(&index);
            self.metas.remove(&index);
            self.backend_indices.rest(index, clock(), Some(id));
        }
        Ok(())
    }

    /// A free index, with empty counters and a record that nothing can be sent to.
    fn fresh_index(&mut self, id: &BackendId, clock: Clock<'_>) -> Result<u32, Error> {
        let taken = self.backend_indices.take(id).ok_or(Error::Full {
            what: "backends",
            room: self.maps.backends.room().saturating_sub(1),
            needed: self.backends.len() + self.backend_indices.resting() + 1,
            key: "max_backends",
        })?;
        let index = taken.index;
        if taken.again {
            self.dead_before.insert(index, clock().saturating_sub(LATE_NS));
            self.forget_flows(|backend| backend == index);
        }
        self.clear_counters(index)?;
        self.maps.flow_cache.clear_load(index);
        self.put_record(index, Record::UNRESOLVED)?;
        Ok(index)
    }

    /// Gives back the indices that nothing names any longer.
    pub(super) fn wake(&mut self, now_ns: u64) {
        let scan = &self.scan;
        if self.backend_indices.may_wake(now_ns, scan.begun_ns) {
            let named: Vec<_> = self.services.values().map(|s| s.in_force.named()).collect();
            let held = |index| scan.has_backend(index) || named.iter().any(|named| named.contains(&index));
            let woken = self.backend_indices.wake(now_ns, scan.begun_ns, held);
            self.dead_before.retain(|index, _| !woken.contains(index));
            if !woken.is_empty() {
                self.forget_flows(|backend| woken.contains(&backend));
            }
        }
        self.service_indices
            .wake(now_ns, scan.begun_ns, |index| scan.has_service(index));
    }

    /// Forgets what caches say of backends that are gone, before others get their indices.
    fn forget_flows(&self, gone: impl Fn(u32) -> bool + Copy) {
        self.maps.flow_cache.forget(gone);
        self.maps.clients.forget(gone);
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
