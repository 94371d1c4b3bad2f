//! The known limits, each with its extent: what the documentation says of them, and no more. One test for each line of
//! its table.

use lb_common::layout::{FlowControl, Slot};
use lb_common::rule::{CONFIRM_WINDOW, Packet, Standing, State};
use xlb::control::step::GRACE_NS;
use xlb::datapath::sweep::CLOSING_NS;

use crate::agent::{Agent, SECOND};
use crate::kernel::{BACKENDS, KEYS, Kernel};

const A: u32 = 1;
const B: u32 = 2;
const C: u32 = 3;
const FLOW: usize = 7;
const ISN: u32 = u32::MAX - 5;
const STABLE: Slot = Slot::stable(A);
const MOVED: Slot = Slot::new(B, A, true);
const MOVED_AGAIN: Slot = Slot::new(C, A, true);
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
    goes_at(kernel, packet, 1)
}

fn goes_at(kernel: &mut Kernel, packet: Packet, now_ns: u64) -> u32 {
    kernel.pass(FLOW, packet, now_ns).backend
}

/// How long flows may be idle.
const WINDOW_NS: u64 = 900 * SECOND;

/// A full scan of the flow table.
fn sweep(kernel: &mut Kernel, now_ns: u64) {
    let mut agent = Agent::adopt(kernel, WINDOW_NS, now_ns, None);
    while !agent.sweep(kernel, now_ns, KEYS) {}
}

const FIN: Packet = Packet::Last {
    sequence: ISN.wrapping_add(1),
    reset: false,
};

fn data(offset: u32) -> Packet {
    Packet::Data(ISN.wrapping_add(offset))
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
    world.record.now = vec![MOVED_AGAIN];
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
    // The same of a connection of which only the client's half is closed, though it has an entry.
    for (sent, expected) in [(1, C), (CONFIRM_WINDOW, C), (CONFIRM_WINDOW + 1, B)] {
        let mut world = kernel(MOVED);
        goes(&mut world, Packet::Syn(ISN));
        goes(&mut world, data(1));
        assert_eq!(goes(&mut world, FIN), B);
        world.record.now = vec![MOVED_AGAIN];
        assert_eq!(goes(&mut world, Packet::Syn(ISN)), C, "the copy");
        assert_eq!(goes(&mut world, data(sent)), expected, "{sent} bytes");
    }
    // One segment since the slot opened is enough.
    let mut world = kernel(MOVED);
    assert_eq!(goes(&mut world, data(1)), A);
    assert_eq!(goes(&mut world, Packet::Syn(ISN)), A);
    assert_eq!(goes(&mut world, data(2)), A);
}

#[test]
fn a_flow_that_is_idle_for_longer_than_the_window() {
    let mut seen = kernel(MOVED);
    assert_eq!(goes(&mut seen, data(1)), A);
    seen.record.now = vec![SETTLED];
    assert_eq!(goes(&mut seen, data(2)), A);
    let mut idle = kernel(SETTLED);
    assert_eq!(goes(&mut idle, data(2)), B);
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
    world.record.now = vec![MOVED_AGAIN];
    assert_eq!(goes(&mut world, Packet::Syn(77 << 20)), C);
    assert_eq!(goes(&mut world, data(100_000)), B);

    // A packet a minute keeps the entry; a longer silence is one too many.
    let mut world = kernel(MOVED);
    goes(&mut world, Packet::Syn(ISN));
    goes(&mut world, data(1));
    goes(&mut world, forged);
    let mut now_ns = 1;
    for _ in 0..3 {
        now_ns += CLOSING_NS;
        sweep(&mut world, now_ns);
        assert_eq!(goes_at(&mut world, data(2), now_ns), B);
    }
    sweep(&mut world, now_ns + CLOSING_NS + GRACE_NS + 1);
    assert_eq!(goes(&mut world, data(2)), A);
}

#[test]
fn a_half_closed_connection_that_is_idle_for_longer_than_a_minute() {
    for (idle_ns, expected) in [(CLOSING_NS, B), (CLOSING_NS + GRACE_NS + 1, A)] {
        let mut world = kernel(MOVED);
        goes(&mut world, Packet::Syn(ISN));
        goes(&mut world, data(1));
        assert_eq!(goes(&mut world, FIN), B);
        sweep(&mut world, 1 + idle_ns);
        assert_eq!(goes(&mut world, data(2)), expected, "{idle_ns}");
    }
    // Where nothing moved it may be idle for as long as it likes.
    let mut world = kernel(STABLE);
    goes(&mut world, FIN);
    sweep(&mut world, WINDOW_NS);
    assert_eq!(goes(&mut world, data(2)), A);
}

#[test]
fn a_forged_syn_with_a_number_just_before_the_clients() {
    let guesses = [0, 1, CONFIRM_WINDOW, CONFIRM_WINDOW + 1, 1 << 31];
    for (before, expected) in guesses.into_iter().zip([A, B, B, A, A]) {
        let mut world = kernel(MOVED);
        let forged = Packet::Syn(ISN.wrapping_sub(before));
        assert_eq!(goes(&mut world, forged), B);
        assert_eq!(goes(&mut world, Packet::Data(ISN)), expected, "{before}");
    }
    // Only before the connection was seen.
    let mut world = kernel(MOVED);
    assert_eq!(goes(&mut world, data(1)), A);
    assert_eq!(goes(&mut world, Packet::Syn(ISN)), A);
    assert_eq!(goes(&mut world, data(2)), A);
    // One guess in as many as there are windows.
    assert_eq!((1_u64 << 32) / u64::from(CONFIRM_WINDOW), 65_536);
}

