//! The maps of `nat` and `full-nat` from user space.

pub mod sweep;

use aya::maps::{Array, Map, MapData, PerCpuArray, PerCpuValues};
use lb_common::layout::{FAMILY_V4, FAMILY_V6};
use lb_common::nat::{MAX_SNAT_ADDRESSES, NatCounters, NatEntry, NatKey, SnatPool, pool_index};

use super::flows::Table;
use super::pins::{self, Pinned};
use super::{Error, identity};
use crate::config::Snat;

/// The table of translated flows: two entries a flow.
pub type NatFlows = Table<NatKey, NatEntry>;

/// What translating needs.
pub struct NatMaps {
    pub flows: NatFlows,
    pools: Array<MapData, SnatPool>,
    counters: PerCpuArray<MapData, NatCounters>,
}

impl NatMaps {
    pub(super) fn open(take: &mut dyn FnMut(&Pinned) -> Result<Map, Error>) -> Result<Self, Error> {
        Ok(Self {
            flows: NatFlows::new(take(&pins::NAT_FLOWS)?)?,
            pools: take(&pins::SNAT_POOLS)?.try_into()?,
            counters: take(&pins::NAT_COUNTERS)?.try_into()?,
        })
    }

    /// How many flows there is room for.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.flows.capacity() / 2
    }

    /// Has new flows of `full-nat` take addresses and ports from here. Flows keep what they have.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn set_pools(&mut self, snat: &Snat) -> Result<(), Error> {
        for (family, v4) in [(FAMILY_V4, true), (FAMILY_V6, false)] {
            let wanted = pool(snat, v4);
            let index = pool_index(family);
            if self.pools.get(&index, 0)? != wanted {
                self.pools.set(index, wanted, 0)?;
            }
        }
        Ok(())
    }

    /// What all CPUs together counted for a service.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn counters(&self, service: u32) -> Result<NatCounters, Error> {
        let values: PerCpuValues<NatCounters> = self.counters.get(&service, 0)?;
        Ok(values.iter().fold(NatCounters::default(), add))
    }

    /// Begins the counts of a service anew: its index was another one's.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn clear_counters(&mut self, service: u32) -> Result<(), Error> {
        let cpus = aya::util::nr_cpus().map_err(|(path, source)| Error::io(path)(source))?;
        let zeros = PerCpuValues::try_from(vec![NatCounters::default(); cpus]);
        let zeros = zeros.map_err(|source| Error::Syscall {
            call: "per-CPU counters",
            source,
        })?;
        Ok(self.counters.set(service, zeros, 0)?)
    }
}

/// The pool of one family.
fn pool(snat: &Snat, v4: bool) -> SnatPool {
    let family = snat.addresses.iter().filter(|address| address.is_ipv4() == v4);
    let mut pool = SnatPool {
        first_port: u32::from(snat.first_port),
        ports: snat.ports(),
        ..SnatPool::default()
    };
    for (place, address) in pool.addresses.iter_mut().zip(family) {
        *place = identity::words(*address).0;
        pool.count += 1;
    }
    debug_assert!(pool.count as usize <= MAX_SNAT_ADDRESSES);
    pool
}

fn add(a: NatCounters, b: &NatCounters) -> NatCounters {
    let NatCounters {
        opened,
        replies,
        reply_bytes,
        refused_full,
        refused_ports,
        errors,
    } = a;
    NatCounters {
        opened: opened + b.opened,
        replies: replies + b.replies,
        reply_bytes: reply_bytes + b.reply_bytes,
        refused_full: refused_full + b.refused_full,
        refused_ports: refused_ports + b.refused_ports,
        errors: errors + b.errors,
    }
}
