//! The cache of flows beside the kernel's LRU hash maps, by what a flow costs in nanoseconds:
//!
//! `cargo test -p lb-tests --test packets flow_bench -- --ignored --nocapture`

use aya::programs::Xdp;
use aya::{Ebpf, EbpfLoader};
use lb_common::hash::HashKey;
use xlb::datapath::testrun::{self, Action};
use xlb::datapath::{attach, object};

use crate::world::root;

const PROGRAMS: [&str; 6] = [
    "base",
    "cached",
    "lru_of_cpu",
    "lru",
    "hash_at_start",
    "hash_later",
];
/// Put in and taken out again.
const CHURN: [&str; 2] = ["churn", "churn_later"];
const ROUNDS: usize = 7;

/// The programs, with room for twice as many flows as there are.
fn load(flows: u32, room: u32) -> Ebpf {
    let lines = (room / 4).next_power_of_two();
    let key = HashKey::from_bytes(&std::array::from_fn(|n| (n * 37 + 11) as u8));
    let mut ebpf = EbpfLoader::new()
        .override_global("FLOWS", &flows, true)
        .override_global("CACHE_LINES", &lines, true)
        .override_global("BENCH_KEY", &key.0, true)
        .map_max_entries("CACHE", lines)
        .map_max_entries("LRU", room)
        .map_max_entries("LRU_OF_CPU", room)
        .map_max_entries("HASH", room)
        .map_max_entries("HASH_LATER", room)
        .load(object::FLOW_BENCH)
        .expect("an object that loads");
    for program in PROGRAMS.into_iter().chain(CHURN) {
        attach::verify(&mut ebpf, program).unwrap_or_else(|error| panic!("{program}: {error:?}"));
    }
    ebpf
}

fn run(ebpf: &Ebpf, program: &str, times: u32) -> (u64, Action) {
    let program: &Xdp = ebpf.program(program).expect("a program").try_into().expect("XDP");
    let run = testrun::repeat(program, &[0; 60], times).expect("a run");
    (run.duration.as_nanos() as u64, run.action)
}

/// The middle of several measurements, the programs taking turns.
fn measure<const N: usize>(ebpf: &Ebpf, programs: &[&str; N], times: u32) -> [u64; N] {
    let mut found = [(); N].map(|()| Vec::new());
    for _ in 0..ROUNDS {
        for (program, found) in programs.iter().zip(&mut found) {
            found.push(run(ebpf, program, times).0);
        }
    }
    found.map(|mut of| {
        of.sort_unstable();
        of[of.len() / 2]
    })
}

#[test]
#[ignore = "a measurement"]
fn lookups_and_inserts() {
    if !root() {
        return;
    }
    println!("ns a packet           {PROGRAMS:?}");
    for flows in [1, 1 << 16, 1 << 20] {
        let ebpf = load(flows, (2 * flows).max(4096));
        for program in PROGRAMS {
            run(&ebpf, program, flows);
        }
        println!(
            "{flows:>8} flows, known   {:?}",
            measure(&ebpf, &PROGRAMS, 4_000_000)
        );
    }
    println!("                      {CHURN:?}");
    for flows in [1, 1 << 16, 1 << 20] {
        let ebpf = load(flows, (2 * flows).max(4096));
        println!(
            "{flows:>8} flows, in and out {:?}",
            measure(&ebpf, &CHURN, 1_000_000)
        );
    }
    // Every flow is a new one, and takes the place of another, or is refused.
    for room in [1 << 12, 1 << 16, 1 << 20] {
        let ebpf = load(1 << 31, room);
        for program in PROGRAMS {
            run(&ebpf, program, 2 * room);
        }
        println!(
            "room for {room:>8}, new  {:?}",
            measure(&ebpf, &PROGRAMS, 2_000_000)
        );
    }
}

/// A flow that was put in is found by the next packet, in each of the tables.
#[test]
fn what_is_put_in_is_found() {
    if !root() {
        return;
    }
    let ebpf = load(64, 4096);
    for program in &PROGRAMS[1..] {
        let (_, first) = run(&ebpf, program, 64);
        let (_, again) = run(&ebpf, program, 64);
        assert_eq!((first, again), (Action::Pass, Action::Tx), "{program}");
    }
    for program in CHURN {
        // What stands in it already is put in anew and taken out.
        assert_eq!(run(&ebpf, program, 64).1, Action::Tx, "{program}");
    }
}
