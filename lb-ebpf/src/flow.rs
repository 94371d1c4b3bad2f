//! The flow table, and the way of a packet whose slot moves.
//!
//! What is to be done says the pure rule in [`lb_common::rule`]; here it is asked and carried out. Elements of the
//! map are recycled under their readers: the word with tag and backend is read once and its tag compared, so that
//! no packet takes another flow's backend. State and time are stored in place, and the tag is compared again: a store
//! that came after the element had become another flow's must not end that flow's entry early.

use aya_ebpf::bindings::{BPF_ANY, BPF_EXIST, BPF_F_NO_PREALLOC, BPF_NOEXIST, xdp_md};
use aya_ebpf::btf_maps::{Array, HashMap, PerCpuArray};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;
use lb_common::hint;
use lb_common::layout::{
    FlowControl, FlowCounters, FlowEntry, FlowKey, FlowOwner, FlowSeen, MMAPABLE, Slot, TableWord,
};
use lb_common::rule::{self, Entry, Packet, Place, Standing, State, Write};

use crate::clock::{coarse_ns, now_ns};
use crate::packet::{self, TCP};
use crate::{forward, full, hint as hints, quic, schedule, service};

/// The flow table, shared by all CPUs. Memory is taken as flows come; a table that is full refuses.
#[btf_map]
static FLOWS: HashMap<FlowKey, FlowEntry, 1_048_576, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// Allowances and refusals, by service.
#[btf_map]
static FLOW_CONTROL: Array<FlowControl, 1024, { MMAPABLE as usize }> = Array::new();

/// What became of packets here, by service.
#[btf_map]
static FLOW_COUNTERS: PerCpuArray<FlowCounters, 1024> = PerCpuArray::new();

/// The errors of `bpf_map_update_elem` that mean something of their own; the others are a lack of room.
const EEXIST: i32 = -17;
const ENOENT: i32 = -2;

/// Where a packet is put down for [`consult`]: the stack has no room for it.
#[btf_map]
static ASKED: PerCpuArray<Asked, 1> = PerCpuArray::new();

/// A packet whose slot moves, or whose table is being resized.
#[repr(C, align(8))]
pub struct Asked {
    pub key: FlowKey,
    pub slot: Slot,
    pub table: TableWord,
    pub hash: u32,
    /// The hash that gave the slot: of some schedulers it is not that of the flow.
    pub slot_hash: u32,
    /// [`crate::packet::Flow::transport`].
    pub transport: u32,
    pub protocol: u32,
    /// What [`flow_packet`] says of it; 0 before it was asked.
    pub packet: u64,
}

/// The backend of a packet; 0: nobody.
#[inline(always)]
pub fn ask(ctx: &XdpContext, asked: Asked) -> u32 {
    let Some(place) = ASKED.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: a valid, aligned per-CPU value; nothing else runs on this CPU meanwhile.
    unsafe {
        core::ptr::write(place, asked);
        (*place).packet = flow_packet(ctx.ctx);
    }
    consult()
}

/// The kinds of packets in the upper half of what [`flow_packet`] answers.
const SYN: u32 = 1;
const FIN: u32 = 2;
const RESET: u32 = 3;
const DATA: u32 = 4;
const INITIAL: u32 = 5;
const HANDSHAKE: u32 = 6;
const DATAGRAM: u32 = 7;
const ERROR: u32 = 8;

/// What the rule must know of the packet that [`ASKED`] holds: its kind, and the number that goes with it; 0: nothing can
/// be known. Before [`consult`] and not within, on whose stack its own would stand: the oldest kernels have no room for
/// both.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn flow_packet(ctx: *mut xdp_md) -> u64 {
    let Some(asked) = ASKED.get_ptr(0) else {
        return 0;
    };
    // SAFETY: as in `ask`, which has written it.
    let asked = unsafe { &*asked };
    let ctx = XdpContext::new(ctx);
    let (kind, number) = match read_packet(&ctx, asked.transport, asked.protocol, asked.table) {
        None => return 0,
        Some(Packet::Syn(sequence)) => (SYN, sequence),
        Some(Packet::Last { sequence, reset }) => (if reset { RESET } else { FIN }, sequence),
        Some(Packet::Data(sequence)) => (DATA, sequence),
        Some(Packet::Initial(number)) => (INITIAL, number),
        Some(Packet::Handshake) => (HANDSHAKE, 0),
        Some(Packet::Datagram) => (DATAGRAM, 0),
        Some(Packet::Error) => (ERROR, 0),
    };
    u64::from(kind) << 32 | u64::from(number)
}

