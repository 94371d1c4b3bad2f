//! Real packets through `nat` and `full-nat`: bulk data, fragments, errors, `ping`, files, the deaths of a backend and of
//! the agent.
//!
//! The lab is one link. In `nat` the backends' way to the client leads through the load balancer; the address that
//! `full-nat` rewrites sources to is one of the load balancer's own.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use lb_tests::cleanup::Folder;
use lb_tests::lab::{Lab, LabOptions};
use lb_tests::privileged;
use lb_tests::server::Server;
use lb_tests::wait::wait_for;
use support::bulk::{byte_at, send, sink};
use support::{FAST, Xlb, addresses, curl, hops};

/// Forward mode, service address, family of the backends.
const WAYS: [(&str, &str, bool); 4] = [
    ("nat", "192.0.2.70", false),
    ("nat", "2001:db8::70", true),
    ("full-nat", "192.0.2.71", false),
    ("full-nat", "2001:db8::71", true),
];

const PORT: u16 = 7000;
/// What the backends listen on.
const OWN_PORT: u16 = 7001;
const SNAT: [&str; 2] = ["10.77.0.50", "fd77::50"];
const AGENT: &str = "snat_addresses = [\"10.77.0.50\", \"fd77::50\"]\nsnat_ports = \"1024-59999\"";

fn service(
    name: &str,
    address: &str,
    forward: &str,
    rest: &str,
    backends: &[String],
    ports: (u16, u16),
) -> String {
    let backends: String = backends
        .iter()
        .map(|b| format!("[[service.backend]]\naddress = \"{b}\"\nport = {}\n", ports.1))
        .collect();
    format!(
        "[[service]]\nname = \"{name}\"\naddress = \"{address}\"\nport = {}\nforward = \"{forward}\"\n{rest}\n{backends}",
        ports.0
    )
}

/// A TCP and a UDP service of each way.
fn services(lab: &Lab) -> String {
    let all = WAYS.iter().enumerate().flat_map(|(n, (forward, address, v6))| {
        let backends = addresses(lab, *v6);
        ["tcp", "udp"].map(|protocol| {
            let rest = format!("protocol = \"{protocol}\"\n[service.check]\ntype = \"none\"");
            let name = format!("{protocol}{n}");
            service(&name, address, forward, &rest, &backends, (PORT, OWN_PORT))
        })
    });
    all.collect()
}

/// The lab, with the ways that the two modes need.
fn lab(backends: u8) -> anyhow::Result<Lab> {
    let lab = Lab::new(LabOptions {
        backends,
        ..LabOptions::default()
    })?;
    lab.lb.netns.ip(&format!(
        "addr add {}/32 dev eth0\naddr add {}/128 dev eth0 nodad\n",
        SNAT[0], SNAT[1]
    ))?;
    lab.lb
        .netns
        .sysctl("net/ipv4/ip_local_port_range", "60000 65000")?;
    let (client4, client6) = (lab.client.v4, lab.client.v6);
    let (lb4, lb6) = (lab.lb.v4, lab.lb.v6);
    for host in &lab.backends {
        // The link takes longer packets than the client.
        host.netns.ip(&format!(
            "route add {client4}/32 via {lb4} dev eth0 mtu 1500\nroute add {client6}/128 via {lb6} dev eth0 mtu 1500\n\
             route add {}/32 dev eth0 mtu 1500\nroute add {}/128 dev eth0 mtu 1500\n",
            SNAT[0], SNAT[1]
        ))?;
    }
    Ok(lab)
}

fn started(backends: u8) -> anyhow::Result<(Lab, Xlb)> {
    let lab = lab(backends)?;
    let xlb = Xlb::started(&lab, AGENT, &services(&lab))?;
    Ok((lab, xlb))
}

fn place(address: &str) -> SocketAddr {
    SocketAddr::new(address.parse().expect("an address"), PORT)
}

fn nothing_was_lost(lab: &Lab, xlb: &Xlb) -> anyhow::Result<()> {
    assert_eq!(lab.checksum_errors()?, 0);
    assert_eq!(lab.tx_errors()?, 0);
    for reason in [
        "cannot_send",
        "malformed",
        "no_backend",
        "nat_refused",
        "snat_ports",
    ] {
        assert_eq!(xlb.reason(reason)?, 0, "{reason}");
    }
    Ok(())
}

