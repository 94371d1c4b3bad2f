//! The demo: real requests through a real load balancer on a network of namespaces, and what happens to them when
//! a backend dies, is drained, or the agent is killed. Each promise is measured and printed beside what is allowed.

mod drain;
mod failover;
mod narrate;
mod report;
mod restart;
mod scene;
mod traffic;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use clap::{Args, ValueEnum};

use crate::lab::cleanup;
use failover::{DEFAULTS, FAST};
use narrate::Narrator;
use report::Report;
use scene::Scene;

/// Show xlb at work on a small network of namespaces.
///
/// Who serves how many, and what clients notice when a backend dies, is drained, or the agent is killed. Needs root.
/// Leaves nothing behind.
#[derive(Debug, Args)]
pub struct Options {
    /// Only this part.
    #[arg(long, value_enum, value_name = "PART")]
    only: Option<Part>,
    /// Write the numbers to a file as well.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
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
    let begun = Instant::now();
    let wanted = |part| options.only.is_none_or(|only| only == part);
    let mut report = Report::default();
    let mut say = Narrator::new(steps(options.only));

    let mut scene = Scene::set_up(&mut say)?;
    if wanted(Part::Traffic) {
        report.traffic = traffic::run(&scene, &mut say)?;
    }
    if wanted(Part::Failover) {
        for settings in [DEFAULTS, FAST] {
            failover::run(&mut scene, settings, &mut say, &mut report.failover)?;
        }
    }
    if wanted(Part::Drain) {
        report.drain = Some(drain::run(&scene, &mut say)?);
    }
    if wanted(Part::Restart) {
        report.restart = Some(restart::run(&mut scene, &mut say)?);
    }
    say.step("taking it all away again");
    scene.take_down()?;
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

/// How many lines of progress there will be.
fn steps(only: Option<Part>) -> usize {
    const FRAME: usize = 4;
    FRAME
        + match only {
            None => 1 + 2 * 3 + 1 + 1,
            Some(Part::Failover) => 2 * 3,
            Some(Part::Traffic | Part::Drain | Part::Restart) => 1,
        }
}
