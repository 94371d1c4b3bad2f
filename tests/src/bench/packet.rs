//! `xlb-bench packet`: nanoseconds a packet through `BPF_PROG_TEST_RUN`.
//!
//! Every round measures each case once, floors among them, so that a ratio is of two figures of one round. A case is
//! run once before the first round, to fill caches (and tables, where the program has any).

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use aya::programs::{ProgramFd, Xdp};
use clap::Args;
use etherparse::PacketBuilder;
use xlb::config::Config;
use xlb::datapath::measure::{self, Floor, Flows, Harness, Subject};
use xlb::datapath::simulate::{self, Simulator};
use xlb::datapath::testrun::Action;

use super::result::{Better, Fact, PartResult, Row};

const MILLION: u32 = 1 << 20;

/// What a case sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A TCP segment with ACK.
    Established,
    Syn,
    Udp,
    /// TCP to a port that no service has.
    Foreign,
}

/// Which addresses a case uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

/// One line of the table.
struct Case {
    group: &'static str,
    name: &'static str,
    /// `forward` of the service.
    forward: &'static str,
    family: Family,
    kind: Kind,
    flows: u32,
    floor: Floor,
}

const fn case(
    group: &'static str,
    name: &'static str,
    forward: &'static str,
    family: Family,
    kind: Kind,
    flows: u32,
    floor: Floor,
) -> Case {
    Case {
        group,
        name,
        forward,
        family,
        kind,
        flows,
        floor,
    }
}

use Family::{V4, V6};
use Floor::{OuterUdp, OuterV4, OuterV6, Pass, Rewrite};
use Kind::{Established, Foreign, Syn, Udp};

const IPIP: &str = "dsr-ipip";
const L2: &str = "dsr-l2";
const GUE: &str = "dsr-gue";

const CASES: [Case; 15] = [
    case(
        "IPv4 in IPv4",
        "established TCP, 1 flow",
        IPIP,
        V4,
        Established,
        1,
        OuterV4,
    ),
    case(
        "IPv4 in IPv4",
        "established TCP, 65,536 flows",
        IPIP,
        V4,
        Established,
        1 << 16,
        OuterV4,
    ),
    case(
        "IPv4 in IPv4",
        "established TCP, 1,048,576 flows",
        IPIP,
        V4,
        Established,
        MILLION,
        OuterV4,
    ),
    case("IPv4 in IPv4", "SYN, 1 flow", IPIP, V4, Syn, 1, OuterV4),
    case(
        "IPv4 in IPv4",
        "SYN, 1,048,576 flows",
        IPIP,
        V4,
        Syn,
        MILLION,
        OuterV4,
    ),
    case("IPv4 in IPv4", "UDP, 1 flow", IPIP, V4, Udp, 1, OuterV4),
    case(
        "IPv6 in IPv6",
        "established TCP, 1 flow",
        IPIP,
        V6,
        Established,
        1,
        OuterV6,
    ),
    case(
        "IPv6 in IPv6",
        "established TCP, 1,048,576 flows",
        IPIP,
        V6,
        Established,
        MILLION,
        OuterV6,
    ),
    case(
        "dsr-gue",
        "IPv4, established TCP, 1 flow",
        GUE,
        V4,
        Established,
        1,
        OuterUdp,
    ),
    case(
        "dsr-gue",
        "IPv4, established TCP, 1,048,576 flows",
        GUE,
        V4,
        Established,
        MILLION,
        OuterUdp,
    ),
    case(
        "dsr-gue",
        "IPv6, established TCP, 1 flow",
        GUE,
        V6,
        Established,
        1,
        OuterV6,
    ),
    case(
        "dsr-l2",
        "IPv4, established TCP, 1 flow",
        L2,
        V4,
        Established,
        1,
        Rewrite,
    ),
    case(
        "dsr-l2",
        "IPv4, established TCP, 1,048,576 flows",
        L2,
        V4,
        Established,
        MILLION,
        Rewrite,
    ),
    case("no service's", "IPv4 TCP", IPIP, V4, Foreign, 1, Pass),
    case("no service's", "IPv6 TCP", IPIP, V6, Foreign, 1, Pass),
];

