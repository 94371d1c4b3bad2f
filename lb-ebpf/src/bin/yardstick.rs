//! What the load balancer is measured against, beside the floors: bare ways from a packet to its backend behind an
//! outer IPv4 header. None checks anything that the way does not need, nor can do anything else.
//!
//! - `sketch`: the service in a hash map, a slot of a table by the hash of the flow, backend, counters. What any balancer
//!   does that does not look flows up.
//! - `remembering`: the same, and each flow in an LRU hash map: looked up for every segment, put in for a SYN and for what
//!   is missing, with a time; counters of the service beside those of the backend. What Katran and others do, reduced to
//!   that.
//! - `reading`: as the sketch, but the backend stands in a line of memory that is found by the flow's hash alone, without a
//!   comparison: one line for each flow, or nearly. The least that remembering flows can cost: one access to so much memory.
//!
//! All backends are alike, and the outer header's checksum is computed for each packet.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// For the accesses that the language has no word for.
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![cfg_attr(
    not(target_arch = "bpf"),
    allow(dead_code, reason = "the entries exist for the BPF target only")
)]

#[path = "../bounds.rs"]
#[expect(dead_code, reason = "the load balancer uses more of it")]
mod bounds;
#[path = "../word.rs"]
mod word;

use aya_ebpf::Global;
use aya_ebpf::bindings::{BPF_ANY, xdp_action};
use aya_ebpf::btf_maps::{Array, HashMap, LruHashMap, PerCpuArray};
use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_xdp_adjust_head};
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;
use lb_common::checksum;
use lb_common::hash::{self, HashKey};
use lb_common::layout::{FlowKey, MMAPABLE, ServiceKey};

use self::bounds::at;
use self::word::{set_word, word};

/// The services by their key, with their index.
#[btf_map]
static YARD_SERVICES: HashMap<ServiceKey, u32, 1024> = HashMap::new();

const SLOTS: u32 = 65_536;
/// The table of the one service: backends by slot.
#[btf_map]
static YARD_SLOTS: Array<u64, { SLOTS as usize }> = Array::new();

/// What a packet to a backend begins with.
#[repr(C)]
struct Yard {
    ethernet: [u64; 2],
    outer: [u64; 3],
    seed: u64,
}

#[btf_map]
static YARD_BACKENDS: Array<Yard, 4096> = Array::new();

#[repr(C)]
struct Counts {
    packets: u64,
    bytes: u64,
}

#[btf_map]
static YARD_COUNTERS: PerCpuArray<Counts, 4096> = PerCpuArray::new();
#[btf_map]
static YARD_SERVICE_COUNTERS: PerCpuArray<Counts, 1024> = PerCpuArray::new();

/// Where a flow is, and since when.
#[repr(C)]
#[derive(Clone, Copy)]
struct Known {
    backend: u64,
    seen_ns: u64,
}

#[btf_map]
static YARD_FLOWS: LruHashMap<FlowKey, Known, 1024> = LruHashMap::new();

/// What a flow's hash leads to.
#[repr(C)]
struct Line {
    backend: u64,
    rest: [u64; 7],
}

/// One for each flow, or nearly. Memory-mapped, so that each is one line of the processor's cache.
#[btf_map]
static YARD_LINES: Array<Line, 1, { MMAPABLE as usize }> = Array::new();

/// The number of lines, a power of two, less one.
#[unsafe(no_mangle)]
static LINE_MASK: Global<u32> = Global::new(0);

/// Any constants take the same time.
const KEY: HashKey = HashKey([
    0x9E37_79B9_7F4A_7C15,
    0,
    0,
    0,
    0x8EBC_6AF0_9C88_C6E3,
    0x5899_65CC_7537_4CC3,
    0x1D8E_4E27_C47D_124F,
    0,
]);

const ETHERNET_LEN: usize = 14;
const IPV4_LEN: usize = 20;
/// Ethernet, IPv4 without options, and the part of a TCP or UDP header that both have.
const HEADERS: usize = ETHERNET_LEN + IPV4_LEN + 8;
const SYN: u8 = 2;

/// What the headers say.
struct Packet {
    key: ServiceKey,
    source: u32,
    ports: u32,
    total: u16,
    tos: u32,
}

/// `None`: not IPv4 without options.
#[inline(always)]
fn read(ctx: &XdpContext) -> Option<Packet> {
    let frame = at::<[u8; HEADERS]>(ctx, 0)?.cast::<u8>();
    // SAFETY: the bounds were checked.
    let (kind, first, protocol, source, last) = unsafe {
        (
            word::<u16, 12>(frame),
            word::<u32, 14>(frame),
            (word::<u16, 22>(frame) >> 8) as u8,
            word::<u32, 26>(frame),
            word::<u64, 30>(frame),
        )
    };
    if kind != 0x0800_u16.to_be() || first & 0xff != 0x45 {
        return None;
    }
    let ports = (last >> 32) as u32;
    Some(Packet {
        key: ServiceKey {
            address: [0, 0, 0, last as u32],
            port: (ports >> 16) as u16,
            protocol,
            family: 4,
        },
        source,
        ports,
        total: u16::from_be((first >> 16) as u16),
        tos: first & 0xff00,
    })
}

