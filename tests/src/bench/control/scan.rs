//! The sweep of a flow table with a million entries: how long it takes, and how long it holds the table at most.

use std::cell::Cell;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lb_common::layout::{FlowEntry, FlowKey, FlowOwner, FlowSeen};
use lb_common::rule::State;
use nix::time::{ClockId, clock_gettime};
use xlb::datapath::clock::monotonic_ns;
use xlb::datapath::load::{self, Features, Sizes};
use xlb::datapath::maps::Maps;
use xlb::datapath::sweep::{self, View};

use super::Table;
use crate::KEY;

const ENTRIES: u32 = 1 << 20;
/// The agent's pause between two batches.
const BREATH: Duration = Duration::from_micros(100);
/// The table's own clock is ahead of that of the entries by less than this.
const LATER_NS: u64 = 1_000_000_000_000;

pub const GROUP: &str = "a flow table of 1,048,576 entries";

/// # Errors
/// Where the maps cannot be made.
pub fn measure(runs: usize, table: &mut Table) -> anyhow::Result<()> {
    let sizes = Sizes {
        services: 16,
        backends: 16,
        flows: ENTRIES,
        cached_flows: 4096,
        clients: 4096,
        nat_flows: 1024,
    };
    let mut ebpf = load::load(Features::default(), &KEY, sizes, None)?;
    let mut maps = Maps::of(&mut ebpf, sizes, None)?;
    for n in 0..ENTRIES {
        let key = FlowKey {
            source: [0, 0, 0, n],
            ports: n.rotate_left(7),
            service: 0,
        };
        let entry = FlowEntry {
            owner: FlowOwner::new(n.wrapping_mul(0x9E37_79B9), 4),
            seen: FlowSeen::new(State::Established, monotonic_ns() + LATER_NS),
            ..FlowEntry::default()
        };
        maps.flows.set(&key, entry)?;
    }
    let view = Arc::new(View {
        made_ns: 0,
        services: [(
            0,
            sweep::ServiceView {
                idle_ns: LATER_NS,
                tracked: true,
            },
        )]
        .into(),
        backends: [(
            4,
            sweep::BackendView {
                dead_before_ns: 0,
                closed: false,
            },
        )]
        .into(),
        tables: maps.reader(),
    });
    for _ in 0..runs {
        let (batch, longest) = (Cell::new(Instant::now()), Cell::new(Duration::ZERO));
        let go_on = || {
            longest.set(longest.get().max(batch.get().elapsed()));
            thread::sleep(BREATH);
            batch.set(Instant::now());
            true
        };
        let (begun, begun_cpu) = (Instant::now(), processor_time()?);
        let report = sweep::sweep(&mut maps.flows, &|| Arc::clone(&view), &monotonic_ns, &go_on)?;
        let (took, took_cpu) = (begun.elapsed(), processor_time()? - begun_cpu);
        let stay = report.context("a scan")?.states.total();
        ensure!(stay == u64::from(ENTRIES), "{stay} entries");
        table.ms(GROUP, "scanned, with the pauses between batches", took);
        table.ms(GROUP, "processor time of it", took_cpu);
        table.ms(GROUP, "the longest batch", longest.get());
    }
    Ok(())
}

/// Of this thread.
fn processor_time() -> anyhow::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}
