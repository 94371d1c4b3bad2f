//! Tables: computed, written, switched, and all of it together, on the maps of the real program.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use aya::Ebpf;
use aya::programs::{ProgramFd, Xdp};
use lb_common::layout::{Slot, TableWord};
use xlb::config::Config;
use xlb::control::{self, BackendStatus, Desired, Inputs};
use xlb::datapath::apply::Dataplane;
use xlb::datapath::attach;
use xlb::datapath::clock::monotonic_ns;
use xlb::datapath::has_frags;
use xlb::datapath::load::{self, Features, Sizes};
use xlb::datapath::maps::Maps;
use xlb::datapath::simulate::{self, Options};
use xlb::datapath::sweep;
use xlb::maglev;
use xlb::model::{BackendId, OperState};

use super::Table;
use crate::KEY;

pub const SIZE: u32 = 65_521;
const UP: BackendStatus = BackendStatus {
    state: OperState::Up,
    ever_up: true,
    ..BackendStatus::UNSEEN
};
/// Longer than any window: what moved has settled when the next change comes.
const LONG_NS: u64 = 1_000_000_000_000;

/// # Errors
/// Where the maps cannot be made.
pub fn measure(runs: usize, changes: usize, table: &mut Table) -> anyhow::Result<()> {
    let mut world = World::new(1, 1000, Some(SIZE))?;
    let candidates = world
        .desired(&BTreeSet::new())
        .services
        .values()
        .next()
        .context("a service")?
        .candidates
        .clone();
    ensure!(candidates.len() == 1000, "{} candidates", candidates.len());
    let mut owners = Vec::new();
    for _ in 0..runs {
        let begun = Instant::now();
        owners = black_box(maglev::build(SIZE, black_box(&candidates)));
        table.ms(
            "a table of 65,521 slots, 1,000 backends",
            "computed",
            begun.elapsed(),
        );
    }
    let mut weighted = candidates;
    for (n, candidate) in (1..).zip(&mut weighted) {
        candidate.weight = n;
    }
    for _ in 0..runs {
        let begun = Instant::now();
        black_box(maglev::build(SIZE, black_box(&weighted)));
        table.ms(
            "a table of 65,521 slots, 1,000 backends",
            "computed, all weights different",
            begun.elapsed(),
        );
    }
    let slots: Vec<Slot> = owners
        .iter()
        .map(|owner| Slot::stable(owner.map_or(0, |owner| owner + 1)))
        .collect();
    raw(runs, &slots, table)?;

    world.apply(&BTreeSet::new())?;
    for change in 0..changes {
        let dead: BTreeSet<usize> = (change % 2 == 0).then_some(change % 1000).into_iter().collect();
        let took = world.apply(&dead)?;
        table.ms(
            "a table of 65,521 slots, 1,000 backends",
            "one backend DOWN or UP, all of it",
            took,
        );
    }
    for (services, name) in [
        (3, "3 services of 100 backends, all of it"),
        (100, "100 services of 100 backends, all of it"),
    ] {
        let mut world = World::new(services, 100, None)?;
        world.apply(&BTreeSet::new())?;
        for run in 0..runs {
            let dead: BTreeSet<usize> = (run % 2 == 0).then_some(run % 100).into_iter().collect();
            let took = world.apply(&dead)?;
            table.ms("services that change at one instant", name, took);
            table.ms(
                "services that change at one instant",
                &format!("{services} services, each"),
                took / services as u32,
            );
        }
    }
    Ok(())
}

/// The program and its maps, without pins.
fn load(services: u32, backends: u32) -> anyhow::Result<(Ebpf, Maps)> {
    let sizes = Sizes {
        services,
        backends,
        flows: 65_536,
        cached_flows: 4096,
        clients: 4096,
        nat_flows: 1024,
    };
    let features = Features {
        frags: has_frags(),
        ..Features::default()
    };
    let mut ebpf = load::load(features, &KEY, sizes, None)?;
    // Before maps are taken out of it that the program names.
    attach::verify(&mut ebpf, "lb")?;
    let maps = Maps::of(&mut ebpf, sizes, None)?;
    Ok((ebpf, maps))
}

/// What the layout itself costs: filling a region, and the stores that switch to it.
fn raw(runs: usize, slots: &[Slot], table: &mut Table) -> anyhow::Result<()> {
    let (_, mut maps) = load(128, 16)?;
    // Two regions of each slab in turn, as the agent has them.
    maps.slabs.grow(2)?;
    let words = [TableWord::new(0, 0, SIZE), TableWord::new(1, 0, SIZE)];
    for word in words {
        maps.slabs.write(word, slots.iter().copied());
    }
    for run in 0..runs {
        let word = words[run % 2];
        let begun = Instant::now();
        maps.slabs.write(word, slots.iter().copied());
        table.ms(
            "a table of 65,521 slots, 1,000 backends",
            "written",
            begun.elapsed(),
        );
        for (count, name) in [
            (1, "1 table switched"),
            (3, "3 tables switched"),
            (100, "100 tables switched"),
        ] {
            let begun = Instant::now();
            for service in 0..count {
                maps.records.set_table(black_box(service), black_box(word));
            }
            table.ms("the stores that switch", name, begun.elapsed());
        }
    }
    Ok(())
}

