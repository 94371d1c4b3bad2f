//! The doubt alone, and then a world in which hosts die and our own uplink fails, run with the real machine.

use std::net::Ipv4Addr;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::health::machine::{Machine, Policy};
use crate::model::OperState;

const MS: Duration = Duration::from_millis(1);

fn host(n: usize) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, u8::try_from(n).unwrap() + 1).into()
}

fn asked(hosts: usize) -> Answers {
    let mut answers = Answers::default();
    answers.set_hosts((0..hosts).map(host).collect());
    answers
}

#[test]
fn nobody_bears_witness_for_itself() {
    let start = Instant::now();
    let mut answers = asked(2);
    answers.answered(host(0), start + MS);
    assert!(!answers.others_since(host(0), start));
    assert!(answers.others_since(host(1), start));
    answers.answered(host(1), start + 2 * MS);
    answers.answered(host(0), start + 3 * MS);
    assert!(
        answers.others_since(host(0), start),
        "the other one is not forgotten"
    );
    assert!(!answers.others_since(host(0), start + 3 * MS));
}

#[test]
fn a_late_answer_to_an_early_probe_is_no_news() {
    let start = Instant::now();
    let mut answers = asked(3);
    answers.answered(host(1), start + 10 * MS);
    answers.answered(host(1), start + 5 * MS);
    answers.answered(host(2), start + 2 * MS);
    assert!(answers.others_since(host(0), start + 10 * MS));
    assert!(!answers.others_since(host(0), start + 11 * MS));
    assert!(!answers.others_since(host(1), start + 3 * MS));
}

#[test]
fn where_nobody_else_is_silence_is_believed() {
    let start = Instant::now();
    let mut answers = asked(1);
    assert!(answers.others_since(host(0), start));
    answers.set_witness(Some(host(9)));
    assert!(!answers.others_since(host(0), start));
    answers.answered(host(9), start);
    assert!(answers.others_since(host(0), start));
}

#[test]
fn an_answer_in_the_run_needs_no_witness() {
    let start = Instant::now();
    let mut run = Run::default();
    assert!(!run.observe(Sign::Silent, start, false));
    assert!(
        !run.observe(Sign::NotSent, start, true),
        "nothing follows from it"
    );
    assert!(run.observe(Sign::Refused, start, false));
    assert!(run.observe(Sign::Silent, start, false), "it spoke in this run");
    assert!(run.observe(Sign::Passed, start, false));
    assert_eq!(run.first_miss, None);
    assert!(!run.observe(Sign::Silent, start, false), "another run");
}

/// What happens in the world, in milliseconds from its beginning.
#[derive(Clone, Debug)]
struct World {
    hosts: usize,
    fall: u32,
    /// From and to, without answers to anybody.
    outages: Vec<(u64, u64)>,
    /// When hosts die.
    deaths: Vec<Option<u64>>,
    /// What a dead host does.
    dead: Sign,
}

/// How long it takes to answer.
const ROUND_TRIP: Duration = MS;

struct Target {
    machine: Machine,
    run: Run,
    due: Instant,
    /// A probe under way: begun, its end, what comes of it, whether its silence is believed.
    probe: Option<(Instant, Instant, Sign, bool)>,
}

impl World {
    fn policy(&self) -> Policy {
        Policy {
            interval: 2000 * MS,
            timeout: 1000 * MS,
            fast_interval: 200 * MS,
            fast_timeout: 300 * MS,
            down_interval: None,
            rise: 2,
            fall: self.fall,
            jitter_percent: 0,
        }
    }

    fn sign(&self, target: usize, at_ms: u64) -> Sign {
        let cut_off = self
            .outages
            .iter()
            .any(|(from, to)| (*from..*to).contains(&at_ms));
        let dead = self.deaths[target].is_some_and(|death| at_ms >= death);
        match (cut_off, dead) {
            (true, _) => Sign::Silent,
            (false, true) => self.dead,
            (false, false) => Sign::Passed,
        }
    }

