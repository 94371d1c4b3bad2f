//! QUIC: where the connection id of a packet says it goes, and what the packet is to its flow. See [`lb_common::quic`].
//!
//! A packet whose id names a backend that serves goes there, whatever its addresses: a client that changes them keeps its
//! backend. Every other one goes where its addresses and ports lead, and so do ICMP errors, which quote a packet of
//! the server and with it an id of the client.

use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, xdp_md};
use aya_ebpf::btf_maps::{Array, HashMap, PerCpuArray};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;
use lb_common::layout::{MMAPABLE, TableWord};
use lb_common::quic::{Head, Kind, LOOKED_AT, Lengths, QuicCounters, ServerKey};
use lb_common::rule::{Packet, Standing};

use crate::bounds::{MAX_OFFSET, at_anew, bounded};
use crate::constants::QUIC;
use crate::forward;
use crate::word::word;

/// The index of the backend that each server id names. Memory is taken as ids come.
#[btf_map]
static QUIC_SERVERS: HashMap<ServerKey, u32, 16_384, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// How long server ids are, by service.
#[btf_map]
static QUIC_LENGTHS: Array<Lengths, 1024, { MMAPABLE as usize }> = Array::new();

#[btf_map]
static QUIC_COUNTERS: PerCpuArray<QuicCounters, 1024> = PerCpuArray::new();

/// Length of a UDP header.
const UDP_LEN: usize = 8;

/// Whether datagrams of a service are QUIC.
#[inline(always)]
pub fn is_on(table: TableWord) -> bool {
    QUIC.load() != 0 && table.is_quic()
}

/// Where the id of a datagram leads.
#[derive(Clone, Copy)]
pub struct Way(u32);

impl Way {
    /// The service has no server ids, or this is no QUIC.
    const NONE: u32 = 0;
    /// It names nobody.
    const UNROUTABLE: u32 = u32::MAX;
    /// It names a backend that takes nothing.
    const GONE: u32 = u32::MAX - 1;

    /// Nothing was there to lead anywhere.
    #[inline(always)]
    pub fn is_none(self) -> bool {
        self.0 == Self::NONE
    }

    /// The backend; 0: none.
    #[inline(always)]
    pub fn backend(self) -> u32 {
        match self.0 {
            Self::UNROUTABLE | Self::GONE => 0,
            backend => backend,
        }
    }

    /// Counts the packet. To be called once, so not where the packet may have to go another way still.
    #[inline(always)]
    pub fn count(self, service: u32) {
        let Some(counters) = QUIC_COUNTERS.get_ptr_mut(service) else {
            return;
        };
        // SAFETY: a per-CPU value; nothing else runs on this CPU meanwhile.
        let counters = unsafe { &mut *counters };
        match self.0 {
            Self::NONE => {}
            Self::UNROUTABLE => counters.unroutable += 1,
            Self::GONE => counters.gone += 1,
            _ => counters.by_id += 1,
        }
    }
}

/// Where the id of a datagram leads whose UDP header begins `transport` bytes from the start of the frame.
#[inline(always)]
pub fn way(ctx: &XdpContext, transport: u32, service: u32) -> Way {
    Way(quic_way(ctx.ctx, transport, service))
}

/// What [`way`] answers. Global, so that the kernel verifies it once, and by itself; its key has no room on the stack of
/// the callers.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn quic_way(ctx: *mut xdp_md, transport: u32, service: u32) -> u32 {
    let Some(lengths) = QUIC_LENGTHS.get_ptr(service) else {
        return Way::NONE;
    };
    // SAFETY: a valid, aligned map value; volatile because the agent stores to it while we read.
    let lengths = unsafe { core::ptr::read_volatile(lengths) };
    if lengths.0 == 0 {
        return Way::NONE;
    }
    let Some(head) = head(&XdpContext::new(ctx), transport) else {
        return Way::NONE;
    };
    let length = lengths.of(head.config());
    let Some(server) = head.server_id(length) else {
        return Way::UNROUTABLE;
    };
    let backend = named(&ServerKey::new(service, head.config(), length, server));
    if backend == 0 {
        return Way::UNROUTABLE;
    }
    match forward::standing(backend) {
        Standing::Serves => backend,
        Standing::Resets | Standing::Gone => Way::GONE,
    }
}

#[inline(always)]
fn named(key: &ServerKey) -> u32 {
    // SAFETY: the value is one aligned word.
    match unsafe { QUIC_SERVERS.get(key) } {
        // SAFETY: a valid, aligned map value; volatile because the agent may give the id to another backend.
        Some(backend) => unsafe { core::ptr::read_volatile(backend) },
        None => 0,
    }
}

/// What the rule must know of a datagram.
#[inline(always)]
pub fn packet(ctx: &XdpContext, transport: u32) -> Packet {
    let found = quic_packet(ctx.ctx, transport);
    match (found >> 32) as u32 {
        INITIAL => Packet::Initial(found as u32),
        HANDSHAKE => Packet::Handshake,
        _ => Packet::Datagram,
    }
}

const INITIAL: u32 = Kind::Initial as u32;
const HANDSHAKE: u32 = Kind::Handshake as u32;
const OTHER: u32 = Kind::Other as u32;

/// The kind of a datagram, shifted left by 32, and the number of its id. Global as [`quic_way`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn quic_packet(ctx: *mut xdp_md, transport: u32) -> u64 {
    match head(&XdpContext::new(ctx), transport) {
        Some(head) => u64::from(head.kind as u32) << 32 | u64::from(head.number()),
        None => u64::from(OTHER) << 32,
    }
}

/// What a datagram begins with, if it is long enough to be QUIC.
#[inline(always)]
fn head(ctx: &XdpContext, transport: u32) -> Option<Head> {
    if transport > MAX_OFFSET {
        return None;
    }
    let datagram = at_anew::<[u8; UDP_LEN + LOOKED_AT]>(ctx, bounded(transport))?.cast::<u8>();
    // SAFETY: `at_anew` checked the bounds.
    let (length, words) = unsafe {
        (
            u16::from_be(word::<u16, 4>(datagram)),
            [
                word::<u64, UDP_LEN>(datagram),
                word::<u64, { UDP_LEN + 8 }>(datagram),
            ],
        )
    };
    (usize::from(length) >= UDP_LEN + LOOKED_AT).then(|| Head::read(words))
}
