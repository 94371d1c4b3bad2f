//! What real packets meet on every way of forwarding: bulk data, datagrams in fragments, narrow links, `ping`.

mod support;

use std::io::ErrorKind;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, ensure};
use lb_tests::lab::{Host, Lab, LabOptions};
use lb_tests::privileged;
use lb_tests::wait::wait_for;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect, setsockopt, socket, sockopt,
};
use support::bulk::{byte_at, send, sink};
use support::{Xlb, addresses, hops, service};

/// Forward mode, service address, whether backends are IPv6, bytes of the outer headers.
const WAYS: [(&str, &str, bool, u64); 8] = [
    ("dsr-l2", "192.0.2.10", false, 0),
    ("dsr-l2", "2001:db8::10", true, 0),
    ("dsr-ipip", "192.0.2.20", false, 20),
    ("dsr-ipip", "2001:db8::20", true, 40),
    ("dsr-ipip", "192.0.2.30", true, 40),
    ("dsr-gue", "192.0.2.60", false, 28),
    ("dsr-gue", "2001:db8::60", true, 48),
    ("dsr-gue", "192.0.2.61", true, 48),
];

const PORT: u16 = 7000;

fn services(lab: &Lab) -> String {
    let all = WAYS
        .iter()
        .enumerate()
        .flat_map(|(n, (forward, address, v6, _))| {
            ["tcp", "udp"].map(|protocol| {
                let name = format!("{protocol}{n}");
                let backends = addresses(lab, *v6);
                service(
                    &name,
                    address,
                    PORT,
                    protocol,
                    forward,
                    "type = \"none\"",
                    &backends,
                )
            })
        });
    all.collect()
}

fn started(backends: u8) -> anyhow::Result<(Lab, Xlb)> {
    let lab = Lab::new(LabOptions {
        backends,
        decap: true,
        ..LabOptions::default()
    })?;
    let xlb = Xlb::started(&lab, "", &services(&lab))?;
    Ok((lab, xlb))
}

fn place(address: &str) -> SocketAddr {
    SocketAddr::new(address.parse().expect("an address"), PORT)
}

#[test]
fn a_hundred_megabytes_through_one_connection_in_every_way() -> anyhow::Result<()> {
    privileged!("a_hundred_megabytes_through_one_connection_in_every_way");
    const BYTES: u64 = 100_000_000;
    let (lab, xlb) = started(1)?;
    for (forward, address, ..) in WAYS {
        let what = format!("{forward} {address}");
        let sink = sink(&lab.backends[0], PORT).context(what.clone())?;
        let arrived = send(&lab, place(address), BYTES).context(what.clone())?;
        assert_eq!(arrived, BYTES, "{what}");
        sink.join().expect("a thread that ends").context(what)?;
    }
    assert_eq!(lab.checksum_errors()?, 0);
    assert_eq!(lab.tx_errors()?, 0);
    for reason in ["too_big", "cannot_send", "malformed", "no_backend"] {
        assert_eq!(xlb.reason(reason)?, 0, "{reason}");
    }
    Ok(())
}

/// Frames of 9000 bytes, natively in several buffers.
#[test]
fn jumbo_frames_go_every_way_in_both_modes() -> anyhow::Result<()> {
    privileged!("jumbo_frames_go_every_way_in_both_modes");
    const BYTES: u64 = 20_000_000;
    for mode in ["native", "generic"] {
        let lab = Lab::new(LabOptions {
            backends: 1,
            decap: true,
            jumbo: true,
            ..LabOptions::default()
        })?;
        if mode == "generic" {
            lab.lb.netns.run("ethtool -K eth0 gro off")?;
        }
        let xlb = Xlb::started(&lab, &format!("xdp_mode = \"{mode}\"\n"), &services(&lab))?;
        for (n, (forward, address, v6, _)) in WAYS.iter().enumerate() {
            let what = format!("{mode}, {forward} {address}");
            let own = lab.backends[0].address(if *v6 { lab.lb.v6.into() } else { lab.lb.v4.into() });
            let counted = || -> anyhow::Result<(u64, u64)> {
                let said = xlb.backend(&format!("tcp{n}"), &own.to_string())?;
                let count = |key: &str| said[key].as_u64().context(key.to_owned());
                Ok((count("packets")?, count("bytes")?))
            };
            let before = counted()?;
            let sink = sink(&lab.backends[0], PORT).context(what.clone())?;
            let arrived = send(&lab, place(address), BYTES).context(what.clone())?;
            assert_eq!(arrived, BYTES, "{what}");
            sink.join().expect("a thread that ends").context(what.clone())?;
            let after = counted()?;
            let (packets, bytes) = (after.0 - before.0, after.1 - before.1);
            // All bytes were counted, and they came in frames that are longer than a page.
            assert!(bytes > BYTES, "{what}: {bytes} bytes");
            assert!(
                bytes / packets > 4096,
                "{what}: {bytes} bytes in {packets} packets"
            );
        }
        assert_eq!(lab.checksum_errors()?, 0);
        for reason in ["too_big", "too_big_answered", "cannot_send", "malformed"] {
            assert_eq!(xlb.reason(reason)?, 0, "{mode}: {reason}");
        }
    }
    Ok(())
}

