//! Backends that do not answer, as the packets of their clients show it.
//!
//! A client that gets no answer sends its SYN again, and nothing else. Two signs follow, both looked for where a SYN
//! passes and nowhere else:
//!
//! - *Again*: the same SYN, by flow and sequence number, was sent to the same backend before. Clients wait a second
//!   before they repeat one, but it shows among any other traffic.
//! - *Stalled*: a CPU sent SYNs to a backend over [`STALL_NS`], and nothing but SYNs. That shows sooner where connections
//!   are opened often, but not while older ones are busy. Packets of one flow come to one CPU, so each CPU can tell
//!   for itself.
//!
//! Neither proves anything: answers take another way than by us, and anybody can send SYNs. They are a reason to ask.
//!
//! A CPU looks at every SYN as long as there are no more than [`Budget::A_TICK`] in a tick of the kernel, and beyond that only
//! at those of flows that are in the sample. A SYN that comes again is of the same flow, so one that is sampled is
//! found again, and a flood costs next to nothing, and leaves the places of most SYNs alone.

/// Places for SYNs that were seen: a power of two. One that another takes is not recognised when it comes again.
pub const SYN_PLACES: u32 = 65_536;
/// Nothing but SYNs for so long is a sign. Longer than most ways to a client and back.
pub const STALL_NS: u64 = 150_000_000;
/// Nothing but SYNs for longer than this is what a backend looks like that hardly anybody asks.
pub const LULL_NS: u64 = 10_000_000_000;
/// The time of a sign is stored anew only where it would be later by this.
pub const SIGN_APART_NS: u64 = 10_000_000;

/// What stands in the place of a SYN: whose it is, and which.
#[inline(always)]
#[must_use]
pub const fn tag(hash: u32, backend: u32, sequence: u32) -> u64 {
    ((hash ^ backend.rotate_left(16)) as u64) << 32 | sequence as u64
}

/// The place of a SYN.
#[inline(always)]
#[must_use]
pub const fn place(hash: u32) -> u32 {
    // Other bits than those that say what is in the sample.
    (hash / SAMPLE) & (SYN_PLACES - 1)
}

/// One flow of so many is in the sample: a power of two.
const SAMPLE: u32 = 128;

/// Whether the SYNs of a flow are looked at however many there are.
#[inline(always)]
#[must_use]
pub const fn is_sampled(hash: u32) -> bool {
    hash.is_multiple_of(SAMPLE)
}

/// How many SYNs a CPU may still look at that are not in the sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Budget {
    /// The tick of the kernel in which it was used up last.
    pub spent: u64,
    /// The tick that `left` is of.
    pub tick: u64,
    pub left: u64,
}

impl Budget {
    /// SYNs in a tick: thousands a second, whatever the kernel's ticks are, more than fill the places.
    pub const A_TICK: u64 = 32;

    /// Takes one SYN from the budget of a tick that was not used up.
    #[inline(always)]
    pub const fn spend(&mut self, tick: u64) {
        if self.tick != tick {
            self.tick = tick;
            self.left = Self::A_TICK;
        }
        self.left = self.left.saturating_sub(1);
        if self.left == 0 {
            self.spent = tick;
        }
    }
}

/// What one CPU noted of the SYNs to one backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Syns {
    /// Packets other than SYNs that it had sent there by `since_ns`.
    pub others: u64,
    /// When the first of the SYNs came after which there were no others; 0: never.
    pub since_ns: u64,
    /// SYNs that were sent there before.
    pub again: u64,
    /// SYNs that came while nothing else did.
    pub stalled: u64,
}

impl Syns {
    /// Takes in a SYN at `now_ns`, before which `others` packets other than SYNs were sent. `again`: it was sent there
    /// before. Says whether it is a sign.
    #[inline(always)]
    pub const fn note(&mut self, others: u64, again: bool, now_ns: u64) -> bool {
        self.again += again as u64;
        let alone_ns = now_ns.saturating_sub(self.since_ns);
        if others != self.others || self.since_ns == 0 || alone_ns > LULL_NS {
            self.others = others;
            self.since_ns = now_ns;
            return again;
        }
        let stalled = alone_ns >= STALL_NS;
        self.stalled += stalled as u64;
        again || stalled
    }
}

const _: () = {
    assert!(size_of::<Syns>() == 32);
    assert!(SYN_PLACES.is_power_of_two() && SAMPLE.is_power_of_two());
};

#[cfg(feature = "user")]
// SAFETY: `repr(C)`, of integers only, without hidden padding.
unsafe impl aya::Pod for Syns {}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn syns_with_something_between_are_no_sign() {
        let mut syns = Syns::default();
        for (others, at_ms) in [(0, 1000), (3, 1200), (6, 1400), (9, 9000)] {
            assert!(!syns.note(others, false, at_ms * MS));
        }
        assert_eq!((syns.again, syns.stalled), (0, 0));
    }

    #[test]
    fn nothing_but_syns_is_a_sign_after_a_while() {
        let mut syns = Syns::default();
        assert!(!syns.note(5, false, 1000 * MS));
        assert!(!syns.note(5, false, 1149 * MS));
        assert!(syns.note(5, false, 1150 * MS));
        assert!(syns.note(5, false, 2000 * MS));
        assert_eq!(syns.stalled, 2);
        // Something came: it begins anew.
        assert!(!syns.note(6, false, 2001 * MS));
        assert!(!syns.note(6, false, 2100 * MS));
        assert!(syns.note(6, false, 2151 * MS));
    }

    #[test]
    fn a_backend_that_hardly_anybody_asks_gives_no_sign() {
        let mut syns = Syns::default();
        for minute in 1..10 {
            assert!(!syns.note(0, false, minute * 60_000 * MS));
        }
    }

    #[test]
    fn a_syn_that_comes_again_is_a_sign_among_other_traffic() {
        let mut syns = Syns::default();
        assert!(!syns.note(1, false, 1000 * MS));
        assert!(syns.note(900, true, 2000 * MS));
        assert_eq!((syns.again, syns.stalled), (1, 0));
    }

    #[test]
    fn tags_tell_flows_backends_and_connections_apart() {
        let tags = [tag(1, 1, 1), tag(2, 1, 1), tag(1, 2, 1), tag(1, 1, 2)];
        for (index, one) in tags.iter().enumerate() {
            assert!(tags[index + 1..].iter().all(|other| other != one));
        }
        assert!(place(u32::MAX) < SYN_PLACES);
    }

    #[test]
    fn a_budget_is_spent_once_a_tick() {
        let mut budget = Budget::default();
        for tick in [70, 71, 75] {
            for _ in 0..Budget::A_TICK {
                assert_ne!(budget.spent, tick);
                budget.spend(tick);
            }
            assert_eq!(budget.spent, tick);
            // Flows of the sample take from it all the same.
            budget.spend(tick);
            assert_eq!(budget.spent, tick);
        }
        budget.spend(80);
        assert_ne!(budget.spent, 80);
    }

    #[test]
    fn the_sample_is_a_part_of_the_flows_and_has_all_places() {
        let sampled = (0..1 << 16).filter(|hash| is_sampled(*hash));
        assert_eq!(sampled.count(), (1 << 16) / SAMPLE as usize);
        let sampled = (0..SYN_PLACES).map(|number| number * SAMPLE);
        let places: std::collections::BTreeSet<u32> =
            sampled.filter(|hash| is_sampled(*hash)).map(place).collect();
        assert_eq!(places.len(), SYN_PLACES as usize);
    }
}