#[test]
fn a_hundred_megabytes_through_one_connection() -> anyhow::Result<()> {
    privileged!("a_hundred_megabytes_through_one_connection");
    const BYTES: u64 = 100_000_000;
    let (lab, xlb) = started(1)?;
    for (forward, address, _) in WAYS {
        let what = format!("{forward} {address}");
        let sink = sink(&lab.backends[0], OWN_PORT).context(what.clone())?;
        let arrived = send(&lab, place(address), BYTES).context(what.clone())?;
        assert_eq!(arrived, BYTES, "{what}");
        sink.join().expect("a thread that ends").context(what)?;
    }
    assert!(xlb.reason("nat_reply")? > 1000);
    nothing_was_lost(&lab, &xlb)
}

fn client(lab: &Lab, to: SocketAddr) -> anyhow::Result<UdpSocket> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => [0; 4].into(),
        SocketAddr::V6(_) => [0_u16; 8].into(),
    };
    let socket = lab.client.netns.enter(|| UdpSocket::bind((any, 0)))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok(socket)
}

#[test]
fn datagrams_in_fragments_are_answered() -> anyhow::Result<()> {
    privileged!("datagrams_in_fragments_are_answered");
    let (lab, xlb) = started(1)?;
    let host = &lab.backends[0];
    for (forward, address, v6) in WAYS {
        let what = format!("{forward} {address}");
        let own: IpAddr = if v6 { host.v6.into() } else { host.v4.into() };
        let server = host.netns.enter(|| UdpSocket::bind((own, OWN_PORT)))?;
        server.set_read_timeout(Some(Duration::from_secs(5)))?;
        for round in 0..16_u64 {
            let client = client(&lab, place(address))?;
            let datagram: Vec<u8> = (0..8192).map(|at| byte_at(at + round)).collect();
            client.send(&datagram)?;
            let mut buffer = vec![0; 1 << 16];
            let (length, from) = server.recv_from(&mut buffer).context(what.clone())?;
            ensure!(buffer[..length] == datagram, "{what}: damaged");
            let seen: IpAddr = if forward == "nat" {
                client.local_addr()?.ip()
            } else {
                SNAT[usize::from(v6)].parse()?
            };
            assert_eq!(from.ip(), seen, "{what}: whom the backend sees");
            server.send_to(&buffer[..length], from)?;
            let length = client
                .recv(&mut buffer)
                .with_context(|| format!("{what}: no answer"))?;
            ensure!(buffer[..length] == datagram, "{what}: the answer is damaged");
        }
    }
    assert_eq!(xlb.reason("fragment")?, 0);
    nothing_was_lost(&lab, &xlb)
}

#[test]
fn the_client_hears_that_nobody_listens() -> anyhow::Result<()> {
    privileged!("the_client_hears_that_nobody_listens");
    let (lab, xlb) = started(1)?;
    for (forward, address, _) in WAYS {
        let what = format!("{forward} {address}");
        // The backend's "port unreachable" comes back, as from the service.
        let client = client(&lab, place(address))?;
        client.send(b"anybody?")?;
        let error = client.recv(&mut [0; 16]).expect_err("nobody is there");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{what}");
        // And its reset.
        let refused = lab.client.netns.enter(|| TcpStream::connect(place(address)));
        let error = refused.expect_err("nobody is there");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{what}");
    }
    nothing_was_lost(&lab, &xlb)
}

#[test]
fn clients_find_the_mtu_of_a_narrow_way() -> anyhow::Result<()> {
    privileged!("clients_find_the_mtu_of_a_narrow_way");
    const MTU: u64 = 1400;
    let (lab, xlb) = started(1)?;
    let (lb4, lb6) = (lab.lb.v4, lab.lb.v6);
    lab.lb.netns.ip(&format!(
        "route change 10.77.0.0/24 dev eth0 proto kernel scope link src {lb4} mtu {MTU}\n\
         route add fd77::/64 dev eth0 src {lb6} mtu {MTU} metric 10\n"
    ))?;
    for (n, (forward, address, v6)) in WAYS.iter().enumerate() {
        let what = format!("{forward} {address}");
        let own = &addresses(&lab, *v6)[0];
        wait_for("the narrow way in status", || {
            let said = xlb.backend(&format!("tcp{n}"), own)?;
            ensure!(said["packet_mtu"] == MTU, "{what}: {said}");
            Ok(())
        })?;
        let before = xlb.reason("too_big_answered")?;
        let sink = sink(&lab.backends[0], OWN_PORT)?;
        let arrived = send(&lab, place(address), 2_000_000).context(what.clone())?;
        assert_eq!(arrived, 2_000_000, "{what}");
        sink.join().expect("a thread that ends").context(what.clone())?;
        assert!(
            xlb.reason("too_big_answered")? > before,
            "{what}: nobody was told"
        );
    }
    nothing_was_lost(&lab, &xlb)
}

