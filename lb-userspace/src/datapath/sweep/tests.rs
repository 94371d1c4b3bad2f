use lb_common::layout::{FlowOwner, FlowSeen};

use super::*;

const S: u64 = 1_000_000_000;
const A: u32 = 1;
const B: u32 = 2;

fn case(state: State, seen_s: u64) -> Case {
    Case {
        entry: FlowEntry {
            owner: FlowOwner::new(7, A),
            seen: FlowSeen::new(state, seen_s * S),
            ..FlowEntry::default()
        },
        now_ns: 1000 * S,
        idle_ns: 900 * S,
        dead_before_ns: 0,
        other_dead_before_ns: None,
        closed: false,
        slot: Some(Slot::new(B, A, true)),
    }
}

/// A late copy of a SYN has made an entry out of one that was closing.
#[test]
fn what_had_closed_its_half_is_awaited_as_long_as_ever() {
    let mut case = Case {
        closed: true,
        ..case(State::Unconfirmed, 999 - 60)
    };
    assert_eq!(judge(&case), Verdict::Expired);
    case.entry.before = A;
    assert_eq!(judge(&case), Verdict::Keep);
}

/// Where the backend takes new flows, and where it takes none: it is not awaited for long.
#[test]
fn each_state_has_its_life() {
    for (state, open_s, closed_s) in [
        (State::Unconfirmed, 64, 2),
        (State::Established, 900, 900),
        (State::Closing, 60, 60),
        (State::Contested, 900, 900),
    ] {
        for (closed, life_s) in [(false, open_s), (true, closed_s)] {
            let verdict = |seen_s| {
                judge(&Case {
                    closed,
                    ..case(state, seen_s)
                })
            };
            assert_eq!(verdict(999 - life_s), Verdict::Keep, "{state:?} {closed}");
            assert_eq!(verdict(998 - life_s), Verdict::Expired, "{state:?} {closed}");
        }
    }
}

#[test]
fn an_entry_is_redundant_only_where_its_slot_says_the_same() {
    for (slot, expected) in [
        (Slot::new(A, A, true), Verdict::Redundant),
        (Slot::stable(A), Verdict::Redundant),
        (Slot::new(A, B, true), Verdict::Keep),
        (Slot::new(B, A, true), Verdict::Keep),
        (Slot::new(B, B, true), Verdict::Keep),
    ] {
        let case = Case {
            slot: Some(slot),
            ..case(State::Established, 999)
        };
        assert_eq!(judge(&case), expected, "{slot:?}");
    }
    let unknown = Case {
        slot: None,
        ..case(State::Established, 999)
    };
    assert_eq!(judge(&unknown), Verdict::Keep);
}

#[test]
fn what_was_seen_before_a_death_is_dead() {
    for (seen_s, expected) in [(989, Verdict::Dead), (990, Verdict::Keep)] {
        let case = Case {
            dead_before_ns: 990 * S,
            ..case(State::Established, seen_s)
        };
        assert_eq!(judge(&case), expected);
    }
}

#[test]
fn an_entry_of_two_backends_lives_as_long_as_one_of_them() {
    let shared = |other_dead_before_s: u64| Case {
        dead_before_ns: 990 * S,
        other_dead_before_ns: Some(other_dead_before_s * S),
        ..case(State::Contested, 980)
    };
    assert_eq!(judge(&shared(0)), Verdict::Keep);
    assert_eq!(judge(&shared(990)), Verdict::Dead);
    // And it says more than its slot.
    let mut settled = Case {
        dead_before_ns: 0,
        slot: Some(Slot::new(A, A, true)),
        ..shared(0)
    };
    settled.entry.before = B;
    assert_eq!(judge(&settled), Verdict::Keep);
    settled.entry.before = A;
    assert_eq!(judge(&settled), Verdict::Redundant);
}

#[test]
fn bits_give_back_what_was_put_in() {
    let mut bits = Bits::default();
    let numbers = [0, 1, 63, 64, 4092, 131_070];
    for number in numbers.iter().rev() {
        bits.insert(*number);
        bits.insert(*number);
    }
    assert!(bits.iter().eq(numbers));
}
