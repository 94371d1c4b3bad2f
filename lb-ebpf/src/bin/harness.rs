//! What speed is measured with: restores the packet that the program under test rewrote and tail-calls it again,
//! so that no rewritten packet is ever fed back, each time from another client where that is asked for. Beside it
//! the floors: programs that do nothing, or only what any forwarding has to.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// For the accesses that the language has no word for.
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![cfg_attr(
    not(target_arch = "bpf"),
    allow(dead_code, reason = "the entry exists for the BPF target only")
)]

#[expect(dead_code, reason = "the load balancer uses more of it")]
#[path = "../word.rs"]
mod word;

use aya_ebpf::Global;
use aya_ebpf::bindings::{TC_ACT_OK, TC_ACT_SHOT, xdp_action};
use aya_ebpf::btf_maps::{Array, HashMap, PerCpuArray, ProgramArray};
use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_redirect, bpf_skb_vlan_pop, bpf_xdp_adjust_head};
use aya_ebpf::macros::{btf_map, classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};

use self::word::set_word;

/// Length of the frame as it was.
#[unsafe(no_mangle)]
static FRAME_LEN: Global<u16> = Global::new(60);

/// The Ethernet header as it was, eight bytes and six, in memory order. All that forwarding
/// changes in the frame itself is this header; what it puts before the frame is cut off by the length.
#[unsafe(no_mangle)]
static ETHERNET_LOW: Global<u64> = Global::new(0);
#[unsafe(no_mangle)]
static ETHERNET_HIGH: Global<u64> = Global::new(0);

/// 0, or the IP version of a segment whose addresses, ports and checksums are restored as well: what programs that
/// translate addresses change.
#[unsafe(no_mangle)]
static TRANSLATED: Global<u8> = Global::new(0);

/// Those, in the order in which they stand in the frame ([`restore_v4`], [`restore_v6`]).
#[unsafe(no_mangle)]
static WORDS: [u64; 7] = [0; 7];

/// The number of flows less one, a power of two less one; 0: always the same flow.
#[unsafe(no_mangle)]
static FLOW_MASK: Global<u32> = Global::new(0);

/// Where the four bytes lie that tell flows apart: the last of the client's address.
#[unsafe(no_mangle)]
static FLOW_OFFSET: Global<u16> = Global::new(26);

/// Spreads consecutive numbers over all 32 bits without two meeting (an odd factor; Knuth's 2^32 / phi).
const SPREAD: u32 = 2_654_435_761;

/// Nanoseconds from one packet to the next; 0: as fast as can be.
#[unsafe(no_mangle)]
static PACE_NS: Global<u64> = Global::new(0);

/// When the next packet is due.
#[btf_map]
static DUE_NS: Array<u64, 1> = Array::new();

/// The number of the next flow.
#[btf_map]
static NEXT_FLOW: Array<u32, 1> = Array::new();

/// Slot 0: the program under test.
#[btf_map]
static UNDER_TEST: ProgramArray<1> = ProgramArray::new();

#[xdp(frags)]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the entry macro hands the context over"
)]
pub fn harness(ctx: XdpContext) -> u32 {
    // 16 bits, so that no arithmetic of one pointer alone comes out of it, which the verifier refuses.
    let len = (ctx.data_end() - ctx.data()) as u16;
    let grown = i32::from(len) - i32::from(FRAME_LEN.load());
    // SAFETY: a valid context; no pointer into the packet is held.
    if grown != 0 && unsafe { bpf_xdp_adjust_head(ctx.ctx, grown) } != 0 {
        return xdp_action::XDP_ABORTED;
    }
    let start = ctx.data();
    if start + 14 > ctx.data_end() {
        return xdp_action::XDP_ABORTED;
    }
    let (frame, high) = (start as *mut u8, ETHERNET_HIGH.load());
    // Addresses, then the type, in words that a program under test may read them by: what was stored in pieces cannot
    // be read in one until it has left the processor's store buffer.
    // SAFETY: the bounds of 14 bytes were checked above.
    unsafe {
        set_word::<u64, 0>(frame, ETHERNET_LOW.load());
        set_word::<u32, 8>(frame, high as u32);
        set_word::<u16, 12>(frame, (high >> 32) as u16);
    }
    let restored = match TRANSLATED.load() {
        0 => Some(()),
        4 => restore_v4(&ctx),
        _ => restore_v6(&ctx),
    };
    if restored.is_none() {
        return xdp_action::XDP_ABORTED;
    }
    if FLOW_MASK.load() != 0 && next_flow(&ctx).is_none() {
        return xdp_action::XDP_ABORTED;
    }
    if PACE_NS.load() != 0 {
        keep_pace();
    }
    // SAFETY: a valid context of the same program type.
    unsafe { UNDER_TEST.tail_call(&ctx, 0) };
    xdp_action::XDP_ABORTED
}

