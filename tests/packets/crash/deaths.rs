//! Agents that die between any two writes of a change: no packet of a flow is misdirected, before the next agent comes
//! or after, and what the next agent makes of it is what was wanted.

use super::{
    BASE, Bench, DRAINED, Flow, HEAVY, IN_MAINTENANCE, REFUSING, SECOND, SILENT, UP, World, service_of,
};
use crate::pins::apart;

/// What happens, from one state of the world to another.
pub(super) fn changes() -> Vec<(&'static str, World, World)> {
    let first = |status| World::first(Some(status));
    let mut added = BASE;
    added.statuses[3] = Some(UP);
    let mut replaced = added.clone();
    replaced.statuses[0] = None;
    let all_drained = World {
        statuses: [Some(DRAINED), Some(DRAINED), Some(DRAINED), None],
        ..BASE
    };
    let resized = World {
        size: Some(8191),
        ..BASE
    };
    let resetting = World {
        resets: true,
        ..first(SILENT)
    };
    let elsewhere = World {
        elsewhere: true,
        ..BASE
    };
    let guarded = World {
        guarded: true,
        ..BASE
    };
    let without = World { there: false, ..BASE };
    vec![
        ("a backend is added", BASE, added),
        ("one is drained", BASE, first(DRAINED)),
        ("a drained one is READY", first(DRAINED), BASE),
        ("all are drained", BASE, all_drained),
        ("one has another weight", BASE, first(HEAVY)),
        ("one refuses connections", BASE, first(REFUSING)),
        ("one that refused is UP", first(REFUSING), BASE),
        ("one is silent", BASE, first(SILENT)),
        ("a silent one is UP", first(SILENT), BASE),
        ("one is silent and its flows are reset", BASE, resetting),
        ("one is in maintenance", BASE, first(IN_MAINTENANCE)),
        ("one is replaced", BASE, replaced),
        ("the tables are resized", BASE, resized),
        ("the backends are reached another way", BASE, elsewhere.clone()),
        ("they are reached as before", elsewhere, BASE),
        ("lists and limits are asked for", BASE, guarded.clone()),
        ("they are not any longer", guarded, BASE),
        ("a service is removed", BASE, without.clone()),
        ("a service is added", without, BASE),
    ]
}

/// One change with an agent that dies after so many writes; `false`: it lived.
fn dies_after(bench: &mut Bench, (name, from, to): &(&str, World, World), writes: u32) -> bool {
    let when = |what: &str| format!("{name}, {writes} writes, {what}");
    bench.settle(from);
    let mut flows = bench.open(40);
    bench.check(&flows, &[], &when("before it"));
    bench.dataplane().die_after(writes);
    let died = !bench.apply(to);
    if died {
        bench.check(&flows, &[to], &when("dead"));
        flows.extend(bench.open(12));
        bench.adopt();
        bench.check(&flows, &[to], &when("adopted"));
        assert!(bench.apply(to), "{}", when("the second time"));
    } else {
        bench.dataplane().die_after(u32::MAX);
    }
    bench.check(&flows, &[to], &when("done"));
    for flow in flows.iter().filter(|flow| to.loses(flow)) {
        match bench.send(flow.port, false) {
            Some(now) => assert!(
                to.serves(now) && (to.there || flow.service() > 0),
                "{}: lost, and to {now}",
                when("done")
            ),
            None => assert!(to.resets || !to.there, "{}: lost, and nowhere", when("done")),
        }
    }
    flows.retain(|flow| !to.loses(flow));
    let fresh = bench.open(12);
    let somebody = (0..4).any(|which| to.serves(which));
    for service in 0..2 {
        let opened = fresh.iter().any(|flow| service_of(flow.port) == service);
        let expected = somebody && (to.there || service > 0);
        assert_eq!(
            opened,
            expected,
            "{}: flows of {service}",
            when("opened after it")
        );
    }
    assert!(
        fresh.iter().all(|flow| to.serves(flow.owner)),
        "{}",
        when("opened after it")
    );
    flows.extend(fresh);
    // And back: whoever lives all the time keeps what it has.
    assert!(bench.apply(from));
    bench.check(&flows, &[from], &when("undone"));
    died
}

#[test]
fn a_death_after_any_write_misdirects_no_packet() {
    apart(|| {
        let mut bench = Bench::new();
        assert!(bench.apply(&BASE));
        for change in changes() {
            let mut writes = 0;
            while dies_after(&mut bench, &change, writes) {
                writes += 1;
            }
            println!("{}: {writes} writes", change.0);
            assert!(writes >= 3, "{}: only {writes} writes", change.0);
        }
    });
}

#[test]
fn a_death_while_a_service_is_added_or_removed_leaves_nothing_half_done() {
    apart(|| {
        let mut bench = Bench::new();
        // The ports of the first service.
        let opened = |bench: &mut Bench| {
            let flows = bench.open(40);
            flows.iter().filter(|flow| flow.service() == 0).count()
        };
        let nothing = World { there: false, ..BASE };
        for world in [BASE, nothing.clone(), BASE, nothing] {
            for writes in 0.. {
                // The other way first.
                let before = World {
                    there: !world.there,
                    ..BASE
                };
                assert!(bench.apply(&before));
                bench.wait(2 * SECOND);
                bench.sweep();
                bench.dataplane().die_after(writes);
                let died = !bench.apply(&world);
                if died {
                    bench.adopt();
                    assert!(bench.apply(&world));
                }
                let served = opened(&mut bench);
                assert_eq!(served, if world.there { 20 } else { 0 }, "after {writes} writes");
                if !died {
                    bench.dataplane().die_after(u32::MAX);
                    break;
                }
            }
        }
    });
}

/// Ports that are used again find no entry of before, however far the removal had come.
#[test]
fn a_service_that_was_half_removed_and_is_added_again_follows_no_old_entry() {
    apart(|| {
        let mut bench = Bench::new();
        let drained = World::first(Some(DRAINED));
        let without = World {
            there: false,
            ..drained.clone()
        };
        for writes in 0.. {
            let when = |what: &str| format!("{writes} writes, {what}");
            bench.settle(&BASE);
            let flows = bench.open(60);
            assert!(bench.apply(&drained));
            // Those of the backend that is drained get entries.
            bench.check(&flows, &[], &when("drained"));
            bench.dataplane().die_after(writes);
            let died = !bench.apply(&without);
            if died {
                bench.adopt();
            } else {
                bench.dataplane().die_after(u32::MAX);
            }
            assert!(bench.apply(&drained));
            let ports = flows.iter().filter(|flow| flow.service() == 0);
            let again: Vec<Flow> = ports.filter_map(|flow| bench.open_at(flow.port)).collect();
            assert!(!again.is_empty());
            assert!(bench.apply(&BASE));
            bench.check(&again, &[], &when("moved back"));
            if !died {
                break;
            }
        }
    });
}
