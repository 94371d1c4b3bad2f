use proptest::prelude::*;

use super::OperState::{Down, Unknown, Up};
use super::*;

const MS: Duration = Duration::from_millis(1);

/// The defaults, without randomness.
fn policy() -> Policy {
    Policy {
        interval: 2000 * MS,
        timeout: 1000 * MS,
        fast_interval: 200 * MS,
        fast_timeout: 300 * MS,
        down_interval: None,
        rise: 2,
        fall: 3,
        jitter_percent: 0,
    }
}

const PASSED: Option<bool> = Some(true);
const FAILED: Option<bool> = Some(false);
const NOT_SENT: Option<bool> = None;
const BELIEVED: bool = true;

fn machine(state: OperState, passes: u32, failures: u32) -> Machine {
    Machine {
        policy: policy(),
        state,
        passes,
        failures,
        came_to_rest: false,
    }
}

/// Every state with every count it can have below a verdict, and every result: state and counts after it.
#[test]
fn every_transition() {
    type Row = ((OperState, u32, u32), Option<bool>, (OperState, u32, u32));
    let table: [Row; 27] = [
        // Never checked: one result decides.
        ((Unknown, 0, 0), PASSED, (Up, 1, 0)),
        ((Unknown, 0, 0), FAILED, (Down, 0, 1)),
        ((Unknown, 0, 0), NOT_SENT, (Unknown, 0, 0)),
        // UP by an earlier run, nothing heard yet.
        ((Up, 0, 0), PASSED, (Up, 1, 0)),
        ((Up, 0, 0), FAILED, (Up, 0, 1)),
        ((Up, 0, 0), NOT_SENT, (Up, 0, 0)),
        ((Up, 1, 0), PASSED, (Up, 2, 0)),
        ((Up, 1, 0), FAILED, (Up, 0, 1)),
        ((Up, 1, 0), NOT_SENT, (Up, 1, 0)),
        ((Up, 0, 1), PASSED, (Up, 1, 0)),
        ((Up, 0, 1), FAILED, (Up, 0, 2)),
        ((Up, 0, 1), NOT_SENT, (Up, 0, 1)),
        ((Up, 0, 2), PASSED, (Up, 1, 0)),
        ((Up, 0, 2), FAILED, (Down, 0, 3)),
        ((Up, 0, 2), NOT_SENT, (Up, 0, 2)),
        // DOWN by an earlier run, nothing heard yet.
        ((Down, 0, 0), PASSED, (Down, 1, 0)),
        ((Down, 0, 0), FAILED, (Down, 0, 1)),
        ((Down, 0, 0), NOT_SENT, (Down, 0, 0)),
        // DOWN by the first result ever.
        ((Down, 0, 1), PASSED, (Down, 1, 0)),
        ((Down, 0, 1), FAILED, (Down, 0, 2)),
        ((Down, 0, 1), NOT_SENT, (Down, 0, 1)),
        ((Down, 0, 3), PASSED, (Down, 1, 0)),
        ((Down, 0, 3), FAILED, (Down, 0, 4)),
        ((Down, 0, 3), NOT_SENT, (Down, 0, 3)),
        ((Down, 1, 0), PASSED, (Up, 2, 0)),
        ((Down, 1, 0), FAILED, (Down, 0, 1)),
        ((Down, 1, 0), NOT_SENT, (Down, 1, 0)),
    ];
    for (before, result, after) in table {
        let mut machine = machine(before.0, before.1, before.2);
        let changed = machine.observe(result, BELIEVED);
        assert_eq!(
            (machine.state(), machine.passes(), machine.failures()),
            after,
            "{before:?} {result:?}"
        );
        assert_eq!(
            changed,
            (before.0 != after.0).then_some((before.0, after.0)),
            "{before:?} {result:?}"
        );
    }
}

#[test]
fn pace_and_patience_by_state() {
    let policy = Policy {
        down_interval: Some(7000 * MS),
        ..policy()
    };
    for ((state, passes, failures), timeout, wait) in [
        ((Unknown, 0, 0), 1000, 200),
        ((Up, 0, 0), 300, 200),
        ((Up, 1, 0), 1000, 2000),
        ((Up, 0, 1), 300, 200),
        ((Up, 0, 2), 300, 200),
        ((Down, 0, 0), 1000, 200),
        ((Down, 0, 3), 1000, 7000),
        ((Down, 1, 0), 1000, 200),
    ] {
        let machine = Machine {
            policy,
            ..machine(state, passes, failures)
        };
        let expected = (timeout * MS, wait * MS);
        assert_eq!(
            (machine.timeout(), machine.wait(0.5)),
            expected,
            "{state} {passes} {failures}"
        );
    }
}

