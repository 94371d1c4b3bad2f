//! `forward`: packets a second through veth.
//!
//! ```text
//!   generator (CPU 0) ──▶ g0 ═══ l0   a program that only writes the MAC addresses and transmits
//!                         g1 ═══ l1   one that exchanges them, so has to look at the packet
//!                         g2 ═══ l2   one that makes room for an outer header and transmits
//!                         g3 ═══ l3   the load balancer, dsr-l2      (each l in a namespace of its own, its
//!                         g4 ═══ l4   the load balancer, dsr-ipip     packets handled by a thread on CPU 1)
//!                         g5 ═══ l5   a bare sketch of one behind an outer header
//! ```
//!
//! The generator sends real frames (`BPF_PROG_TEST_RUN`, live frames); what comes back ends in a program that drops it, on
//! CPU 1 as well, and is counted there. Once as fast as it can, which is faster than any of them forwards, and once at a
//! pace that all of them keep up with, on average: frames reach the device in bursts of 16. What a packet costs is the
//! processor time of the thread, which drops what comes back as well. At full rate both sides take turns at the lock of the
//! queue between them, and that is measured too.

use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use etherparse::PacketBuilder;
use lb_common::layout;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use xlb::datapath::identity;
use xlb::datapath::measure::{Bare, Floor, Flows, Harness, Subject, Yardstick};
use xlb::lab::flood::mac_of;
use xlb::model::{Protocol, ServiceKey};

use super::result::{Better, Fact, PartResult};
use super::rows::Rows;
use crate::agent::Agent;
use crate::netns::{Netns, ip, run as run_command};
use crate::pass::Pass;

/// How much of it.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// How often each is measured.
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
}

/// What forwards on a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Floor(Floor),
    /// The least that a balancer does behind an outer header ([`Bare::Sketch`]).
    Sketch,
    /// `forward` of a service.
    Ours(&'static str),
}

const LANES: [(Kind, &str); 6] = [
    (Kind::Floor(Floor::Rewrite), "only writes the MAC addresses"),
    (Kind::Floor(Floor::Swap), "only exchanges the MAC addresses"),
    (Kind::Floor(Floor::OuterV4), "only makes room for an outer header"),
    (Kind::Ours("dsr-l2"), "dsr-l2"),
    (Kind::Ours("dsr-ipip"), "dsr-ipip"),
    (Kind::Sketch, "a bare sketch"),
];

/// The share of the floor's rate that is promised for `dsr-l2`, and of its processor time a packet the other way round.
const GOAL: f64 = 0.93;

/// From packet to packet where all keep up.
const PACE: Duration = Duration::from_nanos(700);

/// A generator of packets of so many flows.
struct Generator {
    flows: u32,
    fast: Harness,
    paced: Harness,
}

/// A pair of devices, and what forwards on it. Dropped from the top.
struct Lane {
    name: &'static str,
    _agent: Option<Agent>,
    _floor: Option<Pass>,
    _sketch: Option<Yardstick>,
    _sink: Pass,
    generators: Vec<Generator>,
    generator_device: String,
    ifindex: u32,
    /// The thread that handles its packets.
    napi: u32,
    _netns: Netns,
}

/// What came back of what was sent.
struct Rate {
    packets: u64,
    took: Duration,
    /// Processor time of the thread that forwards.
    busy: Duration,
}

impl Rate {
    fn packets_per_s(&self) -> f64 {
        self.packets as f64 / self.took.as_secs_f64()
    }

    fn busy_percent(&self) -> f64 {
        100.0 * self.busy.as_secs_f64() / self.took.as_secs_f64()
    }

    /// What a core forwards that has nothing else to do: the rate, where the generator was fast enough.
    fn of_a_core(&self) -> f64 {
        1e9 / self.ns_a_packet()
    }

    fn ns_a_packet(&self) -> f64 {
        self.busy.as_nanos() as f64 / self.packets.max(1) as f64
    }
}

