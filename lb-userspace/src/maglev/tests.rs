use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;

type Owner = Option<(IpAddr, u16)>;

fn candidate(number: u32, weight: u32) -> Candidate {
    let address = IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + number));
    Candidate {
        address,
        port: 80,
        weight,
    }
}

fn equal(count: u32) -> Vec<Candidate> {
    (1..=count).map(|number| candidate(number, 1)).collect()
}

/// The table as owners, which can be compared between different lists of candidates.
fn owners(size: u32, candidates: &[Candidate]) -> Vec<Owner> {
    let owner = |index: u32| {
        (
            candidates[index as usize].address,
            candidates[index as usize].port,
        )
    };
    build(size, candidates)
        .into_iter()
        .map(|slot| slot.map(owner))
        .collect()
}

/// Slots by index of the candidate.
fn shares(size: u32, candidates: &[Candidate]) -> Vec<u32> {
    let mut shares = vec![0; candidates.len()];
    for owner in build(size, candidates) {
        shares[owner.expect("every slot has an owner") as usize] += 1;
    }
    shares
}

/// The greatest deviation of a share from what its weight asks for, relative to the latter.
fn worst_deviation(size: u32, candidates: &[Candidate]) -> f64 {
    let total: f64 = candidates.iter().map(|c| f64::from(c.weight)).sum();
    shares(size, candidates)
        .into_iter()
        .zip(candidates)
        .map(|(share, candidate)| {
            let wanted = f64::from(size) * f64::from(candidate.weight) / total;
            (f64::from(share) - wanted).abs() / wanted
        })
        .fold(0.0, f64::max)
}

/// FNV-1a over the slots: a whole table in one number.
fn digest(table: &[Option<u32>]) -> u64 {
    table
        .iter()
        .flat_map(|slot| slot.unwrap_or(u32::MAX).to_le_bytes())
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
}

#[test]
fn sizes_are_primes_and_follow_the_rule() {
    assert!(SIZES.into_iter().all(is_prime));
    for (backends, size) in [
        (0, 4093),
        (1, 4093),
        (40, 4093),
        (41, 8191),
        (100, 16381),
        (655, 65521),
        (656, 131_071),
        (1_000_000, 131_071),
        (usize::MAX, 131_071),
    ] {
        assert_eq!(size_for(backends), size, "{backends} backends");
    }
}

#[test]
fn is_prime_knows_primes() {
    let primes: Vec<u32> = (0..30).filter(|&n| is_prime(n)).collect();
    assert_eq!(primes, [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]);
    assert!(is_prime(4_294_967_291) && !is_prime(u32::MAX));
}

#[test]
#[should_panic(expected = "must be a prime")]
fn a_size_that_is_no_prime_is_refused() {
    let _ = build(4096, &equal(3));
}

/// Section 3.4 of the paper, table 1: the walks of three backends and the table they make.
#[test]
fn walks_take_turns_as_in_the_paper() {
    let walk = |next, skip| Walk { next, skip };
    let mut walks = [walk(3, 4), walk(0, 2), walk(3, 1)];
    let seen = walks.each_mut().map(|walk| [(); 7].map(|()| walk.step(7)));
    assert_eq!(seen[0], [3, 0, 4, 1, 5, 2, 6]);
    assert_eq!(seen[1], [0, 2, 4, 6, 1, 3, 5]);
    assert_eq!(seen[2], [3, 4, 5, 6, 0, 1, 2]);
}

/// A table that changed here changes in every running load balancer when it is upgraded, and splits nodes of
/// different versions: these numbers may not change. An implementation in another language, from the module's
/// description, gave the same.
#[test]
fn tables_are_the_same_in_every_version() {
    let v6 = |last, port, weight| Candidate {
        address: IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last)),
        port,
        weight,
    };
    let mixed = [
        candidate(1, 1),
        candidate(2, 10),
        v6(1, 80, 100),
        v6(1, 443, 7),
        v6(2, 0, 0),
    ];

    let first: Vec<u32> = build(251, &mixed).into_iter().take(12).flatten().collect();
    assert_eq!(first, [2, 2, 2, 3, 2, 2, 2, 2, 2, 2, 1, 2]);
    assert_eq!(digest(&build(251, &mixed)), 0x8adf_e8c9_3926_9d05);
    assert_eq!(digest(&build(65521, &mixed)), 0x5144_da2c_93e5_e137);
    assert_eq!(digest(&build(65521, &equal(100))), 0xd5cd_3fd2_e080_0eb1);
}

