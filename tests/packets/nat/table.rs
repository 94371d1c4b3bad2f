//! The table of translated flows: ports, room, the ends of connections, and the sweep.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use lb_common::nat::FORWARD;
use lb_common::reason::Reason;
use xlb::datapath::clock::monotonic_ns;
use xlb::datapath::nat::sweep::{self, NatReport, NatView};

use super::world::{Packet, TcpFlags, Way, World, all_ways};

const SECOND: u64 = 1_000_000_000;

fn full_ways() -> impl Iterator<Item = Way> {
    all_ways().into_iter().filter(|way| way.full)
}

/// Sweeps as if `later_s` seconds had passed.
fn sweep_later(world: &mut World, later_s: u64, view: &NatView) -> NatReport {
    let view = Arc::new(view.clone());
    let now_ns = monotonic_ns() + later_s * SECOND;
    let flows = &mut world.simulator.dataplane.maps.nat.flows;
    let report = sweep::sweep(flows, &|| Arc::clone(&view), &|| now_ns, &|| true);
    report.expect("a sweep").expect("a whole one")
}

/// Every service's flows may be idle for so long.
fn idle_for(seconds: u64) -> NatView {
    NatView {
        idle_ns: (0..64).map(|index| (index, seconds * SECOND)).collect(),
        pressed: false,
    }
}

fn entries(world: &World) -> usize {
    world
        .simulator
        .dataplane
        .maps
        .nat
        .flows
        .all()
        .expect("the table")
        .len()
}

/// What a backend sees of the client's connection from this port; `None` where it was refused.
fn open(world: &mut World, port: u16) -> Option<Packet> {
    let packet = world.client(port, TcpFlags::SYN, b"");
    let sent = world.send("a new flow", &packet);
    match sent.reason {
        Reason::Transmitted => Some(Packet::read("a new flow", &sent.out)),
        Reason::SnatPorts | Reason::NatRefused => None,
        other => panic!("{other:?}"),
    }
}

#[test]
fn no_two_flows_have_one_port_and_then_they_are_refused() {
    for way in full_ways() {
        let way = Way {
            ports: (5000, 5007),
            ..way
        };
        let Some(mut world) = World::new(&way) else { return };
        let name = way.name();
        let mut seen: BTreeSet<(SocketAddr, SocketAddr)> = BTreeSet::new();
        let mut refused = 0;
        for port in 40_000..40_064 {
            match open(&mut world, port) {
                Some(Packet {
                    source, destination, ..
                }) => assert!(
                    seen.insert((source, destination)),
                    "{name}: {source} to {destination} twice"
                ),
                None => refused += 1,
            }
        }
        // Eight ports towards each of two backends: all of them are found, and no more.
        assert_eq!((seen.len(), refused), (16, 48), "{name}");
        let counters = world.simulator.dataplane.maps.nat.counters(0).expect("counters");
        assert_eq!((counters.opened, counters.refused_ports), (16, 48), "{name}");
        assert_eq!(entries(&world), 32, "{name}: refused flows leave nothing");
    }
}

#[test]
fn a_full_table_refuses_new_flows_and_keeps_the_old() {
    for way in all_ways().into_iter().filter(|way| !way.udp) {
        let way = Way {
            agent: "nat_table_size = 1024\n".into(),
            ports: (1024, 65_535),
            ..way
        };
        let Some(mut world) = World::new(&way) else { return };
        let name = way.name();
        let first = open(&mut world, 1).expect("room");
        let mut refused = 0;
        for port in 2..1200 {
            refused += u32::from(open(&mut world, port).is_none());
        }
        // The kernel's count of elements is exact but for what each CPU keeps back.
        assert!((170..=180).contains(&refused), "{name}: {refused}");
        assert!(entries(&world) <= 2048, "{name}");
        let again = world.send(&name, &world.client(1, TcpFlags::ACK, b"on"));
        let again = Packet::read(&name, &again.out);
        assert_eq!(
            (again.source, again.destination),
            (first.source, first.destination),
            "{name}"
        );
        let counters = world.simulator.dataplane.maps.nat.counters(0).expect("counters");
        assert_eq!(counters.refused_full, u64::from(refused), "{name}");
    }
}

#[test]
fn entries_go_when_their_time_is_over() {
    for way in all_ways() {
        let Some(mut world) = World::new(&way) else { return };
        let name = way.name();
        let at_backend = open(&mut world, 40_000).expect("room");
        assert_eq!(entries(&world), 2, "{name}");
        let view = idle_for(900);
        assert_eq!(
            sweep_later(&mut world, 30, &view).flows,
            1,
            "{name}: a retransmission may come"
        );
        if way.udp {
            assert_eq!(sweep_later(&mut world, 70, &view).removed, 1, "{name}: no answer");
            assert_eq!(entries(&world), 0, "{name}");
            continue;
        }
        world.send(&name, &world.backend(&at_backend, TcpFlags::SYN_ACK, b""));
        assert_eq!(
            sweep_later(&mut world, 70, &view).removed,
            1,
            "{name}: the client never confirmed"
        );

        let at_backend = open(&mut world, 40_001).expect("room");
        world.send(&name, &world.backend(&at_backend, TcpFlags::SYN_ACK, b""));
        world.send(&name, &world.client(40_001, TcpFlags::ACK, b""));
        assert_eq!(
            sweep_later(&mut world, 890, &view).flows,
            1,
            "{name}: idle, established"
        );
        world.send(&name, &world.client(40_001, TcpFlags::FIN, b""));
        assert_eq!(
            sweep_later(&mut world, 100, &view).flows,
            1,
            "{name}: half-closed"
        );
        world.send(&name, &world.backend(&at_backend, TcpFlags::FIN, b""));
        assert_eq!(sweep_later(&mut world, 50, &view).flows, 1, "{name}: TIME-WAIT");
        assert_eq!(sweep_later(&mut world, 70, &view).removed, 1, "{name}: over");
        assert_eq!(entries(&world), 0, "{name}");
    }
}

