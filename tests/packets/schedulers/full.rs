//! Flows that are remembered.

use lb_common::layout::Slot;
use xlb::model::Protocol;

use super::Stage;

#[test]
fn connections_take_turns_and_stay() {
    let Some(stage) = Stage::new("rr", Protocol::Tcp, &[1, 5, 1]) else {
        return;
    };
    let turns: Vec<_> = (0..9).map(|client| stage.syn(client, 100)).collect();
    assert_eq!(turns, [0, 1, 2, 0, 1, 2, 0, 1, 2]);
    for client in 0..9 {
        let backend = client as usize % 3;
        assert_eq!(stage.syn(client, 100), backend, "a retransmission");
        assert_eq!(stage.data(client, 101), backend);
        assert_eq!(stage.data(client, 1 << 30), backend);
        assert_eq!(stage.syn(client, 7), backend, "a SYN to a connection that lives");
    }
    assert_eq!(stage.ways(), 9);
    assert_eq!([stage.active(0), stage.active(1), stage.active(2)], [3, 3, 3]);
    // The end of a connection; with its ports another begins, and has its turn.
    assert_eq!(stage.fin(1, 200), 1);
    assert_eq!(stage.data(1, 201), 1);
    assert_eq!(stage.active(1), 2);
    assert_eq!(stage.syn(1, 9000), 0);
    assert_eq!(stage.data(1, 9001), 0);
    assert_eq!(stage.data(1, 9002), 0);
    assert_eq!([stage.active(0), stage.active(1), stage.active(2)], [4, 2, 3]);
    assert_eq!(stage.ways(), 9);
}

#[test]
fn a_flood_of_syns_writes_nothing_and_breaks_nothing() {
    const LIVE: u32 = 3000;
    const FLOOD: u32 = 200_000;
    let Some(stage) = Stage::new("wrr", Protocol::Tcp, &[1, 2, 3]) else {
        return;
    };
    let backends: Vec<_> = (0..LIVE)
        .map(|client| {
            let backend = stage.syn(client, 100);
            assert_eq!(stage.data(client, 101), backend);
            backend
        })
        .collect();
    assert_eq!(stage.ways(), LIVE as usize);
    for client in LIVE..LIVE + FLOOD {
        stage.syn(client, client);
    }
    assert_eq!(stage.ways(), LIVE as usize, "a SYN makes no way");
    let crowded = stage
        .world
        .dataplane
        .maps
        .flow_counters(0)
        .expect("a map")
        .crowded;
    assert!(crowded > u64::from(FLOOD - 65_536) / 2, "{crowded}");
    // In the name of each client too.
    for client in 0..LIVE {
        stage.syn(client, client.wrapping_mul(77) + 5_000_000);
    }
    let mut misrouted = 0;
    for (client, backend) in (0..LIVE).zip(&backends) {
        misrouted += u32::from(stage.data(client, 102) != *backend);
    }
    // Connections that open meanwhile.
    for client in 300_000..302_000 {
        let backend = stage.syn(client, 50);
        misrouted += u32::from(stage.data(client, 51) != backend);
        misrouted += u32::from(stage.data(client, 1 << 29) != backend);
    }
    assert_eq!(misrouted, 0);
}

#[test]
fn flows_of_a_backend_that_is_gone_go_elsewhere() {
    use lb_common::rule::Standing;
    let Some(stage) = Stage::new("rr", Protocol::Tcp, &[1, 1, 1]) else {
        return;
    };
    for client in 0..30 {
        stage.syn(client, 100);
        stage.data(client, 101);
    }
    let gone = stage.index(1);
    let backends = &stage.world.dataplane.maps.backends;
    let mut record = backends.get(gone);
    record.standing = Standing::Gone.bits();
    backends.set(gone, &record);
    for client in 0..30 {
        let owner = stage.data(client, 102);
        if client % 3 != 1 {
            assert_eq!(owner, client as usize % 3);
        }
    }
    // Its index is another backend's from now on.
    let cache = &stage.world.dataplane.maps.flow_cache;
    let named = |backend| cache.all().filter(|way| way.word.backend() == backend).count();
    let before = named(gone);
    assert_eq!(cache.forget(|backend| backend == gone), before);
    assert_eq!(named(gone), 0);
}

#[test]
fn flows_stay_when_the_table_of_a_service_that_remembers_all_changes() {
    let Some(stage) = Stage::new("maglev\"\ntracking = \"full", Protocol::Tcp, &[1, 1, 1]) else {
        return;
    };
    let owners: Vec<_> = (0..300)
        .map(|client| {
            let owner = stage.syn(client, 100);
            assert_eq!(stage.data(client, 101), owner);
            owner
        })
        .collect();
    assert_eq!(stage.ways(), 300);
    // All slots are the first backend's from now on.
    let maps = &stage.world.dataplane.maps;
    let table = maps.records.table(0);
    let first = Slot::stable(stage.index(0));
    maps.slabs
        .write(table.place(), std::iter::repeat_n(first, table.size() as usize));
    let elsewhere = owners.iter().filter(|owner| **owner != 0).count();
    assert!(elsewhere > 100, "{elsewhere}");
    for (client, owner) in (0..300).zip(&owners) {
        assert_eq!(stage.data(client, 102), *owner);
    }
    for client in 1000..1100 {
        assert_eq!(stage.syn(client, 100), 0);
    }
}