/// Sends back what comes, from the service address that it came to.
fn echo(host: &Host, address: IpAddr) -> anyhow::Result<UdpSocket> {
    let socket = host.netns.enter(|| UdpSocket::bind((address, PORT)))?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    Ok(socket)
}

#[test]
fn datagrams_in_fragments_are_answered_in_every_way() -> anyhow::Result<()> {
    privileged!("datagrams_in_fragments_are_answered_in_every_way");
    let (lab, xlb) = started(2)?;
    let (client4, client6) = (lab.client.v4, lab.client.v6);
    for host in &lab.backends {
        // Their own links take more than the client's, and answers are not encapsulated.
        host.netns.ip(&format!(
            "route add {client4}/32 dev eth0 mtu 1500\nroute add {client6}/128 dev eth0 mtu 1500\n"
        ))?;
    }
    for (forward, address, ..) in WAYS {
        let what = format!("{forward} {address}");
        let to = place(address);
        let servers = lab
            .backends
            .iter()
            .map(|host| echo(host, to.ip()))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let mut heard = vec![0; servers.len()];
        for round in 0..16_u64 {
            let client = lab.client.netns.enter(|| {
                let any: IpAddr = if to.is_ipv4() {
                    [0; 4].into()
                } else {
                    [0_u16; 8].into()
                };
                let socket = UdpSocket::bind((any, 0))?;
                socket.connect(to)?;
                Ok::<_, std::io::Error>(socket)
            })?;
            client.set_read_timeout(Some(Duration::from_secs(5)))?;
            let datagram: Vec<u8> = (0..8192).map(|at| byte_at(at + round)).collect();
            client.send(&datagram)?;
            let mut buffer = vec![0; 1 << 16];
            let answered = wait_for("the datagram", || {
                for (server, heard) in servers.iter().zip(&mut heard) {
                    match server.recv_from(&mut buffer) {
                        Ok((length, from)) => {
                            ensure!(buffer[..length] == datagram, "{what}: damaged");
                            server.send_to(&buffer[..length], from)?;
                            *heard += 1;
                            return Ok(());
                        }
                        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
                anyhow::bail!("{what}: nobody got it")
            });
            answered?;
            let length = client.recv(&mut buffer).context(what.clone())?;
            ensure!(buffer[..length] == datagram, "{what}: the answer is damaged");
        }
        assert!(heard.iter().all(|count| *count > 0), "{what}: {heard:?} of 16");
    }
    assert_eq!(xlb.reason("fragment")?, 0);
    assert_eq!(lab.checksum_errors()?, 0);
    Ok(())
}

/// The way to the backends takes less than the clients send: they are told, and come through.
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
    for (n, (forward, address, v6, overhead)) in WAYS.iter().enumerate() {
        let what = format!("{forward} {address}");
        let backend = &lab.backends[0];
        let own = if *v6 {
            backend.v6.to_string()
        } else {
            backend.v4.to_string()
        };
        wait_for("the narrow way in status", || {
            let said = xlb.backend(&format!("tcp{n}"), &own)?;
            ensure!(said["packet_mtu"] == MTU - overhead, "{what}: {said}");
            Ok(())
        })?;
        let before = xlb.reason("too_big_answered")?;
        let sink = sink(backend, PORT).context(what.clone())?;
        let arrived = send(&lab, place(address), 2_000_000).context(what.clone())?;
        assert_eq!(arrived, 2_000_000, "{what}");
        sink.join().expect("a thread that ends").context(what.clone())?;
        assert!(
            xlb.reason("too_big_answered")? > before,
            "{what}: nobody was told"
        );
    }
    assert_eq!(lab.checksum_errors()?, 0);
    Ok(())
}

/// Not the load balancer's own link is narrow but one behind a router: it says so, and clients are told.
///
/// ```text
///   client (1500) --- lb (1600) --- b2, a router (1600) === 1400 === b1
/// ```
#[test]
fn what_a_router_on_the_way_says_reaches_the_clients() -> anyhow::Result<()> {
    privileged!("what_a_router_on_the_way_says_reaches_the_clients");
    const MTU: u64 = 1400;
    let lab = Lab::new(LabOptions {
        backends: 2,
        decap: true,
        ..LabOptions::default()
    })?;
    let [backend, router] = &lab.backends[..] else {
        anyhow::bail!("two backends")
    };
    // It forwards what comes for the other one, as it is.
    router.unwrap_from(&["10.77.0.99".into(), "fd77::99".into()])?;
    for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        router.netns.sysctl(key, "1")?;
    }
    for scope in ["all", "eth0"] {
        router
            .netns
            .sysctl(&format!("net/ipv4/conf/{scope}/send_redirects"), "0")?;
        lab.lb
            .netns
            .sysctl(&format!("net/ipv6/conf/{scope}/accept_redirects"), "0")?;
    }
    let ((b4, b6), (r4, r6)) = ((backend.v4, backend.v6), (router.v4, router.v6));
    router.netns.ip(&format!(
        "route add {b4}/32 dev eth0 mtu lock {MTU}\nroute add {b6}/128 dev eth0 mtu lock {MTU}\n"
    ))?;
    lab.lb.netns.ip(&format!(
        "route add {b4}/32 via {r4}\nroute add {b6}/128 via {r6}\n"
    ))?;
    let ways: Vec<_> = WAYS.iter().filter(|(forward, ..)| *forward != "dsr-l2").collect();
    let all: String = ways
        .iter()
        .enumerate()
        .map(|(n, (forward, address, v6, _))| {
            let own = if *v6 { b6.to_string() } else { b4.to_string() };
            let name = format!("way{n}");
            service(&name, address, PORT, "tcp", forward, "type = \"none\"", &[own])
        })
        .collect();
    let xlb = Xlb::started(&lab, "", &all)?;
    for (n, (forward, address, v6, overhead)) in ways.iter().enumerate() {
        let what = format!("{forward} {address}");
        let own = if *v6 { b6.to_string() } else { b4.to_string() };
        let before = xlb.reason("too_big_answered")?;
        let sink = sink(backend, PORT).context(what.clone())?;
        let arrived = send(&lab, place(address), 2_000_000).context(what.clone())?;
        assert_eq!(arrived, 2_000_000, "{what}");
        sink.join().expect("a thread that ends").context(what.clone())?;
        let said = xlb.backend(&format!("way{n}"), &own)?;
        assert_eq!(said["packet_mtu"], MTU - overhead, "{what}: {said}");
        assert!(said["path_mtu_until"].is_string(), "{what}: {said}");
        assert!(
            xlb.reason("too_big_answered")? > before,
            "{what}: nobody was told"
        );
    }
    assert_eq!(lab.checksum_errors()?, 0);
    Ok(())
}

