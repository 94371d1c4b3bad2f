//! Random frames through program and model.

use etherparse::IpNumber;
use lb_common::reason::Reason;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use xlb::config::Config;
use xlb::datapath::simulate::{MTU, Simulator};

use super::{Expected, Model, tagged};
use crate::build::{
    authentication, extended, first_fragment, fragment, later_fragment, no_operations, options, raw_in,
    routing, syn, tcp_in, transport_of, udp_in, v4, v6,
};
use crate::vlan::with_vlans;
use crate::world::{config, options as world_options, world, world_with};

/// Whole packets, of services and others.
fn packets() -> impl Strategy<Value = Vec<u8>> {
    let v4_destinations = prop::sample::select(vec![
        "192.0.2.10",
        "192.0.2.20",
        "192.0.2.30",
        "192.0.2.40",
        "192.0.2.50",
        "192.0.2.60",
        "192.0.2.61",
        "192.0.2.99",
    ]);
    let v6_destinations = prop::sample::select(vec![
        "2001:db8::10",
        "2001:db8::20",
        "2001:db8::40",
        "2001:db8::60",
        "2001:db8::99",
    ]);
    let ports = prop::sample::select(vec![0_u16, 22, 53, 80, 443, 8000, 8050, 8080, 8100, 8101, 9003]);
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
    through(&config(announce), Model::compare, frames, cases);
}

fn through(
    config: &Config,
    compare: fn(&mut Model, &mut Simulator, &[u8]) -> Reason,
    frames: impl Strategy<Value = Vec<u8>>,
    cases: u32,
) {
    let Some(world) = world_with(config, &world_options()) else {
        return;
    };
    let world = std::cell::RefCell::new(world);
    let model = std::cell::RefCell::new(Model::new(&world.borrow(), config, MTU));
    let mut runner = TestRunner::new(ProptestConfig::with_cases(cases));
    let result = runner.run(&frames, |frame| {
        compare(&mut model.borrow_mut(), &mut world.borrow_mut(), &frame);
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

/// Frames with up to three tags, some of which are none.
fn with_tags() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop::sample::select(vec![[0x81, 0x00], [0x81, 0x00], [0x88, 0xa8], [0x91, 0x00]]);
    let tag = (kind, any::<[u8; 2]>()).prop_map(|(kind, control)| [kind, control].concat());
    let frames = prop_oneof![3 => packets(), 3 => mutated(), 1 => noise()];
    (frames, prop::collection::vec(tag, 0..4)).prop_map(|(frame, tags)| tagged::with(&frame, &tags.concat()))
}

#[test]
fn frames_with_tags() {
    through(&with_vlans(true), Model::compare_tagged, with_tags(), 6000);
}

/// Without this the model could agree by saying the same of everything.
#[test]
fn the_model_tells_reasons_apart() {
    let Some(world) = world(false) else { return };
    let mut model = Model::new(&world, &config(false), MTU);
    let mut seen = std::collections::BTreeSet::new();
    let mut runner = TestRunner::deterministic();
    for _ in 0..2000 {
        let frame = mutated().new_tree(&mut runner).expect("a frame").current();
        seen.insert(match model.expect(&frame) {
            Expected::Judged { reason, .. } => reason.name(),
            Expected::Placed { .. } => "service",
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