/// A failure that is not believed, in every state with every count: it counts, and takes nobody out who was UP.
#[test]
fn every_transition_by_a_failure_in_doubt() {
    type Row = ((OperState, u32, u32), (OperState, u32, u32));
    let table: [Row; 11] = [
        // One result decides, whatever it is: what was never UP has nothing to lose.
        ((Unknown, 0, 0), (Down, 0, 1)),
        ((Up, 0, 0), (Up, 0, 1)),
        ((Up, 1, 0), (Up, 0, 1)),
        ((Up, 0, 1), (Up, 0, 2)),
        ((Up, 0, 2), (Up, 0, 3)),
        ((Up, 0, 3), (Up, 0, 4)),
        ((Up, 0, 99), (Up, 0, 100)),
        ((Down, 0, 0), (Down, 0, 1)),
        ((Down, 0, 1), (Down, 0, 2)),
        ((Down, 0, 3), (Down, 0, 4)),
        ((Down, 1, 0), (Down, 0, 1)),
    ];
    for (before, after) in table {
        let mut machine = machine(before.0, before.1, before.2);
        machine.observe(FAILED, false);
        let found = (machine.state(), machine.passes(), machine.failures());
        assert_eq!(found, after, "{before:?}");
        assert_eq!(machine.doubted(), after.0 == Up && after.2 >= 3, "{before:?}");
    }
}

#[test]
fn a_doubted_target_rests_until_a_failure_is_believed() {
    let mut machine = machine(Up, 0, 2);
    assert_eq!(machine.observe(FAILED, false), None);
    assert!(machine.doubted() && !machine.in_transition());
    assert_eq!(machine.wait(0.5), 2000 * MS);
    assert_eq!(
        machine.timeout(),
        300 * MS,
        "what it may take while UP is in question"
    );
    assert_eq!(machine.observe(NOT_SENT, BELIEVED), None, "says nothing");
    assert_eq!(machine.observe(FAILED, BELIEVED), Some((Up, Down)));
    assert!(!machine.doubted());
}

#[test]
fn an_answer_ends_the_doubt() {
    let mut machine = machine(Up, 0, 7);
    assert_eq!(machine.observe(PASSED, false), None);
    assert!(!machine.doubted());
    assert_eq!(machine.observe(FAILED, BELIEVED), None, "counts begin anew");
}

#[test]
fn down_is_probed_like_up_without_an_interval_of_its_own() {
    assert_eq!(machine(Down, 0, 3).wait(0.5), 2000 * MS);
}

#[test]
fn a_probe_longer_than_its_interval_is_followed_at_once() {
    let started = Instant::now();
    let machine = machine(Up, 0, 1);
    assert_eq!(
        machine.next_probe(started, started + 300 * MS, 0.5),
        started + 300 * MS
    );
    assert_eq!(
        machine.next_probe(started, started + 5 * MS, 0.5),
        started + 200 * MS
    );
}

#[test]
fn jitter_shortens_by_its_percentage() {
    let mut machine = machine(Up, 5, 0);
    machine.policy.jitter_percent = 10;
    assert_eq!(machine.wait(0.0), 2000 * MS);
    assert_eq!(machine.wait(0.5), 1900 * MS);
    assert_eq!(machine.wait(1.0), 1800 * MS);
    machine.observe(FAILED, BELIEVED);
    assert_eq!(machine.wait(1.0), 180 * MS);
}

#[test]
fn the_first_wait_at_rest_spreads_over_the_interval() {
    let mut machine = machine(Up, 0, 1);
    machine.policy.jitter_percent = 10;
    machine.observe(PASSED, BELIEVED);
    assert_eq!(machine.wait(0.0), 2000 * MS);
    assert_eq!(machine.wait(0.5), 1100 * MS);
    assert_eq!(machine.wait(1.0), 200 * MS);
    machine.observe(PASSED, BELIEVED);
    assert_eq!(machine.wait(1.0), 1800 * MS, "only the first");
    machine.policy.jitter_percent = 0;
    assert_eq!(machine.wait(1.0), 2000 * MS, "not without jitter");
}

