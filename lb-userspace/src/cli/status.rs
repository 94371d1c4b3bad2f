//! `xlb status`.

mod check;
mod movement;
mod nat;
mod remember;
mod table;

use clap::Args;

use super::block_on;
use super::outcome::{Context, Outcome};
use super::source::{self, Pins};
use crate::api::types::{BackendStatus, ServiceStatus};
use crate::config::Role;
use crate::model::{AdminState, OperState};

pub(super) use table::{backend_grid, backend_row, serving};

/// Show the agent, its interfaces, services and backends, and what is wrong with them.
///
/// Where no agent runs, the pinned maps tell how it left them: the table then begins with AGENT NOT RUNNING. Numbers of
/// flows are estimates (SYN seen), and marked so.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  xlb status
  xlb status --check            for Nagios and its like
  xlb status -o json | jq '.services[].backends[] | select(.state != \"UP\")'")]
pub(super) struct Arguments {
    /// One line and the exit status of a Nagios plugin: 0 OK, 1 WARNING (a backend is DOWN), 2 CRITICAL (a service has
    /// no serving backend, or nothing is attached), 3 UNKNOWN (no agent).
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    pins: Pins,
}

pub(super) fn run(arguments: &Arguments, context: &Context) -> anyhow::Result<Outcome> {
    let status = block_on(source::status(&context.client, &arguments.pins.pin_dir));
    if arguments.check {
        return check::run(status, context);
    }
    context.show(&status?, table::render)
}

/// The backends that should serve: all but those that stand by.
fn counted(service: &ServiceStatus) -> impl Iterator<Item = &BackendStatus> {
    let counted = |backend: &&BackendStatus| backend.serving || backend.role == Role::Primary;
    service.backends.iter().filter(counted)
}

/// Whether it takes no new flows although nobody took it out.
fn is_missing(backend: &BackendStatus) -> bool {
    let wanted = backend.admin == AdminState::Ready && backend.effective_weight > 0;
    wanted && (backend.state != OperState::Up || backend.unresolved.is_some())
}
