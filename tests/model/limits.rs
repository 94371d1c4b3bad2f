//! The known limits, each with its extent: what the documentation says of them, and no more.

use lb_common::layout::{FlowControl, Slot};
use lb_common::rule::{CONFIRM_WINDOW, Packet, Standing};

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
    world.record.now = vec![Slot::new(3, A, true)];
    assert_eq!(goes(&mut world, Packet::Syn(77 << 20)), 3);
    assert_eq!(goes(&mut world, data(100_000)), B);
}
