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
use lb_common::checksum;
use lb_common::layout::{Backend, GUE_PORT, OUTER_LEN, UDP_LEN};
use lb_common::reason::Reason;

use super::ipip::{IPV4_LEN, grow, quarters};
use crate::packet::{self, Ip};
use crate::toobig;

/// Ethernet, outer IPv4 and UDP header.
type OuterV4 = [u16; 21];
/// Ethernet, outer IPv6 and UDP header.
type OuterV6 = [u16; 31];

/// What the outer headers add.
const OVERHEAD_V4: u32 = (IPV4_LEN + UDP_LEN) as u32;
const OVERHEAD_V6: u32 = (OUTER_LEN + UDP_LEN) as u32;

/// The source port: one of the range of ephemeral ports (RFC 6335 section 6), by the flow.
#[inline(always)]
fn source_port(hash: u32) -> u16 {
    (hash as u16 | 0xC000).to_be()
}

#[inline(always)]
pub fn encapsulate_v4(ctx: &XdpContext, ip: &Ip, hash: u32, backend: &Backend) -> Result<(), Reason> {
    if ip.length + OVERHEAD_V4 > u32::from(backend.mtu) {
        return Err(toobig::answer(ctx, ip, u32::from(backend.mtu) - OVERHEAD_V4));
    }
    let outer = grow::<OuterV4>(ctx, OVERHEAD_V4 as usize)?;
    let total = ((ip.length + OVERHEAD_V4) as u16).to_be();
    let udp = ((ip.length + UDP_LEN as u32) as u16).to_be();
    let tos = u16::from_ne_bytes([0, ip.traffic_class]);
    let check = checksum::ipv4_from_seed(backend.checksum_seed, tos, total);
    let [a, b, c, _, _] = backend.outer;
    let [e0, e1, e2, e3, e4, e5, e6] = backend.ethernet;
    let ([a0, _, a2, a3], [b0, _, b2, b3], [c0, c1, _, _]) = (quarters(a), quarters(b), quarters(c));
    let (from, to) = (source_port(hash), GUE_PORT.to_be());
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
        from,
        to,
        udp,
        0,
    ];
    // SAFETY: `grow` checked the bounds.
    unsafe { outer.write(header) };
    Ok(())
}

#[inline(always)]
pub fn encapsulate_v6(ctx: &XdpContext, ip: &Ip, hash: u32, backend: &Backend) -> Result<(), Reason> {
    if ip.length + OVERHEAD_V6 > u32::from(backend.mtu) {
        return Err(toobig::answer(ctx, ip, u32::from(backend.mtu) - OVERHEAD_V6));
    }
    let outer = grow::<OuterV6>(ctx, OVERHEAD_V6 as usize)?;
    let label = u64::from((hash as u16).to_be()) << 16;
    let class = u64::from((u16::from(ip.traffic_class) << 4).to_be());
    let udp = ((ip.length + UDP_LEN as u32) as u16).to_be();
    let [a, b, c, d, e] = backend.outer;
    let [a0, a1, a2, a3] = quarters(a | class | label | u64::from(udp) << 32 | u64::from(packet::UDP) << 48);
    let ([b0, b1, b2, b3], [c0, c1, c2, c3]) = (quarters(b), quarters(c));
    let ([d0, d1, d2, d3], [f0, f1, f2, f3]) = (quarters(d), quarters(e));
    let [e0, e1, e2, e3, e4, e5, e6] = backend.ethernet;
    let (from, to) = (source_port(hash), GUE_PORT.to_be());
    let header = [
        e0, e1, e2, e3, e4, e5, e6, a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3, f0, f1,
        f2, f3, from, to, udp, 0,
    ];
    // SAFETY: `grow` checked the bounds.
    unsafe { outer.write(header) };
    Ok(())
}
