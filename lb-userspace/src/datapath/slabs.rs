//! Where lookup tables lie: regions in slabs of one fixed size.
//!
//! A table in use is never patched; the next generation is built in another region and switched to by one
//! store. A region that was switched away from is used again once packets that read the old record are through: when a
//! wait that began later has ended ([`super::grace`]), or else after [`QUARANTINE_NS`] (a program runs to its end on its
//! CPU within microseconds).
//!
//! To make a slab takes the kernel about as long as to compute the largest table, so some regions are kept in reserve.

use std::time::Duration;

use lb_common::layout::{MAX_SLABS, SLAB_SLOTS, TableWord};

use crate::control::step::GRACE_NS;

/// How long a replaced table stays untouched, in nanoseconds.
pub const QUARANTINE_NS: u64 = GRACE_NS;
/// The same as a duration.
pub const QUARANTINE: Duration = Duration::from_nanos(QUARANTINE_NS);

/// Free, used and quarantined regions. Pure: time is an argument.
#[derive(Clone, Debug, Default)]
pub struct Allocator {
    /// For each slab its taken regions `(offset, size)`, by offset.
    slabs: Vec<Vec<(u32, u32)>>,
    quarantine: Vec<Resting>,
}

/// A region that packets may still read.
#[derive(Clone, Copy, Debug)]
struct Resting {
    since_ns: u64,
    /// The number of the wait after which none does.
    until: u64,
    table: TableWord,
}

impl Allocator {
    /// An allocator that knows of the tables in use, as the records name them.
    pub fn with(tables: impl IntoIterator<Item = TableWord>) -> Self {
        let mut allocator = Self::default();
        for table in tables {
            if table.size() != 0 {
                allocator.take(table);
            }
        }
        allocator
    }

    /// A region for a table of `size` slots; its slab may be one more than there were. `None` when all slabs are full.
    /// `ended`: the last wait for packets that ended.
    pub fn allocate(&mut self, size: u32, now_ns: u64, ended: u64) -> Option<TableWord> {
        self.settle(now_ns, ended);
        let table = match self.free(size) {
            Some(table) => table,
            None if self.slabs.len() < MAX_SLABS as usize => TableWord::new(self.slabs.len() as u32, 0, size),
            None => return None,
        };
        self.take(table);
        Some(table)
    }

    /// Gives a region back that no record names any longer; `until`: the number of a wait for packets that begins
    /// after this.
    pub fn release(&mut self, table: TableWord, now_ns: u64, until: u64) {
        if table.size() != 0 {
            self.quarantine.push(Resting {
                since_ns: now_ns,
                until,
                table: table.place(),
            });
        }
    }

    /// Adds a slab unless there is room for `count` tables of `size` slots besides those that are there, the regions
    /// that rest included. Says whether there is one more.
    pub fn reserve(&mut self, size: u32, count: usize) -> bool {
        let mut trial = self.clone();
        for resting in std::mem::take(&mut trial.quarantine) {
            trial.give_back(resting.table);
        }
        let enough = (0..count).all(|_| match trial.free(size) {
            Some(table) => {
                trial.take(table);
                true
            }
            None => false,
        });
        let grows = !enough && self.slabs.len() < MAX_SLABS as usize;
        if grows {
            self.slabs.push(Vec::new());
        }
        grows
    }

    fn free(&self, size: u32) -> Option<TableWord> {
        self.slabs.iter().enumerate().find_map(|(slab, taken)| {
            gap(taken, size).map(|offset| TableWord::new(slab as u32, offset, size))
        })
    }

    /// How many slabs there must be.
    #[must_use]
    pub fn slabs(&self) -> u32 {
        self.slabs.len() as u32
    }

    fn settle(&mut self, now_ns: u64, ended: u64) {
        let through = |resting: &mut Resting| {
            ended >= resting.until || now_ns.saturating_sub(resting.since_ns) >= QUARANTINE_NS
        };
        let through: Vec<Resting> = self.quarantine.extract_if(.., through).collect();
        for resting in through {
            self.give_back(resting.table);
        }
    }

