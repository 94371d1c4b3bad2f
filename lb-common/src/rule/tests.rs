use super::*;

const A: u32 = 1;
const B: u32 = 2;
const C: u32 = 3;
/// Everybody serves but 8, which resets, and 9, which is gone.
const RESETS: u32 = 8;
const GONE: u32 = 9;

fn standing(backend: u32) -> Standing {
    match backend {
        RESETS => Standing::Resets,
        GONE => Standing::Gone,
        _ => Standing::Serves,
    }
}

fn rule(slot: Slot, entry: Option<Entry>, packet: Packet) -> (u32, Write, u32) {
    let Decision {
        backend,
        write,
        otherwise,
    } = decide(slot, entry, packet, standing);
    (backend, write, otherwise)
}

fn entry(backend: u32, state: State) -> Option<Entry> {
    Some(Entry {
        backend,
        state,
        isn: 1000,
    })
}

/// Moved from A to B.
const MOVED: Slot = Slot::new(B, A, true);
/// Settled on B, entries may be left.
const SETTLED: Slot = Slot::new(B, B, true);

const FIN: Packet = Packet::Last {
    sequence: 1001,
    reset: false,
};
const RST: Packet = Packet::Last {
    sequence: 1001,
    reset: true,
};

use State::{Closing, Established, Unconfirmed};
use Write::{Insert, Nothing, Occupied, Replace, Touch};

#[test]
fn without_an_entry() {
    for (what, slot, packet, expected) in [
        (
            "a SYN goes to current",
            MOVED,
            Packet::Syn(5),
            (B, Insert(Unconfirmed), A),
        ),
        (
            "data belongs to previous",
            MOVED,
            Packet::Data(5),
            (A, Insert(Established), A),
        ),
        ("a FIN too", MOVED, FIN, (A, Insert(Closing), A)),
        ("a reset needs no entry", MOVED, RST, (A, Nothing, A)),
        (
            "UDP belongs to previous",
            MOVED,
            Packet::Datagram,
            (A, Insert(Established), A),
        ),
        ("an error too", MOVED, Packet::Error, (A, Nothing, A)),
        (
            "nothing moves: no entry",
            SETTLED,
            Packet::Syn(5),
            (B, Nothing, B),
        ),
        (
            "nothing moves: no entry",
            SETTLED,
            Packet::Data(5),
            (B, Nothing, B),
        ),
        (
            "nothing moves: no entry",
            SETTLED,
            Packet::Datagram,
            (B, Nothing, B),
        ),
    ] {
        assert_eq!(rule(slot, None, packet), expected, "{what}");
    }
}

#[test]
fn an_entry_is_followed() {
    for slot in [MOVED, SETTLED] {
        for (packet, state, write) in [
            (Packet::Data(1), Established, Touch(Established)),
            (Packet::Data(1), Closing, Touch(Closing)),
            (FIN, Established, Touch(Closing)),
            (RST, Established, Touch(Closing)),
            (Packet::Datagram, Established, Touch(Established)),
            (Packet::Syn(77), Established, Nothing),
            (Packet::Syn(1000), Unconfirmed, Nothing),
            (Packet::Error, Established, Nothing),
            (Packet::Error, Closing, Nothing),
        ] {
            assert_eq!(
                rule(slot, entry(C, state), packet),
                (C, write, C),
                "{packet:?} {state:?}"
            );
        }
    }
}

#[test]
fn the_first_segment_after_a_syn_confirms_it() {
    for (offset, expected) in [
        (0, (A, Occupied, A)),
        (1, (B, Touch(Established), B)),
        (CONFIRM_WINDOW, (B, Touch(Established), B)),
        (CONFIRM_WINDOW + 1, (A, Occupied, A)),
        (u32::MAX, (A, Occupied, A)),
    ] {
        let packet = Packet::Data(1000_u32.wrapping_add(offset));
        assert_eq!(rule(MOVED, entry(B, Unconfirmed), packet), expected, "{offset}");
    }
    assert_eq!(rule(MOVED, entry(B, Unconfirmed), FIN), (B, Touch(Closing), B));
}

