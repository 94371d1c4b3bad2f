//! `nat` and `full-nat` through VLANs: out with the tags of the backend's, back with those that the client's packets came
//! with.

use lb_common::reason::Reason;
use xlb::datapath::simulate::Outcome;

use super::crowd::{error, frame};
use super::world::{Packet, TcpFlags, Way, World, all_ways};
use crate::build::CLIENT_MAC;
use crate::model::tagged;
use crate::vlan::expected_tags;
use crate::world::mac_of;

const MACS: usize = 12;
const CLIENT_VLANS: [&[u8]; 4] = [
    &[],
    &[0x81, 0, 0, 100],
    &[0x81, 0, 0x60, 101],
    &[0x88, 0xa8, 0x0f, 0xff, 0x81, 0, 0, 5],
];

fn ways() -> impl Iterator<Item = Way> {
    all_ways().into_iter().map(|way| Way { vlans: true, ..way })
}

/// What left, without the tags that it must have.
fn untagged(shows: &str, sent: &Outcome, tags: &[u8]) -> Vec<u8> {
    let has = tagged::tags_of(&sent.out).expect("tags that can be read");
    assert_eq!(sent.out[MACS..MACS + has], *tags, "{shows}: {:?}", sent.reason);
    if has == 0 {
        return sent.out.clone();
    }
    tagged::without(&sent.out, has)
}

#[test]
fn each_side_is_spoken_to_in_its_vlan() {
    for way in ways() {
        let Some(mut world) = World::new(&way) else { return };
        let mut left_in = std::collections::BTreeSet::new();
        for port in 40_000..40_048 {
            let client_tags = CLIENT_VLANS[usize::from(port) % CLIENT_VLANS.len()];
            let name = format!("{} {client_tags:02x?}", way.name());
            let request = tagged::with(&world.client(port, TcpFlags::SYN, b"ask"), client_tags);
            let sent = world.send(&name, &request);
            assert_eq!(sent.reason, Reason::Transmitted, "{name}");
            let backend = sent.backend.expect("a backend");
            let backend_tags = expected_tags(backend.ip());
            let at_backend = Packet::read(&name, &untagged(&name, &sent, &backend_tags));
            assert_eq!(at_backend.destination, backend, "{name}");
            assert_eq!(&sent.out[..6], mac_of(backend.ip()), "{name}");

            let answer = world.backend(&at_backend, TcpFlags::SYN_ACK, b"told");
            let back = world.send(&name, &tagged::with(&answer, &backend_tags));
            assert_eq!(back.reason, Reason::NatReply, "{name}");
            let at_client = Packet::read(&name, &untagged(&name, &back, client_tags));
            assert_eq!(
                (at_client.source, at_client.destination),
                (way.service(), way.client(port)),
                "{name}"
            );
            assert_eq!(&back.out[..6], CLIENT_MAC, "{name}");

            // A router's error about the answer, from the client's side; and the backend's about the request.
            let quoted = &untagged(&name, &back, client_tags)[14..];
            let kind = if way.v6 { [1, 0] } else { [3, 1] };
            let complaint = error(at_client.destination.ip(), way.service().ip(), kind, 9, quoted);
            let told = world.send(&name, &tagged::with(&frame(CLIENT_MAC, &complaint), client_tags));
            assert_eq!(told.reason, Reason::Transmitted, "{name}");
            untagged(&name, &told, &backend_tags);
            let quoted = &untagged(&name, &sent, &backend_tags)[14..];
            let complaint = error(backend.ip(), at_backend.source.ip(), kind, 9, quoted);
            let told = world.send(
                &name,
                &tagged::with(&frame(mac_of(backend.ip()), &complaint), &backend_tags),
            );
            assert_eq!(told.reason, Reason::NatReply, "{name}");
            untagged(&name, &told, client_tags);
            left_in.insert((client_tags, backend_tags));
        }
        // Four kinds of clients with three kinds of backends.
        assert_eq!(left_in.len(), 12, "{}", way.name());
    }
}

#[test]
fn bytes_are_those_of_the_frames_that_came() {
    for way in ways() {
        let Some(mut world) = World::new(&way) else { return };
        let name = way.name();
        let tags = CLIENT_VLANS[3];
        let sent = world.send(&name, &tagged::with(&world.client(1, TcpFlags::SYN, b""), tags));
        let backend_tags = expected_tags(sent.backend.expect("a backend").ip());
        let at_backend = Packet::read(&name, &untagged(&name, &sent, &backend_tags));
        let answer = tagged::with(
            &world.backend(&at_backend, TcpFlags::SYN_ACK, b"abc"),
            &backend_tags,
        );
        world.send(&name, &answer);
        let counters = world.simulator.dataplane.maps.nat.counters(0).expect("counters");
        assert_eq!(
            (counters.replies, counters.reply_bytes),
            (1, answer.len() as u64),
            "{name}"
        );
    }
}
