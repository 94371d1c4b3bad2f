//! VLAN tags: taken off before anything is looked at, put back on what is passed and answered, replaced by the backend's
//! on what is forwarded.

use std::net::IpAddr;

use etherparse::{ArpOperation, LinkExtSlice, SlicedPacket};
use lb_common::layout::{SERVICE_TAG_TYPE, TAG_TYPE, Tags};
use lb_common::reason::{Reason, Verdict};
use xlb::config::Config;
use xlb::datapath::simulate::{Outcome, Simulator};

use crate::announce::arp;
use crate::build::{first_fragment, frame, ip, later_fragment, raw_in, tcp, udp, udp_in, v4};
use crate::model::tagged;
use crate::out;
use crate::world::{config, options, world_with};

const MACS: usize = 12;

/// The services of these tests with VLANs looked into; backends whose address ends in 12 are in VLAN 300, in 13 in 30 of
/// the provider's 3000.
pub fn with_vlans(announce: bool) -> Config {
    let mut config = config(announce);
    config.agent.vlans = true;
    let backends = config
        .services
        .iter_mut()
        .flat_map(|service| &mut service.backends);
    for backend in backends {
        backend.tags = tags_of(backend.address);
    }
    config
}

/// The tags that a backend is given.
pub fn tags_of(backend: IpAddr) -> Option<Tags> {
    let last = match backend {
        IpAddr::V4(v4) => v4.octets()[3],
        IpAddr::V6(v6) => v6.octets()[15],
    };
    match last {
        12 | 0x12 => Some(Tags::NONE.within(TAG_TYPE, 300)),
        13 | 0x13 => Some(Tags::NONE.within(SERVICE_TAG_TYPE, 3000).within(TAG_TYPE, 30)),
        _ => None,
    }
}

/// The tags that packets to a backend must have, as bytes of the frame.
pub fn expected_tags(backend: IpAddr) -> Vec<u8> {
    let tags = tags_of(backend).unwrap_or(Tags::NONE);
    tags.0.to_le_bytes()[..tags.bytes()].to_vec()
}

/// The numbers of a frame's VLANs, as etherparse reads them.
fn vlans(frame: &[u8]) -> Vec<u16> {
    let packet = SlicedPacket::from_ethernet(frame).expect("a packet");
    let exts = packet.link_exts.iter().filter_map(|ext| match ext {
        LinkExtSlice::Vlan(vlan) => Some(vlan.vlan_identifier().value()),
        _ => None,
    });
    exts.collect()
}

/// In how many ways a frame can come.
fn ways() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("no tag", vec![]),
        ("one tag", vec![0x81, 0, 0, 100]),
        (
            "priority 7, eligible to be dropped, VLAN 4095",
            vec![0x81, 0, 0xff, 0xff],
        ),
        ("priority only", vec![0x81, 0, 0xa0, 0]),
        ("a service tag alone", vec![0x88, 0xa8, 0, 100]),
        ("802.1ad", vec![0x88, 0xa8, 0x01, 0x00, 0x81, 0, 0, 5]),
        ("802.1Q twice", vec![0x81, 0, 0, 7, 0x81, 0, 0x0f, 0xff]),
    ]
}

fn send_tagged(world: &mut Simulator, shows: &str, bare: &[u8], tags: &[u8]) -> Outcome {
    let packet = tagged::with(bare, tags);
    let outcome = world
        .packet(&packet)
        .unwrap_or_else(|error| panic!("{shows}: {error}"));
    let left_with = match outcome.reason {
        Reason::Transmitted | Reason::Redirected => expected_tags(outcome.backend.expect("a backend").ip()),
        _ => tags.to_vec(),
    };
    if outcome.verdict == Verdict::Drop {
        return outcome;
    }
    assert_eq!(
        outcome.out[MACS..MACS + left_with.len()],
        left_with,
        "{shows}: tags"
    );
    let without = Outcome {
        out: tagged::without(&outcome.out, left_with.len()),
        ..outcome.clone()
    };
    out::check(shows, bare, &without);
    outcome
}

#[test]
fn every_way_in_and_out() {
    let Some(mut world) = world_with(&with_vlans(false), &options()) else {
        return;
    };
    let mut left_in = std::collections::BTreeSet::new();
    for (shows, tags) in ways() {
        for (destination, port) in [
            ("192.0.2.10", 80),
            ("192.0.2.20", 443),
            ("192.0.2.30", 443),
            ("2001:db8::10", 80),
            ("2001:db8::20", 443),
        ] {
            for source_port in 40_000..40_020 {
                let packet =
                    crate::build::tcp_in(ip(destination), crate::build::syn(source_port, port), b"x");
                let outcome = send_tagged(&mut world, shows, &packet, &tags);
                assert_eq!(outcome.reason, Reason::Transmitted, "{shows} {destination}");
                left_in.insert(vlans(&outcome.out));
            }
        }
    }
    let all: Vec<Vec<u16>> = vec![vec![], vec![300], vec![3000, 30]];
    assert_eq!(left_in.into_iter().collect::<Vec<_>>(), all);
}