    /// Every change of a state: when it came, of whom, to what, and when the first failing probe of its run began.
    fn changes(&self, until_ms: u64, phases: &[u64]) -> Vec<(u64, usize, OperState, u64)> {
        let start = Instant::now();
        let ms = |moment: Instant| u64::try_from((moment - start).as_millis()).unwrap();
        let mut answers = asked(self.hosts);
        let mut targets: Vec<Target> = (0..self.hosts)
            .map(|n| {
                let mut machine = Machine::new(self.policy(), OperState::Up);
                machine.observe(Some(true), true);
                machine.observe(Some(true), true);
                Target {
                    machine,
                    run: Run::default(),
                    due: start + Duration::from_millis(phases[n % phases.len()]),
                    probe: None,
                }
            })
            .collect();
        let mut changes = Vec::new();
        loop {
            let next = |target: &Target| target.probe.map_or(target.due, |(_, ends, _, _)| ends);
            let (n, now) = targets
                .iter()
                .enumerate()
                .map(|(n, target)| (n, next(target)))
                .min_by_key(|(_, at)| *at)
                .unwrap();
            if ms(now) > until_ms {
                return changes;
            }
            let target = &mut targets[n];
            let Some((begun, _, sign, witnessed)) = target.probe.take() else {
                let sign = self.sign(n, ms(now));
                let lasts = if sign == Sign::Silent {
                    target.machine.timeout()
                } else {
                    ROUND_TRIP
                };
                let witnessed = target.run.witnessed(&answers, host(n));
                target.probe = Some((now, now + lasts, sign, witnessed));
                continue;
            };
            if matches!(sign, Sign::Passed | Sign::Refused) {
                answers.answered(host(n), begun);
            }
            let believed = target.run.observe(sign, begun, witnessed);
            let first_miss = target.run.first_miss;
            if let Some((_, to)) = target.machine.observe(Some(sign == Sign::Passed), believed) {
                changes.push((ms(now), n, to, first_miss.map_or(0, ms)));
            }
            target.due = target.machine.next_probe(begun, now, 0.5);
            // What the agent does with a result: the first miss of a run makes it ask others, and whoever is
            // doubted is asked again once somebody answered.
            if sign == Sign::Silent && target.machine.failures() == 1 {
                for other in targets.iter_mut().filter(|other| other.probe.is_none()) {
                    if other.machine.failures() == 0 {
                        other.due = now;
                    }
                }
            }
            for (n, doubted) in targets.iter_mut().enumerate() {
                let reason = doubted.run.witnessed(&answers, host(n));
                if doubted.machine.doubted() && doubted.probe.is_none() && reason {
                    doubted.due = now;
                }
            }
        }
    }
}

const NOBODY_DIES: [Option<u64>; 12] = [None; 12];

proptest! {
    /// Outages of our own uplink, however long, take nobody out. Between two of them everybody has to be heard once.
    #[test]
    fn our_own_outage_takes_nobody_out(
        hosts in 2..12_usize,
        fall in 1..5_u32,
        outages in proptest::collection::vec((5000..9000_u64, 1..20_000_u64), 1..4),
        phases in proptest::collection::vec(0..2000_u64, 12),
    ) {
        let mut from = 0;
        let outages: Vec<_> = outages
            .into_iter()
            .map(|(calm, long)| {
                let begin = from + calm;
                from = begin + long;
                (begin, from)
            })
            .collect();
        let world = World { hosts, fall, outages, deaths: NOBODY_DIES.into(), dead: Sign::Silent };
        prop_assert_eq!(world.changes(from + 10_000, &phases), vec![]);
    }

    /// All but one die in silence at one moment, and are out in time.
    #[test]
    fn most_die_at_once_and_are_out_in_time(
        hosts in 2..12_usize,
        fall in 1..5_u32,
        survivor in 0..12_usize,
        phases in proptest::collection::vec(0..2000_u64, 12),
    ) {
        let survivor = survivor % hosts;
        let deaths = (0..hosts).map(|n| (n != survivor).then_some(5000)).collect();
        let world = World { hosts, fall, outages: vec![], deaths, dead: Sign::Silent };
        let changes = world.changes(20_000, &phases);
        prop_assert_eq!(changes.len(), hosts - 1, "{:?}", changes);
        for (at, n, to, first_miss) in changes {
            prop_assert_eq!(to, OperState::Down);
            prop_assert_ne!(n, survivor);
            // The answer that is needed comes after the first miss, so below three misses another one may be.
            let bound = 1000 + 300 * u64::from(fall - 1) + if fall < 3 { 301 } else { 0 };
            prop_assert!(at - first_miss <= bound, "{} ms after the first miss", at - first_miss);
        }
    }

    /// All refuse: nobody has to be asked.
    #[test]
    fn all_refuse_and_are_out_in_time(
        hosts in 1..12_usize,
        fall in 1..5_u32,
        phases in proptest::collection::vec(0..2000_u64, 12),
    ) {
        let world = World { hosts, fall, outages: vec![], deaths: vec![Some(5000); hosts], dead: Sign::Refused };
        let changes = world.changes(20_000, &phases);
        prop_assert_eq!(changes.len(), hosts);
        for (at, _, to, first_miss) in changes {
            prop_assert_eq!(to, OperState::Down);
            prop_assert!(at - first_miss <= 200 * u64::from(fall - 1) + 1);
        }
    }

    /// While we are cut off hosts die too: they are out once the others answer again, and the others stay.
    #[test]
    fn who_dies_during_an_outage_is_found_after_it(
        hosts in 3..12_usize,
        dead in 1..3_usize,
        long in 3000..20_000_u64,
        phases in proptest::collection::vec(0..2000_u64, 12),
    ) {
        let deaths = (0..hosts).map(|n| (n < dead).then_some(6000)).collect();
        let world = World { hosts, fall: 3, outages: vec![(5000, 5000 + long)], deaths, dead: Sign::Silent };
        let mut out: Vec<_> = world.changes(30_000 + long, &phases).into_iter().map(|(_, n, to, _)| (n, to)).collect();
        out.sort_unstable();
        let expected: Vec<_> = (0..dead).map(|n| (n, OperState::Down)).collect();
        prop_assert_eq!(out, expected);
    }
}
