//! How flows spread over backends.

use xlb::model::Protocol;

use super::Stage;

fn shares(stage: &Stage, flows: u32, backends: usize) -> Vec<u32> {
    let mut counts = vec![0; backends];
    for client in 0..flows {
        counts[stage.datagram(client)] += 1;
    }
    counts
}

/// The difference of each share to that of the weights, relative to it.
fn errors(counts: &[u32], weights: &[u16]) -> Vec<f64> {
    let (flows, total): (u32, u32) = (counts.iter().sum(), weights.iter().map(|w| u32::from(*w)).sum());
    let expected = |weight: u16| f64::from(flows) * f64::from(weight) / f64::from(total);
    counts
        .iter()
        .zip(weights)
        .map(|(count, weight)| (f64::from(*count) / expected(*weight) - 1.0).abs())
        .collect()
}

#[test]
fn a_million_flows_within_one_percent_of_the_weights() {
    let weights = [1, 2, 3, 5, 10, 20, 33, 100];
    let Some(stage) = Stage::new("wrr", Protocol::Udp, &weights) else {
        return;
    };
    let counts = shares(&stage, 1_000_000, weights.len());
    let errors = errors(&counts, &weights);
    println!("{counts:?} {errors:?}");
    assert!(errors.iter().all(|error| *error < 0.01), "{counts:?} {errors:?}");
    // More flows than the cache has room for: the oldest made way, and were counted.
    let maps = &stage.world.dataplane.maps;
    let evicted = maps.flow_counters(0).expect("a map").evicted;
    assert_eq!(evicted as usize, 1_000_000 - stage.ways());
}

/// Three degrees of freedom: above 22 one time in 15,000, twice in a row one time in 200 million.
#[test]
fn random_choices_follow_the_weights() {
    let weights = [1, 2, 3, 4];
    let Some(stage) = Stage::new("random", Protocol::Udp, &weights) else {
        return;
    };
    const FLOWS: u32 = 50_000;
    let chi_square = |stage: &Stage| {
        let counts = shares(stage, FLOWS, weights.len());
        let squares = counts.iter().zip(weights).map(|(count, weight)| {
            let expected = f64::from(FLOWS) * f64::from(weight) / 10.0;
            (f64::from(*count) - expected).powi(2) / expected
        });
        let sum: f64 = squares.sum();
        println!("{counts:?}: chi-square {sum:.1}");
        sum
    };
    let follows = chi_square(&stage) < 22.0
        || Stage::new("random", Protocol::Udp, &weights).is_some_and(|stage| chi_square(&stage) < 22.0);
    assert!(follows);
    // And it is random: the choices of one run are not those of another.
    let Some(again) = Stage::new("random", Protocol::Udp, &weights) else {
        return;
    };
    let differ = (0..1000)
        .filter(|client| again.datagram(*client) != stage.datagram(*client))
        .count();
    assert!(differ > 500, "{differ}");
}

/// Flows that do not end: two choices keep the loads together.
#[test]
fn two_choices_even_out() {
    let weights = [1, 2, 3, 4];
    let Some(stage) = Stage::new("twos", Protocol::Udp, &weights) else {
        return;
    };
    let counts = shares(&stage, 50_000, weights.len());
    let errors = errors(&counts, &weights);
    println!("{counts:?} {errors:?}");
    assert!(errors.iter().all(|error| *error < 0.01), "{counts:?}");
}
