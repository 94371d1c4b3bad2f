//! The load balancer's XDP program: from a packet to a backend.
//!
//! [`fast`] takes the packets that most are, [`rest`] all others: it goes the packet's way through the modules, one
//! concern each. Both end in a [`Reason`](lb_common::reason::Reason), which is also the index of its counter and fixes
//! the XDP action.
//!
//! No function here is `#[cold]`: it would go into a section of its own (`.text.unlikely`), where the loader mistakes it
//! for another. `core::hint::cold_path` says the same without.
//!
//! Compiled for the host (for lints and tests of its modules) this is an empty program.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// For the one instruction that the language has no word for.
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![cfg_attr(
    not(target_arch = "bpf"),
    allow(dead_code, reason = "the entry exists for the BPF target only")
)]

mod announce;
mod atomic;
mod bounds;
mod cache;
mod client;
mod clock;
mod constants;
mod fast;
mod flow;
mod forward;
mod fragment;
mod full;
mod guard;
mod hint;
mod icmp;
mod link;
mod nat;
mod packet;
mod quic;
mod reset;
mod rest;
mod schedule;
mod seen;
mod service;
mod stats;
mod suspect;
mod toobig;
mod vlan;
mod word;

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::programs::XdpContext;
use lb_common::reason::{Reason, Verdict};

// Ready-made headers are put together in registers, where the order of bytes shows.
#[cfg(all(target_arch = "bpf", not(target_endian = "little")))]
compile_error!("the program is built for bpfel only");

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod entry {
    use aya_ebpf::macros::xdp;
    use aya_ebpf::programs::XdpContext;

    /// Inlined: the chains of calls behind it are as long as the kernel allows.
    #[xdp(frags)]
    #[inline(always)]
    pub fn lb(ctx: XdpContext) -> u32 {
        super::stats::explain_anew();
        let reason = match super::fast::steer(&ctx) {
            Some(reason) => super::nat::plain(reason),
            None => match super::rest::rest(ctx.ctx) {
                action if super::nat::is_left_over(action) => super::nat::left_over(action),
                action => return action,
            },
        };
        super::nat::hand_over(&ctx, reason);
        super::end(&ctx, reason)
    }

    /// What `lb` hands packets over to, see [`super::nat`]. Inlined into what the macro makes around it: another frame is
    /// 32 bytes of stack that the oldest kernels do not have.
    #[xdp(frags)]
    #[inline(always)]
    pub fn nat(ctx: XdpContext) -> u32 {
        let reason = super::nat::handle(&ctx);
        super::end(&ctx, reason)
    }

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }

    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}

/// Counts the packet; gives back its XDP action.
#[inline(always)]
fn end(ctx: &XdpContext, reason: Reason) -> u32 {
    stats::count(ctx, reason);
    match reason.verdict() {
        Verdict::Tx => xdp_action::XDP_TX,
        Verdict::Redirect => xdp_action::XDP_REDIRECT,
        Verdict::Pass => xdp_action::XDP_PASS,
        Verdict::Drop => xdp_action::XDP_DROP,
    }
}
