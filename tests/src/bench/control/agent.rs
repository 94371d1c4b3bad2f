//! The real agent in a network: started, adopting, idle, and a hundred services that change at one instant.

use std::fs;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, ensure};
use xlb::api::client::Client;
use xlb::model::{Forward, Protocol};
use xlb::observe::{Event, Kind, Timestamp};

use super::Table;
use crate::agent::Agent;
use crate::bench::failover::arena::{Arena, Death, PORT, Pool};
use crate::config::{Backend, Config, FAST_CHECK, Service};
use crate::lab::VIPS_V4;
use crate::wait::wait_for;

/// # Errors
/// Where the network or the agent does not come up.
pub fn measure(runs: usize, quick: bool, table: &mut Table) -> anyhow::Result<()> {
    let mut arena = Arena::set_up(100)?;
    start(&arena, runs, table)?;
    idle(&arena, runs, if quick { 1 } else { 6 }, table)?;
    together(&mut arena, runs, table)
}

fn service(name: String, port: u16, check: &str, addresses: &[std::net::Ipv4Addr]) -> Service {
    Service {
        name,
        address: VIPS_V4[0].into(),
        port,
        protocol: Protocol::Tcp,
        forward: Forward::DsrL2,
        more: String::new(),
        check: check.into(),
        backends: addresses
            .iter()
            .map(|address| Backend {
                address: (*address).into(),
                weight: 1,
            })
            .collect(),
    }
}

fn hundred(arena: &Arena, check: &str) -> Config {
    Config {
        services: vec![service(
            "web".into(),
            PORT,
            check,
            &arena.backends(Pool::Many)[1..],
        )],
        ..Config::default()
    }
}

/// Fresh, and where an agent was killed.
fn start(arena: &Arena, runs: usize, table: &mut Table) -> anyhow::Result<()> {
    const GROUP: &str = "the agent, 100 backends";
    let config = hundred(arena, "type = \"tcp\"\n");
    for _ in 0..runs {
        let mut agent = Agent::new(&arena.lab.lb.netns)?;
        agent.configure(&config)?;
        for (whole, after) in [
            (
                "started, from exec to forwarding",
                "started, from its last first check to forwarding",
            ),
            (
                "adopting after SIGKILL, from exec to ready",
                "adopting, from its last first check to ready",
            ),
        ] {
            let seen = events(&agent).map_or(0, |events| events.last().map_or(0, |event| event.seq));
            let begun = SystemTime::now();
            agent.launch(&[])?;
            let events = wait_for("the agent to be ready", || {
                let events = events(&agent)?;
                let fresh = events
                    .into_iter()
                    .filter(|event| event.time >= Timestamp::of(begun));
                let fresh: Vec<Event> = fresh.filter(|event| event.seq > seen).collect();
                ensure!(
                    fresh.iter().any(|event| event.kind == Kind::AgentReady),
                    "not yet"
                );
                Ok(fresh)
            })?;
            let ready = events
                .iter()
                .rev()
                .find(|event| matches!(event.kind, Kind::AgentReady | Kind::Attached { .. }));
            let ready = ready.context("an event")?.time;
            table.ms(GROUP, whole, ready.since(Timestamp::of(begun)));
            let checked = events
                .iter()
                .filter(|event| matches!(event.kind, Kind::BackendState { .. }));
            if let Some(last) = checked.map(|event| event.time).max() {
                table.ms(GROUP, after, ready.since(last));
            }
            agent.kill()?;
        }
    }
    table.promise(GROUP, "started, from its last first check to forwarding", 300.0);
    table.promise(GROUP, "adopting after SIGKILL, from exec to ready", 300.0);
    Ok(())
}

