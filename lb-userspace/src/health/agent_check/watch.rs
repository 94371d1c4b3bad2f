//! Asks the agents of all backends, a task each.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{MAX_LINE_BYTES, Steering};
use crate::config::AgentCheck;
use crate::health::CheckKind;
use crate::health::probe::{Limit, Outcome, Probe};
use crate::health::socket::describe;
use crate::health::tcp;
use crate::model::{BackendId, CheckCode};

/// Agents asked at one moment.
const MAX_UNDER_WAY: usize = 1024;

/// How far intervals vary, so that agents are not asked at the same moments.
const JITTER: f64 = 0.1;

/// The agent of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentTarget {
    pub id: BackendId,
    /// Where it listens.
    pub address: SocketAddr,
    pub check: AgentCheck,
    /// What it said to an earlier run. Only looked at when the target is added.
    pub said: Steering,
}

impl AgentTarget {
    /// Whether the same is asked in the same place.
    fn asks_as(&self, other: &Self) -> bool {
        (self.id, self.address, &self.check) == (other.id, other.address, &other.check)
    }
}

/// What an agent has said, after it was asked once more: the first time, and when something changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentReport {
    pub id: BackendId,
    /// All it has said so far.
    pub steering: Steering,
    /// Why its last line, or a part of it, did not count.
    pub problem: Option<String>,
}

/// The agent checks of all backends. Dropping it ends them.
#[derive(Debug)]
pub struct AgentProber {
    runtime: Handle,
    under_way: Arc<Semaphore>,
    reports: mpsc::Sender<AgentReport>,
    running: HashMap<BackendId, Running>,
}

#[derive(Debug)]
struct Running {
    target: AgentTarget,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl AgentProber {
    /// Sends what it hears to `reports`.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn new(reports: mpsc::Sender<AgentReport>) -> Self {
        Self {
            runtime: Handle::current(),
            under_way: Arc::new(Semaphore::new(MAX_UNDER_WAY)),
            reports,
            running: HashMap::new(),
        }
    }

    /// Asks exactly these from here on: new and changed ones at once. Those that are not changed go on.
    pub fn set_targets(&mut self, targets: Vec<AgentTarget>) {
        let mut before = std::mem::take(&mut self.running);
        for target in targets {
            let running = match before.remove(&target.id) {
                Some(running) if running.target.asks_as(&target) => running,
                _ => self.start(target),
            };
            self.running.insert(running.target.id, running);
        }
    }

    fn start(&self, target: AgentTarget) -> Running {
        let watch = Watch {
            target: target.clone(),
            under_way: Arc::clone(&self.under_way),
            reports: self.reports.clone(),
        };
        Running {
            target,
            task: self.runtime.spawn(watch.run()),
        }
    }
}

struct Watch {
    target: AgentTarget,
    under_way: Arc<Semaphore>,
    reports: mpsc::Sender<AgentReport>,
}

impl Watch {
    async fn run(self) {
        let AgentCheck {
            interval, timeout, ..
        } = self.target.check;
        let mut steering = self.target.said.clone();
        let mut last = None;
        loop {
            let started = Instant::now();
            let said = {
                let Ok(_permit) = self.under_way.acquire().await else {
                    return;
                };
                let deadline = Instant::now() + timeout;
                ask(&self.target, Limit { deadline, timeout }).await
            };
            let problem = match said {
                Ok(line) => steering
                    .take(&line)
                    .map(|word| format!("does not understand \"{word}\"")),
                Err(outcome) => Some(format!("{} {}", outcome.code, outcome.detail)),
            };
            let report = AgentReport {
                id: self.target.id,
                steering: steering.clone(),
                problem,
            };
            if last.as_ref() != Some(&report) {
                if self.reports.send(report.clone()).await.is_err() {
                    return;
                }
                last = Some(report);
            }
            let wait = interval.mul_f64(1.0 - JITTER * rand::random::<f64>());
            tokio::time::sleep_until(started + wait).await;
        }
    }
}

/// The line that an agent writes.
async fn ask(target: &AgentTarget, limit: Limit) -> Result<String, Outcome> {
    let probe = Probe {
        kind: CheckKind::Tcp,
        address: target.address,
        source: target.check.source,
    };
    let mut stream = tcp::connect(&probe, limit).await?;
    limit
        .run(
            talk(&mut stream, &target.check.send),
            CheckCode::L7tout,
            "no line",
        )
        .await?
}

async fn talk(stream: &mut TcpStream, send: &[u8]) -> Result<String, Outcome> {
    let broken = |error: std::io::Error| Outcome::new(CheckCode::L7rsp, describe(&error));
    stream.write_all(send).await.map_err(broken)?;
    let mut said = Vec::with_capacity(MAX_LINE_BYTES);
    loop {
        if let Some(end) = said.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            said.truncate(end);
            return Ok(String::from_utf8_lossy(&said).into_owned());
        }
        if said.len() >= MAX_LINE_BYTES {
            return Err(Outcome::new(CheckCode::L7rsp, "a line without end"));
        }
        let room = (MAX_LINE_BYTES - said.len()) as u64;
        if (&mut *stream)
            .take(room)
            .read_buf(&mut said)
            .await
            .map_err(broken)?
            == 0
        {
            return Err(Outcome::new(CheckCode::L7rsp, "an incomplete line"));
        }
    }
}
