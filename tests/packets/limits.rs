//! Limits: how many new flows, and how many datagrams, pass in a second.
//!
//! Time goes on while packets are sent, so bounds are exact for the time that passed: from a full bucket its rate and
//! one packet for each interval since the first, no less than the former and no more than both.

use std::time::Instant;

use etherparse::TcpHeader;
use lb_common::layout::GuardCounters;
use lb_common::reason::Reason;
use xlb::config::Config;
use xlb::datapath::simulate::Simulator;
use xlb::model::{Protocol, ServiceKey};

use crate::access::from;
use crate::build::{PAYLOAD, syn, tcp_in, udp_in};
use crate::fragments::pieces;
use crate::icmp::{ERRORS_V4, error, quoted};
use crate::world::{options, send, world_with};

const RATE: u32 = 40;
const INTERVAL_NS: u128 = 1_000_000_000 / RATE as u128;
const TCP: &str = "192.0.2.70";
const TCP_V6: &str = "2001:db8::70";
const UDP: &str = "192.0.2.71";

/// Three services, with limits in TOML.
fn limited(tcp: &str, udp: &str) -> Option<Simulator> {
    let service = |name: &str, address: &str, protocol: &str, limits: &str, backend: &str| {
        format!(
            "[[service]]\nname = \"{name}\"\naddress = \"{address}\"\nport = 80\nprotocol = \"{protocol}\"\n\
             forward = \"dsr-l2\"\n[service.check]\ntype = \"none\"\n[service.limit]\n{limits}\n\
             [[service.backend]]\naddress = \"{backend}\"\n"
        )
    };
    let text = [
        "schema = 1\n[agent]\ninterfaces = [\"lo\"]\nmax_services = 64\nmax_backends = 64\n".to_owned(),
        service("tcp", TCP, "tcp", tcp, "10.0.1.11"),
        service("tcp-v6", TCP_V6, "tcp", tcp, "2001:db8:1::11"),
        service("udp", UDP, "udp", udp, "10.0.1.11"),
    ];
    let config = Config::parse(&text.concat()).unwrap_or_else(|faults| panic!("{faults}"));
    world_with(&config, &options())
}

fn counters(world: &Simulator, address: &str) -> GuardCounters {
    let protocol = if address == UDP {
        Protocol::Udp
    } else {
        Protocol::Tcp
    };
    let key = ServiceKey {
        address: address.parse().expect("an address"),
        port: 80,
        protocol,
    };
    let index = world
        .dataplane
        .index_of_service(&key)
        .expect("a service that is there");
    world.dataplane.maps.guards.counters(index).expect("the map")
}

fn opening(client: &str, service: &str, port: u16) -> Vec<u8> {
    tcp_in(from(client, service), syn(port, 80), PAYLOAD)
}

fn segment(client: &str, service: &str) -> Vec<u8> {
    let mut header = TcpHeader::new(4000, 80, 1000, 64000);
    header.ack = true;
    tcp_in(from(client, service), header, PAYLOAD)
}

fn datagram(client: &str) -> Vec<u8> {
    udp_in(from(client, UDP), 4000, 80, PAYLOAD)
}

/// Sends until so many were refused, and compares what passed with the rate for the time that it took. Gives back how
/// many passed.
fn flood(world: &mut Simulator, over: Reason, mut packet: impl FnMut(u16) -> Vec<u8>) -> u64 {
    let start = Instant::now();
    let (mut passed, mut refused) = (0_u64, 0);
    for port in 1.. {
        let outcome = send(world, "one of a flood", &packet(port));
        if outcome.reason == over {
            refused += 1;
        } else {
            assert_eq!(outcome.reason, Reason::Transmitted);
            passed += 1;
        }
        if refused == 100 {
            break;
        }
    }
    let most = u128::from(RATE) + start.elapsed().as_nanos() / INTERVAL_NS;
    assert!(
        (u128::from(RATE)..=most).contains(&u128::from(passed)),
        "{passed} of {most}"
    );
    passed
}

#[test]
fn new_flows_of_a_service() {
    let Some(mut world) = limited(&format!("new_flows = {RATE}"), "udp_packets_per_client = 1") else {
        return;
    };
    for service in [TCP, TCP_V6] {
        let client = |port: u16| match service {
            TCP => format!("198.18.{}.{}", port / 256, port % 256),
            _ => format!("2001:db8:c:{port:x}::1"),
        };
        flood(&mut world, Reason::FlowLimit, |port| {
            opening(&client(port), service, port)
        });
        assert_eq!(counters(&world, service).over_flows, 100);
        // Segments of connections always pass.
        for _ in 0..3 * RATE {
            let outcome = send(&mut world, "a segment", &segment(&client(1), service));
            assert_eq!(outcome.reason, Reason::Transmitted);
        }
    }
}

