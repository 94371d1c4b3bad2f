//! `xlb stats`.

mod rate;

use std::time::Duration;

use clap::Args;
use lb_common::reason::Reason;
use serde::Serialize;

use super::args;
use super::grid::{Cell, Column, Grid, Tone};
use super::outcome::{Context, Outcome, Screen};
use super::source::{self, Pins};
use super::{block_on, human};
use crate::api::types::{
    AgentStatus, DriverStats, LostStats, QuicStats, ReasonStats, RefusedStats, ServiceStats, Stats,
};
use crate::datapath::losses;

/// Show the counters: packets, bytes and new flows by service and backend, packets by reason.
///
/// Counters begin when the maps are made, and outlive the agent; those of drivers begin with the interface. New flows
/// are estimates (SYN seen).
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  xlb stats --reasons        why packets were passed or dropped
  xlb stats --rate 5         per second, over 5 seconds")]
pub(super) struct Arguments {
    /// Read twice, so many seconds apart, and show what happens per second.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1", value_parser = args::seconds)]
    rate: Option<f64>,
    /// Show every reason with its verdict, packets and meaning, and what drivers lost after the verdict.
    #[arg(long)]
    reasons: bool,
    #[command(flatten)]
    pins: Pins,
}

/// Counters or rates, with whose they are.
#[derive(Debug, Serialize)]
struct Answer<T> {
    agent: Source,
    #[serde(flatten)]
    counts: T,
}

#[derive(Debug, Serialize)]
struct Source {
    running: bool,
    /// Where it does not run: when it was last alive.
    since: Option<String>,
}

impl From<&Option<AgentStatus>> for Source {
    fn from(gone: &Option<AgentStatus>) -> Self {
        Self {
            running: gone.is_none(),
            since: gone.as_ref().map(|agent| agent.since.clone()),
        }
    }
}

pub(super) fn run(arguments: &Arguments, context: &Context) -> anyhow::Result<Outcome> {
    let Arguments { rate, reasons, pins } = arguments;
    let read = || source::stats(&context.client, &pins.pin_dir);
    let (gone, before) = block_on(read())?;
    let head = gone.as_ref().map(source::frozen_line).unwrap_or_default();
    let agent = Source::from(&gone);
    let Some(seconds) = rate else {
        let answer = Answer {
            agent,
            counts: before,
        };
        return context.show(&answer, |answer, screen| {
            head + &render(&answer.counts, *reasons, screen)
        });
    };
    std::thread::sleep(Duration::from_secs_f64(*seconds));
    let (_, after) = block_on(read())?;
    let counts = rate::rates(&before, &after);
    context.show(&Answer { agent, counts }, |answer, screen| {
        head + &rate::render(&answer.counts, *reasons, screen)
    })
}

fn render(stats: &Stats, reasons: bool, screen: &Screen) -> String {
    let mut text = render_services(&stats.services, screen);
    if reasons {
        text += "\n";
        text += &render_reasons(&stats.reasons, screen);
        text += &render_drivers(&stats.drivers, screen);
    }
    text
}

fn render_services(services: &[ServiceStats], screen: &Screen) -> String {
    if services.is_empty() {
        return "no services\n".to_owned();
    }
    let mut grid = Grid::new(&[
        Column::left("SERVICE, BACKEND"),
        Column::right("PACKETS"),
        Column::right("BYTES"),
        Column::right("NEW FLOWS"),
    ]);
    for service in services {
        let ServiceStats {
            name,
            address,
            port,
            last_port,
            protocol,
            packets,
            bytes,
            new_flows,
            refused,
            quic,
            backends,
        } = service;
        let mut row = |name: String, packets: u64, bytes: u64, new_flows: u64, notes: Vec<String>| {
            let flows = human::flows(new_flows, *protocol);
            grid.row(
                [
                    name.into(),
                    human::count(packets).into(),
                    human::bytes(bytes).into(),
                    flows.into(),
                ],
                notes,
            );
        };
        let place = human::service_place(*address, *port, *last_port, *protocol);
        row(
            format!("{name}  {place}"),
            *packets,
            *bytes,
            *new_flows,
            refused_notes(refused)
                .into_iter()
                .chain(quic_note(quic))
                .collect(),
        );
        for backend in backends {
            let place = human::place(backend.address, backend.port);
            row(
                format!("  {place}"),
                backend.packets,
                backend.bytes,
                backend.new_flows,
                vec![],
            );
        }
    }
    grid.render(screen, "")
}

