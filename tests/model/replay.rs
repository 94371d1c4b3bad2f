//! The same histories through the loaded program and the real maps (`BPF_PROG_TEST_RUN`): for every packet the backend
//! that was chosen and the flow's entry afterwards must be those of the model. Root only.

use etherparse::PacketBuilder;
use lb_common::layout::{FlowControl, FlowEntry, FlowKey, FlowOwner, Slot, TableWord};
use lb_common::rule::{Packet, Standing};
use lb_tests::KEY;
use xlb::config::Config;
use xlb::datapath::identity;
use xlb::datapath::simulate::{Options, Simulator};
use xlb::model::{BackendId, Protocol, ServiceKey};

use crate::kernel::{BACKENDS, KEYS, Kernel, PORT, Passed, SERVICES, client};
use crate::world::Observer;

const ADDRESS: [u8; 4] = [192, 0, 2, 10];
/// Tables are written at the end of the slab, where the simulation has none.
const ROOM: u32 = 1024;

pub struct Replay {
    world: Simulator,
    protocol: Protocol,
    name: ServiceKey,
    /// The real indices that the model's service has.
    services: [u32; SERVICES],
    published: Option<u32>,
    /// The real indices of the model's backends.
    indices: [u32; BACKENDS + 1],
    now: Vec<Slot>,
    before: Option<Vec<Slot>>,
    standing: [Standing; BACKENDS + 1],
    /// What the model had at each place after the last packet of its key.
    known: Vec<Option<FlowEntry>>,
    frame: Vec<u8>,
    chosen: u32,
    pub packets: u64,
    pub refusals: u64,
}

impl Replay {
    pub fn new(protocol: Protocol) -> Self {
        let name = protocol.to_string();
        // What is no QUIC is a datagram like any other there too.
        let quic = protocol == Protocol::Udp;
        let mut text = format!(
            "schema = 1\n[agent]\ninterfaces = [\"lo\"]\n[[service]]\nname = \"replay\"\naddress = \"192.0.2.10\"\n\
             port = {PORT}\nprotocol = \"{name}\"\nforward = \"dsr-l2\"\nquic = {quic}\n[service.check]\ntype = \"none\"\n"
        );
        for n in 1..=BACKENDS {
            text += &format!("[[service.backend]]\naddress = \"10.0.1.{n}\"\n");
        }
        let config = Config::parse(&text).unwrap_or_else(|faults| panic!("{faults}"));
        let options = Options {
            hash_key: Some(KEY),
            ..Options::default()
        };
        let world = Simulator::new(&config, &options).unwrap_or_else(|error| panic!("{error}"));
        let key = ServiceKey {
            address: std::net::Ipv4Addr::from(ADDRESS).into(),
            port: PORT,
            protocol,
        };
        let service = (0..4).find(|index| world.dataplane.service_at(*index) == Some(key));
        let mut indices = [0; BACKENDS + 1];
        for (n, index) in indices.iter_mut().enumerate().skip(1) {
            let id = BackendId {
                service: key,
                address: std::net::Ipv4Addr::new(10, 0, 1, n as u8).into(),
                port: PORT,
            };
            *index = world.dataplane.index_of(&id).expect("the backend");
        }
        Self {
            world,
            protocol,
            name: key,
            services: [service.expect("the service"), 100, 101],
            published: service,
            indices,
            now: Vec::new(),
            before: None,
            standing: [Standing::Serves; BACKENDS + 1],
            known: vec![None; SERVICES * KEYS],
            frame: Vec::new(),
            chosen: 0,
            packets: 0,
            refusals: 0,
        }
    }

    /// Another history begins.
    pub fn clear(&mut self) {
        for at in 0..self.known.len() {
            if self.known[at].take().is_some() {
                let _ = self.world.dataplane.maps.flows.remove(&self.key(at));
            }
        }
    }

    /// The key of an entry at one of the model's places.
    fn key(&self, at: usize) -> FlowKey {
        let (address, port) = client(at % KEYS);
        let ([a, b], [c, d]) = (port.to_be_bytes(), PORT.to_be_bytes());
        FlowKey {
            source: identity::words(std::net::Ipv4Addr::from(address).into()).0,
            ports: u32::from_ne_bytes([a, b, c, d]),
            service: self.services[at / KEYS],
        }
    }

    /// An entry of the model as the real map has it; times are another clock's.
    fn real(&self, entry: &FlowEntry) -> (u32, u32, lb_common::rule::State, u32, u32) {
        let FlowEntry {
            owner,
            seen,
            isn,
            before,
        } = *entry;
        let backend = self.indices[owner.backend() as usize];
        (
            owner.hash(),
            backend,
            seen.state(),
            isn,
            self.indices[before as usize],
        )
    }

    fn write(&self, slots: &[Slot], at: u32) -> TableWord {
        let table = TableWord::new(0, 131_072 - at, slots.len() as u32);
        let real = |backend: u32| self.indices[backend as usize];
        let slots = slots
            .iter()
            .map(|slot| Slot::new(real(slot.current()), real(slot.previous()), slot.consult()));
        self.world.dataplane.maps.slabs.write(table, slots);
        table
    }

