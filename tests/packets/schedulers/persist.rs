//! Clients that are remembered.

use std::thread;
use std::time::Duration;

use etherparse::TcpHeader;
use lb_common::client::Persistence;
use lb_common::layout::Slot;
use lb_common::rule::Standing;
use xlb::datapath::flow_cache::Walk;
use xlb::model::Protocol;

use super::{PORT, SERVICE, Stage, frame, port_of};
use crate::build::{udp_in, v4};

const TEN_MINUTES: &str = "\"\npersistence_timeout = \"10m";

fn stage(scheduler: &str, protocol: Protocol, weights: &[u16]) -> Option<Stage> {
    Stage::new(&format!("{scheduler}{TEN_MINUTES}"), protocol, weights)
}

impl Stage {
    /// The connection with this number of a client: its SYN.
    fn syn_of(&self, client: u32, connection: u16) -> usize {
        let mut tcp = TcpHeader::new(20_000 + connection, PORT, 100, 64000);
        tcp.syn = true;
        self.send(&frame(client, tcp))
    }

    fn data_of(&self, client: u32, connection: u16) -> usize {
        let mut tcp = TcpHeader::new(20_000 + connection, PORT, 101, 64000);
        tcp.ack = true;
        self.send(&frame(client, tcp))
    }

    fn connect(&self, client: u32, connection: u16) -> usize {
        let backend = self.syn_of(client, connection);
        assert_eq!(self.data_of(client, connection), backend);
        backend
    }

    fn clients(&self) -> usize {
        self.world.dataplane.maps.clients.all().count()
    }

    /// Changes what a backend takes.
    fn stand(&mut self, backend: usize, standing: u8) {
        let index = self.index(backend);
        let backends = &self.world.dataplane.maps.backends;
        let mut record = backends.get(index);
        record.standing = standing;
        backends.set(index, &record);
    }
}

#[test]
fn clients_take_turns_and_their_connections_follow_them() {
    for scheduler in ["rr", "wrr", "random", "lc", "wlc", "twos", "sh", "maglev"] {
        let Some(stage) = stage(scheduler, Protocol::Tcp, &[1, 1, 1]) else {
            return;
        };
        let mut load = [0; 3];
        for client in 0..300 {
            // Six at once, none of them confirmed when the next begins, as browsers do.
            let backends: Vec<_> = (0..6).map(|n| stage.syn_of(client, n)).collect();
            assert_eq!(backends, [backends[0]; 6], "{scheduler}");
            for connection in 0..6 {
                assert_eq!(stage.data_of(client, connection), backends[0], "{scheduler}");
            }
            load[backends[0]] += 1;
        }
        assert!(load.iter().all(|n| *n > 60), "{scheduler}: {load:?}");
        if scheduler == "rr" {
            assert_eq!(load, [100; 3]);
        }
        assert_eq!(stage.clients(), 300, "{scheduler}");
        let counted = stage.world.dataplane.maps.clients.counters(0).expect("a map");
        assert_eq!((counted.remembered, counted.refused), (300, 0), "{scheduler}");
        let before: Vec<_> = (0..300).map(|client| stage.connect(client, 10)).collect();
        let again: Vec<_> = (0..300).rev().map(|client| stage.connect(client, 11)).collect();
        assert!(before.iter().eq(again.iter().rev()), "{scheduler}");
    }
}

#[test]
fn a_prefix_of_addresses_is_one_client() {
    let settings = "rr\"\npersistence_timeout = \"10m\"\npersistence_prefix_v4 = 24\nname2 = \"";
    // The last key only closes the string.
    let settings = settings.replace("\nname2 = \"", "\non_down = \"keep");
    let Some(stage) = Stage::new(&settings, Protocol::Tcp, &[1, 1, 1, 1, 1]) else {
        return;
    };
    for prefix in 0..20_u32 {
        let backend = prefix as usize % 5;
        for address in [0, 1, 77, 255] {
            assert_eq!(stage.connect(prefix * 256 + address, 1), backend);
        }
    }
    assert_eq!(stage.clients(), 20);
}

#[test]
fn a_backend_that_takes_no_new_flows_keeps_old_ones_and_loses_its_clients() {
    let Some(mut stage) = stage("rr", Protocol::Tcp, &[1, 1, 1]) else {
        return;
    };
    for client in 0..9 {
        assert_eq!(stage.connect(client, 1), client as usize % 3);
    }
    stage.stand(1, Standing::Serves.bits() | Standing::CLOSED);
    // Its slots are others', as the agent sees to.
    let maps = &stage.world.dataplane.maps;
    let table = maps.records.table(0);
    let others = [stage.index(0), stage.index(2)].map(Slot::stable);
    let slots = (0..table.size() as usize).map(|n| others[n % 2]);
    maps.slabs.write(table.place(), slots);
    let mut moved = Vec::new();
    for client in 0..9 {
        assert_eq!(stage.data_of(client, 1), client as usize % 3, "an old connection");
        let backend = stage.connect(client, 2);
        match client % 3 {
            1 => {
                assert_ne!(backend, 1);
                moved.push(backend);
            }
            other => assert_eq!(backend, other as usize),
        }
    }
    let counted = stage.world.dataplane.maps.clients.counters(0).expect("a map");
    assert_eq!(counted.moved, 3);
    // It takes flows again: its clients are others' by now. Old connections do not bring them back.
    stage.stand(1, Standing::Serves.bits());
    for (client, backend) in [1, 4, 7].into_iter().zip(moved) {
        assert_eq!(stage.data_of(client, 1), 1);
        assert_eq!(stage.connect(client, 3), backend);
    }
    // One that is gone is no client's.
    stage.stand(0, Standing::Gone.bits());
    let maps = &stage.world.dataplane.maps;
    let slots = (0..table.size() as usize).map(|n| Slot::stable(stage.index(1 + n % 2)));
    maps.slabs.write(table.place(), slots);
    for client in [0, 3, 6] {
        assert_ne!(stage.connect(client, 4), 0);
    }
}

