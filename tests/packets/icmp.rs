//! ICMP and ICMPv6: errors follow the flow of the packet inside, echo requests are answered.

use etherparse::{IpNumber, Ipv6Header, PacketBuilder};
use lb_common::reason::Reason;
use xlb::config::Config;
use xlb::datapath::simulate::{OWN_MAC, Simulator};

use crate::build::{
    CLIENT_MAC, ETHERNET, PAYLOAD, authentication, first_fragment, fragment, ip, later_fragment,
    no_operations, options, raw_in, routing, syn, tcp_in, udp_in, v4, v6,
};
use crate::out::icmp_sums_up;
use crate::world::{Case, check, config, send, world, world_with};

/// Errors of every type that exists, with a code and four bytes of its own each.
pub const ERRORS_V4: [[u8; 8]; 6] = [
    [3, 4, 0, 0, 0, 0, 5, 0x78],
    [3, 1, 0, 0, 0, 0, 0, 0],
    [3, 13, 0, 0, 0, 0, 0, 0],
    [11, 0, 0, 0, 0, 0, 0, 0],
    [11, 1, 0, 0, 0, 0, 0, 0],
    [12, 0, 0, 0, 8, 0, 0, 0],
];
pub const ERRORS_V6: [[u8; 8]; 4] = [
    [1, 4, 0, 0, 0, 0, 0, 0],
    [2, 0, 0, 0, 0, 0, 5, 0x14],
    [3, 0, 0, 0, 0, 0, 0, 0],
    [4, 1, 0, 0, 0, 0, 0, 40],
];

/// The first bytes of a transport header: what an error quotes at least.
fn transport(source_port: u16, destination_port: u16) -> Vec<u8> {
    let [a, b] = source_port.to_be_bytes();
    let [c, d] = destination_port.to_be_bytes();
    vec![a, b, c, d, 0, 0, 0, 1]
}

/// A packet of a service to its client, quoted in an error.
pub fn quoted(service: &str, port: u16, client_port: u16, protocol: IpNumber) -> Vec<u8> {
    let bytes = transport(port, client_port);
    if service.contains(':') {
        let mut header = v6(service);
        std::mem::swap(&mut header.source, &mut header.destination);
        raw_in(header, protocol, &bytes)[ETHERNET..].to_vec()
    } else {
        let mut header = v4(service);
        std::mem::swap(&mut header.source, &mut header.destination);
        raw_in(header, protocol, &bytes)[ETHERNET..].to_vec()
    }
}

/// An error to a service address, from a router on the way to the client.
pub fn error(service: &str, head: [u8; 8], quoted: &[u8]) -> Vec<u8> {
    let payload = [&head[..], quoted].concat();
    if service.contains(':') {
        let mut header = v6(service);
        header.source = "2001:db8:ffff::99"
            .parse::<std::net::Ipv6Addr>()
            .expect("an address")
            .octets();
        raw_in(header, IpNumber::IPV6_ICMP, &payload)
    } else {
        let mut header = v4(service);
        header.source = [198, 18, 0, 99];
        raw_in(header, IpNumber::ICMP, &payload)
    }
}

/// Service address, port, protocol, name.
const FLOWS: [(&str, u16, IpNumber, &str); 9] = [
    ("192.0.2.10", 80, IpNumber::TCP, "l2-tcp"),
    ("192.0.2.10", 53, IpNumber::UDP, "l2-udp"),
    ("2001:db8::10", 80, IpNumber::TCP, "l2-tcp-v6"),
    ("2001:db8::10", 53, IpNumber::UDP, "l2-udp-v6"),
    ("192.0.2.20", 443, IpNumber::TCP, "4in4"),
    ("192.0.2.30", 443, IpNumber::TCP, "4in6"),
    ("2001:db8::20", 443, IpNumber::UDP, "6in6-udp"),
    ("192.0.2.40", 22, IpNumber::TCP, "every-port"),
    ("2001:db8::40", 9, IpNumber::UDP, "every-port-v6"),
];

#[test]
fn errors_go_to_the_backend_of_the_flow_they_are_about() {
    let Some(mut world) = world(false) else { return };
    for (address, port, protocol, service) in FLOWS {
        for client_port in 2000..2040 {
            let packet = if protocol == IpNumber::TCP {
                tcp_in(ip(address), syn(client_port, port), &[])
            } else {
                udp_in(ip(address), client_port, port, &[])
            };
            let backend = send(&mut world, service, &packet).backend.expect("a backend");
            let quoted = quoted(address, port, client_port, protocol);
            let errors: Vec<_> = if address.contains(':') {
                ERRORS_V6.to_vec()
            } else {
                ERRORS_V4.to_vec()
            };
            for head in errors {
                let error = error(address, head, &quoted);
                let outcome = send(&mut world, service, &error);
                assert_eq!(outcome.reason, Reason::Transmitted, "{service}");
                assert_eq!(outcome.service.as_deref(), Some(service));
                assert_eq!(
                    outcome.backend,
                    Some(backend),
                    "{service}: the flow's own backend"
                );
            }
        }
    }
}

