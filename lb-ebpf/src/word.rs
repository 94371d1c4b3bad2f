//! Words of the packet at even addresses, each read and written by one instruction.

/// An integer of the packet, as it stands in memory.
pub trait Word: Copy {
    /// # Safety
    /// As for [`word`].
    unsafe fn load<const OFFSET: usize>(start: *const u8) -> Self;
    /// # Safety
    /// As for [`set_word`].
    unsafe fn store<const OFFSET: usize>(self, start: *mut u8);
}

/// The word `OFFSET` bytes behind `start`. It may lie at any even address: where the kernel takes such accesses to
/// packets (`CONFIG_HAVE_EFFICIENT_UNALIGNED_ACCESS`) this is one instruction, which the language cannot say, and the
/// compiler for BPF would put it together from bytes.
///
/// # Safety
/// The bounds were checked.
#[inline(always)]
pub unsafe fn word<T: Word, const OFFSET: usize>(start: *const u8) -> T {
    // SAFETY: the caller's promise.
    unsafe { T::load::<OFFSET>(start) }
}

/// Writes a word `OFFSET` bytes behind `start`, as [`word`] reads it.
///
/// # Safety
/// The bounds were checked.
#[inline(always)]
pub unsafe fn set_word<T: Word, const OFFSET: usize>(start: *mut u8, value: T) {
    // SAFETY: the caller's promise.
    unsafe { value.store::<OFFSET>(start) }
}

macro_rules! words {
    ($($type:ty, $class:ident, $size:literal;)+) => {
        $(impl Word for $type {
            #[inline(always)]
            unsafe fn load<const OFFSET: usize>(start: *const u8) -> Self {
                #[cfg(all(target_arch = "bpf", any(bpf_target_arch = "x86_64", bpf_target_arch = "aarch64")))]
                // SAFETY: the caller's promise. Nothing is written, and what is read depends on memory alone.
                unsafe {
                    let value: Self;
                    core::arch::asm!(
                        concat!("{value} = *(", $size, " *)({start} + {offset})"),
                        value = lateout($class) value,
                        start = in(reg) start,
                        offset = const OFFSET,
                        options(pure, readonly, nostack, preserves_flags),
                    );
                    value
                }
                #[cfg(not(all(target_arch = "bpf", any(bpf_target_arch = "x86_64", bpf_target_arch = "aarch64"))))]
                // SAFETY: the caller's promise.
                unsafe {
                    start.add(OFFSET).cast::<Self>().read_unaligned()
                }
            }

            #[inline(always)]
            unsafe fn store<const OFFSET: usize>(self, start: *mut u8) {
                #[cfg(all(target_arch = "bpf", any(bpf_target_arch = "x86_64", bpf_target_arch = "aarch64")))]
                // SAFETY: the caller's promise.
                unsafe {
                    core::arch::asm!(
                        concat!("*(", $size, " *)({start} + {offset}) = {value}"),
                        value = in($class) self,
                        start = in(reg) start,
                        offset = const OFFSET,
                        options(nostack, preserves_flags),
                    );
                }
                #[cfg(not(all(target_arch = "bpf", any(bpf_target_arch = "x86_64", bpf_target_arch = "aarch64"))))]
                // SAFETY: the caller's promise.
                unsafe {
                    start.add(OFFSET).cast::<Self>().write_unaligned(self);
                }
            }
        })+
    };
}

words! {
    u16, wreg, "u16";
    u32, wreg, "u32";
    u64, reg, "u64";
}
