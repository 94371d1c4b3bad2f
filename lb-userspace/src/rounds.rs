//! The order in which backends take turns: smooth, so that a heavy backend never takes many flows in a row.
//!
//! Each backend's turns lie at even distances, the `n`-th of one with the share `w` of all at `(n + 1/2) / w`; a slot
//! goes to whoever is due first (stride scheduling, Waldspurger and Weihl 1995). So every stretch of the order has each
//! backend as often as its weight says, give or take one.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// When a backend is due next: compared exactly, as fractions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Due {
    turns: u64,
    weight: u64,
    index: u32,
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> Ordering {
        let mine = u128::from(2 * self.turns + 1) * u128::from(other.weight);
        let others = u128::from(2 * other.turns + 1) * u128::from(self.weight);
        // Equally due: the heavier first, then in their order.
        mine.cmp(&others)
            .then(other.weight.cmp(&self.weight))
            .then(self.index.cmp(&other.index))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The owner of each of `size` slots, as an index into `weights`; `None` where all weights are 0.
#[must_use]
pub fn build(size: u32, weights: &[u32]) -> Vec<Option<u32>> {
    let mut owners = Vec::with_capacity(size as usize);
    let mut due = BinaryHeap::with_capacity(weights.len());
    for (index, weight) in weights.iter().enumerate() {
        if *weight == 0 {
            continue;
        }
        let index = index as u32;
        due.push(Reverse(Due {
            turns: 0,
            weight: u64::from(*weight),
            index,
        }));
    }
    while owners.len() < size as usize {
        let Some(mut next) = due.peek_mut() else {
            owners.push(None);
            continue;
        };
        owners.push(Some(next.0.index));
        next.0.turns += 1;
    }
    owners
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn order(size: u32, weights: &[u32]) -> Vec<u32> {
        build(size, weights)
            .into_iter()
            .map(|o| o.expect("an owner"))
            .collect()
    }

    #[test]
    fn turns_are_mixed() {
        assert_eq!(order(7, &[5, 1, 1]), [0, 0, 0, 1, 2, 0, 0]);
        assert_eq!(order(6, &[1, 1, 1]), [0, 1, 2, 0, 1, 2]);
        assert_eq!(order(6, &[2, 1]), [0, 1, 0, 0, 1, 0]);
        assert_eq!(build(3, &[0, 0]), [None; 3]);
        assert_eq!(build(2, &[]), [None; 2]);
    }

    proptest! {
        #[test]
        fn every_stretch_has_the_shares(
            weights in proptest::collection::vec(1_u32..1000, 1..20), start in 0..3000_usize, length in 1..1000_usize,
        ) {
            let order = order(4093, &weights);
            let total: u32 = weights.iter().sum();
            for (index, weight) in weights.iter().enumerate() {
                let found = order[start..(start + length).min(4093)].iter().filter(|o| **o == index as u32).count();
                let expected = length.min(4093 - start) as f64 * f64::from(*weight) / f64::from(total);
                // One at each end, and what the others' halves shift.
                prop_assert!((found as f64 - expected).abs() <= 2.0 + weights.len() as f64 / 2.0, "{found} {expected}");
            }
        }
    }
}