/// IPv4 options, extension headers and first fragments inside do not hide whose packet it was.
#[test]
fn quoted_packets_of_every_form() {
    let Some(mut world) = world(false) else { return };
    let backend = |world: &mut Simulator, packet: &[u8]| send(world, "its flow", packet).backend;
    let expected = backend(&mut world, &tcp_in(v4("192.0.2.20"), syn(777, 443), &[]));
    for words in 0..=10 {
        for fragmented in [false, true] {
            let mut header = v4("192.0.2.20");
            header.options = no_operations(words);
            if fragmented {
                header = first_fragment(header);
            }
            std::mem::swap(&mut header.source, &mut header.destination);
            let quoted = &raw_in(header, IpNumber::TCP, &transport(443, 777))[ETHERNET..];
            // The error itself has options too.
            let mut outer = v4("192.0.2.20");
            outer.options = no_operations(10 - words);
            let error = raw_in(outer, IpNumber::ICMP, &[&ERRORS_V4[0][..], quoted].concat());
            assert_eq!(backend(&mut world, &error), expected);
        }
    }
    let expected = backend(&mut world, &tcp_in(v6("2001:db8::20"), syn(777, 443), &[]));
    let kinds = [
        (IpNumber::IPV6_HEADER_HOP_BY_HOP, options(1)),
        (IpNumber::IPV6_DESTINATION_OPTIONS, options(2)),
        (IpNumber::IPV6_ROUTE_HEADER, routing()),
        (IpNumber::AUTHENTICATION_HEADER, authentication()),
        (IpNumber::IPV6_FRAGMENTATION_HEADER, fragment(0, true)),
        (IpNumber::IPV6_DESTINATION_OPTIONS, options(1)),
    ];
    for depth in 0..=kinds.len() {
        let mut inner = crate::build::extended(
            "2001:db8::20",
            &kinds[..depth],
            IpNumber::TCP,
            &transport(443, 777),
        )[ETHERNET..]
            .to_vec();
        let (source, destination) = (inner[8..24].to_vec(), inner[24..40].to_vec());
        inner[8..24].copy_from_slice(&destination);
        inner[24..40].copy_from_slice(&source);
        let message = [&ERRORS_V6[1][..], &inner].concat();
        let outer = crate::build::extended(
            "2001:db8::20",
            &kinds[..depth.min(4)],
            IpNumber::IPV6_ICMP,
            &message,
        );
        assert_eq!(backend(&mut world, &outer), expected, "{depth} headers");
    }
}

#[test]
fn errors_that_are_about_no_flow_of_a_service() {
    let Some(mut world) = world(false) else { return };
    let case = |shows, packet, reason| Case {
        shows,
        packet,
        reason,
        service: None,
    };
    let tcp = IpNumber::TCP;
    let whole = quoted("192.0.2.10", 80, 1234, tcp);
    let mut foreign = whole.clone();
    foreign[15] ^= 1;
    let mut later = v4("192.0.2.10");
    std::mem::swap(&mut later.source, &mut later.destination);
    let later = raw_in(later_fragment(later), tcp, &transport(80, 1234))[ETHERNET..].to_vec();
    let head = ERRORS_V4[0];
    let at = |quoted: &[u8]| error("192.0.2.10", head, quoted);
    let mut cases = vec![
        case(
            "a port of no service",
            at(&quoted("192.0.2.10", 81, 1234, tcp)),
            Reason::NotService,
        ),
        case(
            "the other protocol",
            at(&quoted("192.0.2.10", 80, 1234, IpNumber::UDP)),
            Reason::NotService,
        ),
        case("a packet from elsewhere", at(&foreign), Reason::NotService),
        case(
            "an echo reply",
            at(&quoted("192.0.2.10", 0, 0, IpNumber::ICMP)),
            Reason::OtherProtocol,
        ),
        case("a later fragment", at(&later), Reason::IcmpUnmatched),
        case(
            "to another address",
            error("192.0.2.99", head, &quoted("192.0.2.99", 80, 1234, tcp)),
            Reason::OtherProtocol,
        ),
        case(
            "a redirect",
            error("192.0.2.10", [5, 0, 0, 0, 10, 0, 0, 1], &whole),
            Reason::OtherProtocol,
        ),
        case(
            "a reply",
            error("192.0.2.10", [0; 8], &whole),
            Reason::OtherProtocol,
        ),
        case(
            "a source quench (RFC 6633)",
            error("192.0.2.10", [4, 0, 0, 0, 0, 0, 0, 0], &whole),
            Reason::OtherProtocol,
        ),
    ];
    for cut in 0..24 {
        cases.push(case("cut short", at(&whole[..cut]), Reason::IcmpUnmatched));
    }
    let six = quoted("2001:db8::20", 443, 1234, tcp);
    for cut in 0..44 {
        let packet = error("2001:db8::20", ERRORS_V6[0], &six[..cut]);
        cases.push(case("cut short over IPv6", packet, Reason::IcmpUnmatched));
    }
    check(&mut world, &cases);
}

