//! `tracking = "full"`, and the schedulers that choose freely: a layer before the lookup table. A flow in the cache goes
//! where its way says; what has none there goes where its hash leads, by way of [`crate::flow`] where slots move, and
//! gets a way then. See [`lb_common::cache`].

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::btf_maps::{Array, PerCpuArray};
use aya_ebpf::helpers::bpf_get_prandom_u32;
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;
use lb_common::cache::{
    self, BUSY_NS, Chooser, FlowWord, LEAST_OF, Load, NEIGHBORS, NURSERY_NS, NURSERY_PLACES, Opening, Way,
};
use lb_common::hash;
use lb_common::layout::{MMAPABLE, TableWord};
use lb_common::rule::{Packet, Standing};

use crate::clock::coarse_ns;
use crate::constants::{PERSISTENT, second_key};
use crate::{atomic, cache as ways, client, flow, forward, schedule};

/// Connections that are being opened.
#[btf_map]
static NURSERY: Array<Opening, { NURSERY_PLACES as usize }, { MMAPABLE as usize }> = Array::new();

/// What each backend has to do, by its index.
#[btf_map]
static LOADS: Array<Load, 4096, { MMAPABLE as usize }> = Array::new();

/// Where a CPU stands with a service whose scheduler goes round.
#[repr(C)]
struct Cursor {
    /// The slot whose turn it is.
    next: u32,
    /// The backend with the fewest flows that it knows of; 0: none.
    best: u32,
}

#[btf_map]
static CURSORS: PerCpuArray<Cursor, 1024> = PerCpuArray::new();

/// Where a packet is put down for the subprograms: the stack has no room for it.
#[btf_map]
static TRACKED: PerCpuArray<Tracked, 1> = PerCpuArray::new();

/// A packet of a service that remembers all of its flows.
#[repr(C, align(8))]
pub struct Tracked {
    /// Made of the others.
    pub identity: u64,
    pub table: TableWord,
    /// Address and ports of the client as in [`lb_common::layout::FlowKey`].
    pub source: [u32; 4],
    pub ports: u32,
    pub hash: u32,
    pub service: u32,
    /// [`crate::packet::Flow::transport`].
    pub transport: u32,
    pub protocol: u32,
    /// [`SYN`] or another of the kinds.
    pub kind: u32,
    pub sequence: u32,
    pub reserved: u32,
    pub now_ns: u64,
}

/// Kinds of packets.
const SYN: u32 = 0;
const DATA: u32 = 1;
const LAST: u32 = 2;
const DATAGRAM: u32 = 3;
const ERROR: u32 = 4;

/// What [`look`] found out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// The backend.
    Backend(u32),
    /// The hash has to say; a flow that begins, or ends, without a way.
    Unknown,
    /// The hash has to say, and [`remember`] is to be told.
    Unremembered,
}

const UNKNOWN: u32 = 0;
const UNREMEMBERED: u32 = u32::MAX;

/// Looks a packet up, and chooses for one that opens a flow.
#[inline(always)]
pub fn look(ctx: &XdpContext, tracked: Tracked) -> Found {
    let Some(place) = TRACKED.get_ptr_mut(0) else {
        return Found::Unknown;
    };
    // SAFETY: a valid, aligned per-CPU value; nothing else runs on this CPU meanwhile.
    let found = unsafe {
        core::ptr::write(place, tracked);
        if note(ctx.ctx, place) {
            full_judge()
        } else {
            UNKNOWN
        }
    };
    match found {
        UNKNOWN => Found::Unknown,
        UNREMEMBERED => Found::Unremembered,
        backend => Found::Backend(backend),
    }
}

/// Puts down what the packet is, for [`full_judge`]: then the functions behind need no arguments and are global, which
/// the verifier takes one by one, once, for any packet. As one they are more than it follows. Gives back whether anything
/// can be known of it, and is over by the time they run, so that they do not stand on its stack.
#[inline(never)]
fn note(ctx: *mut xdp_md, tracked: *mut Tracked) -> bool {
    // SAFETY: the per-CPU value of the caller.
    let there = unsafe { &mut *tracked };
    let Some(packet) = flow::read_packet(
        &XdpContext::new(ctx),
        there.transport,
        there.protocol,
        there.table,
    ) else {
        return false;
    };
    (there.kind, there.sequence) = match packet {
        Packet::Syn(sequence) => (SYN, sequence),
        Packet::Data(sequence) => (DATA, sequence),
        Packet::Last { sequence, .. } => (LAST, sequence),
        Packet::Initial(_) | Packet::Handshake | Packet::Datagram => (DATAGRAM, 0),
        Packet::Error => (ERROR, 0),
    };
    there.now_ns = coarse_ns();
    there.identity = identity(there.source, there.ports, there.hash, there.service);
    true
}