#[test]
fn equal_weights_get_equal_shares() {
    let worst = worst_deviation(65521, &equal(100));
    println!(
        "100 equal backends, 65521 slots: shares within {:.3} % of the weights",
        worst * 100.0
    );
    assert!(worst < 0.01, "{worst}");
}

#[test]
fn weights_of_1_10_and_100_get_their_shares() {
    let candidates = [candidate(1, 1), candidate(2, 10), candidate(3, 100)];
    let worst = worst_deviation(65521, &candidates);
    println!(
        "weights 1:10:100, 65521 slots: shares within {:.3} % of the weights",
        worst * 100.0
    );
    assert!(worst < 0.01, "{worst}");
}

#[test]
fn one_of_100_leaving_moves_few_slots_of_the_others() {
    let all = equal(100);
    let before = owners(65521, &all);
    let mut worst = 0.0_f64;
    for leaver in &all {
        let rest: Vec<Candidate> = all.iter().copied().filter(|c| c != leaver).collect();
        let after = owners(65521, &rest);
        let survived = |owner: &Owner| *owner != Some((leaver.address, leaver.port));
        let survivors = before.iter().filter(|owner| survived(owner)).count();
        let lost = before.len() - survivors;
        let collateral = moved(&before, &after) - lost;
        worst = worst.max(collateral as f64 / survivors as f64);
    }
    println!(
        "one of 100 leaves, 65521 slots: at most {:.3} % of the others' slots move",
        worst * 100.0
    );
    assert!(worst <= 0.02, "{worst}");
}

#[test]
fn the_heaviest_leaving_moves_few_slots_of_the_others() {
    let mut all = equal(100);
    all[99].weight = 10;
    let before = owners(65521, &all);
    let after = owners(65521, &all[..99]);
    let heavy = Some((all[99].address, all[99].port));
    let survivors = before.iter().filter(|owner| **owner != heavy).count();
    let collateral = moved(&before, &after) - (before.len() - survivors);
    assert!(
        (collateral as f64) < 0.1 * survivors as f64,
        "{collateral} of {survivors}"
    );
}

/// The weights furthest apart: the light ones are rounded to nearest and never to nothing.
#[test]
fn a_light_backend_keeps_a_slot_beside_the_heaviest() {
    let shares = shares(4093, &[candidate(1, 65535), candidate(2, 1), candidate(3, 1)]);
    assert_eq!(shares, [4091, 1, 1]);
}

#[test]
fn weight_0_and_nobody_own_nothing() {
    assert_eq!(build(251, &[]), vec![None; 251]);
    assert_eq!(build(251, &[candidate(1, 0), candidate(2, 0)]), vec![None; 251]);
    assert!(
        build(251, &[candidate(1, 0), candidate(2, 1)])
            .iter()
            .all(|&slot| slot == Some(1))
    );
}

#[test]
fn more_candidates_than_slots_leave_some_without() {
    let shares = shares(251, &equal(300));
    assert_eq!(shares.iter().filter(|&&share| share == 1).count(), 251);
    assert_eq!(shares.iter().sum::<u32>(), 251);
}

#[test]
fn moved_counts_changed_and_missing_slots() {
    assert_eq!(moved::<u8>(&[], &[]), 0);
    assert_eq!(moved(&[1, 2, 3], &[1, 2, 3]), 0);
    assert_eq!(moved(&[1, 2, 3], &[1, 3, 2]), 2);
    assert_eq!(moved(&[1, 2], &[1, 2, 3, 4]), 2);
    assert_eq!(moved(&[1, 2, 3], &[2]), 3);
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<[u8; 4]>().prop_map(IpAddr::from),
        any::<[u8; 16]>().prop_map(IpAddr::from),
        // Neighbours, as real backends are.
        any::<u8>().prop_map(|last| IpAddr::from([10, 0, 0, last])),
    ]
}

