//! Slots that move, driven through the loaded program: what [`lb_common::rule`] says, done with real packets and the
//! real flow table.

mod races;
mod refusals;
mod resets;
mod resize;
mod rule;
mod table;

use std::net::IpAddr;

use etherparse::TcpHeader;
use lb_common::hash;
use lb_common::layout::{
    FlowControl, FlowCounters, FlowEntry, FlowKey, FlowOwner, FlowSeen, Slot, TableWord,
};
use lb_common::rule::{Standing, State};
use lb_tests::KEY;
use xlb::config::Config;
use xlb::datapath::identity;
use xlb::datapath::simulate::{Options, Outcome, Simulator};
use xlb::model::{BackendId, Protocol, ServiceKey};

use crate::build::{PAYLOAD, ip, tcp_in, udp_in};
use crate::world::{CLIENT_V4, CLIENT_V6, config_of, send, world_with};

const V4: &[(&str, u16)] = &[("10.0.1.11", 1), ("10.0.1.12", 1), ("10.0.1.13", 1)];
const V6: &[(&str, u16)] = &[
    ("2001:db8:1::11", 1),
    ("2001:db8:1::12", 1),
    ("2001:db8:1::13", 1),
];

/// The port of all services here.
const PORT: u16 = 80;

fn config() -> Config {
    let services = [
        ("tcp-v4", "192.0.2.10", PORT, "tcp", "dsr-l2", V4),
        ("udp-v4", "192.0.2.10", PORT, "udp", "dsr-l2", V4),
        ("tcp-v6", "2001:db8::10", PORT, "tcp", "dsr-l2", V6),
        ("udp-v6", "2001:db8::10", PORT, "udp", "dsr-l2", V6),
    ];
    config_of(&services, false)
}

/// Plenty, so that no test is refused by accident.
const PLENTY: FlowControl = FlowControl {
    refused_ns: 0,
    syn_left: 1 << 30,
    data_left: 1 << 30,
    udp_left: 1 << 30,
};

/// One service, whose whole table is set by hand.
struct Bench {
    world: Simulator,
    service: ServiceKey,
    index: u32,
    /// The backends that the tests call A, B and C.
    a: u32,
    b: u32,
    c: u32,
}

impl Bench {
    /// `None` where tests that need root are left out.
    fn new(v6: bool, protocol: Protocol) -> Option<Self> {
        let options = Options {
            hash_key: Some(KEY),
            ..Options::default()
        };
        let world = world_with(&config(), &options)?;
        let address: IpAddr = destination(v6).parse().expect("an address");
        let service = ServiceKey {
            address,
            port: PORT,
            protocol,
        };
        let index = (0..4)
            .find(|index| world.dataplane.service_at(*index) == Some(service))
            .expect("the service");
        let backend = |n: usize| {
            let list = if v6 { V6 } else { V4 };
            let id = BackendId {
                service,
                address: list[n].0.parse().expect("an address"),
                port: PORT,
            };
            world.dataplane.index_of(&id).expect("the backend")
        };
        let (a, b, c) = (backend(0), backend(1), backend(2));
        world.dataplane.maps.flow_control.set(index, PLENTY);
        Some(Self {
            world,
            service,
            index,
            a,
            b,
            c,
        })
    }

    /// For both address families.
    fn tcp(test: impl Fn(Self)) {
        for v6 in [false, true] {
            if let Some(bench) = Self::new(v6, Protocol::Tcp) {
                test(bench);
            }
        }
    }

    fn udp(test: impl Fn(Self)) {
        for v6 in [false, true] {
            if let Some(bench) = Self::new(v6, Protocol::Udp) {
                test(bench);
            }
        }
    }

    fn v6(&self) -> bool {
        self.service.address.is_ipv6()
    }

    fn table(&self) -> TableWord {
        self.world.dataplane.maps.records.table(self.index)
    }

    /// Every slot of the table is this one.
    fn set_slots(&self, slot: Slot) {
        let table = self.table().place();
        let slots = std::iter::repeat_n(slot, table.size() as usize);
        self.world.dataplane.maps.slabs.write(table, slots);
    }

    /// Every slot has moved from A to B.
    fn moved(self) -> Self {
        self.set_slots(Slot::new(self.b, self.a, true));
        self
    }

    fn set_standing(&mut self, backend: u32, standing: Standing) {
        let backends = &self.world.dataplane.maps.backends;
        let mut record = backends.get(backend);
        record.standing = standing.bits();
        backends.set(backend, &record);
    }

