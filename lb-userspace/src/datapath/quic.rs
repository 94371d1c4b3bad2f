//! The maps of QUIC: which backend a server id names, how long server ids are, and what was counted.

use std::collections::BTreeMap;

use aya::maps::{HashMap, Map, MapData, MapError, PerCpuArray};
use lb_common::quic::{Lengths, QuicCounters, ServerKey};

use super::mmap::Words;
use super::{Error, maps};

/// The maps, and what is in them.
pub struct QuicMaps {
    servers: HashMap<MapData, ServerKey, u32>,
    written: BTreeMap<ServerKey, u32>,
    lengths: Words,
    counters: PerCpuArray<MapData, QuicCounters>,
}

impl QuicMaps {
    pub(super) fn open(servers: Map, lengths: &Map, counters: Map) -> Result<Self, Error> {
        let servers: HashMap<_, ServerKey, u32> = servers.try_into()?;
        let written = servers.iter().collect::<Result<_, _>>()?;
        let data = maps::data_of(lengths)?;
        let words = data.info()?.max_entries() as usize;
        let lengths = Words::map(data.fd(), words).map_err(|source| Error::Syscall {
            call: "mmap of the lengths of QUIC ids",
            source,
        })?;
        Ok(Self {
            servers,
            written,
            lengths,
            counters: counters.try_into()?,
        })
    }

    /// The index of the backend behind each id.
    #[must_use]
    pub fn servers(&self) -> &BTreeMap<ServerKey, u32> {
        &self.written
    }

    /// How long the ids of a service are.
    #[must_use]
    pub fn lengths(&self, service: u32) -> Lengths {
        Lengths(self.lengths.get(service as usize))
    }

    pub(super) fn set_lengths(&self, service: u32, lengths: Lengths) {
        self.lengths.set(service as usize, lengths.0);
    }

    /// # Errors
    /// What the kernel says, a full map among it.
    pub(super) fn insert(&mut self, key: ServerKey, backend: u32) -> Result<(), MapError> {
        self.servers.insert(key, backend, 0)?;
        self.written.insert(key, backend);
        Ok(())
    }

    /// # Errors
    /// What the kernel says.
    pub(super) fn remove(&mut self, key: &ServerKey) -> Result<(), MapError> {
        match self.servers.remove(key) {
            Err(error) if !matches!(error, MapError::KeyNotFound) => Err(error),
            _ => {
                self.written.remove(key);
                Ok(())
            }
        }
    }

    /// What all CPUs together counted for a service.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn counters(&self, service: u32) -> Result<QuicCounters, Error> {
        let values = self.counters.get(&service, 0)?;
        Ok(values.iter().fold(QuicCounters::default(), |sum, cpu| {
            let QuicCounters {
                by_id,
                unroutable,
                gone,
            } = *cpu;
            QuicCounters {
                by_id: sum.by_id + by_id,
                unroutable: sum.unroutable + unroutable,
                gone: sum.gone + gone,
            }
        }))
    }

    /// Begins the counts of a service anew: its index was another one's.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub(super) fn clear_counters(&mut self, service: u32) -> Result<(), Error> {
        Ok(self.counters.set(service, maps::zeros()?, 0)?)
    }
}
