//! The program and its pins under agents that come and go. The packets go through the loaded program, and the pins are what is left of the dead agent.

mod deaths;
mod ends;
mod flood;
mod leaks;
mod million;
mod reboot;
mod switches;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::programs::Xdp;
use lb_common::layout::TableWord;
use lb_tests::KEY;
use xlb::config::{Access, AccessList, Limits, OnDown};
use xlb::control::{self, BackendStatus, Desired, Inputs};
use xlb::datapath::apply::{Dataplane, Progress};
use xlb::datapath::attach;
use xlb::datapath::clock::monotonic_ns;
use xlb::datapath::load::{self, Features, Sizes};
use xlb::datapath::maps::Maps;
use xlb::datapath::pins::PinDir;
use xlb::datapath::simulate::{Options, hops};
use xlb::datapath::sweep::{self, Report};
use xlb::datapath::testrun;
use xlb::model::{AdminState, OperState};

use crate::build::{PAYLOAD, ip, syn, tcp_in};
use crate::pins::{PIN_DIR, SIZES};
use crate::world::{config_of, mac_of};

const NAMES: [&str; 2] = ["web", "other"];
const SERVICES: [&str; 2] = ["192.0.2.10", "192.0.2.20"];
const BACKENDS: [(&str, u16); 4] = [
    ("10.0.1.11", 1),
    ("10.0.1.12", 1),
    ("10.0.1.13", 1),
    ("10.0.1.14", 1),
];
const UP: BackendStatus = BackendStatus {
    state: OperState::Up,
    ever_up: true,
    ..BackendStatus::UNSEEN
};
const SECOND: u64 = 1_000_000_000;
/// How long flows may be idle.
const WINDOW: u64 = 30 * SECOND;
/// Longer than any window.
const LONG: u64 = 1000 * SECOND;

/// A state of the world: what is configured, and what is known of it. The backends are a pool of two services.
#[derive(Clone)]
struct World {
    statuses: [Option<BackendStatus>; BACKENDS.len()],
    /// The first service is there.
    there: bool,
    /// Slots of the tables, where that is not the usual number.
    size: Option<u32>,
    /// `on_down = "reset"`.
    resets: bool,
    /// The backends are reached by another interface, and by another MAC address of ours.
    elsewhere: bool,
    /// There are an access list and limits, which let all packets in.
    guarded: bool,
}

/// Three backends serve.
const BASE: World = World {
    statuses: [Some(UP), Some(UP), Some(UP), None],
    there: true,
    size: None,
    resets: false,
    elsewhere: false,
    guarded: false,
};

const DRAINED: BackendStatus = BackendStatus {
    admin: AdminState::Drain,
    ..UP
};
const IN_MAINTENANCE: BackendStatus = BackendStatus {
    admin: AdminState::Maint,
    ..UP
};
const SILENT: BackendStatus = BackendStatus {
    state: OperState::Down,
    host_silent: true,
    ..UP
};
const REFUSING: BackendStatus = BackendStatus {
    state: OperState::Down,
    ..UP
};
const HEAVY: BackendStatus = BackendStatus {
    runtime_weight: Some(3),
    ..UP
};

impl World {
    /// [`BASE`] with another first backend.
    fn first(status: Option<BackendStatus>) -> Self {
        let mut world = BASE;
        world.statuses[0] = status;
        world
    }

    /// Whether a backend takes new flows.
    fn serves(&self, which: usize) -> bool {
        self.statuses[which]
            .is_some_and(|status| status.state == OperState::Up && status.admin == AdminState::Ready)
    }

    /// Whether a flow is lost: with its service, or with its backend, which is gone, in maintenance or silent.
    fn loses(&self, flow: &Flow) -> bool {
        let dead = |status: BackendStatus| status.admin == AdminState::Maint || status.host_silent;
        (flow.service() == 0 && !self.there) || self.statuses[flow.owner].is_none_or(dead)
    }
}

