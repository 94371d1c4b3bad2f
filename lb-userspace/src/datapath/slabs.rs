//! Where lookup tables lie: regions in slabs of one fixed size.
//!
//! A table in use is never patched; the next generation is built in another region and switched to by one
//! store. A region that was switched away from is used again only after [`QUARANTINE_NS`]: a packet that read
//! the old record is long done by then (a program runs to its end on its CPU within microseconds).

use std::time::Duration;

use lb_common::layout::{MAX_SLABS, SLAB_SLOTS, TableWord};

use crate::control::step::GRACE_NS;

/// How long a replaced table stays untouched, in nanoseconds.
pub const QUARANTINE_NS: u64 = GRACE_NS;
/// The same as a duration.
pub const QUARANTINE: Duration = Duration::from_nanos(QUARANTINE_NS);

/// Free, used and quarantined regions. Pure: time is an argument.
#[derive(Debug, Default)]
pub struct Allocator {
    /// For each slab its taken regions `(offset, size)`, by offset.
    slabs: Vec<Vec<(u32, u32)>>,
    quarantine: Vec<(u64, TableWord)>,
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

    /// A region for a table of `size` slots, and whether its slab is one more than there were. `None` when
    /// all slabs are full.
    pub fn allocate(&mut self, size: u32, now_ns: u64) -> Option<TableWord> {
        self.settle(now_ns);
        let found = self.slabs.iter().enumerate().find_map(|(slab, taken)| {
            gap(taken, size).map(|offset| TableWord::new(slab as u32, offset, size))
        });
        let table = match found {
            Some(table) => table,
            None if self.slabs.len() < MAX_SLABS as usize => TableWord::new(self.slabs.len() as u32, 0, size),
            None => return None,
        };
        self.take(table);
        Some(table)
    }

    /// Gives a region back that no record names any longer.
    pub fn release(&mut self, table: TableWord, now_ns: u64) {
        if table.size() != 0 {
            self.quarantine.push((now_ns, table.place()));
        }
    }

    /// How many slabs there must be.
    #[must_use]
    pub fn slabs(&self) -> u32 {
        self.slabs.len() as u32
    }

    fn settle(&mut self, now_ns: u64) {
        let slabs = &mut self.slabs;
        self.quarantine.retain(|(since, table)| {
            let waiting = now_ns.saturating_sub(*since) < QUARANTINE_NS;
            if !waiting {
                slabs[table.slab() as usize].retain(|(offset, _)| *offset != table.offset());
            }
            waiting
        });
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
        let first = allocator.allocate(131_071, start).unwrap();
        allocator.release(first, start);
        let second = allocator.allocate(131_071, start).unwrap();
        assert_eq!((first.slab(), second.slab()), (0, 1));
        let third = allocator.allocate(131_071, start + QUARANTINE_NS).unwrap();
        assert_eq!(third.slab(), 0);
    }

    proptest! {
        #[test]
        fn regions_never_overlap(steps in proptest::collection::vec((0..4_usize, any::<prop::sample::Index>(), 0..1500_u64), 1..200)) {
            const SIZES: [u32; 4] = [251, 4093, 65521, 131_071];
            let mut now = 0;
            let mut allocator = Allocator::default();
            let mut held: Vec<TableWord> = Vec::new();
            let mut resting: Vec<(u64, TableWord)> = Vec::new();
            for (size, pick, millis) in steps {
                now += millis * 1_000_000;
                if held.len() > 20 {
                    let table = held.swap_remove(pick.index(held.len()));
                    allocator.release(table, now);
                    resting.push((now, table));
                }
                let table = allocator.allocate(SIZES[size], now).unwrap();
                prop_assert!(table.offset() + table.size() <= SLAB_SLOTS);
                let blocked = resting.iter().filter(|(t, _)| now - *t < QUARANTINE_NS).map(|(_, table)| table);
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
