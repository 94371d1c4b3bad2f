//! Packets of services that cannot be forwarded: never passed, because the kernel would answer in the
//! service's name; dropped, with the reason.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use etherparse::IpNumber;
use lb_common::layout::Backend;
use lb_common::reason::Reason;
use xlb::datapath::simulate::Options;
use xlb::model::{BackendId, Protocol, ServiceKey};

use crate::build::{extended, options, raw_in, tcp, transport_of, udp, v4, v6};
use crate::world::{Case, check, config, mac_of, send, world, world_with};

fn case(shows: &'static str, packet: Vec<u8>, reason: Reason, service: Option<&'static str>) -> Case {
    Case {
        shows,
        packet,
        reason,
        service,
    }
}

#[test]
fn nobody_serves() {
    let Some(mut world) = world(false) else { return };
    let packet = tcp("192.0.2.50", 80);
    check(
        &mut world,
        &[case("weights of 0", packet, Reason::NoBackend, Some("nobody"))],
    );
}

#[test]
fn the_next_hop_is_unknown() {
    let Some(mut world) = world(false) else { return };
    let key = ServiceKey {
        address: Ipv4Addr::new(192, 0, 2, 10).into(),
        port: 80,
        protocol: Protocol::Tcp,
    };
    for n in 11..=13 {
        let id = BackendId {
            service: key,
            address: Ipv4Addr::new(10, 0, 1, n).into(),
            port: 80,
        };
        let index = world.dataplane.index_of(&id).expect("a backend of the service");
        world.dataplane.maps.backends.set(index, &Backend::UNRESOLVED);
    }
    let packet = tcp("192.0.2.10", 80);
    let cases = [
        case(
            "all records unresolved",
            packet,
            Reason::NoNextHop,
            Some("l2-tcp"),
        ),
        case(
            "another service of the same hosts",
            udp("192.0.2.10", 53),
            Reason::Transmitted,
            Some("l2-udp"),
        ),
    ];
    check(&mut world, &cases);
}

#[test]
fn the_interface_cannot_be_sent_by() {
    let nowhere = 1_000_000;
    let egress = [11, 12, 13].map(|n| (Ipv4Addr::new(10, 0, 1, n).into(), nowhere));
    let options = Options {
        egress: BTreeMap::from(egress),
        ..Options::default()
    };
    let Some(mut world) = world_with(&config(false), &options) else {
        return;
    };
    let cases = [
        case(
            "next MAC",
            tcp("192.0.2.10", 80),
            Reason::CannotSend,
            Some("l2-tcp"),
        ),
        case(
            "encapsulated",
            tcp("192.0.2.20", 443),
            Reason::CannotSend,
            Some("4in4"),
        ),
    ];
    check(&mut world, &cases);
}

#[test]
fn flooded_frames_are_left_alone() {
    let Some(mut world) = world(false) else { return };
    let mut packet = tcp("192.0.2.10", 80);
    let backend = send(&mut world, "at first", &packet).backend.expect("a backend");
    packet[..6].copy_from_slice(&mac_of(backend.ip()));
    check(
        &mut world,
        &[case(
            "to its backend's MAC",
            packet.clone(),
            Reason::Flooded,
            Some("l2-tcp"),
        )],
    );
    let other = (11..=13)
        .map(|n| IpAddr::from(Ipv4Addr::new(10, 0, 1, n)))
        .find(|address| *address != backend.ip())
        .expect("three backends");
    packet[..6].copy_from_slice(&mac_of(other));
    check(
        &mut world,
        &[case(
            "to another one's MAC",
            packet,
            Reason::Transmitted,
            Some("l2-tcp"),
        )],
    );
}

#[test]
fn more_extension_headers_than_are_followed() {
    let Some(mut world) = world(false) else { return };
    let whole = tcp("2001:db8::20", 443);
    let chain = |destination, depth| {
        let chain = vec![(IpNumber::IPV6_DESTINATION_OPTIONS, options(1)); depth];
        extended(destination, &chain, IpNumber::TCP, transport_of(&whole))
    };
    let cases = [
        case(
            "seven to a service",
            chain("2001:db8::20", 7),
            Reason::ExtensionHeaders,
            None,
        ),
        case(
            "thirty to a service",
            chain("2001:db8::20", 30),
            Reason::ExtensionHeaders,
            None,
        ),
        case(
            "seven to another address",
            chain("2001:db8::99", 7),
            Reason::NotService,
            None,
        ),
    ];
    check(&mut world, &cases);
}

#[test]
fn payload_lengths_of_nothing() {
    let Some(mut world) = world(false) else { return };
    let empty_v6 = {
        let mut header = v6("2001:db8::20");
        header.next_header = IpNumber::TCP;
        let mut bytes = Vec::new();
        header.write(&mut bytes).expect("writing to memory");
        crate::build::frame(0x86dd, &bytes)
    };
    let cases = [
        case("no payload at all", empty_v6, Reason::Malformed, None),
        case(
            "no TCP header",
            raw_in(v4("192.0.2.10"), IpNumber::TCP, &[]),
            Reason::Malformed,
            None,
        ),
        case(
            "half a TCP header",
            raw_in(v4("192.0.2.10"), IpNumber::TCP, &[0; 19]),
            Reason::Malformed,
            None,
        ),
        case(
            "half a UDP header",
            raw_in(v4("192.0.2.10"), IpNumber::UDP, &[0; 7]),
            Reason::Malformed,
            None,
        ),
    ];
    check(&mut world, &cases);
}
