//! `xlb-bench packet`: nanoseconds a packet through `BPF_PROG_TEST_RUN`.
//!
//! Every round measures each case once, floors among them, so that a ratio is of two figures of one round. A case is
//! run once before the first round, to fill caches (and tables, where the program has any).

mod cases;
mod stage;

use std::path::PathBuf;

use anyhow::{Context, Result};
use aya::programs::{ProgramFd, Xdp};
use clap::Args;
use xlb::datapath::measure::{self, Floor, Flows, Harness, Subject};
use xlb::datapath::testrun::Action;

use self::cases::{CASES, Case, Family, Kind, SETTINGS};
use super::result::{Better, Fact, PartResult, Row};

/// What to measure.
#[derive(Clone, Debug, Default, Args)]
pub struct Options {
    /// Another XDP program, pinned by its owner, on the same packets.
    #[arg(long, value_name = "PATH")]
    pinned: Option<PathBuf>,
    /// How often each case is measured.
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// Only cases whose group and name, joined by a colon, contain this.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
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
    /// What the loop and the harness cost: a program that only passes.
    idle: Ready,
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
    let simulators = SETTINGS
        .map(|setting| -> Result<_> { Ok((setting, stage::simulator(setting)?)) })
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let pinned = options
        .pinned
        .as_ref()
        .map(|path| measure::pinned(path).with_context(|| path.display().to_string()))
        .transpose()?;
    let pinned = pinned.as_ref().map(Xdp::fd).transpose()?;
    let mut measured = Vec::new();
    let only = options.only.as_deref().unwrap_or_default();
    for case in CASES.iter().filter(|case| case.title().contains(only)) {
        let (_, simulator) = simulators
            .iter()
            .find(|(setting, _)| *setting == case.setting)
            .context("a simulator for each setting")?;
        measured.push(prepare(case, simulator.program()?.fd()?, pinned)?);
    }
    for round in 0..=task.rounds {
        for one in &mut measured {
            for ready in [
                Some(&mut one.idle),
                Some(&mut one.floor),
                Some(&mut one.subject),
                one.pinned.as_mut(),
            ]
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
    let frame = stage::frame(case)?;
    let flows = Flows {
        count: case.flows,
        offset: match case.family {
            Family::V4 => 14 + 12,
            Family::V6 => 14 + 8 + 12,
        },
    };
    let action = if case.kind == Kind::Foreign {
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
            .with_context(|| case.title())?,
        floor: Ready::new(Subject::Floor(case.floor), &frame, flows, case.floor.action())?,
        idle: Ready::new(Subject::Floor(Floor::Pass), &frame, flows, Floor::Pass.action())?,
        pinned,
    })
}

fn result(task: Task, measured: &[Measured<'_>]) -> PartResult {
    let mut rows = Vec::new();
    for Measured {
        case,
        subject,
        floor,
        idle,
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
        let net = subject
            .samples
            .iter()
            .zip(&idle.samples)
            .map(|(ns, idle)| ns - idle);
        row(format!("{}, net of the loop", case.name), "ns", net.collect());
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
