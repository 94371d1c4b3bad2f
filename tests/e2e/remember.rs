//! Clients and flows that are remembered, with real clients.

mod support;

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Context;
use lb_tests::lab::DEVICE;
use lb_tests::privileged;
use lb_tests::wait::wait_until;
use serde_json::Value;
use support::{VIP, World, Xlb};

/// Clients of the lab, at addresses of their own.
const CLIENTS: u8 = 12;

fn client(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, 200 + number)
}

/// Which backend answers a new connection of a client.
fn ask(world: &World, number: u8) -> anyhow::Result<String> {
    let line = format!(
        "curl --silent --show-error --fail --max-time 5 --interface {} http://{VIP}/",
        client(number)
    );
    Ok(world.lab.client.netns.run(&line)?.trim().to_owned())
}

fn connections(xlb: &Xlb, options: &str) -> anyhow::Result<Value> {
    Ok(serde_json::from_str(
        &xlb.verb(&format!("conn list -o json {options}"))?,
    )?)
}

#[test]
fn remembered_flows_are_listed() -> anyhow::Result<()> {
    privileged!("remembered_flows_are_listed");
    let world = World::of(3)?;
    let xlb = Xlb::started(&world.lab, "", &world.web("tracking = \"full\""))?;
    world.served(30)?;
    let all = connections(&xlb, "--service web")?;
    assert_eq!(
        (&all["matching"], &all["closing"]),
        (&30.into(), &30.into()),
        "{all}"
    );
    assert!(all["connections"][0]["client"].is_null() && all["connections"][0]["tracking"] == "full");
    assert_eq!(connections(&xlb, "--state established")?["matching"], 0);
    let mut sum = 0;
    for backend in &world.lab.backends {
        let some = connections(&xlb, &format!("--backend {}:80", backend.v4))?;
        let listed = some["connections"].as_array().map_or(0, Vec::len) as u64;
        assert_eq!(some["matching"], listed);
        sum += listed;
    }
    assert_eq!(sum, 30);
    let unknown = connections(&xlb, &format!("--client {}", world.lab.client.v4))?;
    assert_eq!(
        (&unknown["matching"], &unknown["clients_unknown"]),
        (&0.into(), &30.into())
    );
    let one = connections(&xlb, "--limit 1")?;
    assert_eq!(one["connections"].as_array().map(Vec::len), Some(1));
    assert_eq!(one["matching"], 30);
    drop(xlb);

    // Slots that move: their flows have a name.
    let xlb = Xlb::started(&world.lab, "", &world.web(""))?;
    assert_eq!(connections(&xlb, "")?["looked_at"], 0);
    xlb.verb(&format!("backend drain web {}", world.lab.backends[0].v4))?;
    world.served(40)?;
    let moved = connections(&xlb, &format!("--client {}/24", world.lab.client.v4))?;
    assert!(moved["matching"].as_u64() >= Some(3), "{moved}");
    for connection in moved["connections"].as_array().into_iter().flatten() {
        assert_eq!(connection["client"], world.lab.client.v4.to_string());
        assert_ne!(connection["backend"], world.lab.backends[0].v4.to_string());
        assert_eq!(connection["tracking"], "moved");
    }
    assert_eq!(connections(&xlb, "--client 198.51.100.0/24")?["matching"], 0);
    assert!(xlb.verb("conn list --count")?.contains(" flows; unconfirmed "));
    assert!(xlb.verb("conn list")?.contains(&world.lab.client.v4.to_string()));
    let refused = xlb.run(&["conn", "list", "--client", "nobody"])?;
    assert_eq!(refused.status.code(), Some(1));
    Ok(())
}

fn persistence(xlb: &Xlb) -> anyhow::Result<Value> {
    Ok(xlb.service("web")?["persistence"].clone())
}

