//! Agents that die while a migration ends: when its windows are held, when they end, when its slots become stable, and when
//! the next agent ends what the last one could not.

use super::deaths::changes;
use super::{Bench, Flow, SECOND, WINDOW, World};
use crate::pins::apart;

/// So much time passes in one course: two windows, because the next agent keeps them open for one more.
const COURSE: u64 = 2 * WINDOW + 30 * SECOND;

/// Lets time pass until windows end and what a scan finds was taken in. `false`: the agent died.
fn end_windows(bench: &mut Bench, world: &World) -> bool {
    // The window, the hold, and two scans after them: slots become stable, then indices wake.
    for wait_ns in [WINDOW + 2 * SECOND, 2 * SECOND, 2 * SECOND, 2 * SECOND] {
        bench.wait(wait_ns);
        bench.sweep();
        if !bench.apply(world) {
            return false;
        }
    }
    true
}

/// One course with an agent that dies after so many writes of the end; `false`: it lived.
fn dies_after(bench: &mut Bench, (name, from, to): &(&str, World, World), writes: u32) -> bool {
    let when = |what: &str| format!("{name}, {writes} writes of its end, {what}");
    bench.settle(from);
    // Entries are as old as packets, however much time passes for the agent from here on.
    bench.go_back(COURSE);
    for _ in 0..2 {
        bench.wait(2 * SECOND);
        bench.sweep();
        assert!(bench.apply(from));
    }
    let mut flows = bench.open(40);
    assert!(bench.apply(to), "{}", when("the change"));
    flows.retain(|flow| !to.loses(flow));
    bench.check(&flows, &[to], &when("open"));
    flows.extend(bench.open(12));
    bench.dataplane().die_after(writes);
    let died = !end_windows(bench, to);
    if died {
        bench.check(&flows, &[to], &when("dead"));
        flows.extend(bench.open(12));
        bench.adopt();
        bench.check(&flows, &[to], &when("adopted"));
        assert!(bench.apply(to), "{}", when("the second time"));
        assert!(end_windows(bench, to), "{}", when("the second time"));
    } else {
        bench.dataplane().die_after(u32::MAX);
    }
    let open: usize = bench
        .progress()
        .iter()
        .map(|progress| progress.open + progress.waiting)
        .sum();
    assert_eq!(open, 0, "{}", when("windows are over"));
    bench.check(&flows, &[to], &when("over"));
    let fresh: Vec<Flow> = bench.open(12);
    assert!(
        fresh.iter().all(|flow| to.serves(flow.owner)),
        "{}",
        when("opened after it")
    );
    flows.extend(fresh);
    // Entries keep what they say when the slots move back.
    assert!(bench.apply(from));
    bench.check(&flows, &[from, to], &when("undone"));
    died
}

#[test]
fn a_death_while_windows_end_misdirects_no_packet() {
    apart(|| {
        let mut bench = Bench::new();
        assert!(bench.apply(&super::BASE));
        let mut most = 0;
        for change in changes() {
            let mut writes = 0;
            while dies_after(&mut bench, &change, writes) {
                writes += 1;
            }
            println!("{}: its end is {writes} writes", change.0);
            most = most.max(writes);
        }
        assert!(most >= 6, "only {most} writes");
    });
}
