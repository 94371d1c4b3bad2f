//! The time that entries, windows and allowances are kept by.

use aya_ebpf::helpers::bpf_ktime_get_ns;

/// `CLOCK_MONOTONIC` in nanoseconds.
#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_ns() }
}
