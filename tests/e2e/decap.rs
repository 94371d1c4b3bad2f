//! `xlb decap` on a backend: whose packets it unwraps, and that it leaves all others alone.

mod support;

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use lb_tests::agent::Agent;
use lb_tests::cleanup::Folder;
use lb_tests::config::{Backend, Config, FAST_CHECK, Service, every_way};
use lb_tests::lab::{Lab, LabOptions, VIPS_V4, VIPS_V6};
use lb_tests::load::{Attempts, Load, LoadOptions};
use lb_tests::privileged;
use lb_tests::server::Server;
use lb_tests::wait::wait_until;
use lb_tests::wire;
use nix::sys::socket::{getsockopt, sockopt};
use support::bulk::{send_by, sink};
use support::{Xlb, addresses, service};
use xlb::api::types::{BackendStatus, Status};
use xlb::model::{CheckCode, Forward, Protocol};

fn requests(lab: &Lab, address: IpAddr, count: u64) -> anyhow::Result<Attempts> {
    let load = Load::start(
        &lab.client.netns,
        LoadOptions::new(vec![SocketAddr::new(address, 80)]),
    )?;
    wait_until("the requests", || Ok(load.begun() >= count))?;
    load.finish()
}

/// Counts by outcome of the first backend.
fn count(lab: &Lab, outcome: &str) -> anyhow::Result<u64> {
    let status = lab.backends[0].decap_status()?;
    let counts = &status["interfaces"][0]["counts"];
    counts[outcome]
        .as_u64()
        .with_context(|| format!("no {outcome} in {status:#}"))
}

#[test]
fn only_packets_of_the_load_balancers_named_are_unwrapped() -> anyhow::Result<()> {
    privileged!("only_packets_of_the_load_balancers_named_are_unwrapped");
    let lab = Lab::new(LabOptions {
        backends: 1,
        decap: true,
        ..LabOptions::default()
    })?;
    let folder = Arc::new(Folder::new("decap")?);
    let _server = Server::http(&lab.backends[0], 80, &folder)?;
    let services = every_way(&lab.backends);
    let config = Config {
        check: FAST_CHECK.into(),
        services,
        ..Config::default()
    };
    let _agent = Agent::running(&lab.lb.netns, &config)?;
    for address in [IpAddr::from(VIPS_V4[1]), VIPS_V6[1].into(), VIPS_V4[2].into()] {
        let before = count(&lab, "decapsulated")?;
        let attempts = requests(&lab, address, 20)?;
        ensure!(attempts.failed() == 0, "{address}: {:?}", attempts.errors());
        ensure!(count(&lab, "decapsulated")? >= before + 20, "{address}");
    }
    // Another load balancer is to be trusted from now on; ours is foreign.
    lab.backends[0].unwrap_from(&["10.77.0.99".into(), "fd77::99".into()])?;
    for address in [IpAddr::from(VIPS_V4[1]), VIPS_V6[1].into(), VIPS_V4[2].into()] {
        let before = (count(&lab, "decapsulated")?, count(&lab, "not_from_us")?);
        let attempts = requests(&lab, address, 5)?;
        assert_eq!(attempts.failed(), attempts.attempted(), "{address}");
        let after = (count(&lab, "decapsulated")?, count(&lab, "not_from_us")?);
        assert_eq!(after.0, before.0, "{address}");
        ensure!(after.1 >= before.1 + 5, "{address}: {after:?}");
    }
    // What is not encapsulated is none of its business.
    let attempts = requests(&lab, lab.backends[0].v4.into(), 5)?;
    assert_eq!(attempts.failed(), 0, "{:?}", attempts.errors());
    Ok(())
}

/// The services in which a backend serves.
fn serving_in(status: &Status, address: [IpAddr; 2]) -> Vec<String> {
    let services = status.services.iter().filter(|service| {
        let of_host = |backend: &&BackendStatus| address.contains(&backend.address);
        service
            .backends
            .iter()
            .filter(of_host)
            .all(|backend| backend.serving)
    });
    services.map(|service| service.name.clone()).collect()
}

/// Probes go through the forward path unless something else is said: a backend without the service address (`dsr-l2`),
/// or without decapsulation (`dsr-ipip`, `dsr-gue`), is out, although it answers on its own address.
#[test]
fn black_holes_are_found_by_a_syn_through_the_forward_path() -> anyhow::Result<()> {
    privileged!("black_holes_are_found_by_a_syn_through_the_forward_path");
    black_holes("type = \"tcp\"\n", Forward::DsrIpip)
}

