//! From a flow's hash to the backend that owns its slot.

use aya_ebpf::btf_maps::{Array, ArrayOfMaps};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;
use lb_common::hash;
use lb_common::layout::{FlowKey, MAX_SLABS, MMAPABLE, SLAB_SLOTS, Slot, TableWord};

use crate::flow::{self, Asked};
use crate::packet::{Flow, Ip};

/// Lookup tables, side by side in slabs of one fixed size: look-ups in inner arrays of one size are inlined
/// by the kernel.
#[btf_map]
static SLABS: ArrayOfMaps<
    Array<Slot, { SLAB_SLOTS as usize }, { MMAPABLE as usize }>,
    { MAX_SLABS as usize },
> = ArrayOfMaps::new();

/// The backend of a packet of a flow; `None` where nobody takes it. A `flow` whose transport header lies at 0 is one
/// that an ICMP error quotes.
#[inline(always)]
pub fn backend(
    ctx: &XdpContext,
    ip: &Ip,
    flow: &Flow,
    service: u32,
    table: TableWord,
    hash: u32,
) -> Option<u32> {
    let slot = slot(table, hash)?;
    let backend = if table.is_resizing() | slot.consult() {
        let asked = Asked {
            key: FlowKey {
                source: ip.source,
                ports: flow.ports,
                service,
            },
            slot,
            table,
            hash,
            transport: flow.transport,
            protocol: flow.protocol,
        };
        flow::ask(ctx, asked)
    } else {
        slot.current()
    };
    (backend != 0).then_some(backend)
}

/// The slot of a hash, read once, so that one packet sees one generation of it.
#[inline(always)]
pub fn slot(table: TableWord, hash: u32) -> Option<Slot> {
    let index = table.offset() + hash::slot(hash, table.size());
    let slot = SLABS.get_value(table.slab(), &index)?;
    // SAFETY: a valid, aligned map value; volatile because the agent stores to it while we read.
    Some(unsafe { core::ptr::read_volatile(slot) })
}