#[test]
fn an_interval_of_nothing_does_not_spin() {
    let nothing = Duration::ZERO;
    let policy = Policy {
        interval: nothing,
        fast_interval: nothing,
        jitter_percent: 100,
        ..policy()
    };
    let mut machine = Machine::new(policy, Unknown);
    for result in [NOT_SENT, PASSED, PASSED, FAILED] {
        machine.observe(result, BELIEVED);
        assert_eq!(machine.wait(1.0), SHORTEST_WAIT);
    }
}

#[test]
fn rise_and_fall_of_0_mean_1() {
    let mut machine = Machine::new(
        Policy {
            rise: 0,
            fall: 0,
            ..policy()
        },
        Up,
    );
    assert_eq!(machine.observe(FAILED, BELIEVED), Some((Up, Down)));
    assert_eq!(machine.observe(NOT_SENT, BELIEVED), None);
    assert_eq!(machine.observe(PASSED, BELIEVED), Some((Down, Up)));
    assert_eq!(machine.observe(NOT_SENT, BELIEVED), None);
}

#[test]
fn another_policy_keeps_state_and_counts() {
    let mut machine = machine(Up, 0, 2);
    machine.set_policy(Policy { fall: 5, ..policy() });
    assert_eq!(machine.observe(FAILED, BELIEVED), None);
    machine.set_policy(Policy { fall: 2, ..policy() });
    assert_eq!((machine.state(), machine.failures()), (Up, 3));
    assert_eq!(machine.observe(FAILED, BELIEVED), Some((Up, Down)));
}

#[test]
fn forgetting_keeps_the_state_until_it_is_contradicted() {
    let mut machine = machine(Up, 0, 2);
    machine.forget_results();
    assert!(machine.in_transition());
    assert_eq!(machine.observe(FAILED, BELIEVED), None);
    assert_eq!(machine.observe(FAILED, BELIEVED), None);
    assert_eq!(machine.observe(FAILED, BELIEVED), Some((Up, Down)));
}

#[test]
fn assuming_is_a_change_only_where_it_differs() {
    let mut machine = machine(Unknown, 0, 0);
    assert_eq!(machine.assume(Up), Some((Unknown, Up)));
    assert_eq!(machine.assume(Up), None);
}

fn any_policy() -> impl Strategy<Value = Policy> {
    (
        1..5000_u32,
        1..5000_u32,
        1..1000_u32,
        1..2000_u32,
        proptest::option::of(1..9000_u32),
        0..6_u32,
        0..6_u32,
    )
        .prop_flat_map(
            |(interval, timeout, fast_interval, fast_timeout, down_interval, rise, fall)| {
                (0..=100_u8).prop_map(move |jitter_percent| Policy {
                    interval: interval * MS,
                    timeout: timeout * MS,
                    fast_interval: fast_interval * MS,
                    fast_timeout: fast_timeout * MS,
                    down_interval: down_interval.map(|ms| ms * MS),
                    rise,
                    fall,
                    jitter_percent,
                })
            },
        )
}

/// Whether a result is believed.
fn belief() -> impl Strategy<Value = bool> {
    prop::bool::weighted(0.7)
}

fn any_result() -> impl Strategy<Value = Option<bool>> {
    prop_oneof![4 => Just(PASSED), 4 => Just(FAILED), 1 => Just(NOT_SENT)]
}

/// From the start of the first failing probe of a target at rest in UP to the verdict, where each probe lasts
/// `lasts` times what it may.
fn time_to_verdict(policy: Policy, draws: &[f64], lasts: &[f64]) -> Duration {
    let mut machine = Machine::new(policy, Up);
    machine.observe(PASSED, BELIEVED);
    machine.observe(PASSED, BELIEVED);
    let first = Instant::now();
    let mut started = first;
    for (draw, lasts) in draws.iter().zip(lasts) {
        let ended = started + machine.timeout().mul_f64(*lasts);
        if machine.observe(FAILED, BELIEVED) == Some((Up, Down)) {
            return ended - first;
        }
        started = machine.next_probe(started, ended, *draw);
    }
    panic!("no verdict after {} failures", lasts.len());
}

