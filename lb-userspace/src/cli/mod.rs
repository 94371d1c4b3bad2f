//! The command line: a file a verb.
//!
//! A verb turns its arguments into an [`Outcome`] (text for standard output and an exit status) or an error.
//! Only [`main`] prints and decides on exit statuses:
//!
//! | status | meaning |
//! |---|---|
//! | 0 | done, or nothing to change |
//! | 1 | failed |
//! | 2 | wrong usage |
//! | 3 | changes pending |
//! | 4 | agent unreachable |
//!
//! `status --check` has those of a Nagios plugin instead.

mod agent;
mod args;
mod backend;
mod completions;
mod config;
mod confirm;
mod conn;
mod decap;
mod demo;
mod detach;
mod doctor;
mod done;
mod events;
mod explain;
mod grid;
mod health;
mod human;
mod logging;
mod outcome;
mod plan;
mod reload;
mod service;
mod simulate;
mod source;
mod stats;
mod status;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgAction, Args, Parser, Subcommand};

use crate::api::client;
use crate::config::LoadError;
use outcome::{Context, Format, Outcome, Screen};

/// Where the agent listens unless the configuration or the command line says otherwise.
const SOCKET: &str = "/run/xlb/xlb.sock";
/// The configuration unless the command line says otherwise.
const CONFIG: &str = "/etc/xlb/xlb.toml";
/// The pin folder unless the configuration or the command line says otherwise.
const PIN_DIR: &str = "/sys/fs/bpf/xlb";

/// Sends the packets of service addresses to healthy backends, in the kernel (XDP).
///
/// `xlb agent` does the work; every other verb talks to it over its Unix socket. `simulate`, `config`, `doctor`,
/// `decap` and `demo` need no agent; `status`, `stats`, `service list`, `backend list` and `detach` work without one from the
/// pinned maps.
#[derive(Debug, Parser)]
#[command(
    name = "xlb",
    version,
    max_term_width = 100,
    after_help = "Exit status: 0 done or nothing to change, 1 failed, 2 wrong usage, 3 changes pending, \
                  4 agent unreachable.",
    after_long_help = "\
Examples:
  xlb config example > xlb.toml     a commented configuration to begin with
  xlb doctor                        what this machine lacks
  xlb status                        services, backends, what is wrong with them
  xlb backend drain web 10.0.1.11   no new flows to that backend
  xlb stats --rate 5 --reasons      what passes, what is dropped and why
  xlb explain 203.0.113.7:4000 192.0.2.10:80/tcp --syn    which way that packet goes

Exit status: 0 done or nothing to change, 1 failed, 2 wrong usage, 3 changes pending, 4 agent unreachable."
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

/// Options that every verb takes, before or after it.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of every verb")]
struct Global {
    /// Unix socket of the agent (api_socket in its configuration).
    #[arg(long, global = true, value_name = "PATH", env = "XLB_SOCKET", default_value = SOCKET)]
    socket: PathBuf,
    /// Tables for people, or JSON with stable field names for programs.
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        value_name = "FORMAT",
        default_value_t
    )]
    output: Format,
    /// Say more; twice for still more. RUST_LOG, where set, wins.
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Agent(agent::Arguments),
    Status(status::Arguments),
    Stats(stats::Arguments),
    Events(events::Arguments),
    Health(health::Arguments),
    Service(service::Arguments),
    Backend(backend::Arguments),
    Conn(conn::Arguments),
    Plan(plan::Arguments),
    Reload(reload::Arguments),
    Confirm(confirm::Arguments),
    Detach(detach::Arguments),
    Config(config::Arguments),
    Doctor(doctor::Arguments),
    Simulate(simulate::Arguments),
    Explain(explain::Arguments),
    Decap(decap::Arguments),
    Demo(demo::Arguments),
    /// A server of the demo's network.
    #[command(hide = true)]
    LabServer(demo::Server),
    Completions(completions::Arguments),
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Help and version are such "errors" too, with status 0.
        Err(error) => {
            let _ = error.print();
            return exit_code(error.exit_code());
        }
    };
    logging::start(matches!(cli.verb, Verb::Agent(_)), cli.global.verbose);
    let context = Context {
        client: client::Client::new(cli.global.socket),
        format: cli.global.output,
        screen: Screen::of_stdout(),
    };
    let json = context.format == Format::Json;
    let result = run(cli.verb, &context).and_then(|outcome| {
        print(&outcome.text)?;
        Ok(outcome.code)
    });
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            if json && let Some(client::Error::Refused { failure, .. }) = error.downcast_ref() {
                // Whoever reads JSON wants the faults of a configuration as a list.
                let _ = print(&(serde_json::to_string_pretty(failure).unwrap_or_default() + "\n"));
            }
            let _ = writeln!(io::stderr(), "{}", complaint(&error));
            exit_code(status_of(&error))
        }
    }
}

