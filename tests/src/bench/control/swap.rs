//! How long a packet takes while the table that it is looked up in is switched again and again. Packets go one by one
//! through the real program, as another thread has a backend die and come back in a service of 1,000.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use etherparse::PacketBuilder;
use xlb::datapath::measure::{Flows, Harness, Subject};
use xlb::datapath::testrun::Action;

use super::Table;
use super::tables::{SIZE, World};

const GROUP: &str = "a packet, one by one";
/// What a switch may add, in nanoseconds.
const MORE_NS: f64 = 20_000.0;

/// So many packets a round, with tables that stay and with tables that are switched; the service of [`World`] is at
/// 192.0.2.10:1000.
///
/// # Errors
/// Where the maps cannot be made.
pub fn measure(packets: usize, rounds: usize, table: &mut Table) -> anyhow::Result<()> {
    let mut world = World::new(1, 1000, Some(SIZE))?;
    world.apply(&BTreeSet::new())?;
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 1])
        .ipv4([203, 0, 113, 7], [192, 0, 2, 10], 64)
        .tcp(40_000, 1000, 1000, 65_535)
        .ack(1)
        .write(&mut frame, &[0; 10])?;
    let flows = Flows {
        count: 65_536,
        offset: 26,
    };
    let harness = Harness::new(Subject::Program(world.program()?), &frame, flows)?;
    harness.measure(100_000, Action::Tx)?;
    for _ in 0..rounds {
        let quiet = percentile(one_by_one(&harness, packets)?);
        let (done, switches) = (AtomicBool::new(false), AtomicU64::new(0));
        let begun = Instant::now();
        let busy = thread::scope(|scope| -> anyhow::Result<Vec<u64>> {
            let measured = scope.spawn(|| {
                let times = one_by_one(&harness, packets);
                done.store(true, Ordering::Release);
                times
            });
            for number in 0.. {
                if done.load(Ordering::Acquire) {
                    break;
                }
                let dead: BTreeSet<usize> = (number % 2 == 0).then_some(number % 1000).into_iter().collect();
                world.apply(&dead)?;
                switches.fetch_add(1, Ordering::Relaxed);
                // No agent switches faster for long.
                thread::sleep(Duration::from_millis(1));
            }
            measured.join().map_err(|_| anyhow!("a thread panicked"))?
        })?;
        let busy = percentile(busy);
        let per_s = switches.into_inner() as f64 / begun.elapsed().as_secs_f64();
        let unit = "ns";
        table.note(GROUP, "99.9 of 100, tables stay", unit, quiet);
        table.note(GROUP, "99.9 of 100, tables are switched", unit, busy);
        table.note(GROUP, "99.9 of 100, more by switching", unit, busy - quiet);
        table.note(GROUP, "changes of the table", "/s", per_s);
    }
    table.promise(GROUP, "99.9 of 100, more by switching", MORE_NS);
    Ok(())
}

/// Nanoseconds of so many packets, each by the kernel's own clock.
fn one_by_one(harness: &Harness, packets: usize) -> anyhow::Result<Vec<u64>> {
    (0..packets)
        .map(|_| harness.measure(1, Action::Tx).context("a packet"))
        .collect()
}

/// What 99.9 of 100 do not exceed.
fn percentile(mut times: Vec<u64>) -> f64 {
    times.sort_unstable();
    let rank = (times.len() * 999).div_ceil(1000);
    times.get(rank.saturating_sub(1)).copied().unwrap_or_default() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_of_a_thousand_does_not_count() {
        assert_eq!(percentile((1..=1000).rev().collect()), 999.0);
        assert_eq!(percentile((1..=2000).collect()), 1998.0);
        assert_eq!(percentile(vec![7]), 7.0);
    }
}
