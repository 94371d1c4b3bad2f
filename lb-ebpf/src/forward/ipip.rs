//! `dsr-ipip`: the packet as it is behind an outer header, IPv4 in IPv4 (RFC 2003), IPv6 in IPv6 or IPv4 in
//! IPv6 (RFC 2473). The outer header is ready-made in the backend's record; what the packet adds are its
//! length and its traffic class, ECN bits included (RFC 6040, normal mode).

use aya_ebpf::helpers::bpf_xdp_adjust_head;
use aya_ebpf::programs::XdpContext;
use lb_common::checksum;
use lb_common::layout::{Backend, OUTER_LEN};
use lb_common::reason::Reason;

use crate::packet::{self, Ip};
use crate::toobig;

pub(super) const IPV4_LEN: usize = 20;

/// Ethernet and outer IPv4 header. Written as an array of words put together in registers: anything that LLVM
/// turns into a copy of memory becomes a loop over bytes.
type OuterV4 = [u16; 17];
/// Ethernet and outer IPv6 header.
type OuterV6 = [u16; 27];

const NEXT_HEADER_IPV4: u64 = 4;
const NEXT_HEADER_IPV6: u64 = 41;

#[inline(always)]
pub fn encapsulate_v4(ctx: &XdpContext, ip: &Ip, backend: &Backend) -> Result<(), Reason> {
    let total = ip.length + IPV4_LEN as u32;
    if total > u32::from(backend.mtu) {
        return Err(toobig::answer(ctx, ip, u32::from(backend.mtu) - IPV4_LEN as u32));
    }
    let outer = grow::<OuterV4>(ctx, IPV4_LEN)?;
    let total = (total as u16).to_be();
    let tos = u16::from_ne_bytes([0, ip.traffic_class]);
    let check = checksum::ipv4_from_seed(backend.checksum_seed, tos, total);
    let [a, b, c, _, _] = backend.outer;
    let [e0, e1, e2, e3, e4, e5, e6] = backend.ethernet;
    let ([a0, _, a2, a3], [b0, _, b2, b3], [c0, c1, _, _]) = (quarters(a), quarters(b), quarters(c));
    // Version and type of service, length and checksum are what the seed has as 0 or adds to.
    let header = [
        e0,
        e1,
        e2,
        e3,
        e4,
        e5,
        e6,
        a0 | tos,
        total,
        a2,
        a3,
        b0,
        check,
        b2,
        b3,
        c0,
        c1,
    ];
    // SAFETY: `grow` checked the bounds.
    unsafe { outer.write(header) };
    Ok(())
}

#[inline(always)]
pub fn encapsulate_v6(ctx: &XdpContext, ip: &Ip, hash: u32, backend: &Backend) -> Result<(), Reason> {
    if ip.length + OUTER_LEN as u32 > u32::from(backend.mtu) {
        return Err(toobig::answer(ctx, ip, u32::from(backend.mtu) - OUTER_LEN as u32));
    }
    let outer = grow::<OuterV6>(ctx, OUTER_LEN)?;
    let next_header = if ip.is_v4() {
        NEXT_HEADER_IPV4
    } else {
        NEXT_HEADER_IPV6
    };
    // The flow label spreads flows over paths and receive queues (RFC 6438). 16 of its 20 bits are enough.
    let label = u64::from((hash as u16).to_be()) << 16;
    let class = u64::from((u16::from(ip.traffic_class) << 4).to_be());
    let length = u64::from((ip.length as u16).to_be()) << 32;
    let [a, b, c, d, e] = backend.outer;
    let [a0, a1, a2, a3] = quarters(a | class | label | length | next_header << 48);
    let ([b0, b1, b2, b3], [c0, c1, c2, c3]) = (quarters(b), quarters(c));
    let ([d0, d1, d2, d3], [f0, f1, f2, f3]) = (quarters(d), quarters(e));
    let [e0, e1, e2, e3, e4, e5, e6] = backend.ethernet;
    let header = [
        e0, e1, e2, e3, e4, e5, e6, a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3, f0, f1,
        f2, f3,
    ];
    // SAFETY: `grow` checked the bounds.
    unsafe { outer.write(header) };
    Ok(())
}

/// A word of the ready-made header as the 16-bit words that stand in memory.
#[inline(always)]
pub(super) const fn quarters(word: u64) -> [u16; 4] {
    [
        word as u16,
        (word >> 16) as u16,
        (word >> 32) as u16,
        (word >> 48) as u16,
    ]
}

/// Makes room for `len` bytes before the packet and gives back where a `T` goes.
#[inline(always)]
pub(super) fn grow<T>(ctx: &XdpContext, len: usize) -> Result<*mut T, Reason> {
    // SAFETY: a valid context; pointers into the packet are not used again.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -(len as i32)) } != 0 {
        return Err(Reason::CannotSend);
    }
    packet::at(ctx, 0).ok_or(Reason::CannotSend)
}
