//! From the backend to the packet on its way: one file a forward mode.

mod gue;
mod ipip;
mod l2;

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::btf_maps::{Array, DevMapHash};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;
use lb_common::layout::{Backend, MAX_INTERFACES, kind};
use lb_common::reason::Reason;
use lb_common::rule::Standing;

use crate::constants::{GUE, RESETS, VLANS};
use crate::packet::{self, Flow, Ip};
use crate::{reset, stats, vlan};

/// Backends by their index; 0 is nobody.
#[btf_map]
static BACKENDS: Array<Backend, 4096> = Array::new();

/// Interfaces to send by, keyed by their index.
#[btf_map]
static EGRESS: DevMapHash<{ MAX_INTERFACES as usize }> = DevMapHash::new();

/// Rewrites the packet for the backend and sends it. `hash` is that of the flow.
#[inline(always)]
pub fn forward(ctx: &XdpContext, ip: &Ip, flow: &Flow, hash: u32, index: u32) -> Result<Reason, Reason> {
    let backend = BACKENDS.get(index).ok_or(Reason::NoBackend)?;
    if RESETS.load() != 0
        && matches!(Standing::from_bits(backend.standing), Standing::Resets)
        && flow.is_tcp_segment()
    {
        return reset::answer(ctx, ip, flow);
    }
    let mut bytes = u64::from(packet::frame_len(ctx));
    match backend.kind {
        kind::L2 => l2::rewrite(ctx, ip, backend)?,
        kind::IPV4 => ipip::encapsulate_v4(ctx, ip, backend)?,
        kind::IPV6 => ipip::encapsulate_v6(ctx, ip, hash, backend)?,
        kind::GUE_V4 if GUE.load() != 0 => gue::encapsulate_v4(ctx, ip, hash, backend)?,
        kind::GUE_V6 if GUE.load() != 0 => gue::encapsulate_v6(ctx, ip, hash, backend)?,
        _ => return Err(Reason::NoNextHop),
    }
    if VLANS.load() != 0 {
        bytes += vlan::taken_len();
        vlan::put_for(ctx, index)?;
    }
    if backend.ifindex as usize == ctx.ingress_ifindex() {
        stats::forwarded(index, bytes, flow.opens, false);
        return Ok(Reason::Transmitted);
    }
    match EGRESS.redirect(backend.ifindex, u64::from(xdp_action::XDP_DROP)) {
        Ok(_) => {
            stats::forwarded(index, bytes, flow.opens, true);
            Ok(Reason::Redirected)
        }
        Err(_) => Err(Reason::CannotSend),
    }
}

/// A number that differs where packets for this index would go another way.
#[inline(always)]
pub fn fingerprint(index: u32) -> u64 {
    let Some(backend) = BACKENDS.get(index) else {
        return 0;
    };
    let [a, b, c, ..] = backend.ethernet;
    let mut print = u64::from(a) | u64::from(b) << 16 | u64::from(c) << 32 | u64::from(backend.kind) << 48;
    for word in backend.outer {
        // The multiplier of Knuth's hash: any odd number that spreads bits will do.
        print = (print.rotate_left(17) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
    print
}

/// What a backend still takes.
#[inline(always)]
pub fn standing(index: u32) -> Standing {
    let Some(backend) = BACKENDS.get_ptr(index) else {
        return Standing::Gone;
    };
    // SAFETY: a valid map value; volatile because the agent stores to it while we read.
    Standing::from_bits(unsafe { core::ptr::read_volatile(&raw const (*backend).standing) })
}
