//! Agents that die between any two writes of a change: no packet of a flow is misdirected, before the next agent comes
//! or after, and what the next agent makes of it is what was wanted.
//!
//! The packets go through the loaded program, and the pins are what is left of the dead agent.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use aya::Ebpf;
use aya::programs::Xdp;
use lb_common::layout::{FlowEntry, FlowKey, FlowOwner, FlowSeen};
use lb_common::rule::State;
use xlb::control::{self, BackendStatus, Desired, Inputs};
use xlb::datapath::apply::Dataplane;
use xlb::datapath::clock::monotonic_ns;
use xlb::datapath::load::{self, Features, Sizes};
use xlb::datapath::maps::Maps;
use xlb::datapath::pins::PinDir;
use xlb::datapath::simulate::{Options, hops};
use xlb::datapath::sweep::{self, Report};
use xlb::datapath::testrun;
use xlb::model::{AdminState, OperState};

use crate::build::{PAYLOAD, ip, syn, tcp_in};
use crate::pins::{KEY, PIN_DIR, SIZES, apart, load};
use crate::world::{config_of, mac_of, root};

const SERVICE: &str = "192.0.2.10";
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
/// Longer than any window.
const LONG: u64 = 1000 * SECOND;

/// A state of the world: what is configured, and what is known of it.
#[derive(Clone)]
struct World {
    statuses: [Option<BackendStatus>; BACKENDS.len()],
    /// The service is there.
    there: bool,
    /// Slots of its table, where that is not the usual number.
    size: Option<u32>,
}

/// Three backends serve.
const BASE: World = World {
    statuses: [Some(UP), Some(UP), Some(UP), None],
    there: true,
    size: None,
};

/// What the tests do to [`BASE`], and whose flows are lost by it.
fn changes() -> Vec<(&'static str, World, &'static [usize])> {
    let with = |which: usize, status: Option<BackendStatus>| {
        let mut world = BASE;
        world.statuses[which] = status;
        world
    };
    let drained = BackendStatus {
        admin: AdminState::Drain,
        ..UP
    };
    let in_maintenance = BackendStatus {
        admin: AdminState::Maint,
        ..UP
    };
    let silent = BackendStatus {
        state: OperState::Down,
        host_silent: true,
        ..UP
    };
    let refusing = BackendStatus {
        state: OperState::Down,
        ..UP
    };
    let heavy = BackendStatus {
        runtime_weight: Some(3),
        ..UP
    };
    let mut replaced = with(0, None);
    replaced.statuses[3] = Some(UP);
    let resized = World {
        size: Some(8191),
        ..BASE
    };
    vec![
        ("a backend is added", with(3, Some(UP)), &[]),
        ("one is drained", with(0, Some(drained)), &[]),
        ("one has another weight", with(0, Some(heavy)), &[]),
        ("one refuses connections", with(0, Some(refusing)), &[]),
        ("one is silent", with(0, Some(silent)), &[0]),
        ("one is in maintenance", with(0, Some(in_maintenance)), &[0]),
        ("one is replaced", replaced, &[0]),
        ("the table is resized", resized, &[]),
    ]
}

