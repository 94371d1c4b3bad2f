//! The maximum segment size in a SYN (RFC 9293 section 3.7.1), and what `xlb decap --mss` and its program share.
//!
//! In the DSR modes the load balancer never sees a SYN-ACK, and it is the one that says how long the client's segments
//! may be, on the way that has the outer header. So it is made to say less where it begins: on the backend.

/// How many prefixes of service addresses there can be, for each address family.
pub const MAX_PREFIXES: u32 = 1024;

/// What became of a SYN or SYN-ACK out of a service address; also the index of its counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Fate {
    /// Its MSS was made less.
    Lowered = 0,
    /// It has none, which means less than any link has (536 or 1220 bytes), or one that is small enough.
    Kept = 1,
    /// It cannot be read, or not be written.
    Unreadable = 2,
}

/// How many counters there are.
pub const FATES: u32 = 3;

impl Fate {
    pub const ALL: [Self; FATES as usize] = [Self::Lowered, Self::Kept, Self::Unreadable];

    /// The word that operators see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lowered => "mss_lowered",
            Self::Kept => "mss_kept",
            Self::Unreadable => "mss_unreadable",
        }
    }
}

/// Bytes of an IPv4 or IPv6 header and a TCP header, without options: what a segment needs beside its data.
pub const HEADERS_V4: u32 = 40;
pub const HEADERS_V6: u32 = 60;

/// Bytes of options that a TCP header has at most.
const MOST_OPTIONS: u32 = 40;

const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const MSS: u8 = 2;
const MSS_LEN: u8 = 4;

/// Where the value of the MSS option stands among the options from `start` to `end`, offsets in bytes. `read` gives the two
/// bytes at an offset, kind and length of an option; `None`: there are none. Nothing where the options end, or make no
/// sense, before there is one.
#[inline(always)]
pub fn find(start: u32, end: u32, read: impl Fn(u32) -> Option<[u8; 2]>) -> Option<u32> {
    let mut at = start;
    // Each option takes a byte at least.
    for _ in 0..MOST_OPTIONS {
        if at + u32::from(MSS_LEN) > end {
            return None;
        }
        let [kind, len] = read(at)?;
        if kind == NO_OPERATION {
            at += 1;
            continue;
        }
        if kind == MSS {
            return (len == MSS_LEN).then_some(at + 2);
        }
        if kind == END || len < 2 {
            return None;
        }
        at += u32::from(len);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn find_in(options: &[u8]) -> Option<u32> {
        let read = |at: u32| {
            let at = at as usize;
            Some([*options.get(at)?, *options.get(at + 1)?])
        };
        find(0, options.len() as u32, read)
    }

    #[test]
    fn it_is_found_wherever_it_stands() {
        assert_eq!(find_in(&[2, 4, 5, 0xb4]), Some(2));
        assert_eq!(find_in(&[1, 1, 1, 2, 4, 5, 0xb4, 0]), Some(5));
        // Timestamps and SACK permitted before it, a window scale behind.
        let before = [8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 4, 2, 2, 4, 5, 0xb4, 1, 3, 3, 7];
        assert_eq!(find_in(&before), Some(14));
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        assert_eq!(find_in(&[]), None);
        assert_eq!(find_in(&[4, 2, 1, 1]), None);
        // Behind the end of the options, of another length, cut off.
        assert_eq!(find_in(&[0, 1, 1, 1, 2, 4, 5, 0xb4]), None);
        assert_eq!(find_in(&[2, 3, 5, 0xb4]), None);
        assert_eq!(find_in(&[1, 2, 4, 5]), None);
        // A length that leads nowhere, or beyond.
        assert_eq!(find_in(&[8, 0, 2, 4, 5, 0xb4, 0, 0]), None);
        assert_eq!(find_in(&[8, 200, 2, 4, 5, 0xb4, 0, 0]), None);
        // All no-operations, which is the longest way.
        assert_eq!(find_in(&[1; 40]), None);
    }

    /// Options as a sender writes them, each with its length.
    fn option() -> impl Strategy<Value = Vec<u8>> {
        let other = (3..=30_u8, proptest::collection::vec(any::<u8>(), 0..=6))
            .prop_map(|(kind, data)| [vec![kind, data.len() as u8 + 2], data].concat());
        prop_oneof![Just(vec![1]), other]
    }

    proptest! {
        #[test]
        fn other_options_before_it_change_nothing(others in proptest::collection::vec(option(), 0..4), mss: u16) {
            let before = others.concat();
            let [high, low] = mss.to_be_bytes();
            let options = [before.clone(), vec![2, 4, high, low]].concat();
            prop_assert_eq!(find_in(&options), Some(before.len() as u32 + 2));
            prop_assert_eq!(find_in(&before), None);
        }

        #[test]
        fn it_never_reads_beyond_the_end(options in proptest::collection::vec(any::<u8>(), 0..=40)) {
            if let Some(at) = find_in(&options) {
                prop_assert_eq!(&options[at as usize - 2..at as usize], &[2, 4]);
                prop_assert!(at as usize + 2 <= options.len());
            }
        }
    }
}
