//! What a flow costs in the cache of `tracking = "full"`, and in the kernel's own LRU hash maps: programs that make up
//! the next of so many flows, look it up, and put it in where it is missing.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// For the accesses that the language has no word for.
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![cfg_attr(
    not(target_arch = "bpf"),
    allow(dead_code, reason = "the entries exist for the BPF target only")
)]

#[path = "../cache.rs"]
#[expect(dead_code, reason = "the load balancer uses more of it")]
mod cache;
#[path = "../clock.rs"]
mod clock;

use aya_ebpf::Global;
use aya_ebpf::bindings::{BPF_ANY, BPF_F_NO_COMMON_LRU, BPF_F_NO_PREALLOC, xdp_action};
use aya_ebpf::btf_maps::{Array, HashMap, LruHashMap};
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;
use lb_common::cache::{FlowWord, identity};
use lb_common::hash::{self, HashKey, KEY_WORDS};
use lb_common::layout::FlowKey;

use clock::coarse_ns;

/// How many flows take turns.
#[unsafe(no_mangle)]
static FLOWS: Global<u32> = Global::new(1);

#[unsafe(no_mangle)]
static BENCH_KEY: HashKey = HashKey([0; KEY_WORDS]);

/// Which flow is next.
#[btf_map]
static NEXT: Array<u64, 1> = Array::new();

/// What Katran keeps for a flow: backend and time.
#[repr(C)]
#[derive(Clone, Copy)]
struct Known {
    backend: u64,
    seen_ns: u64,
}

/// The kernel's LRU hash, with lists of each CPU's own.
#[btf_map]
static LRU_OF_CPU: LruHashMap<FlowKey, Known, 1024, { BPF_F_NO_COMMON_LRU as usize }> = LruHashMap::new();

/// The kernel's LRU hash, with lists for all CPUs together.
#[btf_map]
static LRU: LruHashMap<FlowKey, Known, 1024> = LruHashMap::new();

/// The kernel's hash map with all of its memory taken at the start.
#[btf_map]
static HASH: HashMap<FlowKey, Known, 1024> = HashMap::new();

/// The same with memory taken as flows come, as the flow table has it.
#[btf_map]
static HASH_LATER: HashMap<FlowKey, Known, 1024, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// The same flow stands in memory as words of 64 bits.
#[repr(C, align(8))]
struct Aligned(FlowKey);

/// The next flow: its number is spread over the client's addresses by an odd factor, as unlike as real ones.
#[inline(always)]
fn next() -> Option<Aligned> {
    let place = NEXT.get_ptr_mut(0)?;
    // SAFETY: a valid, aligned map value; one CPU runs the measurement.
    let number = unsafe {
        let number = *place;
        *place = number + 1;
        number as u32 & (FLOWS.load() - 1)
    };
    Some(Aligned(FlowKey {
        source: [0, 0, 0, number.wrapping_mul(2_654_435_761)],
        ports: 0x5000_409c,
        service: 1,
    }))
}

#[inline(always)]
fn key() -> HashKey {
    let word = |index: usize| {
        // SAFETY: a valid, aligned reference; volatile because the loader writes the value after compilation.
        unsafe { core::ptr::read_volatile(&raw const BENCH_KEY.0[index]) }
    };
    HashKey([word(0), 0, 0, 0, word(4), word(5), word(6), 0])
}

#[inline(always)]
fn hashes(flow: &FlowKey) -> u64 {
    let (first, mut second) = (key(), key());
    // Other constants, as good for the time it takes.
    for word in &mut second.0 {
        *word = word.rotate_left(17);
    }
    identity(
        hash::flow_v4(&first, flow.source[3], flow.ports),
        hash::flow_v4(&second, flow.source[3], flow.ports),
        flow.service,
    )
}

/// What all the others do too: the next flow and its hash.
#[xdp]
pub fn base(_ctx: XdpContext) -> u32 {
    match next() {
        Some(Aligned(flow)) if hashes(&flow) == 0 => xdp_action::XDP_DROP,
        _ => xdp_action::XDP_PASS,
    }
}

/// `XDP_TX` where the flow was known.
#[xdp]
pub fn cached(_ctx: XdpContext) -> u32 {
    let Some(Aligned(flow)) = next() else {
        return xdp_action::XDP_ABORTED;
    };
    let identity = hashes(&flow);
    let Some(line) = cache::line(identity) else {
        return xdp_action::XDP_ABORTED;
    };
    let now_ns = coarse_ns();
    if let Some((way, _)) = cache::find_live(line, identity) {
        cache::touch(way, now_ns);
        return xdp_action::XDP_TX;
    }
    cache::insert(line, identity, FlowWord::live(identity, 1), now_ns, 0);
    xdp_action::XDP_PASS
}

macro_rules! churn {
    ($name:ident, $map:ident) => {
        /// Puts the next flow in and takes it out again. `XDP_TX` where both went well.
        #[xdp]
        pub fn $name(_ctx: XdpContext) -> u32 {
            let Some(Aligned(flow)) = &next() else {
                return xdp_action::XDP_ABORTED;
            };
            let known = &Known {
                backend: 1,
                seen_ns: 1,
            };
            match $map
                .insert(flow, known, u64::from(BPF_ANY))
                .and_then(|()| $map.remove(flow))
            {
                Ok(()) => xdp_action::XDP_TX,
                Err(_) => xdp_action::XDP_PASS,
            }
        }
    };
}

churn!(churn, HASH);
churn!(churn_later, HASH_LATER);

macro_rules! lru {
    ($name:ident, $map:ident) => {
        /// `XDP_TX` where the flow was known.
        #[xdp]
        pub fn $name(_ctx: XdpContext) -> u32 {
            let Some(Aligned(flow)) = &next() else {
                return xdp_action::XDP_ABORTED;
            };
            // The slot of the flow needs its hash whatever table it is in.
            if hashes(flow) == 0 {
                return xdp_action::XDP_DROP;
            }
            let now_ns = coarse_ns();
            if let Some(known) = $map.get_ptr_mut(flow) {
                // SAFETY: a valid, aligned map value.
                unsafe {
                    if now_ns - (*known).seen_ns > lb_common::cache::TOUCH_NS {
                        (*known).seen_ns = now_ns;
                    }
                }
                return xdp_action::XDP_TX;
            }
            let known = &Known {
                backend: 1,
                seen_ns: now_ns,
            };
            let _ = $map.insert(flow, known, u64::from(BPF_ANY));
            xdp_action::XDP_PASS
        }
    };
}

lru!(lru_of_cpu, LRU_OF_CPU);
lru!(lru, LRU);
// They forget nothing: what does not fit is refused.
lru!(hash_at_start, HASH);
lru!(hash_later, HASH_LATER);

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