fn desired(world: &World, dataplane: &Dataplane) -> Desired {
    let there = BACKENDS.iter().zip(&world.statuses);
    let backends: Vec<_> = there.filter(|(_, s)| s.is_some()).map(|(b, _)| *b).collect();
    if !world.there {
        return Desired::default();
    }
    let config = config_of(
        &[("web", SERVICE, 80, "tcp", "dsr-l2", backends.as_slice())],
        false,
    );
    let service = &config.services[0];
    let mut statuses = BTreeMap::new();
    for backend in &service.backends {
        let which = BACKENDS.iter().position(|(a, _)| backend.address == address(a));
        let status = world.statuses[which.expect("one of them")];
        statuses.insert(backend.id(service.key), status.expect("configured"));
    }
    let mut desired = control::desired(&Inputs {
        services: &config.services,
        statuses: &statuses,
        hops: &hops(&config, &Options::default()),
        earlier: &dataplane.earlier(),
        backups: &BTreeSet::new(),
        vlans: config.has_vlans(),
        now: Instant::now(),
    });
    for service in desired.services.values_mut() {
        service.size = world.size.unwrap_or(service.size.min(4093));
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

/// The program, the agent of the moment, and a clock that runs ahead of the program's where a test wants it to.
struct Bench {
    ebpf: Ebpf,
    dataplane: Option<Dataplane>,
    ahead_ns: Cell<u64>,
    next_port: u16,
}

impl Bench {
    fn new() -> Self {
        let pins = PinDir::create(Path::new(PIN_DIR)).expect("a folder");
        let mut ebpf = load(&pins);
        let maps = Maps::of(&mut ebpf, SIZES, Some(&pins)).expect("maps");
        let dataplane = Dataplane::adopt(maps, monotonic_ns()).expect("empty maps");
        Self {
            ebpf,
            dataplane: Some(dataplane),
            ahead_ns: Cell::new(0),
            next_port: 1024,
        }
    }

    fn now_ns(&self) -> u64 {
        monotonic_ns() + self.ahead_ns.get()
    }

    fn wait(&self, time_ns: u64) {
        self.ahead_ns.set(self.ahead_ns.get() + time_ns);
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
        let dataplane = self.dataplane();
        let mut flows = dataplane.maps.flows.try_clone().expect("the flow table");
        let view = Arc::new(dataplane.view(&|| now_ns));
        let report = sweep::sweep(&mut flows, &|| Arc::clone(&view), &|| now_ns, &|| true);
        let report: Report = report.expect("a scan").expect("all of it");
        dataplane.take_scan(Arc::new(report)).expect("its report");
    }

    /// The backend that a segment goes to.
    fn send(&mut self, port: u16, open: bool) -> Option<usize> {
        let mut tcp = syn(port, 80);
        if !open {
            tcp.syn = false;
            tcp.ack = true;
            tcp.sequence_number = tcp.sequence_number.wrapping_add(1);
        }
        let frame = tcp_in(ip(SERVICE), tcp, PAYLOAD);
        let program: &Xdp = self.ebpf.program("lb").expect("it").try_into().expect("XDP");
        let out = testrun::run(program, &frame).expect("a run").packet;
        let mac = |which: &usize| out[..6] == mac_of(address(BACKENDS[*which].0));
        (0..BACKENDS.len()).find(mac)
    }

    fn open(&mut self, count: u16) -> Vec<Flow> {
        (0..count)
            .filter_map(|_| {
                let port = self.next_port;
                self.next_port = self.next_port.checked_add(1).unwrap_or(1024);
                let owner = self.send(port, true)?;
                assert_eq!(
                    self.send(port, false),
                    Some(owner),
                    "the second packet of port {port}"
                );
                Some(Flow { port, owner })
            })
            .collect()
    }

    /// Every flow is where it was, unless it is one of the `lost`.
    fn check(&mut self, flows: &[Flow], lost: &[usize], when: &str) {
        for flow in flows.iter().filter(|flow| !lost.contains(&flow.owner)) {
            assert_eq!(
                self.send(flow.port, false),
                Some(flow.owner),
                "{when}: port {}",
                flow.port
            );
        }
    }

    /// Back to a world in which nothing moves. A resize that is under way ends first, then comes the one back.
    fn settle(&mut self) {
        assert!(self.apply(&BASE));
        for _ in 0..3 {
            for wait_ns in [LONG, 2 * SECOND, 2 * SECOND, 2 * SECOND] {
                self.wait(wait_ns);
                assert!(self.apply(&BASE));
                self.sweep();
            }
            assert!(self.apply(&BASE));
            if self.unsettled() == 0 {
                return;
            }
        }
        panic!("{} slots do not settle", self.unsettled());
    }

    fn unsettled(&mut self) -> usize {
        let dataplane = self.dataplane();
        let keys: Vec<_> = dataplane.earlier().into_keys().collect();
        let progress = keys.iter().filter_map(|key| dataplane.progress(key));
        progress.map(|progress| progress.unsettled()).sum()
    }
}

/// One change with an agent that dies after so many writes; `false`: it lived.
fn dies_after(bench: &mut Bench, (name, world, lost): &(&str, World, &[usize]), writes: u32) -> bool {
    let when = |what: &str| format!("{name}, {writes} writes, {what}");
    bench.settle();
    let mut flows = bench.open(60);
    bench.check(&flows, &[], &when("before it"));
    bench.dataplane().die_after(writes);
    let died = !bench.apply(world);
    if died {
        bench.check(&flows, lost, &when("dead"));
        flows.extend(bench.open(20));
        bench.adopt();
        bench.check(&flows, lost, &when("adopted"));
        assert!(bench.apply(world), "{}", when("the second time"));
    } else {
        bench.dataplane().die_after(u32::MAX);
    }
    bench.check(&flows, lost, &when("done"));
    let serving: Vec<_> = (0..BACKENDS.len())
        .filter(|which| world.statuses[*which].is_some_and(|s| s == UP || s.runtime_weight.is_some()))
        .collect();
    for flow in flows.iter().filter(|flow| lost.contains(&flow.owner)) {
        let to = bench.send(flow.port, false).expect("a backend");
        assert!(serving.contains(&to), "{}: lost, and to {to}", when("done"));
    }
    let fresh = bench.open(20);
    assert!(
        fresh.iter().all(|flow| serving.contains(&flow.owner)),
        "{}",
        when("opened after it")
    );
    flows.extend(fresh);
    // And back: whoever lives all the time keeps what it has.
    assert!(bench.apply(&BASE));
    let lost: Vec<usize> = lost.iter().copied().chain([3]).collect();
    bench.check(&flows, &lost, &when("undone"));
    died
}

#[test]
fn a_death_after_any_write_misdirects_no_packet() {
    apart(|| {
        let mut bench = Bench::new();
        assert!(bench.apply(&BASE));
        for change in changes() {
            let mut writes = 0;
            while dies_after(&mut bench, &change, writes) {
                writes += 1;
            }
            assert!(writes >= 3, "{}: only {writes} writes", change.0);
        }
    });
}

#[test]
fn a_death_while_a_service_is_added_or_removed_leaves_nothing_half_done() {
    apart(|| {
        let mut bench = Bench::new();
        let nothing = World { there: false, ..BASE };
        for world in [BASE, nothing.clone(), BASE, nothing] {
            for writes in 0.. {
                // The other way first.
                let before = World {
                    there: !world.there,
                    ..BASE
                };
                assert!(bench.apply(&before));
                bench.wait(2 * SECOND);
                bench.sweep();
                bench.dataplane().die_after(writes);
                let died = !bench.apply(&world);
                if died {
                    bench.adopt();
                    assert!(bench.apply(&world));
                }
                let served = bench.open(20).len();
                assert_eq!(served, if world.there { 20 } else { 0 }, "after {writes} writes");
                if !died {
                    bench.dataplane().die_after(u32::MAX);
                    break;
                }
            }
        }
    });
}

/// Open files of this process, and pins.
fn held() -> (usize, usize) {
    let count = |path: &str| fs::read_dir(path).expect("a folder").count();
    (count("/proc/self/fd"), count(PIN_DIR))
}

#[test]
fn many_table_changes_leave_files_and_pins_as_they_were() {
    apart(|| {
        let mut bench = Bench::new();
        let worlds: Vec<_> = changes().into_iter().map(|(_, world, _)| world).collect();
        let turn = |bench: &mut Bench, rounds: usize| {
            for n in 0..rounds {
                assert!(bench.apply(&worlds[n % worlds.len()]));
                bench.wait(2 * SECOND);
                if n % 8 == 0 {
                    bench.wait(LONG);
                    bench.sweep();
                }
            }
        };
        turn(&mut bench, 40);
        let before = held();
        turn(&mut bench, 200);
        let after = held();
        assert_eq!(after.1, before.1, "pins");
        // Tests beside this one open and close files of their own; a leak would be one for each change.
        assert!(after.0 < before.0 + 100, "{} files, then {}", before.0, after.0);
    });
}

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
    view.dead_before.insert(4, 0);
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