#[test]
fn black_holes_are_found_by_a_request_through_the_forward_path() -> anyhow::Result<()> {
    privileged!("black_holes_are_found_by_a_request_through_the_forward_path");
    black_holes(
        "type = \"http\"\npath = \"/healthz\"\nexpect_body = \"healthy\"\n",
        Forward::DsrGue,
    )
}

fn black_holes(check: &str, tunnel: Forward) -> anyhow::Result<()> {
    let lab = Lab::new(LabOptions {
        backends: 2,
        decap: true,
        ..LabOptions::default()
    })?;
    let folder = Arc::new(Folder::new("forward")?);
    let _servers = [
        Server::http(&lab.backends[0], 80, &folder)?,
        Server::http(&lab.backends[1], 80, &folder)?,
    ];
    let mut services = every_way(&lab.backends);
    for service in &mut services {
        if service.forward.encapsulates() {
            service.forward = tunnel;
        }
        service.check = check.to_owned();
        if service.name == "ipip-4in6" {
            service.check += &format!("source = \"{}\"\n", lab.lb.v4);
        }
    }
    let config = Config {
        check: "interval = \"500ms\"\ntimeout = \"500ms\"\nfast_interval = \"100ms\"\n".into(),
        services,
        ..Config::default()
    };
    let agent = Agent::running(&lab.lb.netns, &config)?;
    let wait = |what: &str, host: usize, expected: &[&str]| {
        let host = &lab.backends[host];
        let addresses = [host.v4.into(), host.v6.into()];
        wait_until(what, || Ok(serving_in(&agent.status()?, addresses) == expected))
            .with_context(|| format!("{:?}\nthe agent's log:\n{}", agent.status(), agent.log()))
    };
    let all = ["l2-v4", "l2-v6", "ipip-4in4", "ipip-6in6", "ipip-4in6"];
    for host in [0, 1] {
        wait("all to serve", host, &all)?;
    }

    let (v4, v6) = (VIPS_V4[0], VIPS_V6[0]);
    lab.backends[0].netns.ip(&format!(
        "address del {v4}/32 dev lo\naddress del {v6}/128 dev lo\n"
    ))?;
    wait("the one without the addresses to be out", 0, &all[2..])?;
    lab.backends[1].unwrap_from(&["10.77.0.99".into(), "fd77::99".into()])?;
    wait("the one without decapsulation to be out", 1, &all[..2])?;

    lab.backends[0].netns.ip(&format!(
        "address add {v4}/32 dev lo\naddress add {v6}/128 dev lo nodad\n"
    ))?;
    wait("it to be back", 0, &all)?;
    assert_eq!(lab.tx_errors()?, 0);
    Ok(())
}

/// Datagrams and their answers, and the ICMP error of a host whose server is gone.
#[test]
fn datagrams_are_exchanged_through_the_forward_path() -> anyhow::Result<()> {
    privileged!("datagrams_are_exchanged_through_the_forward_path");
    let lab = Lab::new(LabOptions {
        backends: 1,
        decap: true,
        ..LabOptions::default()
    })?;
    let folder = Arc::new(Folder::new("datagrams")?);
    let vips: [IpAddr; 3] = [VIPS_V4[0].into(), VIPS_V6[0].into(), VIPS_V4[1].into()];
    let listen: Vec<_> = vips.map(|vip| (vip, 7).into()).into();
    let server = Server::echo(&lab.backends[0], 7, &listen, &folder)?;
    let request: String = wire::request(1)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let (v4, v6) = (lab.backends[0].v4.into(), lab.backends[0].v6.into());
    let services = [
        ("l2-v4", Forward::DsrL2, v4),
        ("l2-v6", Forward::DsrL2, v6),
        ("4in4", Forward::DsrIpip, v4),
    ];
    let services = services
        .into_iter()
        .zip(vips)
        .map(|((name, forward, backend), address)| Service {
            name: name.into(),
            address,
            port: 7,
            protocol: Protocol::Udp,
            forward,
            more: String::new(),
            check: format!("type = \"udp\"\nsend = \"hex:{request}\"\n"),
            backends: vec![Backend {
                address: backend,
                weight: 1,
            }],
        });
    let config = Config {
        check: "interval = \"500ms\"\ntimeout = \"500ms\"\nfast_interval = \"100ms\"\n".into(),
        services: services.collect(),
        ..Config::default()
    };
    let agent = Agent::running(&lab.lb.netns, &config)?;
    let codes = |expected: CheckCode| {
        wait_until("the results", || {
            let status = agent.status()?;
            let mut backends = status.services.iter().flat_map(|service| &service.backends);
            Ok(backends.all(|backend| backend.check.code == expected))
        })
        .with_context(|| format!("{:?}\nthe agent's log:\n{}", agent.status(), agent.log()))
    };
    codes(CheckCode::L7ok)?;
    server.kill()?;
    codes(CheckCode::L4con)
}

