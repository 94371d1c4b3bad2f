//! `memory`: what the agent and the maps take, with a hundred backends and at full scale.
//!
//! Kernel memory of a map is `memlock` of its `fdinfo`: since Linux 6.4 that is what it uses.

use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail, ensure};
use aya::maps::MapData;
use clap::Args;
use lb_common::layout::{FlowEntry, FlowKey, FlowOwner, FlowSeen};
use lb_common::rule::State;
use xlb::datapath::load::{self, Features, Sizes};
use xlb::datapath::maps::Maps;
use xlb::datapath::memory;
use xlb::datapath::pins::PinDir;

use super::result::{Better, Fact, PartResult};
use super::rows::Rows;
use crate::KEY;
use crate::agent::{Agent, PinFolder};
use crate::lab::{Lab, LabOptions};

/// How much of it.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// How often the agent is started with 100 backends.
    #[arg(long, value_name = "N")]
    runs: Option<usize>,
    /// How often at full scale, which takes a while each.
    #[arg(long, value_name = "N")]
    scale_runs: Option<usize>,
}

const GOAL_MB: f64 = 30.0;
const MB: f64 = 1e6;

/// A configuration of so many services and backends, the backends behind one router.
#[derive(Clone, Copy, Debug)]
struct Scale {
    services: usize,
    /// Of all services together.
    backends: usize,
    /// Of the first service; the others have what the number of their backends gives.
    first_size: u32,
    flows: u32,
}

const SMALL: Scale = Scale {
    services: 1,
    backends: 100,
    first_size: 16_381,
    flows: 262_144,
};
const ONE: Scale = Scale {
    services: 1,
    backends: 1,
    first_size: 4093,
    flows: 262_144,
};
/// The most that a configuration can have.
const FULL: Scale = Scale {
    services: 4096,
    backends: 65_535,
    first_size: 131_071,
    flows: 1_048_576,
};

/// What one start showed.
struct Seen {
    ready: Duration,
    resident_mb: f64,
    maps_mb: f64,
}

/// Measures.
///
/// # Errors
/// Where the agent does not come up.
pub fn run(quick: bool, options: &Options) -> anyhow::Result<PartResult> {
    let runs = options.runs.unwrap_or(if quick { 2 } else { 10 });
    let scale_runs = options.scale_runs.unwrap_or(if quick { 1 } else { 3 });
    let full = if quick {
        Scale {
            services: 512,
            backends: 8192,
            ..FULL
        }
    } else {
        FULL
    };
    let mut rows = Rows::default();
    let mut note = |group: &str, name: &str, unit: &str, sample: f64| {
        rows.note(group, name, unit, Better::Lower, sample);
    };
    let lab = Lab::new(LabOptions {
        backends: 1,
        ..LabOptions::default()
    })?;
    lab.lb
        .netns
        .ip(&format!("route add 10.80.0.0/15 via {}\n", lab.backends[0].v4))?;
    let mut faults = Vec::new();
    println!("  the agent");
    for (scale, group, runs) in [
        (ONE, "1 backend".to_owned(), runs),
        (SMALL, "100 backends".to_owned(), runs),
        (
            full,
            format!("{} services, {} backends", full.services, full.backends),
            scale_runs,
        ),
    ] {
        for _ in 0..runs {
            let Seen {
                ready,
                resident_mb,
                maps_mb,
            } = start(&lab, scale)?;
            note(&group, "agent, resident", "MB", resident_mb);
            note(&group, "maps, in the kernel", "MB", maps_mb);
            note(
                &group,
                "from exec to forwarding",
                "ms",
                ready.as_secs_f64() * 1000.0,
            );
            if scale.backends == SMALL.backends && resident_mb > GOAL_MB {
                faults.push(format!(
                    "the agent takes {resident_mb:.1} MB for 100 backends, {GOAL_MB} MB were promised"
                ));
            }
        }
    }
    println!("  the flow table");
    for run in 0..runs {
        for (flows, name) in [
            (65_536, "flow table, a flow of 65,536"),
            (1_048_576, "flow table, a flow of 1,048,576"),
        ] {
            if quick && (run > 0 || flows > 65_536) {
                continue;
            }
            let (empty, filled) = fill(flows)?;
            note("flows", name, "bytes", (filled - empty) as f64 / f64::from(flows));
            note(
                "flows",
                &format!("empty flow table for {flows}"),
                "MB",
                empty as f64 / MB,
            );
        }
    }
    let fact = |name: &str, value: &str| Fact {
        name: name.into(),
        value: value.into(),
    };
    Ok(PartResult {
        part: "memory".into(),
        setting: vec![
            fact("agent", "VmRSS once it forwards, libraries included"),
            fact(
                "maps",
                "memlock of the fdinfo of every pinned map, slabs of tables included",
            ),
            fact("backends", "dsr-ipip behind one router, without checks"),
        ],
        rows: rows.finish(),
        faults,
        ..PartResult::default()
    })
}

