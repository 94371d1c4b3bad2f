//! `nat` and `full-nat`: what a client and a backend send, through the program, both ways. What comes out is parsed and
//! every checksum of it computed anew by `etherparse`.

pub mod crowd;
mod model;
mod rewriting;
mod signs;
mod spoiled;
mod table;
mod vlan;
mod world;

use lb_common::reason::Reason;

use crate::build::{self, CLIENT_MAC, PAYLOAD};
use crate::out;
use crate::world::mac_of;
use world::{Packet, TcpFlags, World, all_ways};

#[test]
fn a_connection_goes_to_a_backend_and_its_answers_come_back() {
    for way in all_ways() {
        let Some(mut world) = World::new(&way) else { return };
        let name = way.name();
        let request = world.client(40_000, TcpFlags::SYN, PAYLOAD);
        let sent = world.send(&name, &request);
        assert_eq!(sent.reason, Reason::Transmitted, "{name}");
        let backend = sent.backend.expect("a backend");
        let at_backend = Packet::read(&name, &sent.out);
        assert_eq!(
            at_backend.destination, backend,
            "{name}: to the backend, at its own port"
        );
        assert_eq!(backend.port(), way.backend_port, "{name}");
        if way.full {
            assert_eq!(
                at_backend.source.ip(),
                way.snat(),
                "{name}: from an address of ours"
            );
            assert!(
                (world::FIRST_PORT..=world::LAST_PORT).contains(&at_backend.source.port()),
                "{name}"
            );
        } else {
            assert_eq!(at_backend.source, way.client(40_000), "{name}: from the client");
        }
        assert_eq!(at_backend.hops, 56, "{name}: one hop less");
        assert_eq!(at_backend.payload, PAYLOAD, "{name}");
        assert_eq!(&sent.out[..6], mac_of(backend.ip()), "{name}");

        let answer = world.backend(&at_backend, TcpFlags::SYN_ACK, b"hello");
        let back = world.send(&name, &answer);
        assert_eq!(back.reason, Reason::NatReply, "{name}");
        assert_eq!(back.service.as_deref(), Some("web"), "{name}");
        let at_client = Packet::read(&name, &back.out);
        assert_eq!(at_client.source, way.service(), "{name}: from the service");
        assert_eq!(at_client.destination, way.client(40_000), "{name}: to the client");
        assert_eq!(at_client.payload, b"hello", "{name}");
        assert_eq!(&back.out[..6], CLIENT_MAC, "{name}: where the client's came from");

        let more = world.send(&name, &world.client(40_000, TcpFlags::ACK, b"more"));
        let more = Packet::read(&name, &more.out);
        assert_eq!(
            (more.source, more.destination),
            (at_backend.source, at_backend.destination),
            "{name}"
        );
    }
}

#[test]
fn what_is_nobodys_answer_is_passed_untouched() {
    for way in all_ways() {
        let Some(mut world) = World::new(&way) else { return };
        let name = way.name();
        let sent = world.send(&name, &world.client(40_000, TcpFlags::SYN, b""));
        let at_backend = Packet::read(&name, &sent.out);
        let wrong = Packet {
            source: std::net::SocketAddr::new(at_backend.source.ip(), at_backend.source.port() ^ 1),
            ..at_backend
        };
        let stray = world.backend(&wrong, TcpFlags::ACK, b"x");
        let passed = world.send(&name, &stray);
        assert_eq!(
            (passed.reason, &passed.out),
            (Reason::NotService, &stray),
            "{name}"
        );
    }
}

#[test]
fn other_traffic_is_passed_untouched() {
    let Some(way) = all_ways().into_iter().next() else {
        return;
    };
    let Some(mut world) = World::new(&way) else { return };
    for packet in [
        build::tcp("198.51.100.99", 22),
        build::udp("198.51.100.99", 53),
        build::tcp("2001:db8:99::1", 22),
        build::frame(0x0806, &[0; 28]),
    ] {
        let passed = world.send("not ours", &packet);
        assert_eq!(passed.out, packet);
        assert!(
            matches!(passed.reason, Reason::NotService | Reason::NotIp),
            "{:?}",
            passed.reason
        );
    }
}

#[test]
fn every_checksum_of_a_datagram_becomes_right() {
    // Source ports and payloads that make every value of the checksum likely, 0 and 0xffff among them.
    for way in all_ways().into_iter().filter(|way| way.udp) {
        let Some(mut world) = World::new(&way) else { return };
        let name = way.name();
        for word in (0..=u16::MAX).step_by(13) {
            let [a, b] = word.to_be_bytes();
            let sent = world.send(&name, &world.client(40_000, TcpFlags::ACK, &[a, b]));
            // `read` holds the checksums against its own.
            let at_backend = Packet::read(&name, &sent.out);
            let back = world.send(&name, &world.backend(&at_backend, TcpFlags::ACK, &[b, a]));
            Packet::read(&name, &back.out);
        }
    }
}

#[test]
fn a_datagram_without_checksum_gets_none_over_ipv4_and_is_refused_over_ipv6() {
    for way in all_ways().into_iter().filter(|way| way.udp) {
        let Some(mut world) = World::new(&way) else { return };
        let name = way.name();
        let mut packet = world.client(40_000, TcpFlags::ACK, b"none");
        let at = packet.len() - b"none".len() - 2;
        packet[at..at + 2].fill(0);
        let sent = world.send(&name, &packet);
        if way.v6 {
            assert_eq!(sent.reason, Reason::Malformed, "{name}");
        } else {
            assert_eq!(sent.out[at..at + 2], [0, 0], "{name}");
            assert_eq!(sent.reason, Reason::Transmitted, "{name}");
        }
    }
}