/// Draws and durations are in full or nothing half of the time: the extremes matter most.
fn part() -> impl Strategy<Value = f64> {
    prop_oneof![Just(0.0), Just(1.0), 0.0..=1.0]
}

proptest! {
    /// The state as somebody would tell it who reads the list of results from its end.
    #[test]
    fn the_state_follows_from_the_last_results(
        policy in any_policy(),
        previous in prop_oneof![Just(Unknown), Just(Up), Just(Down)],
        results in proptest::collection::vec(any_result(), 0..60),
    ) {
        let mut machine = Machine::new(policy, previous);
        let mut expected = previous;
        let mut verdicts = Vec::new();
        for result in results {
            let before = expected;
            verdicts.extend(result);
            let in_a_row = |wanted: bool| verdicts.iter().rev().take_while(|v| **v == wanted).count();
            expected = match expected {
                Unknown if verdicts.is_empty() => Unknown,
                Unknown => if verdicts[0] { Up } else { Down },
                Up if in_a_row(false) >= policy.fall.max(1) as usize => Down,
                Down if in_a_row(true) >= policy.rise.max(1) as usize => Up,
                same => same,
            };
            let changed = machine.observe(result, BELIEVED);
            prop_assert_eq!(machine.state(), expected);
            prop_assert_eq!(changed, (before != expected).then_some((before, expected)));
            prop_assert!(machine.passes() == 0 || machine.failures() == 0);
        }
    }

    /// No flap without results in a row, and none by a failure that is not believed.
    #[test]
    fn no_change_without_results_in_a_row(
        policy in any_policy(),
        previous in prop_oneof![Just(Unknown), Just(Up), Just(Down)],
        results in proptest::collection::vec((any_result(), belief()), 0..80),
    ) {
        let mut machine = Machine::new(policy, previous);
        let mut verdicts: Vec<bool> = Vec::new();
        let mut before = None;
        for (result, believed) in results {
            verdicts.extend(result);
            let in_a_row = |wanted: bool| verdicts.iter().rev().take_while(|v| **v == wanted).count();
            match machine.observe(result, believed) {
                None => {}
                Some((Unknown, _)) => prop_assert_eq!(verdicts.len(), 1),
                Some((Up, to)) => {
                    prop_assert_eq!(to, Down);
                    prop_assert!(believed && in_a_row(false) >= policy.fall.max(1) as usize);
                }
                Some((Down, to)) => {
                    prop_assert_eq!(to, Up);
                    prop_assert!(in_a_row(true) >= policy.rise.max(1) as usize);
                }
            }
            // Changes alternate.
            let state = machine.state();
            prop_assert!(state != Unknown || before.is_none_or(|before| before == Unknown));
            before = Some(state);
        }
    }

    #[test]
    fn refusals_are_believed_within_the_bound(
        policy in any_policy(),
        draws in proptest::collection::vec(part(), 6),
    ) {
        let bound = (policy.fall.max(1) - 1) * policy.fast_interval;
        prop_assert!(time_to_verdict(policy, &draws, &[0.0; 6]) <= bound);
    }

    #[test]
    fn silence_is_believed_within_the_bound(
        policy in any_policy(),
        draws in proptest::collection::vec(part(), 6),
        lasts in proptest::collection::vec(part(), 6),
    ) {
        let bound = policy.timeout
            + (policy.fall.max(1) - 1) * policy.fast_interval.max(policy.fast_timeout);
        prop_assert!(time_to_verdict(policy, &draws, &[1.0; 6]) <= bound, "silent");
        prop_assert!(time_to_verdict(policy, &draws, &lasts) <= bound, "sometimes slow");
    }

    #[test]
    fn the_next_probe_is_never_late_and_never_overlaps(
        policy in any_policy(),
        results in proptest::collection::vec(any_result(), 0..20),
        draw in part(),
        lasted_ms in 0..3000_u32,
    ) {
        let mut machine = Machine::new(policy, Unknown);
        for result in results {
            machine.observe(result, BELIEVED);
        }
        let started = Instant::now();
        let ended = started + lasted_ms * MS;
        let next = machine.next_probe(started, ended, draw);
        let longest = match machine.state() {
            _ if machine.in_transition() => policy.fast_interval,
            Down => policy.down_interval.unwrap_or(policy.interval),
            _ => policy.interval,
        };
        prop_assert!(next >= ended && next <= ended.max(started + longest));
    }
}
