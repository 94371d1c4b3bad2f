//! From a flow's hash to the backend that owns its slot.

use aya_ebpf::btf_maps::{Array, ArrayOfMaps};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;
use lb_common::cache::Chooser;
use lb_common::hash;
use lb_common::layout::{FlowKey, MAX_SLABS, MMAPABLE, SLAB_SLOTS, Slot, TableWord};

use crate::constants::CHOOSERS;
use crate::flow::{self, Asked};
use crate::full::{self, Found, Tracked};
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
    let at = Place {
        service,
        table,
        hash,
        slot_hash: slot_hash(ip, table, hash),
    };
    if CHOOSERS.load() == 0 || !table.is_full() {
        return owner(ctx, ip, flow, &at);
    }
    let tracked = Tracked {
        identity: 0,
        table,
        source: ip.source,
        ports: flow.ports,
        hash,
        service,
        transport: flow.transport,
        protocol: flow.protocol,
        kind: 0,
        sequence: 0,
        reserved: 0,
        now_ns: 0,
    };
    let found = full::look(ctx, tracked);
    if let Found::Backend(backend) = found {
        return Some(backend);
    }
    let backend = owner(ctx, ip, flow, &at)?;
    if matches!(found, Found::Unremembered) {
        full::full_remember(backend);
    }
    Some(backend)
}

/// Where a flow stands.
struct Place {
    service: u32,
    table: TableWord,
    hash: u32,
    slot_hash: u32,
}

#[inline(always)]
fn slot_hash(ip: &Ip, table: TableWord, hash: u32) -> u32 {
    if CHOOSERS.load() != 0 && is_by_source(table) {
        ip.source_hash()
    } else {
        hash
    }
}

/// Whether a slot is found by the client's address alone.
#[inline(always)]
pub fn is_by_source(table: TableWord) -> bool {
    matches!(table.chooser(), Chooser::Source)
}

/// The owner of a flow by its slot.
#[inline(always)]
fn owner(ctx: &XdpContext, ip: &Ip, flow: &Flow, at: &Place) -> Option<u32> {
    let slot = slot(at.table, at.slot_hash)?;
    let backend = if at.table.is_resizing() | slot.consult() {
        let asked = Asked {
            key: FlowKey {
                source: ip.source,
                ports: flow.ports,
                service: at.service,
            },
            slot,
            table: at.table,
            hash: at.hash,
            slot_hash: at.slot_hash,
            transport: flow.transport,
            protocol: flow.protocol,
            packet: 0,
        };
        flow::ask(ctx, asked)
    } else {
        slot.current()
    };
    (backend != 0).then_some(backend)
}

/// The backend of a new flow of a service whose flows are all remembered elsewhere.
#[inline(always)]
pub fn fresh(ip: &Ip, table: TableWord, hash: u32) -> Option<u32> {
    let backend = slot(table, slot_hash(ip, table, hash))?.current();
    (backend != 0).then_some(backend)
}

/// The backend that takes new flows of a slot, by its number, which is below the size of the table; 0: nobody.
#[inline(always)]
pub fn current_at(table: TableWord, number: u32) -> u32 {
    let index = table.offset() + number;
    match SLABS.get_value(table.slab(), &index) {
        // SAFETY: as in `slot`.
        Some(slot) => unsafe { core::ptr::read_volatile(slot) }.current(),
        None => 0,
    }
}

/// The slot of a hash, read once, so that one packet sees one generation of it.
#[inline(always)]
pub fn slot(table: TableWord, hash: u32) -> Option<Slot> {
    let index = table.offset() + hash::slot(hash, table.size());
    let slot = SLABS.get_value(table.slab(), &index)?;
    // SAFETY: a valid, aligned map value; volatile because the agent stores to it while we read.
    Some(unsafe { core::ptr::read_volatile(slot) })
}