/// Services with backends that die together: the n-th of each is one machine.
pub struct World {
    /// What the maps are of.
    ebpf: Ebpf,
    config: Config,
    dataplane: Dataplane,
    hops: BTreeMap<std::net::IpAddr, control::HopView>,
    /// The clock of the tables runs ahead.
    ahead_ns: u64,
}

impl World {
    /// # Errors
    /// Where the maps cannot be made.
    pub fn new(services: usize, backends: usize, size: Option<u32>) -> anyhow::Result<Self> {
        let mut text = "schema = 1\n[agent]\ninterfaces = [\"lo\"]\nmax_backends = 65535\n".to_owned();
        for service in 0..services {
            let port = 1000 + service;
            write!(
                text,
                "[[service]]\nname = \"s{service}\"\naddress = \"192.0.2.10\"\nport = {port}\nprotocol = \"tcp\"\n\
                 forward = \"dsr-l2\"\n"
            )?;
            if let Some(size) = size {
                writeln!(text, "table_size = {size}")?;
            }
            for backend in 0..backends {
                let (high, low) = (backend / 250, backend % 250 + 1);
                write!(text, "[[service.backend]]\naddress = \"10.0.{high}.{low}\"\n")?;
            }
        }
        let config =
            Config::parse(&text).map_err(|faults| anyhow!("the configuration of the benchmark: {faults}"))?;
        let (ebpf, maps) = load(services as u32, (services * backends) as u32)?;
        Ok(Self {
            ebpf,
            hops: simulate::hops(&config, &Options::default()),
            config,
            dataplane: Dataplane::adopt(maps, monotonic_ns())?,
            ahead_ns: 0,
        })
    }

    /// The program that these tables are for.
    ///
    /// # Errors
    /// Where there is none.
    pub fn program(&self) -> anyhow::Result<&ProgramFd> {
        let program: &Xdp = self.ebpf.program("lb").context("the program")?.try_into()?;
        Ok(program.fd()?)
    }

    fn statuses(&self, dead: &BTreeSet<usize>) -> BTreeMap<BackendId, BackendStatus> {
        let mut statuses = BTreeMap::new();
        for service in &self.config.services {
            for (n, backend) in service.backends.iter().enumerate() {
                let mut status = UP;
                if dead.contains(&n) {
                    status.state = OperState::Down;
                }
                statuses.insert(backend.id(service.key), status);
            }
        }
        statuses
    }

    fn desired(&self, dead: &BTreeSet<usize>) -> Desired {
        self.desired_by(&self.statuses(dead))
    }

    fn desired_by(&self, statuses: &BTreeMap<BackendId, BackendStatus>) -> Desired {
        control::desired(&Inputs {
            services: &self.config.services,
            statuses,
            hops: &self.hops,
            earlier: &self.dataplane.earlier(),
            backups: &BTreeSet::new(),
            vlans: false,
            interfaces: None,
            now: Instant::now(),
        })
    }

    /// From verdicts to tables in force, as the agent does it. Before that, what moved the last time settles.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn apply(&mut self, dead: &BTreeSet<usize>) -> anyhow::Result<Duration> {
        let statuses = self.statuses(dead);
        let begun = Instant::now();
        let desired = self.desired_by(&statuses);
        let ahead_ns = self.ahead_ns;
        self.dataplane.apply(&desired, &|| monotonic_ns() + ahead_ns)?;
        let took = begun.elapsed();
        // The window ends in two steps, then a scan finds no flows.
        for _ in 0..3 {
            self.ahead_ns += LONG_NS;
            let ahead_ns = self.ahead_ns;
            let clock = || monotonic_ns() + ahead_ns;
            self.dataplane.apply(&desired, &clock)?;
            let mut flows = self.dataplane.maps.flows.try_clone()?;
            let view = Arc::new(self.dataplane.view(&clock));
            let report = sweep::sweep(&mut flows, &|| Arc::clone(&view), &clock, &|| true)?;
            self.dataplane
                .take_scan(Arc::new(report.context("a whole scan")?))?;
        }
        self.dataplane
            .apply(&desired, &|| monotonic_ns() + ahead_ns + 3 * LONG_NS)?;
        Ok(took)
    }
}
