//! Numbers and times as people read them. Pure.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use crate::model::Protocol;

/// Up to seven digits as they are, with separators; beyond with three digits and a unit.
pub(super) fn count(number: u64) -> String {
    if number >= 10_000_000 {
        return scaled(number as f64, "");
    }
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 service`, `2 services`.
pub(super) fn counted(number: usize, thing: &str) -> String {
    let end = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{end}")
}

/// A number of flows is an estimate in the DSR modes, and shown as one. UDP has no flows that can be counted.
pub(super) fn flows(number: u64, protocol: Protocol) -> String {
    match protocol {
        Protocol::Tcp => format!("~{}", count(number)),
        Protocol::Udp => "-".to_owned(),
    }
}

/// Bytes with a decimal unit.
pub(super) fn bytes(number: u64) -> String {
    if number < 1000 {
        format!("{number} B")
    } else {
        scaled(number as f64, "B")
    }
}

/// A rate with a decimal unit; `unit` may be empty.
pub(super) fn rate(number: f64, unit: &str) -> String {
    if number < 1000.0 {
        let places = usize::from(number > 0.0 && number < 10.0);
        return join(&format!("{number:.places$}"), "", unit);
    }
    scaled(number, unit)
}

fn scaled(number: f64, unit: &str) -> String {
    let mut value = number;
    let mut prefix = "";
    for next in ["k", "M", "G", "T", "P", "E"] {
        if value < 999.5 {
            break;
        }
        value /= 1000.0;
        prefix = next;
    }
    let places = match value {
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    join(&format!("{value:.places$}"), prefix, unit)
}

fn join(number: &str, prefix: &str, unit: &str) -> String {
    match (prefix, unit) {
        (_, "") => format!("{number}{prefix}"),
        _ => format!("{number} {prefix}{unit}"),
    }
}

/// Milliseconds with the digits that matter.
pub(super) fn latency(ms: f64) -> String {
    match ms {
        ms if ms < 1.0 => format!("{ms:.2}ms"),
        ms if ms < 100.0 => format!("{ms:.1}ms"),
        ms => format!("{ms:.0}ms"),
    }
}

/// The two largest units of a time: `3h12m`.
pub(super) fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    let units = [(86_400, "d"), (3600, "h"), (60, "m"), (1, "s")];
    let Some(first) = units.iter().position(|(unit, _)| seconds >= *unit) else {
        return "0s".to_owned();
    };
    let mut text = format!("{}{}", seconds / units[first].0, units[first].1);
    if let Some((unit, name)) = units.get(first + 1) {
        let rest = seconds % units[first].0 / unit;
        if rest > 0 {
            text += &format!("{rest}{name}");
        }
    }
    text
}

/// How long ago a time of an answer was; `None` where it is no time, or lies ahead.
pub(super) fn ago(rfc3339: &str, now: SystemTime) -> Option<String> {
    let then = humantime::parse_rfc3339_weak(rfc3339).ok()?;
    now.duration_since(then).ok().map(span)
}

/// Address and port; port 0 stands for every port and is left out.
pub(super) fn place(address: IpAddr, port: u16) -> String {
    match port {
        0 => address.to_string(),
        port => SocketAddr::new(address, port).to_string(),
    }
}

/// `192.0.2.10:80/tcp`; `192.0.2.10/udp` for every port, `192.0.2.10:8000-8100/tcp` for those up to a last one.
pub(super) fn service_place(
    address: IpAddr,
    port: u16,
    last_port: Option<u16>,
    protocol: Protocol,
) -> String {
    let last = last_port.map(|last| format!("-{last}")).unwrap_or_default();
    format!("{}{last}/{protocol}", place(address, port))
}

/// Text in lines of at most `width` characters, broken between words.
pub(super) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("begins with one");
        if line.is_empty() {
            *line = word.to_owned();
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            line.push(' ');
            *line += word;
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

/// Text from outside without what would steer a terminal or tear a line.
pub(super) fn printable(text: &str) -> String {
    let mut safe = String::new();
    for character in text.chars() {
        if character.is_control() {
            safe.extend(character.escape_default());
        } else {
            safe.push(character);
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_keep_their_digits_as_long_as_they_are_read() {
        let said = [0, 999, 1000, 1_204, 9_999_999, 10_000_000, 999_600_000, u64::MAX].map(count);
        assert_eq!(
            said,
            [
                "0",
                "999",
                "1,000",
                "1,204",
                "9,999,999",
                "10.0M",
                "1.00G",
                "18.4E"
            ]
        );
        assert_eq!(flows(1204, Protocol::Tcp), "~1,204");
        assert_eq!(flows(1204, Protocol::Udp), "-");
    }

    #[test]
    fn bytes_and_rates_have_units() {
        assert_eq!(
            [0, 999, 1000, 12_345, 999_999].map(bytes),
            ["0 B", "999 B", "1.00 kB", "12.3 kB", "1.00 MB"]
        );
        assert_eq!(rate(0.0, "bit/s"), "0 bit/s");
        assert_eq!(rate(0.5, ""), "0.5");
        assert_eq!(rate(12.4, ""), "12");
        assert_eq!(rate(1_234_000.0, "bit/s"), "1.23 Mbit/s");
        assert_eq!(rate(1_234_000.0, ""), "1.23M");
    }

    #[test]
    fn times_have_two_units_at_most() {
        let said = [0, 59, 60, 61, 3600, 11_520, 90_000].map(|s| span(Duration::from_secs(s)));
        assert_eq!(said, ["0s", "59s", "1m", "1m1s", "1h", "3h12m", "1d1h"]);
        let now = humantime::parse_rfc3339_weak("2025-01-01T00:01:01Z").unwrap();
        assert_eq!(ago("2025-01-01T00:00:00.250Z", now).as_deref(), Some("1m"));
        assert_eq!(ago("2026-01-01T00:00:00Z", now), None);
        assert_eq!(ago("yesterday", now), None);
        assert_eq!(
            [0.123, 1.234, 12.34, 1234.0].map(latency),
            ["0.12ms", "1.2ms", "12.3ms", "1234ms"]
        );
    }

    #[test]
    fn lines_break_between_words() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("unbreakable x", 3), ["unbreakable", "x"]);
        assert_eq!(wrap("", 3), [""]);
    }

    #[test]
    fn places_leave_out_every_port() {
        let v6 = "2001:db8::1".parse().unwrap();
        assert_eq!(place(v6, 80), "[2001:db8::1]:80");
        assert_eq!(service_place(v6, 0, None, Protocol::Udp), "2001:db8::1/udp");
        let range = service_place("192.0.2.10".parse().unwrap(), 8000, Some(8100), Protocol::Tcp);
        assert_eq!(range, "192.0.2.10:8000-8100/tcp");
    }
}
