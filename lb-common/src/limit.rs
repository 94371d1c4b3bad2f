//! Limits on how many packets may pass in a second: token buckets of one 64-bit word each.
//!
//! The word is the time at which the bucket will be full again (the "theoretical arrival time" of the generic cell rate
//! algorithm, ITU-T I.371): each packet that passes puts it off by what one packet costs, and one that would put it off
//! beyond a second from now does not pass. So a bucket that is full lets exactly its rate pass at once, and its rate a
//! second from then on.
//!
//! Clients share a fixed number of buckets, by a keyed hash: memory that forged addresses cannot use up. Each client has
//! one in each of two [rows](CLIENT_ROWS) and passes where either has room (a count-min sketch, Cormode and Muthukrishnan
//! 2005). What passes is charged to both, so a client never passes more than its rate, and fewer only where others
//! fill both of its buckets. Spread evenly, that takes [`CLIENT_BUCKETS`] times the rate in all.
//!
//! Several CPUs may charge a bucket at once: each adds with an atomic instruction, but that there was room, or that the
//! bucket was full, another one may have seen at the same moment. So up to one packet for each further CPU passes
//! beyond the rate each time a bucket runs out, and as many when it was full.

/// Buckets of one row.
pub const CLIENT_BUCKETS: u32 = 1 << 16;
/// How many rows.
pub const CLIENT_ROWS: u32 = 2;

const SECOND_NS: u64 = 1_000_000_000;

/// How much passes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Rate {
    /// What a packet costs, in nanoseconds; 0: nothing, there is no limit.
    pub interval_ns: u64,
    /// What a full bucket holds.
    pub burst_ns: u64,
}

/// What a packet that passes does to a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Charge {
    /// The bucket was full: this is its word.
    Begin(u64),
    /// This is added to its word.
    Add(u64),
    /// It is so far behind that it is not put off any longer.
    Nothing,
}

impl Rate {
    pub const NONE: Self = Self {
        interval_ns: 0,
        burst_ns: 0,
    };

    /// So many a second; from 1 to 10^9.
    #[must_use]
    pub const fn per_second(rate: u32) -> Self {
        let interval_ns = SECOND_NS / rate as u64;
        Self {
            interval_ns,
            burst_ns: interval_ns * rate as u64,
        }
    }

    /// Whether a bucket has room for a packet.
    #[inline(always)]
    #[must_use]
    pub const fn has_room(self, word: u64, now_ns: u64) -> bool {
        word <= now_ns || word + self.interval_ns <= now_ns + self.burst_ns
    }

    /// What a packet that passes does to a bucket, also to one without room, where another one had it. That one falls
    /// behind by one burst at most: farther than the bucket that had room, so that the two never take turns.
    #[inline(always)]
    #[must_use]
    pub const fn charge(self, word: u64, now_ns: u64) -> Charge {
        if word <= now_ns {
            Charge::Begin(now_ns + self.interval_ns)
        } else if word + self.interval_ns <= now_ns + 2 * self.burst_ns {
            Charge::Add(self.interval_ns)
        } else {
            Charge::Nothing
        }
    }
}

/// Where the buckets of a client are: one in each row, by independent halves of its hash.
#[inline(always)]
#[must_use]
pub const fn buckets(hash: u32) -> [u32; CLIENT_ROWS as usize] {
    [hash & (CLIENT_BUCKETS - 1), CLIENT_BUCKETS + (hash >> 16)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn apply(rate: Rate, word: &mut u64, now_ns: u64) {
        match rate.charge(*word, now_ns) {
            Charge::Begin(next) => *word = next,
            Charge::Add(more) => *word += more,
            Charge::Nothing => {}
        }
    }

    /// A packet of a client with these buckets.
    fn passes(rate: Rate, words: &mut [u64], mine: [usize; 2], now_ns: u64) -> bool {
        let room = mine.iter().any(|bucket| rate.has_room(words[*bucket], now_ns));
        if room {
            for bucket in mine {
                apply(rate, &mut words[bucket], now_ns);
            }
        }
        room
    }

    #[test]
    fn a_full_bucket_holds_exactly_its_rate() {
        for per_second in [1, 2, 3, 7, 50, 1000, 999_999, 1_000_000] {
            let rate = Rate::per_second(per_second);
            let mut word = 0;
            let mut passed = 0;
            while rate.has_room(word, SECOND_NS) {
                apply(rate, &mut word, SECOND_NS);
                passed += 1;
            }
            assert_eq!(passed, per_second);
            // The next passes when the first is paid for, and not before.
            assert!(!rate.has_room(word, SECOND_NS + rate.interval_ns - 1));
            assert!(rate.has_room(word, SECOND_NS + rate.interval_ns));
        }
    }

    #[test]
    fn buckets_lie_in_their_rows() {
        for hash in [0, 1, 0xffff, 0x1_0000, u32::MAX] {
            let [first, second] = buckets(hash);
            assert!(
                first < CLIENT_BUCKETS && (CLIENT_BUCKETS..CLIENT_ROWS * CLIENT_BUCKETS).contains(&second)
            );
        }
    }

    proptest! {
        /// In no span of time passes more than a burst and the rate for its length, whatever comes when.
        #[test]
        fn no_more_than_the_rate_passes(
            per_second in 1_u32..2000,
            pauses in prop::collection::vec(0_u64..200_000_000, 1..400),
        ) {
            let rate = Rate::per_second(per_second);
            let (mut now, mut word) = (SECOND_NS, 0);
            let mut passed = Vec::new();
            for pause in pauses {
                now += pause;
                for _ in 0..3 {
                    if rate.has_room(word, now) {
                        apply(rate, &mut word, now);
                        passed.push(now);
                    }
                }
            }
            for (index, from) in passed.iter().enumerate() {
                for (count, to) in passed[index..].iter().enumerate() {
                    let most = u64::from(per_second) + (to - from) / rate.interval_ns;
                    prop_assert!((count as u64) < most, "{} in {} ns", count + 1, to - from);
                }
            }
        }

        /// One that keeps to its rate always passes.
        #[test]
        fn the_rate_passes(per_second in 1_u32..2000, packets in 1_usize..3000) {
            let rate = Rate::per_second(per_second);
            let (mut now, mut word) = (SECOND_NS, 0);
            for _ in 0..packets {
                prop_assert!(rate.has_room(word, now));
                apply(rate, &mut word, now);
                now += rate.interval_ns;
            }
        }

        /// With others in one of its buckets a client passes exactly as if it were alone; with others in both it
        /// passes no more.
        #[test]
        fn others_cost_a_client_nothing_unless_they_are_in_both_its_buckets(
            per_second in 1_u32..100,
            steps in prop::collection::vec((0_u64..50_000_000, 0_usize..4), 1..600),
        ) {
            let rate = Rate::per_second(per_second);
            let (mut alone, mut words) = (0, [0_u64; 6]);
            let mut now = SECOND_NS;
            let mut in_both = 0;
            for (pause, who) in steps {
                now += pause;
                match who {
                    // Two others share the second bucket of the client, each with a first one of its own.
                    0 => drop(passes(rate, &mut words, [1, 3], now)),
                    1 => drop(passes(rate, &mut words, [2, 3], now)),
                    _ => {
                        let room = rate.has_room(alone, now);
                        if room {
                            apply(rate, &mut alone, now);
                        }
                        prop_assert_eq!(passes(rate, &mut words, [0, 3], now), room);
                        in_both += u32::from(room);
                    }
                }
            }
            prop_assert!(u64::from(in_both) <= u64::from(per_second) + (now - SECOND_NS) / rate.interval_ns);
        }
    }
}
