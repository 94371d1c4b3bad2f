//! Two CPUs at once.

use std::cell::Cell;
use std::sync::{Arc, Barrier};
use std::thread;

use lb_common::layout::FlowCounters;
use lb_common::rule::State::{Contested, Established, Unconfirmed};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use xlb::datapath::simulate::Simulator;
use xlb::datapath::sweep;

use super::{Bench, data, now_ns, syn};

const FLOWS: u16 = 1000;

fn run_on(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu).expect("a CPU");
    sched_setaffinity(Pid::from_raw(0), &set).expect("running on one CPU");
}

/// Two CPUs that this process may run on; the machine may have but one.
fn two_cpus() -> Option<[usize; 2]> {
    let set = nix::sched::sched_getaffinity(Pid::from_raw(0)).expect("our CPUs");
    let mut cpus = (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false));
    let pair = cpus.next().zip(cpus.next()).map(|(a, b)| [a, b]);
    if pair.is_none() {
        eprintln!("skipped: this machine has one CPU");
    }
    pair
}

/// The destination MAC of each frame when it left, frame by frame at the same moment on two CPUs.
fn on_two_cpus(world: &Simulator, cpus: [usize; 2], frames: [&[Vec<u8>]; 2]) -> [Vec<[u8; 6]>; 2] {
    let barrier = Barrier::new(2);
    let run = |n: usize| {
        run_on(cpus[n]);
        frames[n]
            .iter()
            .map(|frame| {
                barrier.wait();
                let run = world.run(frame).expect("a run");
                run.packet[..6].try_into().expect("a frame")
            })
            .collect()
    };
    thread::scope(|scope| {
        let other = scope.spawn(|| run(1));
        let one = scope.spawn(|| run(0));
        [one.join().expect("a thread"), other.join().expect("a thread")]
    })
}

/// A SYN and its copy, by two queues of the adapter: whoever makes the entry, both go to the same backend.
#[test]
fn two_cpus_make_the_same_entry() {
    let Some(cpus) = two_cpus() else { return };
    Bench::tcp(|bench| {
        let bench = bench.moved();
        let frames: Vec<_> = (0..FLOWS).map(|port| bench.frame(syn(port, 5))).collect();
        let [one, other] = on_two_cpus(&bench.world, cpus, [&frames, &frames]);
        let first = one[0];
        assert!(one.iter().chain(&other).all(|mac| *mac == first), "one backend");
        for port in 0..FLOWS {
            assert_eq!(bench.known(port), Some((bench.b, Unconfirmed)));
        }
        let counters = bench.counters();
        assert_eq!(counters.inserted_syn, u64::from(FLOWS));
        let expected = FlowCounters {
            hits: u64::from(FLOWS),
            inserted_syn: u64::from(FLOWS),
            ..FlowCounters::default()
        };
        assert_eq!(counters, expected);
        assert_eq!(bench.control().refused_ns, 0);
        // Who comes second has taken from the allowance too.
        let taken = super::PLENTY.syn_left - bench.control().syn_left;
        println!(
            "{} times both had looked before either wrote",
            taken - u64::from(FLOWS)
        );
    });
}

/// The same with segments of old flows, which were never seen since their slot moved.
#[test]
fn two_cpus_see_an_old_flow() {
    let Some(cpus) = two_cpus() else { return };
    Bench::tcp(|bench| {
        let bench = bench.moved();
        let one: Vec<_> = (0..FLOWS).map(|port| bench.frame(data(port, 5))).collect();
        let other: Vec<_> = (0..FLOWS).map(|port| bench.frame(data(port, 6))).collect();
        let [one, other] = on_two_cpus(&bench.world, cpus, [&one, &other]);
        let first = one[0];
        assert!(one.iter().chain(&other).all(|mac| *mac == first), "one backend");
        for port in 0..FLOWS {
            assert_eq!(bench.known(port), Some((bench.a, Established)));
        }
        assert_eq!(bench.counters().inserted_data, u64::from(FLOWS));
        assert_eq!(bench.counters().refused_full, 0);
    });
}

