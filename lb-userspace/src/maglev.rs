//! The lookup table of one service: Maglev hashing (Eisenbud et al., NSDI'16, section 3.4), weighted.
//!
//! A table has a prime number of slots, and the hash of a flow picks one. Each backend walks all slots
//! in an order of its own, `offset, offset + skip, offset + 2 skip, ...` (mod size), and the backends take
//! turns in claiming the first slot on their walk that is still free, until none is left. So every
//! backend gets its share to within a slot, and as the walks do not depend on who else is there, a backend
//! that leaves or joins moves few slots but its own.
//!
//! Weights decide when a backend takes its turn. With the paper's equal weights all claim their n-th slot
//! in round n; with weight `w` the n-th claim (from 0) is at time `(n + 1/2) / w`, the first at time 0. Up to
//! any time `t` a backend has claimed `t w` slots, rounded to nearest, and at least one: a canary of weight 1
//! beside one of 65535 is in the table, and in one of [`size_for`]'s sizes that floor costs the others
//! less than 1 %. The times of one backend do not depend on the weights of others, so that changing
//! the greatest weight does not reorder everybody else.
//!
//! Nodes that share a service must agree on every slot, so a table is the same on every machine and in
//! every version: its only inputs are addresses, ports, weights and size. A change to the hash, its key
//! or the order of ties moves nearly every slot of every service, and fails the golden tests below.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::IpAddr;

use siphasher::sip128::SipHasher24;

/// The sizes a table can have: primes, so that every `skip` reaches every slot.
pub const SIZES: [u32; 10] = [251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521, 131_071];

/// The least size that [`size_for`] gives.
const MIN_SIZE: u32 = 4093;

/// Slots a backend should have, so that rounding to whole slots stays within 1 % of its share.
const SLOTS_PER_BACKEND: usize = 100;

/// The key of the walks' SipHash-2-4. Not a secret: who may aim flows at a slot is decided by the key of
/// the flow hash, in the data plane.
const WALK_KEY: &[u8; 16] = b"xlb maglev table";

/// A backend that wants slots. Address and port are its identity and decide its walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Candidate {
    pub address: IpAddr,
    pub port: u16,
    /// Its share in proportion to those of the others; 0 takes no slots.
    pub weight: u32,
}

/// The size of a new table: the smallest of [`SIZES`] that is at least 4093 and 100 x `backends`, or
/// the greatest there is.
#[must_use]
pub fn size_for(backends: usize) -> u32 {
    let wanted = backends.saturating_mul(SLOTS_PER_BACKEND);
    SIZES
        .into_iter()
        .find(|&size| size >= MIN_SIZE && size as usize >= wanted)
        .unwrap_or(SIZES[SIZES.len() - 1])
}

/// Builds a table: for each of `size` slots the index in `candidates` of its owner.
///
/// Every slot has an owner, unless no candidate has a weight: then none has. The order of `candidates`
/// does not matter, as long as no two have the same address and port. With more candidates than slots the
/// last ones in order of address and port get none.
///
/// # Panics
///
/// If `size` is not a prime: a walk would not reach every slot. All [`SIZES`] are.
#[must_use]
pub fn build(size: u32, candidates: &[Candidate]) -> Vec<Option<u32>> {
    assert!(
        is_prime(size),
        "a lookup table of {size} slots: the size must be a prime"
    );
    let mut by_identity: Vec<u32> = (0..).take(candidates.len()).collect();
    by_identity.sort_by_key(|&index| {
        let Candidate {
            address,
            port,
            weight,
        } = candidates[index as usize];
        (address, port, weight)
    });
    let mut by_weight: BTreeMap<u32, Vec<Claimant>> = BTreeMap::new();
    for (rank, index) in (0..).zip(by_identity) {
        let candidate = &candidates[index as usize];
        if candidate.weight > 0 {
            by_weight.entry(candidate.weight).or_default().push(Claimant {
                rank,
                index,
                walk: Walk::new(candidate, size),
            });
        }
    }
    let mut turns: BinaryHeap<Turn> = by_weight
        .into_iter()
        .map(|(weight, members)| Turn {
            halves: 0,
            weight,
            members,
        })
        .collect();

    let mut table = Table::empty(size);
    let mut tied: Vec<Turn> = Vec::new();
    while let Some(mut turn) = turns.pop() {
        while turns.peek().is_some_and(|other| *other == turn) {
            tied.extend(turns.pop());
        }
        if tied.is_empty() {
            for member in &mut turn.members {
                if table.claim(member).is_none() {
                    return table.owners;
                }
            }
        } else {
            let others = tied.iter_mut().flat_map(|other| &mut other.members);
            let mut all: Vec<&mut Claimant> = turn.members.iter_mut().chain(others).collect();
            all.sort_unstable_by_key(|member| member.rank);
            for member in all {
                if table.claim(member).is_none() {
                    return table.owners;
                }
            }
        }
        for mut turn in tied.drain(..).chain([turn]) {
            turn.claimed();
            turns.push(turn);
        }
    }
    table.owners
}

