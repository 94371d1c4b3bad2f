//! What probing costs: so many backends probed by TCP, the share of a core that it takes, and how late probes start.
//! Through the forward path, as it is by default: the backends are one host of a lab. Straight: over loopback, which makes
//! the prober pay for the backends' side of the handshake too: the kernel runs it where the SYN is sent.
//!
//! Where others *misbehave*, so many more backends take requests and answer nothing, or answer without end.
//!
//! The prober runs on a thread of its own, whose processor time counts. A probe is late by how much longer than its
//! interval (without jitter) the time from the start of the one before it was.

use std::collections::HashMap;
use std::io::{ErrorKind, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::sys::time::TimeValLike as _;
use tokio::sync::{mpsc, watch};
use xlb::config::{self, Require, Via};
use xlb::health::prober::Network;
use xlb::health::{CheckKind, CheckSpec, Forwarder, HttpCheck, Policy, ProbeSpec, Prober, Target};
use xlb::model::{BackendId, Forward, Protocol, ServiceKey};
use xlb::net::{NextHops, resolver::resolve_once};

use super::Table;
use crate::lab::{Lab, LabOptions, VIPS_V4};

/// So many backends, and how often each is probed.
#[derive(Clone, Copy)]
pub struct Load {
    pub backends: u32,
    pub interval: Duration,
    /// How long one run looks.
    pub window: Duration,
    pub via: Via,
    /// So many more that hang, and as many that flood.
    pub misbehaving: u32,
}

const PORT: u16 = 80;
const HANGS: u16 = 81;
const FLOODS: u16 = 82;

/// No probe starts later than this.
pub const LATEST: Duration = Duration::from_millis(100);
/// Per cent of a core.
const SHARE: f64 = 20.0;

/// # Errors
/// Where a probe fails: the load is too much for this machine.
pub fn measure(load: Load, runs: usize, table: &mut Table) -> anyhow::Result<()> {
    let windows = windows(load, runs)?;
    let others = match load.misbehaving {
        0 => String::new(),
        n => format!(", {n} others hang and {n} flood"),
    };
    let group = format!(
        "{} backends probed every {} ms, {}{others}",
        load.backends,
        load.interval.as_millis(),
        match load.via {
            Via::Direct => "straight",
            Via::Forward | Via::Auto => "through the forward path",
        }
    );
    for Window { share, latest } in windows {
        table.note(&group, "processor", "% of a core", share);
        table.ms(&group, "latest probe of a run", latest);
        if latest > LATEST {
            table.fault(format!("{group}: a probe was {} ms late", latest.as_millis()));
        }
    }
    // The share is promised of TCP probes; what reading floods takes is shown.
    if load.misbehaving == 0 {
        table.promise(&group, "processor", SHARE);
    }
    Ok(())
}

/// What so many looks at a prober saw.
///
/// # Errors
/// Where a probe fails: the load is too much for this machine.
pub fn windows(load: Load, runs: usize) -> anyhow::Result<Vec<Window>> {
    let lab = Lab::new(LabOptions {
        backends: 1,
        ..LabOptions::default()
    })?;
    let (probing, serving) = match load.via {
        // Nothing else of this machine follows so many connections.
        Via::Direct => (lab.lb.netns.clone(), lab.lb.netns.clone()),
        Via::Forward | Via::Auto => (lab.lb.netns.clone(), lab.backends[0].netns.clone()),
    };
    let host = lab.backends[0].v4;
    let measured = thread::spawn(move || {
        let _servers = serving.enter(|| Servers::start(&[PORT]))?;
        let others: &[u16] = if load.misbehaving > 0 {
            &[HANGS, FLOODS]
        } else {
            &[]
        };
        let _others = probing.enter(|| Servers::start(others))?;
        probing.move_in()?;
        probe(load, host, runs)
    });
    measured.join().map_err(|_| anyhow!("the prober panicked"))?
}

/// One look.
pub struct Window {
    /// Of a core, in per cent.
    pub share: f64,
    /// How late the latest probe began.
    pub latest: Duration,
}

fn probe(load: Load, host: Ipv4Addr, runs: usize) -> anyhow::Result<Vec<Window>> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (sender, mut reports) = mpsc::channel(4096);
        let mut targets: Vec<Target> = (0..load.backends)
            .map(|number| target(number, load.via, PORT, CheckKind::Tcp, load.interval))
            .collect();
        let page = CheckKind::Http(Arc::new(page()));
        for n in 0..2 * load.misbehaving {
            let port = if n % 2 == 0 { HANGS } else { FLOODS };
            let number = load.backends + n;
            targets.push(target(number, Via::Direct, port, page.clone(), load.interval));
        }
        let next_hop = resolve_once([host.into()].into()).await;
        let hop = next_hop.get(&host.into()).context("a next hop")?;
        let hops: NextHops = targets
            .iter()
            .map(|target| (target.address, hop.clone()))
            .collect();
        let (_keep, hops) = watch::channel(Arc::new(hops));
        let network = Network {
            forwarder: Some(Arc::new(Forwarder::new(hops))),
        };
        let mut prober = Prober::with_network(network, sender);
        prober.set_targets(targets);
        // Until the first rounds have spread.
        let settled = Instant::now() + 2 * load.interval + Duration::from_secs(1);
        let mut starts = HashMap::new();
        let mut windows = Vec::new();
        while windows.len() < runs {
            let (began, used_before) = (Instant::now(), used()?);
            let (mut latest, mut failed, mut why) = (Duration::ZERO, 0, None);
            while began.elapsed() < load.window {
                let report = reports.recv().await.context("the prober lives")?;
                if report.id.port != PORT {
                    continue;
                }
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

/// Takes what connects to the backends out of the queue; hangs and floods on other ports. A thread each.
struct Servers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Servers {
    /// In the namespace of the thread.
    fn start(ports: &[u16]) -> anyhow::Result<Self> {
        let mut servers = Self {
            stop: Arc::default(),
            threads: Vec::new(),
        };
        for port in ports {
            let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, *port))?;
            listener.set_nonblocking(true)?;
            let stop = Arc::clone(&servers.stop);
            let name = format!("port {port}");
            let thread = thread::Builder::new().name(name).spawn({
                let port = *port;
                move || serve(&listener, port, &stop)
            })?;
            servers.threads.push(thread);
        }
        Ok(servers)
    }
}

fn serve(listener: &TcpListener, port: u16, stop: &AtomicBool) {
    let mut open: Vec<TcpStream> = Vec::new();
    let more = [&b"HTTP/1.1 200 OK\r\n\r\n"[..], &[b'x'; 8192]].concat();
    while !stop.load(Ordering::Relaxed) {
        while let Ok((stream, _)) = listener.accept() {
            if port != PORT && stream.set_nonblocking(true).is_ok() {
                open.push(stream);
            }
        }
        // Those that the prober has closed fail.
        open.retain_mut(|stream| match port {
            FLOODS => !matches!(stream.write(&more), Err(error) if error.kind() != ErrorKind::WouldBlock),
            _ => {
                !matches!(stream.peek(&mut [0]), Ok(0))
                    && stream.take_error().is_ok_and(|error| error.is_none())
            }
        });
        if open.len() > 4096 {
            open.drain(..2048);
        }
        thread::sleep(Duration::from_millis(1));
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// What those are asked that misbehave: whether it comes is seen at the end of the body only.
fn page() -> HttpCheck {
    HttpCheck::of(&config::HttpCheck {
        expect_body: Some("never".into()),
        ..config::HttpCheck::default()
    })
}

/// Processor time of this thread.
fn used() -> anyhow::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_THREAD)?;
    let micros = (usage.user_time() + usage.system_time()).num_microseconds();
    Ok(Duration::from_micros(u64::try_from(micros)?))
}

/// A backend on an address of its own in 127.0.0.0/8: with probes through the forward path it stands for a host.
fn target(number: u32, via: Via, port: u16, kind: CheckKind, interval: Duration) -> Target {
    let address = IpAddr::V4(Ipv4Addr::from_bits(0x7f01_0000 + number));
    Target {
        id: BackendId {
            service: ServiceKey {
                address: VIPS_V4[0].into(),
                port: PORT,
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
                kind,
                address: None,
                port: None,
                source: None,
                via,
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
