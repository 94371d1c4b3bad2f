//! Hints: where a flow with an entry goes, found without the flow table.
//!
//! An entry lies behind two lines of memory that are read one after the other, the bucket and the element; a hint lies in
//! one, beside those of few other flows, so that 65,536 of them fit into a megabyte. A hint says what an *established* entry
//! said when it was looked up, and holds as long as nobody can have changed or removed that entry:
//!
//! - Whoever puts an entry into the flow table or takes one out of it in the program counts up the sequence of the flow's
//!   line afterwards; user space counts up the one era of all lines, also when a backend stands otherwise. Both are read
//!   *before* the entry is looked up, and a hint is made of what was read: one that was made of an entry that has gone
//!   meanwhile is wrong from the start.
//! - A hint holds within one epoch of the clock, half a second. So the time of the last packet in an entry lags by no more
//!   than that, and whoever lets entries expire lets them live longer by more.
//!
//! Era, epoch and sequence are mixed into the flow's identity instead of being stored beside it. Another flow, or
//! another time, is taken for this one once in 2^48 comparisons.

/// Ways of a line.
pub const WAYS: usize = 7;
/// Lines, a power of two: a megabyte.
pub const LINES: u32 = 16_384;
/// How long an epoch is, in nanoseconds, as a power of two: 0.54 s.
pub const EPOCH_BITS: u32 = 29;

/// A line: one cache line. In the one after the last ([`LINES`]) the sequence is the era of all others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Line {
    /// Counts entries that were written or taken out of the flows of this line.
    pub sequence: u64,
    pub ways: [u64; WAYS],
}

/// The epoch of a time of `CLOCK_MONOTONIC`.
#[inline(always)]
#[must_use]
pub const fn epoch(now_ns: u64) -> u64 {
    now_ns >> EPOCH_BITS
}

/// The hint that leads a flow to backend 0; that to another one is this plus its index. `identity` is that of
/// [`crate::cache::identity`].
#[inline(always)]
#[must_use]
pub const fn to_nobody(identity: u64, era: u64, sequence: u64, epoch: u64) -> u64 {
    // Odd factors (golden ratio; Steele, Lea and Flood 2014), so that no two small numbers have one product.
    let changes = era.wrapping_mul(0xBF58_476D_1CE4_E5B9) ^ sequence;
    identity
        .wrapping_add(epoch.wrapping_mul(0x9E37_79B9_7F4A_7C15))
        .wrapping_add(changes.wrapping_mul(0x94D0_49BB_1331_11EB))
        & !0xffff
}

/// Where a way of the flow's line leads; any number above all backends: it is not the flow's.
#[inline(always)]
#[must_use]
pub const fn backend(way: u64, to_nobody: u64) -> u64 {
    way ^ to_nobody
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_hint_holds_for_its_flow_and_time_alone(
            identity: u64, era in 0..1_u64 << 40, sequence in 0..1_u64 << 40, now_ns in 0..1_u64 << 62,
            to in 1..=u16::MAX,
        ) {
            let epoch = epoch(now_ns);
            let base = to_nobody(identity, era, sequence, epoch);
            let way = base + u64::from(to);
            prop_assert_eq!(backend(way, base), u64::from(to));
            for other in [
                to_nobody(identity ^ 1 << 40, era, sequence, epoch),
                to_nobody(identity, era + 1, sequence, epoch),
                to_nobody(identity, era, sequence + 1, epoch),
                to_nobody(identity, era, sequence, epoch + 1),
            ] {
                prop_assert!(backend(way, other) > u64::from(u16::MAX));
            }
        }
    }
}