    /// The maps hold what the model's agent wrote.
    fn follow(&mut self, kernel: &Kernel, key: usize) {
        let record = &kernel.record;
        let service = self.services[kernel.service];
        let published = kernel.published.then_some(service);
        if self.published != published {
            let key = identity::service_key(&self.name);
            let services = &mut self.world.dataplane.maps.services;
            match published {
                Some(service) => services.insert(key, service).expect("writing the map"),
                None => services.remove(&key).expect("writing the map"),
            }
            self.published = published;
        }
        // What was swept since the key's last packet.
        let at = kernel.at(key);
        if kernel.flows[at].is_none() && self.known[at].is_some() {
            let flow = self.key(at);
            assert!(
                self.world
                    .dataplane
                    .maps
                    .flows
                    .remove(&flow)
                    .expect("writing the map")
            );
        }
        if !kernel.serves() {
            return;
        }
        if self.now != record.now || self.before != record.before {
            self.now.clone_from(&record.now);
            self.before.clone_from(&record.before);
            self.write(&record.now, ROOM);
            if let Some(before) = &record.before {
                self.write(before, ROOM / 2);
            }
        }
        let mut word = TableWord::new(0, 131_072 - ROOM, record.now.len() as u32);
        if self.protocol == Protocol::Udp {
            word = word.with(TableWord::QUIC);
        }
        if record.resizing {
            word = word.with(TableWord::RESIZING);
        }
        if record.held {
            word = word.with(TableWord::HELD);
        }
        let size = record.before.as_ref().map_or(0, |before| before.len() as u32);
        let before = if size == 0 {
            TableWord::NONE
        } else {
            TableWord::new(0, 131_072 - ROOM / 2, size)
        };
        let maps = &mut self.world.dataplane.maps;
        maps.records.set_before(service, before);
        maps.records.set_table(service, word);
        for backend in 1..=BACKENDS {
            if self.standing[backend] != kernel.standing[backend] {
                self.standing[backend] = kernel.standing[backend];
                let index = self.indices[backend];
                let mut record = maps.backends.get(index);
                record.standing = kernel.standing[backend].bits();
                maps.backends.set(index, &record);
            }
        }
        maps.flow_control.set(
            service,
            FlowControl {
                refused_ns: 0,
                ..kernel.control
            },
        );
    }

    fn build(&mut self, key: usize, packet: Packet) {
        let (address, port) = client(key);
        let start =
            || PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]).ipv4(address, ADDRESS, 64);
        self.frame.clear();
        let tcp = |sequence| start().tcp(port, PORT, sequence, 64000);
        let built = match packet {
            Packet::Syn(isn) => tcp(isn).syn().write(&mut self.frame, &[]),
            Packet::Data(sequence) => tcp(sequence).ack(1).write(&mut self.frame, &[1, 2, 3]),
            Packet::Last {
                sequence,
                reset: true,
            } => tcp(sequence).rst().write(&mut self.frame, &[]),
            Packet::Last { sequence, .. } => tcp(sequence).ack(1).fin().write(&mut self.frame, &[]),
            Packet::Initial(number) => start().udp(port, PORT).write(&mut self.frame, &initial(number)),
            Packet::Handshake => start().udp(port, PORT).write(&mut self.frame, &HANDSHAKE),
            Packet::Datagram | Packet::Error => start().udp(port, PORT).write(&mut self.frame, &[1, 2, 3]),
        };
        built.expect("a frame");
    }
}

impl Observer for Replay {
    fn packet(&mut self, kernel: &Kernel, key: usize, packet: Packet, _: u64) {
        self.follow(kernel, key);
        self.build(key, packet);
        let outcome = self
            .world
            .packet(&self.frame)
            .unwrap_or_else(|error| panic!("{error}"));
        self.chosen = outcome.backend.map_or(0, |backend| {
            let std::net::IpAddr::V4(address) = backend.ip() else {
                return 0;
            };
            u32::from(address.octets()[3])
        });
        self.packets += 1;
    }

    fn passed(&mut self, kernel: &Kernel, key: usize, passed: Passed) {
        // A reset of ours leaves in no backend's name that the simulation tells.
        let resets = kernel.standing[passed.backend as usize] == Standing::Resets && passed.backend != 0;
        if !resets {
            assert_eq!(self.chosen, passed.backend, "the backend of a packet of {key}");
        }
        let at = kernel.at(key);
        let flow = self.key(at);
        let maps = &self.world.dataplane.maps;
        let entry = maps.flows.get(&flow).expect("reading the map");
        let plain = |entry: FlowEntry| {
            let FlowEntry {
                owner,
                seen,
                isn,
                before,
            } = entry;
            let FlowOwner(_) = owner;
            (owner.hash(), owner.backend(), seen.state(), isn, before)
        };
        let expected = kernel.flows[at].as_ref().map(|entry| self.real(entry));
        assert_eq!(entry.map(plain), expected, "the entry of {key}");
        let noted = maps.flow_control.get(self.services[kernel.service]).refused_ns != 0;
        let notes = passed.refused && passed.backend != 0 && self.protocol == Protocol::Tcp;
        assert_eq!(noted, notes, "a refusal of {key}");
        self.refusals += u64::from(noted);
        self.known[at] = kernel.flows[at];
    }
}

/// A Handshake packet (RFC 9000 section 17.2.4).
const HANDSHAKE: [u8; 24] = {
    let mut packet = [0; 24];
    (packet[0], packet[4], packet[5]) = (0xe0, 1, 8);
    packet
};

/// An Initial packet of an id of eight bytes with this number.
fn initial(number: u32) -> [u8; 24] {
    let mut packet = [0; 24];
    (packet[0], packet[4], packet[5]) = (0xc0, 1, 8);
    packet[7..11].copy_from_slice(&number.to_le_bytes());
    packet
}
