//! The flow table from user space.

use std::collections::BTreeMap;

use lb_common::layout::{FlowEntry, FlowKey, FlowOwner, FlowSeen};
use lb_common::rule::State::Established;
use xlb::datapath::flows::{Cursor, Flows};
use xlb::model::Protocol;

use super::Bench;

fn key(n: u32) -> FlowKey {
    FlowKey {
        source: [n, 0, 0, 1],
        ports: 7,
        service: 2,
    }
}

fn entry(n: u32) -> FlowEntry {
    FlowEntry {
        owner: FlowOwner::new(n, n + 1),
        seen: FlowSeen::new(Established, u64::from(n)),
        isn: n,
        before: 0,
    }
}

fn read(flows: &Flows, mut cursor: Cursor) -> (BTreeMap<FlowKey, FlowEntry>, usize) {
    let (mut found, mut batches) = (BTreeMap::new(), 0);
    loop {
        let more = flows.read_batch(&mut cursor).expect("a batch");
        batches += 1;
        for (key, entry) in cursor.entries() {
            assert_eq!(found.insert(key, entry), None, "each entry comes once");
        }
        if !more {
            return (found, batches);
        }
    }
}

#[test]
fn all_entries_are_read_whatever_the_room() {
    const ENTRIES: u32 = 60_000;
    let Some(mut bench) = Bench::new(false, Protocol::Tcp) else {
        return;
    };
    let flows = &mut bench.world.dataplane.maps.flows;
    assert_eq!(read(flows, Cursor::default()).0.len(), 0);
    for n in 0..ENTRIES {
        assert!(flows.add(&key(n), entry(n)).expect("room"));
    }
    let expected: BTreeMap<_, _> = (0..ENTRIES).map(|n| (key(n), entry(n))).collect();
    // A bucket of several entries does not fit the smallest.
    for (room, least, most) in [(1, 1000, 60_000), (4096, 15, 30), (100_000, 1, 2)] {
        let (found, batches) = read(flows, Cursor::with_room(room));
        assert!(
            (least..=most).contains(&batches),
            "{batches} batches for room {room}"
        );
        assert!(found == expected, "{room}");
    }
    let elsewhere = flows.try_clone().expect("a descriptor");
    assert_eq!(elsewhere.capacity(), flows.capacity());
    let found = std::thread::spawn(move || read(&elsewhere, Cursor::default()).0);
    assert!(found.join().expect("a thread") == expected);
}

#[test]
fn entries_one_by_one() {
    let Some(mut bench) = Bench::new(false, Protocol::Tcp) else {
        return;
    };
    let flows = &mut bench.world.dataplane.maps.flows;
    assert_eq!(flows.get(&key(1)).expect("a map"), None);
    assert_eq!(flows.take(&key(1)).expect("a map"), None);
    assert!(!flows.remove(&key(1)).expect("a map"));
    assert!(flows.add(&key(1), entry(1)).expect("a map"));
    assert!(!flows.add(&key(1), entry(2)).expect("a map"));
    assert_eq!(flows.get(&key(1)).expect("a map"), Some(entry(1)));
    flows.set(&key(1), entry(3)).expect("a map");
    assert_eq!(flows.take(&key(1)).expect("a map"), Some(entry(3)));
    assert_eq!(flows.get(&key(1)).expect("a map"), None);
    flows.set(&key(1), entry(3)).expect("a map");
    assert!(flows.remove(&key(1)).expect("a map"));
}
