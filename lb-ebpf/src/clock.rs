//! The time that entries, windows and allowances are kept by.

use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_ns};
use aya_ebpf::macros::btf_map;

/// `CLOCK_MONOTONIC` in nanoseconds.
#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_ns() }
}

/// The number of the kernel's tick: never 0.
#[inline(always)]
pub fn tick() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_jiffies64() }
}

/// What a CPU last read from the clock, and at which tick of the kernel.
#[repr(C)]
struct Reading {
    tick: u64,
    ns: u64,
}

#[btf_map]
static CLOCK: PerCpuArray<Reading, 1> = PerCpuArray::new();

/// Like [`now_ns`], but late by up to a tick of the kernel, 1 to 10 ms: for what is kept for seconds and is not compared
/// with the time of a change. The kernel's tick is one load from memory, its clock several times the cost of a look-up.
#[inline(always)]
pub fn coarse_ns() -> u64 {
    let Some(reading) = CLOCK.get_ptr_mut(0) else {
        return now_ns();
    };
    let tick = tick();
    // SAFETY: a valid, aligned per-CPU value; nothing else runs on this CPU meanwhile.
    unsafe {
        if (*reading).tick != tick {
            core::hint::cold_path();
            (*reading).ns = now_ns();
            (*reading).tick = tick;
        }
        (*reading).ns
    }
}
