//! `connections`: new TCP connections a second, requests a second over connections that stay, and how long they take:
//! through the load balancer, without any, and through the alternatives, all in one network.
//!
//! ```text
//!   client (wrk) ─┐          ┌─ b1 (nginx)
//!                 ├─ switch ─┤
//!   lb ───────────┘          └─ b2 (nginx)
//! ```
//!
//! All arms take turns. Without a load balancer the client's own route has both backends as next hops. Answers come
//! straight from the backend in `dsr-l2`, IPVS and without a load balancer; through the load balancer elsewhere.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use clap::Args;
use xlb::model::Forward;

use super::installed;
use super::result::{Better, Fact, PartResult, Row};
use super::rows::Rows;
use crate::agent::Agent;
use crate::cleanup::Folder;
use crate::config::{Config, Family, Service};
use crate::lab::{Host, Lab, LabOptions, VIPS_V4};
use crate::netns::run as run_command;
use crate::process::Process;
use crate::wait::wait_for;

/// How much of it.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// How often each arm takes its turn.
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// How long a turn takes, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 1)]
    seconds: u32,
}

/// Through what a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arm {
    Nothing,
    Ours,
    OursNat,
    Nftables,
    Haproxy,
    NginxStream,
    Ipvs,
}

const STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";
/// The service addresses of those that are routed to.
const DIRECT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 50);
const NATTED: Ipv4Addr = VIPS_V4[2];
const IPVS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 40);

/// The share of what goes without a load balancer that is promised, at the lower end of the confidence interval.
const GOAL: f64 = 0.93;
/// Turns of no load balancer and of ours, one right after the other, in each round: what is promised of their ratio needs
/// more of them than a comparison with others does.
const PAIRS: usize = 6;
const IN_A_PAIR: &str = ", in a pair";
const CONNECTIONS: u32 = 64;
/// Another one than nftables translates to: backends would see the same addresses and ports from both, and refuse what
/// looks like an old connection's.
const NAT_PORT: u16 = 81;

/// Whom we promise to be ahead of, mode by mode: whose answers go straight to the client against all, what answers through
/// the load balancer against its like.
const RIVALS: &[(Arm, &[Arm])] = &[
    (
        Arm::Ours,
        &[Arm::Nftables, Arm::Haproxy, Arm::NginxStream, Arm::Ipvs],
    ),
    (Arm::OursNat, &[Arm::Nftables, Arm::Haproxy, Arm::NginxStream]),
];

impl Arm {
    const ALL: [Self; 7] = [
        Self::Nothing,
        Self::Ours,
        Self::OursNat,
        Self::Nftables,
        Self::Haproxy,
        Self::NginxStream,
        Self::Ipvs,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "no load balancer",
            Self::Ours => "xlb, dsr-l2",
            Self::OursNat => "xlb, nat",
            Self::Nftables => "nftables DNAT",
            Self::Haproxy => "HAProxy, TCP",
            Self::NginxStream => "nginx stream",
            Self::Ipvs => "IPVS, direct routing",
        }
    }

    fn missing(self) -> Option<String> {
        let without = |program: &str| (!installed(program)).then(|| format!("{program} is not installed"));
        match self {
            Self::Nothing | Self::Ours | Self::OursNat => None,
            Self::Nftables => without("nft"),
            Self::Haproxy => without("haproxy"),
            Self::NginxStream => (!Path::new(STREAM_MODULE).is_file())
                .then(|| format!("{STREAM_MODULE} is not there (package libnginx-mod-stream)")),
            Self::Ipvs => without("ipvsadm").or_else(|| {
                let _ = Command::new("modprobe").args(["-q", "ip_vs"]).status();
                (!Path::new("/proc/net/ip_vs").exists())
                    .then(|| "this kernel has no IPVS (/proc/net/ip_vs)".into())
            }),
        }
    }

    fn url(self, lb: &Host) -> String {
        match self {
            Self::Nothing => format!("http://{DIRECT}/"),
            Self::Ours => format!("http://{}/", VIPS_V4[0]),
            Self::OursNat => format!("http://{}:{NAT_PORT}/", VIPS_V4[1]),
            Self::Nftables => format!("http://{NATTED}/"),
            Self::Haproxy => format!("http://{}:8001/", lb.v4),
            Self::NginxStream => format!("http://{}:8002/", lb.v4),
            Self::Ipvs => format!("http://{IPVS}/"),
        }
    }
}

/// What is counted.
const NEW: &str = "new connections";
const STAY: &str = "requests over connections that stay";

/// Everything that runs; dropped from the top.
struct Scene {
    _proxies: Vec<Process>,
    _agent: Agent,
    _servers: Vec<Process>,
    lab: Lab,
    folder: Arc<Folder>,
}

