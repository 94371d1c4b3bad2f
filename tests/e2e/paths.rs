//! Ways that packets take: traced, with datagrams in bulk, into another VLAN.

mod support;

use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, ensure};
use aya::maps::{MapData, PerCpuArray};
use aya::programs::{SchedClassifier, TcAttachType, tc};
use aya::{Ebpf, EbpfLoader};
use lb_tests::lab::{Host, Lab, LabOptions};
use lb_tests::privileged;
use lb_tests::wait::wait_until;
use support::bulk::{byte_at, send, sink};
use support::{Xlb, addresses, service};
use xlb::datapath::object;

const PORT: u16 = 7000;

/// Forward mode, service address, whether backends are IPv6.
const WAYS: [(&str, &str, bool); 5] = [
    ("dsr-l2", "192.0.2.10", false),
    ("dsr-l2", "2001:db8::10", true),
    ("dsr-ipip", "192.0.2.20", false),
    ("dsr-ipip", "2001:db8::20", true),
    ("dsr-ipip", "192.0.2.30", true),
];

fn services(lab: &Lab, backend: &str) -> String {
    let all = WAYS.iter().enumerate().flat_map(|(n, (forward, address, v6))| {
        ["tcp", "udp"].map(|protocol| {
            let name = format!("{protocol}{n}");
            let own = addresses(lab, *v6);
            let text = service(&name, address, PORT, protocol, forward, "type = \"none\"", &own);
            text + backend
        })
    });
    all.collect()
}

fn lab() -> anyhow::Result<Lab> {
    Lab::new(LabOptions {
        backends: 1,
        decap: true,
        ..LabOptions::default()
    })
}

/// `traceroute` with packets of every kind finds the service one hop away: the load balancer takes nothing off the TTL, so
/// that packets with one hop left arrive.
#[test]
fn traceroute_ends_at_the_service_after_one_hop() -> anyhow::Result<()> {
    privileged!("traceroute_ends_at_the_service_after_one_hop");
    let lab = lab()?;
    let xlb = Xlb::started(&lab, "", &services(&lab, ""))?;
    let backend = &lab.backends[0];
    // Answers to UDP are errors, of which the kernel sends one a second unless it is told otherwise.
    backend.netns.sysctl("net/ipv4/icmp_ratelimit", "0")?;
    backend.netns.sysctl("net/ipv6/icmp/ratelimit", "0")?;
    let _listener = backend.netns.enter(|| TcpListener::bind(("::", PORT)))?;
    for (n, (forward, address, v6)) in WAYS.iter().enumerate() {
        let own = backend.address(if *v6 { lab.lb.v6.into() } else { lab.lb.v4.into() });
        for (kind, service) in [("-T", Some("tcp")), ("-U", Some("udp")), ("-I", None)] {
            let what = format!("{forward} {address} {kind}");
            let sent = || -> anyhow::Result<u64> {
                match service {
                    Some(protocol) => {
                        let said = xlb.backend(&format!("{protocol}{n}"), &own.to_string())?;
                        said["packets"].as_u64().context("packets")
                    }
                    None => xlb.reason("echo_reply"),
                }
            };
            let before = sent()?;
            let port = if service.is_some() {
                format!("-p {PORT} ")
            } else {
                String::new()
            };
            let line = format!("traceroute -n -q 2 -w 2 -m 4 {kind} {port}{address}");
            let text = lab.client.netns.run(&line).context(what.clone())?;
            let hops: Vec<&str> = text.lines().skip(1).collect();
            let [hop] = hops[..] else {
                anyhow::bail!("{what}: not one hop:\n{text}")
            };
            let words: Vec<&str> = hop.split_whitespace().collect();
            ensure!(words[..2] == ["1", *address], "{what}:\n{text}");
            ensure!(
                !hop.contains('*') && hop.matches(" ms").count() == 2,
                "{what}:\n{text}"
            );
            ensure!(sent()? >= before + 2, "{what}: it went by the load balancer");
        }
    }
    assert_eq!(lab.checksum_errors()?, 0);
    Ok(())
}

const DATAGRAM: usize = 1400;
/// So many are on the way at most: they fit into the receiver's buffer, whatever it does meanwhile.
const WINDOW: u64 = 32;