/// The packet that [`flow_packet`] read.
#[inline(always)]
fn packet_of(bits: u64) -> Option<Packet> {
    let number = bits as u32;
    Some(match (bits >> 32) as u32 {
        SYN => Packet::Syn(number),
        kind @ (FIN | RESET) => Packet::Last {
            sequence: number,
            reset: kind == RESET,
        },
        DATA => Packet::Data(number),
        INITIAL => Packet::Initial(number),
        HANDSHAKE => Packet::Handshake,
        DATAGRAM => Packet::Datagram,
        ERROR => Packet::Error,
        _ => return None,
    })
}

/// The backend of a flow whose entry says that it is established, for a packet that neither opens nor ends it
/// (`goes_on`), of a table that is not being resized: what [`rule::decide`] says of it, in short, as long as the backend
/// serves. `None`: that has to be asked.
#[inline(always)]
pub fn known(key: &FlowKey, hash: u32, goes_on: bool) -> Option<u32> {
    if !goes_on {
        return None;
    }
    let [a, b, c, d] = key.source.map(u64::from);
    let tail = u64::from(key.ports) | u64::from(key.service) << 32;
    match flow_known(a | b << 32, c | d << 32, tail, hash) {
        0 => None,
        backend => Some(backend),
    }
}

/// What [`known`] answers; 0: `None`. The words are those of the key, which has no room on the stack of the caller. Global,
/// so that the kernel verifies it once, and by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn flow_known(first: u64, second: u64, tail: u64, hash: u32) -> u32 {
    find_known([first, second, tail], hash).unwrap_or_default()
}

#[inline(always)]
fn find_known(words: [u64; 3], hash: u32) -> Option<u32> {
    // SAFETY: the same size and a stricter alignment; a key is integers only, in the order of their bytes in memory.
    let key = unsafe { &*(&raw const words).cast::<FlowKey>() };
    let at_ns = coarse_ns();
    // Before the entry is looked up.
    let place = hints::place(identity(key, hash), at_ns)?;
    let hinted = place.backend();
    if hinted != 0 && matches!(forward::standing(hinted), Standing::Serves) {
        count_hit(key.service);
        return Some(hinted);
    }
    let element = FLOWS.get_ptr_mut(key)?;
    // SAFETY: a valid, aligned map value; volatile because others store to it while we read.
    let (owner, seen) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*element).owner),
            core::ptr::read_volatile(&raw const (*element).seen),
        )
    };
    let backend = owner.backend();
    if owner.hash() != hash
        || !matches!(seen.state(), State::Established)
        || !matches!(forward::standing(backend), Standing::Serves)
    {
        return None;
    }
    if seen.at_ns() < at_ns {
        touch(element, hash, State::Established, at_ns);
    }
    // Not of a flow that comes too rarely for a hint to be of use.
    if hint::epoch(seen.at_ns()) == hint::epoch(at_ns) {
        place.put(backend);
    }
    count_hit(key.service);
    Some(backend)
}

/// What hints know a flow by.
#[inline(always)]
fn identity(key: &FlowKey, hash: u32) -> u64 {
    full::identity(key.source, key.ports, hash, key.service)
}