fn weight() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0), Just(1), Just(65535), 0..100_u32, 0..=u32::MAX]
}

/// Candidates of different identity, in random order.
fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
    proptest::collection::hash_map((address(), 0..4_u16), weight(), 0..40).prop_map(|by_identity| {
        by_identity
            .into_iter()
            .map(|((address, port), weight)| Candidate {
                address,
                port,
                weight,
            })
            .collect()
    })
}

/// The module's description, word for word: of all backends the one claims next whose claim is due first.
fn one_at_a_time(size: u32, candidates: &[Candidate]) -> Vec<Option<u32>> {
    let mut claimants: Vec<(u64, &Candidate, u32, Walk)> = (0..)
        .zip(candidates)
        .filter(|(_, candidate)| candidate.weight > 0)
        .map(|(index, candidate)| (0, candidate, index, Walk::new(candidate, size)))
        .collect();
    claimants.sort_by_key(|(_, candidate, ..)| (candidate.address, candidate.port));
    let mut slots = vec![None; size as usize];
    for _ in 0..size {
        // Of several the first, which is the least by address and port.
        let first = claimants.iter_mut().min_by(|(a, one, ..), (b, other, ..)| {
            (a * u64::from(other.weight)).cmp(&(b * u64::from(one.weight)))
        });
        let Some((halves, _, index, walk)) = first else {
            break;
        };
        *halves = if *halves == 0 { 3 } else { *halves + 2 };
        let slot = std::iter::repeat_with(|| walk.step(size)).find(|slot| slots[*slot].is_none());
        slots[slot.expect("one is free")] = Some(*index);
    }
    slots
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn claims_come_in_the_order_of_their_times(
        candidates in candidates(), size in proptest::sample::select(&SIZES[..3])
    ) {
        prop_assert_eq!(build(size, &candidates), one_at_a_time(size, &candidates));
    }

    #[test]
    fn every_slot_has_an_owner_with_weight(candidates in candidates(), size in proptest::sample::select(&SIZES[..5])) {
        let table = build(size, &candidates);
        prop_assert_eq!(table.len(), size as usize);
        let anybody = candidates.iter().any(|c| c.weight > 0);
        for owner in &table {
            prop_assert_eq!(owner.is_some(), anybody);
            if let Some(index) = owner {
                prop_assert!(candidates[*index as usize].weight > 0);
            }
        }
    }

    #[test]
    fn order_of_input_does_not_matter(
        (shuffled, candidates) in candidates().prop_flat_map(|c| (Just(c.clone()).prop_shuffle(), Just(c)))
    ) {
        prop_assert_eq!(owners(1021, &shuffled), owners(1021, &candidates));
    }

    /// Each has its quota of slots rounded down or up, or one more where the floor of one slot shifts it.
    #[test]
    fn shares_follow_the_weights(candidates in candidates()) {
        let size = 4093;
        let mut shares: HashMap<u32, u32> = HashMap::new();
        for owner in build(size, &candidates).into_iter().flatten() {
            *shares.entry(owner).or_default() += 1;
        }
        let total: u64 = candidates.iter().map(|c| u64::from(c.weight)).sum();
        let weighted = candidates.iter().filter(|c| c.weight > 0).count() as u64;
        for (index, candidate) in (0..).zip(&candidates).filter(|(_, c)| c.weight > 0) {
            let share = u64::from(shares.get(&index).copied().unwrap_or(0));
            let quota = u64::from(size) * u64::from(candidate.weight) / total;
            prop_assert!(share >= 1);
            prop_assert!(share <= quota + 2, "{share} of {quota}");
            prop_assert!(share + weighted > quota, "{share} of {quota}");
        }
    }

    #[test]
    fn moved_is_the_distance_of_two_tables(a in candidates(), b in candidates()) {
        let (a, b) = (owners(251, &a), owners(251, &b));
        prop_assert_eq!(moved(&a, &a), 0);
        prop_assert_eq!(moved(&a, &b), moved(&b, &a));
        prop_assert_eq!(moved(&a, &b) == 0, a == b);
    }
}
