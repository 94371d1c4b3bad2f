//! Since when slots are as they are, for those of a table that are not stable.
//!
//! A step goes through a table in the order of its slots, and so through this: a sorted list costs a fraction of what a
//! tree does when all slots of a great table move at once, and nothing where none does.

/// A moment for each of some slots, in the order of the slots; nanoseconds of `CLOCK_MONOTONIC`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Since(Vec<(u32, u64)>);

impl Since {
    /// When a slot began to be as it is; `None` where it is stable.
    #[must_use]
    pub fn get(&self, slot: u32) -> Option<u64> {
        let found = self.0.binary_search_by_key(&slot, |(slot, _)| *slot);
        found.ok().map(|place| self.0[place].1)
    }

    /// Slots that come in their order are put at the end.
    pub fn insert(&mut self, slot: u32, since_ns: u64) {
        if self.0.last().is_none_or(|(last, _)| *last < slot) {
            self.0.push((slot, since_ns));
            return;
        }
        match self.0.binary_search_by_key(&slot, |(slot, _)| *slot) {
            Ok(place) => self.0[place].1 = since_ns,
            Err(place) => self.0.insert(place, (slot, since_ns)),
        }
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Slots and moments, in the order of the slots.
    pub fn iter(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        self.0.iter().copied()
    }

    /// The latest moment.
    #[must_use]
    pub fn latest(&self) -> Option<u64> {
        self.iter().map(|(_, since_ns)| since_ns).max()
    }

    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut u64> {
        self.0.iter_mut().map(|(_, since_ns)| since_ns)
    }
}

impl FromIterator<(u32, u64)> for Since {
    fn from_iter<T: IntoIterator<Item = (u32, u64)>>(slots: T) -> Self {
        let mut since = Self::default();
        for (slot, since_ns) in slots {
            since.insert(slot, since_ns);
        }
        since
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_found_in_whatever_order_they_came() {
        let since: Since = [(7, 70), (3, 30), (9, 90), (3, 31)].into_iter().collect();
        assert_eq!(since.iter().collect::<Vec<_>>(), [(3, 31), (7, 70), (9, 90)]);
        assert_eq!((since.get(3), since.get(4), since.len()), (Some(31), None, 3));
        assert_eq!(since.latest(), Some(90));
    }
}