#[test]
fn an_idle_client_begins_anew() {
    let Some(stage) = stage("rr", Protocol::Tcp, &[1, 1]) else {
        return;
    };
    let clients = &stage.world.dataplane.maps.clients;
    assert_eq!(stage.connect(1, 1), 0);
    assert_eq!(stage.connect(1, 2), 0);
    let kept = clients.settings(0);
    assert_eq!(kept, Persistence::new(600_000_000_000, true, 32));
    // What was seen a tick of the kernel ago is too old; the nursery knows nothing of confirmed clients' age, so another client.
    clients.set(
        0,
        Persistence {
            timeout_ns: 1,
            ..kept
        },
    );
    let before = clients.counters(0).expect("a map").kept;
    thread::sleep(Duration::from_millis(25));
    stage.connect(1, 3);
    assert_eq!(clients.counters(0).expect("a map").kept, before);
    clients.set(0, kept);
    let now = crate::flows::now_ns();
    const S: u64 = 1_000_000_000;
    let idle_ns = vec![600 * S; 16];
    let mut walk = Walk::default();
    clients.expire_next(&mut walk, now + 590 * S, &idle_ns);
    assert_eq!((stage.clients(), walk.total()), (1, 1));
    clients.expire_next(&mut walk, now + 601 * S, &idle_ns);
    assert_eq!((stage.clients(), walk.total()), (0, 0));
    // Off: nothing is kept, and nothing is written.
    clients.set(0, Persistence::default());
    let turns: Vec<_> = (10..14).map(|n| stage.connect(1, n)).collect();
    assert!(turns == [0, 1, 0, 1] || turns == [1, 0, 1, 0], "{turns:?}");
    assert_eq!(stage.clients(), 0);
}

#[test]
fn a_flood_of_syns_remembers_nobody_and_moves_no_client() {
    let Some(stage) = stage("rr", Protocol::Tcp, &[1, 2, 3]) else {
        return;
    };
    let before: Vec<_> = (0..500).map(|client| stage.connect(client, 1)).collect();
    for client in 1000..150_000 {
        stage.syn(client, client);
    }
    assert_eq!(stage.clients(), 500);
    // A SYN finds its client, or, where its place in the nursery is taken, goes by its hash; its segments follow it.
    let kept = (0..500)
        .filter(|client| stage.connect(*client, 2) == before[*client as usize])
        .count();
    assert!(kept > 150, "{kept}");
    for client in 0..500 {
        assert_eq!(stage.data_of(client, 1), before[client as usize]);
    }
}

#[test]
fn a_flood_of_datagrams_takes_no_client_its_way() {
    let Some(stage) = stage("rr", Protocol::Udp, &[1, 1, 1]) else {
        return;
    };
    let send = |client: u32, port: u16| {
        let mut header = v4(SERVICE);
        header.source = super::source_of(client);
        stage.send(&udp_in(header, port, PORT, &[]))
    };
    let before: Vec<_> = (0..300).map(|client| send(client, port_of(client))).collect();
    assert_eq!(before[..6], [0, 1, 2, 0, 1, 2]);
    for client in 1_000_000..1_150_000 {
        send(client, 9);
    }
    let clients = &stage.world.dataplane.maps.clients;
    assert!(clients.counters(0).expect("a map").refused > 10_000);
    assert!(stage.clients() <= clients.capacity());
    for client in 0..300 {
        assert_eq!(send(client, 7), before[client as usize]);
    }
    // Who found no room goes where the slot of the client leads, all of its flows.
    for client in 1_149_000..1_149_100 {
        assert_eq!(send(client, 21), send(client, 22));
    }
}

#[test]
fn clients_stay_when_the_table_changes() {
    for scheduler in ["maglev", "sh"] {
        let Some(stage) = stage(scheduler, Protocol::Tcp, &[1, 1, 1]) else {
            return;
        };
        let before: Vec<_> = (0..200).map(|client| stage.connect(client, 1)).collect();
        let maps = &stage.world.dataplane.maps;
        let table = maps.records.table(0);
        let first = Slot::stable(stage.index(0));
        maps.slabs
            .write(table.place(), std::iter::repeat_n(first, table.size() as usize));
        for client in 0..200 {
            assert_eq!(stage.connect(client, 2), before[client as usize], "{scheduler}");
        }
        for client in 500..550 {
            assert_eq!(stage.connect(client, 1), 0, "{scheduler}");
        }
    }
}
