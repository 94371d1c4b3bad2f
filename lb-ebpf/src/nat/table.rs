//! The table of translated flows: finding, opening and closing them.
//!
//! The functions that the program calls are global and take at most the context: what they work on lies in
//! [`Work`], and the verifier takes each once, by itself.

#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "keys and entries given by value would be copied to the stack"
)]

use aya_ebpf::bindings::{BPF_ANY, BPF_F_NO_PREALLOC, BPF_NOEXIST, xdp_md};
use aya_ebpf::btf_maps::{Array, HashMap, PerCpuArray};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;
use lb_common::layout::{Backend, FragmentKey, Tags, kind};
use lb_common::nat::{
    self, FORWARD, MAX_SNAT_ADDRESSES, NatCounters, NatEntry, NatKey, NatSeen, PORT_TRIES, REPLY, SnatPool,
};
use lb_common::reason::Reason;
use lb_common::rule::Standing;

use super::{error, route};
use crate::clock::now_ns;
use crate::constants::VLANS;
use crate::packet::{self, Flow};
use crate::{forward, vlan};

/// Two entries for each flow. Memory is taken as flows come; a table that is full refuses.
#[btf_map]
static NAT_FLOWS: HashMap<NatKey, NatEntry, 262_144, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// What sources are rewritten to, by family.
#[btf_map]
static SNAT_POOLS: Array<SnatPool, 2> = Array::new();

/// By service.
#[btf_map]
static NAT_COUNTERS: PerCpuArray<NatCounters, 1024> = PerCpuArray::new();

/// The packet at hand.
#[btf_map]
static NAT_WORK: PerCpuArray<Work, 1> = PerCpuArray::new();

/// A packet and what is known of its flow: the stack has no room for it.
#[repr(C)]
pub struct Work {
    pub key: NatKey,
    /// Scratch: the key of the other direction.
    pub peer: NatKey,
    /// Its entry.
    pub to: NatEntry,
    /// Scratch: the entry of the other direction.
    pub other: NatEntry,
    /// What the packet shows of its side ([`NatSeen`]).
    pub flags: u64,
    pub now_ns: u64,
    pub service: u32,
    /// Who is to have a new flow.
    pub backend: u32,
    pub hash: u32,
    /// 1: a SYN.
    pub opens: u32,
    /// 1: more fragments follow.
    pub more: u32,
    pub error: error::At,
    /// The address of ours that an answer is to come from.
    pub us: [u32; 4],
    /// Of a fragment: its flow, and the datagram that it is of.
    pub flow: Flow,
    pub fragment: FragmentKey,
}

/// The entry is in [`Work::to`].
pub const FOUND: u32 = u32::MAX;
/// There is none.
pub const ABSENT: u32 = u32::MAX - 1;
/// The segment is to be answered with a reset in its backend's name.
pub const RESETS: u32 = u32::MAX - 2;

/// The work of this CPU.
#[inline(always)]
pub fn work() -> Option<&'static mut Work> {
    // SAFETY: a valid, aligned per-CPU value; nothing else runs on this CPU meanwhile.
    NAT_WORK.get_ptr_mut(0).map(|work| unsafe { &mut *work })
}

/// The entry of a packet from a client, if its flow can go on.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nat_request() -> u32 {
    let Some(work) = work() else {
        return Reason::NatRefused as u32;
    };
    work.now_ns = now_ns();
    let Some(element) = find(work, FORWARD) else {
        return ABSENT;
    };
    let verdict = judge(work);
    match verdict {
        FOUND => touch(element, work),
        ABSENT => close(work),
        _ => {}
    }
    verdict
}