/// A line about what the service refused to clients; none where it refused nothing.
fn refused_notes(refused: &RefusedStats) -> Vec<String> {
    let counts = refused
        .by_reason()
        .into_iter()
        .filter(|(_, packets)| *packets > 0);
    let counts: Vec<String> = counts
        .map(|(reason, packets)| match reason {
            Reason::Denied => format!("denied {}", human::count(packets)),
            _ if refused.dry_run => format!("{} {} (dry run)", reason.name(), human::count(packets)),
            _ => format!("{} {}", reason.name(), human::count(packets)),
        })
        .collect();
    if counts.is_empty() {
        return Vec::new();
    }
    vec![format!("refused: {}", counts.join(", "))]
}

/// A line about what connection ids of QUIC said; none where they said nothing.
fn quic_note(quic: &Option<QuicStats>) -> Option<String> {
    let counts = quic.as_ref()?.by_way();
    let counted = counts.iter().any(|(_, packets)| *packets > 0);
    let counts: Vec<String> = counts
        .iter()
        .map(|(way, packets)| format!("{way} {}", human::count(*packets)))
        .collect();
    counted.then(|| format!("QUIC: {}", counts.join(", ")))
}

fn render_reasons(reasons: &[ReasonStats], screen: &Screen) -> String {
    let mut grid = Grid::new(&[
        Column::left("REASON"),
        Column::left("VERDICT"),
        Column::right("PACKETS"),
        Column::left("MEANING").dispensable(1),
    ]);
    for ReasonStats {
        reason,
        verdict,
        packets,
        meaning,
    } in reasons
    {
        let tone = drop_tone(verdict, *packets > 0);
        grid.row(
            [
                reason.into(),
                Cell::toned(verdict, tone),
                human::count(*packets).into(),
                meaning.into(),
            ],
            vec![],
        );
    }
    grid.render(screen, "")
}

/// What no reason counts: the program gave these packets away. Nothing where no interface is known. A packet may stand under
/// a counter of its driver and under a tracepoint.
fn render_drivers(drivers: &[DriverStats], screen: &Screen) -> String {
    if drivers.is_empty() {
        return String::new();
    }
    let mut grid = Grid::new(&[
        Column::left("LOST AFTER THE VERDICT"),
        Column::left("COUNTER"),
        Column::right("PACKETS"),
    ]);
    for DriverStats { interface, lost } in drivers {
        let traced = |lost: &LostStats| lost.counter.starts_with(losses::PREFIX);
        if lost.iter().all(traced) {
            grid.row(
                [interface.into(), "its driver has none".into(), "-".into()],
                vec![],
            );
        }
        if !lost.iter().any(traced) {
            grid.row(
                [interface.into(), "no tracepoints: see the log".into(), "-".into()],
                vec![],
            );
        }
        for LostStats { counter, packets } in lost {
            let tone = drop_tone("drop", *packets > 0);
            let packets = Cell::toned(&human::count(*packets), tone);
            grid.row([interface.into(), counter.into(), packets], vec![]);
        }
    }
    format!("\n{}", grid.render(screen, ""))
}

/// Drops that happen stand out.
fn drop_tone(verdict: &str, happens: bool) -> Tone {
    if verdict == "drop" && happens {
        Tone::Warning
    } else {
        Tone::Plain
    }
}

#[cfg(test)]
mod tests;