/// Measures.
///
/// # Errors
/// Where something cannot be set up, or an arm does not answer.
pub fn run(quick: bool, options: &Options) -> anyhow::Result<PartResult> {
    for program in ["wrk", "nginx"] {
        ensure!(
            installed(program),
            "{program} is not installed, which this part needs: cargo xtask setup, or apt-get install {program}"
        );
    }
    let rounds = options.rounds.unwrap_or(if quick { 2 } else { 20 });
    let mut arms = Vec::new();
    let mut skipped = Vec::new();
    for arm in Arm::ALL {
        match arm.missing() {
            None => arms.push(arm),
            Some(why) => skipped.push(format!("{}: {why}", arm.name())),
        }
    }
    for line in &skipped {
        println!("  skipped: {line}");
    }
    let scene = Scene::set_up(&arms)?;
    let mut rows = Rows::default();
    for round in 0..rounds {
        for turn in 0..arms.len() {
            let arm = arms[(turn + round) % arms.len()];
            scene.turn(arm, true)?;
            for (group, close) in [(NEW, true), (STAY, false)] {
                let Measured {
                    per_s,
                    p50_ms,
                    p99_ms,
                } = scene.wrk(arm, close, options.seconds)?;
                let name = arm.name();
                rows.note(group, name, "/s", Better::Higher, per_s);
                rows.note(group, format!("{name}, half take"), "ms", Better::Lower, p50_ms);
                let name = format!("{name}, 99 of 100 take");
                rows.note(group, name, "ms", Better::Lower, p99_ms);
            }
            scene.turn(arm, false)?;
        }
        for pair in 0..PAIRS {
            let mut arms = [Arm::Nothing, Arm::Ours];
            arms.rotate_left((round + pair) % 2);
            for arm in arms {
                let measured = scene.wrk(arm, true, options.seconds)?;
                let name = arm.name().to_owned() + IN_A_PAIR;
                rows.note(NEW, name, "/s", Better::Higher, measured.per_s);
            }
        }
        eprint!("\r  round {} of {rounds}", round + 1);
    }
    eprintln!();
    let wrong = scene.lab.checksum_errors()? + scene.lab.tx_errors()?;
    Ok(result(rounds, options.seconds, rows.finish(), wrong, skipped))
}

impl Scene {
    fn set_up(arms: &[Arm]) -> anyhow::Result<Self> {
        let mut lab = Lab::new(LabOptions {
            backends: 2,
            ..LabOptions::default()
        })?;
        lab.switch_by_xdp()?;
        let folder = Arc::new(Folder::new("connections")?);
        let (lb, client) = (&lab.lb, &lab.client);
        let mut servers = Vec::new();
        for backend in &lab.backends {
            backend.netns.ip(&format!(
                "addr add {DIRECT}/32 dev lo\naddr add {IPVS}/32 dev lo\n"
            ))?;
            // What was sent to its own address is answered through the load balancer, which knows whose it was.
            backend.netns.ip(&format!(
                "route add {} via {} table 100\nrule add from {} to {} lookup 100\n",
                client.v4, lb.v4, backend.v4, client.v4
            ))?;
            backend.netns.sysctl("net/core/somaxconn", "4096")?;
            let name = format!("{}-nginx", backend.name);
            servers.push(nginx(
                backend,
                &name,
                include_str!("alternatives/backend-nginx.conf"),
                &folder,
            )?);
        }
        let [b1, b2] = &lab.backends[..] else {
            bail!("two backends")
        };
        client.netns.sysctl("net/ipv4/fib_multipath_hash_policy", "1")?;
        client.netns.ip(&format!(
            "route add {DIRECT} nexthop via {} nexthop via {}\n",
            b1.v4, b2.v4
        ))?;
        for (variable, value) in [
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv4/conf/all/send_redirects", "0"),
            ("net/ipv4/conf/eth0/send_redirects", "0"),
            ("net/ipv4/ip_local_port_range", "1024 65000"),
            ("net/ipv4/tcp_tw_reuse", "1"),
            ("net/core/somaxconn", "4096"),
        ] {
            lb.netns.sysctl(variable, value)?;
        }
        let service = |name, address: Ipv4Addr, port, forward| Service {
            port,
            check: "type = \"tcp\"\n".into(),
            ..Service::http(name, address.into(), forward, Family::V4, &lab.backends)
        };
        let config = Config {
            services: vec![
                service("web", VIPS_V4[0], 80, Forward::DsrL2),
                service("translated", VIPS_V4[1], NAT_PORT, Forward::Nat),
            ],
            ..Config::default()
        };
        let agent = Agent::running(&lb.netns, &config)?;
        agent.wait_serving(|_| true)?;
        let mut proxies = Vec::new();
        if arms.contains(&Arm::Haproxy) {
            let file = folder.file("haproxy.cfg");
            fs::write(&file, include_str!("alternatives/haproxy-tcp.cfg"))?;
            let mut command = lb.netns.command("haproxy");
            proxies.push(Process::spawn(
                "haproxy",
                command.arg("-db").arg("-f").arg(file),
                &folder,
            )?);
        }
        if arms.contains(&Arm::NginxStream) {
            proxies.push(nginx(
                lb,
                "nginx-stream",
                include_str!("alternatives/nginx-stream.conf"),
                &folder,
            )?);
        }
        Ok(Self {
            _proxies: proxies,
            _agent: agent,
            _servers: servers,
            lab,
            folder,
        })
    }

