//! What is tested on each kernel, and what came of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::machine::{Ended, Job};
use crate::run;

/// Tests of one binary, by parts of their names.
struct Check {
    name: &'static str,
    /// What of the crate `lb-tests` holds them.
    binary: &'static str,
    tests: &'static [&'static str],
    minutes: u64,
}

/// In the order of the columns. An emulated machine is slow: each has the tests that show most.
const CHECKS: [Check; 5] = [
    Check {
        name: "verifier",
        binary: "packets",
        tests: &["load::"],
        minutes: 30,
    },
    Check {
        name: "model",
        binary: "packets",
        tests: &["model::", "nat::"],
        minutes: 30,
    },
    Check {
        name: "packets",
        binary: "packets",
        tests: &[
            "access::",
            "announce::",
            "balance::",
            "decap::",
            "explain::",
            "forward::",
            "fragments::",
            "icmp::",
            "jumbo::",
            "limits::",
            "pins::",
            "ranges::",
            "refuse::",
            "schedulers::persist",
            "suspects::",
            "toobig::",
            "vlan::",
        ],
        minutes: 30,
    },
    Check {
        name: "life",
        binary: "life",
        tests: &[
            "a_dead_backend_is_routed_around_and_comes_back",
            "a_killed_agent_costs_no_request_and_the_next_one_adopts",
            "on_stop_decides_and_detach_leaves_nothing",
            "generic_mode_and_a_second_device_carry_traffic",
        ],
        minutes: 15,
    },
    Check {
        name: "traffic",
        binary: "traffic",
        tests: &["curl_and_nginx", "dig_asks"],
        minutes: 15,
    },
];

/// The names of the columns.
pub fn names() -> Vec<&'static str> {
    CHECKS.iter().map(|check| check.name).collect()
}

/// One job for each check.
///
/// # Errors
/// Where a binary was not built.
pub fn all(binaries: &BTreeMap<String, PathBuf>) -> Result<Vec<Job>> {
    let job = |check: &Check| {
        let binary = binaries
            .get(check.binary)
            .with_context(|| format!("cargo built no test {}", check.binary))?;
        let mut command = vec![binary.display().to_string(), "--nocapture".to_owned()];
        command.extend(check.tests.iter().map(|&test| test.to_owned()));
        Ok(Job {
            name: check.name.to_owned(),
            limit: Duration::from_secs(60 * check.minutes),
            command,
        })
    };
    CHECKS.iter().map(job).collect()
}

/// Builds the tests and the programs that they call; where the tests are, by name.
///
/// # Errors
/// Where they do not build.
pub fn build() -> Result<BTreeMap<String, PathBuf>> {
    run::succeed(run::cargo().args(["build", "-p", "lb-userspace", "--bins"]))?;
    let mut cargo = run::cargo();
    cargo.args(["test", "-p", "lb-tests", "--no-run", "--message-format=json"]);
    let mut wanted: Vec<&str> = CHECKS.iter().map(|check| check.binary).collect();
    wanted.dedup();
    for binary in wanted {
        cargo.args(["--test", binary]);
    }
    let output = cargo.stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "the tests do not build");
    Ok(executables(&String::from_utf8_lossy(&output.stdout)))
}

/// From what cargo says with `--message-format=json`.
fn executables(messages: &str) -> BTreeMap<String, PathBuf> {
    let one = |line: &str| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let name = message["target"]["name"].as_str()?.to_owned();
        Some((name, PathBuf::from(message["executable"].as_str()?)))
    };
    messages.lines().filter_map(one).collect()
}

/// What stands in the table for a job, and whether all is well.
pub fn verdict(ended: &Ended) -> (String, bool) {
    let counted = |word: &str| {
        let counts = ended.log.lines().filter_map(|line| {
            let line = line.strip_prefix("test result: ")?;
            let before = line.split_once(&format!(" {word};"))?.0;
            before.rsplit(' ').next()?.parse::<u32>().ok()
        });
        counts.sum::<u32>()
    };
    let (passed, failed) = (counted("passed"), counted("failed"));
    let text = match ended.status {
        Some(0) if passed > 0 => format!("ok, {passed}"),
        Some(0) => "NONE RUN".to_owned(),
        Some(124 | 137) => "TOO LONG".to_owned(),
        Some(_) if failed > 0 => format!("{failed} of {} FAILED", passed + failed),
        Some(status) => format!("STATUS {status}"),
        None => "NOT RUN".to_owned(),
    };
    let time = ended
        .seconds
        .map(|seconds| format!(" ({seconds} s)"))
        .unwrap_or_default();
    (text + &time, ended.status == Some(0) && passed > 0)
}

/// How many instructions the verifier looked at most, as the test of it prints; `None` where the kernel does not tell.
pub fn verified_instructions(log: &str) -> Option<u32> {
    let (_, rest) = log.split_once("the largest: ")?;
    rest.split_once(" instructions verified")?
        .0
        .parse()
        .ok()
        .filter(|count| *count > 0)
}

/// Tests that failed, by name.
pub fn failed(log: &str) -> Vec<&str> {
    let mut names: Vec<&str> = log
        .lines()
        .filter_map(|line| {
            let name = line.strip_prefix("    ")?;
            (name.contains("::") || !name.contains(' ')).then_some(name.trim())
        })
        .filter(|name| log.contains(&format!("test {name} ... ")))
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAILED: &str = "\
running 3 tests
test load::a ... ok
86 combinations of 17 features; the largest: 142462 instructions verified
test load::b ... FAILED
test load::c ... ok

failures:

failures:
    load::b

test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 228 filtered out; finished in 196.55s
";

    fn ended(status: Option<i32>, log: &str) -> Ended {
        Ended {
            status,
            seconds: Some(5),
            log: log.into(),
        }
    }

    #[test]
    fn a_cell_says_how_many_tests_passed_or_what_went_wrong() {
        let passed = "test result: ok. 2 passed; 0 failed; 0 ignored";
        assert_eq!(verdict(&ended(Some(0), passed)), ("ok, 2 (5 s)".into(), true));
        assert_eq!(
            verdict(&ended(Some(101), FAILED)),
            ("1 of 3 FAILED (5 s)".into(), false)
        );
        assert_eq!(verdict(&ended(Some(124), "")).0, "TOO LONG (5 s)");
        assert_eq!(verdict(&ended(None, "")).0, "NOT RUN (5 s)");
        let none = "test result: ok. 0 passed; 0 failed; 0 ignored";
        assert_eq!(verdict(&ended(Some(0), none)), ("NONE RUN (5 s)".into(), false));
    }

    #[test]
    fn failures_and_counts_are_read_from_the_log() {
        assert_eq!(failed(FAILED), ["load::b"]);
        assert_eq!(verified_instructions(FAILED), Some(142_462));
        assert_eq!(
            verified_instructions("the largest: 0 instructions verified"),
            None
        );
    }

    #[test]
    fn cargo_says_where_the_tests_are() {
        let messages = "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"lb_tests\"},\"executable\":null}\n\
                        {\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"life\"},\"executable\":\"/t/life-1\"}\n\
                        {\"reason\":\"build-finished\",\"success\":true}\n";
        let found = executables(messages);
        assert_eq!(found.len(), 1);
        assert_eq!(found["life"], PathBuf::from("/t/life-1"));
    }
}