    fn allow(&self, syn_left: u64, data_left: u64, udp_left: u64) {
        let control = FlowControl {
            refused_ns: 0,
            syn_left,
            data_left,
            udp_left,
        };
        self.world.dataplane.maps.flow_control.allow(self.index, control);
    }

    fn control(&self) -> FlowControl {
        self.world.dataplane.maps.flow_control.get(self.index)
    }

    fn counters(&self) -> FlowCounters {
        let maps = &self.world.dataplane.maps;
        maps.flow_counters(self.index).expect("reading the map")
    }

    fn key(&self, port: u16) -> FlowKey {
        let source: IpAddr = if self.v6() {
            CLIENT_V6.into()
        } else {
            CLIENT_V4.into()
        };
        FlowKey {
            source: identity::words(source).0,
            ports: u32::from_ne_bytes(port_bytes(port)),
            service: self.index,
        }
    }

    fn hash(&self, port: u16) -> u32 {
        let key = self.key(port);
        let ports = u32::from_le_bytes(port_bytes(port));
        let words = key.source.map(|word| u32::from_le_bytes(word.to_ne_bytes()));
        hash::flow_v6(&KEY, words, ports)
    }

    fn entry(&self, port: u16) -> Option<FlowEntry> {
        let flows = &self.world.dataplane.maps.flows;
        flows.get(&self.key(port)).expect("reading the map")
    }

    /// Backend and state of a flow's entry.
    fn known(&self, port: u16) -> Option<(u32, State)> {
        let entry = self.entry(port)?;
        assert_eq!(entry.owner.hash(), self.hash(port), "the tag");
        Some((entry.owner.backend(), entry.seen.state()))
    }

    fn entries(&self) -> usize {
        self.world
            .dataplane
            .maps
            .flows
            .all()
            .expect("reading the map")
            .len()
    }

    fn write_entry(&mut self, port: u16, hash: u32, backend: u32, state: State) {
        let entry = FlowEntry {
            owner: FlowOwner::new(hash, backend),
            seen: FlowSeen::new(state, 1),
            ..FlowEntry::default()
        };
        let key = self.key(port);
        let flows = &mut self.world.dataplane.maps.flows;
        flows.set(&key, entry).expect("writing the map");
    }

    fn frame(&self, tcp: TcpHeader) -> Vec<u8> {
        tcp_in(ip(destination(self.v6())), tcp, PAYLOAD)
    }

    fn send(&mut self, shows: &str, frame: &[u8]) -> Outcome {
        send(&mut self.world, shows, frame)
    }

    /// Which backend a TCP segment goes to.
    fn segment(&mut self, shows: &str, tcp: TcpHeader) -> u32 {
        let frame = self.frame(tcp);
        let outcome = self.send(shows, &frame);
        self.backend_of(&outcome)
    }

    fn backend_of(&self, outcome: &Outcome) -> u32 {
        let Some(backend) = outcome.backend else { return 0 };
        let id = BackendId {
            service: self.service,
            address: backend.ip(),
            port: backend.port(),
        };
        self.world.dataplane.index_of(&id).expect("a backend")
    }

    fn datagram(&mut self, shows: &str, port: u16) -> u32 {
        let frame = udp_in(ip(destination(self.v6())), port, PORT, PAYLOAD);
        let outcome = self.send(shows, &frame);
        self.backend_of(&outcome)
    }
}

fn destination(v6: bool) -> &'static str {
    if v6 { "2001:db8::10" } else { "192.0.2.10" }
}

/// Source and destination port as they stand in a packet.
fn port_bytes(port: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (port.to_be_bytes(), PORT.to_be_bytes());
    [a, b, c, d]
}

/// A SYN of the client at `port`.
fn syn(port: u16, sequence: u32) -> TcpHeader {
    let mut header = TcpHeader::new(port, PORT, sequence, 64000);
    header.syn = true;
    header
}

fn data(port: u16, sequence: u32) -> TcpHeader {
    let mut header = TcpHeader::new(port, PORT, sequence, 64000);
    header.ack = true;
    header.acknowledgment_number = 0x1234_5678;
    header
}

fn fin(port: u16, sequence: u32) -> TcpHeader {
    TcpHeader {
        fin: true,
        ..data(port, sequence)
    }
}

fn rst(port: u16, sequence: u32) -> TcpHeader {
    let mut header = TcpHeader::new(port, PORT, sequence, 64000);
    header.rst = true;
    header
}

/// Times are `CLOCK_MONOTONIC`.
pub fn now_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("a clock");
    u64::try_from(now.tv_sec()).expect("after boot") * 1_000_000_000
        + u64::try_from(now.tv_nsec()).expect("below a second")
}
