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
        slot: Some(Slot::new(B, A, true)),
    }
}

#[test]
fn each_state_has_its_life() {
    for (state, life_s) in [
        (State::Unconfirmed, 64),
        (State::Established, 900),
        (State::Closing, 60),
        (State::Contested, 900),
    ] {
        assert_eq!(judge(&case(state, 999 - life_s)), Verdict::Keep, "{state:?}");
        assert_eq!(judge(&case(state, 998 - life_s)), Verdict::Expired, "{state:?}");
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