#[test]
fn service_addresses_answer_ping() -> anyhow::Result<()> {
    privileged!("service_addresses_answer_ping");
    let (lab, _xlb) = started(1)?;
    for (forward, address, _) in WAYS {
        let line = format!("ping -n -c 3 -i 0.2 -W 2 -M do -s 1400 {address}");
        let text = lab.client.netns.run(&line)?;
        assert!(
            text.contains("3 received, 0% packet loss"),
            "{forward} {address}: {text}"
        );
    }
    Ok(())
}

/// The backends of the lab are reached by eth0.
#[test]
fn an_interface_that_answers_would_be_missed_by_is_named() -> anyhow::Result<()> {
    privileged!("an_interface_that_answers_would_be_missed_by_is_named");
    let lab = lab(1)?;
    let said = |interface: &str| -> anyhow::Result<(String, String)> {
        let agent = format!("interfaces = [\"{interface}\"]\n{AGENT}");
        let xlb = Xlb::new(&lab, &agent, &services(&lab))?;
        let file = xlb.config.display().to_string();
        let check = xlb.run(&["config", "check", &file])?;
        ensure!(check.status.success(), "{check:?}");
        let doctor = xlb.run(&["doctor", "--config", &file])?;
        Ok((
            String::from_utf8(check.stderr)?,
            String::from_utf8(doctor.stdout)?,
        ))
    };
    let own = lab.backends[0].v4;
    let warning = format!("backend {own} is reached by eth0, which is not among `interfaces`");
    let (check, doctor) = said("lo")?;
    assert!(check.contains(&warning), "{check}");
    assert!(doctor.contains("would not be translated"), "{doctor}");
    let (check, doctor) = said("eth0")?;
    assert!(!check.contains("is not among"), "{check}");
    assert!(!doctor.contains("would not be translated"), "{doctor}");
    Ok(())
}

#[test]
fn traceroute_shows_the_load_balancer_and_the_backend() -> anyhow::Result<()> {
    privileged!("traceroute_shows_the_load_balancer_and_the_backend");
    let (lab, xlb) = started(1)?;
    for (n, (forward, address, _)) in (1..).zip(WAYS) {
        for udp in [false, true] {
            // Nobody listens: the backend says so, as from the service.
            let hops = hops(&lab, address, PORT, udp)?;
            assert_eq!(hops, [address, address], "{forward} {address} {udp}");
        }
        assert!(
            xlb.reason("ttl_exceeded_answered")? >= 2 * n,
            "{forward} {address}"
        );
    }
    assert_eq!(xlb.reason("ttl_exceeded")?, 0);
    nothing_was_lost(&lab, &xlb)
}

/// Everything that is sent to the backends comes back, for as long as the lab is there.
fn echo(lab: &Lab) -> anyhow::Result<()> {
    for host in &lab.backends {
        let listener = host.netns.enter(|| TcpListener::bind(("::", OWN_PORT)))?;
        // Each connection in a thread that ends with it.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                std::thread::spawn(move || {
                    let mut buffer = [0; 64];
                    while let Ok(length) = stream.read(&mut buffer) {
                        if length == 0 || stream.write_all(&buffer[..length]).is_err() {
                            return;
                        }
                    }
                });
            }
        });
    }
    Ok(())
}

