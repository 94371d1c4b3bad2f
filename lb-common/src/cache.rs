//! `tracking = "full"`: the cache of flows, and the nursery of connections that are being opened.
//!
//! A line of the cache is one cache line of four ways; a flow has one set of four ways that it can be in, by its
//! 64-bit identity, a keyed hash. A way is one word of identity, state and backend, read and written whole, and the
//! time of the last packet: no lock, and the agent reads all of it through a memory mapping. A line that is full loses
//! its oldest way; the flow falls back to where its hash leads.
//!
//! A SYN makes no way. Where the scheduler chooses freely, its choice waits in the nursery, a table with [`NEIGHBORS`]
//! places for each identity, until the next segment of the connection comes. A place that is taken is left alone for
//! [`NURSERY_NS`], and the SYN that finds no other goes where its hash leads, as do the segments after it: a flood of
//! SYNs takes the freedom of choice away, and breaks nothing.

use crate::rule::CONFIRM_WINDOW;

/// Ways of a line.
pub const WAYS: usize = 4;
/// How long the choice of a SYN is kept: clients retransmit for about so long.
pub const NURSERY_NS: u64 = 64_000_000_000;
/// How long a way is kept for a connection that has ended.
pub const CLOSING_NS: u64 = 60_000_000_000;
/// A time of a way is stored anew only where it would be later by this: most packets then read the line only.
pub const TOUCH_NS: u64 = 1_000_000_000;
/// A way that was seen less than this ago is not taken by a segment of a connection that nobody saw begin: a flood of
/// such segments takes nothing from connections that are busy.
pub const BUSY_NS: u64 = 10_000_000_000;
/// Places of the nursery: a power of two.
pub const NURSERY_PLACES: u32 = 65_536;
/// Places that one identity can have, side by side: with one alone, a hundredth of the SYNs would find it taken by as
/// few as 650 connections that open at the same time.
pub const NEIGHBORS: u32 = 4;

/// The identity of a flow: two independent keyed hashes of its addresses and ports, and its service, for the hashes
/// leave the service address out.
#[inline(always)]
#[must_use]
pub const fn identity(first: u32, second: u32, service: u32) -> u64 {
    ((first as u64) << 32 | second as u64) ^ (service as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// Which line, or place, of a power of two of them an identity has.
#[inline(always)]
#[must_use]
pub const fn index(identity: u64, count: u32) -> u32 {
    identity as u32 & (count - 1)
}

/// Identity, state and backend of a flow: bits 18..64 those of the identity, 16 and 17 the state, 0..16 the backend.
/// 0: free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct FlowWord(pub u64);

impl FlowWord {
    const STATE: u64 = 3 << 16;
    const LIVE: u64 = 1 << 16;
    const CLOSING: u64 = 2 << 16;
    const TAG: u64 = !((1 << 18) - 1);

    pub const FREE: Self = Self(0);

    /// A flow that lives. `backend` is below 65,536.
    #[inline(always)]
    #[must_use]
    pub const fn live(identity: u64, backend: u32) -> Self {
        Self(identity & Self::TAG | Self::LIVE | backend as u64 & 0xffff)
    }

    /// The same flow, whose client has sent FIN or RST.
    #[inline(always)]
    #[must_use]
    pub const fn closing(self) -> Self {
        Self(self.0 & !Self::STATE | Self::CLOSING)
    }

    #[inline(always)]
    #[must_use]
    pub const fn is_of(self, identity: u64) -> bool {
        self.0 & Self::STATE != 0 && (self.0 ^ identity) & Self::TAG == 0
    }

    /// The backend, where this is a flow that lives and has the identity; else any number above all of them.
    #[inline(always)]
    #[must_use]
    pub const fn backend_of(self, identity: u64) -> u64 {
        self.0 ^ Self::live(identity, 0).0
    }

    #[inline(always)]
    #[must_use]
    pub const fn is_free(self) -> bool {
        self.0 & Self::STATE == 0
    }

    #[inline(always)]
    #[must_use]
    pub const fn is_live(self) -> bool {
        self.0 & Self::STATE == Self::LIVE
    }

    #[inline(always)]
    #[must_use]
    pub const fn backend(self) -> u32 {
        self.0 as u32 & 0xffff
    }
}

/// A flow of the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Way {
    pub word: FlowWord,
    /// `CLOCK_MONOTONIC` of its last packet, give or take [`TOUCH_NS`].
    pub seen_ns: u64,
}

/// The flows that have one index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Line {
    pub ways: [Way; WAYS],
}

/// A connection that is being opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Opening {
    /// As in a way. Written last.
    pub word: FlowWord,
    pub seen_ns: u64,
    /// Sequence number of the SYN.
    pub isn: u32,
    pub reserved: u32,
}

/// Whether a segment with this number follows the SYN with that one.
#[inline(always)]
#[must_use]
pub const fn follows(isn: u32, sequence: u32) -> bool {
    let offset = sequence.wrapping_sub(isn);
    offset != 0 && offset <= CONFIRM_WINDOW
}

