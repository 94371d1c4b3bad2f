//! Tables and records that are switched while packets are in the program: the agent changes what it likes on one CPU,
//! packets run through the program on another, and every flow stays where it is.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use lb_common::layout::kind;
use xlb::datapath::clock::monotonic_ns;

use super::{BACKENDS, BASE, Bench, DRAINED, Flow, HEAVY, UP, address, desired, segment, segment_out};
use crate::pins::apart;
use crate::world::mac_of;

const SWITCHES: usize = 200;

#[test]
fn tables_are_switched_while_packets_are_in_the_program() {
    apart(|| {
        let mut bench = Bench::new();
        bench.settle(&BASE);
        let mut flows = bench.open(60);
        let mut added = BASE;
        added.statuses[3] = Some(UP);
        // Nobody in them dies.
        let mut drained = added.clone();
        drained.statuses[0] = Some(DRAINED);
        let mut heavy = added.clone();
        heavy.statuses[1] = Some(HEAVY);
        let worlds = [added.clone(), drained, added, heavy];
        let stop = AtomicBool::new(false);
        let port = bench.next_port;
        let ahead_ns = bench.ahead_ns.get();
        let clock = || monotonic_ns().saturating_add_signed(ahead_ns);
        let Bench { ebpf, dataplane, .. } = &mut bench;
        let program = super::program(ebpf);
        let dataplane = dataplane.as_mut().expect("an agent");
        let (sent, changes) = thread::scope(|scope| {
            let traffic = scope.spawn(|| {
                let mut sent = 0;
                for port in port.. {
                    for flow in &flows {
                        let to = segment(program, flow.port, false);
                        assert_eq!(to, Some(flow.owner), "port {}", flow.port);
                    }
                    sent += flows.len();
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let Some(owner) = segment(program, port, true) else {
                        continue;
                    };
                    flows.push(Flow { port, owner });
                }
                sent
            });
            let mut changes = 0;
            for world in worlds.iter().cycle().take(SWITCHES) {
                let wanted = desired(world, dataplane);
                let made = dataplane.apply(&wanted, &clock).expect("writing");
                changes += made.len();
                dataplane.renew_allowances(clock()).expect("allowances");
            }
            stop.store(true, Ordering::Relaxed);
            (traffic.join().expect("no flow is misdirected"), changes)
        });
        println!(
            "{sent} packets of {} flows, {changes} changes of tables",
            flows.len()
        );
        assert!(
            changes >= SWITCHES && sent > 1000,
            "{sent} packets, {changes} changes"
        );
    });
}

/// A backend's next hop gets another MAC address: a packet is sent to the one or the other, never to half of each.
#[test]
fn another_mac_address_is_one_moment_for_packets() {
    apart(|| {
        let mut bench = Bench::new();
        bench.settle(&BASE);
        let Flow { port, owner } = bench.open(1)[0];
        let one = mac_of(address(BACKENDS[owner].0));
        let other = [0x02, 0xfd, 0xfc, 0xfb, 0xfa, 0xf9];
        let Bench { ebpf, dataplane, .. } = &bench;
        let program = super::program(ebpf);
        let records = &dataplane.as_ref().expect("an agent").maps.backends;
        let ours: Vec<_> = (1..records.room())
            .map(|index| (index, records.get(index)))
            .filter(|(_, record)| record.kind == kind::L2)
            .collect();
        let stop = AtomicBool::new(false);
        let (mut seen, changes) = ([0_u32; 2], AtomicU32::new(0));
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let turn = changes.fetch_add(1, Ordering::Relaxed);
                    for (index, record) in &ours {
                        let mut record = *record;
                        if turn % 2 == 0 {
                            let pairs = other.chunks(2).map(|pair| u16::from_ne_bytes([pair[0], pair[1]]));
                            record
                                .ethernet
                                .iter_mut()
                                .zip(pairs)
                                .for_each(|(to, pair)| *to = pair);
                        }
                        records.set(*index, &record);
                    }
                    thread::yield_now();
                }
            });
            while seen.iter().any(|count| *count < 5000) || changes.load(Ordering::Relaxed) < 500 {
                let to: [u8; 6] = segment_out(program, port, false)[..6]
                    .try_into()
                    .expect("a frame");
                let Some(which) = [one, other].iter().position(|mac| *mac == to) else {
                    stop.store(true, Ordering::Relaxed);
                    panic!("half of each: {to:02x?}");
                };
                seen[which] += 1;
            }
            stop.store(true, Ordering::Relaxed);
        });
        println!("{seen:?} packets, {changes:?} changes");
    });
}
