//! Each case of the rule.

use std::thread;
use std::time::Duration;

use lb_common::layout::{FlowCounters, Slot};
use lb_common::rule::State::{Closing, Contested, Established, Unconfirmed};
use lb_common::rule::{CONFIRM_WINDOW, Standing};

use super::{Bench, data, fin, now_ns, rst, syn};

const ISN: u32 = u32::MAX - 100;
const FLOW: u16 = 40_000;

#[test]
fn stable_slots_ask_and_write_nothing() {
    Bench::tcp(|mut bench| {
        let a = bench.a;
        bench.set_slots(Slot::stable(a));
        for tcp in [syn(FLOW, ISN), data(FLOW, 5), fin(FLOW, 6), rst(FLOW, 7)] {
            assert_eq!(bench.segment("a stable slot", tcp), a);
        }
        assert_eq!(bench.entries(), 0);
        assert_eq!(bench.counters(), FlowCounters::default());
    });
}

#[test]
fn a_connection_from_syn_to_fin() {
    Bench::tcp(|bench| {
        let mut bench = bench.moved();
        let (a, b) = (bench.a, bench.b);
        let before = now_ns();
        assert_eq!(bench.segment("a SYN", syn(FLOW, ISN)), b);
        assert_eq!(bench.known(FLOW), Some((b, Unconfirmed)));
        let entry = bench.entry(FLOW).expect("an entry");
        assert_eq!(entry.isn, ISN);
        assert!((before..=now_ns()).contains(&entry.seen.at_ns()), "{entry:?}");

        assert_eq!(bench.segment("the same SYN again", syn(FLOW, ISN)), b);
        assert_eq!(bench.known(FLOW), Some((b, Unconfirmed)));
        assert_eq!(bench.control().refused_ns, 0);

        // Segments of another connection of this key, which was there before.
        for sequence in [ISN, ISN.wrapping_add(CONFIRM_WINDOW + 1), ISN.wrapping_sub(1)] {
            assert_eq!(bench.segment("not of this connection", data(FLOW, sequence)), a);
            assert_eq!(bench.known(FLOW), Some((b, Contested)));
        }
        let contested = bench.entry(FLOW).expect("an entry");
        assert_eq!((contested.isn, contested.before), (ISN, a));
        assert_eq!(bench.segment("another SYN", syn(FLOW, ISN.wrapping_sub(9))), a);
        assert_eq!(bench.control().refused_ns, 0);

        assert_eq!(
            bench.segment("its first segment", data(FLOW, ISN.wrapping_add(1))),
            b
        );
        let confirmed = bench.entry(FLOW).expect("an entry");
        assert_eq!(bench.known(FLOW), Some((b, Established)));
        assert!(confirmed.seen.at_ns() > entry.seen.at_ns());
        assert_eq!(bench.segment("far on", data(FLOW, ISN.wrapping_add(1 << 30))), b);
        assert_eq!(bench.segment("a SYN to a live connection", syn(FLOW, 9)), b);
        assert_eq!(bench.known(FLOW), Some((b, Established)));

        assert_eq!(bench.segment("its end", fin(FLOW, 77)), b);
        assert_eq!(bench.known(FLOW), Some((b, Closing)));
        assert_eq!(bench.segment("after its end", data(FLOW, 78)), b);
        assert_eq!(bench.known(FLOW), Some((b, Closing)));

        assert_eq!(bench.entries(), 1);
        let expected = FlowCounters {
            hits: 10,
            inserted_syn: 1,
            occupied: 1,
            ..FlowCounters::default()
        };
        assert_eq!(bench.counters(), expected);
        assert_eq!(bench.control().syn_left, super::PLENTY.syn_left - 1);
    });
}

#[test]
fn the_window_of_the_first_segment_ends_at_64_kib() {
    Bench::tcp(|bench| {
        let mut bench = bench.moved();
        let b = bench.b;
        for (port, offset) in [(1, 1), (2, CONFIRM_WINDOW)] {
            bench.segment("a SYN", syn(port, ISN));
            assert_eq!(bench.segment("its data", data(port, ISN.wrapping_add(offset))), b);
            assert_eq!(bench.known(port), Some((b, Established)));
        }
    });
}

#[test]
fn a_flow_that_was_there_stays() {
    Bench::tcp(|bench| {
        let mut bench = bench.moved();
        let (a, b, c) = (bench.a, bench.b, bench.c);
        assert_eq!(bench.segment("of an old connection", data(FLOW, 5)), a);
        assert_eq!(bench.known(FLOW), Some((a, Established)));
        // It moves again, and settles.
        for slot in [
            Slot::new(c, a, true),
            Slot::new(c, c, true),
            Slot::new(b, c, true),
        ] {
            bench.set_slots(slot);
            assert_eq!(bench.segment("it has an entry", data(FLOW, 6)), a, "{slot:?}");
            assert_eq!(bench.segment("a SYN", syn(FLOW, 6)), a, "{slot:?}");
        }
        bench.set_slots(Slot::new(c, c, true));
        assert_eq!(bench.segment("settled", data(1, 5)), c);
        assert_eq!(bench.segment("settled", syn(1, 5)), c);
        assert_eq!(bench.known(1), None);

        bench.set_slots(Slot::new(b, a, true));
        assert_eq!(bench.segment("the end of an old connection", fin(2, 5)), a);
        assert_eq!(bench.known(2), Some((a, Closing)));
        assert_eq!(bench.segment("its ports again", syn(2, 9)), b);
        assert_eq!(bench.known(2), Some((b, Unconfirmed)));
        assert_eq!(bench.entry(2).expect("an entry").isn, 9);
        assert_eq!(bench.segment("a reset of an old connection", rst(3, 5)), a);
        assert_eq!(bench.known(3), None);
        assert_eq!(bench.segment("a reset of one with an entry", rst(FLOW, 5)), a);
        assert_eq!(bench.known(FLOW), Some((a, Closing)));
    });
}

