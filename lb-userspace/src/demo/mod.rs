//! The demo: real clients, a real load balancer and real servers on a network of namespaces, and what happens to
//! connections when backends die, are drained, added, reweighted, or the agent is killed.
//!
//! On a terminal it is a live screen with keys ([`live`]). Elsewhere it plays a script; each promise is measured and
//! printed beside what is allowed.

mod action;
mod connections;
mod drain;
mod failover;
mod live;
mod narrate;
mod report;
mod restart;
mod scene;
mod traffic;

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use clap::{Args, ValueEnum};

use crate::lab::cleanup;
use crate::lab::stage::Stage;
use failover::{DEFAULTS, FAST};
use narrate::Narrator;
use report::Report;
use scene::Scene;

/// Show xlb at work on a small network of namespaces.
///
/// Thousands of connections that stay, new ones opening, and what becomes of them when backends die, are drained, added,
/// reweighted, or the agent is killed. On a terminal a live screen with keys; elsewhere a script, with every promise
/// measured. Needs root. Leaves nothing behind.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  xlb demo                          on a terminal: the live screen
  xlb demo --script                 the script
  xlb demo --only failover          a part of it
  xlb demo --script --json out.json")]
pub struct Options {
    /// Play the script on a terminal too.
    #[arg(long)]
    script: bool,
    /// Connections that stay.
    #[arg(long, value_name = "N", default_value_t = 2000)]
    connections: usize,
    /// Only this part of the script.
    #[arg(long, value_enum, value_name = "PART")]
    only: Option<Part>,
    /// Write the numbers to a file as well.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Connections that stay, and a series of events.
    Connections,
    /// Requests through every way to forward.
    Traffic,
    /// A backend dies under load.
    Failover,
    /// A backend is drained.
    Drain,
    /// The agent is killed under load and started again.
    Restart,
}

/// Runs the demo; whether every promise was kept.
///
/// # Errors
/// Where something cannot be set up or measured.
pub fn run(options: &Options) -> anyhow::Result<bool> {
    cleanup::start();
    let terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    if terminal && !options.script && options.only.is_none() && options.json.is_none() {
        show(options.connections)
    } else {
        play(options)
    }
}

/// The live screen.
fn show(connections: usize) -> anyhow::Result<bool> {
    let options = connections::options(connections);
    println!(
        "a network of namespaces with {} backends, {} connections and {} UDP flows ...",
        options.backends,
        options.tcp.residents(),
        options.udp.residents()
    );
    let mut stage = Stage::set_up(&options)?;
    stage.fill(&options)?;
    let live::Summary {
        broken,
        lost,
        maglev,
        tracked,
    } = live::run(stage)?;
    let left = cleanup::left_by_us();
    println!("broken: {broken}; lost with their backend: {lost}; Maglev alone would have broken {maglev}");
    if !left.is_empty() {
        println!("LEFT BEHIND: {}", left.join(", "));
    }
    Ok(left.is_empty() && (broken == 0 || !tracked))
}

/// The script.
fn play(options: &Options) -> anyhow::Result<bool> {
    let begun = Instant::now();
    let wanted = |part| options.only.is_none_or(|only| only == part);
    let mut report = Report::default();
    let mut say = Narrator::new(steps(options.only));

    if wanted(Part::Connections) {
        report.connections = connections::run(options.connections, &mut say)?;
    }
    if options.only != Some(Part::Connections) {
        promises(wanted, &mut report, &mut say)?;
    }
    report.left_behind = cleanup::left_by_us();
    match report.left_behind.as_slice() {
        [] => say.done("no namespace, pin, process or file is left"),
        left => say.done(&format!("LEFT BEHIND: {}", left.join(", "))),
    }

    report.finish(begun.elapsed());
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&report)?;
        std::fs::write(path, text + "\n").with_context(|| path.display().to_string())?;
    }
    println!("\n{}", report.table());
    Ok(report.kept)
}

/// What short connections notice.
fn promises(wanted: impl Fn(Part) -> bool, report: &mut Report, say: &mut Narrator) -> anyhow::Result<()> {
    let mut scene = Scene::set_up(say)?;
    if wanted(Part::Traffic) {
        report.traffic = traffic::run(&scene, say)?;
    }
    if wanted(Part::Failover) {
        for settings in [DEFAULTS, FAST] {
            failover::run(&mut scene, settings, say, &mut report.failover)?;
        }
    }
    if wanted(Part::Drain) {
        report.drain = Some(drain::run(&scene, say)?);
    }
    if wanted(Part::Restart) {
        report.restart = Some(restart::run(&mut scene, say)?);
    }
    say.step("taking it all away again");
    scene.take_down()
}

/// How many lines of progress there will be.
fn steps(only: Option<Part>) -> usize {
    const FRAME: usize = 4;
    match only {
        None => 1 + FRAME + 1 + 2 * 3 + 1 + 1,
        Some(Part::Connections) => 1,
        Some(Part::Failover) => FRAME + 2 * 3,
        Some(Part::Traffic | Part::Drain | Part::Restart) => FRAME + 1,
    }
}