/// What [`ask`] answers.
///
/// A subprogram of its own: it runs for few packets, and inlined, once for each address family, it would take
/// registers and stack from the path of all others. Global, so that the kernel verifies it once, by itself, and not
/// again for each state that its callers can be in.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn consult() -> u32 {
    let Some(asked) = ASKED.get_ptr(0) else {
        return 0;
    };
    // SAFETY: as in `ask`, which has written it.
    let asked = unsafe { &*asked };
    let Some(packet) = packet_of(asked.packet) else {
        return 0;
    };
    let place = Place {
        slot: effective_slot(asked),
        resizing: asked.table.is_resizing(),
        held: asked.table.is_held(),
    };
    let key = &asked.key;
    // Another CPU may make the same entry at the same moment: then the rule is asked once more.
    for _ in 0..2 {
        let element = FLOWS.get_ptr_mut(key);
        let found = element.and_then(|element| read_entry(element, asked.hash));
        if found.is_some() {
            count(asked, |counters| counters.hits += 1);
        }
        let decision = rule::decide(place, found, packet, forward::standing);
        let backend = decision.backend;
        let (entry, flags) = match decision.write {
            Write::Nothing => return backend,
            Write::Touch(state) => {
                if let Some(element) = element {
                    touch(element, asked.hash, state, now_ns());
                }
                return backend;
            }
            Write::Insert(entry) => {
                if !take_allowance(asked.key.service, Allowance::of(packet)) {
                    count(asked, |counters| counters.refused_allowance += 1);
                    note_refusal(asked, packet, decision.otherwise);
                    return decision.otherwise;
                }
                (entry, BPF_NOEXIST)
            }
            Write::Replace(entry) => {
                if entry.backend != backend {
                    count(asked, |counters| counters.occupied += 1);
                }
                (entry, BPF_EXIST)
            }
            Write::Bury(entry) => (entry, BPF_ANY),
        };
        match put(asked, &entry, flags) {
            Ok(()) => {
                if flags != BPF_EXIST {
                    count_insert(asked, packet);
                }
                return backend;
            }
            // Made, or swept, since it was looked for.
            Err(EEXIST | ENOENT) => {}
            Err(_) => {
                if flags == BPF_ANY {
                    // Gone already where another CPU was faster.
                    let _ = FLOWS.remove(key);
                    hints::renew(identity(key, asked.hash));
                }
                return refuse_full(asked, packet, decision.otherwise);
            }
        }
    }
    // Other CPUs changed it twice within this packet: where it belongs is not known, and it will come again.
    count(asked, |counters| counters.refused_full += 1);
    0
}

#[inline(always)]
fn refuse_full(asked: &Asked, packet: Packet, otherwise: u32) -> u32 {
    count(asked, |counters| counters.refused_full += 1);
    note_refusal(asked, packet, otherwise);
    otherwise
}

#[inline(always)]
fn count(asked: &Asked, what: impl FnOnce(&mut FlowCounters)) {
    count_for(asked.key.service, what);
}

#[inline(always)]
fn count_for(service: u32, what: impl FnOnce(&mut FlowCounters)) {
    if let Some(counters) = FLOW_COUNTERS.get_ptr_mut(service) {
        // SAFETY: a per-CPU value; nothing else runs on this CPU meanwhile.
        what(unsafe { &mut *counters });
    }
}

/// The slot that counts: while the table is being resized, that of both tables together.
#[inline(always)]
fn effective_slot(asked: &Asked) -> Slot {
    if !asked.table.is_resizing() {
        return asked.slot;
    }
    let before = service::table_before(asked.key.service);
    match before.and_then(|table| schedule::slot(table, asked.slot_hash)) {
        Some(before) => Slot::resizing(asked.slot, before),
        None => asked.slot,
    }
}

/// What the rule must know of the packet. The header is read again, because the path of all other packets has no
/// use for sequence numbers.
#[inline(always)]
pub fn read_packet(ctx: &XdpContext, transport: u32, protocol: u32, table: TableWord) -> Option<Packet> {
    if transport == 0 {
        return Some(Packet::Error);
    }
    if protocol != u32::from(TCP) {
        if quic::is_on(table) {
            return Some(quic::packet(ctx, transport));
        }
        return Some(Packet::Datagram);
    }
    let segment = packet::segment(ctx, transport)?;
    Some(if segment.opens() {
        Packet::Syn(segment.sequence)
    } else if segment.fin() || segment.rst() {
        Packet::Last {
            sequence: segment.sequence,
            reset: segment.rst(),
        }
    } else {
        Packet::Data(segment.sequence)
    })
}

/// The entry in an element of the map, unless the element is another flow's.
#[inline(always)]
fn read_entry(place: *mut FlowEntry, hash: u32) -> Option<Entry> {
    // SAFETY: a valid, aligned map value of integers; volatile because others store to it while we read.
    let (owner, seen, isn, before, again) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*place).owner),
            core::ptr::read_volatile(&raw const (*place).seen),
            core::ptr::read_volatile(&raw const (*place).isn),
            core::ptr::read_volatile(&raw const (*place).before),
            core::ptr::read_volatile(&raw const (*place).owner),
        )
    };
    (owner.hash() == hash && owner == again).then_some(Entry {
        backend: owner.backend(),
        state: seen.state(),
        isn,
        before,
    })
}

