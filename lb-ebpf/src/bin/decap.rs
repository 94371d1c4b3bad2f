//! `xlb decap`: takes the outer header off packets that come from the load balancers named, on a backend
//! that has no tunnel device. Everything else is counted and left alone.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// For the one instruction that the language has no word for, in `bounds`.
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![cfg_attr(
    not(target_arch = "bpf"),
    allow(dead_code, reason = "the entry exists for the BPF target only")
)]

#[path = "../bounds.rs"]
mod bounds;

use aya_ebpf::Global;
use aya_ebpf::bindings::xdp_action;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{LpmTrie, PerCpuArray};
use aya_ebpf::helpers::bpf_xdp_adjust_head;
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;
use bounds::{at, linear_len, whole_len};
use lb_common::checksum;
use lb_common::decap::{MAX_PREFIXES, OUTCOMES, Outcome};
use lb_common::ecn::{self, ECN};
use lb_common::layout::{GUE_PORT, UDP_LEN};
use network_types::eth::EthHdr;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

/// Prefixes of the load balancers' addresses.
#[btf_map]
static FROM_V4: LpmTrie<[u8; 4], u32, { MAX_PREFIXES as usize }> = LpmTrie::new();
#[btf_map]
static FROM_V6: LpmTrie<[u8; 16], u32, { MAX_PREFIXES as usize }> = LpmTrie::new();

/// Packets by [`Outcome`].
#[btf_map]
static DECAP_COUNTS: PerCpuArray<u64, { OUTCOMES as usize }> = PerCpuArray::new();

/// Not 0: frames may have several buffers, and the kernel tells how long they are.
#[unsafe(no_mangle)]
static FRAGS: Global<u8> = Global::new(0);

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86DD;
const IPV4_IN: u8 = 4;
const IPV6_IN: u8 = 41;
const UDP: u8 = 17;

#[xdp(frags)]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the entry macro hands the context over"
)]
pub fn decap(ctx: XdpContext) -> u32 {
    let outcome = match strip(&ctx) {
        Ok(()) => Outcome::Decapsulated,
        Err(outcome) => outcome,
    };
    if let Some(counter) = DECAP_COUNTS.get_ptr_mut(outcome as u32) {
        // SAFETY: a per-CPU value; nothing else runs on this CPU meanwhile.
        unsafe { *counter += 1 };
    }
    if matches!(outcome, Outcome::Failed | Outcome::Congestion) {
        xdp_action::XDP_DROP
    } else {
        xdp_action::XDP_PASS
    }
}

/// What the outer header says, checked before the packet is touched.
struct Tunnel {
    /// Bytes of the outer headers.
    len: u32,
    /// Length of the inner packet by the outer header.
    inner_len: u32,
    /// Type of the inner packet.
    inner: u16,
    /// ECN field of the outer header.
    ecn: u8,
}

/// Gives the inner packet what a router marked the outer header with.
#[inline(always)]
fn mark(header: &mut Ipv4Hdr, outer: u8) -> Result<(), Outcome> {
    // The field is the low end of the second byte in IPv4, the high end in IPv6.
    let is_v4 = header.vihl >> 4 == 4;
    let shift = if is_v4 { 0 } else { 4 };
    let inner = header.tos >> shift & ECN;
    if inner == outer {
        return Ok(());
    }
    let marked = ecn::decapsulated(inner, outer).ok_or(Outcome::Congestion)?;
    let before = u16::from_ne_bytes([header.vihl, header.tos]);
    header.tos = header.tos & !(ECN << shift) | marked << shift;
    if is_v4 {
        let after = u16::from_ne_bytes([header.vihl, header.tos]);
        let check = checksum::update(u16::from_ne_bytes(header.check), before, after);
        header.check = check.to_ne_bytes();
    }
    Ok(())
}

/// Length of the frame in bytes.
#[inline(always)]
fn frame_len(ctx: &XdpContext) -> u32 {
    if FRAGS.load() == 0 {
        linear_len(ctx)
    } else {
        whole_len(ctx)
    }
}

#[inline(always)]
fn strip(ctx: &XdpContext) -> Result<(), Outcome> {
    let ethernet = at::<EthHdr>(ctx, 0).ok_or(Outcome::NotTunneled)?;
    // SAFETY: `at` checked the bounds; a packed struct is copied.
    let mut ethernet = unsafe { ethernet.read() };
    let Tunnel {
        len,
        inner_len,
        inner,
        ecn,
    } = match u16::from_be(ethernet.ether_type) {
        ETHERTYPE_IPV4 => outer_v4(ctx)?,
        ETHERTYPE_IPV6 => outer_v6(ctx)?,
        _ => return Err(Outcome::NotTunneled),
    };
    if EthHdr::LEN as u32 + len + inner_len > frame_len(ctx) {
        return Err(Outcome::Malformed);
    }
    let (version, least) = match inner {
        ETHERTYPE_IPV4 => (4, Ipv4Hdr::LEN as u32),
        _ => (6, Ipv6Hdr::LEN as u32),
    };
    // The shorter of the two headers; the version is in the same place in both.
    let header = at::<Ipv4Hdr>(ctx, EthHdr::LEN + len as usize).ok_or(Outcome::Malformed)?;
    // SAFETY: `at` checked the bounds.
    let header = unsafe { &mut *header };
    if header.vihl >> 4 != version || inner_len < least {
        return Err(Outcome::Malformed);
    }
    mark(header, ecn)?;
    ethernet.ether_type = inner.to_be();
    // SAFETY: a valid context; pointers into the packet are not used again.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, len as i32) } != 0 {
        return Err(Outcome::Malformed);
    }
    let start = at::<EthHdr>(ctx, 0).ok_or(Outcome::Failed)?;
    // SAFETY: `at` checked the bounds; the struct is packed.
    unsafe { start.write(ethernet) };
    Ok(())
}