/// How many flows a backend has, and what it can bear: by index of the backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Load {
    /// Flows in cache and nursery that have not ended. Added to and taken from by the program, by atomic instructions.
    pub active: u64,
    /// Weight in force, written by the agent.
    pub weight: u64,
}

impl Load {
    /// Whether this backend has less to do for its weight.
    #[inline(always)]
    #[must_use]
    pub const fn is_less_than(&self, other: &Self) -> bool {
        // With the next flow, as LVS has it: of two idle backends the heavier is first.
        (self.flows() + 1) * other.weight < (other.flows() + 1) * self.weight
    }

    /// Below 0 where the agent's correction and the program's counting met.
    #[inline(always)]
    const fn flows(&self) -> u64 {
        self.active & !((self.active as i64 >> 63) as u64)
    }
}

/// How a service chooses the backend of a new flow. Stored in [`crate::layout::TableWord`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Chooser {
    /// By the hash of addresses and ports: the owner of its slot.
    Flow = 0,
    /// By the hash of the client's address alone.
    Source = 1,
    /// The next slot of the table, each CPU for itself.
    Walk = 2,
    /// A slot at random.
    Random = 3,
    /// Of two slots at random the backend with fewer flows for its weight.
    Two = 4,
    /// The backend with the fewest flows.
    Least = 5,
    /// The backend with the fewest flows for its weight.
    LeastWeighted = 6,
}

impl Chooser {
    #[inline(always)]
    #[must_use]
    pub const fn from_bits(bits: u8) -> Self {
        match bits {
            1 => Self::Source,
            2 => Self::Walk,
            3 => Self::Random,
            4 => Self::Two,
            5 => Self::Least,
            6 => Self::LeastWeighted,
            _ => Self::Flow,
        }
    }

    /// Whether the choice cannot be found again from the packet.
    #[inline(always)]
    #[must_use]
    pub const fn is_free(self) -> bool {
        !matches!(self, Self::Flow | Self::Source)
    }
}

/// How many backends [`Chooser::Least`] compares with the best that it knows, for each flow.
pub const LEAST_OF: u32 = 4;

const _: () = {
    assert!(size_of::<Line>() == 64);
    assert!(size_of::<Opening>() == 24);
    assert!(size_of::<Load>() == 16);
    assert!(NURSERY_PLACES.is_power_of_two() && NEIGHBORS.is_power_of_two());
};

#[cfg(feature = "user")]
mod pod {
    //! SAFETY (all): `repr(C)` or `repr(transparent)`, of integers only, without hidden padding.
    use super::*;
    // SAFETY: see the module.
    unsafe impl aya::Pod for Line {}
    // SAFETY: see the module.
    unsafe impl aya::Pod for Opening {}
    // SAFETY: see the module.
    unsafe impl aya::Pod for Load {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_word_gives_back_its_parts(flow: u64, other: u64, backend in 0..65_536_u32) {
            let word = FlowWord::live(flow, backend);
            prop_assert!(word.is_of(flow) && word.is_live() && !word.is_free());
            prop_assert_eq!(word.backend(), backend);
            let closing = word.closing();
            prop_assert!(closing.is_of(flow) && !closing.is_live() && !closing.is_free());
            prop_assert_eq!(closing.backend(), backend);
            prop_assert_eq!(word.is_of(other), flow >> 18 == other >> 18);
            prop_assert!(!FlowWord::FREE.is_of(flow));
            prop_assert_eq!(word.backend_of(flow), u64::from(backend));
            prop_assert_eq!(word.backend_of(other) <= u64::from(u16::MAX), flow >> 18 == other >> 18);
            prop_assert!(closing.backend_of(flow) > u64::from(u16::MAX));
            prop_assert!(FlowWord::FREE.backend_of(flow) > u64::from(u16::MAX));
        }

        #[test]
        fn services_tell_flows_apart(first: u32, second: u32, a in 0..4096_u32, b in 0..4096_u32) {
            prop_assume!(a != b);
            let (one, other) = (identity(first, second, a), identity(first, second, b));
            prop_assert!(!FlowWord::live(one, 1).is_of(other));
        }
    }

    #[test]
    fn loads_are_compared_by_weight() {
        let load = |active, weight| Load { active, weight };
        assert!(load(3, 4).is_less_than(&load(1, 1)));
        assert!(!load(3, 1).is_less_than(&load(1, 1)));
        assert!(load(0, 2).is_less_than(&load(0, 1)));
        assert!(!load(5, 1).is_less_than(&load(5, 1)));
        assert!(load(u64::MAX, 1).is_less_than(&load(1, 1)));
    }

    #[test]
    fn choosers_come_back_from_their_bits() {
        for bits in 0..7 {
            assert_eq!(Chooser::from_bits(bits) as u8, bits);
        }
    }
}
