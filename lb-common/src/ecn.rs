//! Explicit congestion notification through a tunnel (RFC 6040): on the way in the outer header has the field of the inner
//! one, on the way out both become one.

/// The bits of the field in a type of service or traffic class.
pub const ECN: u8 = 3;

/// Not capable of ECN.
pub const NOT_ECT: u8 = 0;
pub const ECT_1: u8 = 1;
pub const ECT_0: u8 = 2;
/// Congestion experienced.
pub const CE: u8 = 3;

/// The field of the packet that leaves a tunnel (RFC 6040 section 4.2, figure 4); `None`: drop it, for its sender would
/// not understand the mark, and a drop is what says the same to it. Only the two bits of the arguments count.
#[inline(always)]
#[must_use]
pub const fn decapsulated(inner: u8, outer: u8) -> Option<u8> {
    match (inner & ECN, outer & ECN) {
        (NOT_ECT, CE) => None,
        (NOT_ECT, _) => Some(NOT_ECT),
        (CE, _) | (_, CE) => Some(CE),
        (_, ECT_1) => Some(ECT_1),
        (inner, _) => Some(inner),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_the_rfc() {
        // Rows: the inner field; columns: the outer one, Not-ECT, ECT(0), ECT(1), CE.
        let columns = [NOT_ECT, ECT_0, ECT_1, CE];
        let rows = [
            (NOT_ECT, [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None]),
            (ECT_0, [Some(ECT_0), Some(ECT_0), Some(ECT_1), Some(CE)]),
            (ECT_1, [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)]),
            (CE, [Some(CE); 4]),
        ];
        for (inner, row) in rows {
            for (outer, expected) in columns.into_iter().zip(row) {
                assert_eq!(decapsulated(inner, outer), expected, "{inner:02b} in {outer:02b}");
                assert_eq!(
                    decapsulated(inner | 0xb8, outer | 0x28),
                    expected,
                    "other bits do not count"
                );
            }
        }
    }
}