#[test]
fn what_is_passed_is_as_it_came() {
    let Some(mut world) = world_with(&with_vlans(true), &options()) else {
        return;
    };
    for (shows, tags) in ways() {
        for (bare, reason) in [
            (tcp("192.0.2.99", 80), Reason::NotService),
            (tcp("192.0.2.10", 81), Reason::NotService),
            (udp("2001:db8::99", 80), Reason::NotService),
            (
                raw_in(ip("192.0.2.10"), etherparse::IpNumber::GRE, b"x"),
                Reason::OtherProtocol,
            ),
            (
                arp(ArpOperation::REQUEST, "192.0.2.99".parse().expect("an address")),
                Reason::NotIp,
            ),
            (
                raw_in(later_fragment(v4("192.0.2.99")), etherparse::IpNumber::UDP, b"x"),
                Reason::NotService,
            ),
            (tcp("192.0.2.10", 80)[..30].to_vec(), Reason::BadHeader),
        ] {
            assert_eq!(
                send_tagged(&mut world, shows, &bare, &tags).reason,
                reason,
                "{shows}"
            );
        }
    }
}

#[test]
fn what_is_not_ip_behind_tags_is_not_touched() {
    let Some(mut world) = world_with(&with_vlans(true), &options()) else {
        return;
    };
    let packet = tcp("192.0.2.10", 80);
    let three = [0x88, 0xa8, 0, 1, 0x81, 0, 0, 2, 0x81, 0, 0, 3];
    let behind = |ethertype| frame(ethertype, &[0; 60]);
    for (shows, frame) in [
        ("three tags", tagged::with(&packet, &three)),
        ("LLDP", tagged::with(&behind(0x88cc), &[0x81, 0, 0, 1])),
        (
            "PPPoE behind two tags",
            tagged::with(&behind(0x8864), &three[..8]),
        ),
        ("a length", tagged::with(&behind(46), &[0x81, 0, 0, 1])),
        (
            "nothing behind a tag",
            tagged::with(&packet, &three[..4])[..17].to_vec(),
        ),
        (
            "nothing behind two",
            tagged::with(&packet, &three[..8])[..21].to_vec(),
        ),
        ("half a tag", tagged::with(&packet, &three[..4])[..15].to_vec()),
    ] {
        let outcome = world.packet(&frame).expect(shows);
        assert_eq!((outcome.reason, outcome.out), (Reason::Vlan, frame), "{shows}");
    }
}

#[test]
fn answers_go_back_in_the_vlan_that_asked() {
    let Some(mut world) = world_with(&with_vlans(true), &options()) else {
        return;
    };
    let too_long = udp_in(ip("192.0.2.20"), 1, 443, &[0; 1472]);
    let too_long_six = udp_in(ip("2001:db8::20"), 1, 443, &[0; 1452]);
    for (shows, tags) in ways() {
        for (bare, reason) in [
            (
                arp(ArpOperation::REQUEST, "192.0.2.10".parse().expect("an address")),
                Reason::ArpReply,
            ),
            (
                raw_in(
                    ip("192.0.2.10"),
                    etherparse::IpNumber::ICMP,
                    &[8, 0, 0xf7, 0xff, 0, 0, 0, 0],
                ),
                Reason::EchoReply,
            ),
            (too_long.clone(), Reason::TooBigAnswered),
            (too_long_six.clone(), Reason::TooBigAnswered),
        ] {
            let outcome = send_tagged(&mut world, shows, &bare, &tags);
            assert_eq!(outcome.reason, reason, "{shows}");
            if tags.len() == 4 {
                let vlan = u16::from_be_bytes([tags[2], tags[3]]) & 0xfff;
                assert_eq!(vlans(&outcome.out), [vlan], "{shows}");
            }
        }
    }
}

#[test]
fn fragments_follow_through_vlans() {
    let Some(mut world) = world_with(&with_vlans(false), &options()) else {
        return;
    };
    for (shows, tags) in ways() {
        let mut first = first_fragment(v4("192.0.2.20"));
        first.identification = 7;
        let mut later = later_fragment(v4("192.0.2.20"));
        later.identification = 7;
        let whole = udp_in(first.clone(), 40_000, 443, &[1; 64]);
        let first = send_tagged(&mut world, shows, &whole, &tags);
        assert_eq!(first.reason, Reason::Transmitted, "{shows}");
        let rest = raw_in(later, etherparse::IpNumber::UDP, &[2; 64]);
        let later = send_tagged(&mut world, shows, &rest, &tags);
        assert_eq!(
            (later.reason, later.backend),
            (Reason::Transmitted, first.backend),
            "{shows}"
        );
    }
}

#[test]
fn bytes_are_those_of_the_frame_that_came() {
    let Some(mut world) = world_with(&with_vlans(false), &options()) else {
        return;
    };
    let packet = tagged::with(&tcp("192.0.2.20", 443), &[0x81, 0, 0, 1]);
    let backend = world.packet(&packet).expect("a run").backend.expect("a backend");
    let total = |world: &Simulator| {
        let room = world.dataplane.maps.backends.room();
        let of_it = (0..room).filter(|index| {
            world
                .dataplane
                .backend_at(*index)
                .is_some_and(|id| id.address == backend.ip())
        });
        let sum = |index| {
            world
                .dataplane
                .maps
                .backend_counters(index)
                .expect("counters")
                .bytes
        };
        of_it.map(sum).sum::<u64>()
    };
    let before = total(&world);
    world.packet(&packet).expect("a run");
    assert_eq!(total(&world) - before, packet.len() as u64);
}
