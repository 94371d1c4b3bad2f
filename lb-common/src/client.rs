//! Persistence: clients whose new flows go where their earlier ones went.
//!
//! A client is a prefix of addresses, of the length that its service says. What is known of it is a way of a cache, as
//! of a flow ([`crate::cache`]), and it is given one when a connection of it was confirmed, or by a first datagram: a
//! flood of SYNs writes none. Until then, and where its line is full, the owner of the prefix's slot stands for it, so
//! that connections that begin together go together. A client that is remembered does not lose its way to another.

use crate::cache;
use crate::hash::{self, HashKey};

/// Less idle than this a client keeps its way: the longest time that a configuration can have clients remembered for.
pub const SPARE_NS: u64 = 86_400_000_000_000;

/// How a service keeps its clients; by index of the service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Persistence {
    /// How long a client is remembered after the last packet of its flows; 0: not at all. Written last.
    pub timeout_ns: u64,
    /// The bits of an address that make the client, words and order as in [`crate::layout::FlowKey::source`].
    pub mask: [u32; 4],
}

impl Persistence {
    /// Of a prefix of so many bits.
    #[must_use]
    pub const fn new(timeout_ns: u64, is_v4: bool, bits: u8) -> Self {
        let ones = if bits == 0 {
            0
        } else if is_v4 {
            // The address is the last word.
            (u32::MAX << (32 - (if bits > 32 { 32 } else { bits }) as u32)) as u128
        } else {
            u128::MAX << (128 - (if bits > 128 { 128 } else { bits }) as u32)
        };
        Self {
            timeout_ns,
            mask: [
                ((ones >> 96) as u32).to_be(),
                ((ones >> 64) as u32).to_be(),
                ((ones >> 32) as u32).to_be(),
                (ones as u32).to_be(),
            ],
        }
    }

    /// The client that an address belongs to.
    #[inline(always)]
    #[must_use]
    pub const fn client(&self, source: [u32; 4]) -> [u32; 4] {
        let ([a, b, c, d], [m, n, o, p]) = (source, self.mask);
        [a & m, b & n, c & o, d & p]
    }
}

/// The hash that gives a client its slot, also with the scheduler `sh`, of which a client is an address. An address is as in [`crate::layout::FlowKey::source`].
#[inline(always)]
#[must_use]
pub const fn hash(key: &HashKey, client: [u32; 4]) -> u32 {
    let [a, b, c, d] = client;
    let words = [u32::from_le(a), u32::from_le(b), u32::from_le(c), u32::from_le(d)];
    hash::flow_v6(key, words, 0)
}

/// The identity of a client of a service, by its hashes with both keys: none that a flow has.
#[inline(always)]
#[must_use]
pub const fn identity(first: u32, second: u32, service: u32) -> u64 {
    cache::identity(first, second, service | 1 << 31)
}

/// What each CPU counts of the clients of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ClientCounters {
    /// Clients that were given a way.
    pub remembered: u64,
    /// New flows that were led to the backend of their client.
    pub kept: u64,
    /// New flows of clients whose backend takes none any longer: they were given another.
    pub moved: u64,
    /// Clients that found no room.
    pub refused: u64,
}

const _: () = {
    assert!(size_of::<Persistence>() == 24 && align_of::<Persistence>() == 8);
    assert!(size_of::<ClientCounters>() == 32);
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v4(address: [u8; 4]) -> [u32; 4] {
        [0, 0, 0, u32::from_ne_bytes(address)]
    }

    fn v6(address: u128) -> [u32; 4] {
        let bytes = address.to_be_bytes();
        let word = |n: usize| u32::from_ne_bytes(bytes[n * 4..n * 4 + 4].try_into().unwrap());
        [word(0), word(1), word(2), word(3)]
    }

    #[test]
    fn a_client_is_a_prefix() {
        let of = |bits| Persistence::new(1, true, bits);
        assert_eq!(of(24).client(v4([203, 0, 113, 7])), v4([203, 0, 113, 0]));
        assert_eq!(of(32).client(v4([203, 0, 113, 7])), v4([203, 0, 113, 7]));
        assert_eq!(of(1).client(v4([203, 0, 113, 7])), v4([128, 0, 0, 0]));
        assert_eq!(of(0).client(v4([203, 0, 113, 7])), v4([0; 4]));
    }

    proptest! {
        #[test]
        fn a_mask_has_as_many_bits_as_its_prefix(address: u128, bits in 0..=128_u8) {
            let kept = if bits == 0 { 0 } else { address >> (128 - u32::from(bits)) << (128 - u32::from(bits)) };
            prop_assert_eq!(Persistence::new(1, false, bits).client(v6(address)), v6(kept));
        }

        #[test]
        fn an_ipv4_client_has_the_hash_of_its_address(key: [u64; 8], address: [u8; 4]) {
            let key = HashKey(key);
            let of_flow = hash::flow_v4(&key, u32::from_le_bytes(address), 0);
            prop_assert_eq!(hash(&key, v4(address)), of_flow);
        }
    }
}
