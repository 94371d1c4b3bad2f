//! Packets of services reach a backend: `dsr-l2` and `dsr-ipip`.

use std::collections::BTreeMap;

use etherparse::{IpNumber, Ipv4Header, PacketHeaders};
use lb_common::reason::Reason;
use xlb::datapath::simulate::Options;

use crate::build::{
    SOURCE_PORT, authentication, extended, no_operations, options, routing, syn, tcp, tcp_in, transport_of,
    udp, v4, v6,
};
use crate::world::{Case, check, config, send, world, world_with};

fn case(shows: &'static str, packet: Vec<u8>, service: &'static str) -> Case {
    Case {
        shows,
        packet,
        reason: Reason::Transmitted,
        service: Some(service),
    }
}

#[test]
fn every_forward_mode_and_family() {
    let Some(mut world) = world(false) else { return };
    let cases = [
        case("TCP over IPv4, next MAC", tcp("192.0.2.10", 80), "l2-tcp"),
        case("UDP over IPv4, next MAC", udp("192.0.2.10", 53), "l2-udp"),
        case("TCP over IPv6, next MAC", tcp("2001:db8::10", 80), "l2-tcp-v6"),
        case("UDP over IPv6, next MAC", udp("2001:db8::10", 53), "l2-udp-v6"),
        case("TCP, IPv4 in IPv4", tcp("192.0.2.20", 443), "4in4"),
        case("UDP, IPv4 in IPv4", udp("192.0.2.20", 443), "4in4-udp"),
        case("TCP, IPv6 in IPv6", tcp("2001:db8::20", 443), "6in6"),
        case("UDP, IPv6 in IPv6", udp("2001:db8::20", 443), "6in6-udp"),
        case("TCP, IPv4 in IPv6", tcp("192.0.2.30", 443), "4in6"),
        case("TCP, IPv4 in UDP over IPv4", tcp("192.0.2.60", 443), "gue-4in4"),
        case(
            "UDP, IPv4 in UDP over IPv4",
            udp("192.0.2.60", 443),
            "gue-4in4-udp",
        ),
        case("TCP, IPv6 in UDP over IPv6", tcp("2001:db8::60", 443), "gue-6in6"),
        case(
            "UDP, IPv6 in UDP over IPv6",
            udp("2001:db8::60", 443),
            "gue-6in6-udp",
        ),
        case("TCP, IPv4 in UDP over IPv6", tcp("192.0.2.61", 443), "gue-4in6"),
    ];
    check(&mut world, &cases);
}

#[test]
fn an_encapsulated_packet_is_whole_inside() {
    let Some(mut world) = world(false) else { return };
    for (destination, overhead) in [
        ("192.0.2.20", 20),
        ("2001:db8::20", 40),
        ("192.0.2.30", 40),
        ("192.0.2.60", 28),
        ("2001:db8::60", 48),
        ("192.0.2.61", 48),
    ] {
        let packet = tcp(destination, 443);
        let out = send(&mut world, destination, &packet).out;
        let inner = &out[14 + overhead..];
        let parse = |ip| PacketHeaders::from_ip_slice(ip).expect("a packet");
        let (inner, sent) = (parse(inner), parse(&packet[14..]));
        assert_eq!((inner.net, inner.transport), (sent.net, sent.transport));
        assert_eq!(inner.payload.slice(), sent.payload.slice());
    }
}

#[test]
fn padding_of_short_frames_is_not_counted_as_packet() {
    let Some(mut world) = world(false) else { return };
    for (destination, port) in [
        ("192.0.2.10", 80),
        ("192.0.2.20", 443),
        ("192.0.2.30", 443),
        ("2001:db8::20", 443),
        ("192.0.2.60", 443),
        ("192.0.2.61", 443),
        ("2001:db8::60", 443),
    ] {
        let ip = crate::build::ip(destination);
        let mut packet = tcp_in(ip, syn(SOURCE_PORT, port), &[]);
        packet.resize(packet.len() + 17, 0xee);
        let outcome = send(&mut world, destination, &packet);
        assert_eq!(outcome.reason, Reason::Transmitted);
    }
}

#[test]
fn every_traffic_class_is_copied() {
    let Some(mut world) = world(false) else { return };
    for class in 0..=u8::MAX {
        for destination in ["192.0.2.20", "192.0.2.30", "192.0.2.60", "192.0.2.61"] {
            let mut header = v4(destination);
            header.dscp = (class >> 2).try_into().expect("6 bits");
            header.ecn = (class & 3).try_into().expect("2 bits");
            let packet = tcp_in(header, syn(SOURCE_PORT, 443), &[]);
            send(&mut world, "a type of service", &packet);
        }
        for destination in ["2001:db8::20", "2001:db8::60"] {
            let mut header = v6(destination);
            header.traffic_class = class;
            let packet = tcp_in(header, syn(SOURCE_PORT, 443), &[]);
            send(&mut world, "a traffic class", &packet);
        }
    }
}