#[test]
fn a_reset_ends_a_flow_soon_and_a_forged_one_does_not() {
    for way in all_ways().into_iter().filter(|way| !way.udp) {
        let Some(mut world) = World::new(&way) else { return };
        let name = way.name();
        let view = idle_for(900);
        for port in [1, 2] {
            let at_backend = open(&mut world, port).expect("room");
            world.send(&name, &world.backend(&at_backend, TcpFlags::SYN_ACK, b""));
            world.send(&name, &world.client(port, TcpFlags::ACK, b""));
            world.send(&name, &world.client(port, TcpFlags::RST, b""));
        }
        // The client of the second goes on: it was not its reset.
        world.send(&name, &world.client(2, TcpFlags::ACK, b"on"));
        let report = sweep_later(&mut world, 20, &view);
        assert_eq!((report.removed, report.flows), (1, 1), "{name}");
    }
}

#[test]
fn ports_that_are_used_again_get_a_flow_of_their_own() {
    for way in full_ways().filter(|way| !way.udp) {
        let Some(mut world) = World::new(&way) else { return };
        let name = way.name();
        let first = open(&mut world, 40_000).expect("room");
        world.send(&name, &world.backend(&first, TcpFlags::SYN_ACK, b""));
        world.send(&name, &world.client(40_000, TcpFlags::FIN, b""));
        world.send(&name, &world.backend(&first, TcpFlags::FIN, b""));
        // The same addresses and ports again, before anybody swept.
        let again = open(&mut world, 40_000).expect("room");
        assert_eq!(
            again.destination, first.destination,
            "{name}: its slot is the same"
        );
        assert_eq!(entries(&world), 2, "{name}: the old one is gone");
        let back = world.send(&name, &world.backend(&again, TcpFlags::SYN_ACK, b""));
        assert_eq!(back.reason, Reason::NatReply, "{name}");
        let counters = world.simulator.dataplane.maps.nat.counters(0).expect("counters");
        assert_eq!(counters.opened, 2, "{name}");
    }
}

#[test]
fn a_retransmitted_syn_follows_its_flow() {
    for way in full_ways().filter(|way| !way.udp) {
        let Some(mut world) = World::new(&way) else { return };
        let first = open(&mut world, 40_000).expect("room");
        let again = open(&mut world, 40_000).expect("room");
        assert_eq!(first, again, "{}", way.name());
        assert_eq!(entries(&world), 2);
    }
}

#[test]
fn a_reply_without_its_flow_is_swept() {
    for way in full_ways() {
        let Some(mut world) = World::new(&way) else { return };
        let name = way.name();
        open(&mut world, 40_000).expect("room");
        let flows = &mut world.simulator.dataplane.maps.nat.flows;
        let all = flows.all().expect("the table");
        let (forward, _) = all
            .iter()
            .find(|(_, entry)| entry.direction == FORWARD)
            .expect("it");
        flows.remove(forward).expect("it was there");
        assert_eq!(
            sweep_later(&mut world, 1, &idle_for(60)).orphans,
            0,
            "{name}: too young to tell"
        );
        assert_eq!(sweep_later(&mut world, 30, &idle_for(60)).orphans, 1, "{name}");
        assert_eq!(entries(&world), 0, "{name}");
    }
}

#[test]
fn flows_of_a_service_that_is_gone_go_early() {
    let Some(way) = full_ways().next() else { return };
    let Some(mut world) = World::new(&way) else { return };
    let at_backend = open(&mut world, 40_000).expect("room");
    world.send("an answer", &world.backend(&at_backend, TcpFlags::SYN_ACK, b""));
    world.send("a segment", &world.client(40_000, TcpFlags::ACK, b""));
    assert_eq!(sweep_later(&mut world, 20, &NatView::default()).removed, 1);
}

#[test]
fn threads_that_race_for_the_same_ports_never_share_one() {
    for way in full_ways().filter(|way| !way.udp) {
        let way = Way {
            ports: (5000, 5031),
            ..way
        };
        let Some(world) = World::new(&way) else { return };
        let name = way.name();
        let seen = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for thread in 0..4_u16 {
                let (world, seen, name) = (&world, &seen, &name);
                scope.spawn(move || {
                    // Two threads each send the same flows, at the same time.
                    for round in 0..60_u16 {
                        let port = 40_000 + thread / 2 * 100 + round;
                        let packet = world.client(port, TcpFlags::SYN, b"");
                        let run = world.simulator.run(&packet).expect("a run");
                        if run.packet[..12] != packet[..12] {
                            let read = Packet::read(name, &run.packet);
                            seen.lock()
                                .expect("nobody panicked")
                                .push((port, read.source, read.destination));
                        }
                    }
                });
            }
        });
        let seen: BTreeSet<_> = seen.into_inner().expect("nobody panicked").into_iter().collect();
        let pairs: BTreeSet<_> = seen.iter().map(|(_, source, to)| (*source, *to)).collect();
        // One flow may have been refused on one CPU and opened on another; none has two ports, no port two flows.
        let flows: BTreeSet<u16> = seen.iter().map(|(port, ..)| *port).collect();
        assert_eq!(seen.len(), pairs.len(), "{name}: two flows on one port");
        assert_eq!(seen.len(), flows.len(), "{name}: two ports for one flow");
        assert_eq!(entries(&world), 2 * flows.len(), "{name}: nothing is left over");
    }
}