/// What a flow is known by; `hash` is the flow's own.
#[inline(always)]
pub fn identity(source: [u32; 4], ports: u32, hash: u32, service: u32) -> u64 {
    // An IPv4 address is the last word: its hash is that of the four words.
    let words = source.map(u32::from_le);
    let second = hash::flow_v6(&second_key(), words, u32::from_le(ports));
    cache::identity(hash, second, service)
}

/// The backend of a flow that has a way, for a packet that neither opens nor ends it (`goes_on`): what [`full_judge`] says
/// of it, in short, as long as the backend serves. `None`: that has to be asked.
#[inline(always)]
pub fn known(identity: u64, goes_on: bool, service: u32) -> Option<u32> {
    if !goes_on {
        return None;
    }
    let backend = full_known(identity, service);
    (backend != UNKNOWN).then_some(backend)
}

/// What [`known`] answers. Out of line and global, so that the kernel verifies it once, and by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn full_known(identity: u64, service: u32) -> u32 {
    let Some(line) = ways::line(identity) else {
        return UNKNOWN;
    };
    let Some((way, backend)) = ways::find_live(line, identity) else {
        return UNKNOWN;
    };
    if !matches!(forward::standing(backend), Standing::Serves) {
        return UNKNOWN;
    }
    let now_ns = coarse_ns();
    // Its client has to be noted too.
    if PERSISTENT.load() != 0 && ways::is_due(way, now_ns) {
        return UNKNOWN;
    }
    ways::touch(way, now_ns);
    flow::count_hit(service);
    backend
}

/// The packet that was put down.
#[inline(always)]
pub fn tracked() -> Option<&'static Tracked> {
    // SAFETY: a valid, aligned per-CPU value; nothing else runs on this CPU meanwhile.
    TRACKED.get_ptr(0).map(|place| unsafe { &*place })
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn full_judge() -> u32 {
    let Some(tracked) = tracked() else {
        return UNKNOWN;
    };
    let Some(line) = ways::line(tracked.identity) else {
        return UNKNOWN;
    };
    let known = ways::find(line, tracked.identity).filter(|(_, word)| follows(word.backend(), tracked));
    if let Some((way, word)) = known
        && (word.is_live() || tracked.kind == ERROR)
    {
        return proceed(way, word, tracked);
    }
    match tracked.kind {
        SYN => return full_open(),
        ERROR => return UNKNOWN,
        DATA | LAST => {
            let backend = full_opened();
            if backend != UNKNOWN {
                return backend;
            }
        }
        _ => {}
    }
    // Another CPU may have moved it from the nursery to its way meanwhile.
    let known = ways::find(line, tracked.identity).filter(|(_, word)| follows(word.backend(), tracked));
    if let Some((way, word)) = known {
        return proceed(way, word, tracked);
    }
    match tracked.kind {
        LAST => UNKNOWN,
        DATAGRAM => full_first_datagram(),
        _ => UNREMEMBERED,
    }
}

/// A packet of a flow that has a way.
#[inline(always)]
fn proceed(way: *mut Way, word: FlowWord, tracked: &Tracked) -> u32 {
    flow::count_hit(tracked.service);
    if tracked.kind != SYN && tracked.kind != ERROR && ways::touch(way, tracked.now_ns) && client::has() {
        client::client_keep(word.backend(), 0);
    }
    if tracked.kind == LAST && word.is_live() {
        ways::store(way, word.closing());
        add_load(word.backend(), -1);
    }
    word.backend()
}

/// Whether a backend still takes this packet of a flow that it has.
#[inline(always)]
fn follows(backend: u32, tracked: &Tracked) -> bool {
    match forward::standing(backend) {
        Standing::Serves => true,
        Standing::Resets => tracked.kind != SYN,
        Standing::Gone => false,
    }
}

/// The place of an identity in the nursery, else one that is free, or was taken long ago; `None`: all of them are taken.
#[inline(always)]
pub fn place(identity: u64) -> Option<*mut Opening> {
    NURSERY.get_ptr_mut(full_place(identity))
}