fn run(verb: Verb, context: &Context) -> anyhow::Result<Outcome> {
    match verb {
        Verb::Agent(arguments) => agent::run(arguments),
        Verb::Status(arguments) => status::run(&arguments, context),
        Verb::Stats(arguments) => stats::run(&arguments, context),
        Verb::Events(arguments) => events::run(&arguments, context),
        Verb::Health(arguments) => health::run(arguments, context),
        Verb::Service(arguments) => service::run(&arguments, context),
        Verb::Backend(arguments) => backend::run(arguments, context),
        Verb::Conn(arguments) => conn::run(&arguments, context),
        Verb::Plan(arguments) => plan::run(&arguments, context),
        Verb::Reload(arguments) => reload::run(&arguments, context),
        Verb::Confirm(arguments) => confirm::run(&arguments, context),
        Verb::Detach(arguments) => detach::run(&arguments, context),
        Verb::Config(arguments) => config::run(&arguments, context),
        Verb::Doctor(arguments) => doctor::run(&arguments, context),
        Verb::Simulate(arguments) => simulate::run(arguments, context),
        Verb::Explain(arguments) => explain::run(&arguments, context),
        Verb::Decap(arguments) => decap::run(&arguments, context),
        Verb::Demo(arguments) => demo::run(&arguments),
        Verb::LabServer(arguments) => demo::serve(&arguments),
        Verb::Completions(arguments) => completions::run(&arguments),
    }
}

/// Writes to standard output. A reader that has seen enough (`xlb status | head`) is no failure; gives back whether
/// somebody still reads.
fn print(text: &str) -> anyhow::Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(anyhow::Error::new(error).context("writing to standard output")),
        Ok(()) => Ok(true),
    }
}

/// What is said of an error on standard error. The faults of a configuration stand on lines of their own, as
/// editors read them.
fn complaint(error: &anyhow::Error) -> String {
    let mut text = String::new();
    if let Some(client::Error::Refused { failure, .. }) = error.downcast_ref() {
        for fault in &failure.faults {
            text += fault;
            text += "\n";
        }
    }
    if let Some(LoadError::Invalid { path, faults }) = error.downcast_ref() {
        let (faults, path) = (faults.in_file(path), path.display());
        return format!("{faults}\nxlb: the configuration {path} is refused");
    }
    text + "xlb: " + &message(error)
}

/// An error and its causes. Many errors tell their cause in their own words already.
fn message(error: &anyhow::Error) -> String {
    let text = error.chain().fold(String::new(), |mut text, cause| {
        let cause = cause.to_string();
        if text.is_empty() {
            return cause;
        }
        if !text.contains(&cause) {
            text += ": ";
            text += &cause;
        }
        text
    });
    let forbidden = error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
    });
    match forbidden && !nix::unistd::geteuid().is_root() {
        true => text + "; run as root",
        false => text,
    }
}

/// The exit status of an error.
fn status_of(error: &anyhow::Error) -> i32 {
    let unreachable = error
        .downcast_ref::<client::Error>()
        .is_some_and(client::Error::unreachable)
        || error.is::<source::Unreachable>();
    if unreachable { 4 } else { 1 }
}

fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

/// Runs the requests of one verb.
fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(work)
}

#[cfg(test)]
mod tests;