#[inline(always)]
fn outer_v4(ctx: &XdpContext) -> Result<Tunnel, Outcome> {
    let header = at::<Ipv4Hdr>(ctx, EthHdr::LEN).ok_or(Outcome::NotTunneled)?;
    // SAFETY: `at` checked the bounds; the fields have alignment 1.
    let header = unsafe { &*header };
    let ecn = header.tos & ECN;
    let len = u32::from(header.vihl & 0xf) * 4;
    let inner = match header.proto {
        IPV4_IN => ETHERTYPE_IPV4,
        IPV6_IN => ETHERTYPE_IPV6,
        UDP => gue(ctx, len)?,
        _ => return Err(Outcome::NotTunneled),
    };
    if FROM_V4.get(&Key::new(32, header.src_addr)).is_none() {
        return Err(Outcome::NotFromUs);
    }
    let total = u32::from(u16::from_be_bytes(header.tot_len));
    let fragment = u16::from_be_bytes(header.frags) & 0x3fff != 0;
    if header.vihl >> 4 != 4 || len < Ipv4Hdr::LEN as u32 || total < len || fragment {
        return Err(Outcome::Malformed);
    }
    if header.proto == UDP {
        return behind_udp(ctx, len, total - len, ecn);
    }
    Ok(Tunnel {
        len,
        inner_len: total - len,
        inner,
        ecn,
    })
}

#[inline(always)]
fn outer_v6(ctx: &XdpContext) -> Result<Tunnel, Outcome> {
    let header = at::<Ipv6Hdr>(ctx, EthHdr::LEN).ok_or(Outcome::NotTunneled)?;
    // SAFETY: `at` checked the bounds; the fields have alignment 1.
    let header = unsafe { &*header };
    let [_, class, ..] = header.vcf;
    let ecn = class >> 4 & ECN;
    let inner = match header.next_hdr {
        IPV4_IN => ETHERTYPE_IPV4,
        IPV6_IN => ETHERTYPE_IPV6,
        UDP => gue(ctx, Ipv6Hdr::LEN as u32)?,
        _ => return Err(Outcome::NotTunneled),
    };
    if FROM_V6.get(&Key::new(128, header.src_addr)).is_none() {
        return Err(Outcome::NotFromUs);
    }
    if header.next_hdr == UDP {
        let payload = u32::from(u16::from_be_bytes(header.payload_len));
        return behind_udp(ctx, Ipv6Hdr::LEN as u32, payload, ecn);
    }
    Ok(Tunnel {
        len: Ipv6Hdr::LEN as u32,
        inner_len: u32::from(u16::from_be_bytes(header.payload_len)),
        inner,
        ecn,
    })
}

/// A UDP header, and the first bytes of what it carries.
#[repr(C)]
#[derive(Clone, Copy)]
struct Udp {
    ports: [u16; 2],
    length: u16,
    checksum: u16,
    first: u16,
}

/// UDP to the port of GUE; what it carries is looked at by [`behind_udp`]. `len` is that of the IP header.
#[inline(always)]
fn gue(ctx: &XdpContext, len: u32) -> Result<u16, Outcome> {
    let udp = at::<Udp>(ctx, EthHdr::LEN + len as usize).ok_or(Outcome::NotTunneled)?;
    // SAFETY: `at` checked the bounds.
    let [_, to] = unsafe { (*udp).ports };
    if to == GUE_PORT.to_be() {
        Ok(0)
    } else {
        Err(Outcome::NotTunneled)
    }
}

/// What begins right behind the UDP header: variant 1 of GUE. `payload` is the length of what the IP header carries.
/// The UDP checksum is not looked at: what is inside has its own.
#[inline(always)]
fn behind_udp(ctx: &XdpContext, len: u32, payload: u32, ecn: u8) -> Result<Tunnel, Outcome> {
    let udp = at::<Udp>(ctx, EthHdr::LEN + len as usize).ok_or(Outcome::Malformed)?;
    // SAFETY: `at` checked the bounds.
    let udp = unsafe { udp.read() };
    if u32::from(u16::from_be(udp.length)) != payload || payload < UDP_LEN as u32 {
        return Err(Outcome::Malformed);
    }
    let [version, _] = udp.first.to_ne_bytes();
    let inner = match version >> 4 {
        4 => ETHERTYPE_IPV4,
        6 => ETHERTYPE_IPV6,
        _ => return Err(Outcome::Malformed),
    };
    Ok(Tunnel {
        len: len + UDP_LEN as u32,
        inner_len: payload - UDP_LEN as u32,
        inner,
        ecn,
    })
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
