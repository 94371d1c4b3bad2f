//! The one place where packet memory is turned into pointers, for all programs.

use aya_ebpf::helpers::bpf_xdp_get_buff_len;
use aya_ebpf::programs::XdpContext;

/// A pointer to a `T` in the packet, `offset` bytes from its start, if the packet reaches that far. `T` has
/// alignment 1 or 2: frames start at even addresses, and so do all headers in them. The pointer is void once
/// the head of the packet is moved.
#[inline(always)]
pub fn at<T>(ctx: &XdpContext, offset: usize) -> Option<*mut T> {
    const { assert!(align_of::<T>() <= 2) };
    let start = ctx.data();
    if start + offset + size_of::<T>() > ctx.data_end() {
        return None;
    }
    let pointer = (start + offset) as *mut T;
    // SAFETY: frames start at even addresses (the driver's headroom and NET_IP_ALIGN see to it), and all
    // headers have even lengths. Without this word LLVM reads every field byte by byte.
    unsafe { core::hint::assert_unchecked(pointer.addr().is_multiple_of(2)) };
    Some(pointer)
}

/// Like [`at`], but the bounds are read from the context anew, so that the compiler concludes nothing from earlier
/// comparisons: what it can conclude about offsets that vary the verifier cannot. For the rare paths.
#[inline(always)]
pub fn at_anew<T>(ctx: &XdpContext, offset: usize) -> Option<*mut T> {
    const { assert!(align_of::<T>() <= 2) };
    // SAFETY: a valid context, whose fields are aligned words.
    let (start, end) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*ctx.ctx).data) as usize,
            core::ptr::read_volatile(&raw const (*ctx.ctx).data_end) as usize,
        )
    };
    if start + offset + size_of::<T>() > end {
        return None;
    }
    let pointer = (start + offset) as *mut T;
    // SAFETY: as in `at`.
    unsafe { core::hint::assert_unchecked(pointer.addr().is_multiple_of(2)) };
    Some(pointer)
}

/// The largest offset that [`bounded`] leaves as it is.
pub const MAX_OFFSET: u32 = 0x7FFF;

/// An offset that was compared with [`MAX_OFFSET`], with the bound in the value itself. The verifier takes an offset that
/// comes out of memory only with a bound, and before Linux 6.8 does not see that it was compared where the compiler had
/// one copy of it compared and adds another one, read from the stack anew, to the pointer.
#[inline(always)]
pub fn bounded(offset: u32) -> usize {
    #[cfg(target_arch = "bpf")]
    {
        let mut value = u64::from(offset);
        // SAFETY: it computes.
        unsafe {
            core::arch::asm!(
                "{0} &= {1}",
                inout(reg) value,
                const MAX_OFFSET,
                options(pure, nomem, nostack)
            );
        };
        value as usize
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        (offset & MAX_OFFSET) as usize
    }
}

/// Length of the frame in bytes, of its first buffer where it has several: as far as [`at`] reaches.
#[inline(always)]
pub fn linear_len(ctx: &XdpContext) -> u32 {
    let (start, end) = (ctx.data(), ctx.data_end());
    // Said as an instruction, because the verifier takes the difference of two pointers but no arithmetic of 32 bits
    // with either, which is what the compiler would make of it.
    #[cfg(target_arch = "bpf")]
    let len = {
        let mut len = end;
        // SAFETY: it computes.
        unsafe {
            core::arch::asm!("{0} -= {1}", inout(reg) len, in(reg) start, options(pure, nomem, nostack))
        };
        len
    };
    #[cfg(not(target_arch = "bpf"))]
    let len = end - start;
    u32::from(len as u16)
}

/// Length of the frame in bytes, with all its buffers. For programs that take several (`xdp.frags`, Linux 5.18): older
/// kernels do not have the helper, and must find its call removed.
#[inline(always)]
pub fn whole_len(ctx: &XdpContext) -> u32 {
    // SAFETY: a valid context.
    unsafe { bpf_xdp_get_buff_len(ctx.ctx) as u32 }
}