#[test]
fn a_forged_syn_at_the_moment_when_the_real_one_replaces_a_closing_entry() {
    let closing = || {
        let mut world = kernel(MOVED);
        goes(&mut world, Packet::Syn(77 << 20));
        goes(&mut world, Packet::Data((77 << 20) + 1));
        let fin = Packet::Last {
            sequence: (77 << 20) + 1,
            reset: false,
        };
        assert_eq!(goes(&mut world, fin), B);
        world.record.now = vec![MOVED_AGAIN];
        world
    };
    let (real, forged) = (Packet::Syn(ISN), Packet::Syn(ISN ^ 1 << 31));
    let first_segment = |order: &[(Packet, bool)]| {
        let mut world = closing();
        let mut reading = Vec::new();
        for (packet, reads) in order {
            match reads {
                true => reading.push(world.enter(FLOW, *packet)),
                false => {
                    let place = reading.iter().position(|passing| passing.packet == *packet);
                    let passing = reading.remove(place.expect("it has read"));
                    world.leave(&passing, 1);
                }
            }
        }
        goes(&mut world, data(1))
    };
    let (reads, writes) = (true, false);
    let at_once = [(real, reads), (forged, reads), (real, writes), (forged, writes)];
    assert_eq!(first_segment(&at_once), B, "to the old connection's backend");
    // The other way round, or one after the other, nothing is lost.
    let real_last = [(real, reads), (forged, reads), (forged, writes), (real, writes)];
    assert_eq!(first_segment(&real_last), C);
    let in_turn = [(real, reads), (real, writes), (forged, reads), (forged, writes)];
    assert_eq!(first_segment(&in_turn), C);
}

#[test]
fn ports_that_are_used_again_after_a_client_vanished() {
    let vanished = || {
        let mut world = kernel(MOVED);
        goes(&mut world, Packet::Syn(77 << 20));
        assert_eq!(goes(&mut world, Packet::Data((77 << 20) + 1)), B);
        world.record.now = vec![MOVED_AGAIN];
        world
    };
    // The SYN follows the old entry, which expires before the next segment.
    let mut world = vanished();
    let late_ns = WINDOW_NS + GRACE_NS;
    assert_eq!(goes_at(&mut world, Packet::Syn(ISN), late_ns), B);
    sweep(&mut world, late_ns + 2);
    assert_eq!(goes_at(&mut world, data(1), late_ns + 3), A);
    // A segment in time makes it the connection's own entry.
    let mut world = vanished();
    assert_eq!(goes_at(&mut world, Packet::Syn(ISN), late_ns), B);
    assert_eq!(goes_at(&mut world, data(1), late_ns + 1), B);
    sweep(&mut world, late_ns + 2);
    assert_eq!(goes_at(&mut world, data(2), late_ns + 3), B);
}

#[test]
fn ports_that_are_used_again_between_taking_out_and_putting_back() {
    let known = || {
        let mut world = kernel(MOVED);
        goes(&mut world, Packet::Syn(77 << 20));
        goes(&mut world, Packet::Data((77 << 20) + 1));
        world.record.now = vec![MOVED_AGAIN];
        world
    };
    // The SYN before the first step, the segment between them.
    let mut world = known();
    assert_eq!(goes(&mut world, Packet::Syn(ISN)), B);
    let taken = world.take(FLOW).expect("the entry");
    assert_eq!(goes(&mut world, data(1)), A);
    world.put_back(FLOW, taken);
    assert_eq!(goes(&mut world, data(2)), A, "and there it stays");
    // Both between them, or the segment after them: the connection stays where its SYN went.
    let mut world = known();
    let taken = world.take(FLOW).expect("the entry");
    assert_eq!(goes(&mut world, Packet::Syn(ISN)), C);
    assert_eq!(goes(&mut world, data(1)), C);
    world.put_back(FLOW, taken);
    assert_eq!(goes(&mut world, data(2)), C);
    let mut world = known();
    assert_eq!(goes(&mut world, Packet::Syn(ISN)), B);
    let taken = world.take(FLOW).expect("the entry");
    world.put_back(FLOW, taken);
    assert_eq!(goes(&mut world, data(1)), B);
}

#[test]
fn datagrams_that_are_refused_during_a_whole_window() {
    let mut world = kernel(MOVED);
    world.control.udp_left = 0;
    assert_eq!(goes(&mut world, Packet::Datagram), A);
    assert_eq!(world.control.refused_ns, 0, "it does not prolong the window");
    world.record.now = vec![SETTLED];
    assert_eq!(goes(&mut world, Packet::Datagram), B);
    // One that found room is enough.
    let mut world = kernel(MOVED);
    world.control.udp_left = 1;
    assert_eq!(goes(&mut world, Packet::Datagram), A);
    assert_eq!(
        world.entry(FLOW).map(|entry| entry.state),
        Some(State::Established)
    );
    world.record.now = vec![SETTLED];
    assert_eq!(goes(&mut world, Packet::Datagram), A);
}
