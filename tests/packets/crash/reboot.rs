//! What a reboot costs: the maps are gone; the hash key, the verdicts and the orders come back from the disk.

use std::fs;

use lb_common::hash;
use lb_tests::KEY;

use super::{BACKENDS, BASE, Bench, DRAINED, HEAVY, SERVICES, UP, World, address, service_of};
use crate::pins::{PIN_DIR, apart};
use crate::world::CLIENT_V4;

/// The machine begins anew.
fn reboot(bench: Bench) -> Bench {
    drop(bench);
    fs::remove_dir_all(PIN_DIR).expect("rm -r");
    Bench::new()
}

/// Flows that lived in stable slots go on. Those that the flow table knew, and those that belonged to `previous` of an
/// open slot, go to the owners of their slots: they break, and no others.
#[test]
fn a_reboot_breaks_the_flows_that_live_elsewhere_than_new_ones_and_no_others() {
    apart(|| {
        let mut added = BASE;
        added.statuses[3] = Some(UP);
        let worlds = [World::first(Some(DRAINED)), World::first(Some(HEAVY)), added];
        for world in worlds {
            let mut bench = Bench::new();
            bench.settle(&BASE);
            let flows = bench.open(200);
            assert!(bench.apply(&world));
            // Half of them are seen before the machine goes.
            bench.check(&flows[..100], &[], "before");
            // Where new flows of the same addresses and ports would go.
            let anew: Vec<_> = flows.iter().map(|flow| bench.owner(flow.port)).collect();
            let mut bench = reboot(bench);
            assert!(bench.apply(&world));
            let mut broken = 0;
            for (flow, new) in flows.iter().zip(anew) {
                let to = bench.send(flow.port, false);
                assert_eq!(to, new, "port {}", flow.port);
                broken += usize::from(to != Some(flow.owner));
            }
            println!("{broken} of {} flows broke", flows.len());
            assert!((1..flows.len() / 2).contains(&broken), "{broken}");
            fs::remove_dir_all(PIN_DIR).expect("rm -r");
        }
    });
}

impl Bench {
    /// Where the table alone leads the flow of a port.
    fn owner(&mut self, port: u16) -> Option<usize> {
        let [a, b] = port.to_be_bytes();
        let ports = u32::from_le_bytes([a, b, 0, 80]);
        let hash = hash::flow_v4(&KEY, u32::from_le_bytes(CLIENT_V4.octets()), ports);
        let dataplane = self.dataplane();
        let to = address(SERVICES[service_of(port)]);
        let key = dataplane.earlier().into_keys().find(|key| key.address == to)?;
        let owners = dataplane.owners(&key);
        let index = owners[hash::slot(hash, owners.len() as u32) as usize];
        let backend = dataplane.backend_at(index)?;
        BACKENDS.iter().position(|(a, _)| backend.address == address(a))
    }
}
