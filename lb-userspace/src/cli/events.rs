//! `xlb events`.

use std::time::Duration;

use clap::Args;

use super::grid::{Tone, toned};
use super::outcome::{Context, Format, Outcome, Screen};
use super::{block_on, human, print};
use crate::api::client::{self, Client};
use crate::observe::bus::Batch;
use crate::observe::event::{Event, Level};

/// How long one request waits for an event.
const WAIT: Duration = Duration::from_secs(30);
/// How often an agent that is gone is looked for.
const AGAIN: Duration = Duration::from_secs(1);

/// Show what happened: verdicts, orders, tables, interfaces, reloads.
///
/// The agent keeps the last 16,384 events.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  xlb events                  the last 100
  xlb events -w               and everything that happens from here on
  xlb events -w -o json       one JSON object a line
  xlb events --service web")]
pub(super) struct Arguments {
    /// Go on with what happens from here on, also over restarts of the agent.
    #[arg(short, long)]
    watch: bool,
    /// Show so many of the events so far at most.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100)]
    last: usize,
    /// Only those of this service.
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
}

impl Arguments {
    fn wants(&self, event: &Event) -> bool {
        self.service.is_none() || event.service == self.service
    }
}

pub(super) fn run(arguments: &Arguments, context: &Context) -> anyhow::Result<Outcome> {
    block_on(async {
        let mut batch = so_far(&context.client).await?;
        batch.events.retain(|event| arguments.wants(event));
        let surplus = batch.events.len().saturating_sub(arguments.last);
        batch.events.drain(..surplus);
        if !arguments.watch {
            return context.show(&batch, |batch, screen| lines(&batch.events, screen));
        }
        print(&written(&batch.events, context)?)?;
        follow(arguments, context, batch.last).await
    })
}

/// All events that the agent has kept.
async fn so_far(client: &Client) -> Result<Batch, client::Error> {
    let mut all = client.events(0, Duration::ZERO).await?;
    loop {
        let mut more = client.events(all.last, Duration::ZERO).await?;
        if more.events.is_empty() {
            return Ok(all);
        }
        all.events.append(&mut more.events);
        all.last = more.last;
    }
}

/// Prints events as they come, until nobody reads them any longer.
async fn follow(arguments: &Arguments, context: &Context, mut last: u64) -> anyhow::Result<Outcome> {
    let mut gone = false;
    loop {
        let batch = match context.client.events(last, WAIT).await {
            Ok(batch) => batch,
            Err(error @ (client::Error::NotRunning { .. } | client::Error::BrokeOff { .. })) => {
                if !gone {
                    eprintln!("xlb: {error}; waiting for it");
                    gone = true;
                }
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        gone = false;
        if batch.missed > 0 {
            eprintln!("xlb: {} events are not kept any longer", batch.missed);
        }
        last = batch.last;
        let wanted: Vec<Event> = batch.events.into_iter().filter(|e| arguments.wants(e)).collect();
        if !print(&written(&wanted, context)?)? {
            return Ok(Outcome::done(""));
        }
    }
}

/// In the format that was asked for, a line each.
fn written(events: &[Event], context: &Context) -> anyhow::Result<String> {
    match context.format {
        Format::Table => Ok(lines(events, &context.screen)),
        Format::Json => {
            let lines = events
                .iter()
                .map(|event| Ok(serde_json::to_string(event)? + "\n"));
            lines.collect()
        }
    }
}

fn lines(events: &[Event], screen: &Screen) -> String {
    events.iter().map(|event| line(event, screen)).collect()
}

/// `2026-01-01T00:00:00.123Z  web 10.0.1.11:80  UP -> DOWN (L4CON connection refused)`.
fn line(event: &Event, screen: &Screen) -> String {
    let Event {
        seq: _,
        time,
        service,
        backend,
        cause,
        kind,
    } = event;
    let backend = backend.map(|place| human::place(place.ip(), place.port()));
    let who: Vec<&str> = [service.as_deref(), backend.as_deref()]
        .into_iter()
        .flatten()
        .collect();
    let mut what = kind.to_string();
    if let Some(cause) = cause {
        what += &format!(" ({cause})");
    }
    let tone = match kind.level() {
        Level::Info => Tone::Plain,
        Level::Warning => Tone::Warning,
        Level::Error => Tone::Bad,
    };
    let what = toned(&human::printable(&what), tone, screen);
    match who.is_empty() {
        true => format!("{time}  {what}\n"),
        false => format!("{time}  {}  {what}\n", human::printable(&who.join(" "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::screen;
    use crate::model::{CheckCode, OperState};
    use crate::observe::event::{Draft, Kind, Timestamp};

    #[test]
    fn an_event_is_one_line_whatever_it_carries() {
        let down = Kind::BackendState {
            from: OperState::Up,
            to: OperState::Down,
            code: CheckCode::L7rsp,
            latency_ms: 1.0,
            results: Vec::new(),
        };
        let event = down
            .service("web")
            .backend("10.0.1.11:80".parse().unwrap())
            .because("L7RSP evil\n\x1b[31m")
            .at(1, Timestamp(0));
        let plain = screen(None);
        assert_eq!(
            line(&event, &plain),
            "1970-01-01T00:00:00.000Z  web 10.0.1.11:80  UP -> DOWN (L7RSP evil\\n\\u{1b}[31m)\n"
        );
        let colour = Screen {
            colour: true,
            ..plain
        };
        assert!(line(&event, &colour).contains("\x1b[33mUP -> DOWN"));
        let alone = Draft::from(Kind::Isolated).at(2, Timestamp(0));
        assert_eq!(
            line(&alone, &plain),
            "1970-01-01T00:00:00.000Z  ISOLATED: nothing answers, tables stay\n"
        );
    }
}
