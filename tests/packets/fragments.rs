//! Fragments: the first of a datagram goes where its flow goes, the others follow it.

use etherparse::{IpFragOffset, IpNumber};
use lb_common::reason::Reason;
use xlb::datapath::simulate::Simulator;

use crate::build::{ETHERNET, extended, fragment, ip, raw_in, udp_in, v4};
use crate::world::{Case, check, send, world};

/// Bytes of payload in each fragment but the last; a multiple of 8.
const PIECE: usize = 1400;

/// A datagram of UDP in fragments, the first one first.
pub fn pieces(
    destination: &str,
    source_port: u16,
    port: u16,
    identification: u32,
    len: usize,
) -> Vec<Vec<u8>> {
    let whole = udp_in(ip(destination), source_port, port, &vec![0x77; len]);
    let v6 = destination.contains(':');
    let body = &whole[ETHERNET + if v6 { 40 } else { 20 }..];
    let last = body.len().div_ceil(PIECE) - 1;
    let cut = |(index, bytes): (usize, &[u8])| {
        let offset = (index * PIECE / 8) as u16;
        if v6 {
            let mut header = fragment(offset, index != last);
            header[3..7].copy_from_slice(&identification.to_be_bytes());
            let extensions = [(IpNumber::IPV6_FRAGMENTATION_HEADER, header)];
            return extended(destination, &extensions, IpNumber::UDP, bytes);
        }
        let mut header = v4(destination);
        header.identification = identification as u16;
        header.more_fragments = index != last;
        header.fragment_offset = IpFragOffset::try_new(offset).expect("13 bits");
        raw_in(header, IpNumber::UDP, bytes)
    };
    body.chunks(PIECE).enumerate().map(cut).collect()
}

/// Address and port of services over UDP, for each forward mode and family.
const SERVICES: [(&str, u16); 5] = [
    ("192.0.2.10", 53),
    ("192.0.2.20", 443),
    ("2001:db8::10", 53),
    ("2001:db8::20", 443),
    ("2001:db8::40", 7),
];

fn case(shows: &'static str, packet: Vec<u8>, reason: Reason) -> Case {
    Case {
        shows,
        packet,
        reason,
        service: None,
    }
}

fn backend_of(world: &mut Simulator, packet: &[u8]) -> Option<std::net::SocketAddr> {
    let outcome = send(world, "a fragment", packet);
    assert_eq!(outcome.reason, Reason::Transmitted);
    outcome.backend
}

#[test]
fn a_datagram_of_8_kb_arrives_at_one_backend() {
    let Some(mut world) = world(false) else { return };
    for (destination, port) in SERVICES {
        for source_port in 3000..3040 {
            let whole = udp_in(ip(destination), source_port, port, &[]);
            let expected = backend_of(&mut world, &whole);
            let pieces = pieces(destination, source_port, port, source_port.into(), 8192);
            assert_eq!(pieces.len(), 6);
            for piece in &pieces {
                assert_eq!(backend_of(&mut world, piece), expected, "{destination}");
            }
            // Behind the first one they may come in any order, and twice.
            for piece in pieces[1..].iter().rev() {
                assert_eq!(backend_of(&mut world, piece), expected, "{destination}");
            }
        }
    }
}

#[test]
fn a_fragment_without_its_first_is_dropped() {
    let Some(mut world) = world(false) else { return };
    for (destination, port) in SERVICES {
        let pieces = pieces(destination, 1, port, 77, 4000);
        check(
            &mut world,
            &[case("before its first", pieces[1].clone(), Reason::Fragment)],
        );
        backend_of(&mut world, &pieces[0]);
        backend_of(&mut world, &pieces[1]);
        let other = self::pieces(destination, 1, port, 78, 4000);
        check(
            &mut world,
            &[case("of another datagram", other[1].clone(), Reason::Fragment)],
        );
    }
}

/// The kernel gets all fragments of a datagram or none.
#[test]
fn fragments_that_are_no_services() {
    let Some(mut world) = world(false) else { return };
    for destination in ["192.0.2.10", "2001:db8::10"] {
        for piece in pieces(destination, 1, 9999, 5, 5000) {
            check(&mut world, &[case("another port", piece, Reason::NotService)]);
        }
    }
    for destination in ["192.0.2.99", "2001:db8::99"] {
        for piece in pieces(destination, 1, 53, 5, 5000) {
            check(&mut world, &[case("another address", piece, Reason::NotService)]);
        }
    }
    let mut header = v4("192.0.2.10");
    header.more_fragments = true;
    let packet = raw_in(header, IpNumber::ICMP, &[8; 64]);
    check(
        &mut world,
        &[case("another protocol", packet, Reason::OtherProtocol)],
    );
}

/// An atomic fragment (RFC 6946) is a whole packet.
#[test]
fn atomic_fragments_are_whole_packets() {
    let Some(mut world) = world(false) else { return };
    let whole = udp_in(ip("2001:db8::20"), 5, 443, &[1; 20]);
    let expected = backend_of(&mut world, &whole);
    let extensions = [(IpNumber::IPV6_FRAGMENTATION_HEADER, fragment(0, false))];
    let atomic = extended(
        "2001:db8::20",
        &extensions,
        IpNumber::UDP,
        crate::build::transport_of(&whole),
    );
    assert_eq!(backend_of(&mut world, &atomic), expected);
}

/// What a removed backend's index is given to next is not sent another one's fragments.
#[test]
fn an_index_that_is_another_backends_now_is_not_followed() {
    let Some(mut world) = world(false) else { return };
    for (destination, port) in [("192.0.2.10", 53), ("192.0.2.20", 443), ("2001:db8::20", 443)] {
        let pieces = pieces(destination, 9, port, 99, 5000);
        let backend = backend_of(&mut world, &pieces[0]).expect("a backend");
        backend_of(&mut world, &pieces[1]);
        let service = xlb::model::ServiceKey {
            address: destination.parse().expect("an address"),
            port,
            protocol: xlb::model::Protocol::Udp,
        };
        let id = xlb::model::BackendId {
            service,
            address: backend.ip(),
            port: backend.port(),
        };
        let index = world.dataplane.index_of(&id).expect("its index");
        let backends = &world.dataplane.maps.backends;
        let mut record = backends.get(index);
        record.ethernet[2] ^= 0x0100;
        backends.set(index, &record);
        let last = pieces.last().expect("several").clone();
        check(&mut world, &[case("of the one before", last, Reason::Fragment)]);
    }
}