/// Measures.
///
/// # Errors
/// Where a lane cannot be made.
pub fn run(quick: bool, options: &Options) -> anyhow::Result<PartResult> {
    let rounds = options.rounds.unwrap_or(if quick { 2 } else { 11 });
    let packets = if quick { 1_000_000 } else { 4_000_000 };
    let cores = std::thread::available_parallelism()?.get();
    if cores < 2 {
        bail!("forward needs two cores: one sends, one forwards");
    }
    let generator = Netns::new("gen")?;
    let lanes: Vec<Lane> = (0..LANES.len())
        .map(|n| Lane::set_up(&generator, n))
        .collect::<anyhow::Result<_>>()?;
    let mut rows = Rows::default();
    for round in 0..=rounds {
        for (place, Generator { flows, .. }) in lanes[0].generators.iter().enumerate() {
            let group = if *flows == 1 {
                "1 flow".to_owned()
            } else {
                format!("{flows} flows")
            };
            // The first round fills caches.
            let packets = if round == 0 { packets / 4 } else { packets };
            let measure = |paced: bool| -> anyhow::Result<Vec<Rate>> {
                // Not always after the same one.
                let first = round % lanes.len();
                let turns = (0..lanes.len()).map(|n| &lanes[(first + n) % lanes.len()]);
                let packets = if paced { packets / 2 } else { packets };
                let rates = turns.map(|lane| lane.measure(&generator, place, paced, packets));
                let mut rates = rates.collect::<anyhow::Result<Vec<Rate>>>()?;
                rates.rotate_right(first);
                Ok(rates)
            };
            let (fast, paced) = (measure(false)?, measure(true)?);
            if round == 0 {
                continue;
            }
            for (Lane { name, .. }, rate) in lanes.iter().zip(&fast) {
                let rate_per_s = rate.packets_per_s();
                rows.note(&group, *name, "packets/s", Better::Higher, rate_per_s);
                let (busy, unit) = (format!("{name}, busy"), "% of the core");
                rows.note(&group, busy, unit, Better::Neither, rate.busy_percent());
                let name = format!("{name}, of a busy core");
                rows.note(&group, name, "packets/s", Better::Higher, rate.of_a_core());
            }
            for (lane, rate) in lanes.iter().zip(&paced) {
                let name = format!("{}, processor time a packet", lane.name);
                rows.note(&group, name, "ns", Better::Lower, rate.ns_a_packet());
            }
            for (ours, floor) in [(3, 0), (3, 1), (4, 2), (5, 2)] {
                for (what, rates) in [("", &fast), ("processor time, ", &paced)] {
                    let ratio = rates[floor].ns_a_packet() / rates[ours].ns_a_packet();
                    let name = format!("{}, {what}ratio to what {}", lanes[ours].name, lanes[floor].name);
                    rows.note(&group, name, "", Better::Higher, ratio);
                }
            }
        }
        eprint!("\r  round {round} of {rounds}");
    }
    eprintln!();
    let rows = rows.finish();
    let faults = rows
        .iter()
        .filter(|row| row.name.starts_with("dsr-l2, ") && row.name.contains("ratio to"))
        .filter_map(|row| {
            let median = row.spread()?.median;
            (median < GOAL).then(|| format!("{}: {}: {median:.3}, {GOAL} were promised", row.group, row.name))
        })
        .collect();
    let fact = |name: &str, value: String| Fact {
        name: name.into(),
        value,
    };
    Ok(PartResult {
        part: "forward".into(),
        setting: vec![
            fact("rounds", rounds.to_string()),
            fact("frames sent a measurement", format!("{packets}, paced half as many")),
            fact("pace", format!("a packet each {} ns where processor time is measured", PACE.as_nanos())),
            fact("packets", "64 bytes of frame and more, established TCP, 100 backends".into()),
            fact(
                "cores",
                "CPU 0 sends live frames, CPU 1 forwards and drops what comes back; veth with one queue, threaded NAPI".into(),
            ),
        ],
        rows,
        faults,
        ..PartResult::default()
    })
}