/// What the agent costs while nothing happens, with and without checks.
fn idle(arena: &Arena, runs: usize, seconds: u64, table: &mut Table) -> anyhow::Result<()> {
    const GROUP: &str = "the agent idle, 100 backends";
    for (check, name) in [
        ("type = \"none\"\n", "without checks"),
        ("type = \"tcp\"\n", "a check every 2 s"),
    ] {
        let agent = Agent::running(&arena.lab.lb.netns, &hundred(arena, check))?;
        // After the start the flow table is swept, and interfaces are watched for a while.
        thread::sleep(Duration::from_secs(3));
        for _ in 0..runs {
            let (begun, before) = (Instant::now(), processor_time(agent.process()?.pid())?);
            thread::sleep(Duration::from_secs(seconds));
            let used = processor_time(agent.process()?.pid())? - before;
            let share = 100.0 * used.as_secs_f64() / begun.elapsed().as_secs_f64();
            table.note(GROUP, name, "% of a core", share);
        }
    }
    table.promise(GROUP, "without checks", 0.5);
    Ok(())
}

/// A backend that a hundred services share dies.
fn together(arena: &mut Arena, runs: usize, table: &mut Table) -> anyhow::Result<()> {
    const GROUP: &str = "a backend that 100 services share dies";
    const SERVICES: u16 = 100;
    let addresses = arena.backends(Pool::One);
    // Of one pool: probed once, so that one verdict changes all of them.
    let services = (0..SERVICES).map(|n| Service {
        more: "pool = \"shared\"\n".into(),
        ..service(format!("s{n}"), 1000 + n, "", &[])
    });
    let members: String = addresses
        .iter()
        .map(|address| format!("[[pool.backend]]\naddress = \"{address}\"\n"))
        .collect();
    let config = Config {
        check: format!(
            "{FAST_CHECK}[[pool]]\nname = \"shared\"\n[pool.check]\ntype = \"tcp\"\nport = {PORT}\nvia = \"direct\"\n{members}"
        ),
        services: services.collect(),
        ..Config::default()
    };
    let agent = Agent::running(&arena.lab.lb.netns, &config)?;
    agent.wait_serving(|_| true)?;
    for _ in 0..runs {
        let seen = events(&agent)?.last().map_or(0, |event| event.seq);
        arena.die(Pool::One, Death::Refused)?;
        let times = wait_for("all tables to be switched", || {
            let all = events(&agent)?;
            let switched = all.into_iter().filter(|event| event.seq > seen);
            let times: Vec<Timestamp> = switched
                .filter(|event| matches!(event.kind, Kind::TableSwitched { .. }))
                .map(|event| event.time)
                .collect();
            ensure!(times.len() >= usize::from(SERVICES), "{} are", times.len());
            Ok(times)
        })?;
        let verdicts: Vec<Timestamp> = events(&agent)?
            .into_iter()
            .filter(|event| event.seq > seen && matches!(event.kind, Kind::BackendState { .. }))
            .map(|event| event.time)
            .collect();
        let (first, last) = (
            times.iter().min().context("a switch")?,
            times.iter().max().context("a switch")?,
        );
        table.ms(GROUP, "first table to last", last.since(*first));
        let verdict = verdicts.iter().max().context("a verdict")?;
        table.ms(GROUP, "last verdict to last table", last.since(*verdict));
        arena.revive(Pool::One, Death::Refused)?;
        agent.wait_serving(|_| true)?;
    }
    Ok(())
}

fn events(agent: &Agent) -> anyhow::Result<Vec<Event>> {
    let client = Client::new(agent.socket());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut all = Vec::new();
    let mut last = 0;
    loop {
        let batch = runtime.block_on(client.events(last, Duration::ZERO))?;
        last = batch.last;
        if batch.events.is_empty() {
            return Ok(all);
        }
        all.extend(batch.events);
    }
}

/// Processor time of all threads of a process, in ticks of 10 ms.
fn processor_time(pid: u32) -> anyhow::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("the name of a process")?;
    let ticks: Vec<u64> = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let hz = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("a clock")?;
    Ok(Duration::from_secs_f64(
        ticks.iter().sum::<u64>() as f64 / hz as f64,
    ))
}
