//! `dsr-ipip`: the packet as it is behind an outer header, IPv4 in IPv4 (RFC 2003), IPv6 in IPv6 or IPv4 in
//! IPv6 (RFC 2473). The outer header is ready-made in the backend's record; what the packet adds are its
//! length and its traffic class, ECN bits included (RFC 6040, normal mode).

use aya_ebpf::helpers::bpf_xdp_adjust_head;
use aya_ebpf::programs::XdpContext;
use lb_common::checksum;
use lb_common::layout::{Backend, OUTER_LEN};
use lb_common::reason::Reason;

use crate::packet;
use crate::word::{set_word, word};

pub const IPV4_LEN: usize = 20;

/// Where an outer header begins.
pub(super) const OUTER: usize = packet::ETHERNET_LEN;

const NEXT_HEADER_IPV4: u32 = 4;
const NEXT_HEADER_IPV6: u32 = 41;

/// Puts Ethernet and outer IPv4 header before an IPv4 packet of `length` bytes. The packet is as it was where that
/// cannot be done. `hash` is that of the flow, which the source address follows where it `spreads` (`outer_sources`).
#[inline(always)]
pub fn encapsulate_v4(
    ctx: &XdpContext,
    length: u32,
    hash: u32,
    backend: &Backend,
    spreads: bool,
) -> Result<(), Reason> {
    put_v4::<IPV4_LEN, { OUTER + 2 * IPV4_LEN }>(ctx, length, hash, backend, spreads).map(|_| ())
}

/// Like [`encapsulate_v4`] with an outer IPv6 header, for either family.
#[inline(always)]
pub fn encapsulate_v6(
    ctx: &XdpContext,
    is_v4: bool,
    length: u32,
    hash: u32,
    backend: &Backend,
    spreads: bool,
) -> Result<(), Reason> {
    let next_header = if is_v4 { NEXT_HEADER_IPV4 } else { NEXT_HEADER_IPV6 };
    put_v6::<OUTER_LEN, { OUTER + OUTER_LEN + IPV4_LEN }>(
        ctx,
        is_v4,
        length,
        next_header,
        hash,
        backend,
        spreads,
    )
    .map(|_| ())
}

/// What stands behind an outer IP header.
pub(super) struct Behind {
    /// The start of the frame, which has the `WHOLE` bytes that were asked for.
    pub frame: *mut u8,
    /// How many bytes follow the outer IP header.
    pub length: u16,
}

/// Makes room for `ADDED` bytes and writes Ethernet and outer IPv4 header into it. What remains of it, and 20 bytes of
/// the packet, lie within `WHOLE` bytes.
#[inline(always)]
pub(super) fn put_v4<const ADDED: usize, const WHOLE: usize>(
    ctx: &XdpContext,
    length: u32,
    hash: u32,
    backend: &Backend,
    spreads: bool,
) -> Result<Behind, Reason> {
    const { assert!(WHOLE >= OUTER + ADDED + IPV4_LEN) };
    if length + ADDED as u32 > u32::from(backend.mtu) {
        return Err(Reason::TooBig);
    }
    let frame = grow::<ADDED, WHOLE>(ctx)?;
    // The packet's own header is read once more, here, because what is known before the helper call would have to be
    // kept over it.
    // SAFETY: `grow` checked the bounds.
    let first = unsafe { word::<u32, 0>(frame.add(OUTER + ADDED)) };
    let tos = first & 0xff00;
    let total = u16::from_be((first >> 16) as u16) + ADDED as u16;
    // Type of service, length and checksum are what the ready-made header has as 0. The end of the second word is
    // written over by the third.
    // SAFETY: as above.
    unsafe {
        set_word::<u64, 0>(frame, super::record::<1>(backend));
        let high = super::record::<2>(backend);
        set_word::<u64, 8>(frame, high);
        let head = super::record::<3>(backend) | u64::from(tos | u32::from(total.to_be()) << 16);
        set_word::<u64, OUTER>(frame, head);
        let spread = if spreads {
            hash as u16 & super::record::<7>(backend) as u16
        } else {
            0
        };
        // The ready-made source has zeros where these bits go, so they add to the sum as they are.
        let check = checksum::ipv4_with((high >> 48) as u16, tos as u16, total.to_be(), spread);
        let middle = super::record::<4>(backend) | u64::from(check) << 16 | u64::from(spread) << 48;
        set_word::<u64, { OUTER + 8 }>(frame, middle);
        set_word::<u32, { OUTER + 16 }>(frame, super::record::<5>(backend) as u32);
    }
    Ok(Behind {
        frame,
        length: total - IPV4_LEN as u16,
    })
}