/// Stores state and time. Where the element became another flow's meanwhile, that flow counts as established: the state
/// whose entries live longest.
#[inline(always)]
fn touch(place: *mut FlowEntry, hash: u32, state: State, at_ns: u64) {
    // SAFETY: a valid, aligned map value; each store is one of one word, which others read whole.
    unsafe {
        let seen = core::ptr::read_volatile(&raw const (*place).seen);
        if seen.state().outlasts(state) {
            return;
        }
        core::ptr::write_volatile(&raw mut (*place).seen, FlowSeen::new(state, at_ns));
        if core::ptr::read_volatile(&raw const (*place).owner).hash() != hash {
            let established = FlowSeen::new(State::Established, at_ns);
            core::ptr::write_volatile(&raw mut (*place).seen, established);
        }
    }
}

#[inline(always)]
fn put(asked: &Asked, entry: &Entry, flags: u32) -> Result<(), i32> {
    let Entry {
        backend,
        state,
        isn,
        before,
    } = *entry;
    let key = &asked.key;
    let entry = &FlowEntry {
        owner: FlowOwner::new(asked.hash, backend),
        seen: FlowSeen::new(state, now_ns()),
        isn,
        before,
    };
    let put = FLOWS.insert(key, entry, u64::from(flags));
    hints::renew(identity(key, asked.hash));
    put
}

/// What an entry is taken from.
#[derive(Clone, Copy)]
enum Allowance {
    Syn,
    Data,
    Udp,
}

impl Allowance {
    #[inline(always)]
    fn of(packet: Packet) -> Self {
        match packet {
            Packet::Syn(_) => Self::Syn,
            Packet::Initial(_) | Packet::Handshake | Packet::Datagram => Self::Udp,
            _ => Self::Data,
        }
    }
}

/// Takes one entry from an allowance of a service, if there is one left.
#[inline(always)]
fn take_allowance(service: u32, allowance: Allowance) -> bool {
    let Some(control) = FLOW_CONTROL.get_ptr_mut(service) else {
        return false;
    };
    // SAFETY: a valid map value; only its address is taken.
    let left = unsafe {
        match allowance {
            Allowance::Syn => &raw mut (*control).syn_left,
            Allowance::Udp => &raw mut (*control).udp_left,
            Allowance::Data => &raw mut (*control).data_left,
        }
    };
    // SAFETY: a valid, aligned word; volatile because other CPUs and the agent write it too.
    unsafe {
        let value = core::ptr::read_volatile(left);
        if value != 0 {
            core::ptr::write_volatile(left, value - 1);
        }
        value != 0
    }
}

#[inline(always)]
fn count_insert(asked: &Asked, packet: Packet) {
    count(asked, |counters| match packet {
        Packet::Syn(_) => counters.inserted_syn += 1,
        Packet::Initial(_) | Packet::Handshake | Packet::Datagram => counters.inserted_udp += 1,
        _ => counters.inserted_data += 1,
    });
}

/// A refused entry keeps windows open, but not where the packet was dropped, and not for UDP: only the packets that open
/// connections of QUIC tell new flows from old ones.
#[inline(always)]
fn note_refusal(asked: &Asked, packet: Packet, otherwise: u32) {
    if otherwise == 0 || matches!(packet, Packet::Handshake | Packet::Datagram | Packet::Error) {
        return;
    }
    if let Some(control) = FLOW_CONTROL.get_ptr_mut(asked.key.service) {
        // SAFETY: a valid, aligned map value; volatile because the agent reads it.
        unsafe { core::ptr::write_volatile(&raw mut (*control).refused_ns, now_ns()) };
    }
}

/// Counts a reset that was sent in the name of a backend of a service.
#[inline(always)]
pub fn count_reset(service: u32) {
    count_for(service, |counters| counters.resets += 1);
}

/// Counts a packet that found its flow in the cache.
#[inline(always)]
pub fn count_hit(service: u32) {
    count_for(service, |counters| counters.hits += 1);
}

/// Counts a flow that lost its way in the cache.
#[inline(always)]
pub fn count_evicted(service: u32) {
    count_for(service, |counters| counters.evicted += 1);
}

/// Counts a connection whose place in the nursery was taken.
#[inline(always)]
pub fn count_crowded(service: u32) {
    count_for(service, |counters| counters.crowded += 1);
}
