//! The one atomic instruction that every kernel has.

/// Adds to a word that other CPUs add to at the same time. The instruction is as old as BPF; what came with Linux 5.12
/// are those that also give the old value back, which is all that the language has.
///
/// # Safety
/// `place` is a valid, aligned word of a map value.
#[inline(always)]
pub unsafe fn add(place: *mut u64, change: i64) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: the caller gives a valid, aligned word.
    unsafe {
        core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) place, in(reg) change);
    }
    #[cfg(not(target_arch = "bpf"))]
    let _ = (place, change);
}
