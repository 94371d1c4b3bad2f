//! `xlb-bench packet`: nanoseconds a packet through `BPF_PROG_TEST_RUN`.
//!
//! Every round measures each case once, floors among them, so that a ratio is of two figures of one round. A case is
//! run once before the first round, to fill caches (and tables, where the program has any).

mod cases;
mod stage;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use aya::programs::{ProgramFd, Xdp};
use clap::Args;
use xlb::datapath::measure::{self, Bare, Floor, Flows, Harness, Subject, Yardstick};
use xlb::datapath::testrun::Action;

use self::cases::{CASES, Case, Kind, SETTINGS, SKETCH, Setting};
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
    /// With the packets of a case; `action`: what its program ends in, where that is known.
    fn new(subject: Subject<'_>, case: &Case, action: Option<Action>) -> Result<Self> {
        let flows = Flows {
            count: case.flows,
            offset: stage::client_offset(case),
        };
        let frame = stage::frame(case)?;
        let harness = if case.setting.translates() {
            Harness::translating(subject, &frame, flows)?
        } else {
            Harness::new(subject, &frame, flows)?
        };
        Ok(Self {
            action: match action {
                Some(action) => action,
                None => harness.action()?,
            },
            harness,
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
    /// A bare sketch of the way, and one that looks up every flow.
    bare: Option<[Ready; 2]>,
    /// A bare way that only reads the line of its flow.
    reading: Option<Ready>,
    pinned: Option<Ready>,
}

/// Flows that a bare way has room for: more than any case has, or it would forget some.
const BARE_FLOWS: u32 = 1 << 21;

/// Measures.
///
/// # Errors
/// Where a program cannot be loaded, or does something else than it has to.
pub fn run(quick: bool, options: &Options) -> Result<PartResult> {
    let task = Task {
        rounds: options.rounds.unwrap_or(if quick { 3 } else { 11 }),
        repeat: if quick { 100_000 } else { 1_000_000 },
    };
    let pinned = options
        .pinned
        .as_ref()
        .map(|path| measure::pinned(path).with_context(|| path.display().to_string()))
        .transpose()?;
    let pinned = pinned.as_ref().map(Xdp::fd).transpose()?;
    let only = options.only.as_deref().unwrap_or_default();
    let cases: Vec<&Case> = CASES.iter().filter(|case| case.title().contains(only)).collect();
    let mut simulators = SETTINGS
        .into_iter()
        .filter(|setting| cases.iter().any(|case| case.setting == *setting))
        .map(|setting| {
            Ok((
                setting,
                stage::simulator(setting).with_context(|| format!("{setting:?}"))?,
            ))
        })
        .collect::<Result<Vec<_>>>()?;
    let yardstick = |kinds: &[Kind]| {
        let case = cases
            .iter()
            .find(|case| case.has_yardstick() && kinds.contains(&case.kind));
        case.map(|case| Yardstick::load(stage::service_key(case.kind), BARE_FLOWS, 1))
            .transpose()
    };
    let (tcp, udp) = (
        yardstick(&[Kind::Established, Kind::Syn])?,
        yardstick(&[Kind::Udp])?,
    );
    let mut measured = Vec::new();
    for case in &cases {
        let (_, simulator) = simulators
            .iter()
            .find(|(setting, _)| *setting == case.setting)
            .context("a simulator for each setting")?;
        measured.push(prepare(case, simulator.program()?.fd()?, pinned)?);
        if case.has_yardstick()
            && let Some(yardstick) = if case.kind == Kind::Udp { &udp } else { &tcp }
            && let Some(one) = measured.last_mut()
        {
            one.bare = Some(bare(case, yardstick)?);
            one.reading = reading(case)?;
        }
    }
    for round in 0..=task.rounds {
        for one in &mut measured {
            let setting = one.case.setting;
            if setting.begins_anew()
                && let Some((_, simulator)) = simulators.iter_mut().find(|(of, _)| *of == setting)
            {
                let known = stage::begin(setting, simulator)?;
                let least = one.case.flows as usize / 10 * 9;
                ensure!(
                    round == 0 || known >= least,
                    "{}: {known} flows were made",
                    one.case.title()
                );
            }
            let ours = [&mut one.idle, &mut one.floor, &mut one.subject];
            for ready in ours
                .into_iter()
                .chain(one.bare.iter_mut().flatten())
                .chain(&mut one.reading)
                .chain(&mut one.pinned)
            {
                let flows = one.case.flows;
                // Not a packet more, where every one is to be a flow's first.
                let anew = setting.begins_anew().then_some(flows);
                if round == 0 {
                    let packets = anew.unwrap_or(flows.max(1000) * 2);
                    ready.harness.measure(packets, ready.action)?;
                } else {
                    ready.run(anew.unwrap_or(task.repeat))?;
                }
            }
        }
        eprint!("\r  round {round} of {}", task.rounds);
    }
    eprintln!();
    Ok(result(task, &measured))
}

/// The bare ways, with the packets of a case.
fn bare(case: &Case, yardstick: &Yardstick) -> Result<[Ready; 2]> {
    let ready = |bare| Ready::new(Subject::Program(yardstick.fd(bare)?), case, Some(Action::Tx));
    Ok([ready(Bare::Sketch)?, ready(Bare::Remembering)?])
}

/// The bare way that only reads, with the packets of a case of which that is worth a comparison.
fn reading(case: &Case) -> Result<Option<Ready>> {
    let Some(lines) = case.lines() else {
        return Ok(None);
    };
    let yardstick = Yardstick::load(stage::service_key(case.kind), 1, lines)?;
    let subject = Subject::Program(yardstick.fd(Bare::Reading)?);
    Ready::new(subject, case, Some(Action::Tx)).map(Some)
}

fn prepare<'a>(case: &'a Case, program: &ProgramFd, pinned: Option<&ProgramFd>) -> Result<Measured<'a>> {
    let action = match (case.kind, case.setting) {
        (Kind::Foreign, _) => Action::Pass,
        (_, Setting::Denied) => Action::Drop,
        _ => Action::Tx,
    };
    let floor = |floor: Floor| Ready::new(Subject::Floor(floor), case, Some(floor.action()));
    let pinned = pinned
        .map(|fd| Ready::new(Subject::Program(fd), case, None))
        .transpose()?;
    Ok(Measured {
        case,
        subject: Ready::new(Subject::Program(program), case, Some(action)).with_context(|| case.title())?,
        floor: floor(case.floor)?,
        idle: floor(Floor::Pass)?,
        bare: None,
        reading: None,
        pinned,
    })
}

