//! `xlb plan`.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

use super::outcome::{Context, Outcome};
use super::{block_on, human};
use crate::api::types::{Plan, PlanMemory, PlanOrder};

/// Exit status where a reload would change something.
const PENDING: u8 = 3;

/// Say what a reload would change, and change nothing.
///
/// Asks the agent what would become of services, backends, checks and tables if it took this configuration, by the same
/// functions that a reload uses. Backends that are not checked yet count as UP. Exit status: 0 nothing to change, 3 something
/// would change, 1 the configuration is refused, 4 no agent.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  xlb plan                    what `xlb reload` would do
  xlb plan new.toml           what it would do if the agent's file were this one
  xlb plan -o json | jq '.services[] | {name, moved_slots, slots}'")]
pub(super) struct Arguments {
    /// The configuration in question; the agent's own file when absent.
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments, context: &Context) -> anyhow::Result<Outcome> {
    let order = match &arguments.file {
        None => PlanOrder::default(),
        Some(file) => PlanOrder {
            config: Some(std::fs::read_to_string(file).with_context(|| file.display().to_string())?),
            name: Some(file.display().to_string()),
        },
    };
    let plan = block_on(async { Ok(context.client.plan(&order).await?) })?;
    show(&plan, arguments.file.is_some(), context)
}

fn show(plan: &Plan, another_file: bool, context: &Context) -> anyhow::Result<Outcome> {
    for warning in &plan.warnings {
        log::warn!("{warning}");
    }
    let outcome = context.show(plan, |plan, _| text(plan, another_file))?;
    Ok(if plan.changed {
        outcome.with_code(PENDING)
    } else {
        outcome
    })
}

fn text(plan: &Plan, another_file: bool) -> String {
    let Plan {
        changed,
        changes,
        services,
        warnings: _,
        counted_as_up,
        memory,
    } = plan;
    if !changed {
        return "nothing to change\n".into();
    }
    let mut text = String::new();
    for change in changes {
        let _ = writeln!(text, "{}", human::printable(change));
    }
    for service in services {
        let name = human::printable(&service.name);
        if let Some(flows) = service.flows_in_moved_slots {
            let flows = human::count(flows);
            let _ = writeln!(
                text,
                "service {name}: {flows} flows are remembered in the slots that would move; they stay"
            );
        }
        if service.slots_before > 0 && service.slots > 0 && service.slots != service.slots_before {
            let (before, slots) = (service.slots_before, service.slots);
            let _ = writeln!(text, "service {name}: table of {before} slots -> {slots}");
        } else if service.slots > 0 && service.slots < service.slots_by_rule {
            let (slots, rule) = (service.slots, service.slots_by_rule);
            let _ = writeln!(
                text,
                "service {name}: its table keeps {slots} slots, a new one would have {rule} (table_size = {rule} moves \
                 nearly every slot)"
            );
        }
    }
    if !counted_as_up.is_empty() {
        let _ = writeln!(
            text,
            "counted as UP, since no check has seen them yet: {}",
            counted_as_up.join(", ")
        );
    }
    if let Some(memory) = memory {
        text += &memory_line(memory);
    }
    text += match another_file {
        false => "nothing was changed; put it in force with: xlb reload\n",
        true => {
            "nothing was changed; put it in force by making it the agent's configuration and: xlb reload\n"
        }
    };
    text
}

fn memory_line(memory: &PlanMemory) -> String {
    let PlanMemory {
        agent_bytes,
        maps_bytes,
        maps_bytes_after,
        tables_bytes,
        tables_bytes_after,
    } = *memory;
    let [agent, maps, after, tables, tables_after] = [
        agent_bytes,
        maps_bytes,
        maps_bytes_after,
        tables_bytes,
        tables_bytes_after,
    ]
    .map(human::bytes);
    format!("memory: agent {agent}; maps {maps} -> {after} at most; tables {tables} -> {tables_after}\n")
}

#[cfg(test)]
#[path = "plan/tests.rs"]
mod tests;
