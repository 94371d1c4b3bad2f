//! How long a scan of a full flow table takes.

use std::sync::Arc;

use lb_common::layout::{FlowEntry, FlowKey, FlowOwner, FlowSeen};
use lb_common::rule::State;
use xlb::datapath::apply::Dataplane;
use xlb::datapath::clock::monotonic_ns;
use xlb::datapath::load::{self, Features, Sizes};
use xlb::datapath::maps::Maps;
use xlb::datapath::sweep;

use super::{BASE, SECOND, desired};
use crate::pins::{KEY, SIZES};
use crate::world::root;

/// `cargo test -p lb-tests --test packets -- --ignored --nocapture a_million`
#[test]
#[ignore = "a measurement"]
fn a_million_entries_are_scanned() {
    if !root() {
        return;
    }
    const ENTRIES: u32 = 1 << 20;
    let sizes = Sizes {
        flows: ENTRIES,
        ..SIZES
    };
    let mut ebpf = load::load(Features::default(), &KEY, sizes, None).expect("an object that loads");
    let maps = Maps::of(&mut ebpf, sizes, None).expect("maps");
    let mut dataplane = Dataplane::adopt(maps, monotonic_ns()).expect("empty maps");
    let wanted = desired(&BASE, &dataplane);
    dataplane.apply(&wanted, &monotonic_ns).expect("writing");
    let mut flows = dataplane.maps.flows.try_clone().expect("the flow table");
    for n in 0..ENTRIES {
        let key = FlowKey {
            source: [0, 0, 0, n],
            ports: n.rotate_left(7),
            service: 0,
        };
        // Owned by the third backend, wherever its slot is: some are redundant.
        let entry = FlowEntry {
            owner: FlowOwner::new(n.wrapping_mul(0x9E37_79B9), 4),
            seen: FlowSeen::new(State::Established, monotonic_ns() + 10 * SECOND),
            ..FlowEntry::default()
        };
        flows.set(&key, entry).expect("room");
    }
    let mut view = dataplane.view(&monotonic_ns);
    let serving = sweep::BackendView {
        dead_before_ns: 0,
        closed: false,
    };
    view.backends.insert(4, serving);
    let view = Arc::new(view);
    for _ in 0..3 {
        let report = sweep::sweep(&mut flows, &|| Arc::clone(&view), &monotonic_ns, &|| true);
        let report = report.expect("a scan").expect("all of it");
        println!(
            "{} entries stay, {} removed, {:.1} ms",
            report.states.total(),
            report.removed,
            report.took_ns() as f64 / 1e6
        );
        assert_eq!(report.states.total(), u64::from(ENTRIES));
    }
}
