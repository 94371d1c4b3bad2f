//! ARP and neighbour discovery for service addresses, with `announce` on and off.

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::{
    ArpEthIpv4Packet, ArpOperation, ArpPacket, EtherType, Ethernet2Slice, Icmpv6Header, Icmpv6Type, IpNumber,
    Ipv6Header, Ipv6HeaderSlice,
};
use lb_common::reason::Reason;
use xlb::datapath::simulate::OWN_MAC;

use crate::build::{CLIENT_MAC, ETHERNET, frame};
use crate::world::{CLIENT_V4, CLIENT_V6, Case, check, send, world};

const BROADCAST: [u8; 6] = [0xff; 6];

pub fn arp(operation: ArpOperation, target: Ipv4Addr) -> Vec<u8> {
    let packet = ArpPacket::from(ArpEthIpv4Packet {
        operation,
        sender_mac: CLIENT_MAC,
        sender_ipv4: CLIENT_V4.octets(),
        target_mac: [0; 6],
        target_ipv4: target.octets(),
    });
    let mut frame = frame(EtherType::ARP.0, &packet.to_bytes());
    frame[..6].copy_from_slice(&BROADCAST);
    // As switches pad it.
    frame.resize(60, 0);
    frame
}

fn passes(shows: &'static str, packet: Vec<u8>, reason: Reason) -> Case {
    Case {
        shows,
        packet,
        reason,
        service: None,
    }
}

#[test]
fn arp_requests_for_service_addresses_are_answered() {
    let Some(mut world) = world(true) else { return };
    for address in ["192.0.2.10", "192.0.2.40", "192.0.2.50"] {
        let address: Ipv4Addr = address.parse().expect("an address");
        let request = arp(ArpOperation::REQUEST, address);
        let outcome = send(&mut world, "a request", &request);
        assert_eq!(outcome.reason, Reason::ArpReply);
        let ethernet = Ethernet2Slice::from_slice_without_fcs(&outcome.out).expect("a frame");
        assert_eq!((ethernet.destination(), ethernet.source()), (CLIENT_MAC, OWN_MAC));
        assert_eq!(ethernet.ether_type(), EtherType::ARP);
        let reply = ArpPacket::from_slice(ethernet.payload_slice()).expect("an ARP packet");
        let reply = reply.try_eth_ipv4().expect("of Ethernet and IPv4");
        let expected = ArpEthIpv4Packet {
            operation: ArpOperation::REPLY,
            sender_mac: OWN_MAC,
            sender_ipv4: address.octets(),
            target_mac: CLIENT_MAC,
            target_ipv4: CLIENT_V4.octets(),
        };
        assert_eq!(reply, expected);
        assert_eq!(outcome.out.len(), request.len());
    }
}

#[test]
fn other_arp_is_the_kernels() {
    let service = Ipv4Addr::new(192, 0, 2, 10);
    let Some(mut on) = world(true) else { return };
    let request = arp(ArpOperation::REQUEST, service);
    let broken = |offset: usize, value: u8| {
        let mut packet = request.clone();
        packet[ETHERNET + offset] = value;
        packet
    };
    let pass = |shows, packet| passes(shows, packet, Reason::NotIp);
    let cases = [
        pass(
            "another address",
            arp(ArpOperation::REQUEST, Ipv4Addr::new(192, 0, 2, 99)),
        ),
        pass("a reply", arp(ArpOperation::REPLY, service)),
        pass("another kind of hardware", broken(1, 6)),
        pass("another protocol", broken(2, 0x86)),
        pass("addresses of 8 bytes", broken(4, 8)),
        pass("protocol addresses of 16 bytes", broken(5, 16)),
        pass("cut short", request[..ETHERNET + 27].to_vec()),
    ];
    check(&mut on, &cases);
    let mut off = world(false).expect("root");
    check(&mut off, &[pass("announce off", request)]);
}

/// A neighbour solicitation (RFC 4861 section 4.3) with any options.
fn solicitation(source: Ipv6Addr, destination: Ipv6Addr, target: Ipv6Addr, options: &[u8]) -> Vec<u8> {
    let body = [&target.octets()[..], options].concat();
    let kind = Icmpv6Type::Unknown {
        type_u8: 135,
        code_u8: 0,
        bytes5to8: [0; 4],
    };
    let header = Ipv6Header {
        payload_length: (8 + body.len()) as u16,
        next_header: IpNumber::IPV6_ICMP,
        hop_limit: 255,
        source: source.octets(),
        destination: destination.octets(),
        ..Ipv6Header::default()
    };
    let icmp =
        Icmpv6Header::with_checksum(kind, header.source, header.destination, &body).expect("it is short");
    let mut bytes = Vec::new();
    header.write(&mut bytes).expect("writing to memory");
    icmp.write(&mut bytes).expect("writing to memory");
    bytes.extend(body);
    let mut frame = frame(EtherType::IPV6.0, &bytes);
    let [.., a, b, c, d] = destination.octets();
    frame[..6].copy_from_slice(&[0x33, 0x33, a, b, c, d]);
    frame
}

