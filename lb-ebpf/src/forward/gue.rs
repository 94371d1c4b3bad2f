//! `dsr-gue`: the packet as it is behind an outer IP and UDP header (Generic UDP Encapsulation, variant 1 of
//! draft-ietf-intarea-gue: the packet begins right after the UDP header, its version says which IP it is).
//!
//! Adapters and switches spread UDP by its ports: the source port carries bits of the flow's hash, so that packets of
//! one flow stay together and those of many flows use all receive queues of a backend, which IP-in-IP from one address
//! does not reach.
//!
//! The UDP checksum is 0, none. Over IPv4 that is plain UDP; over IPv6 RFC 6935 allows it to tunnels under the rules of
//! RFC 6936, which hold here: what is inside has checksums of its own over all that matters (TCP and UDP with their
//! pseudo-header, which an outer header gone wrong does not touch), a backend takes the outer header off only of packets
//! from load balancers it knows, and nothing in between keeps state of it. A checksum over the whole packet would cost
//! more than all the rest of its way.

use aya_ebpf::programs::XdpContext;
use lb_common::layout::{Backend, GUE_PORT, OUTER_LEN, UDP_LEN};
use lb_common::reason::Reason;

use super::ipip::{Behind, IPV4_LEN, OUTER, put_v4, put_v6};
use crate::packet;
use crate::word::set_word;

/// What the outer headers add.
pub const OVERHEAD_V4: usize = IPV4_LEN + UDP_LEN;
pub const OVERHEAD_V6: usize = OUTER_LEN + UDP_LEN;

/// The source port: one of the range of ephemeral ports (RFC 6335 section 6), by the flow.
#[inline(always)]
fn source_port(hash: u32) -> u16 {
    (hash as u16 | 0xC000).to_be()
}

/// The UDP header before `length - 8` bytes, without checksum.
#[inline(always)]
fn udp(hash: u32, length: u16) -> u64 {
    u64::from(source_port(hash)) | u64::from(GUE_PORT.to_be()) << 16 | u64::from(length.to_be()) << 32
}

/// Puts Ethernet, outer IPv4 and UDP header before an IPv4 packet of `length` bytes. The packet is as it was where that
/// cannot be done. `hash` is that of the flow.
#[inline(always)]
pub fn encapsulate_v4(
    ctx: &XdpContext,
    length: u32,
    hash: u32,
    backend: &Backend,
    spreads: bool,
) -> Result<(), Reason> {
    let Behind { frame, length } =
        put_v4::<OVERHEAD_V4, { OUTER + OVERHEAD_V4 + IPV4_LEN }>(ctx, length, hash, backend, spreads)?;
    // SAFETY: `put_v4` checked the bounds.
    unsafe { set_word::<u64, { OUTER + IPV4_LEN }>(frame, udp(hash, length)) };
    Ok(())
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
    let next_header = u32::from(packet::UDP);
    let Behind { frame, length } = put_v6::<OVERHEAD_V6, { OUTER + OVERHEAD_V6 + IPV4_LEN }>(
        ctx,
        is_v4,
        length,
        next_header,
        hash,
        backend,
        spreads,
    )?;
    // SAFETY: `put_v6` checked the bounds.
    unsafe { set_word::<u64, { OUTER + OUTER_LEN }>(frame, udp(hash, length)) };
    Ok(())
}