impl Lane {
    fn set_up(generator: &Netns, n: usize) -> anyhow::Result<Self> {
        let (kind, name) = LANES[n];
        let netns = Netns::new(&format!("lane{n}"))?;
        let (here, there) = (format!("g{n}"), format!("l{n}"));
        ip(
            None,
            &format!(
                "link add {there} netns {} type veth peer name {here} netns {}\n",
                netns.name(),
                generator.name()
            ),
        )?;
        generator.ip(&format!("link set {here} up\n"))?;
        netns.ip(&format!(
            "link set {there} up\naddr add 10.80.255.254/16 dev {there}\n"
        ))?;
        let sink = Pass::attach_other(generator, &[&here], "sink")?;
        let (mut floor, mut sketch, mut agent) = (None, None, None);
        match kind {
            Kind::Floor(which) => floor = Some(Pass::attach_other(&netns, &[&there], which.program())?),
            Kind::Sketch => {
                let mut yardstick = Yardstick::load(service_key(), 1, 1)?;
                netns.enter(|| yardstick.attach(Bare::Sketch, &there))?;
                sketch = Some(yardstick);
            }
            Kind::Ours(forward) => {
                let neighbours: String = (1..=100)
                    .map(|n| {
                        format!(
                            "neigh add 10.80.0.{n} lladdr 02:00:00:00:01:{n:02x} dev {there} nud permanent\n"
                        )
                    })
                    .collect();
                netns.ip(&neighbours)?;
                agent = Some(balance(&netns, &there, forward)?);
            }
        }
        let (ifindex, generators) = generator.enter(|| -> anyhow::Result<_> {
            let ifindex = nix::net::if_::if_nametoindex(here.as_str())?;
            let generators = [1, 1 << 20].map(|flows| -> anyhow::Result<Generator> {
                Ok(Generator {
                    flows,
                    fast: harness(&netns, &there, flows, Duration::ZERO)?,
                    paced: harness(&netns, &there, flows, PACE)?,
                })
            });
            Ok((
                ifindex,
                generators.into_iter().collect::<anyhow::Result<Vec<_>>>()?,
            ))
        })?;
        Ok(Self {
            name,
            _agent: agent,
            _floor: floor,
            _sketch: sketch,
            _sink: sink,
            generators,
            generator_device: here,
            ifindex,
            napi: threaded(&netns, &there)?,
            _netns: netns,
        })
    }

    fn measure(&self, generator: &Netns, place: usize, paced: bool, packets: u32) -> anyhow::Result<Rate> {
        let Generator {
            fast, paced: slow, ..
        } = &self.generators[place];
        let before = self.came_back(generator)?;
        let busy_before = on_cpu(self.napi)?;
        let took = generator.enter(|| -> anyhow::Result<Duration> {
            pin(nix::unistd::gettid(), 0)?;
            let begun = Instant::now();
            let harness = if paced { slow } else { fast };
            harness.send(self.ifindex, packets)?;
            Ok(begun.elapsed())
        })?;
        // By the end what is still in the queue is at most 256 packets.
        let busy = on_cpu(self.napi)?.saturating_sub(busy_before);
        let came_back = self.came_back(generator)? - before;
        ensure!(
            came_back > u64::from(packets) / 100,
            "{}: {came_back} of {packets} packets came back",
            self.name
        );
        Ok(Rate {
            packets: came_back,
            took,
            busy,
        })
    }

