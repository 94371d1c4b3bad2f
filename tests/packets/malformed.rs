//! Frames cut short everywhere, and fields that lie: the program passes or drops by the table of reasons, and
//! never aborts.

use etherparse::IpNumber;
use lb_common::reason::{Reason, Verdict};
use xlb::datapath::simulate::MTU;

use crate::build::{
    ETHERNET, PAYLOAD, SOURCE_PORT, authentication, extended, first_fragment, fragment, no_operations,
    options, raw_in, routing, syn, tcp, tcp_in, transport_of, udp, v4,
};
use crate::model::Model;
use crate::world::{config, world};

/// One packet of each kind.
fn kinds() -> Vec<Vec<u8>> {
    let mut with_options = v4("192.0.2.20");
    with_options.options = no_operations(10);
    let over_v6 = |extensions: &[(IpNumber, Vec<u8>)]| {
        let whole = tcp("2001:db8::20", 443);
        extended("2001:db8::20", extensions, IpNumber::TCP, transport_of(&whole))
    };
    let hop_by_hop = (IpNumber::IPV6_HEADER_HOP_BY_HOP, options(1));
    let destination = (IpNumber::IPV6_DESTINATION_OPTIONS, options(2));
    let routing = (IpNumber::IPV6_ROUTE_HEADER, routing());
    let authentication = (IpNumber::AUTHENTICATION_HEADER, authentication());
    let fragment = (IpNumber::IPV6_FRAGMENTATION_HEADER, fragment(0, true));
    vec![
        tcp("192.0.2.10", 80),
        udp("192.0.2.10", 53),
        tcp("2001:db8::10", 80),
        udp("2001:db8::10", 53),
        tcp("192.0.2.20", 443),
        udp("192.0.2.20", 443),
        tcp("2001:db8::20", 443),
        udp("2001:db8::20", 443),
        tcp("192.0.2.30", 443),
        tcp("192.0.2.40", 22),
        udp("2001:db8::40", 22),
        tcp("192.0.2.50", 80),
        tcp("192.0.2.99", 80),
        udp("2001:db8::99", 53),
        tcp_in(with_options, syn(SOURCE_PORT, 443), PAYLOAD),
        tcp_in(first_fragment(v4("192.0.2.10")), syn(SOURCE_PORT, 80), PAYLOAD),
        raw_in(v4("192.0.2.10"), IpNumber::ICMP, &[8; 24]),
        over_v6(std::slice::from_ref(&hop_by_hop)),
        over_v6(&[
            hop_by_hop,
            destination.clone(),
            routing,
            authentication,
            destination.clone(),
        ]),
        over_v6(&[destination, fragment]),
    ]
}

#[test]
fn cut_short_at_every_length() {
    let Some(mut world) = world(false) else { return };
    let mut model = Model::new(&world, &config(false), MTU);
    for packet in kinds() {
        for len in ETHERNET..=packet.len() {
            let reason = model.compare(&mut world, &packet[..len]);
            // What is no whole packet is never forwarded.
            let forwarded = matches!(reason.verdict(), Verdict::Tx | Verdict::Redirect);
            assert!(!forwarded || len == packet.len(), "{len} of {}", packet.len());
        }
    }
}

#[test]
fn grown_by_padding() {
    let Some(mut world) = world(false) else { return };
    let mut model = Model::new(&world, &config(false), MTU);
    for packet in kinds() {
        let whole = model.compare(&mut world, &packet);
        for padding in [1, 2, 18, 46, 300] {
            let padded = [&packet[..], &vec![0xff; padding]].concat();
            assert_eq!(model.compare(&mut world, &padded), whole);
        }
    }
}

#[test]
fn every_byte_of_the_headers_lies() {
    let Some(mut world) = world(false) else { return };
    let mut model = Model::new(&world, &config(false), MTU);
    for packet in kinds() {
        let headers = packet.len() - PAYLOAD.len().min(packet.len() - ETHERNET);
        for offset in 12..headers {
            let truth = packet[offset];
            let lies = [
                0, 1, 4, 5, 6, 0x0f, 0x11, 0x29, 0x2b, 0x2c, 0x33, 0x3a, 0x3b, 0x3c, 0x40, 0x44, 0x45, 0x46,
                0x4f, 0x50, 0x60, 0x6f, 0x7f, 0x80, 0xff,
            ];
            let near = [truth.wrapping_add(1), truth.wrapping_sub(1), truth ^ 0x80];
            for lie in lies.into_iter().chain(near) {
                let mut frame = packet.clone();
                frame[offset] = lie;
                model.compare(&mut world, &frame);
            }
        }
    }
}

/// Both bytes of the IP length and the header lengths take every value, alone and with the frame cut.
#[test]
fn lengths_take_every_value() {
    let Some(mut world) = world(false) else { return };
    let mut model = Model::new(&world, &config(false), MTU);
    for packet in [tcp("192.0.2.20", 443), udp("192.0.2.10", 53)] {
        for length in 0..=200_u16 {
            for cut in [0, 1, 20] {
                let mut frame = packet.clone();
                frame[ETHERNET + 2..ETHERNET + 4].copy_from_slice(&length.to_be_bytes());
                frame.truncate(packet.len() - cut);
                model.compare(&mut world, &frame);
            }
        }
        for version_and_length in 0..=u8::MAX {
            let mut frame = packet.clone();
            frame[ETHERNET] = version_and_length;
            model.compare(&mut world, &frame);
        }
    }
    let packet = tcp("2001:db8::20", 443);
    for length in 0..=200_u16 {
        for cut in [0, 1, 20] {
            let mut frame = packet.clone();
            frame[ETHERNET + 4..ETHERNET + 6].copy_from_slice(&length.to_be_bytes());
            frame.truncate(packet.len() - cut);
            model.compare(&mut world, &frame);
        }
    }
}

/// A chain of extension headers may end anywhere, whatever its headers say of their lengths.
#[test]
fn lengths_of_extension_headers_take_every_value() {
    let Some(mut world) = world(false) else { return };
    let mut model = Model::new(&world, &config(false), MTU);
    let whole = tcp("2001:db8::20", 443);
    for kind in [
        IpNumber::IPV6_HEADER_HOP_BY_HOP,
        IpNumber::IPV6_DESTINATION_OPTIONS,
        IpNumber::IPV6_ROUTE_HEADER,
        IpNumber::AUTHENTICATION_HEADER,
    ] {
        for depth in [1, 2, 6] {
            let chain = vec![(kind, options(1)); depth];
            let packet = extended("2001:db8::20", &chain, IpNumber::TCP, transport_of(&whole));
            for length in 0..=u8::MAX {
                let mut frame = packet.clone();
                frame[ETHERNET + 41 + (depth - 1) * 8] = length;
                model.compare(&mut world, &frame);
            }
        }
    }
}

#[test]
fn extension_headers_to_the_end_of_the_packet() {
    let Some(mut world) = world(false) else { return };
    let mut model = Model::new(&world, &config(false), MTU);
    let destination = IpNumber::IPV6_DESTINATION_OPTIONS;
    for depth in 1..=170 {
        let chain = vec![(destination, options(1)); depth];
        // The last one announces another one that is not there.
        let frame = extended("2001:db8::20", &chain, destination, &[]);
        let reason = model.compare(&mut world, &frame);
        let expected = if depth < 6 {
            Reason::Malformed
        } else {
            Reason::ExtensionHeaders
        };
        assert_eq!(reason, expected, "{depth}");
    }
}
