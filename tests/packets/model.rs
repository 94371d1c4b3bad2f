//! A small load balancer in plain Rust, written from the table of reasons and the RFCs, that says what must
//! become of a frame; and random frames through both.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{EtherType, Ethernet2Slice, IpNumber, NetSlice, SlicedPacket, TransportSlice, ip_number};
use lb_common::reason::Reason;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use xlb::config::{Config, Service};
use xlb::datapath::simulate::Simulator;
use xlb::model::{Forward, Protocol, ServiceKey};

use crate::build::{
    authentication, extended, first_fragment, fragment, later_fragment, no_operations, options, raw_in,
    routing, syn, tcp_in, transport_of, udp_in, v4, v6,
};
use crate::out;
use crate::world::{config, mac_of, world};

/// What must become of a frame.
#[derive(Debug, PartialEq)]
pub enum Expected<'a> {
    /// Judged without a service.
    Reason(Reason),
    /// A service's; `len` bytes of IP packet.
    Service { service: &'a Service, len: usize },
}

/// The longest IP packet towards a backend.
const MTU: usize = 1500;
const MAX_EXTENSIONS: usize = 6;

pub fn expect<'a>(config: &'a Config, frame: &[u8]) -> Expected<'a> {
    let expected = by_rules(config, frame);
    // Where the independent parser is content and the rules are about nothing else, it must say the same.
    if let Some((key, extensions)) = by_parser(frame)
        && extensions <= MAX_EXTENSIONS
    {
        let found = find(config, key).map(|service| service.name.as_str());
        let ruled = match &expected {
            Expected::Service { service, .. } => Some(service.name.as_str()),
            Expected::Reason(reason) => {
                assert_eq!(*reason, Reason::NotService, "the model is wrong: {frame:02x?}");
                None
            }
        };
        assert_eq!(ruled, found, "the model is wrong: {frame:02x?}");
    }
    expected
}

/// The service key of a whole, unfragmented TCP or UDP packet without a VLAN tag, and how many IPv6 extension
/// headers it has.
fn by_parser(frame: &[u8]) -> Option<(ServiceKey, usize)> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    if !packet.link_exts.is_empty() || packet.is_ip_payload_fragmented() {
        return None;
    }
    let (address, extensions) = match packet.net? {
        // An authentication header behind IPv4 is another protocol to us.
        NetSlice::Ipv4(ip) if ip.extensions().is_empty() => (ip.header().destination_addr().into(), 0),
        // The parser takes an IPv6 payload length of 0 for that of a jumbogram (RFC 2675).
        NetSlice::Ipv6(ip) if ip.header().payload_length() != 0 => {
            let extensions = ip.extensions().clone().into_iter().count();
            (ip.header().destination_addr().into(), extensions)
        }
        _ => return None,
    };
    let (protocol, port) = match packet.transport? {
        TransportSlice::Tcp(tcp) => (Protocol::Tcp, tcp.destination_port()),
        TransportSlice::Udp(udp) => (Protocol::Udp, udp.destination_port()),
        _ => return None,
    };
    let key = ServiceKey {
        address,
        port,
        protocol,
    };
    // The parser takes an atomic fragment (RFC 6946) for a whole packet; to us it is a fragment.
    (!frame_has_fragment_header(frame)).then_some((key, extensions))
}

fn frame_has_fragment_header(frame: &[u8]) -> bool {
    let packet = SlicedPacket::from_ethernet(frame).ok();
    match packet.and_then(|packet| packet.net) {
        Some(NetSlice::Ipv6(ip)) => ip
            .extensions()
            .clone()
            .into_iter()
            .any(|extension| matches!(extension, etherparse::Ipv6ExtensionSlice::Fragment(_))),
        _ => false,
    }
}

