//! Entries that are not made: flows stay where they belong without them.

use lb_common::layout::{FlowCounters, FlowEntry, FlowKey};
use lb_common::rule::State::Established;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{Bench, data, now_ns, syn};

#[test]
fn the_allowance_is_used_up() {
    Bench::tcp(|bench| {
        let mut bench = bench.moved();
        let (a, b) = (bench.a, bench.b);
        bench.allow(2, 1, 9);
        let backends: Vec<_> = (0..4).map(|port| bench.segment("a SYN", syn(port, 5))).collect();
        assert_eq!(backends, [b, b, a, a]);
        assert_ne!(bench.control().refused_ns, 0);
        for port in 10..13 {
            assert_eq!(bench.segment("of an old connection", data(port, 5)), a);
        }
        let control = bench.control();
        assert_eq!((control.syn_left, control.data_left, control.udp_left), (0, 0, 9));
        assert_eq!(bench.entries(), 3);
        // A refused connection goes on where its SYN went.
        assert_eq!(bench.segment("its first segment", data(2, 6)), a);
        let expected = FlowCounters {
            inserted_syn: 2,
            inserted_data: 1,
            refused_allowance: 5,
            ..FlowCounters::default()
        };
        assert_eq!(bench.counters(), expected);
    });
}

#[test]
fn refused_datagrams_do_not_keep_windows_open() {
    Bench::udp(|bench| {
        let mut bench = bench.moved();
        let a = bench.a;
        bench.allow(9, 9, 1);
        for port in 0..3 {
            assert_eq!(bench.datagram("a flow", port), a);
        }
        assert_eq!((bench.entries(), bench.control().refused_ns), (1, 0));
        assert_eq!(bench.counters().refused_allowance, 2);
    });
}

#[test]
fn the_table_is_full() {
    Bench::tcp(|bench| {
        let mut bench = bench.moved();
        let (a, b) = (bench.a, bench.b);
        assert_eq!(bench.segment("while there is room", syn(1, 5)), b);
        assert_eq!(bench.segment("while there is room", data(2, 5)), a);
        let flows = &mut bench.world.dataplane.maps.flows;
        for n in 0..flows.capacity() - 2 {
            let key = FlowKey {
                source: [1, 2, 3, n],
                ports: 0,
                service: 63,
            };
            assert!(flows.add(&key, FlowEntry::default()).expect("room"));
        }
        let before = now_ns();
        assert_eq!(bench.segment("full", syn(3, 5)), a);
        assert!(bench.control().refused_ns >= before);
        assert_eq!(bench.segment("full", data(4, 5)), a);
        assert_eq!(bench.counters().refused_full, 2);
        // Entries that are there are used, and replaced, as ever.
        assert_eq!(bench.segment("confirmed", data(1, 6)), b);
        assert_eq!(bench.segment("ends", super::fin(1, 7)), b);
        assert_eq!(bench.segment("ports again", syn(1, 50)), b);
        assert_eq!(bench.segment("confirmed", data(1, 51)), b);
        assert_eq!(bench.segment("its own", data(2, 6)), a);
        assert_eq!(bench.counters().refused_full, 2);
    });
}

/// The element that a look-up found may be another flow's by the time its owner is read. One that stays so under the
/// flow's key, which no race makes, is not followed, and not written over.
#[test]
fn an_element_of_another_flow_is_not_followed() {
    Bench::tcp(|bench| {
        let mut bench = bench.moved();
        let c = bench.c;
        for (port, tcp) in [(1, syn(1, 5)), (2, data(2, 5))] {
            let wrong = !bench.hash(port);
            bench.write_entry(port, wrong, c, Established);
            assert_eq!(bench.segment("another flow's tag", tcp), 0);
            let entry = bench.entry(port).expect("untouched");
            assert_eq!((entry.owner.hash(), entry.owner.backend()), (wrong, c));
            assert_eq!(entry.seen.at_ns(), 1);
        }
        let expected = FlowCounters {
            refused_full: 2,
            ..FlowCounters::default()
        };
        assert_eq!(bench.counters(), expected);
    });
}

/// Whoever knows the ports of live flows cannot turn them away by SYNs in their name.
#[test]
fn forged_syns_break_no_flow() {
    const FLOWS: u16 = 1000;
    let mut random = StdRng::seed_from_u64(5);
    for v6 in [false, true] {
        let Some(bench) = Bench::new(v6, xlb::model::Protocol::Tcp) else {
            return;
        };
        let mut bench = bench.moved();
        let (a, b) = (bench.a, bench.b);
        // Old flows without an entry, old ones with one, and connections of after the move.
        let mut flows: Vec<(u16, u32, u32)> = Vec::new();
        for port in 0..FLOWS {
            let sequence: u32 = random.random();
            let backend = match port % 3 {
                0 => a,
                1 => {
                    bench.segment("seen before", data(port, sequence));
                    a
                }
                _ => {
                    bench.segment("opens", syn(port, sequence));
                    bench.segment("confirms", data(port, sequence.wrapping_add(1)));
                    b
                }
            };
            flows.push((port, sequence.wrapping_add(1), backend));
        }
        // A number that would fit is guessed one time in 65,536; such a guess is left out.
        for (port, sequence, _) in &flows {
            let mut forged: u32 = random.random();
            while sequence.wrapping_sub(forged) <= 2 << 16 {
                forged = random.random();
            }
            bench.segment("forged", syn(*port, forged));
        }
        let mut misrouted = 0;
        for round in 0..3 {
            for (port, sequence, backend) in &flows {
                let tcp = data(*port, sequence.wrapping_add(round * 1000));
                misrouted += u32::from(bench.segment("of a live flow", tcp) != *backend);
            }
        }
        assert_eq!(misrouted, 0);
    }
}