#[inline(always)]
fn word(index: usize) -> u64 {
    // SAFETY: a valid, aligned reference; volatile because the loader writes the value after compilation.
    unsafe { core::ptr::read_volatile(&raw const WORDS[index]) }
}

/// TTL, protocol and checksum; both addresses; both ports; the checksum of TCP behind a header without options.
#[inline(always)]
fn restore_v4(ctx: &XdpContext) -> Option<()> {
    let start = ctx.data();
    if start + 14 + 20 + 20 > ctx.data_end() {
        return None;
    }
    let frame = start as *mut u8;
    // SAFETY: the bounds were checked.
    unsafe {
        set_word::<u32, 22>(frame, word(0) as u32);
        set_word::<u64, 26>(frame, word(1));
        set_word::<u32, 34>(frame, word(2) as u32);
        set_word::<u16, 50>(frame, word(3) as u16);
    }
    Some(())
}

/// Length, next header and hop limit; both addresses, in two words each; both ports; the checksum of TCP.
#[inline(always)]
fn restore_v6(ctx: &XdpContext) -> Option<()> {
    let start = ctx.data();
    if start + 14 + 40 + 20 > ctx.data_end() {
        return None;
    }
    let frame = start as *mut u8;
    // SAFETY: the bounds were checked.
    unsafe {
        set_word::<u32, 18>(frame, word(0) as u32);
        set_word::<u64, 22>(frame, word(1));
        set_word::<u64, 30>(frame, word(2));
        set_word::<u64, 38>(frame, word(3));
        set_word::<u64, 46>(frame, word(4));
        set_word::<u32, 54>(frame, word(5) as u32);
        set_word::<u16, 70>(frame, word(6) as u16);
    }
    Some(())
}

/// Looks at the clock until the packet is due, or for so long.
const LOOKS: u32 = 256;

/// Waits until the packet is due. What is late is not caught up with.
#[inline(always)]
fn keep_pace() {
    let Some(due) = DUE_NS.get_ptr_mut(0) else { return };
    // SAFETY: a valid map value; measurements run one at a time.
    let due_ns = unsafe { due.read() };
    let mut now_ns = 0;
    for _ in 0..LOOKS {
        // SAFETY: a helper without arguments.
        now_ns = unsafe { bpf_ktime_get_ns() };
        if now_ns >= due_ns {
            break;
        }
    }
    // SAFETY: as above.
    unsafe { due.write(now_ns.max(due_ns) + PACE_NS.load()) };
}

/// Makes the packet one of the next flow. Checksums are left as they were: nobody looks at them.
#[inline(always)]
fn next_flow(ctx: &XdpContext) -> Option<()> {
    let next = NEXT_FLOW.get_ptr_mut(0)?;
    // SAFETY: a valid map value; measurements run one at a time.
    let number = unsafe { next.read() };
    // SAFETY: as above.
    unsafe { next.write(number.wrapping_add(1)) };
    let offset = usize::from(FLOW_OFFSET.load());
    if offset > MAX_FLOW_OFFSET {
        return None;
    }
    let at = ctx.data() + offset;
    if at + 4 > ctx.data_end() {
        return None;
    }
    let address = (number & FLOW_MASK.load()).wrapping_mul(SPREAD);
    // SAFETY: the bounds were checked.
    unsafe { set_word::<u32, 0>(at as *mut u8, address) };
    Some(())
}

/// Addresses lie within this of the frame's start.
const MAX_FLOW_OFFSET: usize = 256;

