//! From address, port and protocol to the service and its lookup table.

use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie};
use aya_ebpf::macros::btf_map;
use lb_common::layout::{
    MMAPABLE, PortPrefix, SERVICE_BUCKETS, ServiceBucket, ServiceDoor, ServiceKey, ServiceRecord, TableWord,
};
use lb_common::reason::Reason;

use crate::constants::{RANGED, WILDCARD};
use crate::packet::{Flow, Ip, NoFlow};

/// The index of each service, and of each address that some service has (port and protocol 0; the index is
/// meaningless there).
#[btf_map]
static SERVICES: HashMap<ServiceKey, u32, 2048> = HashMap::new();

/// The front of [`SERVICES`]: an array look-up is a few instructions, that in a hash map calls of functions.
#[btf_map]
static BUCKETS: Array<ServiceBucket, { SERVICE_BUCKETS as usize }, { MMAPABLE as usize }> = Array::new();

/// The index of each service of a range of ports, by the blocks that make up the range.
#[btf_map]
static RANGES: LpmTrie<[u32; 5], u32, 1024> = LpmTrie::new();

/// The record of each service, by its index.
#[btf_map]
static RECORDS: Array<ServiceRecord, 1024, { MMAPABLE as usize }> = Array::new();

/// The index of the service that the packet belongs to: the exact port first, then a range of ports, then a service of
/// all ports.
#[inline(always)]
pub fn find(ip: &Ip, flow: &Flow) -> Option<u32> {
    let key = ip.key(flow.destination_port(), flow.protocol as u8);
    let (halves, ends) = (key.halves(), PortPrefix::ends_of(&key));
    if let Some(index) = enter(key) {
        return Some(index);
    }
    if RANGED.load() != 0 {
        let [first, second] = halves;
        let found = service_of_range(first, second, ends);
        if found != 0 {
            return Some(found - 1);
        }
    }
    if WILDCARD.load() == 0 {
        return None;
    }
    enter(ip.key(0, flow.protocol as u8))
}

/// The index of the service whose range has this port, plus 1; 0: none. A function of its own, and global: its key has no
/// room on the stack of the callers.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn service_of_range(first: u64, second: u64, ends: u32) -> u32 {
    let port = PortPrefix {
        bits: PortPrefix::WHOLE,
        address: [
            first as u32,
            (first >> 32) as u32,
            second as u32,
            (second >> 32) as u32,
        ],
        ends,
    };
    // SAFETY: the same fields in the same places; this one is aligned, so that it is not written byte by byte.
    let key = unsafe { &*(&raw const port).cast::<Key<[u32; 5]>>() };
    match RANGES.get(key) {
        Some(index) => *index + 1,
        None => 0,
    }
}

/// Whether some service has the address of a key with port and protocol 0.
#[inline(always)]
pub fn has_address(key: ServiceKey) -> bool {
    lookup(key).is_some()
}

/// What becomes of a packet that has no flow. Where it cannot be read and the address is a service's it is
/// dropped, because the kernel would answer in the service's name; elsewhere it is none of ours.
#[inline(always)]
pub fn judge(ip: &Ip, why: NoFlow) -> Reason {
    if matches!(why, NoFlow::Icmpv6 | NoFlow::Icmp | NoFlow::OtherProtocol) {
        return Reason::OtherProtocol;
    }
    let ours = has_address(ip.key(0, 0));
    match why {
        NoFlow::Malformed if ours => Reason::Malformed,
        NoFlow::Malformed => Reason::BadHeader,
        NoFlow::Extensions if ours => Reason::ExtensionHeaders,
        _ => Reason::NotService,
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

/// The table before the one in force, while a resize is under way.
#[inline(always)]
pub fn table_before(service: u32) -> Option<TableWord> {
    let record = RECORDS.get_ptr(service)?;
    // SAFETY: as in `table`.
    let before = unsafe { core::ptr::read_volatile(&raw const (*record).before) };
    (before.size() != 0).then_some(before)
}

/// What the bucket of a key says.
pub enum Door {
    /// The index of the service.
    Service(u32),
    /// There is no such service.
    None,
    /// Somebody else has to be asked.
    Unknown,
}

/// What the bucket of a key says about a packet for it.
#[inline(always)]
pub fn door(key: &ServiceKey) -> Door {
    match knock(key) {
        Door::None if WILDCARD.load() | RANGED.load() != 0 => Door::Unknown,
        answer => answer,
    }
}

#[inline(always)]
fn knock(key: &ServiceKey) -> Door {
    let Some(bucket) = BUCKETS.get_ptr(key.bucket()) else {
        return Door::None;
    };
    // SAFETY: a valid, aligned map value; volatile because the agent stores to it while we read.
    let door = |number: usize| unsafe { core::ptr::read_volatile(&raw const (*bucket).doors[number].word) };
    // SAFETY: as above; the address is written before the word that was read.
    let address = |number: usize| unsafe { (*bucket).doors[number].address };
    for number in 0..size_of::<[ServiceDoor; 2]>() / size_of::<ServiceDoor>() {
        let word = door(number);
        if word as u32 == key.tail() && address(number) == key.halves() {
            return Door::Service((word >> 32) as u32);
        }
    }
    // SAFETY: as above.
    if unsafe { core::ptr::read_volatile(&raw const (*bucket).overflow) } == 0 {
        Door::None
    } else {
        Door::Unknown
    }
}

/// The index of the service with this key, by way of its bucket.
#[inline(always)]
fn enter(key: ServiceKey) -> Option<u32> {
    match knock(&key) {
        Door::Service(index) => Some(index),
        Door::None => None,
        Door::Unknown => lookup(key),
    }
}

/// A key on the stack: aligned, it is put together from words of 64 bits.
#[repr(C, align(8))]
struct OnStack(ServiceKey);

#[inline(always)]
fn lookup(key: ServiceKey) -> Option<u32> {
    let OnStack(key) = &OnStack(key);
    // SAFETY: the value is one aligned word that is written once before its key becomes visible.
    unsafe { SERVICES.get(key) }.copied()
}
