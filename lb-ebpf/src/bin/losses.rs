//! Counts what the kernel and its drivers lose after an XDP program's verdict, from the tracepoints that say so. They are
//! the only sign of a redirect that the kernel refuses, and of drivers without statistics of their own.
//!
//! Raw tracepoints: they need no tracefs, and their links can be pinned from Linux 5.8 on. What they hand over are pointers
//! to structures of the kernel, whose layout user space reads from the kernel's own description of its types (BTF).

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(
    not(target_arch = "bpf"),
    allow(dead_code, reason = "the entries exist for the BPF target only")
)]
#![expect(
    clippy::needless_pass_by_value,
    reason = "the entry macro hands the context over"
)]

use aya_ebpf::Global;
use aya_ebpf::btf_maps::PerCpuHashMap;
use aya_ebpf::helpers::bpf_probe_read_kernel;
use aya_ebpf::macros::{btf_map, raw_tracepoint};
use aya_ebpf::programs::RawTracePointContext;
use lb_common::losses::{LossKey, MAX_LOSSES, Tracepoint};

/// Packets lost.
#[btf_map]
static LOSSES: PerCpuHashMap<LossKey, u64, { MAX_LOSSES as usize }> = PerCpuHashMap::new();

/// Where `struct net_device` has its `ifindex` and its `nd_net.net`, and `struct net` its `ns.inum`, in bytes.
#[unsafe(no_mangle)]
static IFINDEX_AT: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static NET_AT: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static INUM_AT: Global<u32> = Global::new(0);

/// `(dev, program, action)`: an action that the driver does not know, or one that failed: a packet each.
#[raw_tracepoint(tracepoint = "xdp_exception")]
pub fn xdp_exception(ctx: RawTracePointContext) {
    count(&ctx, 0, Tracepoint::Exception, 1);
}

/// `(dev, program, target, error, ...)`: a packet that the kernel does not redirect.
#[raw_tracepoint(tracepoint = "xdp_redirect_err")]
pub fn xdp_redirect_err(ctx: RawTracePointContext) {
    count(&ctx, 0, Tracepoint::RedirectError, 1);
}

/// `(dev, sent, drops, error)`: what a driver sent back, many packets at a time.
#[raw_tracepoint(tracepoint = "xdp_bulk_tx")]
pub fn xdp_bulk_tx(ctx: RawTracePointContext) {
    count(&ctx, 0, Tracepoint::BulkTx, ctx.arg(2));
}

/// `(from, to, sent, drops, error)`: what was redirected to a device, many packets at a time.
#[raw_tracepoint(tracepoint = "xdp_devmap_xmit")]
pub fn xdp_devmap_xmit(ctx: RawTracePointContext) {
    count(&ctx, 1, Tracepoint::DevmapXmit, ctx.arg(3));
}

/// Counts `drops` packets for the device that is the argument `device`. Mostly there are none.
#[inline(always)]
fn count(ctx: &RawTracePointContext, device: usize, tracepoint: Tracepoint, drops: i32) {
    if drops <= 0 {
        return;
    }
    let Some(key) = key(ctx.arg::<u64>(device), tracepoint) else {
        return;
    };
    let drops = u64::from(drops.unsigned_abs());
    match LOSSES.get_ptr_mut(key) {
        // SAFETY: a per-CPU value; only what interrupts this CPU in the middle could be lost.
        Some(counter) => unsafe { *counter += drops },
        // Where there is no room, it is for somebody with a thousand interfaces.
        None => _ = LOSSES.insert(key, drops, 0),
    }
}

#[inline(always)]
fn key(device: u64, tracepoint: Tracepoint) -> Option<LossKey> {
    let net: u64 = read(device + u64::from(NET_AT.load()))?;
    Some(LossKey {
        namespace: read(net + u64::from(INUM_AT.load()))?,
        ifindex: read(device + u64::from(IFINDEX_AT.load()))?,
        tracepoint: tracepoint as u32,
    })
}

#[inline(always)]
fn read<T>(address: u64) -> Option<T> {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(address as *const T) }.ok()
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
