//! `cargo xtask bench`: the parts are programs of their own (`xlb-bench PART`, crate `lb-tests`), built in release
//! and run one after the other; here their results become tables, JSON, a page, and a comparison.
//!
//! To add a part: a module in `tests/src/bench`, a line in its `main`, a line in [`PARTS`].

mod compare;
mod html;
mod machine;
mod markdown;
mod result;
mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::builder::PossibleValuesParser;

use self::result::{PartResult, Report};
use crate::{
    run,
    setup::{self, Scope},
};

/// The parts that are built, by name, in the order they run.
const PARTS: [&str; 8] = [
    "packet",
    "forward",
    "connections",
    "control",
    "memory",
    "failover",
    "suspicion",
    "consistency",
];

/// Those that measure other programs as well.
const COMPARING: [&str; 2] = ["connections", "failover"];

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// What to measure; all parts when absent.
    #[arg(value_parser = PossibleValuesParser::new(PARTS), value_name = "PART")]
    parts: Vec<String>,
    /// Measure less of everything: to see that it works, not for figures.
    #[arg(long)]
    quick: bool,
    /// Write the numbers to a file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write one page with plots and the machine's description.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Print the tables as Markdown, as the documentation has them.
    #[arg(long)]
    markdown: bool,
    /// Show what changed since the numbers that --json wrote.
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    /// Install what is missing without asking.
    #[arg(long)]
    yes: bool,
    /// Passed to the parts' program.
    #[arg(last = true)]
    args: Vec<String>,
}

impl Options {
    fn wants(&self, part: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|wanted| wanted == part)
    }
}

/// # Errors
/// Where a part cannot be measured, or what it promises is not kept.
pub fn run(options: &Options) -> Result<()> {
    setup::require_root("bench")?;
    setup::ensure(Scope::Demo, options.yes, "bench")?;
    if COMPARING.iter().any(|part| options.wants(part)) {
        setup::offer_alternatives(options.yes);
    }
    let before = options.compare.as_deref().map(read::<Report>).transpose()?;
    run::succeed(run::cargo().args([
        "build",
        "--release",
        "-p",
        "lb-userspace",
        "-p",
        "lb-tests",
        "--bins",
    ]))?;

    let mut report = Report {
        at: machine::now()?,
        machine: machine::describe(),
        parts: Vec::new(),
    };
    for part in PARTS.iter().filter(|part| options.wants(part)) {
        let result = measure(part, options)?;
        println!("\n{}", table::part(&result));
        if options.markdown {
            println!("\n{}", markdown::part(&result));
        }
        report.parts.push(result);
        // What was measured is kept although a later part fails.
        write(options, &report)?;
    }
    if let Some(before) = before {
        println!("\n{}", compare::table(&before, &report));
    }
    let broken: Vec<String> = report
        .parts
        .iter()
        .flat_map(|part| part.faults.iter().map(|fault| format!("{}: {fault}", part.part)))
        .collect();
    if !broken.is_empty() {
        bail!("promises were not kept:\n  {}", broken.join("\n  "));
    }
    Ok(())
}

fn measure(part: &str, options: &Options) -> Result<PartResult> {
    let folder = run::target_folder()?;
    let result = folder.join(format!("bench-{part}.json"));
    let mut command = Command::new(folder.join("release/xlb-bench"));
    command.arg(part).arg("--json").arg(&result);
    if options.quick {
        command.arg("--quick");
    }
    run::succeed(command.args(&options.args))?;
    let read = read(&result);
    fs::remove_file(&result).with_context(|| result.display().to_string())?;
    read
}

fn write(options: &Options, report: &Report) -> Result<()> {
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(report)? + "\n";
        fs::write(path, text).with_context(|| path.display().to_string())?;
    }
    if let Some(path) = &options.report {
        fs::write(path, html::page(report)).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}