/// A drain waits for the flows that there are, and for nothing else once they have ended.
#[test]
fn a_drain_waits_for_translated_flows() -> anyhow::Result<()> {
    privileged!("a_drain_waits_for_translated_flows");
    let (lab, xlb) = started(2)?;
    echo(&lab)?;
    let own = addresses(&lab, false)[0].clone();
    let mut kept = Vec::new();
    for n in [0, 2] {
        let (forward, address, _) = WAYS[n];
        let name = format!("tcp{n}");
        let mut streams = (0..16)
            .map(|_| lab.client.netns.enter(|| TcpStream::connect(place(address))))
            .collect::<Result<Vec<_>, _>>()?;
        let drain = |timeout: &str| -> anyhow::Result<(Option<i32>, String)> {
            let words = ["backend", "drain", "--wait", "--timeout", timeout, &name, &own];
            let output = xlb.run(&words)?;
            Ok((output.status.code(), String::from_utf8(output.stdout)?))
        };
        wait_for("a scan that finds them", || {
            let said = xlb.backend(&name, &own)?;
            ensure!(said["remembered_flows"].as_u64() > Some(0), "{said}");
            Ok(())
        })?;
        // Another whole scan.
        let (code, said) = drain("12s")?;
        assert_eq!(code, Some(1), "{forward}: {said}");
        let flows = said
            .split_once(" flows on it, and no others")
            .context(said.clone())?;
        let flows: usize = flows.0.parse()?;
        assert!((1..16).contains(&flows), "{forward}: {said}");
        // They go on; new ones go elsewhere.
        for stream in &mut streams {
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            stream.write_all(b"on")?;
            stream.read_exact(&mut [0; 2])?;
        }
        let before = xlb.backend(&name, &own)?["new_flows"].clone();
        for _ in 0..16 {
            let stream = lab.client.netns.enter(|| TcpStream::connect(place(address)))?;
            kept.push(stream);
        }
        assert_eq!(xlb.backend(&name, &own)?["new_flows"], before, "{forward}");
        drop(streams);
        let (code, said) = drain("40s")?;
        assert_eq!(
            (code, &*said),
            (Some(0), "0 flows on it, and no others\n"),
            "{forward}"
        );
    }
    nothing_was_lost(&lab, &xlb)
}

/// No probe is due within the test: what backends say to clients, or do not, has them asked.
#[test]
fn what_clients_meet_finds_a_dead_backend() -> anyhow::Result<()> {
    privileged!("what_clients_meet_finds_a_dead_backend");
    let folder = Arc::new(Folder::new("nat")?);
    let check = "interval = \"1h\"\nfast_interval = \"50ms\"\ntimeout = \"500ms\"\nfast_timeout = \"500ms\"";
    for (way, silent) in WAYS.iter().flat_map(|way| [(way, false), (way, true)]) {
        let (forward, address, v6) = *way;
        let what = format!("{forward} {address}, silent: {silent}");
        let lab = lab(2)?;
        let agent = format!("{AGENT}\nwitness = \"{}\"", lab.client.v4);
        let mut servers = lab
            .backends
            .iter()
            .map(|host| Server::http(host, 8080, &folder))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let rest = format!("protocol = \"tcp\"\n[service.check]\n{check}");
        let backends = addresses(&lab, v6);
        let web = service("web", address, forward, &rest, &backends, (80, 8080));
        let xlb = Xlb::started(&lab, &agent, &web)?;
        if silent {
            lab.backends[0].netns.ip("link set eth0 down")?;
        } else {
            servers.remove(0).kill()?;
        }
        let to = SocketAddr::new(address.parse()?, 80);
        wait_for("the backend is DOWN", || {
            for _ in 0..4 {
                let attempt = || TcpStream::connect_timeout(&to, Duration::from_millis(300));
                drop(lab.client.netns.enter(attempt));
            }
            let said = xlb.backend("web", &backends[0])?;
            ensure!(said["state"] == "DOWN", "{what}: {said}");
            Ok(())
        })?;
        if silent {
            // The kernel may have missed its neighbour first.
            continue;
        }
        let suspected = wait_for("the course of it", || {
            drop(lab.client.netns.enter(|| TcpStream::connect(to)));
            let events: serde_json::Value = serde_json::from_str(&xlb.verb("events -o json")?)?;
            let events = events["events"].as_array().context("events")?;
            let course = events.iter().find(|event| event["kind"] == "rerouted");
            Ok(course.context("not yet")?["detail"]["suspected"].clone())
        })?;
        assert!(suspected.is_string(), "{what}: {suspected}");
    }
    Ok(())
}

