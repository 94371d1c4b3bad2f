//! `xlb config`.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::outcome::{Context, Format, Outcome};
use super::{CONFIG, block_on};
use crate::config::{self, Config, Fault, LoadError, Machine};
use crate::net::reached::reached_by;

/// Check a configuration, print an example or the schema. Needs no agent.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Check(Check),
    /// Print a commented configuration with every key.
    Example,
    /// Print the JSON schema of the configuration.
    Schema,
}

/// Say every fault of a configuration file, as FILE:LINE:COLUMN: what is wrong; expected what.
///
/// Interfaces and addresses are compared with this machine's, unless --anywhere is given. Changes nothing. Exit status
/// 1 where the agent would refuse the file.
#[derive(Debug, Args)]
struct Check {
    /// The file.
    #[arg(value_name = "FILE", default_value = CONFIG)]
    file: PathBuf,
    /// The same, as `xlb agent` names it.
    #[arg(long, value_name = "FILE", conflicts_with = "file")]
    config: Option<PathBuf>,
    /// The file is for another machine: do not ask this one for its interfaces and addresses.
    #[arg(long)]
    anywhere: bool,
}

/// The answer of `config check -o json`.
#[derive(Debug, Serialize)]
struct Judgement<'a> {
    file: &'a Path,
    valid: bool,
    faults: Vec<Fault>,
    warnings: Vec<String>,
}

pub(super) fn run(arguments: &Arguments, context: &Context) -> anyhow::Result<Outcome> {
    let text = |name: &str, text: String| match context.format {
        Format::Table => Ok(text),
        Format::Json => {
            serde_json::to_string_pretty(&serde_json::json!({ name: text })).map(|text| text + "\n")
        }
    };
    match &arguments.what {
        What::Check(arguments) => check(arguments, context),
        What::Example => Ok(Outcome::done(text("example", config::example())?)),
        What::Schema => Ok(Outcome::done(
            serde_json::to_string_pretty(&config::schema())? + "\n",
        )),
    }
}

fn check(arguments: &Check, context: &Context) -> anyhow::Result<Outcome> {
    let file = arguments.config.as_ref().unwrap_or(&arguments.file);
    let result = if arguments.anywhere {
        Config::load(file)
    } else {
        let machine = Machine::read().context("asking the kernel for interfaces and addresses")?;
        Config::load_for(file, &machine)
    };
    let judgement = match result {
        Ok(config) => Judgement {
            file,
            valid: true,
            faults: Vec::new(),
            warnings: [config.warnings(), missed(&config, arguments.anywhere)?].concat(),
        },
        Err(LoadError::Invalid { faults, .. }) => Judgement {
            file,
            valid: false,
            faults: faults.0,
            warnings: Vec::new(),
        },
        Err(error) => return Err(error.into()),
    };
    if context.format == Format::Table {
        let _ = std::io::stderr().write_all(complaints(&judgement).as_bytes());
    }
    let outcome = context.show(&judgement, |judgement, _| match judgement.valid {
        true => format!("{}: OK\n", judgement.file.display()),
        false => String::new(),
    })?;
    Ok(outcome.with_code(u8::from(!judgement.valid)))
}

/// Backends of this machine's whose answers would not be translated.
fn missed(config: &Config, anywhere: bool) -> anyhow::Result<Vec<String>> {
    let backends = config.translated_backends();
    if anywhere || backends.is_empty() {
        return Ok(Vec::new());
    }
    let reached = block_on(async { Ok(reached_by(backends, config.agent.vlans).await?) });
    Ok(config.answers_missed(&reached.context("asking the kernel for the ways to the backends")?))
}

/// Faults and warnings, a line each.
fn complaints(judgement: &Judgement<'_>) -> String {
    let mut text = String::new();
    let file = judgement.file.display();
    for fault in &judgement.faults {
        let _ = writeln!(text, "{file}:{fault}");
    }
    for warning in &judgement.warnings {
        let _ = writeln!(text, "{file}: warning: {warning}");
    }
    text
}