/// Like [`put_v4`] with an outer IPv6 header, for a packet of either family.
#[inline(always)]
pub(super) fn put_v6<const ADDED: usize, const WHOLE: usize>(
    ctx: &XdpContext,
    is_v4: bool,
    length: u32,
    next_header: u32,
    hash: u32,
    backend: &Backend,
    spreads: bool,
) -> Result<Behind, Reason> {
    const { assert!(WHOLE >= OUTER + ADDED + IPV4_LEN) };
    if length + ADDED as u32 > u32::from(backend.mtu) {
        return Err(Reason::TooBig);
    }
    let frame = grow::<ADDED, WHOLE>(ctx)?;
    // SAFETY: `grow` checked the bounds.
    let first = unsafe { word::<u32, 0>(frame.add(OUTER + ADDED)) };
    // Traffic class as an IPv6 header has it, and length of the packet.
    let (class, length) = if is_v4 {
        let class = u32::from((u16::from((first >> 8) as u8) << 4).to_be());
        (class, u16::from_be((first >> 16) as u16))
    } else {
        // SAFETY: as above.
        let payload = unsafe { word::<u16, 4>(frame.add(OUTER + ADDED)) };
        (first & 0xf00f, u16::from_be(payload) + OUTER_LEN as u16)
    };
    let length = length + (ADDED - OUTER_LEN) as u16;
    // The flow label spreads flows over paths and receive queues (RFC 6438). 16 of its 20 bits are enough.
    let label = u32::from((hash as u16).to_be()) << 16;
    // SAFETY: `grow` checked the bounds. The end of the second word is written over by those behind it.
    unsafe {
        set_word::<u64, 0>(frame, super::record::<1>(backend));
        let high = super::record::<2>(backend);
        set_word::<u64, 8>(frame, high);
        let head = super::record::<3>(backend);
        set_word::<u32, OUTER>(frame, head as u32 | class | label);
        let lengths = (head >> 32) as u32 | u32::from(length.to_be()) | next_header << 16;
        set_word::<u32, { OUTER + 4 }>(frame, lengths);
        set_word::<u64, { OUTER + 8 }>(frame, super::record::<4>(backend));
        let spread = if spreads {
            u64::from(hash as u16) << 48 & high
        } else {
            0
        };
        set_word::<u64, { OUTER + 16 }>(frame, super::record::<5>(backend) | spread);
        set_word::<u64, { OUTER + 24 }>(frame, super::record::<6>(backend));
        set_word::<u64, { OUTER + 32 }>(frame, super::record::<7>(backend));
    }
    Ok(Behind { frame, length })
}

/// Makes room for `LEN` bytes before the packet; gives back the start of the frame, which has `WHOLE` bytes then.
#[inline(always)]
fn grow<const LEN: usize, const WHOLE: usize>(ctx: &XdpContext) -> Result<*mut u8, Reason> {
    // SAFETY: a valid context; pointers into the packet are not used again.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -(LEN as i32)) } != 0 {
        return Err(Reason::CannotSend);
    }
    packet::at::<[u8; WHOLE]>(ctx, 0)
        .map(<*mut [u8; WHOLE]>::cast)
        .ok_or(Reason::CannotSend)
}
