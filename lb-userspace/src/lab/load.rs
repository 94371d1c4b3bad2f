//! A client that opens connections at a fixed rate and writes down what became of each.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::netns::Netns;

/// What to do.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Taken in turn.
    pub targets: Vec<SocketAddr>,
    pub connections_per_s: u32,
    /// What an attempt may take as a whole.
    pub timeout: Duration,
    /// When to stop at the latest.
    pub longest: Duration,
}

impl LoadOptions {
    /// 600 connections a second, each given one second.
    #[must_use]
    pub fn new(targets: Vec<SocketAddr>) -> Self {
        Self {
            targets,
            connections_per_s: 600,
            timeout: Duration::from_secs(1),
            longest: Duration::from_secs(60),
        }
    }
}

/// One connection with one request.
#[derive(Clone, Debug)]
pub struct Attempt {
    pub target: SocketAddr,
    pub started: Instant,
    pub ended: Instant,
    /// The name of the backend that answered, or what went wrong.
    pub outcome: Result<String, String>,
}

/// A running load.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    started: Arc<AtomicU64>,
    attempts: Receiver<Attempt>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Load {
    /// Starts connecting from a namespace.
    ///
    /// # Errors
    /// Where the thread cannot be made.
    pub fn start(client: &Netns, options: LoadOptions) -> anyhow::Result<Self> {
        ensure!(
            !options.targets.is_empty() && options.connections_per_s > 0,
            "nothing to do"
        );
        let (stop, started) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (report, attempts) = channel();
        let client = client.clone();
        let (until, count) = (Arc::clone(&stop), Arc::clone(&started));
        let thread = thread::Builder::new().name("load".into()).spawn(move || {
            client.move_in()?;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let begun = Instant::now();
                let mut clock = interval(Duration::from_secs(1) / options.connections_per_s);
                // Late is caught up with: the rate holds over all.
                clock.set_missed_tick_behavior(MissedTickBehavior::Burst);
                let mut running = JoinSet::new();
                for target in options.targets.iter().copied().cycle() {
                    clock.tick().await;
                    if until.load(Ordering::Relaxed) || begun.elapsed() > options.longest {
                        break;
                    }
                    count.fetch_add(1, Ordering::Relaxed);
                    let report = report.clone();
                    running.spawn(async move {
                        let _ = report.send(attempt(target, options.timeout).await);
                    });
                    while running.try_join_next().is_some() {}
                }
                while running.join_next().await.is_some() {}
            });
            Ok(())
        })?;
        Ok(Self {
            stop,
            started,
            attempts,
            thread: Some(thread),
        })
    }

    /// How many attempts were begun so far.
    #[must_use]
    pub fn begun(&self) -> u64 {
        self.started.load(Ordering::Relaxed)
    }

    /// Begins no more, waits for those under way and returns all.
    ///
    /// # Errors
    /// Where the load itself failed.
    pub fn finish(mut self) -> anyhow::Result<Attempts> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("a running load")?;
        thread.join().map_err(|_| anyhow!("the load panicked"))??;
        Ok(Attempts(self.attempts.try_iter().collect()))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn attempt(target: SocketAddr, limit: Duration) -> Attempt {
    let started = Instant::now();
    let outcome = match timeout(limit, request(target)).await {
        Ok(Ok(name)) => Ok(name),
        Ok(Err(error)) => Err(format!("{error:#}")),
        Err(_) => Err("no answer in time".into()),
    };
    Attempt {
        target,
        started,
        ended: Instant::now(),
        outcome,
    }
}

async fn request(target: SocketAddr) -> anyhow::Result<String> {
    let stream = TcpStream::connect(target).await.context("connecting")?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::get("/")
        .header(header::HOST, target.to_string())
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await.context("asking")?;
    ensure!(response.status().is_success(), "status {}", response.status());
    let body = response
        .into_body()
        .collect()
        .await
        .context("reading")?
        .to_bytes();
    connection.await?.context("closing")?;
    Ok(String::from_utf8_lossy(&body).trim().to_owned())
}

/// All attempts of a load.
#[derive(Clone, Debug, Default)]
pub struct Attempts(pub Vec<Attempt>);

impl Attempts {
    #[must_use]
    pub fn attempted(&self) -> usize {
        self.0.len()
    }

    #[must_use]
    pub fn failed(&self) -> usize {
        self.0.iter().filter(|attempt| attempt.outcome.is_err()).count()
    }

    /// Attempts by the backend that answered.
    #[must_use]
    pub fn served(&self) -> BTreeMap<String, usize> {
        let mut served = BTreeMap::new();
        for name in self.0.iter().filter_map(|attempt| attempt.outcome.as_ref().ok()) {
            *served.entry(name.clone()).or_default() += 1;
        }
        served
    }

    /// Failed attempts by what went wrong.
    #[must_use]
    pub fn errors(&self) -> BTreeMap<String, usize> {
        let mut errors = BTreeMap::new();
        for error in self.0.iter().filter_map(|attempt| attempt.outcome.as_ref().err()) {
            *errors.entry(error.clone()).or_default() += 1;
        }
        errors
    }

    /// Those that began at `from` or later.
    #[must_use]
    pub fn since(&self, from: Instant) -> Self {
        Self(
            self.0
                .iter()
                .filter(|attempt| attempt.started >= from)
                .cloned()
                .collect(),
        )
    }

    /// Of the attempts that failed the one that began last.
    #[must_use]
    pub fn last_failure(&self) -> Option<&Attempt> {
        let failed = self.0.iter().filter(|attempt| attempt.outcome.is_err());
        failed.max_by_key(|attempt| attempt.started)
    }

    /// From an event to the start of the last attempt that failed. `None`: none that began after it failed.
    #[must_use]
    pub fn last_failure_after(&self, event: Instant) -> Option<Duration> {
        self.last_failure()?.started.checked_duration_since(event)
    }

    /// New connections a second between the first and the last.
    #[must_use]
    pub fn rate_per_s(&self) -> f64 {
        let (first, last) = (
            self.0.iter().map(|attempt| attempt.started).min(),
            self.0.iter().map(|attempt| attempt.started).max(),
        );
        match (first, last) {
            (Some(first), Some(last)) if last > first => {
                (self.0.len() - 1) as f64 / (last - first).as_secs_f64()
            }
            _ => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_failure_counts_by_its_start() {
        let event = Instant::now();
        let at = |ms: u64, outcome: Result<&str, &str>| Attempt {
            target: "192.0.2.10:80".parse().unwrap(),
            started: event + Duration::from_millis(ms),
            ended: event + Duration::from_millis(ms + 1000),
            outcome: outcome.map(str::to_owned).map_err(str::to_owned),
        };
        let attempts = Attempts(vec![
            at(0, Ok("b1")),
            at(120, Err("x")),
            at(100, Err("x")),
            at(1120, Ok("b2")),
        ]);
        assert_eq!(
            attempts.last_failure_after(event),
            Some(Duration::from_millis(120))
        );
        assert_eq!(
            attempts.last_failure_after(event + Duration::from_millis(121)),
            None
        );
        assert_eq!((attempts.attempted(), attempts.failed()), (4, 2));
        assert_eq!(
            attempts.served().into_iter().collect::<Vec<_>>(),
            [("b1".into(), 1), ("b2".into(), 1)]
        );
    }
}
