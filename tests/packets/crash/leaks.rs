//! Nothing is left of ten thousand table changes: no file, no map, no pin, no memory, no index.

use std::fs;
use std::process::Command;

use lb_tests::held::Held;
use xlb::datapath::memory;

use super::deaths::changes;
use super::{Bench, LONG, SECOND, World};
use crate::pins::{PIN_DIR, apart};
use crate::world::root;

const CHANGES: usize = 10_000;
/// Changes until everything is there that will be: the slabs, the allocator's pools.
const FIRST: usize = 500;
/// Bytes by which the process may grow: what allocators keep.
const SLACK: u64 = 4 << 20;

/// Pins, and what this process holds.
fn held() -> (usize, Held) {
    let held = Held::of(std::process::id()).expect("this process");
    (fs::read_dir(PIN_DIR).expect("the pins").count(), held)
}

fn memory() -> u64 {
    memory::of_process(std::process::id()).expect("this process")
}

/// In a process of its own: tests beside it open and close files too.
#[test]
fn ten_thousand_table_changes_leave_nothing_behind() {
    if !root() {
        return;
    }
    let mut alone = Command::new(std::env::current_exe().expect("this program"));
    alone.args(["--ignored", "--exact", "crash::leaks::alone", "--nocapture"]);
    let output = alone.output().expect("running it");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let wrong = String::from_utf8_lossy(&output.stderr).into_owned();
    println!("{said}");
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}\n{wrong}"
    );
}

#[test]
#[ignore = "ten_thousand_table_changes_leave_nothing_behind runs it in a process of its own"]
fn alone() {
    apart(|| {
        let mut bench = Bench::new();
        // Small tables: the number of changes counts.
        let small = |world: World| World {
            size: Some(world.size.map_or(251, |_| 509)),
            ..world
        };
        let worlds: Vec<World> = changes().into_iter().map(|(_, _, to)| small(to)).collect();
        let base = small(super::BASE);
        let turn = |bench: &mut Bench, changes: usize| {
            let (mut made, mut n) = (0, 0);
            while made < changes {
                let before = bench.words();
                assert!(bench.apply(&worlds[n % worlds.len()]));
                let changed = bench
                    .words()
                    .into_iter()
                    .zip(before)
                    .filter(|(now, before)| now != before);
                made += changed.count();
                n += 1;
                bench.wait(2 * SECOND);
                if n % 32 == 0 {
                    bench.wait(LONG);
                    bench.sweep();
                }
            }
            bench.settle(&base);
            bench.wait(2 * SECOND);
            assert!(bench.apply(&base));
            bench.sweep();
            assert!(bench.apply(&base));
        };
        turn(&mut bench, FIRST);
        let (before, first) = (held(), memory());
        turn(&mut bench, CHANGES);
        let (after, grown) = (held(), memory().saturating_sub(first));
        println!("memory {first} bytes, then {grown} more; {after:?}");
        assert_eq!(after, before);
        assert!(!before.1.maps.is_empty() && before.1.kernel > 0, "{before:?}");
        assert!(grown < SLACK, "{first} bytes, then {grown} more");
        assert!(
            !bench.dataplane().moving(),
            "indices that rest, or slots that move, are left"
        );
    });
}
