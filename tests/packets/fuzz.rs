//! `cargo xtask fuzz`: packets of every way through every program, for as long as is wanted. A run with the seed that was
//! printed last before a failure repeats it.

use std::time::{Duration, Instant};

use crate::model::crowd::{CROWD, WAYS, seed};
use crate::model::features;
use crate::nat;

/// When it is over; the first seed.
fn begin() -> (Instant, u64) {
    let minutes =
        std::env::var("XLB_FUZZ_MINUTES").map_or(1, |text| text.parse().expect("a number of minutes"));
    let until = Instant::now() + Duration::from_secs(60 * minutes);
    (until, seed().unwrap_or_else(rand::random))
}

#[test]
#[ignore = "runs as long as XLB_FUZZ_MINUTES says: cargo xtask fuzz"]
fn longer() {
    let (until, mut seed) = begin();
    let Some(mut all) = features::all() else { return };
    let mut packets = 0_u64;
    while Instant::now() < until {
        for (name, both) in &mut all {
            println!("{name}:");
            for way in WAYS {
                both.crowd(way, CROWD / 10, seed);
                packets += u64::from(CROWD / 10);
            }
        }
        seed = seed.wrapping_add(1);
    }
    println!("{packets} packets, no difference");
}

#[test]
#[ignore = "runs as long as XLB_FUZZ_MINUTES says: cargo xtask fuzz"]
fn longer_translated() {
    let (until, mut seed) = begin();
    let mut packets = 0_u64;
    while Instant::now() < until {
        for number in 0..nat::crowd::WAYS {
            packets += u64::from(nat::crowd::crowd(number, seed));
        }
        seed = seed.wrapping_add(1);
    }
    println!("{packets} packets of translated flows, no difference");
}
