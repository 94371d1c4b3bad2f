//! The reset that answers a TCP segment in the name of a backend that is gone (RFC 9293 section 3.5.2).

use crate::checksum;

/// Length of the header: without options.
pub const TCP_LEN: usize = 20;

const TCP: u16 = 6;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
/// Length of the header in words of 32 bits, in the upper half of its byte.
const OFFSET: u8 = 5 << 4;

/// What the answer depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asking {
    pub sequence: u32,
    pub acknowledgment: u32,
    /// Flags of the segment, as they stand in its header.
    pub flags: u8,
    /// Bytes of data.
    pub data: u32,
}

/// The TCP header of the answer, in 16-bit words as they stand in memory. `ports` are source and destination port
/// of the segment that is answered, as their four bytes stand in memory; `addresses` is the sum of the 16-bit words
/// of its two addresses.
///
/// Its number is the one that the segment acknowledges, else 0 with an acknowledgment of all that the segment has:
/// the only one that its sender takes.
#[inline(always)]
#[must_use]
pub const fn header(asking: Asking, ports: u32, addresses: u32) -> [u16; TCP_LEN / 2] {
    let Asking {
        sequence,
        acknowledgment,
        flags,
        data,
    } = asking;
    let (sequence, acknowledgment, answer) = if flags & ACK != 0 {
        (acknowledgment, 0, RST)
    } else {
        let length = data + (flags & SYN != 0) as u32 + (flags & FIN != 0) as u32;
        (0, sequence.wrapping_add(length), RST | ACK)
    };
    let (to, from) = halves(ports);
    let (s0, s1) = halves(sequence.to_be());
    let (a0, a1) = halves(acknowledgment.to_be());
    let kind = u16::from_ne_bytes([OFFSET, answer]);
    let pseudo = addresses + TCP.to_be() as u32 + (TCP_LEN as u16).to_be() as u32;
    let sum = pseudo + from as u32 + to as u32 + s0 as u32 + s1 as u32 + a0 as u32 + a1 as u32 + kind as u32;
    [from, to, s0, s1, a0, a1, kind, 0, !checksum::fold(sum), 0]
}

/// The two 16-bit words of a word, in the order they stand in memory.
#[inline(always)]
const fn halves(word: u32) -> (u16, u16) {
    let [a, b, c, d] = word.to_ne_bytes();
    (u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORTS: u32 = u32::from_ne_bytes([0x9c, 0x40, 0, 80]);

    fn bytes(asking: Asking) -> Vec<u8> {
        header(asking, PORTS, 7)
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect()
    }

    fn numbers(asking: Asking) -> (u32, u32, u8) {
        let bytes = bytes(asking);
        let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        (word(4), word(8), bytes[13])
    }

    const ASKING: Asking = Asking {
        sequence: u32::MAX,
        acknowledgment: 77,
        flags: ACK,
        data: 10,
    };

    #[test]
    fn an_acknowledging_segment_is_reset_at_the_number_it_acknowledges() {
        assert_eq!(numbers(ASKING), (77, 0, RST));
        let flags = ACK | FIN;
        assert_eq!(numbers(Asking { flags, ..ASKING }), (77, 0, RST));
    }

    #[test]
    fn another_one_is_acknowledged_with_all_that_it_has() {
        for (flags, data, acknowledgment) in [(SYN, 0, 0), (0, 10, 9), (FIN, 10, 10), (SYN | FIN, 2, 3)] {
            let asking = Asking {
                flags,
                data,
                ..ASKING
            };
            assert_eq!(numbers(asking), (0, acknowledgment, RST | ACK), "{flags:#x}");
        }
    }

    #[test]
    fn ports_are_turned_and_the_sum_is_right() {
        let bytes = bytes(ASKING);
        assert_eq!(bytes[..4], [0, 80, 0x9c, 0x40]);
        assert_eq!(bytes[12..], [OFFSET, RST, 0, 0, bytes[16], bytes[17], 0, 0]);
        let pseudo = 7 + u32::from(TCP.to_be()) + u32::from(20_u16.to_be());
        assert_eq!(checksum::fold(checksum::sum(&bytes) + pseudo), 0xffff);
    }
}
