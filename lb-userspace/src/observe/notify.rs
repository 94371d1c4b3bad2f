//! `notify`: a program for each change of state, with the event as JSON on its standard input.
//!
//! Each program has a task of its own that follows the bus, so that it delays neither probes nor tables nor other
//! programs. It runs one at a time, without a shell, in a process group of its own that is killed after [`LIMIT`].
//! Where it is slower than the events, those that waited longest are dropped, counted, and told of.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::bus::Bus;
use super::event::{Event, Kind};

/// How long one run may take.
const LIMIT: Duration = Duration::from_secs(10);
/// Events that wait for a program.
const ROOM: usize = 256;
/// Dropped events, and runs that fail in the same way, are told of at most this often.
const TELL: Duration = Duration::from_secs(60);

/// The programs that are told.
#[derive(Debug)]
pub struct Notifier {
    bus: Bus,
    programs: BTreeMap<PathBuf, JoinHandle<()>>,
}

impl Notifier {
    #[must_use]
    pub fn new(bus: Bus) -> Self {
        Self {
            bus,
            programs: BTreeMap::new(),
        }
    }

    /// Tells exactly these programs of what happens from here on; one that is told already goes on.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn set(&mut self, programs: &[PathBuf]) {
        self.programs.retain(|program, task| {
            let kept = programs.contains(program);
            if !kept {
                task.abort();
            }
            kept
        });
        for program in programs {
            if !self.programs.contains_key(program) {
                let follow = follow(program.clone(), self.bus.clone(), self.bus.last(), LIMIT);
                self.programs.insert(program.clone(), tokio::spawn(follow));
            }
        }
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        for task in self.programs.values() {
            task.abort();
        }
    }
}

/// Whether programs are told of an event: changes of state, not their technical consequences, and nothing that
/// telling itself causes.
#[must_use]
pub fn tells(kind: &Kind) -> bool {
    match kind {
        Kind::AgentReady
        | Kind::BackendState { .. }
        | Kind::BackendAdmin { .. }
        | Kind::Attached { .. }
        | Kind::Detached { .. }
        | Kind::InterfaceLost { .. }
        | Kind::ReloadRefused
        | Kind::Isolated
        | Kind::IsolationOver
        | Kind::AllDown { .. }
        | Kind::AllDownOver
        | Kind::PoolMode { .. }
        | Kind::FlapHeld { .. }
        | Kind::FlapReleased
        | Kind::MigrationStalled { .. }
        | Kind::FlowTablePressure { .. }
        | Kind::StateDir { .. } => true,
        Kind::AgentStarted { .. }
        | Kind::AgentStopped { .. }
        | Kind::Rerouted(_)
        | Kind::BackendWeight { .. }
        | Kind::NextHop { .. }
        | Kind::BackendAdded { .. }
        | Kind::BackendRemoved
        | Kind::ServiceAdded { .. }
        | Kind::ServiceRemoved
        | Kind::TableSwitched { .. }
        | Kind::Reloaded { .. }
        | Kind::MigrationBegun { .. }
        | Kind::MigrationEnded { .. }
        | Kind::NotifyDropped { .. } => false,
    }
}

async fn follow(program: PathBuf, bus: Bus, mut last: u64, limit: Duration) {
    let mut waiting: VecDeque<Event> = VecDeque::new();
    let (mut dropped, mut told) = (0_u64, None::<Instant>);
    let mut failures = Failures::default();
    loop {
        if waiting.is_empty() {
            bus.beyond(last).await;
        }
        loop {
            let batch = bus.since(last, 1024);
            if batch.events.is_empty() {
                break;
            }
            (last, dropped) = (batch.last, dropped + batch.missed);
            waiting.extend(batch.events.into_iter().filter(|event| tells(&event.kind)));
            let surplus = waiting.len().saturating_sub(ROOM);
            waiting.drain(..surplus);
            dropped += surplus as u64;
        }
        if dropped > 0 && told.is_none_or(|told| told.elapsed() >= TELL) {
            log::warn!("notify: {dropped} events were not told to {}", program.display());
            bus.emit(Kind::NotifyDropped {
                program: program.display().to_string(),
                events: dropped,
            });
            (dropped, told) = (0, Some(Instant::now()));
        }
        let Some(event) = waiting.pop_front() else {
            continue;
        };
        let why = match run(&program, &event, limit).await {
            Ok(status) if status.success() => None,
            Ok(status) => Some(status.to_string()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(line) = failures.note(why, Instant::now()) {
            log::warn!("notify: {}: {line}", program.display());
        }
    }
}

/// Runs that failed one after the other. A program that always fails is not told of each time.
#[derive(Debug, Default)]
struct Failures {
    /// Why the last one did, and when that was told.
    last: Option<(String, Instant)>,
    /// Since then.
    untold: u64,
}

impl Failures {
    /// Takes in how a run ended; gives back what there is to say.
    fn note(&mut self, why: Option<String>, now: Instant) -> Option<String> {
        let Some(why) = why else {
            let failed = self.last.take().map(|_| std::mem::take(&mut self.untold));
            return failed.map(|untold| format!("it works again, {untold} more runs had failed"));
        };
        let same = self.last.as_ref().filter(|(last, _)| *last == why);
        if same.is_some_and(|(_, told)| now.duration_since(*told) < TELL) {
            self.untold += 1;
            return None;
        }
        let more = match std::mem::take(&mut self.untold) {
            0 => String::new(),
            untold => format!(" ({untold} more runs failed before)"),
        };
        let line = format!("{why}{more}");
        self.last = Some((why, now));
        Some(line)
    }
}

/// One run of a program.
async fn run(program: &Path, event: &Event, limit: Duration) -> io::Result<ExitStatus> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    let child = Command::new(program)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()?;
    let mut group = Group(child);
    let tell = async {
        if let Some(mut input) = group.0.stdin.take() {
            // It need not read.
            let _ = input.write_all(&line).await;
        }
        group.0.wait().await
    };
    match tokio::time::timeout(limit, tell).await {
        Ok(status) => status,
        Err(_) => {
            group.kill();
            group.0.wait().await?;
            Err(io::Error::other(format!("killed after {limit:?}")))
        }
    }
}

/// A program and whatever it started; what is left of it goes with the guard.
struct Group(Child);

impl Group {
    fn kill(&self) {
        // The number is the program's own as long as it was not waited for.
        if let Some(id) = self.0.id() {
            let _ = killpg(Pid::from_raw(id.cast_signed()), Signal::SIGKILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
#[path = "tests/notify.rs"]
mod tests;