    fn give_back(&mut self, table: TableWord) {
        self.slabs[table.slab() as usize].retain(|(offset, _)| *offset != table.offset());
    }

    fn take(&mut self, table: TableWord) {
        let slab = table.slab() as usize;
        if self.slabs.len() <= slab {
            self.slabs.resize_with(slab + 1, Vec::new);
        }
        let taken = &mut self.slabs[slab];
        let at = taken.partition_point(|(offset, _)| *offset < table.offset());
        taken.insert(at, (table.offset(), table.size()));
    }
}

/// The first gap of `size` slots between the taken regions.
fn gap(taken: &[(u32, u32)], size: u32) -> Option<u32> {
    let mut start = 0;
    for (offset, length) in taken {
        // Regions lie side by side, unless damaged pins say otherwise.
        if offset.saturating_sub(start) >= size {
            return Some(start);
        }
        start = start.max(offset + length);
    }
    (SLAB_SLOTS - start >= size).then_some(start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_released_region_waits_for_its_quarantine() {
        let start = 7;
        let mut allocator = Allocator::default();
        let first = allocator.allocate(131_071, start, 0).unwrap();
        allocator.release(first, start, 1);
        let second = allocator.allocate(131_071, start, 0).unwrap();
        assert_eq!((first.slab(), second.slab()), (0, 1));
        let third = allocator.allocate(131_071, start + QUARANTINE_NS, 0).unwrap();
        assert_eq!(third.slab(), 0);
    }

    #[test]
    fn or_for_the_end_of_a_wait_that_began_later() {
        let mut allocator = Allocator::default();
        let first = allocator.allocate(131_071, 0, 0).unwrap();
        allocator.release(first, 0, 6);
        let slab = |allocator: &mut Allocator, ended| allocator.allocate(131_071, 0, ended).unwrap().slab();
        assert_eq!(slab(&mut allocator, 5), 1);
        assert_eq!(slab(&mut allocator, 6), 0);
    }

    #[test]
    fn a_reserve_counts_what_rests() {
        let mut allocator = Allocator::default();
        let first = allocator.allocate(131_071, 0, 0).unwrap();
        assert!(allocator.reserve(131_071, 2) && allocator.reserve(131_071, 2));
        assert!(!allocator.reserve(131_071, 2));
        assert_eq!(allocator.slabs(), 3);
        allocator.release(first, 0, 1);
        assert!(!allocator.reserve(131_071, 3));
        assert!(!allocator.reserve(16_381, 3 * 8) && allocator.reserve(16_381, 3 * 8 + 1));
    }

    proptest! {
        #[test]
        fn regions_never_overlap(steps in proptest::collection::vec((0..4_usize, any::<prop::sample::Index>(), 0..1500_u64, 0..3_u64), 1..200)) {
            const SIZES: [u32; 4] = [251, 4093, 65521, 131_071];
            let (mut now, mut ended) = (0, 0);
            let mut allocator = Allocator::default();
            let mut held: Vec<TableWord> = Vec::new();
            let mut resting: Vec<(u64, u64, TableWord)> = Vec::new();
            for (size, pick, millis, waits) in steps {
                now += millis * 1_000_000;
                ended += waits / 2;
                if held.len() > 20 {
                    let table = held.swap_remove(pick.index(held.len()));
                    allocator.release(table, now, ended + 2);
                    resting.push((now, ended + 2, table));
                }
                let table = allocator.allocate(SIZES[size], now, ended).unwrap();
                prop_assert!(table.offset() + table.size() <= SLAB_SLOTS);
                let blocked = resting
                    .iter()
                    .filter(|(since, until, _)| now - *since < QUARANTINE_NS && ended < *until)
                    .map(|(.., table)| table);
                for other in held.iter().chain(blocked) {
                    let apart = table.slab() != other.slab()
                        || table.offset() + table.size() <= other.offset()
                        || other.offset() + other.size() <= table.offset();
                    prop_assert!(apart, "{table:?} {other:?}");
                }
                held.push(table);
            }
            let again = Allocator::with(held.iter().copied());
            prop_assert!(again.slabs() <= allocator.slabs());
        }
    }
}