/// Sets the TTL or hop limit.
fn set_hops(way: &world::Way, packet: &mut [u8], hops: u8) {
    packet[14 + if way.v6 { 7 } else { 8 }] = hops;
    if !way.v6 {
        world::fix_header_v4(packet);
    }
}

#[test]
fn a_packet_on_its_last_hop_is_answered() {
    for way in all_ways() {
        let Some(mut world) = World::new(&way) else { return };
        let name = way.name();
        for length in [0, 1, 30, 600, 1400] {
            for hops in [0, 1] {
                let mut packet = world.client(40_000, TcpFlags::SYN, &vec![7; length]);
                set_hops(&way, &mut packet, hops);
                let told = world.send(&name, &packet);
                assert_eq!(told.reason, Reason::TtlExceededAnswered, "{name}: {hops}");
                out::time_exceeded(&name, &packet, &told.out, way.service().ip());
            }
        }
        let flows = &world.simulator.dataplane.maps.nat.flows;
        assert_eq!(flows.all().expect("the table").len(), 0, "{name}: no flow");

        let mut packet = world.client(40_000, TcpFlags::SYN, b"on");
        set_hops(&way, &mut packet, 2);
        let sent = world.send(&name, &packet);
        let at_backend = Packet::read(&name, &sent.out);
        assert_eq!((sent.reason, at_backend.hops), (Reason::Transmitted, 1), "{name}");
        let mut answer = world.backend(&at_backend, TcpFlags::SYN_ACK, b"told");
        set_hops(&way, &mut answer, 1);
        let told = world.send(&name, &answer);
        assert_eq!(told.reason, Reason::TtlExceededAnswered, "{name}");
        let us = if way.full { way.snat() } else { way.service().ip() };
        out::time_exceeded(&name, &answer, &told.out, us);
    }
}

#[test]
fn an_error_about_a_later_fragment_finds_its_flow() {
    for way in all_ways().into_iter().filter(|way| way.udp) {
        let Some(mut world) = World::new(&way) else { return };
        let name = way.name();
        let (client, service) = (way.client(40_000), way.service());
        let whole = crowd::transport(true, client, service, 0, &[5; 64]);
        let fragment = |offset: u16, more: bool, body: &[u8]| {
            let extra = crowd::Extra {
                fragment: Some((9, offset, more)),
                hops: 40,
                ..crowd::Extra::default()
            };
            crowd::frame(
                CLIENT_MAC,
                &crowd::packet(client.ip(), service.ip(), 17, extra, body),
            )
        };
        let first = world.send(&name, &fragment(0, true, &whole[..40]));
        assert_eq!(first.reason, Reason::Transmitted, "{name}");
        let backend = first.backend.expect("a backend");
        let later = world.send(&name, &fragment(5, false, &whole[40..]));
        assert_eq!(later.reason, Reason::Transmitted, "{name}");
        // The backend did not get all of it in time.
        let at_backend = &later.out[14..];
        let us = if way.full { way.snat() } else { client.ip() };
        let kind = if way.v6 { [3, 1] } else { [11, 1] };
        let complaint = crowd::error(backend.ip(), us, kind, 30, at_backend);
        let told = world.send(&name, &crowd::frame(mac_of(backend.ip()), &complaint));
        assert_eq!(told.reason, Reason::NatReply, "{name}");
        let ip = &told.out[14..];
        assert!(out::icmp_sums_up(ip), "{name}: checksum");
        // What the client had sent, but for the hop that it took.
        let header = if way.v6 { 40 } else { 20 };
        let (quoted, sent) = (&ip[header + 8..], &fragment(5, false, &whole[40..])[14..]);
        let addresses = if way.v6 { 8..40 } else { 12..20 };
        assert_eq!(quoted[addresses.clone()], sent[addresses], "{name}: addresses");
        assert_eq!(quoted[header..], sent[header..], "{name}: the rest");
        if !way.v6 {
            assert!(out::sums_up(&[&quoted[..20]]), "{name}: the header inside");
        }
        // Of another datagram nothing is known.
        let mut other = at_backend.to_vec();
        let identification = if way.v6 { 47 } else { 5 };
        other[identification] ^= 1;
        let complaint = crowd::error(backend.ip(), us, kind, 30, &other);
        let stray = world.send(&name, &crowd::frame(mac_of(backend.ip()), &complaint));
        assert_eq!(stray.reason, Reason::OtherProtocol, "{name}");
    }
}

#[test]
fn ipv4_options_and_ipv6_extension_headers_are_kept() {
    for way in all_ways().into_iter().filter(|way| !way.udp) {
        let Some(mut world) = World::new(&way) else { return };
        let name = way.name();
        let packet = if way.v6 {
            let transport = build::tcp_in(
                build::v6(&way.service().ip().to_string()),
                build::syn(40_000, 80),
                PAYLOAD,
            );
            build::extended(
                &way.service().ip().to_string(),
                &[(etherparse::IpNumber::IPV6_DESTINATION_OPTIONS, build::options(2))],
                etherparse::IpNumber::TCP,
                build::transport_of(&transport),
            )
        } else {
            let mut header = build::v4(&way.service().ip().to_string());
            header.options = build::no_operations(5);
            build::tcp_in(header, build::syn(40_000, 80), PAYLOAD)
        };
        let sent = world.send(&name, &packet);
        assert_eq!(sent.reason, Reason::Transmitted, "{name}");
        assert_eq!(sent.out.len(), packet.len(), "{name}");
        let read = Packet::read(&name, &sent.out);
        assert_eq!(read.destination.port(), way.backend_port, "{name}");
        assert_eq!(read.payload, PAYLOAD, "{name}");
    }
}