    /// Packets that the sink dropped.
    fn came_back(&self, generator: &Netns) -> anyhow::Result<u64> {
        let text = generator.run(&format!("ethtool -S {}", self.generator_device))?;
        let drops = text
            .lines()
            .filter_map(|line| line.trim().split_once(": "))
            .filter(|(name, _)| name.starts_with("rx_queue") && name.ends_with("xdp_drops"))
            .map(|(_, value)| value.parse::<u64>());
        drops.sum::<Result<u64, _>>().context("counters of veth")
    }
}

/// The agent on a device, with a service of 100 backends.
fn balance(netns: &Netns, device: &str, forward: &str) -> anyhow::Result<Agent> {
    let mut agent = Agent::new(netns)?;
    let folder = agent.folder().path().to_owned();
    let backends: String = (1..=100)
        .map(|n| format!("[[service.backend]]\naddress = \"10.80.0.{n}\"\n"))
        .collect();
    let text = format!(
        "schema = 1\n[agent]\ninterfaces = [\"{device}\"]\nxdp_mode = \"native\"\napi_socket = \"{}\"\nstate_dir = \"{}\"\n\
         pin_dir = \"{}\"\n[[service]]\nname = \"web\"\naddress = \"192.0.2.10\"\nport = 80\nprotocol = \"tcp\"\n\
         forward = \"{forward}\"\n[service.check]\ntype = \"none\"\n{backends}",
        folder.join("xlb.sock").display(),
        folder.join("state").display(),
        agent.pin_dir().display()
    );
    fs::write(agent.config_file(), text)?;
    agent.start()?;
    agent.wait_serving(|_| true)?;
    Ok(agent)
}

/// The service of [`balance`].
fn service_key() -> layout::ServiceKey {
    identity::service_key(&ServiceKey {
        address: Ipv4Addr::new(192, 0, 2, 10).into(),
        port: 80,
        protocol: Protocol::Tcp,
    })
}

/// A generator of segments of established connections to the service, from so many clients.
fn harness(netns: &Netns, device: &str, flows: u32, pace: Duration) -> anyhow::Result<Harness> {
    let mac = netns.enter(|| mac_of(device))?;
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 9], mac)
        .ipv4([203, 0, 113, 7], [192, 0, 2, 10], 64)
        .tcp(40_000, 80, 1000, 65_535)
        .ack(1)
        .write(&mut frame, &[0; 10])?;
    let flows = Flows {
        count: flows,
        offset: 26,
    };
    Ok(Harness::paced(
        Subject::Floor(Floor::Transmit),
        &frame,
        flows,
        pace,
    )?)
}

/// Has a thread of its own handle the packets of a device, on CPU 1; its id.
fn threaded(netns: &Netns, device: &str) -> anyhow::Result<u32> {
    let file = format!("/sys/class/net/{device}/threaded");
    // `ip netns exec` mounts the sysfs of the namespace.
    run_command(Command::new("ip").args([
        "netns",
        "exec",
        netns.name(),
        "sh",
        "-c",
        &format!("echo 1 > {file}"),
    ]))
    .context("threaded NAPI, which needs Linux 5.12")?;
    let name = format!("napi/{device}-");
    let mut youngest = None;
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if comm.starts_with(&name) {
            youngest = youngest.max(Some(pid));
        }
    }
    let pid = youngest.with_context(|| format!("no thread {name}"))?;
    pin(Pid::from_raw(pid.cast_signed()), 1)?;
    Ok(pid)
}

/// Keeps a thread on a processor, before whatever else runs there: else the queue of veth, 256 packets, overflows while
/// it waits.
fn pin(thread: Pid, cpu: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(thread, &set)?;
    let thread = thread.to_string();
    run_command(Command::new("renice").args(["-n", "-20", "-p", &thread])).map(drop)
}

/// Time that a thread was on a processor.
fn on_cpu(thread: u32) -> anyhow::Result<Duration> {
    let text = fs::read_to_string(format!("/proc/{thread}/schedstat"))?;
    let first = text.split_whitespace().next().context("schedstat")?;
    Ok(Duration::from_nanos(first.parse()?))
}
