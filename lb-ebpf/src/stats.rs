//! Counters, the record of decisions for `simulate`, and the log of dropped packets.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::btf_maps::{Array, PerCpuArray};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;
use aya_log_ebpf::info;
use lb_common::layout::{Counters, Decision, MMAPABLE, REASON_SLOTS};
use lb_common::reason::{Reason, Verdict};

use crate::constants::{EXPLAIN, TRACE_DROPS};
use crate::packet::{self, Network};

/// Packets by reason; [`Reason::Transmitted`] and [`Reason::Redirected`] are counted by backend.
#[btf_map]
static REASONS: PerCpuArray<u64, { REASON_SLOTS as usize }> = PerCpuArray::new();

/// What was sent to each backend, by its index.
#[btf_map]
static COUNTERS: PerCpuArray<Counters, 4096> = PerCpuArray::new();

/// The decision about the last packet. One for all CPUs: only a program that is attached to nothing writes it.
#[btf_map]
static DECISION: Array<Decision, 1, { MMAPABLE as usize }> = Array::new();

/// How many more dropped packets are to be logged.
#[btf_map]
static TRACE_LEFT: Array<u64, 1> = Array::new();

/// Forgets the decision about the packet before.
#[inline(always)]
pub fn explain_anew() {
    explain(|decision| *decision = Decision::default());
}

/// Changes the decision that is written down, where one is.
#[inline(always)]
fn explain(change: impl FnOnce(&mut Decision)) {
    if EXPLAIN.load() != 0
        && let Some(decision) = DECISION.get_ptr_mut(0)
    {
        // SAFETY: a valid, aligned map value; user space reads it when the program has ended.
        change(unsafe { &mut *decision });
    }
}

/// Counts a packet by its reason.
#[inline(always)]
pub fn count(ctx: &XdpContext, reason: Reason) {
    explain(|decision| decision.reason = reason as u32);
    if matches!(reason, Reason::Transmitted | Reason::Redirected) {
        return;
    }
    if let Some(counter) = REASONS.get_ptr_mut(reason as u32) {
        // SAFETY: as above.
        unsafe { *counter += 1 };
    }
    if TRACE_DROPS.load() != 0 && matches!(reason.verdict(), Verdict::Drop) {
        trace(ctx, reason as u32);
    }
}

/// Counts a packet sent to a backend. `bytes` is the length of its frame as it came in.
#[inline(always)]
pub fn forwarded(backend: u32, bytes: u64, opens: u32, redirected: bool) {
    let Some(counters) = COUNTERS.get_ptr_mut(backend) else {
        return;
    };
    // SAFETY: a per-CPU value; nothing else runs on this CPU meanwhile.
    let counters = unsafe { &mut *counters };
    counters.packets += 1;
    counters.bytes += bytes;
    counters.new_flows += u64::from(opens);
    if redirected {
        counters.redirected += 1;
    }
}

/// Packets other than SYNs that this CPU sent to a backend.
#[inline(always)]
pub fn others(backend: u32) -> u64 {
    let Some(counters) = COUNTERS.get_ptr(backend) else {
        return 0;
    };
    // SAFETY: as in `forwarded`.
    let counters = unsafe { &*counters };
    counters.packets - counters.new_flows
}

#[inline(always)]
pub fn explain_service(service: u32) {
    explain(|decision| decision.service = service + 1);
}

#[inline(always)]
pub fn explain_backend(backend: u32) {
    explain(|decision| decision.backend = backend);
}

/// Logs a dropped packet. Two CPUs may both see the last one left: the reader counts too.
#[inline(always)]
fn trace(ctx: &XdpContext, reason: u32) {
    let Some(left) = TRACE_LEFT.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: a valid, aligned map value; volatile because other CPUs write it too.
    unsafe {
        let value = core::ptr::read_volatile(left);
        if value == 0 {
            return;
        }
        core::ptr::write_volatile(left, value - 1);
    }
    match packet::network(ctx) {
        Ok(Network::Ipv4) => trace_v4(ctx.ctx, reason),
        Ok(Network::Ipv6) => trace_v6(ctx.ctx, reason),
        _ => {}
    }
}

/// Not inlined, like its sister, or their messages would take more of the stack together.
#[inline(never)]
fn trace_v4(ctx: *mut xdp_md, reason: u32) {
    let ctx = &XdpContext::new(ctx);
    let start = packet::ETHERNET_LEN + 12;
    let Some([source, destination]) = packet::read_anew::<[[u8; 4]; 2]>(ctx, start) else {
        return;
    };
    info!(
        ctx,
        "dropped reason {} from {:i} to {:i} bytes {}",
        reason,
        u32::from_be_bytes(source),
        u32::from_be_bytes(destination),
        packet::frame_len(ctx)
    );
}

#[inline(never)]
fn trace_v6(ctx: *mut xdp_md, reason: u32) {
    let ctx = &XdpContext::new(ctx);
    let start = packet::ETHERNET_LEN + 8;
    let Some([source, destination]) = packet::read_anew::<[[u8; 16]; 2]>(ctx, start) else {
        return;
    };
    info!(
        ctx,
        "dropped reason {} from {:i} to {:i} bytes {}",
        reason,
        source,
        destination,
        packet::frame_len(ctx)
    );
}