/// The floor of a packet that is none of ours.
#[xdp(frags)]
pub fn floor(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Sends a frame as it is: what a generator of live frames ends in.
#[xdp(frags)]
pub fn transmit(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_TX
}

/// Where generated frames end.
#[xdp(frags)]
pub fn sink(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_DROP
}

/// Where a switch sends frames: the interface by the Ethernet address of the machine behind it.
#[btf_map]
static PORTS: HashMap<[u8; 6], u32, 64> = HashMap::new();

/// A port of a switch: sends a frame out by the port of its destination. What goes to many, and to strangers, is left to
/// the kernel's bridge.
#[xdp(frags)]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the entry macro hands the context over"
)]
pub fn switch(ctx: XdpContext) -> u32 {
    let Some(addresses) = addresses(&ctx) else {
        return xdp_action::XDP_DROP;
    };
    // SAFETY: the bounds were checked; alignment 1.
    let [a, b, c, d, e, f, ..] = unsafe { addresses.read() };
    let Some(port) = PORTS.get_ptr([a, b, c, d, e, f]) else {
        return xdp_action::XDP_PASS;
    };
    // SAFETY: a valid, aligned map value, which nobody writes any longer; the helper only notes the interface.
    unsafe { bpf_redirect(*port, 0) as u32 }
}

/// The floor of `dsr-l2`: writes the Ethernet addresses and transmits.
#[xdp(frags)]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the entry macro hands the context over"
)]
pub fn floor_rewrite(ctx: XdpContext) -> u32 {
    let Some(addresses) = addresses(&ctx) else {
        return xdp_action::XDP_DROP;
    };
    // SAFETY: the bounds were checked; alignment 1.
    unsafe { addresses.write([2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]) };
    xdp_action::XDP_TX
}

/// The Ethernet addresses of a frame.
#[inline(always)]
fn addresses(ctx: &XdpContext) -> Option<*mut [u8; 12]> {
    let start = ctx.data();
    (start + 14 <= ctx.data_end()).then_some(start as *mut [u8; 12])
}

/// The floor of whatever looks at a packet before it transmits it: exchanges the Ethernet addresses, as the kernel's own
/// example of a program that transmits does (`swap_src_dst_mac` in samples/bpf/xdp2_kern.c, up to Linux 6.5).
#[xdp(frags)]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the entry macro hands the context over"
)]
pub fn floor_swap(ctx: XdpContext) -> u32 {
    let Some(addresses) = addresses(&ctx) else {
        return xdp_action::XDP_DROP;
    };
    // SAFETY: the bounds were checked; alignment 1.
    unsafe {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = addresses.read();
        addresses.write([g, h, i, j, k, l, a, b, c, d, e, f]);
    }
    xdp_action::XDP_TX
}

/// The floor of an outer IPv4 header: makes room for it and transmits.
#[xdp(frags)]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the entry macro hands the context over"
)]
pub fn floor_outer_v4(ctx: XdpContext) -> u32 {
    outer(&ctx, 20)
}

/// The floor of an outer IPv6 header.
#[xdp(frags)]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the entry macro hands the context over"
)]
pub fn floor_outer_v6(ctx: XdpContext) -> u32 {
    outer(&ctx, 40)
}

/// The floor of an outer IPv4 and UDP header.
#[xdp(frags)]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the entry macro hands the context over"
)]
pub fn floor_outer_udp(ctx: XdpContext) -> u32 {
    outer(&ctx, 28)
}

#[inline(always)]
fn outer(ctx: &XdpContext, len: i32) -> u32 {
    // SAFETY: a valid context; no pointer into the packet is held.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -len) } == 0 {
        xdp_action::XDP_TX
    } else {
        xdp_action::XDP_DROP
    }
}

/// The VLAN that [`vlan_access`] is a port of.
#[unsafe(no_mangle)]
static ACCESS_VLAN: Global<u16> = Global::new(0);

/// Frames of that VLAN that came.
#[btf_map]
static ACCESSED: PerCpuArray<u64, 1> = PerCpuArray::new();

/// What a switch does on a port of one VLAN, for kernels without VLAN devices: its frames lose their tag and go on, those of
/// other VLANs end; so does not what has no tag, for neighbours are looked for without.
#[classifier]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the entry macro hands the context over"
)]
pub fn vlan_access(ctx: TcContext) -> i32 {
    let frame = ctx.skb.skb;
    // SAFETY: a valid context, whose fields are aligned words.
    let (tagged, tag) = unsafe { ((*frame).vlan_present, (*frame).vlan_tci) };
    if tagged == 0 {
        return TC_ACT_OK;
    }
    // SAFETY: a valid context.
    if tag & 0xfff != u32::from(ACCESS_VLAN.load()) || unsafe { bpf_skb_vlan_pop(frame) } != 0 {
        return TC_ACT_SHOT;
    }
    if let Some(counter) = ACCESSED.get_ptr_mut(0) {
        // SAFETY: a per-CPU value; nothing else runs on this CPU meanwhile.
        unsafe { *counter += 1 };
    }
    TC_ACT_OK
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