/// Number of the place; [`NURSERY_PLACES`]: none.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn full_place(identity: u64) -> u32 {
    let Some(tracked) = tracked() else {
        return NURSERY_PLACES;
    };
    // Other bits than those of the line, so that what is crowded there is not crowded here.
    let first = cache::index(identity >> 20, NURSERY_PLACES) & !(NEIGHBORS - 1);
    let (mut best, mut least) = (NURSERY_PLACES, u64::MAX);
    for number in first..first + NEIGHBORS {
        let Some(place) = NURSERY.get_ptr_mut(number) else {
            return NURSERY_PLACES;
        };
        let there = read_opening(place);
        let rank = if there.word.is_of(identity) {
            0
        } else if there.word.is_free() {
            1
        } else if tracked.now_ns.saturating_sub(there.seen_ns) >= NURSERY_NS {
            2
        } else {
            u64::MAX
        };
        if rank < least {
            (best, least) = (number, rank);
        }
    }
    best
}

#[inline(always)]
pub fn read_opening(place: *mut Opening) -> Opening {
    // SAFETY: a valid, aligned map value; volatile because other CPUs store to it while we read.
    unsafe { core::ptr::read_volatile(place) }
}

#[inline(always)]
pub fn write_opening(place: *mut Opening, word: FlowWord, isn: u32, now_ns: u64) {
    // SAFETY: as in `read_opening`; the word comes last, whoever sees it sees the rest.
    unsafe {
        core::ptr::write_volatile(&raw mut (*place).isn, isn);
        core::ptr::write_volatile(&raw mut (*place).seen_ns, now_ns);
        core::ptr::write_volatile(&raw mut (*place).word, word);
    }
}

#[inline(always)]
pub fn clear_opening(place: *mut Opening) {
    // SAFETY: as in `read_opening`.
    unsafe { core::ptr::write_volatile(&raw mut (*place).word, FlowWord::FREE) };
}

/// A SYN: the choice of the scheduler, kept until the next segment.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn full_open() -> u32 {
    let Some(tracked) = tracked() else {
        return UNKNOWN;
    };
    let keeps = client::has();
    if !keeps && !tracked.table.chooser().is_free() {
        return UNKNOWN;
    }
    let Some(place) = place(tracked.identity) else {
        flow::count_crowded(tracked.service);
        return UNKNOWN;
    };
    let there = read_opening(place);
    let again = there.word.is_of(tracked.identity) && there.isn == tracked.sequence;
    if again && follows(there.word.backend(), tracked) {
        return there.word.backend();
    }
    if !there.word.is_free() && tracked.now_ns.wrapping_sub(there.seen_ns) < NURSERY_NS {
        flow::count_crowded(tracked.service);
        return UNKNOWN;
    }
    let backend = if keeps {
        client::client_choose()
    } else {
        full_choose()
    };
    if backend == 0 || !follows(backend, tracked) {
        return UNKNOWN;
    }
    let word = FlowWord::live(tracked.identity, backend);
    write_opening(place, word, tracked.sequence, tracked.now_ns);
    if there.word.is_live() {
        add_load(there.word.backend(), -1);
    }
    add_load(backend, 1);
    backend
}

/// The first segment after a SYN: its flow gets a way. 0: there was no such SYN.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn full_opened() -> u32 {
    let Some(tracked) = tracked() else {
        return UNKNOWN;
    };
    let Some(place) = place(tracked.identity) else {
        return UNKNOWN;
    };
    let there = read_opening(place);
    let backend = there.word.backend();
    if !there.word.is_of(tracked.identity)
        || !cache::follows(there.isn, tracked.sequence)
        || !follows(backend, tracked)
    {
        return UNKNOWN;
    }
    let ends = tracked.kind == LAST;
    full_put(if ends { there.word.closing() } else { there.word }.0, 0);
    if client::has() {
        client::client_keep(backend, 1);
    }
    clear_opening(place);
    if ends {
        add_load(backend, -1);
    }
    backend
}

/// UDP has no SYN: the first datagram is given its way at once, where its hash does not choose.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn full_first_datagram() -> u32 {
    let Some(tracked) = tracked() else {
        return UNKNOWN;
    };
    let keeps = client::has();
    if !keeps && !tracked.table.chooser().is_free() {
        return UNREMEMBERED;
    }
    let backend = if keeps {
        client::client_choose()
    } else {
        full_choose()
    };
    if backend == 0 || !follows(backend, tracked) {
        return UNKNOWN;
    }
    full_put(FlowWord::live(tracked.identity, backend).0, 0);
    if keeps {
        client::client_keep(backend, 1);
    }
    add_load(backend, 1);
    backend
}