fn desired(world: &World, dataplane: &Dataplane) -> Desired {
    let there = BACKENDS.iter().zip(&world.statuses);
    let backends: Vec<_> = there.filter(|(_, s)| s.is_some()).map(|(b, _)| *b).collect();
    let line = |n: usize| (NAMES[n], SERVICES[n], 80, "tcp", "dsr-l2", backends.as_slice());
    let lines: Vec<_> = (0..SERVICES.len())
        .filter(|n| *n > 0 || world.there)
        .map(line)
        .collect();
    let mut config = config_of(&lines, false);
    let mut statuses = BTreeMap::new();
    for service in &mut config.services {
        if world.resets {
            service.rules.on_down = OnDown::Reset;
        }
        for backend in &service.backends {
            let which = BACKENDS.iter().position(|(a, _)| backend.address == address(a));
            let status = world.statuses[which.expect("one of them")];
            statuses.insert(backend.id(service.key), status.expect("configured"));
        }
    }
    let mut desired = control::desired(&Inputs {
        services: &config.services,
        statuses: &statuses,
        hops: &hops(&config, &Options::default()),
        earlier: &dataplane.earlier(),
        backups: &BTreeSet::new(),
        vlans: config.has_vlans(),
        interfaces: None,
        now: Instant::now(),
    });
    for service in desired.services.values_mut() {
        service.size = world.size.unwrap_or(service.size.min(4093));
        service.idle_timeout = Duration::from_nanos(WINDOW);
        if world.guarded {
            let all = "0.0.0.0/0".parse().expect("a prefix");
            service.access = Some(AccessList::new(BTreeMap::from([(all, Access::Allow)])));
            service.limits = Some(Limits {
                new_flows: Some(1_000_000),
                new_flows_per_client: None,
                udp_packets_per_client: None,
                client_prefix_v4: 32,
                client_prefix_v6: 64,
                dry_run: false,
            });
        }
        if world.elsewhere {
            for backend in service.backends.values_mut() {
                // The loopback device, which every namespace has.
                backend.record.ifindex = 1;
                backend.record.ethernet[3..6].fill(0x0202);
            }
        }
    }
    desired
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// A connection and the backend it was opened on.
#[derive(Clone, Copy)]
struct Flow {
    port: u16,
    owner: usize,
}

impl Flow {
    fn service(&self) -> usize {
        service_of(self.port)
    }
}

/// Which service a client's port talks to.
fn service_of(port: u16) -> usize {
    usize::from(port % 2)
}

/// The program, the agent of the moment, and a clock that runs ahead of the program's, or behind, where a test wants it
/// to.
struct Bench {
    ebpf: Ebpf,
    dataplane: Option<Dataplane>,
    ahead_ns: Cell<i64>,
    next_port: u16,
}

impl Bench {
    fn new() -> Self {
        Self::of(SIZES)
    }

    fn of(sizes: Sizes) -> Self {
        let pins = PinDir::create(Path::new(PIN_DIR)).expect("a folder");
        let features = Features {
            resets: true,
            guards: true,
            limits: true,
            ..Features::default()
        };
        let mut ebpf = load::load(features, &KEY, sizes, Some(&pins)).expect("an object that loads");
        attach::verify(&mut ebpf, "lb").expect("a program that loads");
        let maps = Maps::of(&mut ebpf, sizes, Some(&pins)).expect("maps");
        let dataplane = Dataplane::adopt(maps, monotonic_ns()).expect("empty maps");
        Self {
            ebpf,
            dataplane: Some(dataplane),
            ahead_ns: Cell::new(0),
            next_port: 1024,
        }
    }

    fn now_ns(&self) -> u64 {
        monotonic_ns().saturating_add_signed(self.ahead_ns.get())
    }

    fn wait(&self, time_ns: u64) {
        self.ahead_ns.set(self.ahead_ns.get() + time_ns.cast_signed());
    }

    /// The next agent comes, at an earlier time than any packet's.
    fn go_back(&mut self, time_ns: u64) {
        self.dataplane = None;
        self.ahead_ns.set(-time_ns.cast_signed());
        self.adopt();
    }

    fn dataplane(&mut self) -> &mut Dataplane {
        self.dataplane.as_mut().expect("an agent")
    }

    /// Whether the agent lived through it.
    fn apply(&mut self, world: &World) -> bool {
        let mut dataplane = self.dataplane.take().expect("an agent");
        let wanted = desired(world, &dataplane);
        let lived = dataplane.apply(&wanted, &|| self.now_ns()).is_ok();
        self.dataplane = lived.then_some(dataplane);
        lived
    }

    /// The next agent comes.
    fn adopt(&mut self) {
        let pins = PinDir::create(Path::new(PIN_DIR)).expect("the folder");
        let maps = Maps::open(&pins).expect("pinned maps");
        let dataplane = Dataplane::adopt(maps, self.now_ns()).expect("adopting");
        self.dataplane = Some(dataplane);
        let now_ns = self.now_ns();
        self.dataplane().renew_allowances(now_ns).expect("allowances");
    }

    fn sweep(&mut self) {
        let now_ns = self.now_ns();
        let Some(dataplane) = &mut self.dataplane else {
            return;
        };
        let mut flows = dataplane.maps.flows.try_clone().expect("the flow table");
        let view = Arc::new(dataplane.view(&|| now_ns));
        let report = sweep::sweep(&mut flows, &|| Arc::clone(&view), &|| now_ns, &|| true);
        let report: Report = report.expect("a scan").expect("all of it");
        dataplane.take_scan(Arc::new(report)).expect("its report");
    }

    /// The backend that a segment goes to.
    fn send(&mut self, port: u16, open: bool) -> Option<usize> {
        segment(program(&self.ebpf), port, open)
    }

    fn open(&mut self, count: u16) -> Vec<Flow> {
        let ports = (0..count).map(|_| {
            let port = self.next_port;
            self.next_port = self.next_port.checked_add(1).unwrap_or(1024);
            port
        });
        let ports: Vec<u16> = ports.collect();
        ports.into_iter().filter_map(|port| self.open_at(port)).collect()
    }

    fn open_at(&mut self, port: u16) -> Option<Flow> {
        let owner = self.send(port, true)?;
        assert_eq!(
            self.send(port, false),
            Some(owner),
            "the second packet of port {port}"
        );
        Some(Flow { port, owner })
    }

    /// Every flow is where it was, unless it is lost in one of these worlds. One whose service is going goes nowhere
    /// else.
    fn check(&mut self, flows: &[Flow], worlds: &[&World], when: &str) {
        for flow in flows {
            let (port, owner) = (flow.port, Some(flow.owner));
            let to = self.send(port, false);
            let going = flow.service() == 0 && worlds.iter().any(|world| !world.there);
            if going {
                assert!(
                    to.is_none() || to == owner,
                    "{when}: port {port} of a service that goes"
                );
            } else if !worlds.iter().any(|world| world.loses(flow)) {
                assert_eq!(to, owner, "{when}: port {port}");
            }
        }
    }

    /// Makes it so, and waits until nothing moves. A resize that is under way ends first, then comes the one back.
    fn settle(&mut self, world: &World) {
        assert!(self.apply(world));
        for _ in 0..3 {
            for wait_ns in [LONG, 2 * SECOND, 2 * SECOND, 2 * SECOND] {
                self.wait(wait_ns);
                assert!(self.apply(world));
                self.sweep();
            }
            assert!(self.apply(world));
            if self.unsettled() == 0 {
                return;
            }
        }
        panic!("{} slots do not settle", self.unsettled());
    }

    /// The words that name the tables of the services.
    fn words(&mut self) -> Vec<TableWord> {
        let records = &self.dataplane().maps.records;
        (0..8)
            .flat_map(|index| [records.table(index), records.before(index)])
            .collect()
    }

    fn unsettled(&mut self) -> usize {
        self.progress().iter().map(Progress::unsettled).sum()
    }

    /// Of each service.
    fn progress(&mut self) -> Vec<Progress> {
        let dataplane = self.dataplane();
        let keys: Vec<_> = dataplane.earlier().into_keys().collect();
        keys.iter().filter_map(|key| dataplane.progress(key)).collect()
    }
}

fn program(ebpf: &Ebpf) -> &Xdp {
    ebpf.program("lb").expect("it").try_into().expect("XDP")
}

/// The backend that a segment goes to: one that opens a connection, or its next.
fn segment(program: &Xdp, port: u16, open: bool) -> Option<usize> {
    let out = segment_out(program, port, open);
    let mac = |which: &usize| out[..6] == mac_of(address(BACKENDS[*which].0));
    (0..BACKENDS.len()).find(mac)
}

/// The frame as it leaves.
fn segment_out(program: &Xdp, port: u16, open: bool) -> Vec<u8> {
    let mut tcp = syn(port, 80);
    if !open {
        tcp.syn = false;
        tcp.ack = true;
        tcp.sequence_number = tcp.sequence_number.wrapping_add(1);
    }
    let frame = tcp_in(ip(SERVICES[service_of(port)]), tcp, PAYLOAD);
    testrun::run(program, &frame).expect("a run").packet
}