#[test]
fn clients_stay_with_their_backend_until_it_is_drained() -> anyhow::Result<()> {
    privileged!("clients_stay_with_their_backend_until_it_is_drained");
    let world = World::of(3)?;
    for number in 0..CLIENTS {
        world
            .lab
            .client
            .netns
            .ip(&format!("addr add {}/24 dev {DEVICE}\n", client(number)))?;
    }
    let keys = "scheduler = \"rr\"\npersistence_timeout = \"10m\"";
    let mut xlb = Xlb::started(&world.lab, "", &world.web(keys))?;
    let first: Vec<_> = (0..CLIENTS)
        .map(|n| ask(&world, n))
        .collect::<anyhow::Result<_>>()?;
    for backend in ["b1", "b2", "b3"] {
        assert!(first.iter().any(|name| name == backend), "{first:?}");
    }
    for _ in 0..3 {
        for number in 0..CLIENTS {
            assert_eq!(ask(&world, number)?, first[usize::from(number)]);
        }
    }
    wait_until("clients are counted", || {
        Ok(persistence(&xlb)?["clients"] == u64::from(CLIENTS))
    })?;
    let status = persistence(&xlb)?;
    assert_eq!((&status["prefix"], &status["moved"]), (&32.into(), &0.into()));
    assert!(
        status["kept"].as_u64() >= Some(u64::from(CLIENTS) * 3),
        "{status}"
    );
    assert_eq!(xlb.service("web")?["tracking"], "full");
    assert!(
        xlb.verb("status")?
            .contains("persistence: clients of /32 for 10m; 12 remembered")
    );

    // An agent that is killed changes nothing, nor does the next one.
    xlb.process()?.kill()?;
    assert_eq!(ask(&world, 0)?, first[0]);
    xlb.start()?;
    for number in 0..CLIENTS {
        assert_eq!(ask(&world, number)?, first[usize::from(number)]);
    }

    // A drained backend takes no new flows: its clients are others' from now on, also when it is back.
    xlb.verb(&format!("backend drain web {}", world.lab.backends[0].v4))?;
    let mut after = Vec::new();
    for number in 0..CLIENTS {
        let now = ask(&world, number)?;
        match first[usize::from(number)].as_str() {
            "b1" => assert_ne!(now, "b1"),
            other => assert_eq!(now, other),
        }
        after.push(now);
    }
    assert!(persistence(&xlb)?["moved"].as_u64() >= Some(1));
    xlb.verb(&format!("backend ready web {}", world.lab.backends[0].v4))?;
    for number in 0..CLIENTS {
        assert_eq!(ask(&world, number)?, after[usize::from(number)]);
    }

    // Without the key turns are taken again.
    xlb.configure("", &world.web("scheduler = \"rr\""))?;
    xlb.verb("reload")?;
    let turns: Vec<_> = (0..6).map(|_| ask(&world, 0)).collect::<anyhow::Result<_>>()?;
    for backend in ["b1", "b2", "b3"] {
        assert!(turns.iter().any(|name| name == backend), "{turns:?}");
    }
    assert_eq!(persistence(&xlb)?, Value::Null);
    Ok(())
}

/// Connections that say nothing.
fn connect(world: &World, count: usize) -> anyhow::Result<Vec<TcpStream>> {
    let to = SocketAddr::new(VIP.parse()?, 80);
    let connect = || TcpStream::connect_timeout(&to, Duration::from_secs(5)).context("a connection");
    world
        .lab
        .client
        .netns
        .enter(|| (0..count).map(|_| connect()).collect())
}

/// `drain --wait` of the first backend: exit status, what it said last, and all that it said before.
fn drain(xlb: &Xlb, world: &World, timeout: &str) -> anyhow::Result<(Option<i32>, String, String)> {
    let address = world.lab.backends[0].v4.to_string();
    let output = xlb.run(&[
        "backend",
        "drain",
        "--wait",
        "--timeout",
        timeout,
        "web",
        &address,
    ])?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status.code(), text(&output.stdout), text(&output.stderr)))
}

#[test]
fn a_drain_waits_until_idle_flows_have_shown_themselves() -> anyhow::Result<()> {
    privileged!("a_drain_waits_until_idle_flows_have_shown_themselves");
    let world = World::of(2)?;
    let xlb = Xlb::started(&world.lab, "", &world.web("tcp_idle_timeout = \"3s\""))?;
    let _connections = connect(&world, 20)?;
    let begun = Instant::now();
    let (code, last, _) = drain(&xlb, &world, "100ms")?;
    assert_eq!(code, Some(1), "{last}");
    assert!(
        last.contains(" flows seen on it; idle ones may show until 20"),
        "{last}"
    );
    let (code, last, before) = drain(&xlb, &world, "30s")?;
    assert_eq!(code, Some(0), "{last}{before}");
    assert!(begun.elapsed() >= Duration::from_secs(3), "{before}");
    assert!(before.contains("idle ones may show until 20"), "{before}");
    assert!(last.contains(" flows on it, and no others"), "{last}");
    Ok(())
}

#[test]
fn a_drain_waits_for_the_flows_that_are_known() -> anyhow::Result<()> {
    privileged!("a_drain_waits_for_the_flows_that_are_known");
    let world = World::of(2)?;
    let keys = "scheduler = \"rr\"\ntcp_idle_timeout = \"1h\"";
    let xlb = Xlb::started(&world.lab, "", &world.web(keys))?;
    let connections = connect(&world, 20)?;
    let (code, last, _) = drain(&xlb, &world, "100ms")?;
    assert_eq!(code, Some(1), "{last}");
    let flows = last
        .split_once(" flows on it, and no others")
        .context(last.clone())?
        .0;
    let flows: usize = flows.parse().with_context(|| last.clone())?;
    // Each CPU takes turns by itself.
    assert!((1..20).contains(&flows), "{last}");
    drop(connections);
    let (code, last, before) = drain(&xlb, &world, "30s")?;
    assert_eq!(code, Some(0), "{last}{before}");
    assert_eq!(last, "0 flows on it, and no others\n");
    Ok(())
}
