//! The parts of `cargo xtask bench`, each a subcommand. A part prints its progress and writes its result as JSON;
//! tables and pages are made by `cargo xtask bench`.

pub mod connections;
pub mod consistency;
pub mod control;
pub mod failover;
pub mod forward;
pub mod memory;
pub mod packet;
#[path = "../../../xtask/src/bench/result.rs"]
pub mod result;
pub mod rows;
pub mod suspicion;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};

use self::result::PartResult;
use crate::cleanup;

#[derive(Debug, Parser)]
#[command(name = "xlb-bench", about = "The parts of cargo xtask bench")]
struct Cli {
    #[command(subcommand)]
    part: Part,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// Connections and requests a second, beside the alternatives.
    Connections {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        options: connections::Options,
    },
    Consistency {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        options: consistency::Options,
    },
    /// Tables, starting, adopting, idling, probing.
    Control {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        options: control::Options,
    },
    /// From a death to packets elsewhere.
    Failover {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        options: failover::Options,
    },
    /// Packets a second through veth.
    Forward {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        options: forward::Options,
    },
    /// What the agent and the maps take.
    Memory {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        options: memory::Options,
    },
    /// Nanoseconds a packet.
    Packet {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        options: packet::Options,
    },
    /// A host that vanishes under traffic, with passive detection and without.
    Suspicion {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        options: suspicion::Options,
    },
}

/// What every part takes.
#[derive(Clone, Debug, Args)]
pub struct Common {
    /// Where the result goes; standard output when absent.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure less of everything.
    #[arg(long)]
    pub quick: bool,
}

/// Runs one part: 0 where it could be measured, whatever came out.
#[must_use]
pub fn main() -> ExitCode {
    let Cli { part } = Cli::parse();
    cleanup::start();
    let (common, result) = match part {
        Part::Connections { common, options } => {
            let result = connections::run(common.quick, &options);
            (common, result)
        }
        Part::Consistency { common, options } => {
            let result = consistency::run(common.quick, &options);
            (common, result)
        }
        Part::Control { common, options } => {
            let result = control::run(common.quick, &options);
            (common, result)
        }
        Part::Failover { common, options } => {
            let result = failover::run(common.quick, &options);
            (common, result)
        }
        Part::Forward { common, options } => {
            let result = forward::run(common.quick, &options);
            (common, result)
        }
        Part::Memory { common, options } => {
            let result = memory::run(common.quick, &options);
            (common, result)
        }
        Part::Packet { common, options } => {
            let result = packet::run(common.quick, &options);
            (common, result)
        }
        Part::Suspicion { common, options } => {
            let result = suspicion::run(common.quick, &options);
            (common, result)
        }
    };
    match result.and_then(|result| write(&common, &result)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the measurement failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether a program can be found.
#[must_use]
pub fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.push("/usr/sbin".into());
    folders.iter().any(|folder| folder.join(program).is_file())
}

fn write(common: &Common, result: &PartResult) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(result)? + "\n";
    match &common.json {
        Some(path) => fs::write(path, text).with_context(|| path.display().to_string()),
        None => {
            println!("{text}");
            Ok(())
        }
    }
}
