//! The known limits, each with its extent: what the documentation says of them, and no more. What a reboot costs show
//! the real maps too (`tests/packets/crash/reboot.rs`).

use lb_common::layout::{FlowControl, Slot};
use lb_common::rule::{CONFIRM_WINDOW, Packet, Standing};
use xlb::control::step::{self, Generation, Step, Tables};
use xlb::datapath::sweep::{self, CLOSING_NS, Case, UNANSWERED_NS, Verdict};
use xlb::model::Tracking;

use crate::agent::SECOND;
use crate::kernel::{BACKENDS, Kernel};

const A: u32 = 1;
const B: u32 = 2;
const FLOW: usize = 7;
const ISN: u32 = u32::MAX - 5;
const STABLE: Slot = Slot::stable(A);
const MOVED: Slot = Slot::new(B, A, true);
const SETTLED: Slot = Slot::new(B, B, true);

fn kernel(slot: Slot) -> Kernel {
    let mut kernel = Kernel::new(&[A], 100, None);
    kernel.standing = [Standing::Serves; BACKENDS + 1];
    kernel.control = FlowControl {
        refused_ns: 0,
        syn_left: 100,
        data_left: 100,
        udp_left: 100,
    };
    kernel.record.now = vec![slot];
    kernel
}

fn goes(kernel: &mut Kernel, packet: Packet) -> u32 {
    kernel.pass(FLOW, packet, 1).backend
}

fn data(offset: u32) -> Packet {
    Packet::Data(ISN.wrapping_add(offset))
}

/// What the sweep makes of the flow's entry so long after its last packet; `closed`: its backend takes no new flows.
fn verdict(kernel: &Kernel, after_ns: u64, closed: bool) -> Verdict {
    let entry = kernel.flows[kernel.at(FLOW)].expect("its entry");
    sweep::judge(&Case {
        entry,
        now_ns: entry.seen.at_ns() + after_ns,
        idle_ns: 900 * SECOND,
        dead_before_ns: 0,
        other_dead_before_ns: None,
        closed,
        slot: Some(MOVED),
    })
}

#[test]
fn a_syn_that_is_sent_again_across_a_change() {
    // Its first answer is on its way from A while the second SYN opens the connection on B: A's connection breaks.
    let mut world = kernel(STABLE);
    assert_eq!(goes(&mut world, Packet::Syn(ISN)), A);
    world.record.now = vec![MOVED];
    assert_eq!(goes(&mut world, Packet::Syn(ISN)), B);
    assert_eq!(goes(&mut world, data(1)), B);

    // Without a second SYN it stays, also across the change.
    let mut world = kernel(STABLE);
    goes(&mut world, Packet::Syn(ISN));
    world.record.now = vec![MOVED];
    assert_eq!(goes(&mut world, data(1)), A);
    // And a second SYN after the answer was answered follows it.
    assert_eq!(goes(&mut world, Packet::Syn(ISN)), A);
    assert_eq!(goes(&mut world, data(2)), A);

    // Within a window both SYNs go the same way, also when the slot moves again between them.
    let mut world = kernel(MOVED);
    assert_eq!(goes(&mut world, Packet::Syn(ISN)), B);
    world.record.now = vec![Slot::new(3, A, true)];
    assert_eq!(goes(&mut world, Packet::Syn(ISN)), B);
    assert_eq!(goes(&mut world, data(1)), B);
}

#[test]
fn a_late_copy_of_a_syn() {
    for (sent, expected) in [(1, B), (CONFIRM_WINDOW, B), (CONFIRM_WINDOW + 1, A)] {
        let mut world = kernel(MOVED);
        assert_eq!(
            goes(&mut world, Packet::Syn(ISN)),
            B,
            "the copy, and no entry yet"
        );
        assert_eq!(goes(&mut world, data(sent)), expected, "{sent} bytes");
    }
    // One segment since the slot opened is enough.
    let mut world = kernel(MOVED);
    assert_eq!(goes(&mut world, data(1)), A);
    assert_eq!(goes(&mut world, Packet::Syn(ISN)), A);
    assert_eq!(goes(&mut world, data(2)), A);
}