/// What to measure.
#[derive(Clone, Debug, Default, Args)]
pub struct Options {
    /// Another XDP program, pinned by its owner, on the same packets.
    #[arg(long, value_name = "PATH")]
    pinned: Option<PathBuf>,
    /// How often each case is measured.
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
}

/// How much of it.
#[derive(Clone, Copy, Debug)]
struct Task {
    rounds: usize,
    /// Packets a measurement.
    repeat: u32,
}

/// A harness that is ready, and what its program has to end in.
struct Ready {
    harness: Harness,
    action: Action,
    samples: Vec<f64>,
}

impl Ready {
    fn new(subject: Subject<'_>, frame: &[u8], flows: Flows, action: Action) -> Result<Self> {
        Ok(Self {
            harness: Harness::new(subject, frame, flows)?,
            action,
            samples: Vec::new(),
        })
    }

    fn run(&mut self, repeat: u32) -> Result<()> {
        let ns = self.harness.measure(repeat, self.action)?;
        self.samples.push(ns as f64);
        Ok(())
    }
}

struct Measured<'a> {
    case: &'a Case,
    subject: Ready,
    floor: Ready,
    pinned: Option<Ready>,
}

/// Measures.
///
/// # Errors
/// Where a program cannot be loaded, or does something else than it has to.
pub fn run(quick: bool, options: &Options) -> Result<PartResult> {
    let task = Task {
        rounds: options.rounds.unwrap_or(if quick { 3 } else { 11 }),
        repeat: if quick { 100_000 } else { 1_000_000 },
    };
    let simulators = [L2, IPIP, GUE]
        .map(|forward| -> Result<_> {
            let simulator = Simulator::for_speed(&configuration(forward)?, &simulate::Options::default())?;
            Ok((forward, simulator))
        })
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let pinned = options
        .pinned
        .as_ref()
        .map(|path| measure::pinned(path).with_context(|| path.display().to_string()))
        .transpose()?;
    let pinned = pinned.as_ref().map(Xdp::fd).transpose()?;
    let mut measured = Vec::new();
    for case in &CASES {
        let (_, simulator) = simulators
            .iter()
            .find(|(forward, _)| *forward == case.forward)
            .context("a simulator for each forward mode")?;
        measured.push(prepare(case, simulator.program()?.fd()?, pinned)?);
    }
    for round in 0..=task.rounds {
        for one in &mut measured {
            for ready in [Some(&mut one.floor), Some(&mut one.subject), one.pinned.as_mut()]
                .into_iter()
                .flatten()
            {
                if round == 0 {
                    ready
                        .harness
                        .measure(one.case.flows.max(1000) * 2, ready.action)?;
                } else {
                    ready.run(task.repeat)?;
                }
            }
        }
        eprint!("\r  round {round} of {}", task.rounds);
    }
    eprintln!();
    Ok(result(task, &measured))
}

fn prepare<'a>(case: &'a Case, program: &ProgramFd, pinned: Option<&ProgramFd>) -> Result<Measured<'a>> {
    let frame = frame(case)?;
    let flows = Flows {
        count: case.flows,
        offset: match case.family {
            V4 => 14 + 12,
            V6 => 14 + 8 + 12,
        },
    };
    let action = if case.kind == Foreign {
        Action::Pass
    } else {
        Action::Tx
    };
    let pinned = pinned
        .map(|fd| {
            let harness = Harness::new(Subject::Program(fd), &frame, flows)?;
            let action = harness.action()?;
            Ok::<_, anyhow::Error>(Ready {
                harness,
                action,
                samples: Vec::new(),
            })
        })
        .transpose()?;
    Ok(Measured {
        case,
        subject: Ready::new(Subject::Program(program), &frame, flows, action)
            .with_context(|| format!("{}: {}", case.group, case.name))?,
        floor: Ready::new(Subject::Floor(case.floor), &frame, flows, case.floor.action())?,
        pinned,
    })
}