/// Takes `count` datagrams in their order, each byte as it has to be, and says after each window that it did.
fn take(host: &Host, to: SocketAddr, count: u64) -> anyhow::Result<JoinHandle<anyhow::Result<()>>> {
    let socket = host.netns.enter(|| UdpSocket::bind(to))?;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    Ok(std::thread::spawn(move || {
        let mut buffer = [0; 2 * DATAGRAM];
        for number in 0..count {
            let (length, from) = socket.recv_from(&mut buffer)?;
            ensure!(length == DATAGRAM, "datagram {number} has {length} bytes");
            let first = number * DATAGRAM as u64;
            let right = buffer[..length]
                .iter()
                .zip(first..)
                .all(|(byte, at)| *byte == byte_at(at));
            ensure!(right, "datagram {number} is lost, out of order or damaged");
            if (number + 1) % WINDOW == 0 || number + 1 == count {
                socket.send_to(&(number + 1).to_be_bytes(), from)?;
            }
        }
        Ok(())
    }))
}

/// A hundred megabytes of datagrams in one flow, none of them lost: the receiver paces the sender.
#[test]
fn a_hundred_megabytes_of_datagrams_arrive_in_order_in_every_way() -> anyhow::Result<()> {
    privileged!("a_hundred_megabytes_of_datagrams_arrive_in_order_in_every_way");
    const COUNT: u64 = 100_000_000_u64.div_ceil(DATAGRAM as u64);
    let lab = lab()?;
    let xlb = Xlb::started(&lab, "", &services(&lab, ""))?;
    let backend = &lab.backends[0];
    for (n, (forward, address, v6)) in WAYS.iter().enumerate() {
        let what = format!("{forward} {address}");
        let own = backend.address(if *v6 { lab.lb.v6.into() } else { lab.lb.v4.into() });
        let to = SocketAddr::new(address.parse()?, PORT);
        let taker = take(backend, to, COUNT).context(what.clone())?;
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
        client.set_read_timeout(Some(Duration::from_secs(20)))?;
        let mut datagram = [0; DATAGRAM];
        for number in 0..COUNT {
            for (byte, at) in datagram.iter_mut().zip(number * DATAGRAM as u64..) {
                *byte = byte_at(at);
            }
            client.send(&datagram)?;
            if (number + 1) % WINDOW == 0 || number + 1 == COUNT {
                let mut said = [0; 8];
                let heard = client.recv(&mut said);
                if heard.is_err() {
                    break;
                }
                ensure!(u64::from_be_bytes(said) == number + 1, "{what}: {said:?}");
            }
        }
        taker.join().expect("a thread that ends").context(what.clone())?;
        // Counted by the load balancer: all of them, and not one more.
        let said = xlb.backend(&format!("udp{n}"), &own.to_string())?;
        assert_eq!(said["packets"], COUNT, "{what}: {said}");
    }
    for reason in [
        "too_big",
        "too_big_answered",
        "cannot_send",
        "malformed",
        "no_backend",
        "no_next_hop",
    ] {
        assert_eq!(xlb.reason(reason)?, 0, "{reason}");
    }
    assert_eq!(backend.netns.counter("Udp", "RcvbufErrors")?, 0);
    assert_eq!(lab.checksum_errors()?, 0);
    assert_eq!(lab.tx_errors()?, 0);
    Ok(())
}

/// What a switch does on a backend's port into a VLAN: frames of it lose their tag, those of others end.
struct AccessPort(Ebpf);

impl AccessPort {
    fn on(host: &Host, vlan: u16) -> anyhow::Result<Self> {
        host.netns.enter(|| {
            let mut ebpf = EbpfLoader::new()
                .override_global("ACCESS_VLAN", &vlan, true)
                .load(object::harness())?;
            // From Linux 6.6 on nobody needs it; it may be there from the one before.
            tc::qdisc_add_clsact("eth0").ok();
            let program: &mut SchedClassifier = ebpf
                .program_mut("vlan_access")
                .context("the program")?
                .try_into()?;
            program.load()?;
            program.attach("eth0", TcAttachType::Ingress)?;
            Ok(Self(ebpf))
        })
    }

