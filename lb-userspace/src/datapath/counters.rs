//! The packet counters by themselves, for those who read them beside the agent's loop.

use aya::maps::{Map, MapData, PerCpuArray, PerCpuValues};
use lb_common::layout::Counters;
use lb_common::reason::Reason;

use super::Error;
use super::maps::add;
use super::pins::{self, PinDir, Pinned};

/// The pinned counters, by backend and by reason.
pub struct CounterMaps {
    backends: PerCpuArray<MapData, Counters>,
    reasons: PerCpuArray<MapData, u64>,
}

impl CounterMaps {
    /// # Errors
    /// [`Error::Map`] where they are not pinned.
    pub fn open(pins: &PinDir) -> Result<Self, Error> {
        let open = |pin: &Pinned| -> Result<Map, Error> {
            Ok(Map::from_map_data(MapData::from_pin(pins.path(pin.pin))?)?)
        };
        Ok(Self {
            backends: open(&pins::COUNTERS)?.try_into()?,
            reasons: open(&pins::REASONS)?.try_into()?,
        })
    }

    /// What all CPUs together counted for the backend with an index.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn backend(&self, index: u32) -> Result<Counters, Error> {
        let values: PerCpuValues<Counters> = self.backends.get(&index, 0)?;
        Ok(values.iter().fold(Counters::default(), |sum, cpu| add(&sum, cpu)))
    }

    /// Packets by reason, but for those that were forwarded.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn reasons(&self) -> Result<Vec<(Reason, u64)>, Error> {
        Reason::ALL
            .iter()
            .map(|reason| Ok((*reason, self.reasons.get(&(*reason as u32), 0)?.iter().sum())))
            .collect()
    }
}