fn echo(destination: &str, id: u16, sequence: u16, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(CLIENT_MAC, OWN_MAC).ip(ip(destination));
    let mut frame = Vec::new();
    if destination.contains(':') {
        let builder = builder.icmpv6_echo_request(id, sequence);
        builder.write(&mut frame, payload).expect("a packet");
    } else {
        let builder = builder.icmpv4_echo_request(id, sequence);
        builder.write(&mut frame, payload).expect("a packet");
    }
    frame
}

/// 65,536 checksums: every one that a request can have.
#[test]
fn every_echo_request_to_a_service_address_is_answered() {
    let Some(mut world) = world(false) else { return };
    for destination in ["192.0.2.10", "192.0.2.50", "2001:db8::20"] {
        for n in (0..=u16::MAX).step_by(if destination == "192.0.2.10" { 1 } else { 97 }) {
            let request = echo(destination, n, 0, &[]);
            assert!(icmp_sums_up(&request[ETHERNET..]));
            let outcome = send(&mut world, destination, &request);
            assert_eq!(outcome.reason, Reason::EchoReply);
            // What is right before is right after: `out` compares the two.
        }
        for len in [1, 2, 3, 56, 57, 1000, 1472] {
            let outcome = send(
                &mut world,
                destination,
                &echo(destination, 1, 2, &vec![0xa5; len]),
            );
            assert_eq!(outcome.reason, Reason::EchoReply);
        }
    }
}

#[test]
fn other_echo_requests_are_the_kernels() {
    let Some(mut world) = world(false) else { return };
    let case = |shows, packet| Case {
        shows,
        packet,
        reason: Reason::OtherProtocol,
        service: None,
    };
    let from = |source: [u8; 4]| {
        let mut header = v4("192.0.2.10");
        header.source = source;
        raw_in(header, IpNumber::ICMP, &[8, 0, 0xf7, 0xff, 0, 0, 0, 0])
    };
    let from_six = |source: &str| {
        let mut header: Ipv6Header = v6("2001:db8::10");
        header.source = source.parse::<std::net::Ipv6Addr>().expect("an address").octets();
        raw_in(header, IpNumber::IPV6_ICMP, &[128, 0, 0, 0, 0, 0, 0, 0])
    };
    let mut with_options = v4("192.0.2.10");
    with_options.options = no_operations(1);
    let mut broadcast = echo("192.0.2.10", 1, 1, PAYLOAD);
    broadcast[..6].copy_from_slice(&[0xff; 6]);
    let cases = [
        case("to another address", echo("192.0.2.99", 1, 1, PAYLOAD)),
        case("to another IPv6 address", echo("2001:db8::99", 1, 1, PAYLOAD)),
        case("from nobody", from([0; 4])),
        case("from loopback", from([127, 0, 0, 1])),
        case("from a group", from([224, 0, 0, 1])),
        case("from everybody", from([255; 4])),
        case("from nobody over IPv6", from_six("::")),
        case("from a group over IPv6", from_six("ff02::1")),
        case("sent to every station", broadcast),
        case(
            "with options",
            raw_in(with_options, IpNumber::ICMP, &[8, 0, 0xf7, 0xff, 0, 0, 0, 0]),
        ),
        case(
            "with a code",
            raw_in(v4("192.0.2.10"), IpNumber::ICMP, &[8, 1, 0, 0, 0, 0, 0, 0]),
        ),
    ];
    check(&mut world, &cases);
}

#[test]
fn answering_can_be_switched_off() {
    let mut config: Config = config(false);
    config.agent.icmp_echo = false;
    let Some(mut world) = world_with(&config, &crate::world::options()) else {
        return;
    };
    for destination in ["192.0.2.10", "2001:db8::10"] {
        let outcome = send(&mut world, "off", &echo(destination, 1, 1, PAYLOAD));
        assert_eq!(outcome.reason, Reason::OtherProtocol);
    }
    // Errors go their way all the same.
    let error = error(
        "192.0.2.10",
        ERRORS_V4[0],
        &quoted("192.0.2.10", 80, 1, IpNumber::TCP),
    );
    assert_eq!(send(&mut world, "an error", &error).reason, Reason::Transmitted);
}