/// Whether the flow of the entry at hand goes on.
#[inline(always)]
fn judge(work: &mut Work) -> u32 {
    let Some(backend) = forward::backend(work.to.backend) else {
        return ABSENT;
    };
    if !matches!(backend.kind, kind::NAT | kind::FULL_NAT) {
        // Its next hop is not known, or nobody has the index.
        return match forward::standing(work.to.backend) {
            Standing::Gone => ABSENT,
            _ => Reason::NoNextHop as u32,
        };
    }
    let port = backend.translation().1;
    if !is_its(&work.to, backend) || port != 0 && port != (work.to.ports >> 16) as u16 {
        return ABSENT;
    }
    match forward::standing(work.to.backend) {
        Standing::Serves => {}
        Standing::Resets if work.opens == 0 && work.key.protocol() == packet::TCP => return RESETS,
        Standing::Resets | Standing::Gone => return ABSENT,
    }
    if work.opens != 0 && is_over(work) {
        return ABSENT;
    }
    FOUND
}

/// Whether the record of a backend is still that of the one that an entry leads to: its index may be another's by now.
#[inline(always)]
pub fn is_its(to: &NatEntry, backend: &Backend) -> bool {
    backend.translation().0 == to.destination
}

/// Whether the connection at hand has ended, so that a SYN begins another one.
#[inline(always)]
fn is_over(work: &mut Work) -> bool {
    work.peer = work.to.peer(work.key.kind);
    let reply = match NAT_FLOWS.get_ptr(&work.peer) {
        // SAFETY: a valid, aligned map value; volatile because other CPUs write it.
        Some(reply) => unsafe { core::ptr::read_volatile(&raw const (*reply).seen) },
        None => return true,
    };
    nat::state(work.to.seen, reply).is_over()
}

/// Takes the entries of the flow at hand out.
#[inline(always)]
fn close(work: &mut Work) {
    work.peer = work.to.peer(work.key.kind);
    // Forward first: while the reply is there nobody else can have its port.
    let _ = NAT_FLOWS.remove(&work.key);
    let _ = NAT_FLOWS.remove(&work.peer);
}

/// The entry of a packet from a backend.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nat_reply(ctx: *mut xdp_md) -> u32 {
    let Some(work) = work() else {
        return ABSENT;
    };
    let Some(element) = find(work, REPLY) else {
        return ABSENT;
    };
    work.now_ns = now_ns();
    touch(element, work);
    if route::is_old(work) {
        route::nat_route(ctx);
    }
    FOUND
}

/// The entry that the quoted packet of an error belongs to, whose own flow that is the other direction of
/// [`Work::key`]; nothing is changed.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nat_quoted() -> u32 {
    let Some(work) = work() else {
        return ABSENT;
    };
    match find(work, 0) {
        Some(_) => FOUND,
        None => ABSENT,
    }
}

/// Reads the entry of the key at hand; `direction` 0: of either.
#[inline(always)]
fn find(work: &mut Work, direction: u32) -> Option<*mut NatEntry> {
    let element = NAT_FLOWS.get_ptr_mut(&work.key)?;
    let tag = work.key.tag();
    // SAFETY: a valid, aligned map value; volatile because other CPUs write it, and because the tag is to be read
    // before the rest and after it.
    unsafe {
        if core::ptr::read_volatile(&raw const (*element).tag) != tag {
            return None;
        }
        copy(element, &raw mut work.to);
        if core::ptr::read_volatile(&raw const (*element).tag) != tag {
            return None;
        }
    }
    (direction == 0 || work.to.direction == direction).then_some(element)
}

const WORDS: usize = size_of::<NatEntry>() / size_of::<u64>();

/// Copies an entry word by word: what LLVM knows as a copy of memory becomes a loop over bytes.
#[inline(always)]
unsafe fn copy(from: *const NatEntry, to: *mut NatEntry) {
    let (from, to) = (from.cast::<u64>(), to.cast::<u64>());
    for word in 0..WORDS {
        // SAFETY: the caller gives valid, aligned entries of this many words.
        unsafe { to.add(word).write(core::ptr::read_volatile(from.add(word))) };
    }
}

