//! The `exec` check: a program ends with the exit status 0.
//!
//! No shell, nothing on its standard input, `/` as its folder, and this environment:
//!
//! | variable | what |
//! |---|---|
//! | `PATH` | `/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin` |
//! | `LANG` | `C` |
//! | `XLB_ADDRESS` | the address probed |
//! | `XLB_PORT` | the port probed; 0: the service has every port |
//! | `XLB_SOURCE` | the source address, where the check names one |
//! | `XLB_TIMEOUT_MS` | what it may take |
//!
//! It runs in a process group of its own, which is killed when the time is over, when the check is no longer wanted,
//! and when the program ends before what it started: nothing of a check outlives it, unless it leaves the group. The
//! first line of its output is the detail; of more than a few kilobytes the rest is read and thrown away, so that
//! talking does not make it wait.

mod group;

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::process::{ChildStdout, Command};

use self::group::Group;
use super::probe::{Limit, Outcome, Probe};
use super::socket::describe;
use crate::config::ExecCheck;
use crate::model::CheckCode;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is kept of the output, and shown of its first line.
const MAX_OUTPUT_BYTES: usize = 4096;
const MAX_DETAIL_CHARACTERS: usize = 120;

/// How long to listen after the program has ended.
const LAST_WORDS: Duration = Duration::from_millis(50);

pub(super) async fn check(check: &ExecCheck, probe: &Probe, limit: Limit) -> Outcome {
    let command = command(check, probe, limit);
    // Loading a program may wait for a file system.
    let started = tokio::task::spawn_blocking(move || Group::start(command));
    let started = limit.run(started, CheckCode::L7tout, "the program did not start");
    let mut group = match started.await {
        Ok(Ok(Ok(group))) => group,
        Ok(Ok(Err(error))) => return not_started(&error),
        Ok(Err(_)) => return Outcome::new(CheckCode::Sockerr, "the agent is stopping"),
        Err(late) => return late,
    };
    let mut said = Vec::new();
    let ended = {
        let listening = listen(group.take_output(), &mut said);
        tokio::pin!(listening);
        let mut heard_all = false;
        let ending = group.end();
        tokio::pin!(ending);
        let ended = async {
            tokio::select! {
                ended = &mut ending => ended,
                // Closed its output and goes on.
                () = &mut listening => {
                    heard_all = true;
                    ending.await
                }
            }
        };
        let ended = limit
            .run(ended, CheckCode::L7tout, "the program did not end")
            .await;
        if ended.is_ok() && !heard_all {
            // What it said last; its end, unless somebody who left the group holds the other one.
            let _ = tokio::time::timeout(LAST_WORDS, listening).await;
        }
        ended
    };
    match ended {
        Ok(Ok(status)) => judge(status, &said),
        Ok(Err(error)) => Outcome::new(CheckCode::Sockerr, format!("cannot wait: {}", describe(&error))),
        Err(late) => late,
    }
}

fn command(check: &ExecCheck, probe: &Probe, limit: Limit) -> Command {
    let (program, arguments) = check
        .command
        .split_first()
        .map_or(("", &[][..]), |(program, arguments)| {
            (program.as_str(), arguments)
        });
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .env("LANG", "C")
        .env("XLB_ADDRESS", probe.address.ip().to_string())
        .env("XLB_PORT", probe.address.port().to_string())
        .env("XLB_TIMEOUT_MS", limit.timeout.as_millis().to_string())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    if let Some(source) = probe.source {
        command.env("XLB_SOURCE", source.to_string());
    }
    command
}

/// Reads all there is and keeps the beginning.
async fn listen(output: Option<ChildStdout>, said: &mut Vec<u8>) {
    let Some(mut output) = output else {
        return;
    };
    let mut buffer = [0; MAX_OUTPUT_BYTES];
    while let Ok(length @ 1..) = output.read(&mut buffer).await {
        let room = MAX_OUTPUT_BYTES - said.len();
        said.extend_from_slice(&buffer[..length.min(room)]);
    }
}

fn not_started(error: &io::Error) -> Outcome {
    Outcome::new(
        CheckCode::Sockerr,
        format!("cannot run the program: {}", describe(error)),
    )
}

fn judge(status: ExitStatus, said: &[u8]) -> Outcome {
    let (code, mut detail) = match (status.code(), status.signal()) {
        (Some(0), _) => (CheckCode::L7ok, "exit status 0".to_owned()),
        (Some(number), _) => (CheckCode::L7sts, format!("exit status {number}")),
        (None, Some(signal)) => (CheckCode::L7sts, format!("killed by signal {signal}")),
        (None, None) => (CheckCode::L7sts, "ended in an unknown way".to_owned()),
    };
    if let Some(line) = first_line(said) {
        detail.push_str(": ");
        detail.push_str(&line);
    }
    Outcome::new(code, detail)
}

/// The first line, without control characters and not too long.
fn first_line(said: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(said);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty())?;
    let printable = line.chars().filter(|character| !character.is_control());
    Some(printable.take(MAX_DETAIL_CHARACTERS).collect())
}

#[cfg(test)]
#[path = "tests/exec.rs"]
mod tests;
