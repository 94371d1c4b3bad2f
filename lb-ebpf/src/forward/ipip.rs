//! `dsr-ipip`: the packet as it is behind an outer header, IPv4 in IPv4 (RFC 2003), IPv6 in IPv6 or IPv4 in
//! IPv6 (RFC 2473). The outer header is ready-made in the backend's record; what the packet adds are its
//! length and its traffic class, ECN bits included (RFC 6040, normal mode).

use aya_ebpf::helpers::bpf_xdp_adjust_head;
use aya_ebpf::programs::XdpContext;
use lb_common::checksum;
use lb_common::layout::{Backend, OUTER_LEN};
use lb_common::reason::Reason;

use crate::packet::{self, Ip};

const IPV4_LEN: usize = 20;

#[repr(C, packed)]
struct OuterV4 {
    ethernet: [u16; 7],
    ip: [u16; IPV4_LEN / 2],
}

#[repr(C, packed)]
struct OuterV6 {
    ethernet: [u16; 7],
    ip: [u64; OUTER_LEN / 8],
}

const NEXT_HEADER_IPV4: u64 = 4;
const NEXT_HEADER_IPV6: u64 = 41;

#[inline(always)]
pub fn encapsulate_v4(ctx: &XdpContext, ip: &Ip, backend: &Backend) -> Result<(), Reason> {
    let total = ip.length + IPV4_LEN as u32;
    if total > u32::from(backend.mtu) {
        return Err(Reason::TooBig);
    }
    let outer = grow::<OuterV4>(ctx, IPV4_LEN)?;
    let total = (total as u16).to_be();
    let tos = u16::from_ne_bytes([0, ip.traffic_class]);
    let check = checksum::ipv4_from_seed(backend.checksum_seed, tos, total);
    let [a, b, c, _, _] = backend.outer;
    // Words 0 (version and type of service), 1 (length) and 5 (checksum) are 0 in the seed where we add.
    let header = [
        a as u16 | tos,
        total,
        (a >> 32) as u16,
        (a >> 48) as u16,
        b as u16,
        check,
        (b >> 32) as u16,
        (b >> 48) as u16,
        c as u16,
        (c >> 16) as u16,
    ];
    // SAFETY: `grow` checked the bounds; the struct is packed.
    unsafe {
        outer.write(OuterV4 {
            ethernet: backend.ethernet,
            ip: header,
        })
    };
    Ok(())
}

#[inline(always)]
pub fn encapsulate_v6(ctx: &XdpContext, ip: &Ip, hash: u32, backend: &Backend) -> Result<(), Reason> {
    if ip.length + OUTER_LEN as u32 > u32::from(backend.mtu) {
        return Err(Reason::TooBig);
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
    let [first, rest @ ..] = backend.outer;
    let first = first | class | label | length | next_header << 48;
    let [b, c, d, e] = rest;
    // SAFETY: `grow` checked the bounds; the struct is packed.
    unsafe {
        outer.write(OuterV6 {
            ethernet: backend.ethernet,
            ip: [first, b, c, d, e],
        })
    };
    Ok(())
}

/// Makes room for `len` bytes before the packet and gives back where a `T` goes.
#[inline(always)]
fn grow<T>(ctx: &XdpContext, len: usize) -> Result<*mut T, Reason> {
    // SAFETY: a valid context; pointers into the packet are not used again.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -(len as i32)) } != 0 {
        return Err(Reason::CannotSend);
    }
    packet::at(ctx, 0).ok_or(Reason::CannotSend)
}
