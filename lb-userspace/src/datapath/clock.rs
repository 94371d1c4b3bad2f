//! The clock of the data plane: `CLOCK_MONOTONIC` in nanoseconds, which the program reads too.

use nix::time::{ClockId, clock_gettime};

/// Gives back the time. Where a decision depends on it the caller hands one in.
pub type Clock<'a> = &'a dyn Fn() -> u64;

/// Nanoseconds since the machine started, without the time it was suspended.
///
/// # Panics
/// Never on Linux, which has had this clock since 2.6.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("the kernel has a monotonic clock");
    time.tv_sec().cast_unsigned() * 1_000_000_000 + time.tv_nsec().cast_unsigned()
}