/// How many slots have another owner in `new` than in `old`. Give it what identifies owners, not
/// indices into two different lists. Slots that only one of them has count as moved.
#[must_use]
pub fn moved<T: PartialEq>(old: &[T], new: &[T]) -> usize {
    let changed = old.iter().zip(new).filter(|(old, new)| old != new).count();
    changed + old.len().abs_diff(new.len())
}

/// A table that fills.
struct Table {
    owners: Vec<Option<u32>>,
    /// A bit for each slot that has an owner: most slots that are looked at late have one, and the bits of the greatest
    /// table stay in the first cache.
    taken: Vec<u64>,
    free: u32,
}

impl Table {
    fn empty(size: u32) -> Self {
        Self {
            owners: vec![None; size as usize],
            taken: vec![0; size.div_ceil(u64::BITS) as usize],
            free: size,
        }
    }

    /// Gives the first free slot of its walk to a backend; `None` where none is left.
    fn claim(&mut self, claimant: &mut Claimant) -> Option<()> {
        self.free = self.free.checked_sub(1)?;
        let size = self.owners.len() as u32;
        loop {
            let slot = claimant.walk.step(size);
            let (word, bit) = (&mut self.taken[slot / 64], 1 << (slot % 64));
            if *word & bit == 0 {
                *word |= bit;
                self.owners[slot] = Some(claimant.index);
                return Some(());
            }
        }
    }
}

/// A backend.
struct Claimant {
    /// Position in order of address and port, which breaks ties.
    rank: u32,
    index: u32,
    walk: Walk,
}

/// The next claim of each backend of one weight, which are all due at once, one after the other by rank; the greatest
/// of all turns is the one that is due first.
struct Turn {
    /// The time of the claims is `halves / (2 weight)`: 0, 3, 5, 7, ...
    halves: u64,
    weight: u32,
    members: Vec<Claimant>,
}

impl Turn {
    fn claimed(&mut self) {
        self.halves = if self.halves == 0 { 3 } else { self.halves + 2 };
    }
}

impl Ord for Turn {
    fn cmp(&self, other: &Self) -> Ordering {
        // a / b < c / d without division; 2^19 halves times a weight of 32 bits fit.
        let this_due = self.halves * u64::from(other.weight);
        let other_due = other.halves * u64::from(self.weight);
        other_due.cmp(&this_due)
    }
}

impl PartialOrd for Turn {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Turn {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Turn {}

/// The order in which one backend wants the slots.
struct Walk {
    next: u32,
    skip: u32,
}

impl Walk {
    /// `offset` and `skip` of the paper, from the two halves of one 128-bit hash over the address family
    /// (4 or 6), the address and the port, both in network byte order.
    fn new(candidate: &Candidate, size: u32) -> Self {
        let mut identity = Vec::with_capacity(19);
        match candidate.address {
            IpAddr::V4(address) => {
                identity.push(4);
                identity.extend(address.octets());
            }
            IpAddr::V6(address) => {
                identity.push(6);
                identity.extend(address.octets());
            }
        }
        identity.extend(candidate.port.to_be_bytes());
        let hash = SipHasher24::new_with_key(WALK_KEY).hash(&identity);
        let below = |hash: u64, bound: u32| {
            u32::try_from(hash % u64::from(bound)).expect("a remainder is less than its 32-bit divisor")
        };
        Self {
            next: below(hash.h1, size),
            skip: below(hash.h2, size - 1) + 1,
        }
    }

    fn step(&mut self, size: u32) -> usize {
        let slot = self.next;
        let before_wrap = size - self.skip;
        self.next = if slot < before_wrap {
            slot + self.skip
        } else {
            slot - before_wrap
        };
        slot as usize
    }
}

fn is_prime(number: u32) -> bool {
    number >= 2
        && (2..)
            .take_while(|d| *d <= number / d)
            .all(|d| !number.is_multiple_of(d))
}

#[cfg(test)]
mod tests;