    /// Frames of the VLAN that came.
    fn frames(&self) -> anyhow::Result<u64> {
        let map = self.0.map("ACCESSED").context("the map")?;
        let counts: PerCpuArray<&MapData, u64> = map.try_into()?;
        Ok(counts.get(&0, 0)?.iter().sum())
    }
}

/// The backend is in VLAN 100: frames for it have that tag, which its port takes off. The kernel here may lack VLAN devices,
/// so the backend says `vlan` itself.
#[test]
fn a_backend_in_another_vlan_is_reached_in_every_way() -> anyhow::Result<()> {
    privileged!("a_backend_in_another_vlan_is_reached_in_every_way");
    const BYTES: u64 = 20_000_000;
    let lab = lab()?;
    let backend = &lab.backends[0];
    let xlb = Xlb::started(&lab, "vlans = true\n", &services(&lab, "vlan = 100\n"))?;
    let port = AccessPort::on(backend, 100)?;
    for (n, (forward, address, _)) in WAYS.iter().enumerate() {
        let what = format!("{forward} {address}");
        let sink = sink(backend, PORT).context(what.clone())?;
        let arrived = send(&lab, SocketAddr::new(address.parse()?, PORT), BYTES).context(what.clone())?;
        assert_eq!(arrived, BYTES, "{what}");
        sink.join().expect("a thread that ends").context(what.clone())?;
        let sent = |n: usize| -> anyhow::Result<u64> {
            let (_, _, v6) = WAYS[n];
            let own = backend.address(if v6 { lab.lb.v6.into() } else { lab.lb.v4.into() });
            let said = xlb.backend(&format!("tcp{n}"), &own.to_string())?;
            said["packets"].as_u64().context("packets")
        };
        // Every packet that it was sent had the tag. The last of a connection may come when the next has begun.
        let counts = || -> anyhow::Result<(u64, u64)> {
            let all = (0..=n).map(sent).sum::<anyhow::Result<u64>>()?;
            Ok((port.frames()?, all))
        };
        wait_until("as many frames as packets", || {
            counts().map(|(frames, all)| frames == all)
        })
        .with_context(|| format!("{what}: {:?}", counts()))?;
        let sent = sent(n)?;
        ensure!(sent > BYTES / 1500, "{what}: {sent}");
    }
    assert_eq!(lab.checksum_errors()?, 0);
    assert_eq!(lab.tx_errors()?, 0);

    // On a port of another VLAN nothing of it arrives.
    drop(port);
    let other = AccessPort::on(backend, 101)?;
    let line = format!("curl --silent --max-time 2 http://192.0.2.10:{PORT}/");
    ensure!(
        lab.client.netns.run(&line).is_err(),
        "it arrived on a port of another VLAN"
    );
    assert_eq!(other.frames()?, 0);
    Ok(())
}

/// A pair of devices by which the kernel of the load balancer sends service addresses: pieces of at most 1400 bytes come
/// back to the program.
const PIECES: &str = "link add frag0 mtu 1400 type veth peer name frag1 mtu 1400\n\
     link set frag0 up\nlink set frag1 up\n\
     neigh add 169.254.77.1 lladdr 02:00:00:00:77:01 dev frag0 nud permanent\n";
const ROUTE: &str = "192.0.2.0/24 via 169.254.77.1 dev frag0 onlink\n";

/// A datagram of so many bytes there and back; the client forbids nobody to cut it (`ip_no_pmtu_disc`).
fn exchange(lab: &Lab, server: &UdpSocket, to: SocketAddr, bytes: usize) -> anyhow::Result<()> {
    let client = lab.client.netns.enter(|| {
        let socket = UdpSocket::bind(("0.0.0.0", 0))?;
        socket.connect(to)?;
        Ok::<_, std::io::Error>(socket)
    })?;
    client.set_read_timeout(Some(Duration::from_secs(2)))?;
    let datagram: Vec<u8> = (0..bytes as u64).map(byte_at).collect();
    client.send(&datagram)?;
    let mut buffer = vec![0; 1 << 16];
    let (length, from) = server.recv_from(&mut buffer).context("the datagram")?;
    ensure!(buffer[..length] == datagram, "damaged");
    server.send_to(&buffer[..length], from)?;
    let length = client.recv(&mut buffer).context("the answer")?;
    ensure!(buffer[..length] == datagram, "the answer is damaged");
    Ok(())
}