#[test]
fn idle_flows_are_forgotten_by_the_agent() {
    let Some(stage) = Stage::new("wlc", Protocol::Tcp, &[1, 1]) else {
        return;
    };
    for client in 0..10 {
        stage.syn(client, 100);
        stage.data(client, 101);
    }
    stage.fin(0, 102);
    // SYNs that nothing follows count as flows for a while.
    for client in 50..54 {
        stage.syn(client, 100);
    }
    assert_eq!(stage.active(0) + stage.active(1), 13);
    let cache = &stage.world.dataplane.maps.flow_cache;
    let now = crate::flows::now_ns();
    const S: u64 = 1_000_000_000;
    assert_eq!(cache.expire(now, 900 * S), 0);
    assert_eq!(cache.expire(now + 70 * S, 900 * S), 5);
    assert_eq!(stage.ways(), 9);
    assert_eq!(cache.expire(now + 901 * S, 900 * S), 9);
    assert_eq!((stage.ways(), stage.active(0), stage.active(1)), (0, 0, 0));
}

#[test]
fn datagrams_take_turns_once() {
    let Some(stage) = Stage::new("rr", Protocol::Udp, &[1, 1, 1]) else {
        return;
    };
    for client in 0..300 {
        assert_eq!(stage.datagram(client), client as usize % 3);
    }
    for client in (0..300).rev() {
        assert_eq!(stage.datagram(client), client as usize % 3);
    }
}

#[test]
fn a_client_has_one_backend() {
    let Some(stage) = Stage::new("sh", Protocol::Tcp, &[1, 1, 1]) else {
        return;
    };
    let mut clients = [0; 3];
    for client in 0..600 {
        let mut backends = (0..5).map(|n| {
            let mut tcp = etherparse::TcpHeader::new(2000 + n, super::PORT, 1, 1);
            tcp.syn = true;
            stage.send(&super::frame(client, tcp))
        });
        let first = backends.next().expect("five");
        assert!(backends.all(|backend| backend == first));
        clients[first] += 1;
    }
    assert!(clients.iter().all(|count| *count > 150), "{clients:?}");
    assert_eq!(stage.ways(), 0);
}

/// The flow table keeps a flow by its own hash, and its slot is that of its client.
#[test]
fn a_scan_finds_the_slots_of_clients() {
    use std::sync::Arc;
    use xlb::datapath::clock::monotonic_ns;
    use xlb::datapath::sweep;
    let Some(mut stage) = Stage::new("sh", Protocol::Tcp, &[1, 1]) else {
        return;
    };
    let (new, old) = (stage.index(0), stage.index(1));
    let table = stage.world.dataplane.maps.records.table(0);
    let size = table.size() as usize;
    let open = Slot::new(new, old, true);
    let maps = &mut stage.world.dataplane.maps;
    maps.slabs.write(table.place(), std::iter::repeat_n(open, size));
    for client in 0..50 {
        assert_eq!(stage.data(client, 100), 1, "a flow of before");
    }
    // The window is over. Slots that a scan finds nothing of are not asked about any longer.
    let settled = Slot::new(new, new, true);
    let maps = &mut stage.world.dataplane.maps;
    maps.slabs
        .write(table.place(), std::iter::repeat_n(settled, size));
    let mut flows = maps.flows.try_clone().expect("a map");
    let dataplane = &stage.world.dataplane;
    let view = || Arc::new(dataplane.view(&monotonic_ns));
    let report = sweep::sweep(&mut flows, &view, &monotonic_ns, &|| true).expect("a scan");
    let report = report.expect("to its end");
    assert_eq!((report.states.established, report.removed), (50, 0));
    let scan = report.of(0).expect("a scan");
    let slots = (0..size as u32).map(|n| {
        if scan.slots.contains(&n) {
            settled
        } else {
            Slot::stable(new)
        }
    });
    dataplane.maps.slabs.write(table.place(), slots);
    for client in 0..50 {
        assert_eq!(stage.data(client, 200), 1, "its entry counts on");
        assert_eq!(stage.syn(1000 + client, 100), 0);
    }
}

#[test]
fn the_backend_with_the_fewest_flows_is_next() {
    let Some(stage) = Stage::new("lc", Protocol::Tcp, &[1, 9, 1, 1]) else {
        return;
    };
    let mut on = [const { Vec::new() }; 4];
    for client in 0..40 {
        let backend = stage.syn(client, 100);
        stage.data(client, 101);
        on[backend].push(client);
        let counts = on.each_ref().map(Vec::len);
        let (least, most) = (counts.iter().min(), counts.iter().max());
        assert!(
            most <= least.map(|least| least + 1).as_ref(),
            "weights do not count: {counts:?}"
        );
    }
    for client in &on[2][..3] {
        assert_eq!(stage.fin(*client, 102), 2);
    }
    let next: Vec<_> = (100..103).map(|client| stage.syn(client, 1)).collect();
    assert_eq!(next, [2, 2, 2]);
    assert_eq!([0, 1, 2, 3].map(|backend| stage.active(backend)), [10; 4]);

    let Some(stage) = Stage::new("wlc", Protocol::Tcp, &[1, 3]) else {
        return;
    };
    for client in 0..400 {
        stage.syn(client, 100);
        stage.data(client, 101);
    }
    assert_eq!((stage.active(0), stage.active(1)), (100, 300));
}
