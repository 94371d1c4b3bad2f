//! SYNs that a backend does not seem to answer: a reason for the agent to ask it now. See [`lb_common::suspect`].

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::btf_maps::{Array, PerCpuArray};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;
use lb_common::layout::MMAPABLE;
use lb_common::suspect::{self, Budget, SIGN_APART_NS, SYN_PLACES, Syns};

use crate::clock::{coarse_ns, now_ns, tick};
use crate::constants::SUSPECTS;
use crate::packet;
use crate::stats;

/// SYNs that were seen. A CPU that takes a place from another loses nothing but a sign.
#[btf_map]
static SYNS_SEEN: Array<u64, { SYN_PLACES as usize }> = Array::new();

/// What each CPU noted of the SYNs to each backend, by its index.
#[btf_map]
static SYNS: PerCpuArray<Syns, 4096> = PerCpuArray::new();

/// When the last sign came of each backend, by its index: monotonic, in nanoseconds.
#[btf_map]
static SIGNS: Array<u64, 4096, { MMAPABLE as usize }> = Array::new();

/// What each CPU may still look at.
#[btf_map]
static SYN_BUDGET: PerCpuArray<Budget, 1> = PerCpuArray::new();

/// Looks for signs where a SYN goes to a backend; before its packet is rewritten. `opens` and `transport` are those of
/// its [`crate::packet::Flow`].
#[inline(always)]
pub fn look(ctx: &XdpContext, opens: u32, transport: u32, hash: u32, backend: u32) {
    if opens != 0 && transport != 0 && SUSPECTS.load() != 0 && (suspect::is_sampled(hash) || !is_spent()) {
        core::hint::cold_path();
        suspect_syn(ctx.ctx, transport, hash, backend);
    }
}

/// Whether this CPU has looked at as many SYNs in this tick as it may.
#[inline(always)]
fn is_spent() -> bool {
    let Some(budget) = SYN_BUDGET.get_ptr(0) else {
        return true;
    };
    // SAFETY: a valid, aligned per-CPU value; nothing else runs on this CPU meanwhile.
    unsafe { (*budget).spent == tick() }
}

/// Not inlined and global: it runs for few packets, and would take registers and stack from the path of all others.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn suspect_syn(ctx: *mut xdp_md, transport: u32, hash: u32, backend: u32) -> u32 {
    let Some(segment) = packet::segment(&XdpContext::new(ctx), transport) else {
        return 0;
    };
    let (Some(seen), Some(syns), Some(budget)) = (
        SYNS_SEEN.get_ptr_mut(suspect::place(hash)),
        SYNS.get_ptr_mut(backend),
        SYN_BUDGET.get_ptr_mut(0),
    ) else {
        return 0;
    };
    // SAFETY: a valid, aligned per-CPU value; nothing else runs on this CPU meanwhile.
    unsafe { (*budget).spend(tick()) };
    let tag = suspect::tag(hash, backend, segment.sequence);
    // SAFETY: a valid, aligned word; volatile because other CPUs store to it.
    let again = unsafe { core::ptr::read_volatile(seen) } == tag;
    if !again {
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile(seen, tag) };
    }
    // SAFETY: a valid, aligned per-CPU value; nothing else runs on this CPU meanwhile.
    let syns = unsafe { &mut *syns };
    let about_ns = coarse_ns();
    if syns.note(stats::others(backend), again, about_ns) {
        sign(backend, about_ns);
    }
    0
}

/// Notes that a backend refused: something that only packets on their way back show.
#[inline(always)]
pub fn refused(backend: u32) {
    if SUSPECTS.load() != 0 {
        core::hint::cold_path();
        sign(backend, now_ns());
    }
}

#[inline(always)]
fn sign(backend: u32, about_ns: u64) {
    let Some(at_ns) = SIGNS.get_ptr_mut(backend) else {
        return;
    };
    // SAFETY: a valid, aligned word; volatile because other CPUs and the agent use it too.
    unsafe {
        if about_ns.saturating_sub(core::ptr::read_volatile(at_ns)) >= SIGN_APART_NS {
            // To the nanosecond: the agent compares it with the start of a probe.
            core::ptr::write_volatile(at_ns, now_ns());
        }
    }
}