fn result(task: Task, measured: &[Measured<'_>]) -> PartResult {
    let mut rows = Vec::new();
    for Measured {
        case,
        subject,
        floor,
        pinned,
    } in measured
    {
        let mut row = |name: String, unit: &str, samples: Vec<f64>| {
            rows.push(Row {
                group: case.group.into(),
                name,
                unit: unit.into(),
                better: Better::Lower,
                samples,
            });
        };
        let ratio = |ready: &Ready| {
            ready
                .samples
                .iter()
                .zip(&floor.samples)
                .map(|(a, b)| a / b.max(1.0))
                .collect()
        };
        row(case.name.to_owned(), "ns", subject.samples.clone());
        row(format!("{}, its floor", case.name), "ns", floor.samples.clone());
        row(format!("{}, ratio to the floor", case.name), "", ratio(subject));
        if let Some(pinned) = pinned {
            row(
                format!("{}, the pinned program", case.name),
                "ns",
                pinned.samples.clone(),
            );
            row(
                format!("{}, the pinned program, ratio to the floor", case.name),
                "",
                ratio(pinned),
            );
        }
    }
    let fact = |name: &str, value: String| Fact {
        name: name.into(),
        value,
    };
    PartResult {
        part: "packet".into(),
        setting: vec![
            fact("packets a measurement", task.repeat.to_string()),
            fact("rounds", task.rounds.to_string()),
            fact(
                "figures",
                "nanoseconds a packet by the kernel's own clock, the loop of BPF_PROG_TEST_RUN and the harness included, \
                 in the floors as well"
                    .into(),
            ),
            fact("packets", "64 bytes of IP and more headers, 100 backends, table of 16,381 slots".into()),
        ],
        rows,
        ..PartResult::default()
    }
}

const SERVICE_V4: [u8; 4] = [192, 0, 2, 10];
const SERVICE_V6: [u8; 16] = [0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10];
const CLIENT_V4: [u8; 4] = [203, 0, 113, 7];
const CLIENT_V6: [u8; 16] = [0x20, 0x01, 0x0d, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];

/// Services of TCP and UDP on an address of each family, with 100 backends each.
fn configuration(forward: &str) -> Result<Config> {
    use std::fmt::Write as _;

    let mut text = "schema = 1\n[agent]\ninterfaces = [\"lo\"]\n".to_owned();
    for (family, address) in [(4, "192.0.2.10"), (6, "2001:db8::10")] {
        for protocol in ["tcp", "udp"] {
            write!(
                text,
                "[[service]]\nname = \"{protocol}{family}\"\naddress = \"{address}\"\nport = 80\n\
                 protocol = \"{protocol}\"\nforward = \"{forward}\"\n"
            )?;
            for backend in 1..=100 {
                let prefix = if family == 4 { "10.0.1." } else { "2001:db8:1::" };
                write!(text, "[[service.backend]]\naddress = \"{prefix}{backend}\"\n")?;
            }
        }
    }
    match Config::parse(&text) {
        Ok(config) => Ok(config),
        Err(error) => bail!("the configuration of the benchmark: {error:?}"),
    }
}

fn frame(case: &Case) -> Result<Vec<u8>> {
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 1]);
    let ip = match case.family {
        V4 => ethernet.ipv4(CLIENT_V4, SERVICE_V4, 64),
        V6 => ethernet.ipv6(CLIENT_V6, SERVICE_V6, 64),
    };
    let mut frame = Vec::new();
    let payload = [0; 10];
    match case.kind {
        Established => ip
            .tcp(40_000, 80, 1000, 65_535)
            .ack(1)
            .write(&mut frame, &payload),
        Foreign => ip
            .tcp(40_000, 81, 1000, 65_535)
            .ack(1)
            .write(&mut frame, &payload),
        Syn => ip.tcp(40_000, 80, 1000, 65_535).syn().write(&mut frame, &payload),
        Udp => ip.udp(40_000, 80).write(&mut frame, &payload),
    }
    .context("building the packet of a case")?;
    Ok(frame)
}
