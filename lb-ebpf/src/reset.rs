//! `on_down = "reset"`: a segment for a backend that is DOWN is answered with a reset in its name, so that the
//! client knows at once. The frame is written over and goes back where it came from.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::bpf_xdp_adjust_tail;
use aya_ebpf::programs::XdpContext;
use lb_common::checksum;
use lb_common::reason::Reason;
use lb_common::reset::{self, Asking, TCP_LEN};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::packet::{self, ETHERNET_LEN, Flow, Ip};

const HOP_LIMIT: u8 = 64;
const MAC_LEN: usize = 6;
/// The shortest Ethernet frame, without its check sequence (IEEE 802.3): not every adapter pads.
const SHORTEST: usize = 60;
const V4_LEN: usize = ETHERNET_LEN + Ipv4Hdr::LEN + TCP_LEN;
const V6_LEN: usize = ETHERNET_LEN + Ipv6Hdr::LEN + TCP_LEN;

/// Turns the frame into the answer. Nothing answers a reset.
#[inline(always)]
pub fn answer(ctx: &XdpContext, ip: &Ip, flow: &Flow) -> Result<Reason, Reason> {
    if rewrite(ctx.ctx, flow.transport, u32::from(ip.is_v4())) == 0 {
        return Err(Reason::NoBackend);
    }
    Ok(Reason::ResetSent)
}

/// 1 where the frame is an answer now.
///
/// A subprogram of its own, because it is rare and long. It reads the frame again: that costs less than handing
/// over what is known of it.
#[inline(never)]
fn rewrite(ctx: *mut xdp_md, transport: u32, v4: u32) -> u32 {
    let ctx = &XdpContext::new(ctx);
    let written = if v4 != 0 {
        rewrite_v4(ctx, transport)
    } else {
        rewrite_v6(ctx, transport)
    };
    u32::from(written.is_some())
}

#[inline(always)]
fn rewrite_v4(ctx: &XdpContext, transport: u32) -> Option<()> {
    let ip = packet::ipv4(ctx).ok()?;
    let tcp = tcp_answer(ctx, ip.length, transport, |ctx| swap(ctx, ETHERNET_LEN + 12, 4))?;
    let total = ((Ipv4Hdr::LEN + TCP_LEN) as u16).to_be();
    // Don't Fragment with identification 0: an atomic datagram (RFC 6864 section 4.1).
    let (version, fragment) = (u16::from_ne_bytes([0x45, 0]), u16::from_ne_bytes([0x40, 0]));
    let ttl = u16::from_ne_bytes([HOP_LIMIT, packet::TCP]);
    let fixed = u32::from(version) + u32::from(total) + u32::from(fragment) + u32::from(ttl);
    let check = !checksum::fold(fixed + tcp.addresses);
    put(ctx, ETHERNET_LEN, [version, total, 0, fragment, ttl, check])?;
    put(ctx, ETHERNET_LEN + Ipv4Hdr::LEN, tcp.header)?;
    swap(ctx, 0, MAC_LEN)?;
    if packet::frame_len(ctx) < SHORTEST as u32 {
        return cut(ctx, V4_LEN);
    }
    put(ctx, V4_LEN, [0_u16; (SHORTEST - V4_LEN) / 2])?;
    cut(ctx, SHORTEST)
}

#[inline(always)]
fn rewrite_v6(ctx: &XdpContext, transport: u32) -> Option<()> {
    let ip = packet::ipv6(ctx).ok()?;
    let tcp = tcp_answer(ctx, ip.length, transport, |ctx| swap(ctx, ETHERNET_LEN + 8, 16))?;
    let version = u16::from_ne_bytes([0x60, 0]);
    let next = u16::from_ne_bytes([packet::TCP, HOP_LIMIT]);
    put(ctx, ETHERNET_LEN, [version, 0, (TCP_LEN as u16).to_be(), next])?;
    put(ctx, ETHERNET_LEN + Ipv6Hdr::LEN, tcp.header)?;
    swap(ctx, 0, MAC_LEN)?;
    cut(ctx, V6_LEN)
}

struct TcpAnswer {
    header: [u16; TCP_LEN / 2],
    /// Sum of the two addresses.
    addresses: u32,
}

/// The TCP header of the answer; `None` for a reset, and where the header contradicts the packet. `swap` exchanges the
/// addresses and gives back their sum.
#[inline(always)]
fn tcp_answer(
    ctx: &XdpContext,
    length: u32,
    transport: u32,
    swap: impl FnOnce(&XdpContext) -> Option<u32>,
) -> Option<TcpAnswer> {
    let segment = packet::segment(ctx, transport)?;
    let headers = transport - ETHERNET_LEN as u32 + segment.header_len;
    if segment.rst() || headers > length || segment.header_len < TCP_LEN as u32 {
        return None;
    }
    let asking = Asking {
        sequence: segment.sequence,
        acknowledgment: segment.acknowledgment,
        flags: segment.flags,
        data: length - headers,
    };
    let addresses = swap(ctx)?;
    Some(TcpAnswer {
        header: reset::header(asking, segment.ports, addresses),
        addresses,
    })
}

/// Exchanges two neighbouring fields of `len` bytes each, and gives back the sum of their 16-bit words.
#[inline(always)]
fn swap(ctx: &XdpContext, start: usize, len: usize) -> Option<u32> {
    let mut sum = 0;
    for offset in (start..start + len).step_by(size_of::<u16>()) {
        let (one, other) = (
            packet::at::<u16>(ctx, offset)?,
            packet::at::<u16>(ctx, offset + len)?,
        );
        // SAFETY: `at` checked the bounds.
        unsafe {
            sum += u32::from(*one) + u32::from(*other);
            core::ptr::swap(one, other);
        }
    }
    Some(sum)
}

#[inline(always)]
fn put<T>(ctx: &XdpContext, offset: usize, value: T) -> Option<()> {
    let place = packet::at::<T>(ctx, offset)?;
    // SAFETY: `at` checked the bounds.
    unsafe { place.write(value) };
    Some(())
}

/// Cuts the frame to `len` bytes. Pointers into the packet are void.
#[inline(always)]
fn cut(ctx: &XdpContext, len: usize) -> Option<()> {
    let by = len as i32 - packet::frame_len(ctx) as i32;
    // SAFETY: a valid context; pointers into the packet are not used again.
    (unsafe { bpf_xdp_adjust_tail(ctx.ctx, by) } == 0).then_some(())
}