fn start(lab: &Lab, scale: Scale) -> anyhow::Result<Seen> {
    let mut agent = Agent::new(&lab.lb.netns)?;
    fs::write(agent.config_file(), configuration(scale, &agent)?)?;
    let begun = Instant::now();
    agent.launch(&[])?;
    let deadline = begun + Duration::from_secs(120);
    // Its log, and not its API, so that it does not pay for being asked.
    let log = agent.folder().file("agent.log");
    while !fs::read_to_string(&log)?
        .lines()
        .any(|line| line.ends_with(" ready"))
    {
        if agent.process()?.ended()?.is_some() || Instant::now() > deadline {
            bail!("the agent did not come up:\n{}", tail(&agent.log()));
        }
        thread::sleep(Duration::from_millis(5));
    }
    let ready = begun.elapsed();
    let status = agent.status()?;
    let serving: usize = status
        .services
        .iter()
        .map(|service| service.backends.iter().filter(|backend| backend.serving).count())
        .sum();
    ensure!(
        (status.services.len(), serving) == (scale.services, scale.backends),
        "{serving} backends of {} services serve",
        status.services.len()
    );
    ensure!(
        status
            .services
            .iter()
            .any(|service| service.table_size == scale.first_size),
        "no table of {} slots",
        scale.first_size
    );
    let seen = Seen {
        ready,
        resident_mb: memory::of_process(agent.process()?.pid())? as f64 / MB,
        maps_mb: memory::of_maps(agent.pin_dir())? as f64 / MB,
    };
    agent.order(&["detach"])?;
    agent.wait_end()?;
    Ok(seen)
}

fn tail(log: &str) -> &str {
    let from = log.len().saturating_sub(2000);
    log.get(from..).unwrap_or(log)
}

fn configuration(scale: Scale, agent: &Agent) -> anyhow::Result<String> {
    let Scale {
        services,
        backends,
        first_size,
        flows,
    } = scale;
    let folder = agent.folder().path();
    let mut text = format!(
        "schema = 1\n[agent]\ninterfaces = [\"eth0\"]\nxdp_mode = \"native\"\napi_socket = \"{}\"\nstate_dir = \"{}\"\n\
         pin_dir = \"{}\"\nmax_services = {}\nmax_backends = {}\nflow_table_size = {flows}\n\
         [defaults.check]\ntype = \"none\"\n",
        folder.join("xlb.sock").display(),
        folder.join("state").display(),
        agent.pin_dir().display(),
        services.max(1024),
        backends.max(4096),
    );
    let mut next = u32::from(Ipv4Addr::new(10, 80, 0, 1));
    for service in 0..services {
        write!(
            text,
            "[[service]]\nname = \"s{service}\"\naddress = \"192.0.2.10\"\nport = {}\nprotocol = \"tcp\"\n\
             forward = \"dsr-ipip\"\n",
            1000 + service
        )?;
        if service == 0 {
            writeln!(text, "table_size = {first_size}")?;
        }
        let share = backends / services + usize::from(service < backends % services);
        for _ in 0..share {
            write!(
                text,
                "[[service.backend]]\naddress = \"{}\"\n",
                Ipv4Addr::from(next)
            )?;
            next += 1;
        }
    }
    Ok(text)
}

/// Bytes of a flow table with room for so many flows: empty, and full.
fn fill(flows: u32) -> anyhow::Result<(u64, u64)> {
    let folder = PinFolder::new("memory");
    let pins = PinDir::create(folder.path())?;
    let sizes = Sizes {
        services: 16,
        backends: 16,
        flows,
        cached_flows: 4096,
        clients: 4096,
        nat_flows: 1024,
    };
    let mut ebpf = load::load(Features::default(), &KEY, sizes, Some(&pins))?;
    let mut maps = Maps::of(&mut ebpf, sizes, Some(&pins))?;
    let table = MapData::from_pin(pins.path("flows")).map_err(|error| anyhow!("the flow table: {error}"))?;
    let empty = memory::of_map(&table)?;
    for n in 0..flows {
        let key = FlowKey {
            source: [n, 0, 0, 0],
            ports: n,
            service: 1,
        };
        let entry = FlowEntry {
            owner: FlowOwner::new(n, 1),
            seen: FlowSeen::new(State::Established, 1),
            isn: 0,
            before: 0,
        };
        maps.flows.set(&key, entry)?;
    }
    Ok((empty, memory::of_map(&table)?))
}
