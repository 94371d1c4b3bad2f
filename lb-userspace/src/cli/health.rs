//! `xlb health`.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::args::Place;
use super::block_on;
use super::grid::{Cell, Column, Grid, Tone};
use super::human;
use super::outcome::{Context, Outcome, Screen};
use crate::model::OperState;
use crate::observe::history::{Answer, BackendHistory, Selection, Verdict};
use crate::observe::{Timeline, Timestamp};

/// Show what the checks found, and when.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    History(History),
}

/// Show every change of a verdict with its course, and MTBF, MTTR and availability.
///
/// Reckoned over the events that are kept in state_dir, without maintenance and without the time in which no agent ran.
/// MTBF: time UP by failures; MTTR: time DOWN by failures; availability: MTBF / (MTBF + MTTR).
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  xlb health history                      every backend on a line
  xlb health history web                  and the verdicts of one service
  xlb health history web 10.0.1.11 -n 100")]
struct History {
    /// Name of the service.
    service: Option<String>,
    /// Address of the backend, with its port where the service has the address more than once.
    #[arg(value_name = "ADDRESS[:PORT]")]
    backend: Option<Place>,
    /// Show so many verdicts of each backend at most.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 5)]
    last: usize,
}

pub(super) fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Outcome> {
    let What::History(History {
        service,
        backend,
        last,
    }) = arguments.what;
    let selection = Selection {
        service,
        address: backend.map(|place| place.address),
        port: backend.and_then(|place| place.port),
    };
    let answer = block_on(async { Ok(context.client.history(&selection, last).await?) })?;
    let verdicts = selection != Selection::default();
    context.show(&answer, |answer, screen| render(answer, verdicts, screen))
}

fn render(answer: &Answer, verdicts: bool, screen: &Screen) -> String {
    if answer.backends.is_empty() {
        return "no backends\n".into();
    }
    let mut grid = Grid::new(&[
        Column::left("SERVICE"),
        Column::left("BACKEND"),
        Column::left("STATE"),
        Column::right("FOR"),
        Column::right("FAILURES"),
        Column::right("MTBF").dispensable(2),
        Column::right("MTTR").dispensable(1),
        Column::right("AVAILABILITY"),
    ]);
    for backend in &answer.backends {
        grid.row(row(backend, screen), Vec::new());
    }
    let mut text = format!("since {}\n", answer.since);
    text += &grid.render(screen, "");
    if verdicts {
        for backend in &answer.backends {
            for verdict in &backend.verdicts {
                text += &course(backend, verdict);
            }
        }
    }
    text
}

fn row(backend: &BackendHistory, screen: &Screen) -> Vec<Cell> {
    let (state, tone) = match (backend.removed, backend.state) {
        (true, _) => ("removed".to_owned(), Tone::Plain),
        (_, OperState::Up) => (backend.state.to_string(), Tone::Good),
        (_, OperState::Down) => (backend.state.to_string(), Tone::Bad),
        (_, OperState::Unknown) => (backend.state.to_string(), Tone::Warning),
    };
    let span = Timestamp::of(screen.now).since(backend.since);
    let seconds = |mean: Option<f64>| mean.map_or("-".to_owned(), precise);
    vec![
        (&backend.service).into(),
        human::place(backend.backend.ip(), backend.backend.port()).into(),
        Cell::toned(&state, tone),
        human::span(span).into(),
        backend.failures.into(),
        seconds(backend.mtbf_s).into(),
        seconds(backend.mttr_s).into(),
        backend.availability.map_or("-".to_owned(), percent).into(),
    ]
}

/// `99.9871 %`, never rounded up to what it is not.
fn percent(availability: f64) -> String {
    let percent = (availability * 1e6).floor() / 1e4;
    format!("{percent:.4} %")
}

/// Below a minute with its fraction: outages are short.
fn precise(seconds: f64) -> String {
    if seconds < 60.0 {
        format!("{seconds:.1}s")
    } else {
        human::span(Duration::from_secs_f64(seconds))
    }
}

/// A verdict, and what led to it and followed.
fn course(backend: &BackendHistory, verdict: &Verdict) -> String {
    let place = human::place(backend.backend.ip(), backend.backend.port());
    let mut text = format!(
        "\n{}  {} {place}  {} -> {}  {}\n",
        verdict.time,
        backend.service,
        verdict.from,
        verdict.to,
        human::printable(&verdict.cause)
    );
    if let Some(timeline) = &verdict.timeline {
        for (what, when, note) in steps(timeline) {
            let from = timeline.first_bad.unwrap_or(timeline.verdict);
            let offset = match when >= from {
                true => format!("+{} ms", when.since(from).as_millis()),
                false => format!("-{} ms", from.since(when).as_millis()),
            };
            let line = format!("  {what:<32}{when}  {offset:>10}  {note}");
            text += line.trim_end();
            text += "\n";
        }
    }
    if !verdict.results.is_empty() {
        text += "  last results:\n";
    }
    for probe in &verdict.results {
        let latency = human::latency(probe.latency_ms);
        let line = format!("{}  {}  {latency}  {}", probe.time, probe.code, probe.detail);
        text += &format!("    {}\n", human::printable(line.trim_end()));
    }
    text
}

fn steps(timeline: &Timeline) -> Vec<(&'static str, Timestamp, String)> {
    let Timeline {
        last_good,
        suspected,
        first_bad,
        verdict,
        table_switched,
        moved_slots,
        first_packet,
        resolution_ms,
    } = timeline;
    let mut steps = Vec::new();
    if let Some(time) = last_good {
        steps.push(("last good probe began", *time, String::new()));
    }
    if let Some(time) = suspected {
        let note = "asked because clients seemed to get no answer";
        steps.push(("suspected", *time, note.to_owned()));
    }
    if let Some(time) = first_bad {
        steps.push(("first bad probe began", *time, String::new()));
    }
    steps.push(("verdict", *verdict, String::new()));
    if let Some(time) = table_switched {
        let moved = human::count(*moved_slots);
        steps.push(("table switched", *time, format!("{moved} slots moved")));
    }
    if let Some(time) = first_packet {
        let note = resolution_ms.map(|ms| format!("seen; it came up to {ms:.1} ms before"));
        steps.push(("packet at those who took over", *time, note.unwrap_or_default()));
    }
    steps
}

#[cfg(test)]
#[path = "health/tests.rs"]
mod tests;