#[test]
fn new_flows_of_a_client() {
    let limits = format!("new_flows_per_client = {RATE}\nclient_prefix_v4 = 24");
    let Some(mut world) = limited(&limits, "udp_packets_per_client = 1") else {
        return;
    };
    // A client is a prefix: /24, and the /64 that is the default for IPv6.
    for (service, one, other) in [
        (TCP, ["198.18.1.1", "198.18.1.254"], "198.18.2.1"),
        (
            TCP_V6,
            ["2001:db8:c:1::1", "2001:db8:c:1:ffff::9"],
            "2001:db8:c:2::1",
        ),
    ] {
        let over = Reason::ClientFlowLimit;
        flood(&mut world, over, |port| {
            opening(one[usize::from(port) % 2], service, port)
        });
        assert_eq!(counters(&world, service).over_client_flows, 100);
        // Others are not theirs to use up, and what is refused is charged to nobody.
        flood(&mut world, over, |port| opening(other, service, port));
        let outcome = send(&mut world, "a segment", &segment(one[0], service));
        assert_eq!(outcome.reason, Reason::Transmitted);
        assert_eq!(counters(&world, service).over_flows, 0);
    }
}

#[test]
fn datagrams_of_a_client() {
    let Some(mut world) = limited("new_flows = 1", &format!("udp_packets_per_client = {RATE}")) else {
        return;
    };
    let over = Reason::ClientPacketLimit;
    flood(&mut world, over, |_| datagram("198.18.1.1"));
    flood(&mut world, over, |_| datagram("198.18.1.2"));
    assert_eq!(counters(&world, UDP).over_client_packets, 200);
    // An error about a flow is no packet of the client.
    let mut inner = quoted(UDP, 80, 4000, etherparse::IpNumber::UDP);
    inner[16..20].copy_from_slice(&[198, 18, 1, 1]);
    let outcome = send(&mut world, "an error", &error(UDP, ERRORS_V4[0], &inner));
    assert_eq!(outcome.reason, Reason::Transmitted);
}

/// A datagram counts once, in however many fragments it comes.
#[test]
fn a_datagram_in_fragments_counts_once() {
    let Some(mut world) = limited("new_flows = 1", &format!("udp_packets_per_client = {RATE}")) else {
        return;
    };
    flood(&mut world, Reason::ClientPacketLimit, |port| {
        let whole = pieces(UDP, 4000, 80, u32::from(port), 4000);
        whole[0].clone()
    });
    let Some(mut world) = limited("new_flows = 1", "udp_packets_per_client = 1") else {
        return;
    };
    for piece in pieces(UDP, 4000, 80, 7, 8000) {
        let outcome = send(&mut world, "a piece of one datagram", &piece);
        assert_eq!(outcome.reason, Reason::Transmitted);
    }
}

#[test]
fn a_dry_run_only_counts() {
    let limits = "new_flows = 1000000\nnew_flows_per_client = 1\ndry_run = true";
    let Some(mut world) = limited(limits, "udp_packets_per_client = 1\ndry_run = true") else {
        return;
    };
    let start = Instant::now();
    for port in 1..=200 {
        for packet in [opening("198.18.1.1", TCP, port), datagram("198.18.1.1")] {
            assert_eq!(
                send(&mut world, "in a dry run", &packet).reason,
                Reason::Transmitted
            );
        }
    }
    // What would not have passed: all but the first, and one more for each second that went by.
    let late = start.elapsed().as_secs();
    let GuardCounters {
        over_client_flows, ..
    } = counters(&world, TCP);
    let GuardCounters {
        over_client_packets, ..
    } = counters(&world, UDP);
    for over in [over_client_flows, over_client_packets] {
        assert!((199 - late..=199).contains(&over), "{over} of 200 in {late} s");
    }
}

/// Both limits of a service: the client's comes first, and one that is over it takes nothing from the others.
#[test]
fn a_client_that_is_over_its_limit_takes_nothing_from_the_service() {
    let limits = format!("new_flows = {RATE}\nnew_flows_per_client = 2");
    let Some(mut world) = limited(&limits, "udp_packets_per_client = 1") else {
        return;
    };
    for port in 1..=500 {
        let outcome = send(&mut world, "one client", &opening("198.18.1.1", TCP, port));
        assert!(matches!(
            outcome.reason,
            Reason::Transmitted | Reason::ClientFlowLimit
        ));
    }
    let GuardCounters { over_flows, .. } = counters(&world, TCP);
    assert_eq!(over_flows, 0);
    // Two of the service's were its own at least; it may have got more as time went by.
    let mut passed = 0;
    for client in 1..=RATE {
        let packet = opening(&format!("198.19.0.{client}"), TCP, 1);
        passed += u32::from(send(&mut world, "others", &packet).reason == Reason::Transmitted);
    }
    assert!(passed >= RATE - 2, "{passed}");
}

#[test]
fn below_its_limits_everything_passes() {
    let Some(mut world) = limited("new_flows = 1000", "udp_packets_per_client = 1000") else {
        return;
    };
    for port in 1..=1000 {
        for packet in [opening("198.18.1.1", TCP, port), datagram("198.18.1.1")] {
            assert_eq!(
                send(&mut world, "within a burst", &packet).reason,
                Reason::Transmitted
            );
        }
    }
}