#[test]
fn outer_checksums_are_right_for_every_length() {
    let Some(mut world) = world(false) else { return };
    for len in 0..1440 {
        for destination in ["192.0.2.20", "192.0.2.60"] {
            let packet = tcp_in(v4(destination), syn(SOURCE_PORT, 443), &vec![0x5a; len]);
            let outcome = send(&mut world, "a length", &packet);
            let fits = len + 40 + if destination == "192.0.2.20" { 20 } else { 28 } <= 1500;
            assert_eq!(outcome.reason == Reason::Transmitted, fits, "{len}");
        }
    }
}

#[test]
fn the_exact_port_comes_before_every_port() {
    let Some(mut world) = world(false) else { return };
    let cases = [
        case("some port", tcp("192.0.2.40", 22), "every-port"),
        case("another port", tcp("192.0.2.40", 65535), "every-port"),
        case("port 0 itself", tcp("192.0.2.40", 0), "every-port"),
        case("the port of its own service", tcp("192.0.2.40", 8080), "one-port"),
        case("some port over IPv6", udp("2001:db8::40", 9), "every-port-v6"),
        Case {
            shows: "the other protocol",
            packet: udp("192.0.2.40", 22),
            reason: Reason::NotService,
            service: None,
        },
    ];
    check(&mut world, &cases);
}

#[test]
fn ipv4_options_are_skipped() {
    let Some(mut world) = world(false) else { return };
    for words in 1..=10_usize {
        for (destination, service) in [
            ("192.0.2.10", "l2-tcp"),
            ("192.0.2.20", "4in4"),
            ("192.0.2.30", "4in6"),
        ] {
            let mut header: Ipv4Header = v4(destination);
            header.options = no_operations(words);
            let port = if service == "l2-tcp" { 80 } else { 443 };
            let packet = tcp_in(header, syn(SOURCE_PORT, port), &[1, 2, 3]);
            check(&mut world, &[case("options", packet, service)]);
        }
    }
}

#[test]
fn extension_headers_are_followed_to_the_sixth() {
    let Some(mut world) = world(false) else { return };
    let tcp = tcp("2001:db8::20", 443);
    let udp = udp("2001:db8::20", 443);
    let kinds = [
        (IpNumber::IPV6_HEADER_HOP_BY_HOP, options(1)),
        (IpNumber::IPV6_DESTINATION_OPTIONS, options(2)),
        (IpNumber::IPV6_DESTINATION_OPTIONS, options(32)),
        (IpNumber::IPV6_ROUTE_HEADER, routing()),
        (IpNumber::AUTHENTICATION_HEADER, authentication()),
    ];
    for kind in &kinds {
        for depth in 1..=6 {
            let chain = vec![kind.clone(); depth];
            let over_tcp = extended("2001:db8::20", &chain, IpNumber::TCP, transport_of(&tcp));
            let over_udp = extended("2001:db8::20", &chain, IpNumber::UDP, transport_of(&udp));
            // What does not fit the way is another test's.
            if over_tcp.len() <= 1400 {
                check(&mut world, &[case("before TCP", over_tcp, "6in6")]);
                check(&mut world, &[case("before UDP", over_udp, "6in6-udp")]);
            }
        }
    }
    let all = [
        kinds[0].clone(),
        kinds[1].clone(),
        kinds[3].clone(),
        kinds[4].clone(),
        kinds[1].clone(),
    ];
    let mixed = extended("2001:db8::20", &all, IpNumber::TCP, transport_of(&tcp));
    check(
        &mut world,
        &[case("one of each in the order of RFC 8200", mixed, "6in6")],
    );
}