#[test]
fn nobody_takes_new_flows() {
    Bench::tcp(|mut bench| {
        let a = bench.a;
        bench.set_slots(Slot::new(0, a, true));
        assert_eq!(bench.segment("an old connection", data(1, 5)), a);
        assert_eq!(bench.segment("a SYN", syn(2, 5)), 0);
        assert_eq!(bench.known(2), None);
        bench.segment("its end", fin(1, 6));
        assert_eq!(bench.segment("its ports again", syn(1, 5)), 0);
    });
}

#[test]
fn entries_of_the_dead_are_replaced() {
    Bench::tcp(|mut bench| {
        let (a, b, c) = (bench.a, bench.b, bench.c);
        bench.set_standing(c, Standing::Gone);
        bench.set_slots(Slot::new(b, a, true));
        for (port, tcp, backend, state) in [
            (1, syn(1, 5), b, Unconfirmed),
            (2, data(2, 5), a, Established),
            (3, fin(3, 5), a, Closing),
        ] {
            let hash = bench.hash(port);
            bench.write_entry(port, hash, c, Established);
            assert_eq!(bench.segment("its backend is gone", tcp), backend);
            assert_eq!(bench.known(port), Some((backend, state)));
        }
        // Where nothing moves too: it would come back to life with its backend.
        bench.set_slots(Slot::new(b, b, true));
        let hash = bench.hash(4);
        bench.write_entry(4, hash, c, Established);
        assert_eq!(bench.segment("settled", data(4, 5)), b);
        assert_eq!(bench.known(4), Some((b, Established)));
        let hash = bench.hash(6);
        bench.write_entry(6, hash, c, Established);
        assert_eq!(bench.segment("settled", syn(6, 5)), b);
        assert_eq!(bench.known(6), Some((b, Unconfirmed)));
        // Flows without an entry, where their backend is gone: they are lost whatever is done.
        bench.set_slots(Slot::new(b, c, true));
        assert_eq!(bench.segment("of a dead backend", data(5, 5)), b);
        assert_eq!(bench.known(5), None);
        assert_eq!(bench.counters().refused_full, 0);
    });
}

/// Of a kernel's clock at the slowest: entries are given the time of the last one.
const A_TICK: Duration = Duration::from_millis(10);

/// Sends segments of a flow with an entry until one follows a hint, which leaves the time of the entry as it was.
fn hint(bench: &mut Bench, backend: u32) {
    for _ in 0..100 {
        let before = bench.entry(FLOW).expect("an entry").seen;
        thread::sleep(A_TICK);
        assert_eq!(bench.segment("it has an entry", data(FLOW, 5)), backend);
        if bench.entry(FLOW).expect("an entry").seen == before {
            return;
        }
    }
    panic!("no segment followed a hint");
}

/// A hint leads nobody where the entry does not: not after user space has taken it out, nor after the program has put
/// another one in its place, nor to a backend that is gone.
#[test]
fn hints() {
    Bench::tcp(|bench| {
        let mut bench = bench.moved();
        let (a, b) = (bench.a, bench.b);
        let hash = bench.hash(FLOW);
        bench.write_entry(FLOW, hash, b, Established);
        hint(&mut bench, b);
        let key = bench.key(FLOW);
        let flows = &mut bench.world.dataplane.maps.flows;
        assert!(flows.remove(&key).expect("writing the map"));
        assert_eq!(bench.segment("its entry is gone", data(FLOW, 5)), a);
        assert_eq!(bench.known(FLOW), Some((a, Established)));
        hint(&mut bench, a);
        assert_eq!(bench.segment("its end", fin(FLOW, 6)), a);
        assert_eq!(bench.segment("the next of the port", syn(FLOW, 9_000_000)), b);
        assert_eq!(bench.segment("and its data", data(FLOW, 9_000_001)), b);
        assert_eq!(bench.known(FLOW), Some((b, Established)));
        hint(&mut bench, b);
        bench.set_standing(b, Standing::Gone);
        assert_eq!(bench.segment("its backend is gone", data(FLOW, 9_000_002)), a);
        bench.set_standing(b, Standing::Serves);
        assert_eq!(bench.segment("it stays", data(FLOW, 9_000_003)), a);
    });
}

#[test]
fn datagrams() {
    Bench::udp(|bench| {
        let mut bench = bench.moved();
        let (a, b) = (bench.a, bench.b);
        assert_eq!(bench.datagram("a flow without an entry", FLOW), a);
        assert_eq!(bench.known(FLOW), Some((a, Established)));
        let first = bench.entry(FLOW).expect("an entry").seen;
        bench.set_slots(Slot::new(b, b, true));
        thread::sleep(A_TICK);
        assert_eq!(bench.datagram("it has an entry", FLOW), a);
        assert!(bench.entry(FLOW).expect("an entry").seen.at_ns() > first.at_ns());
        assert_eq!(bench.datagram("settled", 1), b);
        assert_eq!(bench.known(1), None);
        let expected = FlowCounters {
            hits: 1,
            inserted_udp: 1,
            ..FlowCounters::default()
        };
        assert_eq!(bench.counters(), expected);
        assert_eq!(bench.control().udp_left, super::PLENTY.udp_left - 1);
    });
}