/// What the client may send at most in a segment of this connection.
fn segment(stream: &TcpStream) -> anyhow::Result<u32> {
    Ok(getsockopt(stream, sockopt::TcpMaxSeg)?)
}

/// All links take 1500 bytes, and so do not take what clients send once it is encapsulated. With `--mss auto` clients are
/// told to send less before they send anything, whoever fills in the checksum of the SYN-ACK; without it they are told by
/// ICMP, when it did not fit.
#[test]
fn a_lower_mss_keeps_clients_to_what_fits_once_it_is_encapsulated() -> anyhow::Result<()> {
    privileged!("a_lower_mss_keeps_clients_to_what_fits_once_it_is_encapsulated");
    const BYTES: u64 = 100_000_000;
    const PORT: u16 = 7000;
    let lab = Lab::new(LabOptions {
        backends: 1,
        decap: true,
        ..LabOptions::default()
    })?;
    let backend = &lab.backends[0];
    for host in [&lab.lb, backend] {
        host.netns.ip("link set eth0 mtu 1500\n")?;
    }
    let ways = [
        ("192.0.2.20", false, 1500 - 48 - 40),
        ("2001:db8::20", true, 1500 - 48 - 60),
        ("192.0.2.30", true, 1500 - 48 - 40),
    ];
    let services: String = ways
        .iter()
        .enumerate()
        .map(|(n, (address, v6, _))| {
            let own = addresses(&lab, *v6);
            service(
                &format!("s{n}"),
                address,
                PORT,
                "tcp",
                "dsr-ipip",
                "type = \"none\"",
                &own,
            )
        })
        .collect();
    let xlb = Xlb::started(&lab, "", &services)?;
    let from = [lab.lb.v4.to_string(), lab.lb.v6.to_string()];
    let lowered = || -> anyhow::Result<u64> {
        let status = backend.decap_status()?;
        status["interfaces"][0]["counts"]["mss_lowered"]
            .as_u64()
            .with_context(|| format!("{status:#}"))
    };
    let told = || -> anyhow::Result<u64> { Ok(xlb.reason("too_big_answered")? + xlb.reason("too_big")?) };

    backend.unwrap_with(&from, &["--mss", "auto"])?;
    // The card on the switch's side that sends to the client fills checksums in, from what this one left there.
    backend.netns.run("ethtool -K eth0 tx on")?;
    for (address, _, most) in ways {
        let before = lowered()?;
        let sink = sink(backend, PORT).context(address)?;
        let to = SocketAddr::new(address.parse()?, PORT);
        let stream = lab
            .client
            .netns
            .enter(|| TcpStream::connect_timeout(&to, Duration::from_secs(10)))?;
        // Timestamps take 12 bytes of it.
        ensure!(segment(&stream)? <= most, "{address}: {}", segment(&stream)?);
        assert_eq!(send_by(stream, BYTES).context(address)?, BYTES, "{address}");
        sink.join().expect("a thread that ends").context(address)?;
        assert_eq!(lowered()?, before + 1, "{address}");
    }
    assert_eq!(told()?, 0, "all of it fits");
    assert_eq!(lab.checksum_errors()?, 0);

    // Taken off again, the same clients send what does not fit.
    backend.unwrap_with(&from, &[])?;
    let status = backend.decap_status()?;
    assert_eq!(status["interfaces"][0]["mss"], serde_json::json!({}));
    for (address, _, most) in ways {
        let before = told()?;
        let sink = sink(backend, PORT).context(address)?;
        let to = SocketAddr::new(address.parse()?, PORT);
        let stream = lab
            .client
            .netns
            .enter(|| TcpStream::connect_timeout(&to, Duration::from_secs(10)))?;
        ensure!(segment(&stream)? > most, "{address}: {}", segment(&stream)?);
        assert_eq!(
            send_by(stream, 2_000_000).context(address)?,
            2_000_000,
            "{address}"
        );
        sink.join().expect("a thread that ends").context(address)?;
        ensure!(told()? > before, "{address}: nobody was told");
    }
    assert_eq!(lab.checksum_errors()?, 0);
    Ok(())
}