fn by_rules<'a>(config: &'a Config, frame: &[u8]) -> Expected<'a> {
    let Ok(ethernet) = Ethernet2Slice::from_slice_without_fcs(frame) else {
        return Expected::Reason(Reason::NotIp);
    };
    let packet = ethernet.payload_slice();
    match ethernet.ether_type() {
        EtherType::IPV4 => ipv4(config, packet),
        EtherType::IPV6 => ipv6(config, packet),
        EtherType::VLAN_TAGGED_FRAME | EtherType::PROVIDER_BRIDGING => Expected::Reason(Reason::Vlan),
        _ => Expected::Reason(Reason::NotIp),
    }
}

fn ipv4<'a>(config: &'a Config, packet: &[u8]) -> Expected<'a> {
    if packet.len() < 20 || packet[0] >> 4 != 4 {
        return Expected::Reason(Reason::BadHeader);
    }
    let address = IpAddr::V4(Ipv4Addr::from([packet[16], packet[17], packet[18], packet[19]]));
    let (header, total) = (usize::from(packet[0] & 15) * 4, be(packet, 2));
    let judge = |ours, elsewhere| judge(config, address, ours, elsewhere);
    if total > packet.len() || header < 20 {
        return judge(Reason::Malformed, Reason::BadHeader);
    }
    let (more, offset) = (packet[6] & 0x20 != 0, be(packet, 6) & 0x1fff);
    if more || offset != 0 {
        return judge(Reason::Fragment, Reason::NotService);
    }
    transport(config, address, IpNumber(packet[9]), &packet[..total], header)
}

fn ipv6<'a>(config: &'a Config, packet: &[u8]) -> Expected<'a> {
    if packet.len() < 40 || packet[0] >> 4 != 6 {
        return Expected::Reason(Reason::BadHeader);
    }
    let mut octets = [0; 16];
    octets.copy_from_slice(&packet[24..40]);
    let address = IpAddr::V6(Ipv6Addr::from(octets));
    let total = 40 + be(packet, 4);
    let judge = |ours, elsewhere| judge(config, address, ours, elsewhere);
    if total > packet.len() {
        return judge(Reason::Malformed, Reason::BadHeader);
    }
    let (mut next, mut offset, mut followed) = (IpNumber(packet[6]), 40, 0);
    loop {
        let unit = match next {
            ip_number::IPV6_FRAGMENTATION_HEADER => return judge(Reason::Fragment, Reason::NotService),
            ip_number::AUTHENTICATION_HEADER => 4,
            ip_number::IPV6_HEADER_HOP_BY_HOP
            | ip_number::IPV6_ROUTE_HEADER
            | ip_number::IPV6_DESTINATION_OPTIONS => 8,
            _ => return transport(config, address, next, &packet[..total], offset),
        };
        if followed == MAX_EXTENSIONS {
            return judge(Reason::ExtensionHeaders, Reason::NotService);
        }
        let Some([after, length]) = packet.get(offset..offset + 2) else {
            return judge(Reason::Malformed, Reason::BadHeader);
        };
        // An authentication header counts words beyond the second, the others 8 bytes beyond the first.
        offset += (usize::from(*length) + if unit == 4 { 2 } else { 1 }) * unit;
        if offset > total {
            return judge(Reason::Malformed, Reason::BadHeader);
        }
        next = IpNumber(*after);
        followed += 1;
    }
}

fn transport<'a>(
    config: &'a Config,
    address: IpAddr,
    protocol: IpNumber,
    packet: &[u8],
    offset: usize,
) -> Expected<'a> {
    let (protocol, least) = match protocol {
        ip_number::TCP => (Protocol::Tcp, 20),
        ip_number::UDP => (Protocol::Udp, 8),
        _ => return Expected::Reason(Reason::OtherProtocol),
    };
    if offset + least > packet.len() {
        return judge(config, address, Reason::Malformed, Reason::BadHeader);
    }
    let key = ServiceKey {
        address,
        port: be(packet, offset + 2) as u16,
        protocol,
    };
    match find(config, key) {
        Some(service) => Expected::Service {
            service,
            len: packet.len(),
        },
        None => Expected::Reason(Reason::NotService),
    }
}

