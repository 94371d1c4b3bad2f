//! Signs that a backend does not answer ([`lb_common::suspect`]), as the program notes them.

use std::os::fd::AsFd;

use aya::maps::{Map, MapData, PerCpuArray};
use lb_common::suspect::Syns;

use super::Error;
use super::maps;
use super::mmap::Words;

/// When signs came, memory-mapped, and how many.
pub struct Signs {
    counts: PerCpuArray<MapData, Syns>,
    at_ns: Words,
}

/// SYNs to a backend that were signs, on all CPUs together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SignCounts {
    /// The same SYN had been sent to it before.
    pub again: u64,
    /// Nothing but SYNs had been sent to it for a while.
    pub stalled: u64,
}

impl Signs {
    pub(super) fn new(counts: Map, at: &Map) -> Result<Self, Error> {
        let data = maps::data_of(at)?;
        let words = data.info()?.max_entries() as usize;
        let at_ns = Words::map(data.fd().as_fd(), words).map_err(|source| Error::Syscall {
            call: "mmap of the signs",
            source,
        })?;
        Ok(Self {
            counts: counts.try_into()?,
            at_ns,
        })
    }

    /// Hands the backends of which a sign came that `known` does not know of to `take`, as their index, until it
    /// wants no more. `known`: the time of the last sign by index; where it is empty, those of before are known.
    pub fn fresh(&self, known: &mut Vec<u64>, mut take: impl FnMut(u32) -> bool) {
        if known.is_empty() {
            known.extend((0..self.at_ns.len()).map(|index| self.at_ns.get(index)));
            return;
        }
        for (index, known_ns) in known.iter_mut().enumerate() {
            let at_ns = self.at_ns.get(index);
            if at_ns == *known_ns {
                continue;
            }
            *known_ns = at_ns;
            if !take(index as u32) {
                return;
            }
        }
    }

    /// How many signs there were of the backend with an index.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn counts(&self, index: u32) -> Result<SignCounts, Error> {
        let cpus = self.counts.get(&index, 0)?;
        let sum = |of: fn(&Syns) -> u64| cpus.iter().map(of).sum();
        Ok(SignCounts {
            again: sum(|cpu| cpu.again),
            stalled: sum(|cpu| cpu.stalled),
        })
    }
}