/// Connections made before the agent dies go on without it and with the next one, and `status` counts them.
#[test]
fn connections_outlive_the_agent() -> anyhow::Result<()> {
    privileged!("connections_outlive_the_agent");
    let (lab, mut xlb) = started(2)?;
    echo(&lab)?;
    let mut streams = Vec::new();
    for (_, address, _) in WAYS {
        for _ in 0..8 {
            let stream = lab.client.netns.enter(|| TcpStream::connect(place(address)))?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            streams.push(stream);
        }
    }
    let mut exchange = |when: &str| -> anyhow::Result<()> {
        for (n, stream) in streams.iter_mut().enumerate() {
            let word = [n as u8; 32];
            stream.write_all(&word)?;
            let mut back = [0; 32];
            stream
                .read_exact(&mut back)
                .with_context(|| format!("{when}: connection {n}"))?;
            assert_eq!(back, word, "{when}");
        }
        Ok(())
    };
    exchange("at first")?;
    xlb.process()?.kill()?;
    exchange("without an agent")?;
    xlb.start()?;
    exchange("with the next agent")?;
    wait_for("the flows in status", || {
        let status = xlb.status()?;
        let nat = &status["nat"];
        ensure!(nat["flows"].as_u64() >= Some(32), "{nat}");
        ensure!(nat["ports"][0]["in_use"].as_u64() >= Some(8), "{nat}");
        Ok(())
    })?;
    let listed: serde_json::Value = serde_json::from_str(&xlb.verb("conn list --service tcp2 -o json")?)?;
    let listed = listed["connections"].as_array().context("connections")?;
    assert_eq!(listed.len(), 8, "{listed:?}");
    for connection in listed {
        assert_eq!(connection["state"], "established", "{connection}");
        let (port, backend) = (&connection["client_port"], &connection["backend"]);
        let asked = |from: &str, to: &str| -> anyhow::Result<serde_json::Value> {
            let line = format!("explain {from} {to}/tcp -o json --pin-dir {}", xlb.pins.display());
            Ok(serde_json::from_str(&xlb.verb(&line)?)?)
        };
        let (from, to) = (format!("{}:{port}", lab.client.v4), format!("192.0.2.71:{PORT}"));
        let said = asked(&from, &to)?;
        assert_eq!(said["verdict"], "redirect", "{said}");
        let backend = backend.as_str().context("a backend")?;
        assert!(said["backend"].to_string().contains(backend), "{said}");
        let rewritten = &said["sent"]["rewritten"];
        let seen_as = rewritten["source"].as_str().context("a source")?;
        assert!(seen_as.starts_with(SNAT[0]), "{said}");
        assert_eq!(
            rewritten["destination"],
            format!("{backend}:{OWN_PORT}"),
            "{said}"
        );
        // And what comes back.
        let said = asked(&format!("{backend}:{OWN_PORT}"), seen_as)?;
        assert_eq!(said["reason"], "nat_reply_redirected", "{said}");
        assert_eq!(said["service"]["name"], "tcp2", "{said}");
        let rewritten = &said["sent"]["rewritten"];
        assert_eq!(
            (&rewritten["source"], &rewritten["destination"]),
            (&to.into(), &from.into())
        );
    }
    for stream in &streams {
        stream.shutdown(Shutdown::Both)?;
    }
    nothing_was_lost(&lab, &xlb)
}

#[test]
fn curl_gets_files_and_a_backend_dies() -> anyhow::Result<()> {
    privileged!("curl_gets_files_and_a_backend_dies");
    let lab = lab(2)?;
    let folder = Arc::new(Folder::new("nat")?);
    let mut servers = lab
        .backends
        .iter()
        .map(|host| Server::http(host, 8080, &folder))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let all: String = WAYS
        .iter()
        .enumerate()
        .map(|(n, (forward, address, v6))| {
            let rest = format!("protocol = \"tcp\"\n[service.check]\n{FAST}");
            service(
                &format!("web{n}"),
                address,
                forward,
                &rest,
                &addresses(&lab, *v6),
                (80, 8080),
            )
        })
        .collect();
    let xlb = Xlb::started(&lab, AGENT, &all)?;
    let served = |address: &str, count: usize| -> anyhow::Result<Vec<String>> {
        let names = (0..count).map(|_| Ok(curl(&lab, address, 80, "/")?.trim().to_owned()));
        let mut names = names.collect::<anyhow::Result<Vec<_>>>()?;
        names.sort();
        names.dedup();
        Ok(names)
    };
    for (forward, address, _) in WAYS {
        assert_eq!(served(address, 30)?, ["b1", "b2"], "{forward} {address}");
    }
    servers.remove(0).kill()?;
    for (n, (forward, address, v6)) in WAYS.iter().enumerate() {
        let dead = &addresses(&lab, *v6)[0];
        wait_for("the backend is DOWN", || {
            let said = xlb.backend(&format!("web{n}"), dead)?;
            ensure!(said["state"] == "DOWN", "{said}");
            Ok(())
        })?;
        assert_eq!(served(address, 20)?, ["b2"], "{forward} {address}");
    }
    nothing_was_lost(&lab, &xlb)?;
    Ok(())
}
