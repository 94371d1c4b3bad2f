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

fn at(place: Place, entry: Option<Entry>, packet: Packet) -> (u32, Write, u32) {
    let Decision {
        backend,
        write,
        otherwise,
    } = decide(place, entry, packet, standing);
    (backend, write, otherwise)
}

const fn place(slot: Slot) -> Place {
    Place {
        slot,
        resizing: false,
        held: false,
    }
}

fn rule(slot: Slot, entry: Option<Entry>, packet: Packet) -> (u32, Write, u32) {
    at(place(slot), entry, packet)
}

/// The entry of a SYN with the number 1000, or of the connection that came of it.
const fn made(backend: u32, state: State) -> Entry {
    Entry {
        backend,
        state,
        isn: 1000,
        before: 0,
    }
}

fn entry(backend: u32, state: State) -> Option<Entry> {
    Some(made(backend, state))
}

/// An entry that two connections share.
const fn shared(backend: u32, state: State, before: u32) -> Entry {
    Entry {
        before,
        ..made(backend, state)
    }
}

/// What a SYN with this number has to be written.
const fn young(backend: u32, isn: u32) -> Entry {
    Entry {
        isn,
        ..Entry::of(backend, Unconfirmed)
    }
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

use State::{Closing, Contested, Established, Unconfirmed};
use Write::{Bury, Insert, Nothing, Replace, Touch};

#[test]
fn without_an_entry() {
    for (what, slot, packet, expected) in [
        (
            "a SYN goes to current",
            MOVED,
            Packet::Syn(5),
            (B, Insert(young(B, 5)), A),
        ),
        (
            "data belongs to previous",
            MOVED,
            Packet::Data(5),
            (A, Insert(Entry::of(A, Established)), A),
        ),
        ("a FIN too", MOVED, FIN, (A, Insert(Entry::of(A, Closing)), A)),
        ("a reset needs no entry", MOVED, RST, (A, Nothing, A)),
        (
            "UDP belongs to previous",
            MOVED,
            Packet::Datagram,
            (A, Insert(Entry::of(A, Established)), A),
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
            (Packet::Syn(1000), Unconfirmed, Touch(Unconfirmed)),
            (Packet::Syn(1300), Unconfirmed, Touch(Unconfirmed)),
            (Packet::Syn(1000), Contested, Touch(Contested)),
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
    let not_its = (A, Replace(shared(B, Contested, A)), A);
    for (offset, expected) in [
        (0, not_its),
        (1, (B, Touch(Established), B)),
        (CONFIRM_WINDOW, (B, Touch(Established), B)),
        (CONFIRM_WINDOW + 1, not_its),
        (u32::MAX, not_its),
    ] {
        let packet = Packet::Data(1000_u32.wrapping_add(offset));
        assert_eq!(rule(MOVED, entry(B, Unconfirmed), packet), expected, "{offset}");
    }
    assert_eq!(rule(MOVED, entry(B, Unconfirmed), FIN), (B, Touch(Closing), B));
}

#[test]
fn sequence_numbers_wrap() {
    let young = Some(Entry {
        isn: u32::MAX - 10,
        ..made(B, Unconfirmed)
    });
    assert_eq!(rule(MOVED, young, Packet::Data(20)), (B, Touch(Established), B));
}

#[test]
fn a_forged_syn_takes_no_entry_away() {
    // It goes where the connection is, if there is one; what comes of it is known.
    let forged = Packet::Syn(7 << 20);
    assert_eq!(
        rule(MOVED, entry(B, Unconfirmed), forged),
        (A, Replace(shared(B, Unconfirmed, A)), 0)
    );
    assert_eq!(
        rule(SETTLED, entry(C, Unconfirmed), forged),
        (B, Replace(shared(C, Unconfirmed, B)), 0)
    );
    for state in [Unconfirmed, Contested] {
        let entry = Some(shared(B, state, C));
        assert_eq!(rule(MOVED, entry, forged), (C, Touch(state), C));
        assert_eq!(rule(MOVED, entry, Packet::Error), (C, Nothing, C));
    }
    assert_eq!(rule(MOVED, entry(B, Unconfirmed), Packet::Error), (A, Nothing, A));
    let nobody = Slot::new(0, 0, true);
    assert_eq!(rule(nobody, entry(B, Unconfirmed), forged), (0, Nothing, 0));
}

#[test]
fn a_connection_that_a_syn_meets_goes_on_beside_it() {
    let entry = |state| Some(shared(B, state, C));
    let other = 9 << 20;
    let other_fin = Packet::Last {
        sequence: other,
        reset: false,
    };
    for state in [Unconfirmed, Contested] {
        for (packet, expected) in [
            (Packet::Data(other), (C, Touch(Contested), C)),
            (other_fin, (C, Touch(state), C)),
            (Packet::Data(1001), (B, Touch(Established), B)),
            (FIN, (B, Touch(Closing), B)),
            // Where a forged SYN's answer goes to a client that has no such connection.
            (RST, (B, Replace(Entry::of(C, Established)), B)),
        ] {
            assert_eq!(
                rule(MOVED, entry(state), packet),
                expected,
                "{packet:?} {state:?}"
            );
        }
        // One of the two backends is gone.
        let alone = Some(shared(GONE, state, C));
        let kept = Replace(Entry::of(C, Established));
        assert_eq!(rule(MOVED, alone, Packet::Data(1001)), (C, kept, C));
        assert_eq!(rule(MOVED, alone, Packet::Syn(7)), (C, Nothing, C));
        let alone = Some(shared(B, state, GONE));
        let again = Replace(shared(B, Contested, A));
        assert_eq!(rule(MOVED, alone, Packet::Data(other)), (A, again, A));
    }
    // Where nothing moves, it belongs to `previous` without an entry.
    assert_eq!(
        rule(SETTLED, Some(made(C, Unconfirmed)), Packet::Data(other)),
        (B, Nothing, B)
    );
}

#[test]
fn ports_that_are_used_again_begin_anew() {
    let anew = |before| {
        Replace(Entry {
            before,
            ..young(B, 7)
        })
    };
    assert_eq!(rule(MOVED, entry(A, Closing), Packet::Syn(7)), (B, anew(A), 0));
    assert_eq!(rule(SETTLED, entry(A, Closing), Packet::Syn(7)), (B, anew(A), 0));
}

#[test]
fn a_dead_entry_counts_for_nothing() {
    for state in [Unconfirmed, Established, Closing, Contested] {
        let dead = entry(GONE, state);
        let (syn, data) = (Packet::Syn(7), Packet::Data(7));
        assert_eq!(rule(MOVED, dead, syn), (B, Bury(young(B, 7)), A));
        assert_eq!(rule(SETTLED, dead, syn), (B, Bury(young(B, 7)), B));
        for packet in [data, Packet::Datagram] {
            let kept = |backend| (backend, Bury(Entry::of(backend, Established)), backend);
            assert_eq!(rule(MOVED, dead, packet), kept(A));
            // It would come back to life with its backend.
            assert_eq!(rule(SETTLED, dead, packet), kept(B));
        }
    }
}

#[test]
fn before_windows_end_a_refused_syn_is_dropped() {
    let held = |slot| Place {
        held: true,
        ..place(slot)
    };
    let (syn, data) = (Packet::Syn(5), Packet::Data(5));
    assert_eq!(at(held(MOVED), None, syn), (B, Insert(young(B, 5)), 0));
    assert_eq!(
        at(held(MOVED), None, data),
        (A, Insert(Entry::of(A, Established)), A)
    );
    assert_eq!(at(held(SETTLED), None, syn), (B, Nothing, B));
}

#[test]
fn during_a_resize_every_flow_gets_an_entry() {
    let resizing = Place {
        resizing: true,
        ..place(Slot::resizing(Slot::stable(A), Slot::stable(A)))
    };
    assert_eq!(at(resizing, None, Packet::Syn(5)), (A, Insert(young(A, 5)), A));
    assert_eq!(
        at(resizing, None, Packet::Data(5)),
        (A, Insert(Entry::of(A, Established)), A)
    );
}

#[test]
fn a_previous_that_serves_no_longer_owns_nothing() {
    let slot = Slot::new(B, GONE, true);
    assert_eq!(rule(slot, None, Packet::Data(7)), (B, Nothing, B));
    assert_eq!(rule(slot, None, Packet::Syn(7)), (B, Insert(young(B, 7)), B));
}

#[test]
fn a_backend_that_resets_keeps_its_old_flows_and_gets_no_syn() {
    let slot = Slot::new(B, RESETS, true);
    assert_eq!(rule(slot, None, Packet::Data(7)), (RESETS, Nothing, RESETS));
    assert_eq!(rule(slot, None, Packet::Syn(7)), (B, Insert(young(B, 7)), 0));
    let old = entry(RESETS, Established);
    assert_eq!(
        rule(MOVED, old, Packet::Data(7)),
        (RESETS, Touch(Established), RESETS)
    );
    assert_eq!(rule(MOVED, old, Packet::Syn(7)), (B, Bury(young(B, 7)), A));
}

#[test]
fn where_nobody_takes_new_flows_old_ones_go_on() {
    let slot = Slot::new(0, A, true);
    assert_eq!(rule(slot, None, Packet::Syn(7)), (0, Nothing, 0));
    assert_eq!(
        rule(slot, None, Packet::Data(7)),
        (A, Insert(Entry::of(A, Established)), A)
    );
    assert_eq!(rule(slot, entry(A, Closing), Packet::Syn(7)), (0, Nothing, 0));
}

#[test]
fn a_slot_of_a_table_that_is_resized() {
    let slot = |now, before| {
        let slot = Slot::resizing(now, before);
        (slot.current(), slot.previous(), slot.consult())
    };
    assert_eq!(slot(Slot::stable(A), Slot::stable(A)), (A, A, true));
    assert_eq!(slot(Slot::stable(B), Slot::new(C, A, true)), (B, A, true));
    assert_eq!(slot(Slot::stable(B), Slot::new(A, 0, false)), (B, B, true));
}

#[test]
fn of_quic_an_initial_packet_is_the_syn() {
    let initial = Packet::Initial;
    // Without an entry.
    for slot in [MOVED, SETTLED] {
        assert_eq!(rule(slot, None, initial(7)), rule(slot, None, Packet::Syn(7)));
        assert_eq!(
            rule(slot, None, Packet::Handshake),
            rule(slot, None, Packet::Datagram)
        );
        assert_eq!(
            rule(slot, entry(C, Established), initial(7)),
            (C, Nothing, C),
            "from the port of a connection that lives"
        );
        let dead = entry(GONE, Established);
        assert_eq!(rule(slot, dead, initial(7)).1, Bury(young(B, 7)));
    }
    let held = Place {
        held: true,
        ..place(MOVED)
    };
    assert_eq!(at(held, None, initial(5)), (B, Insert(young(B, 5)), 0));
    // With the entry that it made: once more, and what follows it.
    for before in [0, A] {
        for state in [Unconfirmed, Contested] {
            let young = Some(shared(B, state, before));
            assert_eq!(rule(MOVED, young, initial(1000)), (B, Touch(state), B));
            for packet in [initial(77), Packet::Handshake] {
                assert_eq!(
                    rule(MOVED, young, packet),
                    (B, Touch(Established), B),
                    "{packet:?}"
                );
            }
        }
    }
}

#[test]
fn a_short_header_before_the_handshake_is_of_another_connection() {
    let young = entry(B, Unconfirmed);
    let both = Replace(shared(B, Contested, A));
    assert_eq!(rule(MOVED, young, Packet::Datagram), (A, both, A));
    let contested = Some(shared(B, Contested, A));
    assert_eq!(rule(MOVED, contested, Packet::Datagram), (A, Touch(Contested), A));
    assert_eq!(rule(SETTLED, young, Packet::Datagram), (B, Nothing, B));
    let alone = Some(shared(GONE, Contested, A));
    let kept = Replace(Entry::of(A, Established));
    assert_eq!(rule(MOVED, alone, Packet::Datagram), (A, kept, A));
    assert_eq!(
        rule(MOVED, entry(B, Established), Packet::Datagram),
        (B, Touch(Established), B)
    );
}