fn judge<'a>(config: &Config, address: IpAddr, ours: Reason, elsewhere: Reason) -> Expected<'a> {
    let is_ours = config
        .services
        .iter()
        .any(|service| service.key.address == address);
    Expected::Reason(if is_ours { ours } else { elsewhere })
}

fn find(config: &Config, key: ServiceKey) -> Option<&Service> {
    let with = |port| {
        let key = ServiceKey { port, ..key };
        config.services.iter().find(|service| service.key == key)
    };
    with(key.port).or_else(|| with(0))
}

fn be(bytes: &[u8], offset: usize) -> usize {
    usize::from(u16::from_be_bytes([bytes[offset], bytes[offset + 1]]))
}

/// Sends a frame through the program and compares with the model.
pub fn compare(world: &mut Simulator, config: &Config, frame: &[u8]) -> Reason {
    let outcome = world
        .packet(frame)
        .unwrap_or_else(|error| panic!("{error}: {frame:02x?}"));
    out::check("a frame of the model", frame, &outcome);
    let announced = matches!(outcome.reason, Reason::ArpReply | Reason::NeighborReply);
    let expected = match expect(config, frame) {
        // Answers have tests of their own; here they only must not come for anything else.
        Expected::Reason(Reason::NotIp | Reason::OtherProtocol) if announced => outcome.reason,
        Expected::Reason(reason) => {
            assert_eq!(outcome.service, None, "{frame:02x?}");
            reason
        }
        Expected::Service { service, len } => {
            assert_eq!(
                outcome.service.as_deref(),
                Some(service.name.as_str()),
                "{frame:02x?}"
            );
            let backend = outcome.backend.map(|address| address.ip());
            let known = service.backends.iter().find(|b| Some(b.address) == backend);
            assert_eq!(
                known.is_some(),
                backend.is_some(),
                "a backend of the service: {frame:02x?}"
            );
            match known {
                None => Reason::NoBackend,
                Some(backend) => {
                    let overhead = match (service.forward, backend.address) {
                        (Forward::DsrL2, _) => 0,
                        (Forward::DsrIpip, IpAddr::V4(_)) => 20,
                        (Forward::DsrIpip, IpAddr::V6(_)) => 40,
                    };
                    let flooded = service.forward == Forward::DsrL2 && frame[..6] == mac_of(backend.address);
                    match (len + overhead > MTU, flooded) {
                        (true, _) => Reason::TooBig,
                        (_, true) => Reason::Flooded,
                        _ => Reason::Transmitted,
                    }
                }
            }
        }
    };
    assert_eq!(outcome.reason, expected, "{frame:02x?}");
    outcome.reason
}

/// Whole packets, of services and others.
fn packets() -> impl Strategy<Value = Vec<u8>> {
    let v4_destinations = prop::sample::select(vec![
        "192.0.2.10",
        "192.0.2.20",
        "192.0.2.30",
        "192.0.2.40",
        "192.0.2.50",
        "192.0.2.99",
    ]);
    let v6_destinations = prop::sample::select(vec![
        "2001:db8::10",
        "2001:db8::20",
        "2001:db8::40",
        "2001:db8::99",
    ]);
    let ports = prop::sample::select(vec![0_u16, 22, 53, 80, 443, 8080]);
    let payload = prop::collection::vec(any::<u8>(), 0..60);
    let words = 0..=10_usize;
    let over_v4 = (
        v4_destinations,
        ports.clone(),
        any::<u16>(),
        payload.clone(),
        words,
        0..6_u8,
    )
        .prop_map(|(destination, port, source, payload, words, kind)| {
            let mut header = v4(destination);
            header.options = no_operations(words);
            match kind {
                0 => raw_in(first_fragment(header), IpNumber::TCP, &payload),
                1 => raw_in(later_fragment(header), IpNumber::UDP, &payload),
                2 => raw_in(header, IpNumber(payload.len() as u8), &payload),
                3 => udp_in(header, source, port, &payload),
                _ => tcp_in(header, syn(source, port), &payload),
            }
        });
    let extension = prop_oneof![
        (1..4_u8).prop_map(|units| (IpNumber::IPV6_HEADER_HOP_BY_HOP, options(units))),
        (1..4_u8).prop_map(|units| (IpNumber::IPV6_DESTINATION_OPTIONS, options(units))),
        Just((IpNumber::IPV6_ROUTE_HEADER, routing())),
        Just((IpNumber::AUTHENTICATION_HEADER, authentication())),
        (0..100_u16, any::<bool>())
            .prop_map(|(offset, more)| (IpNumber::IPV6_FRAGMENTATION_HEADER, fragment(offset, more))),
    ];
    let extensions = prop_oneof![
        3 => Just(Vec::new()),
        2 => prop::collection::vec(extension, 0..9),
    ];
    let over_v6 = (
        v6_destinations,
        ports,
        any::<u16>(),
        payload,
        extensions,
        any::<bool>(),
    )
        .prop_map(|(destination, port, source, payload, extensions, tcp)| {
            let (whole, last) = if tcp {
                (
                    tcp_in(v6(destination), syn(source, port), &payload),
                    IpNumber::TCP,
                )
            } else {
                (udp_in(v6(destination), source, port, &payload), IpNumber::UDP)
            };
            extended(destination, &extensions, last, transport_of(&whole))
        });
    prop_oneof![over_v4, over_v6]
}

