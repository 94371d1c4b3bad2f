//! The keyed hash that gives a flow its slot.
//!
//! Multilinear hashing of 32-bit words with secret 64-bit keys (Lemire and Kaser, "Strongly universal
//! string hashing is fast", 2014, section 2): `k0 + k1 w1 + k2 w2 + ...` modulo 2^64, of which the upper 32
//! bits are strongly universal. Without the key nobody can tell which inputs collide, so nobody can aim
//! flows at one backend. A last multiplication spreads inputs that form an arithmetic progression
//! (consecutive source ports), which a purely linear function would turn into another progression.
//!
//! Words are read from the packet in little-endian order on every machine, so nodes that share a key choose
//! alike whatever their byte order.

/// How many 64-bit words a key has: a constant term, four address words, the ports, and the final
/// multiplier. The eighth is kept for later use, so that a stored key stays valid.
pub const KEY_WORDS: usize = 8;

/// Which key word multiplies the word of the two ports.
const PORTS: usize = 5;
/// Which key word mixes the sum.
const FINAL: usize = 6;

/// The secret key of the hash. Word 0 is the constant term; 1 to 4 belong to the source address (IPv4 uses
/// word 4 only), 5 to the ports, 6 is the final multiplier.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct HashKey(pub [u64; KEY_WORDS]);

impl core::fmt::Debug for HashKey {
    /// The key is a secret and never printed.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("HashKey(..)")
    }
}

impl HashKey {
    /// A key from 64 random bytes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; KEY_WORDS * 8]) -> Self {
        let mut words = [0; KEY_WORDS];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            let mut buffer = [0; 8];
            buffer.copy_from_slice(chunk);
            *word = u64::from_le_bytes(buffer);
        }
        Self(words)
    }

    /// Another key that is made from this one: hashes with both are independent for whoever knows neither.
    #[must_use]
    pub const fn second(self) -> Self {
        let Self(mut words) = self;
        let mut index = 0;
        // SplitMix64 (Steele, Lea and Flood 2014), fed with every word.
        let mut state: u64 = 0x6A09_E667_F3BC_C908;
        while index < KEY_WORDS {
            state = state
                .wrapping_add(words[index])
                .wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut mixed = state;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            words[index] = mixed ^ (mixed >> 31);
            index += 1;
        }
        Self(words)
    }

    /// The bytes that [`HashKey::from_bytes`] takes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; KEY_WORDS * 8] {
        let mut bytes = [0; KEY_WORDS * 8];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(self.0) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

/// The hash of an IPv4 flow. `source` is the address and `ports` the source and destination port, each word
/// as its four bytes stand in the packet, read in little-endian order.
#[inline(always)]
#[must_use]
pub const fn flow_v4(key: &HashKey, source: u32, ports: u32) -> u32 {
    let HashKey(k) = key;
    let sum = k[0]
        .wrapping_add(k[4].wrapping_mul(source as u64))
        .wrapping_add(k[PORTS].wrapping_mul(ports as u64));
    finish(k[FINAL], sum)
}

/// The hash of an IPv6 flow; words as for [`flow_v4`].
#[inline(always)]
#[must_use]
pub const fn flow_v6(key: &HashKey, source: [u32; 4], ports: u32) -> u32 {
    let HashKey(k) = key;
    let sum = k[0]
        .wrapping_add(k[1].wrapping_mul(source[0] as u64))
        .wrapping_add(k[2].wrapping_mul(source[1] as u64))
        .wrapping_add(k[3].wrapping_mul(source[2] as u64))
        .wrapping_add(k[4].wrapping_mul(source[3] as u64))
        .wrapping_add(k[PORTS].wrapping_mul(ports as u64));
    finish(k[FINAL], sum)
}

#[inline(always)]
const fn finish(multiplier: u64, sum: u64) -> u32 {
    let mixed = (sum ^ (sum >> 32)).wrapping_mul(multiplier | 1);
    (mixed >> 32) as u32
}

/// The slot of a hash in a table of `size` slots: a multiplication instead of a division.
#[inline(always)]
#[must_use]
pub const fn slot(hash: u32, size: u32) -> u32 {
    ((hash as u64 * size as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: HashKey = HashKey([
        0x9E37_79B9_7F4A_7C15,
        0xD6E8_FEB8_6659_FD93,
        0xA076_1D64_78BD_642F,
        0xE703_7ED1_A0B4_28DB,
        0x8EBC_6AF0_9C88_C6E3,
        0x5899_65CC_7537_4CC3,
        0x1D8E_4E27_C47D_124F,
        0,
    ]);

    /// Chi-square of `n` hashes over 64 cells; 63 degrees of freedom, above 120 one time in 50,000.
    fn chi_square(hashes: impl Iterator<Item = u32>) -> f64 {
        let mut cells = [0_u32; 64];
        let mut n = 0_u32;
        for hash in hashes {
            cells[slot(hash, 64) as usize] += 1;
            n += 1;
        }
        let expected = f64::from(n) / 64.0;
        cells
            .iter()
            .map(|&c| (f64::from(c) - expected).powi(2) / expected)
            .sum()
    }

    #[test]
    fn consecutive_ports_and_addresses_spread_evenly() {
        let address = u32::from_le_bytes([10, 0, 0, 1]);
        let port = |p: u16| {
            let [a, b] = p.to_be_bytes();
            u32::from_le_bytes([a, b, 0, 80])
        };
        assert!(chi_square((1024..65000).map(|p| flow_v4(&KEY, address, port(p)))) < 120.0);
        let addresses = (0..60000_u32).map(|i| (0x0A00_0000 + i).swap_bytes());
        assert!(chi_square(addresses.clone().map(|a| flow_v4(&KEY, a, port(40000)))) < 120.0);
        assert!(chi_square(addresses.map(|a| flow_v6(&KEY, [0x20, 0, 0, a], port(40000)))) < 120.0);
    }

    #[test]
    fn a_v4_flow_hashes_like_the_last_word_of_a_v6_flow() {
        assert_eq!(flow_v4(&KEY, 7, 9), flow_v6(&KEY, [0, 0, 0, 7], 9));
    }

    proptest! {
        #[test]
        fn a_slot_is_in_the_table(hash: u32, size in 1_u32..=131_071) {
            prop_assert!(slot(hash, size) < size);
        }

        #[test]
        fn every_word_and_every_key_word_counts(source: [u32; 4], ports: u32, bit in 0..32_u32, word in 0..5_usize) {
            let mut other = source;
            let mut other_ports = ports;
            if word < 4 { other[word] ^= 1 << bit } else { other_ports ^= 1 << bit }
            let differs = (0..4_u64).any(|salt| {
                let mut key = KEY;
                for (i, w) in key.0.iter_mut().enumerate() {
                    *w = w.wrapping_mul(2 * salt + 1).rotate_left(i as u32 + salt as u32);
                }
                flow_v6(&key, source, ports) != flow_v6(&key, other, other_ports)
            });
            prop_assert!(differs);
        }

        #[test]
        fn key_bytes_round_trip(bytes in proptest::collection::vec(any::<u8>(), 64)) {
            let bytes: [u8; 64] = bytes.try_into().unwrap();
            prop_assert_eq!(HashKey::from_bytes(&bytes).to_bytes(), bytes);
        }
    }
}
