//! What backends' answers show of them: refusals are noted, for the agent to have a look.

use lb_common::reason::Reason;

use super::crowd::{error, frame};
use super::world::{Packet, TcpFlags, Way, World, all_ways};
use crate::world::mac_of;

fn ways(udp: bool) -> impl Iterator<Item = Way> {
    let ways = all_ways().into_iter().filter(move |way| way.udp == udp);
    ways.map(|way| Way { check: "icmp", ..way })
}

/// The backends that the agent would be told of.
fn told(world: &World, known: &mut Vec<u64>) -> Vec<u32> {
    let mut told = Vec::new();
    world.simulator.dataplane.maps.signs.fresh(known, |index| {
        told.push(index);
        true
    });
    told
}

/// The index of the backend that got a packet.
fn index_of(world: &World, at_backend: &Packet) -> u32 {
    let dataplane = &world.simulator.dataplane;
    let of = |index: &u32| {
        dataplane
            .backend_at(*index)
            .is_some_and(|id| id.address == at_backend.destination.ip())
    };
    (1..dataplane.maps.backends.room()).find(of).expect("a backend")
}

/// A packet of the client's, and the backend that got it.
fn open(world: &mut World, name: &str, port: u16) -> (Packet, Vec<u8>, u32) {
    let sent = world.send(name, &world.client(port, TcpFlags::SYN, b""));
    assert_eq!(sent.reason, Reason::Transmitted, "{name}");
    let at_backend = Packet::read(name, &sent.out);
    let index = index_of(world, &at_backend);
    (at_backend, sent.out[14..].to_vec(), index)
}

#[test]
fn a_refused_connection_is_a_sign_and_an_ended_one_is_none() {
    for way in ways(false) {
        let Some(mut world) = World::new(&way) else { return };
        let (name, mut known) = (way.name(), Vec::new());
        told(&world, &mut known);
        let (at_backend, _, _) = open(&mut world, &name, 1);
        world.send(&name, &world.backend(&at_backend, TcpFlags::SYN_ACK, b""));
        world.send(&name, &world.client(1, TcpFlags::ACK, b"ask"));
        world.send(&name, &world.backend(&at_backend, TcpFlags::RST, b""));
        assert!(told(&world, &mut known).is_empty(), "{name}: it had answered");
        let (at_backend, _, index) = open(&mut world, &name, 2);
        let refusal = world.send(&name, &world.backend(&at_backend, TcpFlags::RST, b""));
        assert_eq!(
            refusal.reason,
            Reason::NatReply,
            "{name}: the client is told as well"
        );
        assert_eq!(told(&world, &mut known), [index], "{name}");
    }
}

#[test]
fn unreachable_is_a_sign_and_too_big_is_none() {
    for way in ways(false).chain(ways(true)) {
        let Some(mut world) = World::new(&way) else { return };
        let (name, mut known) = (way.name(), Vec::new());
        told(&world, &mut known);
        let (at_backend, quoted, index) = open(&mut world, &name, 1);
        let (harmless, unreachable): (&[[u8; 2]], [u8; 2]) = if way.v6 {
            (&[[2, 0], [3, 0], [4, 1]], [1, 4])
        } else {
            (&[[3, 4], [11, 0], [12, 0]], [3, 3])
        };
        let mut complain = |world: &mut World, kind| {
            let backend = at_backend.destination.ip();
            let packet = error(backend, at_backend.source.ip(), kind, 30, &quoted);
            let sent = world.send(&name, &frame(mac_of(backend), &packet));
            assert_eq!(sent.reason, Reason::NatReply, "{name}: {kind:?}");
            told(world, &mut known)
        };
        for kind in harmless {
            assert!(complain(&mut world, *kind).is_empty(), "{name}: {kind:?}");
        }
        assert_eq!(complain(&mut world, unreachable), [index], "{name}");
    }
}

#[test]
fn what_a_client_complains_about_is_no_sign() {
    for way in ways(true) {
        let Some(mut world) = World::new(&way) else { return };
        let (name, mut known) = (way.name(), Vec::new());
        told(&world, &mut known);
        let (at_backend, _, _) = open(&mut world, &name, 1);
        let answer = world.send(&name, &world.backend(&at_backend, TcpFlags::ACK, b"late"));
        let kind = if way.v6 { [1, 4] } else { [3, 3] };
        let gone = error(
            way.client(1).ip(),
            way.service().ip(),
            kind,
            30,
            &answer.out[14..],
        );
        let sent = world.send(&name, &frame(crate::build::CLIENT_MAC, &gone));
        assert_eq!(sent.reason, Reason::Transmitted, "{name}");
        assert!(told(&world, &mut known).is_empty(), "{name}");
    }
}
