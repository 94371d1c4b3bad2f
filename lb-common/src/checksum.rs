//! Internet checksums (RFC 1071), kept as sums of 16-bit words in the order they stand in memory. The sum
//! is independent of byte order as long as all of it uses the same one (RFC 1071, section 2 (B)).

/// Adds the carries back until the sum fits 16 bits. `sum` may be up to 2^32 - 1.
#[inline(always)]
#[must_use]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The sum of an even number of bytes as 16-bit words in memory order, not folded.
#[must_use]
pub fn sum(bytes: &[u8]) -> u32 {
    debug_assert!(bytes.len().is_multiple_of(2) && bytes.len() <= 65536);
    bytes
        .chunks_exact(2)
        .map(|w| u32::from(u16::from_ne_bytes([w[0], w[1]])))
        .sum()
}

/// The checksum of a ready-made IPv4 header of 20 bytes whose type of service, total length and checksum are
/// zero in `seed`, once those two are set. All values in memory order; the result too.
///
/// `tos_word` is the header's first word with only the type of service in it.
#[inline(always)]
#[must_use]
pub const fn ipv4_from_seed(seed: u16, tos_word: u16, total_length: u16) -> u16 {
    ipv4_with(seed, tos_word, total_length, 0)
}

/// The same where one more word of the header had zeros in `seed` which now are `more`.
#[inline(always)]
#[must_use]
pub const fn ipv4_with(seed: u16, tos_word: u16, total_length: u16, more: u16) -> u16 {
    !fold(seed as u32 + tos_word as u32 + total_length as u32 + more as u32)
}

/// The checksum `check` after one 16-bit word it covers changed from `old` to `new` (RFC 1624, equation 3). All
/// values in memory order.
#[inline(always)]
#[must_use]
pub const fn update(check: u16, old: u16, new: u16) -> u16 {
    !fold(!check as u32 + !old as u32 + new as u32)
}

/// A sum of 32-bit or folded sums, brought down to 16 bits.
#[inline(always)]
#[must_use]
pub const fn fold_wide(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
    fold(sum as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_example_of_rfc_1071_section_3() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(u16::from_be(fold(sum(&bytes))), 0xddf2);
    }

    /// What a receiver does: the checksum is right where the sum of everything is 0xffff.
    fn verifies(words: &[u16], check: u16) -> bool {
        fold(words.iter().map(|&w| u32::from(w)).sum::<u32>() + u32::from(check)) == 0xffff
    }

    #[test]
    fn every_checksum_of_an_echo_request_becomes_that_of_its_reply() {
        for check in 0..=u16::MAX {
            // The rest of the message is what makes `check` right.
            let rest = fold(u32::from(!check) + u32::from(!8_u16));
            assert!(verifies(&[8, rest], check));
            let answer = update(check, 8, 0);
            // Of a message of zeros only 0xffff is a checksum, and it is as good as 0 of any other.
            let answer = if answer == 0 { 0xffff } else { answer };
            assert!(verifies(&[0, rest], answer), "{check:#x}");
            assert!(rest != 0xffff || verifies(&[0, 0], answer), "{check:#x}");
        }
    }

    proptest! {
        #[test]
        fn an_update_is_a_new_computation(words: [u16; 5], at in 0..5_usize, new: u16) {
            let sum = |words: &[u16]| words.iter().map(|&w| u32::from(w)).sum::<u32>();
            let check = !fold(sum(&words));
            let mut changed = words;
            changed[at] = new;
            prop_assume!(changed.iter().any(|&word| word != 0));
            prop_assert!(verifies(&changed, update(check, words[at], new)));
        }

        #[test]
        fn wide_sums_fold_like_narrow_ones(words in proptest::collection::vec(any::<u32>(), 1..64)) {
            let wide: u64 = words.iter().map(|&w| u64::from(w)).sum();
            let narrow: u32 = words.iter().map(|&w| (w & 0xffff) + (w >> 16)).sum();
            prop_assert_eq!(fold_wide(wide), fold(narrow));
        }

        #[test]
        fn a_seed_gives_the_same_checksum_as_the_whole_header(
            tos: u8, total_length: u16, source: [u8; 4], destination: [u8; 4],
        ) {
            let mut header = [0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            header[12..16].copy_from_slice(&source);
            header[16..20].copy_from_slice(&destination);
            let seed = fold(sum(&header));
            header[1] = tos;
            header[2..4].copy_from_slice(&total_length.to_be_bytes());
            let whole = !fold(sum(&header));
            let tos_word = u16::from_ne_bytes([0, tos]);
            prop_assert_eq!(ipv4_from_seed(seed, tos_word, total_length.to_be()), whole);
            header[10..12].copy_from_slice(&whole.to_ne_bytes());
            prop_assert_eq!(fold(sum(&header)), 0xffff);
        }
    }
}
