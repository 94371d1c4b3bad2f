//! The verifier takes the programs, with every combination of features.

use aya::EbpfLoader;
use lb_common::hash::HashKey;
use xlb::datapath::load::{self, Features, Sizes};
use xlb::datapath::{attach, object};

use crate::world::root;

#[test]
fn every_combination_of_features_passes_the_verifier() {
    if !root() {
        return;
    }
    let sizes = Sizes {
        services: 64,
        backends: 64,
        flows: 1024,
    };
    for bits in 0..64 {
        let on = |bit: u32| bits & 1 << bit != 0;
        let features = Features {
            wildcard: on(0),
            announce: on(1),
            explain: on(2),
            trace_drops: on(3),
            resets: on(4),
            icmp_echo: on(5),
            icmp_error_rate: if on(3) { load::ICMP_ERROR_RATE } else { 0 },
        };
        let mut ebpf = load::load(features, &HashKey([3; 8]), sizes, None).expect("an object that loads");
        attach::verify(&mut ebpf, "lb").unwrap_or_else(|error| panic!("{features:?}: {error:?}"));
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
    for (object, programs) in [(object::DECAP, &["decap"][..]), (object::HARNESS, HARNESS)] {
        let mut ebpf = EbpfLoader::new().load(object).expect("an object that loads");
        for program in programs {
            attach::verify(&mut ebpf, program).unwrap_or_else(|error| panic!("{program}: {error:?}"));
        }
    }
}