#[test]
fn sequence_numbers_wrap() {
    let young = Some(Entry {
        backend: B,
        state: Unconfirmed,
        isn: u32::MAX - 10,
    });
    assert_eq!(rule(MOVED, young, Packet::Data(20)), (B, Touch(Established), B));
}

#[test]
fn a_forged_syn_takes_no_entry_away() {
    assert_eq!(
        rule(MOVED, entry(B, Unconfirmed), Packet::Syn(7)),
        (A, Occupied, A)
    );
    assert_eq!(
        rule(SETTLED, entry(C, Unconfirmed), Packet::Syn(7)),
        (B, Occupied, B)
    );
    assert_eq!(rule(MOVED, entry(B, Unconfirmed), Packet::Error), (A, Nothing, A));
}

#[test]
fn ports_that_are_used_again_begin_anew() {
    assert_eq!(
        rule(MOVED, entry(A, Closing), Packet::Syn(7)),
        (B, Replace(Unconfirmed), A)
    );
    assert_eq!(
        rule(SETTLED, entry(A, Closing), Packet::Syn(7)),
        (B, Replace(Unconfirmed), B)
    );
}

#[test]
fn a_dead_entry_counts_for_nothing() {
    for state in [Unconfirmed, Established, Closing] {
        let dead = entry(GONE, state);
        assert_eq!(rule(MOVED, dead, Packet::Syn(7)), (B, Replace(Unconfirmed), A));
        assert_eq!(rule(MOVED, dead, Packet::Data(7)), (A, Replace(Established), A));
        assert_eq!(rule(SETTLED, dead, Packet::Syn(7)), (B, Replace(Unconfirmed), B));
        assert_eq!(rule(SETTLED, dead, Packet::Data(7)), (B, Nothing, B));
    }
}

#[test]
fn a_previous_that_serves_no_longer_owns_nothing() {
    let slot = Slot::new(B, GONE, true);
    assert_eq!(rule(slot, None, Packet::Data(7)), (B, Nothing, B));
    assert_eq!(rule(slot, None, Packet::Syn(7)), (B, Insert(Unconfirmed), B));
}

#[test]
fn a_backend_that_resets_keeps_its_old_flows_and_gets_no_syn() {
    let slot = Slot::new(B, RESETS, true);
    assert_eq!(rule(slot, None, Packet::Data(7)), (RESETS, Nothing, RESETS));
    assert_eq!(rule(slot, None, Packet::Syn(7)), (B, Insert(Unconfirmed), 0));
    let old = entry(RESETS, Established);
    assert_eq!(
        rule(MOVED, old, Packet::Data(7)),
        (RESETS, Touch(Established), RESETS)
    );
    assert_eq!(rule(MOVED, old, Packet::Syn(7)), (B, Replace(Unconfirmed), A));
}

#[test]
fn where_nobody_takes_new_flows_old_ones_go_on() {
    let slot = Slot::new(0, A, true);
    assert_eq!(rule(slot, None, Packet::Syn(7)), (0, Nothing, 0));
    assert_eq!(rule(slot, None, Packet::Data(7)), (A, Insert(Established), A));
    assert_eq!(rule(slot, entry(A, Closing), Packet::Syn(7)), (0, Nothing, 0));
}

#[test]
fn a_slot_of_a_table_that_is_resized() {
    let stable = Slot::resizing(Slot::stable(A), Slot::stable(A));
    assert_eq!(
        (stable.current(), stable.previous(), stable.consult()),
        (A, A, false)
    );
    let moved = Slot::resizing(Slot::stable(B), Slot::stable(A));
    assert_eq!((moved.current(), moved.previous(), moved.consult()), (B, A, true));
    let dead = Slot::resizing(Slot::stable(B), Slot::new(A, 0, false));
    assert_eq!((dead.current(), dead.previous(), dead.consult()), (B, B, false));
    // Entries made before, or in the meantime, go on being looked for.
    assert!(Slot::resizing(Slot::new(A, A, true), Slot::stable(A)).consult());
    assert!(Slot::resizing(Slot::stable(A), Slot::new(C, A, true)).consult());
}