/// A packet, some of whose bytes were changed, with an end that was cut off or grown.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let byte = (any::<prop::sample::Index>(), any::<u8>());
    let resize = prop_oneof![
        4 => Just(None),
        1 => (14..200_usize).prop_map(Some),
    ];
    (packets(), prop::collection::vec(byte, 0..4), resize).prop_map(|(mut frame, bytes, resize)| {
        for (index, value) in bytes {
            // Where the headers are.
            let reach = frame.len().min(100);
            frame[index.index(reach)] = value;
        }
        if let Some(len) = resize {
            frame.resize(len, 0);
        }
        frame
    })
}

/// Bytes that begin like a frame of IP, and go on anyhow.
fn noise() -> impl Strategy<Value = Vec<u8>> {
    let ethertype = prop::sample::select(vec![[0x08, 0x00], [0x86, 0xdd], [0x08, 0x06], [0x81, 0x00]]);
    (ethertype, prop::collection::vec(any::<u8>(), 14..120)).prop_map(|(ethertype, mut frame)| {
        frame[12..14].copy_from_slice(&ethertype);
        frame
    })
}

fn through_both(frames: impl Strategy<Value = Vec<u8>>, announce: bool, cases: u32) {
    let Some(world) = world(announce) else { return };
    let world = std::cell::RefCell::new(world);
    let config = config(announce);
    let mut runner = TestRunner::new(ProptestConfig::with_cases(cases));
    let result = runner.run(&frames, |frame| {
        compare(&mut world.borrow_mut(), &config, &frame);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

#[test]
fn whole_packets() {
    through_both(packets(), false, 3000);
}

#[test]
fn mutated_packets() {
    through_both(mutated(), false, 6000);
}

#[test]
fn mutated_packets_with_announce() {
    through_both(mutated(), true, 2000);
}

#[test]
fn noise_that_begins_like_ip() {
    through_both(noise(), true, 3000);
}

/// Without this the model could agree by saying the same of everything.
#[test]
fn the_model_tells_reasons_apart() {
    let config = config(false);
    let mut seen = std::collections::BTreeSet::new();
    let mut runner = TestRunner::deterministic();
    for _ in 0..2000 {
        let frame = mutated().new_tree(&mut runner).expect("a frame").current();
        seen.insert(match expect(&config, &frame) {
            Expected::Reason(reason) => reason.name(),
            Expected::Service { .. } => "service",
        });
    }
    let all = [
        "not_ip",
        "bad_header",
        "not_service",
        "other_protocol",
        "malformed",
        "fragment",
        "extension_headers",
        "service",
    ];
    for reason in all {
        assert!(seen.contains(reason), "{reason} is not among {seen:?}");
    }
}
