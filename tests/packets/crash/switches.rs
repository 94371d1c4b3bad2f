//! Tables that are switched while packets are in the program: the agent changes what it likes on one CPU, packets run
//! through the program on another, and every flow stays where it is.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use xlb::datapath::clock::monotonic_ns;

use super::{BASE, Bench, DRAINED, Flow, HEAVY, UP, desired, segment};
use crate::pins::apart;

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
        let clock = || monotonic_ns() + ahead_ns;
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