/// Puts the flow into the cache, unless that costs a flow that was seen less than `spare_ns` ago its way. 0: it did.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn full_put(word: u64, spare_ns: u64) -> u32 {
    let Some(tracked) = tracked() else {
        return 0;
    };
    let Some(line) = ways::line(tracked.identity) else {
        return 0;
    };
    let Some(before) = ways::insert(line, tracked.identity, FlowWord(word), tracked.now_ns, spare_ns) else {
        return 0;
    };
    if before.is_live() {
        add_load(before.backend(), -1);
    }
    if !before.is_free() && !before.is_of(tracked.identity) {
        flow::count_evicted(tracked.service);
    }
    1
}

/// Gives the flow of the packet that was looked up last a way to the backend that its hash led to.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn full_remember(backend: u32) -> u32 {
    let Some(tracked) = tracked() else {
        return backend;
    };
    // Nobody knows whether there is such a connection: it may not take the place of one that is busy.
    if full_put(FlowWord::live(tracked.identity, backend).0, BUSY_NS) != 0 {
        add_load(backend, 1);
    }
    backend
}

/// The choice of a scheduler that chooses freely; 0: none.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn full_choose() -> u32 {
    let Some(tracked) = tracked() else {
        return 0;
    };
    let table = tracked.table;
    match table.chooser() {
        Chooser::Walk => {
            let Some(cursor) = CURSORS.get_ptr_mut(tracked.service) else {
                return 0;
            };
            walk(table, cursor)
        }
        Chooser::Random => at_random(table),
        Chooser::Two => {
            let (one, other) = (at_random(table), at_random(table));
            if load(other, true).is_less_than(&load(one, true)) {
                other
            } else {
                one
            }
        }
        Chooser::Least => least(table, tracked.service, false),
        Chooser::LeastWeighted => least(table, tracked.service, true),
        Chooser::Flow | Chooser::Source => 0,
    }
}

#[inline(always)]
fn at_random(table: TableWord) -> u32 {
    // SAFETY: a helper without arguments.
    let random = unsafe { bpf_get_prandom_u32() };
    schedule::current_at(table, hash::slot(random, table.size()))
}

/// The backend with the fewest flows: the best that is known against the next few of the order. With more backends than
/// that the knowledge of a CPU is some flows old.
#[inline(always)]
fn least(table: TableWord, service: u32, weighted: bool) -> u32 {
    for _ in 0..LEAST_OF {
        let Some(cursor) = CURSORS.get_ptr_mut(service) else {
            return 0;
        };
        let backend = walk(table, cursor);
        // SAFETY: a per-CPU value; nothing else runs on this CPU meanwhile. Volatile so that it is kept in memory: of
        // what is there the verifier knows nothing, and need not follow each way that the comparisons can come out.
        unsafe {
            let best = core::ptr::read_volatile(&raw const (*cursor).best);
            let less = load(backend, weighted).is_less_than(&load(best, weighted));
            if less | (best == 0) | !matches!(forward::standing(best), Standing::Serves) {
                core::ptr::write_volatile(&raw mut (*cursor).best, backend);
            }
        }
    }
    match CURSORS.get_ptr_mut(service) {
        // SAFETY: as above.
        Some(cursor) => unsafe { core::ptr::read_volatile(&raw const (*cursor).best) },
        None => 0,
    }
}

/// The backend whose turn it is.
#[inline(always)]
fn walk(table: TableWord, cursor: *mut Cursor) -> u32 {
    // SAFETY: a per-CPU value; nothing else runs on this CPU meanwhile.
    let next = unsafe {
        let next = core::ptr::read_volatile(&raw const (*cursor).next);
        let next = if next < table.size() { next } else { 0 };
        core::ptr::write_volatile(&raw mut (*cursor).next, next + 1);
        next
    };
    schedule::current_at(table, next)
}

/// What a backend has to do; without weights they count as 1.
#[inline(always)]
fn load(backend: u32, weighted: bool) -> Load {
    let mut load = match LOADS.get_ptr(backend) {
        // SAFETY: a valid, aligned map value; volatile because other CPUs store to it while we read.
        Some(place) => unsafe { core::ptr::read_volatile(place) },
        None => Load::default(),
    };
    if !weighted {
        load.weight = 1;
    }
    load
}

/// Counts a flow that begins or ends.
#[inline(always)]
pub fn add_load(backend: u32, change: i64) {
    if let Some(place) = LOADS.get_ptr_mut(backend) {
        // SAFETY: a valid, aligned word of a map value.
        unsafe { atomic::add(&raw mut (*place).active, change) };
    }
}