/// Notes the packet at hand in its entry. Where the element became another flow's meanwhile, what was written must not
/// end that one early.
#[inline(always)]
fn touch(element: *mut NatEntry, work: &Work) {
    if !work.to.seen.wants(work.flags, work.now_ns) {
        return;
    }
    let seen = work.to.seen.and(work.flags, work.now_ns);
    // SAFETY: a valid, aligned map value; each store is one of one word.
    unsafe {
        core::ptr::write_volatile(&raw mut (*element).seen, seen);
        if core::ptr::read_volatile(&raw const (*element).tag) != work.to.tag {
            let alive = NatSeen::at(work.now_ns).and(NatSeen::SOME, work.now_ns);
            core::ptr::write_volatile(&raw mut (*element).seen, alive);
        }
    }
}

/// Gives the packet's flow its entries, towards [`Work::backend`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nat_open(ctx: *mut xdp_md) -> u32 {
    let Some(work) = work() else {
        return Reason::NatRefused as u32;
    };
    let Some(backend) = forward::backend(work.backend) else {
        return Reason::NoBackend as u32;
    };
    if !matches!(backend.kind, kind::NAT | kind::FULL_NAT) {
        return Reason::NoNextHop as u32;
    }
    let (address, port) = backend.translation();
    let (source_port, own_port) = (work.key.ports as u16, (work.key.ports >> 16) as u16);
    let port = if port == 0 { own_port } else { port };
    work.to = NatEntry {
        tag: work.key.tag(),
        seen: NatSeen::at(work.now_ns).and(work.flags, work.now_ns),
        source: work.key.source,
        destination: address,
        ports: nat::ports(source_port, port),
        service: work.service,
        backend: work.backend,
        direction: FORWARD,
        way: [0; 2],
        way_ns: 0,
        mtu: 0,
        reserved: 0,
        tags: Tags::NONE,
    };
    let back = work.key.turned();
    work.other = NatEntry {
        tag: 0,
        seen: NatSeen::at(work.now_ns),
        source: back.source,
        destination: back.destination,
        ports: back.ports,
        service: work.service,
        backend: work.backend,
        direction: REPLY,
        way: route::back(&XdpContext::new(ctx)),
        way_ns: 0,
        mtu: 0,
        reserved: 0,
        tags: if VLANS.load() != 0 {
            vlan::taken()
        } else {
            Tags::NONE
        },
    };
    let refused = if backend.kind == kind::FULL_NAT {
        nat_take_port()
    } else {
        take_own_port(work)
    };
    if refused != FOUND {
        return refused;
    }
    match NAT_FLOWS.insert(&work.key, &work.to, u64::from(BPF_NOEXIST)) {
        Ok(()) => {
            count(work.service, |counters| counters.opened += 1);
            FOUND
        }
        Err(EEXIST) => follow_other(work, backend.kind),
        Err(_) => {
            let _ = NAT_FLOWS.remove(&work.peer);
            count(work.service, |counters| counters.refused_full += 1);
            Reason::NatRefused as u32
        }
    }
}

/// Another CPU opened the same flow at the same moment: its entries count.
#[inline(always)]
fn follow_other(work: &mut Work, kind: u8) -> u32 {
    let (ours, port) = (work.peer, work.to.ports);
    if find(work, FORWARD).is_none() {
        return Reason::NatRefused as u32;
    }
    // In `nat` both have the same reply entry.
    if kind == kind::FULL_NAT && work.to.ports != port {
        work.peer = ours;
        let _ = NAT_FLOWS.remove(&work.peer);
    }
    FOUND
}

/// The errors of `bpf_map_update_elem` that mean something of their own; the others are a lack of room.
const EEXIST: i32 = -17;

