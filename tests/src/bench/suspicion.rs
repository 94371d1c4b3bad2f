//! `suspicion`: how soon a host that vanishes under traffic is routed around, with passive detection and by probes alone.
//!
//! The ways take turns in one network, each with an agent of its own. The host dies at a random moment between two
//! probes. What counts is the first table without it, whatever found it out: the kernel may miss its neighbour first.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};
use clap::Args;
use tokio::runtime::Runtime;
use xlb::api::client::Client;
use xlb::lab::load::{Load, LoadOptions};
use xlb::model::Forward;
use xlb::observe::{Kind, Timestamp};

use super::result::{Better, Fact, PartResult, Row};
use crate::agent::Agent;
use crate::cleanup::Folder;
use crate::config::{Config, Family, Service};
use crate::lab::{Lab, LabOptions, VIPS_V4};
use crate::server::Server;

/// How much of it.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// How often the host dies in each way.
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// Connections a second.
    #[arg(long, value_delimiter = ',', value_name = "N", default_values_t = [200, 4])]
    loads: Vec<u32>,
}

/// Between two probes at rest, in seconds.
const INTERVALS_S: [u64; 2] = [2, 10];

/// Nothing takes longer that works: the longest interval, and a verdict.
const PATIENCE: Duration = Duration::from_secs(30);

/// One way to find it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Way {
    interval_s: u64,
    load_per_s: u32,
    passive: bool,
}

impl Way {
    fn group(&self) -> String {
        format!(
            "interval {} s, {} connections/s",
            self.interval_s, self.load_per_s
        )
    }

    fn name(&self) -> &'static str {
        match self.passive {
            true => "with passive detection",
            false => "probes alone",
        }
    }
}

/// What one death came to.
struct Course {
    to_switch: Duration,
    failed: usize,
}

/// Measures.
///
/// # Errors
/// Where the network cannot be made, or the death is not found out.
pub fn run(quick: bool, options: &Options) -> anyhow::Result<PartResult> {
    let rounds = options.rounds.unwrap_or(if quick { 1 } else { 10 });
    let lab = Lab::new(LabOptions {
        backends: 2,
        ..LabOptions::default()
    })?;
    let folder = std::sync::Arc::new(Folder::new("suspicion")?);
    let _servers: Vec<Server> = lab
        .backends
        .iter()
        .map(|host| Server::http(host, 80, &folder))
        .collect::<Result<_, _>>()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut samples: BTreeMap<(Way, &str), Vec<f64>> = BTreeMap::new();
    for round in 0..rounds {
        for interval_s in INTERVALS_S {
            for load_per_s in options.loads.iter().copied() {
                // Neither is always the first.
                for passive in [round % 2 == 0, round % 2 != 0] {
                    let way = Way {
                        interval_s,
                        load_per_s,
                        passive,
                    };
                    let course = die(&lab, &runtime, way).with_context(|| format!("{way:?}"))?;
                    let mut note = |what, value| samples.entry((way, what)).or_default().push(value);
                    note(
                        "death to the table without it",
                        course.to_switch.as_secs_f64() * 1000.0,
                    );
                    note("failed connections", course.failed as f64);
                }
            }
        }
        println!("  round {} of {rounds}", round + 1);
    }
    let rows = samples.into_iter().map(|((way, what), samples)| Row {
        group: way.group(),
        name: format!("{what}, {}", way.name()),
        unit: if what.starts_with("death") {
            "ms"
        } else {
            "connections"
        }
        .into(),
        better: Better::Lower,
        samples,
    });
    let fact = |name: &str, value: &str| Fact {
        name: name.into(),
        value: value.into(),
    };
    Ok(PartResult {
        part: "suspicion".into(),
        setting: vec![
            fact("rounds", &rounds.to_string()),
            fact(
                "death",
                "the cable of one of two backends is pulled, at a random moment between two probes",
            ),
            fact("checks", "defaults, but for the interval"),
        ],
        rows: rows.collect(),
        ..PartResult::default()
    })
}

fn die(lab: &Lab, runtime: &Runtime, way: Way) -> anyhow::Result<Course> {
    let web = Service::http(
        "web",
        VIPS_V4[0].into(),
        Forward::DsrL2,
        Family::V4,
        &lab.backends,
    );
    let config = Config {
        check: format!("interval = \"{}s\"\npassive = {}\n", way.interval_s, way.passive),
        services: vec![web],
        ..Config::default()
    };
    let agent = Agent::running(&lab.lb.netns, &config)?;
    agent.wait_serving(|_| true)?;
    let client = Client::new(agent.socket());
    let load = Load::start(
        &lab.client.netns,
        LoadOptions {
            connections_per_s: way.load_per_s,
            longest: PATIENCE * 3,
            ..LoadOptions::new(vec![SocketAddr::new(VIPS_V4[0].into(), 80)])
        },
    )?;
    thread::sleep(Duration::from_secs(1) + random(Duration::from_secs(way.interval_s)));
    let mut last = runtime.block_on(client.events(0, Duration::ZERO))?.last;
    let victim = &lab.backends[1].name;
    let death = Timestamp::of(SystemTime::now());
    lab.cut(victim)?;
    let deadline = Instant::now() + PATIENCE;
    let switched = loop {
        if Instant::now() > deadline {
            bail!("nobody found out:\n{}", agent.log());
        }
        let batch = runtime.block_on(client.events(last, Duration::from_secs(1)))?;
        last = batch.last;
        let switch = batch.events.into_iter().find(|event| {
            event.time >= death && matches!(event.kind, Kind::TableSwitched { moved_slots: 1.., .. })
        });
        if let Some(event) = switch {
            break event.time;
        }
    };
    // Those that were under way then fail a moment later.
    thread::sleep(Duration::from_millis(1200));
    lab.mend(victim)?;
    Ok(Course {
        to_switch: switched.since(death),
        failed: load.finish()?.failed(),
    })
}

fn random(up_to: Duration) -> Duration {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let draw = f64::from(now.unwrap_or_default().subsec_micros() % 10_007) / 10_007.0;
    up_to.mul_f64(draw)
}
