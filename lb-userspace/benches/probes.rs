//! What probing costs: so many backends probed by TCP over loopback, the share of a core that it takes, and how late
//! probes start.
//!
//! `cargo bench -p lb-userspace --bench probes -- [BACKENDS INTERVAL_MS SECONDS]...`, by default 1000 backends every
//! 200 ms and 10,000 every 2 s, for 10 s each. Loopback makes the prober pay for the backends' side of the handshake too:
//! the kernel runs it where the SYN is sent.
//!
//! The prober runs on a thread of its own, whose processor time is what is printed. A probe is late by how much longer
//! than its interval (without jitter) the time from the start of the one before it was.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::sys::time::TimeValLike as _;
use tokio::sync::mpsc;
use xlb::config::{Require, Via};
use xlb::health::{CheckKind, CheckSpec, Policy, ProbeSpec, Prober, Report, Target};
use xlb::model::{BackendId, Forward, Protocol, ServiceKey};

#[derive(Clone, Copy)]
struct Load {
    backends: u32,
    interval: Duration,
    measured_for: Duration,
}

fn main() {
    let arguments: Vec<u64> = std::env::args().filter_map(|word| word.parse().ok()).collect();
    // Without it, as `cargo test` calls: only that it works.
    let measuring = std::env::args().any(|word| word == "--bench");
    let loads = match arguments.as_slice() {
        [] if !measuring => vec![load(50, 100, 1)],
        [] => vec![load(1000, 200, 10), load(10_000, 2000, 10)],
        numbers => numbers
            .chunks_exact(3)
            .map(|numbers| load(numbers[0] as u32, numbers[1], numbers[2]))
            .collect(),
    };
    raise_limit();
    for load in loads {
        measure(load);
    }
}

fn load(backends: u32, interval_ms: u64, seconds: u64) -> Load {
    Load {
        backends,
        interval: Duration::from_millis(interval_ms),
        measured_for: Duration::from_secs(seconds),
    }
}

fn measure(load: Load) {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a port");
    let port = listener.local_addr().expect("a bound socket").port();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
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
        while Instant::now() < settled {
            let report = reports.recv().await.expect("the prober lives");
            starts.insert(report.id, report.started);
        }
        let (began, used_before) = (Instant::now(), used());
        let mut seen = Seen::default();
        while began.elapsed() < load.measured_for {
            let report = reports.recv().await.expect("the prober lives");
            seen.take(&report, &mut starts, load.interval);
        }
        let share = 100.0 * (used() - used_before).as_secs_f64() / began.elapsed().as_secs_f64();
        seen.print(load, share, began.elapsed());
    });
}

#[derive(Default)]
struct Seen {
    failed: u64,
    late: Vec<Duration>,
    latencies: Vec<Duration>,
}

impl Seen {
    fn take(&mut self, report: &Report, starts: &mut HashMap<BackendId, Instant>, interval: Duration) {
        self.failed += u64::from(report.result.code.passed() != Some(true));
        self.latencies.push(report.result.latency);
        if let Some(before) = starts.insert(report.id, report.started) {
            self.late.push((report.started - before).saturating_sub(interval));
        }
    }

    fn print(mut self, load: Load, share: f64, elapsed: Duration) {
        self.late.sort_unstable();
        self.latencies.sort_unstable();
        let probes = self.latencies.len();
        println!(
            "{} backends every {:?}: {:.0} probes/s, {} failed, {share:.1} % of a core, {:.1} us a probe",
            load.backends,
            load.interval,
            probes as f64 / elapsed.as_secs_f64(),
            self.failed,
            share * 1e4 * elapsed.as_secs_f64() / probes.max(1) as f64,
        );
        println!(
            "  late: median {:?}, 99 % {:?}, 99.9 % {:?}, worst {:?}",
            quantile(&self.late, 0.5),
            quantile(&self.late, 0.99),
            quantile(&self.late, 0.999),
            quantile(&self.late, 1.0)
        );
        println!(
            "  latency: median {:?}, 99 % {:?}, worst {:?}",
            quantile(&self.latencies, 0.5),
            quantile(&self.latencies, 0.99),
            quantile(&self.latencies, 1.0)
        );
    }
}

fn quantile(sorted: &[Duration], share: f64) -> Duration {
    let index = (sorted.len() as f64 * share) as usize;
    sorted
        .get(index.min(sorted.len().saturating_sub(1)))
        .copied()
        .unwrap_or_default()
}

/// Processor time of this thread.
fn used() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).expect("the kernel tells");
    let micros = (usage.user_time() + usage.system_time()).num_microseconds();
    Duration::from_micros(u64::try_from(micros).unwrap_or_default())
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

fn raise_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
