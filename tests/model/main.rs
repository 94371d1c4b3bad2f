//! The consistency of moving slots: random histories through a model of the load balancer that has the real packet
//! rule, the real step between generations, and the real layouts.
//!
//! `XLB_CONSISTENCY_STEPS` asks for more steps, `XLB_CONSISTENCY_SEED` for one history, `XLB_CONSISTENCY_TRACE` for
//! every packet of it, `XLB_CONSISTENCY_MUTANT` for one mutant, looked for from that seed on.

mod agent;
mod kernel;
mod limits;
mod mutants;
mod random;
mod replay;
mod world;

use std::collections::BTreeMap;
use std::time::Instant;

use mutants::Mutant;
use replay::Replay;
use world::{Failure, Limit, World};
use xlb::model::Protocol;

/// Steps of one history.
const HISTORY: u64 = 4000;
const STEPS: u64 = 1_000_000;

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(
        value
            .parse()
            .unwrap_or_else(|_| panic!("{name} is no number: {value}")),
    )
}

/// Runs histories one after the other, and shows the first one that fails.
fn search(mutant: Option<Mutant>, seed: u64, steps: u64) -> Option<(u64, u64, Failure)> {
    let mut done = 0;
    let mut seed = seed;
    while done < steps {
        let (summary, failure) = World::new(seed, mutant, None).run(HISTORY);
        done += summary.steps;
        if let Some(failure) = failure {
            return Some((seed, done, failure));
        }
        seed += 1;
    }
    None
}

#[test]
fn no_flow_is_broken_and_every_migration_ends() {
    let start = Instant::now();
    let steps = number("XLB_CONSISTENCY_STEPS").unwrap_or(STEPS);
    let only = number("XLB_CONSISTENCY_SEED");
    let (mut done, mut packets, mut opened, mut lost, mut moved, mut ended) = (0, 0, 0, 0, 0, 0);
    let mut known: BTreeMap<Limit, u64> = BTreeMap::new();
    let mut seed = only.unwrap_or(1);
    while done < steps {
        let (summary, failure) = World::new(seed, None, None).run(HISTORY);
        if let Some(failure) = failure {
            panic!("XLB_CONSISTENCY_SEED={seed} {failure}");
        }
        done += summary.steps;
        packets += summary.packets;
        opened += summary.opened;
        lost += summary.lost;
        moved += summary.moved_live;
        ended += summary.ended_ns.len();
        for (limit, n) in summary.known {
            *known.entry(limit).or_default() += n;
        }
        seed += 1;
        if only.is_some() {
            break;
        }
    }
    println!(
        "{done} steps of {} histories in {:.1?}: {packets} packets, {opened} flows, 0 broken, {lost} lost with their \
         backend, known limits {known:?}; {ended} times all migrations had ended; a flow elsewhere than a new one \
         would be, looked at {moved} times",
        seed - only.unwrap_or(1),
        start.elapsed()
    );
    assert!(opened > done / 100 && moved > done, "the histories show nothing");
}

#[test]
fn every_mutant_is_found() {
    let budget = number("XLB_CONSISTENCY_STEPS").unwrap_or(STEPS).max(STEPS);
    let from = number("XLB_CONSISTENCY_SEED");
    let only = std::env::var("XLB_CONSISTENCY_MUTANT").ok();
    let mut missed = Vec::new();
    for (mutant, seed, what) in Mutant::ALL {
        if only.as_ref().is_some_and(|only| *only != format!("{mutant:?}")) {
            continue;
        }
        let start = Instant::now();
        match search(Some(*mutant), from.unwrap_or(*seed), budget) {
            Some((seed, done, failure)) => {
                println!(
                    "{mutant:?}:{what} Found after {done} steps ({:.1?}), seed {seed}, {failure}",
                    start.elapsed()
                );
            }
            None => missed.push(format!("{mutant:?}:{what}")),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:#?}");
}

/// Packets that go through the loaded program too.
const REPLAYED: u64 = 100_000;

#[test]
fn the_program_does_as_the_model() {
    if lb_tests::unprivileged("the_program_does_as_the_model") {
        return;
    }
    let start = Instant::now();
    let mut replays = [Replay::new(Protocol::Udp), Replay::new(Protocol::Tcp)];
    let mut seed = number("XLB_CONSISTENCY_SEED").unwrap_or(1);
    let done = |replays: &[Replay; 2]| replays.iter().map(|replay| replay.packets).sum::<u64>();
    while done(&replays) < REPLAYED {
        let tcp = World::new(seed, None, None).is_tcp();
        let replay = &mut replays[usize::from(tcp)];
        replay.clear();
        let (_, failure) = World::new(seed, None, Some(replay)).run(HISTORY);
        assert!(failure.is_none(), "XLB_CONSISTENCY_SEED={seed} {failure:?}");
        seed += 1;
    }
    let refusals: u64 = replays.iter().map(|replay| replay.refusals).sum();
    println!(
        "{} packets in {:.1?}, {refusals} refused entries",
        done(&replays),
        start.elapsed()
    );
    assert!(
        refusals > 0 && replays.iter().all(|replay| replay.packets > 0),
        "they show too little"
    );
}