#[test]
fn a_backend_behind_another_interface_is_a_redirect() {
    if !crate::world::root() {
        return;
    }
    let netns = lb_tests::netns::Netns::new("redirect").expect("a namespace");
    netns
        .ip("link add out type veth peer name far")
        .expect("a veth pair");
    netns.enter(|| {
        let out = nix::net::if_::if_nametoindex("out").expect("the device");
        let egress = [11, 12, 13].map(|n| (std::net::Ipv4Addr::new(10, 0, 1, n).into(), out));
        let options = Options {
            egress: BTreeMap::from(egress),
            ..Options::default()
        };
        let mut world = world_with(&config(false), &options).expect("root");
        for (packet, service) in [
            (tcp("192.0.2.10", 80), "l2-tcp"),
            (tcp("192.0.2.20", 443), "4in4"),
        ] {
            let expected = Case {
                reason: Reason::Redirected,
                ..case("by the device map", packet, service)
            };
            let outcome = check(&mut world, &[expected]).remove(0);
            let backend = outcome.backend.expect("a backend").ip();
            assert!(backend.is_ipv4());
        }
        // The others stay where they are.
        check(
            &mut world,
            &[case("same interface", tcp("192.0.2.30", 443), "4in6")],
        );
    });
}

#[test]
fn a_named_neighbor_gets_the_frames() {
    let mac = [2, 0xaa, 0xbb, 0xcc, 0xdd, 0xee];
    let neighbors = [11, 12, 13].map(|n| (std::net::Ipv4Addr::new(10, 0, 1, n).into(), mac));
    let options = Options {
        neighbors: BTreeMap::from(neighbors),
        ..Options::default()
    };
    let Some(mut world) = world_with(&config(false), &options) else {
        return;
    };
    let outcome = world
        .packet(&tcp("192.0.2.10", 80))
        .expect("a frame that can be run");
    assert_eq!(outcome.out[..6], mac);
}

/// Packets of one flow stay together, and many flows reach many receive queues.
#[test]
fn source_ports_of_gue_follow_the_flow() {
    let Some(mut world) = world(false) else { return };
    for (destination, ip_len) in [("192.0.2.60", 20), ("2001:db8::60", 40), ("192.0.2.61", 40)] {
        let mut ports = std::collections::BTreeSet::new();
        for source_port in 1000..2000 {
            let sent = |world: &mut _, payload: &[u8], flags: bool| {
                let mut header = syn(source_port, 443);
                header.syn = flags;
                header.ack = !flags;
                let out = send(
                    world,
                    destination,
                    &tcp_in(crate::build::ip(destination), header, payload),
                )
                .out;
                u16::from_be_bytes([out[14 + ip_len], out[15 + ip_len]])
            };
            let first = sent(&mut world, &[], true);
            assert_eq!(sent(&mut world, b"later", false), first, "one flow");
            ports.insert(first);
        }
        // Of 1000 balls in 16384 bins chance alone puts about 30 beside another.
        assert!(ports.len() > 900, "{} of 1000 flows", ports.len());
    }
}

/// With `outer_sources` packets of one flow come from one address of the prefix, those of many flows from many.
#[test]
fn outer_sources_follow_the_flow() {
    let mut config = config(false);
    for service in &mut config.services {
        service.outer_sources = ["198.51.96.0/20", "2001:db8:ffff::/112"]
            .map(|prefix| prefix.parse().expect("a prefix"))
            .to_vec();
    }
    let Some(mut world) = world_with(&config, &crate::world::options()) else {
        return;
    };
    for destination in ["192.0.2.20", "2001:db8::20", "192.0.2.30"] {
        let mut sources = std::collections::BTreeSet::new();
        for source_port in 1000..2000 {
            let sent = |world: &mut xlb::datapath::simulate::Simulator, payload: &[u8]| {
                let packet = tcp_in(crate::build::ip(destination), syn(source_port, 443), payload);
                let outcome = world.packet(&packet).expect("a run");
                assert_eq!(outcome.reason, Reason::Transmitted);
                let outer = &outcome.out[14..];
                let v4 = outer[0] >> 4 == 4;
                if v4 {
                    assert!(crate::out::sums_up(&[&outer[..20]]), "the outer checksum");
                    assert_eq!((outer[12], outer[13], outer[14] >> 4), (198, 51, 6), "the prefix");
                    assert_eq!(outer[20..], packet[14..]);
                    outer[14..16].to_vec()
                } else {
                    let prefix = [0x20, 1, 0x0d, 0xb8, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0];
                    assert_eq!(outer[8..22], prefix);
                    assert_eq!(outer[40..], packet[14..]);
                    outer[22..24].to_vec()
                }
            };
            let first = sent(&mut world, &[]);
            assert_eq!(sent(&mut world, b"later"), first, "one flow");
            sources.insert(first);
        }
        // Of 1000 balls in 4096 bins chance alone leaves about 887 bins.
        assert!(
            sources.len() > 800,
            "{destination}: {} sources of 1000 flows",
            sources.len()
        );
    }
}