#[test]
fn service_addresses_answer_ping_and_the_first_hop_of_a_traced_route() -> anyhow::Result<()> {
    privileged!("service_addresses_answer_ping_and_the_first_hop_of_a_traced_route");
    let (lab, xlb) = started(1)?;
    for (forward, address, ..) in WAYS {
        let what = format!("{forward} {address}");
        for bytes in [0, 56, 1452] {
            let line = format!("ping -n -c 3 -i 0.2 -W 2 -M do -s {bytes} {address}");
            let text = lab.client.netns.run(&line).context(what.clone())?;
            assert!(text.contains("3 received, 0% packet loss"), "{what}: {text}");
        }
        // What `traceroute -T` does: a SYN with a hop limit of 1 is answered, so the service is one hop away.
        let sink = sink(&lab.backends[0], PORT)?;
        let to = place(address);
        let family = if to.is_ipv4() {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        let stream = lab.client.netns.enter(|| {
            let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
            if to.is_ipv4() {
                setsockopt(&fd, sockopt::Ipv4Ttl, &1)?;
            } else {
                setsockopt(&fd, sockopt::Ipv6Ttl, &1)?;
            }
            connect(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrStorage::from(to))?;
            Ok::<_, nix::Error>(TcpStream::from(fd))
        });
        let stream = stream.with_context(|| format!("{what}: one hop"))?;
        stream.shutdown(Shutdown::Write)?;
        sink.join().expect("a thread that ends").context(what)?;
    }
    assert!(xlb.reason("echo_reply")? >= 3 * 3 * WAYS.len() as u64);
    Ok(())
}

/// The load balancer is no hop: the TTL is the backend's to look at.
#[test]
fn traceroute_shows_the_backend_alone() -> anyhow::Result<()> {
    privileged!("traceroute_shows_the_backend_alone");
    let (lab, xlb) = started(1)?;
    for (forward, address, ..) in WAYS {
        for udp in [false, true] {
            assert_eq!(
                hops(&lab, address, PORT, udp)?,
                [address],
                "{forward} {address} {udp}"
            );
        }
    }
    assert_eq!(xlb.reason("ttl_exceeded_answered")?, 0);
    Ok(())
}