    /// Begins or ends an arm's turn: what would be in the way of others is there only then.
    fn turn(&self, arm: Arm, begins: bool) -> anyhow::Result<()> {
        let lb = &self.lab.lb.netns;
        match (arm, begins) {
            (Arm::Nftables, true) => {
                let file = self.folder.file("nftables.nft");
                fs::write(&file, include_str!("alternatives/nftables.nft"))?;
                lb.run(&format!("nft -f {}", file.display()))?;
                // A connection that is over must not keep its ports from the next.
                for (timeout, seconds) in [
                    ("time_wait", "1"),
                    ("close", "1"),
                    ("last_ack", "1"),
                    ("close_wait", "1"),
                ] {
                    lb.sysctl(
                        &format!("net/netfilter/nf_conntrack_tcp_timeout_{timeout}"),
                        seconds,
                    )?;
                }
            }
            (Arm::Nftables, false) => drop(lb.run("nft delete table ip lb")?),
            (Arm::Ipvs, true) => {
                lb.ip(&format!("addr replace {IPVS}/32 dev lo\n"))?;
                lb.run(&format!("ipvsadm -A -t {IPVS}:80 -s rr"))?;
                for backend in &self.lab.backends {
                    lb.run(&format!("ipvsadm -a -t {IPVS}:80 -r {}:80 -g", backend.v4))?;
                }
            }
            (Arm::Ipvs, false) => drop(lb.run("ipvsadm -C")?),
            _ => {}
        }
        if begins {
            let url = arm.url(&self.lab.lb);
            wait_for(arm.name(), || {
                self.lab.client.netns.run(&format!(
                    "curl --silent --fail --max-time 1 --output /dev/null {url}"
                ))
            })?;
        }
        Ok(())
    }

    fn wrk(&self, arm: Arm, close: bool, seconds: u32) -> anyhow::Result<Measured> {
        let mut command = self.lab.client.netns.command("wrk");
        command.args(["--threads", "1", "--latency", "--timeout", "2s", "--connections"]);
        command
            .arg(CONNECTIONS.to_string())
            .arg("--duration")
            .arg(format!("{seconds}s"));
        if close {
            command.args(["--header", "Connection: close"]);
        }
        let text = run_command(command.arg(arm.url(&self.lab.lb)))?;
        let measured = Measured::read(&text).with_context(|| format!("what wrk said:\n{text}"))?;
        ensure!(
            !text.contains("Non-2xx"),
            "{}: wrong answers:\n{text}",
            arm.name()
        );
        Ok(measured)
    }
}

fn nginx(host: &Host, name: &str, text: &str, folder: &Arc<Folder>) -> anyhow::Result<Process> {
    let file = folder.file(&format!("{name}.conf"));
    let own = format!(
        "pid {}/{name}.pid;\nerror_log stderr crit;\n",
        folder.path().display()
    );
    fs::write(&file, own + text)?;
    let mut command = host.netns.command("nginx");
    command.arg("-p").arg(folder.path()).arg("-c").arg(file);
    Process::spawn(name, &mut command, folder)
}

/// What wrk said.
#[derive(Debug, PartialEq)]
struct Measured {
    per_s: f64,
    p50_ms: f64,
    p99_ms: f64,
}

impl Measured {
    fn read(text: &str) -> Option<Self> {
        let after = |name: &str| {
            let line = text.lines().find_map(|line| line.trim().strip_prefix(name))?;
            line.split_whitespace().next()
        };
        Some(Self {
            per_s: after("Requests/sec:")?.parse().ok()?,
            p50_ms: milliseconds(after("50%")?)?,
            p99_ms: milliseconds(after("99%")?)?,
        })
    }
}

/// `812.00us`, `1.23ms`, `1.02s`.
fn milliseconds(text: &str) -> Option<f64> {
    let digits = text.trim_end_matches(char::is_alphabetic);
    let factor = match &text[digits.len()..] {
        "us" => 0.001,
        "ms" => 1.0,
        "s" => 1000.0,
        _ => return None,
    };
    Some(digits.parse::<f64>().ok()? * factor)
}

