//! From address, port and protocol to the service and its lookup table.

use aya_ebpf::btf_maps::{Array, HashMap};
use aya_ebpf::macros::btf_map;
use lb_common::layout::{MMAPABLE, ServiceKey, ServiceRecord, TableWord};
use lb_common::reason::Reason;

use crate::constants::WILDCARD;
use crate::packet::{Fault, Flow, Ip};

/// The index of each service, and of each address that some service has (port and protocol 0; the index is
/// meaningless there).
#[btf_map]
static SERVICES: HashMap<ServiceKey, u32, 2048> = HashMap::new();

/// The record of each service, by its index.
#[btf_map]
static RECORDS: Array<ServiceRecord, 1024, { MMAPABLE as usize }> = Array::new();

/// The index of the service that the packet belongs to: the exact port first, then a service of all ports.
#[inline(always)]
pub fn find(ip: &Ip, flow: &Flow) -> Option<u32> {
    let exact = ServiceKey {
        port: flow.destination_port(),
        protocol: flow.protocol,
        ..ip.destination
    };
    if let Some(index) = lookup(&exact) {
        return Some(index);
    }
    if WILDCARD.load() == 0 {
        return None;
    }
    lookup(&ServiceKey {
        protocol: flow.protocol,
        ..ip.destination
    })
}

/// Whether some service has the packet's destination address.
#[inline(always)]
pub fn has_address(key: &ServiceKey) -> bool {
    lookup(key).is_some()
}

/// What becomes of a packet whose transport header cannot be read: where the address is a service's it is
/// dropped, because the kernel would answer in the service's name; elsewhere it is none of ours.
#[inline(always)]
pub fn judge(ip: &Ip, fault: Fault) -> Reason {
    if !has_address(&ip.destination) {
        return match fault {
            Fault::Malformed => Reason::BadHeader,
            Fault::Fragment | Fault::Extensions => Reason::NotService,
        };
    }
    match fault {
        Fault::Malformed => Reason::Malformed,
        Fault::Fragment => Reason::Fragment,
        Fault::Extensions => Reason::ExtensionHeaders,
    }
}

/// The table in force, read once, so that one packet sees one generation.
#[inline(always)]
pub fn table(service: u32) -> Option<TableWord> {
    let record = RECORDS.get_ptr(service)?;
    // SAFETY: a valid, aligned map value; volatile because the agent stores to it while we read.
    let table = unsafe { core::ptr::read_volatile(&raw const (*record).table) };
    (table.size() != 0).then_some(table)
}

#[inline(always)]
fn lookup(key: &ServiceKey) -> Option<u32> {
    // SAFETY: the value is one aligned word that is written once before its key becomes visible.
    unsafe { SERVICES.get(key) }.copied()
}
