//! What `simulate --repeat` measures with: restores the packet that the program under test rewrote and
//! tail-calls it again, so that no rewritten packet is ever fed back. Beside it the floor: a program that
//! does nothing.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(
    not(target_arch = "bpf"),
    allow(dead_code, reason = "the entry exists for the BPF target only")
)]

use aya_ebpf::Global;
use aya_ebpf::bindings::xdp_action;
use aya_ebpf::btf_maps::ProgramArray;
use aya_ebpf::helpers::bpf_xdp_adjust_head;
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;

/// Length of the frame as it was.
#[unsafe(no_mangle)]
static FRAME_LEN: Global<u16> = Global::new(60);

/// The Ethernet header as it was, in two words of seven bytes each, in memory order. All that forwarding
/// changes in the frame itself is this header; what it puts before the frame is cut off by the length.
#[unsafe(no_mangle)]
static ETHERNET_LOW: Global<u64> = Global::new(0);
#[unsafe(no_mangle)]
static ETHERNET_HIGH: Global<u64> = Global::new(0);

/// Slot 0: the program under test.
#[btf_map]
static UNDER_TEST: ProgramArray<1> = ProgramArray::new();

#[xdp]
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
    let frame = start as *mut [u8; 7];
    let ([l0, l1, l2, l3, l4, l5, l6, _], [h0, h1, h2, h3, h4, h5, h6, _]) = (
        ETHERNET_LOW.load().to_ne_bytes(),
        ETHERNET_HIGH.load().to_ne_bytes(),
    );
    // SAFETY: the bounds of 14 bytes were checked above; alignment 1.
    unsafe {
        frame.write([l0, l1, l2, l3, l4, l5, l6]);
        frame.add(1).write([h0, h1, h2, h3, h4, h5, h6]);
    }
    // SAFETY: a valid context of the same program type.
    unsafe { UNDER_TEST.tail_call(&ctx, 0) };
    xdp_action::XDP_ABORTED
}

/// The floor of a measurement.
#[xdp]
pub fn floor(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
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
