//! Every write that a change makes, one function each: an agent may die between any two of them, and a test does.

use aya::maps::MapError;
use aya::maps::xdp::XdpMapError;
use lb_common::client::Persistence;
use lb_common::layout::{
    self, Backend as Record, BackendMeta, Counters, FlowControl, Guard, ServiceMeta, Slot, TableWord, Tags,
};
use lb_common::quic::{Lengths, ServerKey};

use super::Dataplane;
use crate::config::AccessList;
use crate::datapath::{Error, maps};

/// How many more writes may be made; for tests.
#[derive(Debug, Default)]
pub(super) struct Budget {
    #[cfg(debug_assertions)]
    left: Option<u32>,
}

impl Dataplane {
    /// From here on `writes` more writes are made, and the next one fails as if the agent had died before it. Only
    /// in builds with debug assertions, for tests.
    #[cfg(debug_assertions)]
    pub fn die_after(&mut self, writes: u32) {
        self.budget.left = Some(writes);
    }

    #[cfg(debug_assertions)]
    fn may_write(&mut self) -> Result<(), Error> {
        match &mut self.budget.left {
            None => Ok(()),
            Some(0) => Err(Error::Syscall {
                call: "a write of an agent that died",
                source: std::io::ErrorKind::Interrupted.into(),
            }),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }

    #[cfg(not(debug_assertions))]
    #[expect(clippy::unnecessary_wraps, reason = "in builds for tests it fails on purpose")]
    fn may_write(&mut self) -> Result<(), Error> {
        Ok(())
    }

    pub(super) fn put_egress(&mut self, ifindex: u32) -> Result<Result<(), XdpMapError>, Error> {
        self.may_write()?;
        Ok(self.maps.egress.insert(ifindex, ifindex, None, 0))
    }

    pub(super) fn remove_egress(&mut self, ifindex: u32) -> Result<(), Error> {
        self.may_write()?;
        absent_is_done(self.maps.egress.remove(ifindex))
    }

    pub(super) fn put_record(&mut self, index: u32, record: Record) -> Result<(), Error> {
        self.may_write()?;
        self.maps.backends.set(index, &record);
        self.maps.flows.renew();
        self.records.insert(index, record);
        Ok(())
    }

    pub(super) fn put_tags(&mut self, index: u32, tags: Tags) -> Result<(), Error> {
        self.may_write()?;
        self.maps.tags.set(index, tags, 0)?;
        self.tags.insert(index, tags);
        Ok(())
    }

    pub(super) fn put_backend_meta(&mut self, index: u32, meta: BackendMeta) -> Result<(), Error> {
        self.may_write()?;
        self.maps.backend_meta.set(index, meta, 0)?;
        self.metas.insert(index, meta);
        Ok(())
    }

    /// How a service keeps its clients.
    pub(super) fn put_persistence(&mut self, index: u32, settings: Persistence) -> Result<(), Error> {
        self.may_write()?;
        self.maps.clients.set(index, settings);
        Ok(())
    }

    /// Counts of a backend begin anew.
    pub(super) fn clear_counters(&mut self, index: u32) -> Result<(), Error> {
        self.may_write()?;
        Ok(self.maps.counters.set(index, maps::zeros::<Counters>()?, 0)?)
    }

    pub(super) fn put_service_meta(&mut self, index: u32, meta: ServiceMeta) -> Result<(), Error> {
        self.may_write()?;
        Ok(self.maps.service_meta.set(index, meta, 0)?)
    }

    /// What was noted of refused entries, and counted, was of another service that had the index.
    pub(super) fn clear_flow_counts(&mut self, index: u32) -> Result<(), Error> {
        self.may_write()?;
        self.maps.flow_control.set(index, FlowControl::default());
        self.may_write()?;
        self.maps.clear_flow_counters(index)?;
        self.may_write()?;
        self.maps.guards.clear_counters(index)?;
        self.may_write()?;
        self.maps.nat.clear_counters(index)?;
        self.may_write()?;
        self.maps.quic.clear_counters(index)
    }

    pub(super) fn put_list(&mut self, index: u32, list: &AccessList) -> Result<(), Error> {
        self.may_write()?;
        self.maps.guards.put_list(index, list)
    }

    pub(super) fn drop_list(&mut self, index: u32) -> Result<(), Error> {
        self.may_write()?;
        self.maps.guards.drop_list(index)
    }

    pub(super) fn put_guard(&mut self, index: u32, guard: Guard) -> Result<(), Error> {
        self.may_write()?;
        self.maps.guards.set(index, &guard);
        Ok(())
    }

    pub(super) fn put_table(&mut self, index: u32, table: TableWord) -> Result<(), Error> {
        self.may_write()?;
        self.maps.records.set_table(index, table);
        Ok(())
    }

    pub(super) fn put_before(&mut self, index: u32, before: TableWord) -> Result<(), Error> {
        self.may_write()?;
        self.maps.records.set_before(index, before);
        Ok(())
    }

    /// Fills a region that no record names.
    pub(super) fn put_slots(&mut self, table: TableWord, slots: &[Slot]) -> Result<(), Error> {
        self.may_write()?;
        self.maps.slabs.grow(self.allocator.slabs())?;
        self.maps.slabs.write(table, slots.iter().copied());
        Ok(())
    }

    pub(super) fn put_key(&mut self, key: layout::ServiceKey, value: u32) -> Result<(), Error> {
        self.may_write()?;
        self.maps.services.note(key, value)?;
        self.may_write()?;
        self.maps.services.show(&key, value);
        Ok(())
    }

    /// A block of ports of a service of a range.
    pub(super) fn put_block(&mut self, block: layout::PortPrefix, index: u32) -> Result<(), Error> {
        self.may_write()?;
        Ok(self.maps.ranges.insert(block, index)?)
    }

    pub(super) fn remove_block(&mut self, block: &layout::PortPrefix) -> Result<(), Error> {
        self.may_write()?;
        Ok(self.maps.ranges.remove(block)?)
    }

    /// What an id of QUIC names.
    pub(super) fn put_quic_id(&mut self, key: ServerKey, backend: u32) -> Result<(), Error> {
        self.may_write()?;
        Ok(self.maps.quic.insert(key, backend)?)
    }

    pub(super) fn remove_quic_id(&mut self, key: &ServerKey) -> Result<(), Error> {
        self.may_write()?;
        Ok(self.maps.quic.remove(key)?)
    }

    pub(super) fn put_quic_lengths(&mut self, service: u32, lengths: Lengths) -> Result<(), Error> {
        self.may_write()?;
        self.maps.quic.set_lengths(service, lengths);
        Ok(())
    }

    /// Takes a key out of the map. It may be missing already: the last agent died while it took the service
    /// away, or before it made it visible.
    pub(super) fn remove_key(&mut self, key: &layout::ServiceKey) -> Result<(), Error> {
        self.may_write()?;
        self.maps.services.shut(key);
        self.may_write()?;
        absent_is_done(self.maps.services.forget(key))
    }
}

fn absent_is_done(result: Result<(), MapError>) -> Result<(), Error> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => Ok(result?),
    }
}
