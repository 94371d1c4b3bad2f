//! The verifier takes the programs, with its features.

use std::sync::Mutex;
use std::thread;

use aya::EbpfLoader;
use aya::programs::Xdp;
use lb_common::hash::HashKey;
use lb_common::reason::Reason;
use xlb::datapath::load::{self, Features, Sizes};
use xlb::datapath::{attach, has_frags, object};

use crate::world::root;

/// Features of the program that a load can switch.
const FEATURES: &[fn(&mut Features)] = &[
    |features| features.wildcard = true,
    |features| features.ranged = true,
    |features| features.announce = true,
    |features| features.explain = true,
    |features| {
        features.trace_drops = true;
        features.icmp_error_rate = load::ICMP_ERROR_RATE;
    },
    |features| features.resets = true,
    |features| features.icmp_echo = true,
    |features| features.fragment_by = [1, 2],
    |features| features.choosers = true,
    |features| features.suspects = true,
    |features| features.vlans = true,
    |features| features.gue = true,
    |features| features.spread = true,
    |features| features.frags = true,
    |features| features.guards = true,
    |features| features.limits = true,
    |features| features.persistent = true,
    |features| features.quic = true,
    |features| {
        features.nat = true;
        features.nat_routes = true;
    },
];

/// How large the maps are made.
pub const SIZES: Sizes = Sizes {
    services: 64,
    backends: 64,
    flows: 1024,
    cached_flows: 1024,
    clients: 1024,
    nat_flows: 1024,
};

/// The features that the bits of a number switch on.
fn features(bits: u32) -> Features {
    let mut features = Features::default();
    for (bit, switch) in FEATURES.iter().enumerate() {
        if bits & 1 << bit != 0 {
            switch(&mut features);
        }
    }
    features
}

/// Every feature switched on.
pub fn all_features() -> Features {
    features(u32::MAX)
}

/// Sets of features so that of any three each of the eight combinations is in one of them: numbers from a fixed
/// generator, each taken that shows a combination which none before it has.
fn triples() -> Vec<u32> {
    let count = FEATURES.len();
    let mut seen = std::collections::BTreeSet::new();
    let mut sets = Vec::new();
    let (mut state, mut last_useful) = (0x9E37_79B9_7F4A_7C15_u64, 0);
    let mut tried = 0;
    let all = count * (count - 1) * (count - 2) / 6 * 8;
    while seen.len() < all {
        tried += 1;
        assert!(tried - last_useful < 100_000, "the generator comes to an end");
        // xorshift64 (Marsaglia 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let bits = (state >> 20) as u32 & ((1 << count) - 1);
        let before = seen.len();
        for a in 0..count {
            for b in 0..a {
                for c in 0..b {
                    let value = |bit: usize| bits >> bit & 1;
                    seen.insert((a, b, c, value(a) << 2 | value(b) << 1 | value(c)));
                }
            }
        }
        if seen.len() > before {
            sets.push(bits);
            last_useful = tried;
        }
    }
    sets
}

/// Whether a machine is slow (`XLB_SHORT`, `cargo xtask kernels`).
pub fn short() -> bool {
    std::env::var_os("XLB_SHORT").is_some()
}

/// All combinations are too many: none, each alone, all but each, all, and enough others that every combination of any
/// three features is among them (not on slow machines).
#[test]
fn the_verifier_takes_every_combination_of_three_features() {
    if !root() {
        return;
    }
    let all = (1 << FEATURES.len()) - 1;
    let single = (0..FEATURES.len()).map(|bit| 1_u32 << bit);
    let sets: std::collections::BTreeSet<u32> = [0, all]
        .into_iter()
        .chain(single.clone())
        .chain(single.map(|bit| all & !bit))
        .chain(if short() { Vec::new() } else { triples() })
        .filter(|bits| has_frags() || !features(*bits).frags)
        .collect();
    let number = sets.len();
    let (sets, largest, refused) = (Mutex::new(sets), Mutex::new((0, 0)), Mutex::new(Vec::new()));
    let next = || sets.lock().expect("a set").pop_first();
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(bits) = next() {
                    match verified(features(bits)) {
                        Ok(count) => {
                            let mut largest = largest.lock().expect("a count");
                            *largest = (*largest).max((count, bits));
                        }
                        Err(why) => {
                            let mut refused = refused.lock().expect("a list");
                            refused.push(bits);
                            if refused.len() <= 5 {
                                println!("refused: {:?}\n{why}", features(bits));
                            }
                        }
                    }
                }
            });
        }
    });
    let (count, bits) = largest.into_inner().expect("a count");
    println!(
        "{number} combinations of {} features; the largest: {count} instructions verified",
        FEATURES.len()
    );
    println!("{:?}", features(bits));
    let refused = refused.into_inner().expect("a list");
    assert!(
        refused.is_empty(),
        "{} of {number} combinations are refused",
        refused.len()
    );
    // The kernel's limit; an older verifier may look at more of them.
    assert!(count < 500_000, "{count}");
}

/// How many instructions of the main program the verifier looked at (Linux 5.16 and later tell), or the end of what it
/// said.
fn verified(features: Features) -> Result<u32, String> {
    let mut ebpf = load::load(features, &HashKey([3; 8]), SIZES, None).map_err(|error| end(&error))?;
    attach::verify(&mut ebpf, "lb").map_err(|error| end(&error))?;
    let program: &Xdp = ebpf
        .program("lb")
        .expect("the program")
        .try_into()
        .expect("of XDP");
    let info = program.info().expect("a loaded program");
    Ok(info.verified_instruction_count().unwrap_or(0))
}

/// The last lines of an error: a verifier's log is long, and ends with the reason.
fn end(error: &dyn std::fmt::Debug) -> String {
    let text = format!("{error:?}");
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

#[test]
fn every_reason_has_its_line_in_the_docs() {
    let docs = include_str!("../../docs/failures.md");
    for reason in Reason::ALL {
        let line = format!("| `{}` | {} | ", reason.name(), reason.verdict().name());
        assert_eq!(
            docs.matches(&line).count(),
            1,
            "docs/failures.md, Reasons: {line}"
        );
    }
}

const HARNESS: &[&str] = &[
    "harness",
    "floor",
    "floor_rewrite",
    "floor_outer_v4",
    "floor_outer_v6",
    "floor_outer_udp",
];

#[test]
fn the_small_programs_pass_the_verifier() {
    if !root() {
        return;
    }
    for (object, programs) in [
        (object::DECAP, &["decap"][..]),
        (object::DECAP_PLAIN, &["decap"]),
        (object::HARNESS, HARNESS),
        (object::HARNESS_PLAIN, HARNESS),
    ] {
        let mut ebpf = EbpfLoader::new().load(object).expect("an object that loads");
        for program in programs {
            attach::verify(&mut ebpf, program).unwrap_or_else(|error| panic!("{program}: {error:?}"));
        }
    }
}
