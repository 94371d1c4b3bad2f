//! What is asked of a client before its packet goes to a backend: whether the access list of the service lets it in, and
//! whether it comes too often.
//!
//! A list is a prefix tree of its own that the agent fills before it puts it in the place of the one before, with one
//! store: a packet sees one list or the other, never half of one. The client is that of the flow: ICMP errors are
//! judged by whom they are about, later fragments by the list of today.
//!
//! Limits are for what can be told from its own bytes: SYNs, and datagrams. A segment of a connection passes whatever
//! they say. See [`lb_common::limit`].

use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{Array, ArrayOfMaps, LpmTrie, PerCpuArray};
use aya_ebpf::macros::btf_map;
use lb_common::hash;
use lb_common::layout::{CLIENT_DENIED, ClientPrefix, Guard, GuardCounters, MMAPABLE};
use lb_common::limit::{self, CLIENT_BUCKETS, CLIENT_ROWS, Charge, Rate};
use lb_common::reason::Reason;

use crate::atomic;
use crate::clock::now_ns;
use crate::constants::{self, GUARDED, LIMITED};
use crate::packet::{Flow, UDP};

/// What each service asks.
#[btf_map]
static GUARDS: Array<Guard, 1024, { MMAPABLE as usize }> = Array::new();

/// The access lists, by service.
#[btf_map]
static LISTS: ArrayOfMaps<LpmTrie<[u32; 4], u32, 1>, 1024> = ArrayOfMaps::new();

#[btf_map]
static GUARD_COUNTERS: PerCpuArray<GuardCounters, 1024> = PerCpuArray::new();

/// The buckets of all clients.
#[btf_map]
static LIMIT_CLIENTS: Array<u64, { (CLIENT_ROWS * CLIENT_BUCKETS) as usize }> = Array::new();

/// The bucket of each service for new flows.
#[btf_map]
static LIMIT_SERVICES: Array<u64, 1024> = Array::new();

/// Kinds of packets that limits are for.
const OPENS: u32 = 1;
const DATAGRAM: u32 = 2;

/// Refuses a packet of a client that the service's access list does not let in. May be asked again.
#[inline(always)]
pub fn ask(source: &[u32; 4], service: u32) -> Result<(), Reason> {
    if GUARDED.load() == 0 || asks(service) & Guard::LIST == 0 {
        return Ok(());
    }
    let (first, second) = halves(source);
    match guard_list(first, second, service) {
        0 => Ok(()),
        _ => Err(Reason::Denied),
    }
}

/// Whether a service has limits for packets of this kind. They are asked for once a packet, so not where the packet may
/// have to go another way still.
#[inline(always)]
pub fn is_limited(service: u32, opens: bool, protocol: u8) -> bool {
    LIMITED.load() != 0 && (opens || protocol == UDP) && asks(service) & Guard::LIMITS != 0
}

/// Refuses a packet beyond a limit of its service. To be asked once.
#[inline(always)]
pub fn limit(source: &[u32; 4], flow: &Flow, service: u32) -> Result<(), Reason> {
    let kind = if flow.opens != 0 {
        OPENS
    } else if flow.protocol == u32::from(UDP) && flow.transport != 0 {
        DATAGRAM
    } else {
        return Ok(());
    };
    if LIMITED.load() == 0 || asks(service) & Guard::LIMITS == 0 {
        return Ok(());
    }
    let (first, second) = halves(source);
    match guard_limits(first, second, service, kind) {
        0 => Ok(()),
        CLIENT_FLOW => Err(Reason::ClientFlowLimit),
        CLIENT_PACKET => Err(Reason::ClientPacketLimit),
        _ => Err(Reason::FlowLimit),
    }
}

#[inline(always)]
fn asks(service: u32) -> u64 {
    match GUARDS.get_ptr(service) {
        // SAFETY: a valid, aligned map value; volatile because the agent stores to it while we read.
        Some(guard) => unsafe { core::ptr::read_volatile(&raw const (*guard).asks) },
        None => 0,
    }
}

#[inline(always)]
fn halves(source: &[u32; 4]) -> (u64, u64) {
    let [a, b, c, d] = source.map(u64::from);
    (a | b << 32, c | d << 32)
}

