//! Indices of backends and services: which are free, and when one that was somebody's may be another's. Pure.
//!
//! ```text
//!   free ── take ──▶ taken ── rest ──▶ resting ── wake ──▶ free
//!                      ▲                  │
//!                      └── take, by whom  ┘
//!                          it was before
//! ```
//!
//! An index is given out again only when nothing can name it any longer: no slot of a table does, and a full scan of
//! the flow table that began [`GRACE_NS`] after it was given back found no entry that does. Fragments name a backend
//! by its fingerprint as well, and follow no other.

use std::collections::{BTreeMap, BTreeSet};

use super::step::GRACE_NS;

/// An index that nobody has, but something may still name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Resting<Id> {
    since_ns: u64,
    /// Whose it was, where that is known.
    id: Option<Id>,
}

/// An index that was given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    pub index: u32,
    /// It was the same one's before: what names it is not of today.
    pub again: bool,
}

/// Indices that nobody has.
#[derive(Clone, Debug)]
pub struct Indices<Id> {
    free: BTreeSet<u32>,
    resting: BTreeMap<u32, Resting<Id>>,
    /// The index that rests for whom it was: there may be tens of thousands.
    remembered: BTreeMap<Id, u32>,
}

impl<Id> Default for Indices<Id> {
    fn default() -> Self {
        Self {
            free: BTreeSet::new(),
            resting: BTreeMap::new(),
            remembered: BTreeMap::new(),
        }
    }
}

impl<Id: Copy + Ord> Indices<Id> {
    /// Adds an index that nothing names.
    pub fn add(&mut self, index: u32) {
        self.free.insert(index);
    }

    /// Gives an index back: nobody has it since `since_ns` (`CLOCK_MONOTONIC`). `id`: whose it was, if it is to get
    /// the same one when it comes back meanwhile.
    pub fn rest(&mut self, index: u32, since_ns: u64, id: Option<Id>) {
        self.resting.insert(index, Resting { since_ns, id });
        if let Some(id) = id {
            self.remembered.insert(id, index);
        }
    }

    /// An index for `id`: the one it had, where that still rests, else the lowest free one. `None`: there is none.
    pub fn take(&mut self, id: &Id) -> Option<Taken> {
        if let Some(index) = self.remembered.remove(id) {
            self.resting.remove(&index);
            return Some(Taken { index, again: true });
        }
        let index = self.free.pop_first()?;
        Some(Taken { index, again: false })
    }

    /// Frees what nothing names any longer, and gives back what that was. `scan_ns`: when the last full scan of the
    /// flow table began; 0: there was none. `held`: whether a slot, or an entry that it found, names an index.
    pub fn wake(&mut self, now_ns: u64, scan_ns: u64, held: impl Fn(u32) -> bool) -> BTreeSet<u32> {
        let mut woken = BTreeSet::new();
        self.resting.retain(|index, resting| {
            let sure_ns = resting.since_ns.saturating_add(GRACE_NS);
            let rests = now_ns < sure_ns || scan_ns < sure_ns || held(*index);
            if !rests {
                woken.insert(*index);
                if let Some(id) = &resting.id {
                    self.remembered.remove(id);
                }
            }
            rests
        });
        self.free.extend(&woken);
        woken
    }

    /// Whether some index rests and has been scanned for.
    #[must_use]
    pub fn may_wake(&self, now_ns: u64, scan_ns: u64) -> bool {
        let sure_ns = |resting: &Resting<Id>| resting.since_ns.saturating_add(GRACE_NS);
        let mut resting = self.resting.values();
        resting.any(|resting| now_ns.min(scan_ns) >= sure_ns(resting))
    }

    /// Whether some index waits for a scan later than this one.
    #[must_use]
    pub fn unscanned(&self, scan_ns: u64) -> bool {
        let mut resting = self.resting.values();
        resting.any(|resting| scan_ns < resting.since_ns.saturating_add(GRACE_NS))
    }

    /// How many indices are free.
    #[must_use]
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// How many rest.
    #[must_use]
    pub fn resting(&self) -> usize {
        self.resting.len()
    }

    /// Whether an index rests whose owner is known to have been this one.
    #[must_use]
    pub fn remembers(&self, id: &Id) -> bool {
        self.remembered.contains_key(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = GRACE_NS;

    fn indices() -> Indices<char> {
        let mut indices = Indices::default();
        indices.add(1);
        indices.add(2);
        indices
    }

    fn take(indices: &mut Indices<char>, id: char) -> Option<(u32, bool)> {
        indices.take(&id).map(|taken| (taken.index, taken.again))
    }

    #[test]
    fn an_index_goes_to_another_only_after_a_scan_that_found_nothing() {
        let mut indices = indices();
        assert_eq!(take(&mut indices, 'a'), Some((1, false)));
        assert_eq!(take(&mut indices, 'b'), Some((2, false)));
        indices.rest(1, 10 * SECOND, Some('a'));
        assert_eq!(take(&mut indices, 'c'), None);
        // Too early, a scan of before, a scan that found it, a slot that names it.
        for (now_s, scan_s, held) in [(10, 12, false), (12, 10, false), (12, 11, true)] {
            let woken = indices.wake(now_s * SECOND, scan_s * SECOND, |index| index == 1 && held);
            assert_eq!(
                (woken.len(), indices.resting()),
                (0, 1),
                "{now_s} {scan_s} {held}"
            );
        }
        assert!(indices.unscanned(10 * SECOND) && !indices.unscanned(11 * SECOND));
        assert!(indices.may_wake(11 * SECOND, 11 * SECOND) && !indices.may_wake(11 * SECOND, 10 * SECOND));
        assert_eq!(
            indices.wake(11 * SECOND, 11 * SECOND, |_| false),
            BTreeSet::from([1])
        );
        assert_eq!((indices.free(), indices.resting()), (1, 0));
        assert_eq!(take(&mut indices, 'c'), Some((1, false)));
    }

    #[test]
    fn whoever_comes_back_has_the_index_it_had() {
        let mut indices = indices();
        take(&mut indices, 'a');
        indices.rest(1, 0, Some('a'));
        assert!(indices.remembers(&'a') && !indices.remembers(&'b'));
        assert_eq!(take(&mut indices, 'b'), Some((2, false)));
        assert_eq!(take(&mut indices, 'a'), Some((1, true)));
        indices.rest(2, 0, None);
        assert_eq!(take(&mut indices, 'b'), None, "nobody knows that it had it");
    }
}
