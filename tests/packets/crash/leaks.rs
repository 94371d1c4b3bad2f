//! Nothing is left of ten thousand table changes: no file, no map, no pin, no memory, no index.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use super::deaths::changes;
use super::{Bench, LONG, SECOND, World};
use crate::pins::{PIN_DIR, apart};
use crate::world::root;

const CHANGES: usize = 10_000;
/// Changes until everything is there that will be: the slabs, the allocator's pools.
const FIRST: usize = 500;
/// Bytes by which the process may grow: what allocators keep.
const SLACK: u64 = 4 << 20;

/// What a process holds.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    files: usize,
    pins: usize,
    maps: BTreeSet<u64>,
    programs: BTreeSet<u64>,
    /// Bytes that the kernel has for the maps.
    kernel: u64,
}

impl Held {
    fn now() -> Self {
        let mut held = Self {
            files: 0,
            pins: fs::read_dir(PIN_DIR).expect("the pins").count(),
            maps: BTreeSet::new(),
            programs: BTreeSet::new(),
            kernel: 0,
        };
        for file in fs::read_dir("/proc/self/fdinfo").expect("a folder").flatten() {
            held.files += 1;
            let text = fs::read_to_string(file.path()).unwrap_or_default();
            let field = |name: &str| {
                let mut lines = text.lines();
                let value = lines.find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
                value.unwrap_or(0)
            };
            match (field("map_id:"), field("prog_id:")) {
                (0, 0) => {}
                (0, program) => drop(held.programs.insert(program)),
                (map, _) => {
                    if held.maps.insert(map) {
                        held.kernel += field("memlock:");
                    }
                }
            }
        }
        held
    }
}

/// Bytes of memory of this process.
fn resident() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").expect("a file");
    let pages: u64 = statm
        .split(' ')
        .nth(1)
        .expect("a field")
        .parse()
        .expect("a number");
    pages * 4096
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
        let (before, memory) = (Held::now(), resident());
        turn(&mut bench, CHANGES);
        let (after, grown) = (Held::now(), resident().saturating_sub(memory));
        println!("memory {memory} bytes, then {grown} more; {after:?}");
        assert_eq!(after, before);
        assert!(!before.maps.is_empty() && before.kernel > 0, "{before:?}");
        assert!(grown < SLACK, "{memory} bytes, then {grown} more");
        assert!(
            !bench.dataplane().moving(),
            "indices that rest, or slots that move, are left"
        );
    });
}
