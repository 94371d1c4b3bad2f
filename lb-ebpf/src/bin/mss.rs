//! `xlb decap --mss`: lowers the maximum segment size in SYNs and SYN-ACKs that leave a backend with a service address as
//! their source, so that what clients send still fits once it has the outer header. A classifier on the way out (tc):
//! XDP sees only what comes in.
//!
//! The packet is read and written by helpers, which reach every part of it, and the checksum is changed by one that knows
//! packets whose checksum the card is to fill in: those have the sum of the pseudo-header there, which stays as it is.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(
    not(target_arch = "bpf"),
    allow(dead_code, reason = "the entry exists for the BPF target only")
)]

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{LpmTrie, PerCpuArray};
use aya_ebpf::macros::{btf_map, classifier};
use aya_ebpf::programs::TcContext;
use lb_common::mss::{self, FATES, Fate, MAX_PREFIXES};

/// The greatest MSS that packets out of these addresses may have, in the machine's byte order.
#[btf_map]
static MSS_V4: LpmTrie<[u8; 4], u32, { MAX_PREFIXES as usize }> = LpmTrie::new();
#[btf_map]
static MSS_V6: LpmTrie<[u8; 16], u32, { MAX_PREFIXES as usize }> = LpmTrie::new();

/// Packets by [`Fate`].
#[btf_map]
static MSS_COUNTS: PerCpuArray<u64, { FATES as usize }> = PerCpuArray::new();

const ETHERNET_LEN: usize = 14;
const TAG_LEN: usize = 4;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86DD;
const IPV6_LEN: usize = 40;
const TCP: u8 = 6;
const TCP_LEN: usize = 20;
const TCP_CHECKSUM: usize = 16;
const SYN: u8 = 1 << 1;

/// For `bpf_l4_csum_replace`: a word of two bytes changed that is not of the pseudo-header.
const WORD_OF_TWO: u64 = 2;

#[classifier]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the entry macro hands the context over"
)]
pub fn xlb_mss(ctx: TcContext) -> i32 {
    if let Some(fate) = lower(&ctx)
        && let Some(counter) = MSS_COUNTS.get_ptr_mut(fate as u32)
    {
        // SAFETY: a per-CPU value; nothing else runs on this CPU meanwhile.
        unsafe { *counter += 1 };
    }
    // Whoever else has a say has it.
    TC_ACT_UNSPEC
}

/// `None`: it is none of our packets.
#[inline(always)]
fn lower(ctx: &TcContext) -> Option<Fate> {
    let ethertype = u16::from_be(load(ctx, ETHERNET_LEN - 2)?);
    let (ethertype, ip) = if ethertype == ETHERTYPE_VLAN {
        let ip = ETHERNET_LEN + TAG_LEN;
        (u16::from_be(load(ctx, ip - 2)?), ip)
    } else {
        (ethertype, ETHERNET_LEN)
    };
    let tcp = match ethertype {
        ETHERTYPE_IPV4 => behind_v4(ctx, ip)?,
        ETHERTYPE_IPV6 => behind_v6(ctx, ip)?,
        _ => return None,
    };
    let [offset, flags]: [u8; 2] = load(ctx, tcp + 12)?;
    if flags & SYN == 0 {
        return None;
    }
    // By the source address, if anything is said of it.
    let most = if ethertype == ETHERTYPE_IPV4 {
        *MSS_V4.get(&Key::new(32, load(ctx, ip + 12)?))?
    } else {
        *MSS_V6.get(&Key::new(128, load(ctx, ip + 8)?))?
    };
    let end = tcp + usize::from(offset >> 4) * 4;
    let read = |at: u32| load(ctx, at as usize);
    let Some(at) = mss::find((tcp + TCP_LEN) as u32, end as u32, read) else {
        return Some(Fate::Kept);
    };
    let at = at as usize;
    Some(put(ctx, tcp, at, most).unwrap_or(Fate::Unreadable))
}

/// Writes the MSS at `at` where it is more than `most`.
#[inline(always)]
fn put(ctx: &TcContext, tcp: usize, at: usize, most: u32) -> Option<Fate> {
    let before: u16 = load(ctx, at)?;
    if u32::from(u16::from_be(before)) <= most {
        return Some(Fate::Kept);
    }
    let after = (most as u16).to_be();
    ctx.store(at, &after, 0).ok()?;
    // At an odd place its bytes are in two words of the sum, each in the half that the other would have
    // (RFC 1071 section 2 (B)).
    let odd = !(at - tcp).is_multiple_of(2);
    let turn = |word: u16| u64::from(if odd { word.swap_bytes() } else { word });
    ctx.l4_csum_replace(tcp + TCP_CHECKSUM, turn(before), turn(after), WORD_OF_TWO)
        .ok()?;
    Some(Fate::Lowered)
}

/// Where the TCP header is. `None`: it is not the first part of a TCP segment.
#[inline(always)]
fn behind_v4(ctx: &TcContext, ip: usize) -> Option<usize> {
    let [vihl, _, _, _, _, _, high, low, _, protocol]: [u8; 10] = load(ctx, ip)?;
    let offset = u16::from_be_bytes([high, low]) & 0x1fff;
    (protocol == TCP && offset == 0).then_some(ip + usize::from(vihl & 0xf) * 4)
}

/// As [`behind_v4`]. What a backend itself sends has no extension headers before a SYN.
#[inline(always)]
fn behind_v6(ctx: &TcContext, ip: usize) -> Option<usize> {
    let next_header: u8 = load(ctx, ip + 6)?;
    (next_header == TCP).then_some(ip + IPV6_LEN)
}

#[inline(always)]
fn load<T>(ctx: &TcContext, offset: usize) -> Option<T> {
    ctx.load(offset).ok()
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