/// `nat`: the client's own address and port, which another service of the same backend may have taken.
#[inline(always)]
fn take_own_port(work: &mut Work) -> u32 {
    work.peer = work.to.peer(work.key.kind);
    work.other.tag = work.peer.tag();
    match NAT_FLOWS.insert(&work.peer, &work.other, u64::from(BPF_NOEXIST)) {
        Ok(()) => return FOUND,
        Err(EEXIST) => {}
        Err(_) => {
            count(work.service, |counters| counters.refused_full += 1);
            return Reason::NatRefused as u32;
        }
    }
    // What is left of the same flow makes way.
    let ours = match NAT_FLOWS.get_ptr(&work.peer) {
        // SAFETY: a valid map value; what is read is compared with what would be written.
        Some(there) => unsafe {
            (*there).source == work.other.source
                && (*there).destination == work.other.destination
                && (*there).ports == work.other.ports
        },
        None => true,
    };
    if ours
        && NAT_FLOWS
            .insert(&work.peer, &work.other, u64::from(BPF_ANY))
            .is_ok()
    {
        return FOUND;
    }
    count(work.service, |counters| counters.refused_ports += 1);
    Reason::SnatPorts as u32
}

/// `full-nat`: an address and a port of the pool that no flow to this backend has. Who puts the reply entry in has
/// them.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nat_take_port() -> u32 {
    let Some(work) = work() else {
        return Reason::NatRefused as u32;
    };
    let family = (work.key.kind >> 8) as u8;
    let Some(pool) = SNAT_POOLS.get_ptr(nat::pool_index(family)) else {
        return Reason::SnatPorts as u32;
    };
    // SAFETY: a valid, aligned map value; volatile because the agent writes it.
    let (count_of, first, ports) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*pool).count),
            core::ptr::read_volatile(&raw const (*pool).first_port),
            core::ptr::read_volatile(&raw const (*pool).ports),
        )
    };
    let space = count_of.wrapping_mul(ports);
    if ports == 0 || space == 0 {
        count(work.service, |counters| counters.refused_ports += 1);
        return Reason::SnatPorts as u32;
    }
    let port = (work.to.ports >> 16) as u16;
    let mut n = 0;
    while n < PORT_TRIES {
        let place = nat::candidate(work.hash, n, space);
        let address = (place / ports) as usize & (MAX_SNAT_ADDRESSES - 1);
        // SAFETY: as above; the index is below the length.
        work.to.source = unsafe { core::ptr::read_volatile(&raw const (*pool).addresses[address]) };
        let source_port = (first + place % ports) as u16;
        work.to.ports = nat::ports(source_port.to_be(), port);
        work.peer = work.to.peer(work.key.kind);
        work.other.tag = work.peer.tag();
        match NAT_FLOWS.insert(&work.peer, &work.other, u64::from(BPF_NOEXIST)) {
            Ok(()) => return FOUND,
            Err(EEXIST) => {}
            Err(_) => {
                count(work.service, |counters| counters.refused_full += 1);
                return Reason::NatRefused as u32;
            }
        }
        n += 1;
    }
    count(work.service, |counters| counters.refused_ports += 1);
    Reason::SnatPorts as u32
}

/// Writes where packets to the client of the entry at hand go.
#[inline(always)]
pub fn keep_way(work: &mut Work) {
    let Some(element) = NAT_FLOWS.get_ptr_mut(&work.key) else {
        return;
    };
    // SAFETY: a valid, aligned map value; volatile because other CPUs read it meanwhile.
    unsafe {
        if core::ptr::read_volatile(&raw const (*element).tag) != work.to.tag {
            return;
        }
        core::ptr::write_volatile(&raw mut (*element).way[0], work.to.way[0]);
        core::ptr::write_volatile(&raw mut (*element).way[1], work.to.way[1]);
        core::ptr::write_volatile(&raw mut (*element).mtu, work.to.mtu);
        core::ptr::write_volatile(&raw mut (*element).way_ns, work.to.way_ns);
    }
}

/// Changes what this CPU counts for a service.
#[inline(always)]
pub fn count(service: u32, change: impl FnOnce(&mut NatCounters)) {
    if let Some(counters) = NAT_COUNTERS.get_ptr_mut(service) {
        // SAFETY: a per-CPU value; nothing else runs on this CPU meanwhile.
        change(unsafe { &mut *counters });
    }
}