/// Round by round.
fn ratio(ready: &Ready, to: &Ready) -> Vec<f64> {
    let rounds = ready.samples.iter().zip(&to.samples);
    rounds.map(|(a, b)| a / b.max(1.0)).collect()
}

/// What was promised and is not kept: neither as a ratio to the floor, nor, where that takes less than where the goal was
/// set, as one to the bare sketch with one flow.
fn faults(measured: &[Measured<'_>]) -> Vec<String> {
    let sketch = measured
        .iter()
        .find(|one| one.case.flows == 1)
        .and_then(|one| one.bare.as_ref())
        .map(|[sketch, _]| sketch);
    let mut faults = Vec::new();
    for one in measured {
        let Some(goal) = one.case.goal() else { continue };
        let to_floor = median(ratio(&one.subject, &one.floor));
        let to_sketch = sketch
            .filter(|_| one.case.has_yardstick())
            .map(|sketch| median(ratio(&one.subject, sketch)));
        let most = goal / SKETCH;
        if to_floor > goal && to_sketch.is_none_or(|ratio| ratio > most) {
            faults.push(format!(
                "{}: {to_floor:.2} times the floor and {:.2} times a bare sketch, {goal} or {most:.2} were promised",
                one.case.title(),
                to_sketch.unwrap_or(f64::NAN),
            ));
        }
    }
    faults
}

fn median(samples: Vec<f64>) -> f64 {
    let row = Row {
        samples,
        ..Row::default()
    };
    row.spread().map_or(f64::NAN, |spread| spread.median)
}

fn result(task: Task, measured: &[Measured<'_>]) -> PartResult {
    let mut rows = Vec::new();
    for Measured {
        case,
        subject,
        floor,
        idle,
        bare,
        reading,
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
        let ratio = |ready: &Ready| ratio(ready, floor);
        row(case.name.to_owned(), "ns", subject.samples.clone());
        row(format!("{}, its floor", case.name), "ns", floor.samples.clone());
        row(format!("{}, ratio to the floor", case.name), "", ratio(subject));
        let net = subject
            .samples
            .iter()
            .zip(&idle.samples)
            .map(|(ns, idle)| ns - idle);
        row(format!("{}, net of the loop", case.name), "ns", net.collect());
        let yardsticks = bare
            .iter()
            .flatten()
            .zip(["a bare sketch", "one that remembers every flow"])
            .chain(reading.iter().zip(["one that reads a line of its flow"]));
        for (ready, name) in yardsticks {
            row(format!("{}, {name}", case.name), "ns", ready.samples.clone());
            row(
                format!("{}, ratio to {name}", case.name),
                "",
                self::ratio(subject, ready),
            );
        }
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
        faults: faults(measured),
        ..PartResult::default()
    }
}
