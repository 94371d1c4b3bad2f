//! What is asked of a client before its packet goes to a backend: whether the service's access list lets it in.
//!
//! A list is a prefix tree of its own that the agent fills before it puts it in the place of the one before, with one
//! store: a packet sees one list or the other, never half of one. The client is that of the flow: ICMP errors are
//! judged by whom they are about, later fragments by the list of today.

use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{Array, ArrayOfMaps, LpmTrie, PerCpuArray};
use aya_ebpf::macros::btf_map;
use lb_common::layout::{CLIENT_DENIED, ClientPrefix, Guard, GuardCounters, MMAPABLE};
use lb_common::reason::Reason;

use crate::constants::GUARDED;

/// What each service asks.
#[btf_map]
static GUARDS: Array<Guard, 1024, { MMAPABLE as usize }> = Array::new();

/// The access lists, by service.
#[btf_map]
static LISTS: ArrayOfMaps<LpmTrie<[u32; 4], u32, 1>, 1024> = ArrayOfMaps::new();

#[btf_map]
static GUARD_COUNTERS: PerCpuArray<GuardCounters, 1024> = PerCpuArray::new();

/// Refuses a packet of a client that the service does not take.
#[inline(always)]
pub fn ask(source: &[u32; 4], service: u32) -> Result<(), Reason> {
    if GUARDED.load() == 0 {
        return Ok(());
    }
    let Some(guard) = GUARDS.get_ptr(service) else {
        return Ok(());
    };
    // SAFETY: a valid, aligned map value; volatile because the agent stores to it while we read.
    let asks = unsafe { core::ptr::read_volatile(&raw const (*guard).asks) };
    if asks == 0 {
        return Ok(());
    }
    core::hint::cold_path();
    let [a, b, c, d] = source.map(u64::from);
    match guard_judge(a | b << 32, c | d << 32, service) {
        0 => Ok(()),
        _ => Err(Reason::Denied),
    }
}

/// Not 0: the client is refused. A function of its own, and global: its key has no room on the stack of the fast path.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn guard_judge(first: u64, second: u64, service: u32) -> u32 {
    let Some(list) = LISTS.get(service) else {
        return 0;
    };
    let client = ClientPrefix {
        bits: u128::BITS,
        address: [
            first as u32,
            (first >> 32) as u32,
            second as u32,
            (second >> 32) as u32,
        ],
    };
    // SAFETY: the same fields in the same places; this one is aligned, so that it is not written byte by byte.
    let key = unsafe { &*(&raw const client).cast::<Key<[u32; 4]>>() };
    if list.get(key) != Some(&CLIENT_DENIED) {
        return 0;
    }
    if let Some(counters) = GUARD_COUNTERS.get_ptr_mut(service) {
        // SAFETY: a per-CPU value; nothing else runs on this CPU meanwhile.
        unsafe { (*counters).denied += 1 };
    }
    1
}
