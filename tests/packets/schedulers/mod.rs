//! Schedulers other than `maglev`, through the loaded program.

mod full;
mod persist;
mod queue;
mod shares;

use std::collections::BTreeMap;
use std::net::IpAddr;

use etherparse::TcpHeader;
use lb_common::layout::FlowControl;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use xlb::config::Config;
use xlb::datapath::simulate::{Options, Simulator};
use xlb::model::{BackendId, Protocol, ServiceKey};

use crate::build::{tcp_in, udp_in, v4};
use crate::world::{mac_of, world_with};

const SERVICE: &str = "192.0.2.10";
const PORT: u16 = 80;

/// One service with backends of these weights, at 10.0.1.11 and following.
fn config(scheduler: &str, protocol: &str, weights: &[u16]) -> Config {
    let mut text = format!(
        "schema = 1\n[agent]\ninterfaces = [\"lo\"]\nmax_services = 8\nmax_backends = 128\n\
         [[service]]\nname = \"s\"\naddress = \"{SERVICE}\"\nport = {PORT}\nprotocol = \"{protocol}\"\n\
         forward = \"dsr-l2\"\nscheduler = \"{scheduler}\"\n[service.check]\ntype = \"none\"\n"
    );
    for (n, weight) in weights.iter().enumerate() {
        text += &format!(
            "[[service.backend]]\naddress = \"10.0.1.{}\"\nweight = {weight}\n",
            11 + n
        );
    }
    Config::parse(&text).unwrap_or_else(|faults| panic!("{faults}\n{text}"))
}

struct Stage {
    world: Simulator,
    macs: BTreeMap<[u8; 6], usize>,
    protocol: Protocol,
}

impl Stage {
    /// `None` where tests that need root are left out.
    fn new(scheduler: &str, protocol: Protocol, weights: &[u16]) -> Option<Self> {
        stay_on_one_cpu();
        let config = config(scheduler, &protocol.to_string(), weights);
        let world = world_with(&config, &Options::default())?;
        let plenty = FlowControl {
            refused_ns: 0,
            syn_left: 1 << 40,
            data_left: 1 << 40,
            udp_left: 1 << 40,
        };
        world.dataplane.maps.flow_control.set(0, plenty);
        let macs = (0..weights.len())
            .map(|n| (mac_of(backend_address(n)), n))
            .collect();
        Some(Self {
            world,
            macs,
            protocol,
        })
    }

    /// Which backend a frame goes to, from 0.
    fn send(&self, frame: &[u8]) -> usize {
        let run = self.world.run(frame).expect("a run");
        let mac: [u8; 6] = run.packet[..6].try_into().expect("a frame");
        *self.macs.get(&mac).expect("a backend")
    }

    fn syn(&self, client: u32, isn: u32) -> usize {
        let mut tcp = TcpHeader::new(port_of(client), PORT, isn, 64000);
        tcp.syn = true;
        self.send(&frame(client, tcp))
    }

    fn data(&self, client: u32, sequence: u32) -> usize {
        let mut tcp = TcpHeader::new(port_of(client), PORT, sequence, 64000);
        tcp.ack = true;
        self.send(&frame(client, tcp))
    }

    fn fin(&self, client: u32, sequence: u32) -> usize {
        let mut tcp = TcpHeader::new(port_of(client), PORT, sequence, 64000);
        (tcp.ack, tcp.fin) = (true, true);
        self.send(&frame(client, tcp))
    }

    fn datagram(&self, client: u32) -> usize {
        let mut header = v4(SERVICE);
        header.source = source_of(client);
        self.send(&udp_in(header, port_of(client), PORT, &[]))
    }

    /// Index of a backend in the maps.
    fn index(&self, backend: usize) -> u32 {
        let id = BackendId {
            service: ServiceKey {
                address: SERVICE.parse().expect("an address"),
                port: PORT,
                protocol: self.protocol,
            },
            address: backend_address(backend),
            port: PORT,
        };
        self.world.dataplane.index_of(&id).expect("a backend")
    }

    fn active(&self, backend: usize) -> u64 {
        self.world.dataplane.maps.flow_cache.active(self.index(backend))
    }

    fn ways(&self) -> usize {
        self.world.dataplane.maps.flow_cache.all().count()
    }
}

/// Each CPU goes round by itself.
fn stay_on_one_cpu() {
    let ours = sched_getaffinity(Pid::from_raw(0)).expect("our CPUs");
    let first = (0..CpuSet::count()).find(|cpu| ours.is_set(*cpu).unwrap_or(false));
    let mut one = CpuSet::new();
    one.set(first.expect("a CPU")).expect("a CPU");
    sched_setaffinity(Pid::from_raw(0), &one).expect("running on one CPU");
}

fn backend_address(n: usize) -> IpAddr {
    IpAddr::from([10, 0, 1, 11 + n as u8])
}

fn frame(client: u32, tcp: TcpHeader) -> Vec<u8> {
    let mut header = v4(SERVICE);
    header.source = source_of(client);
    tcp_in(header, tcp, &[])
}

/// Clients are numbered; each has an address and port of its own.
fn source_of(client: u32) -> [u8; 4] {
    let [_, a, b, c] = client.to_be_bytes();
    [11, a, b, c]
}

fn port_of(client: u32) -> u16 {
    1024 + (client % 50_000) as u16
}