/// The lower end of the 95 % confidence interval of a median, by order statistics: no distribution is assumed. The least
/// of the samples where they are too few for one.
fn lower_end(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    // P(at most k of n below the median), n times a fair coin.
    let n = sorted.len() as i32;
    let (mut probability, mut sum, mut place) = (0.5_f64.powi(n), 0.0, 0);
    for k in 0..n {
        sum += probability;
        if sum > 0.025 {
            break;
        }
        place = k;
        probability *= f64::from(n - k) / f64::from(k + 1);
    }
    sorted.get(place as usize).copied()
}

fn result(rounds: usize, seconds: u32, mut rows: Vec<Row>, wrong: u64, skipped: Vec<String>) -> PartResult {
    let mut faults = Vec::new();
    let mut ratios = Vec::new();
    for group in [NEW, STAY] {
        let named = |name: &str| rows.iter().find(|row| row.group == group && row.name == name);
        let of = |arm: Arm| named(arm.name());
        let pair = |arm: Arm| named(&(arm.name().to_owned() + IN_A_PAIR)).or(of(arm));
        let (Some(none), Some(ours)) = (pair(Arm::Nothing), pair(Arm::Ours)) else {
            continue;
        };
        let samples: Vec<f64> = ours
            .samples
            .iter()
            .zip(&none.samples)
            .map(|(a, b)| a / b)
            .collect();
        let lower = lower_end(&samples).unwrap_or_default();
        if group == NEW && lower < GOAL {
            faults.push(format!(
                "{group}: at the lower end {lower:.3} of what goes without a load balancer, {GOAL} were promised"
            ));
        }
        let row = |name: &str, samples| Row {
            group: group.into(),
            name: name.into(),
            unit: String::new(),
            better: Better::Higher,
            samples,
        };
        for (ours, others) in RIVALS {
            for (ours, other) in others.iter().filter_map(|other| Some((of(*ours)?, of(*other)?))) {
                let samples: Vec<f64> = ours
                    .samples
                    .iter()
                    .zip(&other.samples)
                    .map(|(a, b)| a / b)
                    .collect();
                let row = row(&format!("{}, ratio to {}", ours.name, other.name), samples);
                let median = row.spread().map_or(f64::NAN, |spread| spread.median);
                if median <= 1.0 {
                    faults.push(format!("{group}: {} at {median:.3} of {}", ours.name, other.name));
                }
                ratios.push(row);
            }
        }
        ratios.push(row("xlb, ratio to no load balancer", samples));
        ratios.push(row(
            "xlb, ratio, lower end of the interval of the median",
            vec![lower],
        ));
    }
    rows.extend(ratios);
    if wrong > 0 {
        faults.push(format!(
            "{wrong} packets were damaged or lost by the network itself"
        ));
    }
    let fact = |name: &str, value: String| Fact {
        name: name.into(),
        value,
    };
    let mut setting = vec![
        fact("rounds", rounds.to_string()),
        fact(
            "a turn",
            format!("{seconds} s, {CONNECTIONS} connections at once, one thread of wrk"),
        ),
        fact("backends", "2, nginx, a few bytes as the answer".into()),
        fact(
            "interval",
            format!(
                "of the median of the ratios, 95 %, by order statistics; of new connections from {PAIRS} pairs of turns a \
                 round, one right after the other and in changing order"
            ),
        ),
    ];
    setting.extend(skipped.into_iter().map(|line| fact("skipped", line)));
    PartResult {
        part: "connections".into(),
        setting,
        rows,
        faults,
        ..PartResult::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrk_is_understood() {
        let text = "Running 1s test @ http://192.0.2.10/\n  Thread Stats   Avg      Stdev     Max   +/- Stdev\n  \
                    Latency Distribution\n     50%  812.00us\n     75%    1.10ms\n     90%    2.00ms\n     99%    1.02s \n  \
                    15000 requests in 1.00s, 2.00MB read\nRequests/sec:  14990.51\nTransfer/sec:      2.00MB\n";
        let expected = Measured {
            per_s: 14_990.51,
            p50_ms: 0.812,
            p99_ms: 1020.0,
        };
        assert_eq!(Measured::read(text), Some(expected));
        assert_eq!(Measured::read("unable to connect"), None);
    }

    /// The table of the sign test: of 20 the sixth, of 30 the tenth.
    #[test]
    fn the_lower_end_is_the_order_statistic_of_the_sign_test() {
        let samples = |n: u32| (1..=n).map(f64::from).collect::<Vec<_>>();
        assert_eq!(lower_end(&samples(20)), Some(6.0));
        assert_eq!(lower_end(&samples(30)), Some(10.0));
        assert_eq!(lower_end(&samples(3)), Some(1.0));
        assert_eq!(lower_end(&[]), None);
    }
}
