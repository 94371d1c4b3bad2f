//! What probing costs: so many backends probed by TCP over loopback, the share of a core that it takes, and how late
//! probes start. Loopback makes the prober pay for the backends' side of the handshake too: the kernel runs it where the
//! SYN is sent.
//!
//! The prober runs on a thread of its own, whose processor time counts. A probe is late by how much longer than its
//! interval (without jitter) the time from the start of the one before it was.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::sys::time::TimeValLike as _;
use tokio::sync::mpsc;
use xlb::config::{Require, Via};
use xlb::health::{CheckKind, CheckSpec, Policy, ProbeSpec, Prober, Target};
use xlb::model::{BackendId, Forward, Protocol, ServiceKey};

use super::Table;
use crate::netns::Netns;

/// So many backends, and how often each is probed.
#[derive(Clone, Copy)]
pub struct Load {
    pub backends: u32,
    pub interval: Duration,
    /// How long one run looks.
    pub window: Duration,
}

/// No probe starts later than this.
const LATEST: Duration = Duration::from_millis(100);
/// Per cent of a core.
const SHARE: f64 = 20.0;

/// # Errors
/// Where a probe fails: the load is too much for this machine.
pub fn measure(load: Load, runs: usize, table: &mut Table) -> anyhow::Result<()> {
    // Of its own, so that nothing else of this machine follows so many connections.
    let netns = Netns::new("probes")?;
    let measured = thread::spawn(move || {
        netns.move_in()?;
        probe(load, runs)
    });
    let measured = measured.join();
    let group = format!(
        "{} backends probed every {} ms",
        load.backends,
        load.interval.as_millis()
    );
    for Window { share, latest } in measured.map_err(|_| anyhow!("the prober panicked"))?? {
        table.note(&group, "processor", "% of a core", share);
        table.ms(&group, "latest probe of a run", latest);
        if latest > LATEST {
            table.fault(format!("{group}: a probe was {} ms late", latest.as_millis()));
        }
    }
    table.promise(&group, "processor", SHARE);
    Ok(())
}

struct Window {
    share: f64,
    latest: Duration,
}

fn probe(load: Load, runs: usize) -> anyhow::Result<Vec<Window>> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let port = listener.local_addr()?.port();
    let _accepting = Accepting::start(listener)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (sender, mut reports) = mpsc::channel(4096);
        let mut prober = Prober::new(sender);
        prober.set_targets(
            (0..load.backends)
                .map(|number| target(number, port, load.interval))
                .collect(),
        );
        // Until the first rounds have spread.
        let settled = Instant::now() + 2 * load.interval + Duration::from_secs(1);
        let mut starts = HashMap::new();
        let mut windows = Vec::new();
        while windows.len() < runs {
            let (began, used_before) = (Instant::now(), used()?);
            let (mut latest, mut failed, mut why) = (Duration::ZERO, 0, None);
            while began.elapsed() < load.window {
                let report = reports.recv().await.context("the prober lives")?;
                if report.result.code.passed() != Some(true) {
                    failed += 1;
                    why = Some(report.result);
                }
                if let Some(before) = starts.insert(report.id, report.started) {
                    latest = latest.max((report.started - before).saturating_sub(load.interval));
                }
            }
            if began < settled {
                continue;
            }
            ensure!(failed == 0, "{failed} probes failed, the last with {why:?}");
            let share = 100.0 * (used()? - used_before).as_secs_f64() / began.elapsed().as_secs_f64();
            windows.push(Window { share, latest });
        }
        Ok(windows)
    })
}

/// Takes what connects out of the queue, on a thread of its own.
struct Accepting {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Accepting {
    fn start(listener: TcpListener) -> anyhow::Result<Self> {
        listener.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&stop);
        let thread = thread::Builder::new().name("accept".into()).spawn(move || {
            while !until.load(Ordering::Relaxed) {
                while listener.accept().is_ok() {}
                thread::sleep(Duration::from_millis(1));
            }
        })?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Accepting {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Processor time of this thread.
fn used() -> anyhow::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_THREAD)?;
    let micros = (usage.user_time() + usage.system_time()).num_microseconds();
    Ok(Duration::from_micros(u64::try_from(micros)?))
}

/// A backend on an address of its own in 127.0.0.0/8.
fn target(number: u32, port: u16, interval: Duration) -> Target {
    let address = IpAddr::V4(Ipv4Addr::from_bits(0x7f01_0000 + number));
    Target {
        id: BackendId {
            service: ServiceKey {
                address: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10)),
                port: 80,
                protocol: Protocol::Tcp,
            },
            address,
            port,
        },
        address,
        port,
        forward: Forward::DsrL2,
        check: CheckSpec {
            passive: true,
            probes: vec![ProbeSpec {
                kind: CheckKind::Tcp,
                address: None,
                port: None,
                source: None,
                via: Via::Direct,
            }],
            require: Require::All,
            policy: Policy {
                interval,
                timeout: interval.min(Duration::from_secs(1)),
                fast_interval: Duration::from_millis(50).min(interval),
                fast_timeout: Duration::from_millis(100).min(interval),
                down_interval: None,
                rise: 2,
                fall: 3,
                jitter_percent: 10,
            },
        },
        previous: None,
    }
}
