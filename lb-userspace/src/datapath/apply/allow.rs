//! How many entries packets may make: the allowances in the flow table's control words, by service.
//!
//! Entries are made only where slots move, by SYNs, by other TCP segments and by UDP; each kind has a rate. None may
//! fill the table: half of it stays out of reach of SYNs, which anybody can forge, and each service with slots on the
//! move has its part of the rest. A refused entry breaks nothing, it makes a migration last longer.

use std::collections::BTreeMap;

use lb_common::layout::{FlowControl, FlowCounters};

/// Entries a second that each service may make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rates {
    pub syn_per_s: u64,
    /// By TCP segments that are no SYNs.
    pub data_per_s: u64,
    pub udp_per_s: u64,
}

impl Default for Rates {
    fn default() -> Self {
        Self {
            syn_per_s: 50_000,
            data_per_s: 50_000,
            udp_per_s: 20_000,
        }
    }
}

/// What was given last.
#[derive(Debug, Default)]
pub(super) struct Allowances {
    pub rates: Rates,
    pub renewed_ns: u64,
    /// What services had counted when the last scan was taken in, by index.
    pub inserted: BTreeMap<u32, FlowCounters>,
}

/// What the allowances of a service depend on.
#[derive(Clone, Copy, Debug)]
pub struct Demand {
    /// What is left of the last ones.
    pub left: FlowControl,
    /// Since those were given.
    pub elapsed_ns: u64,
    /// Entries that the table has room for.
    pub capacity: u64,
    /// Entries there are, of all services.
    pub entries: u64,
    /// Entries of this service.
    pub own: u64,
    /// Those of them that are unconfirmed.
    pub unconfirmed: u64,
    /// Services with slots on the move, at least 1.
    pub sharing: u64,
}

/// The next allowances: the rates for the time that passed, a second's worth at most, and never more than there is
/// room for.
#[must_use]
pub fn allowances(rates: Rates, demand: &Demand) -> FlowControl {
    let Demand {
        left,
        elapsed_ns,
        capacity,
        entries,
        own,
        unconfirmed,
        sharing,
    } = *demand;
    let quota = quota(capacity, sharing);
    let room = quota.saturating_sub(own).min(capacity.saturating_sub(entries));
    let next = |left: u64, per_s: u64, room: u64| {
        let earned = u128::from(per_s) * u128::from(elapsed_ns) / 1_000_000_000;
        let earned = u64::try_from(earned).unwrap_or(u64::MAX);
        left.saturating_add(earned).min(per_s).min(room)
    };
    FlowControl {
        refused_ns: left.refused_ns,
        syn_left: next(
            left.syn_left,
            rates.syn_per_s,
            room.min((quota / 2).saturating_sub(unconfirmed)),
        ),
        data_left: next(left.data_left, rates.data_per_s, room),
        udp_left: next(left.udp_left, rates.udp_per_s, room),
    }
}

/// Entries that one of `sharing` services may have.
#[must_use]
pub fn quota(capacity: u64, sharing: u64) -> u64 {
    // A part stays free for what the last scan has not seen.
    (capacity - capacity / 16) / sharing.max(1)
}
