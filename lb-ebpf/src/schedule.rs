//! From a flow's hash to the backend that owns its slot.

use aya_ebpf::btf_maps::{Array, ArrayOfMaps};
use aya_ebpf::macros::btf_map;
use lb_common::hash;
use lb_common::layout::{MAX_SLABS, MMAPABLE, SLAB_SLOTS, Slot, TableWord};

/// Lookup tables, side by side in slabs of one fixed size: look-ups in inner arrays of one size are inlined
/// by the kernel.
#[btf_map]
static SLABS: ArrayOfMaps<
    Array<Slot, { SLAB_SLOTS as usize }, { MMAPABLE as usize }>,
    { MAX_SLABS as usize },
> = ArrayOfMaps::new();

/// The backend of a flow; `None` where nobody owns the slot.
#[inline(always)]
pub fn backend(table: TableWord, hash: u32) -> Option<u32> {
    let index = table.offset() + hash::slot(hash, table.size());
    let slot = SLABS.get_value(table.slab(), &index)?;
    // SAFETY: a valid, aligned map value; volatile because the agent stores to it while we read.
    let slot = unsafe { core::ptr::read_volatile(slot) };
    let backend = slot.current();
    (backend != 0).then_some(backend)
}
