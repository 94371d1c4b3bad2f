//! Where it was measured.

use std::fs;
use std::process::Command;
use std::thread::available_parallelism;

use anyhow::{Context, Result};

use super::result::Fact;

/// Processor, cores, memory, kernel, and the load before the measurement. What cannot be read is left out.
pub fn describe() -> Vec<Fact> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let facts = [
        ("processor", field(&read("/proc/cpuinfo"), "model name")),
        (
            "cores",
            available_parallelism().ok().map(|cores| cores.to_string()),
        ),
        ("memory", field(&read("/proc/meminfo"), "MemTotal")),
        (
            "kernel",
            Some(read("/proc/sys/kernel/osrelease").trim().to_owned()),
        ),
        ("load before", Some(read("/proc/loadavg").trim().to_owned())),
    ];
    facts
        .into_iter()
        .filter_map(|(name, value)| {
            let value = value.filter(|value| !value.is_empty())?;
            Some(Fact {
                name: name.into(),
                value,
            })
        })
        .collect()
}

/// The value of a line `name : value`.
fn field(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}

/// The time, RFC 3339, UTC.
pub fn now() -> Result<String> {
    let output = Command::new("date")
        .args(["--utc", "+%Y-%m-%dT%H:%M:%SZ"])
        .output()
        .context("cannot run date")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_proc_are_found() {
        let text = "processor\t: 0\nmodel name\t: Some: CPU\n";
        assert_eq!(field(text, "model name").as_deref(), Some("Some: CPU"));
        assert_eq!(field(text, "model"), None);
    }
}
