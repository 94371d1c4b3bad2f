//! Hints of where flows with an entry go. See [`lb_common::hint`].

use aya_ebpf::btf_maps::Array;
use aya_ebpf::helpers::bpf_get_prandom_u32;
use aya_ebpf::macros::btf_map;
use lb_common::cache;
use lb_common::hint::{self, LINES, Line, WAYS};
use lb_common::layout::MMAPABLE;

use crate::atomic;
use crate::cache::ones_if_zero;

/// The line behind the last one holds the era.
#[btf_map]
static HINTS: Array<Line, { LINES as usize + 1 }, { MMAPABLE as usize }> = Array::new();

/// The line of a flow, as it was before its entry was looked up.
pub struct Place {
    line: *mut Line,
    to_nobody: u64,
}

/// Reads what a hint of the flow is made of now.
#[inline(always)]
pub fn place(identity: u64, now_ns: u64) -> Option<Place> {
    let all = HINTS.get_ptr(LINES)?;
    let line = HINTS.get_ptr_mut(cache::index(identity, LINES))?;
    // SAFETY: valid, aligned map values; volatile because others count in them meanwhile.
    let (era, sequence) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*all).sequence),
            core::ptr::read_volatile(&raw const (*line).sequence),
        )
    };
    Some(Place {
        line,
        to_nobody: hint::to_nobody(identity, era, sequence, hint::epoch(now_ns)),
    })
}

impl Place {
    /// Where the flow goes; 0: not known. Without a jump that depends on where in its line the flow is.
    #[inline(always)]
    pub fn backend(&self) -> u32 {
        let mut backend = 0;
        for index in 0..WAYS {
            // SAFETY: a valid, aligned map value; volatile because other CPUs store to it while we read.
            let way = unsafe { core::ptr::read_volatile(&raw const (*self.line).ways[index]) };
            let to = hint::backend(way, self.to_nobody);
            backend |= to & ones_if_zero(to >> 16);
        }
        backend as u32 & 0xffff
    }

    /// Notes where the entry led that was looked up since. It takes the place of any other hint: of those that are out of
    /// date nothing tells.
    #[inline(always)]
    pub fn put(&self, backend: u32) {
        // SAFETY: a helper without arguments.
        let any = unsafe { bpf_get_prandom_u32() } as usize & 0xffff;
        // A product: of a jump, verifiers before Linux 6.8 do not see that it excludes the last of eight.
        let index = (any * WAYS) >> 16;
        // SAFETY: a valid, aligned map value, which others read whole.
        unsafe {
            let way = (&raw mut (*self.line).ways).cast::<u64>().add(index);
            core::ptr::write_volatile(way, self.to_nobody | u64::from(backend & 0xffff));
        }
    }
}

/// An entry of the flow was written, or taken out.
#[inline(always)]
pub fn renew(identity: u64) {
    if let Some(line) = HINTS.get_ptr_mut(cache::index(identity, LINES)) {
        // SAFETY: a valid, aligned word of a map value.
        unsafe { atomic::add(&raw mut (*line).sequence, 1) };
    }
}
