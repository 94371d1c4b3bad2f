//! From the backend to the packet on its way: one file a forward mode.

pub mod gue;
pub mod ipip;
pub mod l2;

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::btf_maps::{Array, DevMapHash};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;
use lb_common::layout::{Backend, MAX_INTERFACES, MMAPABLE, OUTER_LEN, kind};
use lb_common::reason::Reason;
use lb_common::rule::Standing;

use crate::constants::{FRAGMENT_BY, GUE, RESETS, SPREAD, VLANS};
use crate::packet::{self, Flow, Ip};
use crate::{reset, stats, toobig, vlan};

/// Backends by their index; 0 is nobody.
#[btf_map]
static BACKENDS: Array<Backend, 4096, { MMAPABLE as usize }> = Array::new();

/// Interfaces to send by, keyed by their index.
#[btf_map]
static EGRESS: DevMapHash<{ MAX_INTERFACES as usize }> = DevMapHash::new();

/// Rewrites the packet for the backend and sends it. `hash` is that of the flow.
#[inline(always)]
pub fn forward(ctx: &XdpContext, ip: &Ip, flow: &Flow, hash: u32, index: u32) -> Result<Reason, Reason> {
    let backend = backend(index).ok_or(Reason::NoBackend)?;
    if RESETS.load() != 0
        && matches!(Standing::from_bits(backend.standing), Standing::Resets)
        && flow.is_tcp_segment()
    {
        return reset::answer(ctx, ip, flow);
    }
    let mut bytes = u64::from(packet::frame_len(ctx));
    let is_v4 = ip.is_v4();
    let spreads = SPREAD.load() != 0;
    let (rewritten, added) = match backend.kind {
        kind::L2 => (l2::rewrite(ctx, ip.length, backend), 0),
        kind::IPV4 => (
            ipip::encapsulate_v4(ctx, ip.length, hash, backend, spreads),
            ipip::IPV4_LEN,
        ),
        kind::IPV6 => (
            ipip::encapsulate_v6(ctx, is_v4, ip.length, hash, backend, spreads),
            OUTER_LEN,
        ),
        kind::GUE_V4 if GUE.load() != 0 => (
            gue::encapsulate_v4(ctx, ip.length, hash, backend, spreads),
            gue::OVERHEAD_V4,
        ),
        kind::GUE_V6 if GUE.load() != 0 => (
            gue::encapsulate_v6(ctx, is_v4, ip.length, hash, backend, spreads),
            gue::OVERHEAD_V6,
        ),
        _ => return Err(Reason::NoNextHop),
    };
    match rewritten {
        Ok(()) => {}
        Err(Reason::TooBig) => {
            if FRAGMENT_BY.load() != 0 && is_v4 && toobig::is_for_the_kernel(ctx) {
                return Err(Reason::LeftToFragment);
            }
            return Err(toobig::answer(ctx, ip, u32::from(backend.mtu) - added as u32));
        }
        Err(reason) => return Err(reason),
    }
    if VLANS.load() != 0 {
        bytes += vlan::taken_len();
        vlan::put_for(ctx, index)?;
    }
    Ok(away(ctx, backend, index, bytes, flow.opens))
}

/// The record of a backend.
#[inline(always)]
pub fn backend(index: u32) -> Option<&'static Backend> {
    BACKENDS.get(index)
}

/// Sends a packet that is rewritten and counts it. `bytes` is the length of its frame as it came in.
#[inline(always)]
pub fn away(ctx: &XdpContext, backend: &Backend, index: u32, bytes: u64, opens: u32) -> Reason {
    if backend.ifindex as usize == ctx.ingress_ifindex() {
        stats::forwarded(index, bytes, opens, false);
        return Reason::Transmitted;
    }
    match EGRESS.redirect(backend.ifindex, u64::from(xdp_action::XDP_DROP)) {
        Ok(_) => {
            stats::forwarded(index, bytes, opens, true);
            Reason::Redirected
        }
        Err(_) => Reason::CannotSend,
    }
}

/// Sends the frame by an interface; whether that is another one than it came in by.
#[inline(always)]
pub fn leave(ctx: &XdpContext, ifindex: u32) -> Result<bool, Reason> {
    if ifindex as usize == ctx.ingress_ifindex() {
        return Ok(false);
    }
    match EGRESS.redirect(ifindex, u64::from(xdp_action::XDP_DROP)) {
        Ok(_) => Ok(true),
        Err(_) => Err(Reason::CannotSend),
    }
}

/// A word of a backend's record, by one load: records are replaced word by word while packets read them. In the place
/// where it is asked for: read ahead by the compiler, they would be more than there are registers.
#[inline(always)]
fn record<const NUMBER: usize>(backend: &Backend) -> u64 {
    const { assert!(NUMBER < Backend::WORDS) };
    // SAFETY: within the record, which is aligned for words of 64 bits and has no padding.
    unsafe { core::ptr::read_volatile(core::ptr::from_ref(backend).cast::<u64>().add(NUMBER)) }
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
    Standing::from_bits(standing_bits(index))
}

/// Whether a backend takes new flows.
#[inline(always)]
pub fn takes_new(index: u32) -> bool {
    standing_bits(index) == Standing::Serves.bits()
}

#[inline(always)]
fn standing_bits(index: u32) -> u8 {
    let Some(backend) = BACKENDS.get_ptr(index) else {
        return Standing::Gone.bits();
    };
    // SAFETY: a valid map value; volatile because the agent stores to it while we read.
    unsafe { core::ptr::read_volatile(&raw const (*backend).standing) }
}