/// ```text
///  client (no DF) ── eth0 lb eth0 ══ 1500 ══ backend
///                      │      ▲
///               kernel ▼      │ pieces, encapsulated each
///                     frag0 ─ frag1
/// ```
#[test]
fn what_may_be_cut_in_pieces_and_is_too_long_arrives() -> anyhow::Result<()> {
    privileged!("what_may_be_cut_in_pieces_and_is_too_long_arrives");
    let lab = lab()?;
    for host in [&lab.lb, &lab.backends[0]] {
        host.netns.ip("link set eth0 mtu 1500\n")?;
    }
    lab.client.netns.sysctl("net/ipv4/ip_no_pmtu_disc", "1")?;
    lab.lb.netns.ip(&format!("{PIECES}route add {ROUTE}"))?;
    lab.lb.netns.sysctl("net/ipv4/ip_forward", "1")?;
    let agent = "interfaces = [\"eth0\", \"frag1\"]\nfragment_by = \"frag0\"\n";
    let xlb = Xlb::started(&lab, agent, &services(&lab, ""))?;
    let doctor = xlb.verb(&format!("doctor --config {}", xlb.config.display()))?;
    ensure!(
        doctor.contains("goes out by frag0 and comes back by frag1"),
        "{doctor}"
    );
    let left = || xlb.reason("left_to_fragment");
    let told = || -> anyhow::Result<u64> { Ok(xlb.reason("too_big_answered")? + xlb.reason("too_big")?) };
    let backend = &lab.backends[0];
    // IPv4 in IPv4 and in IPv6: 1472 bytes of data make a packet of 1500; more is in fragments when it comes.
    for address in ["192.0.2.20", "192.0.2.30"] {
        let to = SocketAddr::new(address.parse()?, PORT);
        let server = backend.netns.enter(|| UdpSocket::bind(to))?;
        server.set_read_timeout(Some(Duration::from_secs(2)))?;
        for bytes in [1472, 1480, 8000] {
            let before = left()?;
            exchange(&lab, &server, to, bytes).with_context(|| format!("{address}, {bytes} bytes"))?;
            ensure!(
                left()? > before,
                "{address}, {bytes} bytes: they did not go that way"
            );
        }
        let sink = sink(backend, PORT)?;
        assert_eq!(
            send(&lab, to, 2_000_000).context(address)?,
            2_000_000,
            "{address}"
        );
        sink.join().expect("a thread that ends").context(address)?;
    }
    assert_eq!(told()?, 0, "nobody had to be told");
    assert_eq!(lab.checksum_errors()?, 0);

    // Whatever else the kernel would do with them, they are not given to it: no route, a local address, no forwarding.
    let to = SocketAddr::new(IpAddr::from([192, 0, 2, 20]), PORT);
    let server = backend.netns.enter(|| UdpSocket::bind(to))?;
    server.set_read_timeout(Some(Duration::from_millis(200)))?;
    let changes: [(&dyn Fn() -> anyhow::Result<()>, &str); 3] = [
        (&|| lab.lb.netns.ip(&format!("route del {ROUTE}")), "no route"),
        (
            &|| {
                lab.lb
                    .netns
                    .ip(&format!("route add {ROUTE}addr add 192.0.2.20/32 dev lo\n"))
            },
            "a local address",
        ),
        (
            &|| {
                lab.lb.netns.ip("addr del 192.0.2.20/32 dev lo\n")?;
                lab.lb.netns.sysctl("net/ipv4/ip_forward", "0")
            },
            "no forwarding",
        ),
    ];
    for (change, what) in changes {
        change().context(what)?;
        // What the client learned from the answer before.
        lab.client.netns.ip("route flush cache\n")?;
        let before = (left()?, told()?);
        ensure!(exchange(&lab, &server, to, 1472).is_err(), "{what}: it arrived");
        ensure!(left()? == before.0, "{what}: it was given to the kernel");
        ensure!(told()? > before.1, "{what}: nobody was told");
    }
    Ok(())
}