#[inline(always)]
fn slot(packet: &Packet) -> Option<u32> {
    let hash = hash::flow_v4(&KEY, packet.source, packet.ports);
    let slot = YARD_SLOTS.get_ptr(hash::slot(hash, SLOTS))?;
    // SAFETY: a valid, aligned map value.
    Some(unsafe { *slot } as u32)
}

#[inline(always)]
fn line(packet: &Packet) -> Option<u32> {
    let hash = hash::flow_v4(&KEY, packet.source, packet.ports);
    let line = YARD_LINES.get_ptr(hash & LINE_MASK.load())?;
    // SAFETY: a valid, aligned map value.
    Some(unsafe { (*line).backend } as u32)
}

#[inline(always)]
fn count(counts: Option<*mut Counts>, bytes: u64) {
    if let Some(counts) = counts {
        // SAFETY: a per-CPU value; nothing else runs on this CPU meanwhile.
        unsafe {
            (*counts).packets += 1;
            (*counts).bytes += bytes;
        }
    }
}

#[inline(always)]
fn send(ctx: &XdpContext, packet: &Packet, backend: u32) -> Option<u32> {
    let yard = YARD_BACKENDS.get(backend)?;
    count(YARD_COUNTERS.get_ptr_mut(backend), u64::from(packet.total));
    // SAFETY: a valid context; pointers into the packet are not used again.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -(IPV4_LEN as i32)) } != 0 {
        return None;
    }
    let frame = at::<[u8; HEADERS]>(ctx, 0)?.cast::<u8>();
    let total = packet.total + IPV4_LEN as u16;
    let check = checksum::ipv4_from_seed(yard.seed as u16, packet.tos as u16, total.to_be());
    let [a, b, c] = yard.outer;
    let [low, high] = yard.ethernet;
    // SAFETY: the bounds were checked. The end of the second word is written over by the third.
    unsafe {
        set_word::<u64, 0>(frame, low);
        set_word::<u64, 8>(frame, high);
        set_word::<u64, ETHERNET_LEN>(frame, a | u64::from(packet.tos | u32::from(total.to_be()) << 16));
        set_word::<u64, { ETHERNET_LEN + 8 }>(frame, b | u64::from(check) << 16);
        set_word::<u32, { ETHERNET_LEN + 16 }>(frame, c as u32);
    }
    Some(xdp_action::XDP_TX)
}

#[inline(always)]
fn service(packet: &Packet) -> Option<u32> {
    // SAFETY: the value is one aligned word that does not change.
    unsafe { YARD_SERVICES.get(packet.key) }.copied()
}

#[xdp(frags)]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the entry macro hands the context over"
)]
pub fn sketch(ctx: XdpContext) -> u32 {
    balance(&ctx, slot)
}

#[xdp(frags)]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the entry macro hands the context over"
)]
pub fn reading(ctx: XdpContext) -> u32 {
    balance(&ctx, line)
}

#[inline(always)]
fn balance(ctx: &XdpContext, backend: impl Fn(&Packet) -> Option<u32>) -> u32 {
    let way = || {
        let packet = read(ctx)?;
        service(&packet)?;
        send(ctx, &packet, backend(&packet)?)
    };
    way().unwrap_or(xdp_action::XDP_PASS)
}

#[xdp(frags)]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the entry macro hands the context over"
)]
pub fn remembering(ctx: XdpContext) -> u32 {
    remember(&ctx).unwrap_or(xdp_action::XDP_PASS)
}

#[inline(always)]
fn remember(ctx: &XdpContext) -> Option<u32> {
    let packet = read(ctx)?;
    let index = service(&packet)?;
    count(YARD_SERVICE_COUNTERS.get_ptr_mut(index), u64::from(packet.total));
    let key = FlowKey {
        source: [0, 0, 0, packet.source],
        ports: packet.ports,
        service: index,
    };
    // SAFETY: a helper without arguments.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let opens = packet.key.protocol == 6 && flags(ctx)? & SYN != 0;
    let known = if opens { None } else { YARD_FLOWS.get_ptr_mut(key) };
    let backend = if let Some(known) = known {
        // SAFETY: a valid, aligned map value.
        unsafe {
            (*known).seen_ns = now_ns;
            (*known).backend as u32
        }
    } else {
        let backend = slot(&packet)?;
        let known = Known {
            backend: u64::from(backend),
            seen_ns: now_ns,
        };
        // A table that is full forgets its oldest.
        let _ = YARD_FLOWS.insert(key, known, u64::from(BPF_ANY));
        backend
    };
    send(ctx, &packet, backend)
}

#[inline(always)]
fn flags(ctx: &XdpContext) -> Option<u8> {
    let flags = at::<u8>(ctx, ETHERNET_LEN + IPV4_LEN + 13)?;
    // SAFETY: the bounds were checked.
    Some(unsafe { *flags })
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
