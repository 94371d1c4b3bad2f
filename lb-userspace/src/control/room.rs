//! How many slots may be opened at once for moves that can wait: as many as the flow table has room for.
//!
//! An open slot costs an entry for every flow of it that is seen during its window. How many that will be shows only
//! as time goes on: the first slots are opened on a guess, the others by what the open ones have cost. A wrong guess
//! breaks nothing: a table that is full refuses entries, and the windows last longer.

/// What the room depends on.
#[derive(Clone, Copy, Debug)]
pub struct Demand {
    /// Entries that this service may have.
    pub quota: u64,
    /// Entries that it has.
    pub own: u64,
    /// Slots that are open.
    pub open: u64,
    /// The entries of the open slots were counted after they had been open for a while.
    pub measured: bool,
}

/// Entries an open slot is thought to need before any was seen.
const GUESS: u64 = 4;
/// Fewer open slots than these say nothing about the others.
const SAMPLE: u64 = 64;

/// How many slots may be opened. One always may where none is open, so that every migration goes on.
#[must_use]
pub fn room(demand: &Demand) -> usize {
    let Demand {
        quota,
        own,
        open,
        measured,
    } = *demand;
    // In sixteenths of an entry. Twice what was seen: flows that were idle until now will come.
    let each = if measured && open >= SAMPLE {
        (own * 16 * 2 / open).max(4)
    } else {
        GUESS * 16
    };
    let promised = (open * each).max(own * 16);
    let free = (quota * 16).saturating_sub(promised) / each;
    let free = usize::try_from(free).unwrap_or(usize::MAX);
    if open == 0 { free.max(1) } else { free }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_large_table_lets_everything_move_at_once() {
        let demand = Demand {
            quota: 245_760,
            own: 0,
            open: 0,
            measured: false,
        };
        assert_eq!(room(&demand), 61_440);
    }

    #[test]
    fn what_was_seen_takes_the_place_of_the_guess() {
        let demand = |own| Demand {
            quota: 10_000,
            own,
            open: 100,
            measured: true,
        };
        // 20 entries a slot, thought to become 40.
        assert_eq!(room(&demand(2_000)), 150);
        assert_eq!(room(&demand(10_000)), 0);
        // Hardly any: at least a quarter of an entry.
        assert_eq!(room(&demand(0)), 39_900);
    }

    proptest! {
        #[test]
        fn a_migration_never_stands_still(quota in 0..1_u64 << 32, own in 0..1_u64 << 32, measured: bool) {
            let demand = Demand { quota, own, open: 0, measured };
            prop_assert!(room(&demand) >= 1);
        }
    }
}