/// A forged SYN beside a segment of the flow: one of them is first, and the flow stays either way.
#[test]
fn a_forged_syn_at_the_same_moment() {
    let Some(cpus) = two_cpus() else { return };
    Bench::tcp(|bench| {
        let bench = bench.moved();
        let old: Vec<_> = (0..FLOWS).map(|port| bench.frame(data(port, 5))).collect();
        let forged: Vec<_> = (0..FLOWS).map(|port| bench.frame(syn(port, 1 << 31))).collect();
        let [live, _] = on_two_cpus(&bench.world, cpus, [&old, &forged]);
        let (mut syn_first, mut data_first) = (0, 0);
        let a = live[0];
        assert!(live.iter().all(|mac| *mac == a), "the flow stays");
        for port in 0..FLOWS {
            match bench.known(port) {
                Some((backend, Established)) if backend == bench.a => data_first += 1,
                Some((backend, Contested)) if backend == bench.b => syn_first += 1,
                other => panic!("{other:?}"),
            }
        }
        println!("the segment was first {data_first} times, the SYN {syn_first} times");
    });
}

/// A port is used again after the sweep read its entry and before it takes it out: the entry stays.
#[test]
fn a_port_is_used_again_between_the_sweeps_reading_and_taking_out() {
    Bench::tcp(|bench| {
        let mut bench = bench.moved();
        let (b, begun_ns) = (bench.b, now_ns());
        for port in 0..FLOWS {
            // Seen last when the machine started.
            bench.write_entry(port, bench.hash(port), b, Established);
        }
        let mut view = bench.world.dataplane.view(&now_ns);
        let service = view.services.get_mut(&bench.index).expect("the service");
        service.idle_ns = 1;
        let view = Arc::new(view);
        let mut flows = bench.world.dataplane.maps.flows.try_clone().expect("the table");
        let used = Cell::new(false);
        // It is asked for after a batch was read and before any of its entries is judged.
        let look = || {
            if !used.replace(true) {
                for port in (0..FLOWS).step_by(2) {
                    bench.world.run(&bench.frame(data(port, 77))).expect("a run");
                }
            }
            Arc::clone(&view)
        };
        let report = sweep::sweep(&mut flows, &look, &|| begun_ns, &|| true);
        let report = report.expect("a scan").expect("all of it");
        assert_eq!((report.removed, report.lost), (u64::from(FLOWS) / 2, 0));
        for port in 0..FLOWS {
            let expected = (port % 2 == 0).then_some((b, Established));
            assert_eq!(bench.known(port), expected, "{port}");
        }
    });
}

/// The same, whenever it happens: packets on one CPU, on another sweeps that want every entry gone.
#[test]
fn ports_are_used_all_the_time_while_the_sweep_takes_out() {
    let Some(cpus) = two_cpus() else { return };
    Bench::tcp(|bench| {
        let mut bench = bench.moved();
        let (b, begun_ns) = (bench.b, now_ns());
        for port in 0..FLOWS {
            bench.write_entry(port, bench.hash(port), b, Established);
        }
        let mut view = bench.world.dataplane.view(&now_ns);
        view.services.get_mut(&bench.index).expect("the service").idle_ns = 1;
        let view = Arc::new(view);
        let mut flows = bench.world.dataplane.maps.flows.try_clone().expect("the table");
        let frames: Vec<_> = (0..FLOWS).map(|port| bench.frame(data(port, 77))).collect();
        let barrier = Barrier::new(2);
        let report = thread::scope(|scope| {
            let packets = scope.spawn(|| {
                run_on(cpus[1]);
                barrier.wait();
                // The other way round, so that they meet.
                for frame in frames.iter().rev() {
                    bench.world.run(frame).expect("a run");
                }
            });
            run_on(cpus[0]);
            barrier.wait();
            let report = sweep::sweep(&mut flows, &|| Arc::clone(&view), &|| begun_ns, &|| true);
            packets.join().expect("a thread");
            report.expect("a scan").expect("all of it")
        });
        // Those that were swept first have an entry for A, others their old one; what was seen is known.
        let (mut kept, mut anew) = (0, 0);
        for port in 0..FLOWS {
            match bench.known(port) {
                Some((backend, Established)) if backend == b => kept += 1,
                Some((backend, Established)) if backend == bench.a => anew += 1,
                other => panic!("{port}: {other:?}"),
            }
        }
        assert_eq!(report.lost, 0);
        println!(
            "{kept} kept, {} of them put back, {anew} made anew",
            report.put_back
        );
    });
}