/// The slot opens when the flow has just been seen for the last time, and the agent steps once a second.
#[test]
fn a_flow_that_is_idle_for_longer_than_the_window() {
    const WINDOW: u64 = 900;
    let mut world = kernel(STABLE);
    let mut tables = Tables {
        now: Generation::stable(&[A]),
        ..Tables::default()
    };
    let mut lost = None;
    for second in 0..2 * WINDOW {
        let step = Step {
            tracking: Tracking::Moved,
            want: &[B],
            standing: &|_| Standing::Serves,
            takes_new: &|_| true,
            now_ns: (10_000 + second) * SECOND,
            window_ns: WINDOW * SECOND,
            refused_ns: 0,
            room: 1,
            scan: None,
        };
        tables = step::advance(&tables, &step).tables;
        world.record.now.clone_from(&tables.now.slots);
        let to = world.lookup(FLOW, data(1), (10_000 + second) * SECOND);
        if to == B {
            lost.get_or_insert(second);
        }
        assert_eq!(to == B, lost.is_some(), "once for all");
    }
    // A second for packets on their way, and one in which the service is held.
    assert_eq!(lost, Some(WINDOW + 2));

    // One segment within it is enough.
    let mut seen = kernel(MOVED);
    assert_eq!(goes(&mut seen, data(1)), A);
    seen.record.now = vec![SETTLED];
    assert_eq!(goes(&mut seen, data(2)), A);
}

#[test]
fn a_half_closed_connection_that_is_idle() {
    let mut world = kernel(MOVED);
    goes(&mut world, Packet::Syn(ISN));
    goes(&mut world, data(1));
    let fin = Packet::Last {
        sequence: ISN.wrapping_add(2),
        reset: false,
    };
    assert_eq!(goes(&mut world, fin), B);
    assert_eq!(verdict(&world, CLOSING_NS, false), Verdict::Keep);
    assert_eq!(verdict(&world, CLOSING_NS + 2 * SECOND, false), Verdict::Expired);
    assert_eq!(goes(&mut world, data(3)), B);
    world.take(world.at(FLOW));
    assert_eq!(goes(&mut world, data(4)), A);
}

#[test]
fn a_late_answer_of_a_backend_that_takes_no_new_flows() {
    let mut world = kernel(MOVED);
    assert_eq!(goes(&mut world, Packet::Syn(ISN)), B);
    assert_eq!(verdict(&world, UNANSWERED_NS, true), Verdict::Keep);
    assert_eq!(
        verdict(&world, UNANSWERED_NS + 2 * SECOND, true),
        Verdict::Expired
    );
    assert_eq!(verdict(&world, UNANSWERED_NS + 2 * SECOND, false), Verdict::Keep);
    world.take(world.at(FLOW));
    assert_eq!(goes(&mut world, data(1)), A);
}

#[test]
fn a_forged_syn_that_guesses_the_clients_number() {
    for (behind, expected) in [(0, A), (1, B), (CONFIRM_WINDOW, B), (CONFIRM_WINDOW + 1, A)] {
        let mut world = kernel(MOVED);
        assert_eq!(
            goes(&mut world, Packet::Syn(ISN.wrapping_sub(behind))),
            B,
            "forged"
        );
        assert_eq!(goes(&mut world, data(0)), expected, "{behind} bytes behind");
    }
    // Too late where the flow was seen before.
    let mut world = kernel(MOVED);
    assert_eq!(goes(&mut world, data(0)), A);
    assert_eq!(goes(&mut world, Packet::Syn(ISN.wrapping_sub(1))), A, "forged");
    assert_eq!(goes(&mut world, data(0)), A);
}

/// A closing entry is taken over by the SYN that writes last: a forged one at the very moment of the real one.
#[test]
fn a_forged_syn_at_the_moment_of_the_real_one() {
    for (forged_last, expected) in [(false, B), (true, A)] {
        let mut world = kernel(MOVED);
        assert_eq!(goes(&mut world, data(0)), A);
        let fin = Packet::Last {
            sequence: ISN,
            reset: false,
        };
        assert_eq!(goes(&mut world, fin), A);
        let forged = world.enter(FLOW, Packet::Syn(9 << 20), 1);
        let real = world.enter(FLOW, Packet::Syn(ISN), 1);
        let order = if forged_last {
            [real, forged]
        } else {
            [forged, real]
        };
        for passing in &order {
            assert_eq!(world.leave(passing, 2).backend, B);
        }
        assert_eq!(goes(&mut world, data(1)), expected);
    }
    // One after the other, the real one stays.
    let mut world = kernel(MOVED);
    goes(&mut world, Packet::Syn(ISN));
    assert_eq!(goes(&mut world, Packet::Syn(9 << 20)), A, "forged");
    assert_eq!(goes(&mut world, data(1)), B);
}

