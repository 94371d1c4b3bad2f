//! Signs that a backend does not answer, noted by the loaded program where SYNs pass.

use std::thread::sleep;
use std::time::Duration;

use lb_common::reason::Reason;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use xlb::config::Config;
use xlb::datapath::signs::SignCounts;
use xlb::datapath::simulate::Simulator;

use crate::build::{PAYLOAD, ip, syn, tcp_in};
use crate::world::{options, world_with};

/// Longer than a backend is waited for.
const STALL: Duration = Duration::from_millis(170);

/// One service with one backend for each family; the program counts by CPU, so the test stays on one.
fn world(check: &str) -> Option<Simulator> {
    let mut cpus = CpuSet::new();
    cpus.set(nix::sched::sched_getcpu().expect("a CPU"))
        .expect("a CPU");
    sched_setaffinity(Pid::from_raw(0), &cpus).expect("to stay on a CPU");
    let mut text = "schema = 1\n[agent]\ninterfaces = [\"lo\"]\n".to_owned();
    for (name, address, forward, backend) in [
        ("v4", "192.0.2.10", "dsr-l2", "10.0.1.11"),
        ("v6", "2001:db8::10", "dsr-ipip", "2001:db8:1::11"),
    ] {
        text += &format!(
            "[[service]]\nname = \"{name}\"\naddress = \"{address}\"\nport = 80\nprotocol = \"tcp\"\n\
             forward = \"{forward}\"\n[service.check]\n{check}\n[[service.backend]]\naddress = \"{backend}\"\n"
        );
    }
    let config = Config::parse(&text).unwrap_or_else(|faults| panic!("{faults}"));
    world_with(&config, &options())
}

const SERVICES: [&str; 2] = ["192.0.2.10", "2001:db8::10"];

/// Signs of the backend of a service, and how often the agent was told.
struct Watch {
    index: u32,
    known: Vec<u64>,
}

impl Watch {
    fn new(world: &Simulator, service: &str) -> Self {
        let service: std::net::IpAddr = service.parse().expect("an address");
        let id = world.dataplane.remembered().into_keys();
        let id = id.into_iter().find(|id| id.service.address == service);
        let mut known = Vec::new();
        world.dataplane.maps.signs.fresh(&mut known, |_| true);
        Self {
            index: world
                .dataplane
                .index_of(&id.expect("a backend"))
                .expect("its index"),
            known,
        }
    }

    fn counts(&self, world: &Simulator) -> (u64, u64) {
        let SignCounts { again, stalled } = world.dataplane.maps.signs.counts(self.index).expect("a map");
        (again, stalled)
    }

    fn told(&mut self, world: &Simulator) -> bool {
        let mut told = Vec::new();
        world.dataplane.maps.signs.fresh(&mut self.known, |index| {
            told.push(index);
            true
        });
        assert!(told.iter().all(|index| *index == self.index), "{told:?}");
        !told.is_empty()
    }
}

fn open(world: &mut Simulator, service: &str, client: u16, sequence: u32) {
    let mut header = syn(client, 80);
    header.sequence_number = sequence;
    give(world, &tcp_in(ip(service), header, PAYLOAD));
}

fn data(world: &mut Simulator, service: &str, client: u16) {
    let mut header = syn(client, 80);
    (header.syn, header.ack) = (false, true);
    give(world, &tcp_in(ip(service), header, PAYLOAD));
}

fn give(world: &mut Simulator, packet: &[u8]) {
    let outcome = world.packet(packet).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(outcome.reason, Reason::Transmitted);
}

#[test]
fn a_syn_that_comes_again_is_a_sign_and_a_new_connection_is_none() {
    let Some(mut world) = world("type = \"tcp\"") else {
        return;
    };
    for service in SERVICES {
        let mut watch = Watch::new(&world, service);
        open(&mut world, service, 1000, 7);
        data(&mut world, service, 1000);
        // The same ports again, another connection.
        open(&mut world, service, 1000, 8);
        open(&mut world, service, 1001, 8);
        assert_eq!(watch.counts(&world), (0, 0));
        assert!(!watch.told(&world));
        open(&mut world, service, 1001, 8);
        assert_eq!(watch.counts(&world), (1, 0));
        assert!(watch.told(&world));
        assert!(!watch.told(&world), "told once");
    }
}

#[test]
fn nothing_but_syns_for_a_while_is_a_sign() {
    let Some(mut world) = world("type = \"tcp\"") else {
        return;
    };
    for service in SERVICES {
        let mut watch = Watch::new(&world, service);
        data(&mut world, service, 999);
        open(&mut world, service, 1000, 1);
        open(&mut world, service, 1001, 1);
        assert!(!watch.told(&world));
        sleep(STALL);
        open(&mut world, service, 1002, 1);
        assert_eq!(watch.counts(&world), (0, 1));
        assert!(watch.told(&world));
        // It answers: what the clients send next shows it.
        data(&mut world, service, 1002);
        open(&mut world, service, 1003, 1);
        sleep(STALL);
        data(&mut world, service, 1003);
        open(&mut world, service, 1004, 1);
        assert_eq!(watch.counts(&world), (0, 1));
        assert!(!watch.told(&world));
    }
}

#[test]
fn without_passive_checks_nothing_is_noted() {
    for check in ["type = \"tcp\"\npassive = false", "type = \"none\""] {
        let Some(mut world) = world(check) else { return };
        for service in SERVICES {
            let mut watch = Watch::new(&world, service);
            open(&mut world, service, 1000, 7);
            sleep(STALL);
            open(&mut world, service, 1000, 7);
            assert_eq!(watch.counts(&world), (0, 0));
            assert!(!watch.told(&world));
        }
    }
}