/// The multicast address that solicitations for `target` go to (RFC 4291 section 2.7.1).
fn solicited_node(target: Ipv6Addr) -> Ipv6Addr {
    let [.., b, c, d] = target.octets();
    Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, b, c, d])
}

fn source_option() -> Vec<u8> {
    [&[1, 1][..], &CLIENT_MAC].concat()
}

const SERVICE: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10);

#[test]
fn solicitations_for_service_addresses_are_answered() {
    let Some(mut world) = world(true) else { return };
    // To the multicast address, and to ours from somebody who checks that we are still there.
    for destination in [solicited_node(SERVICE), SERVICE] {
        let packet = solicitation(CLIENT_V6, destination, SERVICE, &source_option());
        let outcome = send(&mut world, "a solicitation", &packet);
        assert_eq!(outcome.reason, Reason::NeighborReply);
        let ethernet = Ethernet2Slice::from_slice_without_fcs(&outcome.out).expect("a frame");
        assert_eq!((ethernet.destination(), ethernet.source()), (CLIENT_MAC, OWN_MAC));
        let ip = Ipv6HeaderSlice::from_slice(ethernet.payload_slice()).expect("an IPv6 header");
        assert_eq!((ip.source_addr(), ip.destination_addr()), (SERVICE, CLIENT_V6));
        assert_eq!((ip.hop_limit(), ip.next_header()), (255, IpNumber::IPV6_ICMP));
        let message = &ethernet.payload_slice()[Ipv6Header::LEN..];
        assert_eq!(usize::from(ip.payload_length()), message.len());
        let (icmp, rest) = Icmpv6Header::from_slice(message).expect("an ICMPv6 header");
        let Icmpv6Type::NeighborAdvertisement(flags) = icmp.icmp_type else {
            panic!("{:?}", icmp.icmp_type)
        };
        assert!(flags.solicited && flags.r#override && !flags.router);
        let sum = icmp
            .icmp_type
            .calc_checksum(ip.source(), ip.destination(), rest)
            .expect("it is short");
        assert_eq!(icmp.checksum, sum);
        assert_eq!(rest[..16], SERVICE.octets());
        assert_eq!(rest[16..], [&[2, 1][..], &OWN_MAC].concat());
    }
}

#[test]
fn other_neighbour_discovery_is_the_kernels() {
    let Some(mut on) = world(true) else { return };
    let group = solicited_node(SERVICE);
    let usual = solicitation(CLIENT_V6, group, SERVICE, &source_option());
    let broken = |offset: usize, flip: u8| {
        let mut packet = usual.clone();
        packet[ETHERNET + offset] ^= flip;
        packet
    };
    let other = "2001:db8::99".parse().expect("an address");
    let pass = |shows, packet| passes(shows, packet, Reason::OtherProtocol);
    let cases = [
        pass(
            "another address",
            solicitation(CLIENT_V6, solicited_node(other), other, &source_option()),
        ),
        pass(
            "a probe for a duplicate address",
            solicitation(Ipv6Addr::UNSPECIFIED, group, SERVICE, &[]),
        ),
        pass(
            "such a probe with an option, which must not be",
            solicitation(Ipv6Addr::UNSPECIFIED, group, SERVICE, &source_option()),
        ),
        pass(
            "no link-layer address",
            solicitation(CLIENT_V6, group, SERVICE, &[]),
        ),
        pass("a nonce beside it (RFC 3971)", {
            let nonce = [14, 1, 1, 2, 3, 4, 5, 6];
            solicitation(
                CLIENT_V6,
                group,
                SERVICE,
                &[source_option(), nonce.to_vec()].concat(),
            )
        }),
        pass("a hop limit below 255: it came through a router", broken(7, 1)),
        pass("a wrong checksum", broken(42, 1)),
        pass("a code that is not 0", broken(41, 1)),
        pass("a bit flipped in the target", broken(60, 0x80)),
        pass("another kind of message", broken(40, 1)),
    ];
    check(&mut on, &cases);
    let mut off = world(false).expect("root");
    check(&mut off, &[pass("announce off", usual)]);
}

#[test]
fn every_bit_of_a_solicitation_counts() {
    let Some(mut world) = world(true) else { return };
    let usual = solicitation(CLIENT_V6, solicited_node(SERVICE), SERVICE, &source_option());
    // Behind the Ethernet header, without version, traffic class and flow label, which no checksum covers.
    for bit in (ETHERNET + 4) * 8..usual.len() * 8 {
        let mut packet = usual.clone();
        packet[bit / 8] ^= 1 << (bit % 8);
        let outcome = send(&mut world, "a flipped bit", &packet);
        assert_ne!(outcome.reason, Reason::NeighborReply, "bit {bit}");
    }
}