/// The client of an established entry vanished, and its ports are used again.
#[test]
fn ports_that_are_used_again() {
    let vanished = || {
        let mut world = kernel(MOVED);
        goes(&mut world, Packet::Syn(77));
        goes(&mut world, Packet::Data(78));
        // The next connection follows the entry.
        assert_eq!(goes(&mut world, Packet::Syn(ISN)), B);
        world
    };
    let mut world = vanished();
    assert_eq!(goes(&mut world, data(1)), B);
    // The entry expires between its SYN and its next segment.
    let mut world = vanished();
    world.take(world.at(FLOW));
    assert_eq!(goes(&mut world, data(1)), A);
    // Or the sweep takes it out before the segment and puts it back after it, because the SYN changed nothing.
    let mut world = vanished();
    let at = world.at(FLOW);
    let entry = world.take(at).expect("its entry");
    assert_eq!(goes(&mut world, data(1)), A);
    world.put_back(at, entry);
    assert_eq!(goes(&mut world, data(2)), A);
    // The segment must come between the two.
    let mut world = vanished();
    let entry = world.take(at).expect("its entry");
    world.put_back(at, entry);
    assert_eq!(goes(&mut world, data(1)), B);
}

/// The sweep holds an entry whose flow was seen since it looked, and its agent dies before it puts it back.
#[test]
fn an_agent_that_dies_with_an_entry_in_its_hands() {
    let mut world = kernel(MOVED);
    goes(&mut world, Packet::Syn(ISN));
    assert_eq!(goes(&mut world, data(1)), B);
    world.take(world.at(FLOW));
    assert_eq!(goes(&mut world, data(2)), A);
    // A flow of `previous` is where it was: it has none to lose.
    let mut world = kernel(MOVED);
    assert_eq!(goes(&mut world, data(1)), A);
    world.take(world.at(FLOW));
    assert_eq!(goes(&mut world, data(2)), A);
}

#[test]
fn datagrams_that_are_refused_for_a_whole_window() {
    let mut world = kernel(MOVED);
    world.control.udp_left = 0;
    assert_eq!(goes(&mut world, Packet::Datagram), A);
    assert_eq!(world.control.refused_ns, 0, "windows are not prolonged");
    world.record.now = vec![SETTLED];
    assert_eq!(goes(&mut world, Packet::Datagram), B);
    // One that is not refused within it is enough.
    let mut world = kernel(MOVED);
    world.control.udp_left = 0;
    goes(&mut world, Packet::Datagram);
    world.control.udp_left = 1;
    goes(&mut world, Packet::Datagram);
    world.record.now = vec![SETTLED];
    assert_eq!(goes(&mut world, Packet::Datagram), A);
}

#[test]
fn a_reboot() {
    // What had no entry stays where the table leads; the others are led there too.
    let (mut untouched, mut moved) = (kernel(STABLE), kernel(MOVED));
    assert_eq!(goes(&mut untouched, data(1)), A);
    assert_eq!(goes(&mut moved, data(1)), A);
    let mut rebooted = kernel(Slot::stable(B));
    assert_eq!(goes(&mut rebooted, data(2)), B);
}

#[test]
fn a_forged_fin_shortens_a_life_and_no_more() {
    let mut world = kernel(MOVED);
    goes(&mut world, Packet::Syn(ISN));
    goes(&mut world, data(1));
    let forged = Packet::Last {
        sequence: 9 << 20,
        reset: false,
    };
    goes(&mut world, forged);
    assert_eq!(goes(&mut world, data(2)), B);
    // Not even with a SYN behind it.
    world.record.now = vec![Slot::new(3, A, true)];
    assert_eq!(goes(&mut world, Packet::Syn(77 << 20)), 3);
    assert_eq!(goes(&mut world, data(100_000)), B);
}
