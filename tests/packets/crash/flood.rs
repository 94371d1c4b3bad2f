//! A flood at the moment when slots open, before any scan has seen an entry.

use super::{BASE, Bench, DRAINED, SECOND, World, segment};
use crate::pins::{SIZES, apart};
use xlb::datapath::load::Sizes;

#[test]
fn a_flood_before_the_first_scan_leaves_room_for_flows_that_live() {
    const ROOM: u32 = 1024;
    apart(|| {
        let mut bench = Bench::of(Sizes { flows: ROOM, ..SIZES });
        bench.settle(&BASE);
        let flows = bench.open(400);
        let drained = World::first(Some(DRAINED));
        assert!(bench.apply(&drained));
        let mut port = 20_000;
        for _ in 0..20 {
            for _ in 0..300 {
                segment(super::program(&bench.ebpf), port, true);
                port += 1;
            }
            bench.wait(SECOND / 10);
            let now_ns = bench.now_ns();
            bench.dataplane().renew_allowances(now_ns).expect("allowances");
        }
        let entries = bench.dataplane().maps.flows.all().expect("the flow table").len();
        let counters = bench.dataplane().pressure().expect("counters").counters;
        println!("{entries} entries, {counters:?}");
        assert!(
            counters.inserted_syn > 100 && counters.refused_allowance > 100,
            "{counters:?}"
        );
        assert!(entries as u32 <= ROOM * 15 / 16, "{entries}");
        bench.check(&flows, &[], "after the flood");
        let after = bench.dataplane().pressure().expect("counters").counters;
        let moved = flows.iter().filter(|flow| flow.owner == 0).count() as u64;
        assert!(moved > 50, "{moved}");
        assert_eq!(
            (after.inserted_data - counters.inserted_data, after.refused_full),
            (moved, 0)
        );
    });
}