/// Not 0: the client is refused. A function of its own, and global: its key has no room on the stack of the fast path.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn guard_list(first: u64, second: u64, service: u32) -> u32 {
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
    count(service, |counters| counters.denied += 1);
    1
}

/// Which limit a packet is over.
const CLIENT_FLOW: u32 = 1;
const CLIENT_PACKET: u32 = 2;
const FLOW: u32 = 3;

/// Not 0: the packet is over a limit. What is refused is charged to nobody.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn guard_limits(first: u64, second: u64, service: u32, kind: u32) -> u32 {
    let Some(guard) = GUARDS.get_ptr(service) else {
        return 0;
    };
    // SAFETY: a valid, aligned map value. While the agent writes other limits, a packet may be judged by some of both.
    let guard = unsafe { &*guard };
    let now_ns = now_ns();
    let of_clients = if kind == OPENS {
        guard.flows_per_client
    } else {
        guard.packets_per_client
    };
    let mut over = 0;
    let mut client = 0;
    if of_clients.interval_ns != 0 {
        let [first_mask, second_mask] = guard.client_mask;
        client = bucket_hash(first & first_mask, second & second_mask, service << 2 | kind);
        if !client_has_room(client, of_clients, now_ns) {
            over = if kind == OPENS { CLIENT_FLOW } else { CLIENT_PACKET };
        }
    }
    let of_service = if kind == OPENS { guard.flows } else { Rate::NONE };
    if over == 0
        && of_service.interval_ns != 0
        && !has_room(LIMIT_SERVICES.get_ptr(service), of_service, now_ns)
    {
        over = FLOW;
    }
    if over == 0 {
        if of_clients.interval_ns != 0 {
            for bucket in limit::buckets(client) {
                charge(LIMIT_CLIENTS.get_ptr_mut(bucket), of_clients, now_ns);
            }
        }
        if of_service.interval_ns != 0 {
            charge(LIMIT_SERVICES.get_ptr_mut(service), of_service, now_ns);
        }
        return 0;
    }
    count(service, |counters| match over {
        CLIENT_FLOW => counters.over_client_flows += 1,
        CLIENT_PACKET => counters.over_client_packets += 1,
        _ => counters.over_flows += 1,
    });
    if guard.asks & Guard::DRY_RUN != 0 { 0 } else { over }
}

/// The keyed hash of a client prefix, for one service and kind of packets.
#[inline(always)]
fn bucket_hash(first: u64, second: u64, salt: u32) -> u32 {
    let words = [first, first >> 32, second, second >> 32].map(|word| word as u32);
    hash::flow_v6(&constants::second_key(), words, salt)
}

#[inline(always)]
fn client_has_room(client: u32, rate: Rate, now_ns: u64) -> bool {
    let [one, other] = limit::buckets(client);
    has_room(LIMIT_CLIENTS.get_ptr(one), rate, now_ns) || has_room(LIMIT_CLIENTS.get_ptr(other), rate, now_ns)
}

#[inline(always)]
fn has_room(bucket: Option<*const u64>, rate: Rate, now_ns: u64) -> bool {
    match bucket {
        // SAFETY: a valid, aligned map value; volatile because other CPUs store to it while we read.
        Some(bucket) => rate.has_room(unsafe { core::ptr::read_volatile(bucket) }, now_ns),
        None => true,
    }
}

#[inline(always)]
fn charge(bucket: Option<*mut u64>, rate: Rate, now_ns: u64) {
    let Some(bucket) = bucket else {
        return;
    };
    // SAFETY: as in `has_room`.
    unsafe {
        match rate.charge(core::ptr::read_volatile(bucket), now_ns) {
            Charge::Begin(word) => core::ptr::write_volatile(bucket, word),
            Charge::Add(more) => atomic::add(bucket, more.cast_signed()),
            Charge::Nothing => {}
        }
    }
}

#[inline(always)]
fn count(service: u32, change: impl FnOnce(&mut GuardCounters)) {
    if let Some(counters) = GUARD_COUNTERS.get_ptr_mut(service) {
        // SAFETY: a per-CPU value; nothing else runs on this CPU meanwhile.
        change(unsafe { &mut *counters });
    }
}
