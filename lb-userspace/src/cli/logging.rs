//! The log on standard error: one line an event.

use std::io::Write;

use env_logger::{Builder, Env, Logger};
use log::{Level, Record};

use super::human;

/// Starts the log. The agent tells its events, other verbs only warnings; `-v` raises both, `RUST_LOG` wins.
pub(super) fn start(agent: bool, verbose: u8) {
    // The service manager stamps and ranks the lines by itself, see sd-daemon(3).
    let style = match (agent, std::env::var_os("JOURNAL_STREAM")) {
        (false, _) => Style::Plain,
        (true, Some(_)) => Style::Journal,
        (true, None) => Style::Stamped,
    };
    let logger = build(&default_filter(agent, verbose), style);
    let level = logger.filter();
    if log::set_boxed_logger(Box::new(logger)).is_ok() {
        log::set_max_level(level);
    }
}

/// What stands before a line.
#[derive(Clone, Copy, Debug)]
enum Style {
    /// As the errors of a command.
    Plain,
    /// Time and level.
    Stamped,
    /// The level, as the journal reads it.
    Journal,
}

fn build(default: &str, style: Style) -> Logger {
    Builder::from_env(Env::default().default_filter_or(default))
        .format(move |out, record| {
            let (line, level) = (line(record), record.level());
            match style {
                Style::Plain => writeln!(out, "xlb: {}: {line}", word(level)),
                Style::Stamped => {
                    let now = out.timestamp_millis();
                    writeln!(out, "{now} {level:<5} {line}")
                }
                Style::Journal => writeln!(out, "<{}>{line}", priority(level)),
            }
        })
        .build()
}

fn word(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warn => "warning",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    }
}

fn default_filter(agent: bool, verbose: u8) -> String {
    match verbose.saturating_add(u8::from(agent)) {
        0 => "warn",
        1 => "info",
        2 => "info,xlb=debug",
        3 => "debug,xlb=trace",
        _ => "trace",
    }
    .to_owned()
}

/// The message on one line. What comes from outside (a backend's answer) cannot pretend to be another line.
fn line(record: &Record<'_>) -> String {
    let mut line = String::new();
    if record.level() >= Level::Debug {
        line += record.target();
        line += ": ";
    }
    for (place, part) in record.args().to_string().trim_end().lines().enumerate() {
        if place > 0 {
            line += " | ";
        }
        line += &human::printable(part.trim_end());
    }
    line
}

/// The rank of syslog(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_whatever_it_says() {
        let said = |level, text: &str| {
            line(
                &Record::builder()
                    .args(format_args!("{text}"))
                    .level(level)
                    .target("xlb::net")
                    .build(),
            )
        };
        assert_eq!(said(Level::Info, "a\nb \r\n"), "a | b");
        assert_eq!(said(Level::Error, "\x1b[31mred"), "\\u{1b}[31mred");
        assert_eq!(said(Level::Debug, "x"), "xlb::net: x");
    }

    #[test]
    fn the_agent_says_more_than_the_other_verbs() {
        assert_eq!(default_filter(false, 0), "warn");
        assert_eq!(default_filter(true, 0), default_filter(false, 1));
        assert_eq!(default_filter(true, u8::MAX), "trace");
    }
}
