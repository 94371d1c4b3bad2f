//! `announce = "l2"`: ARP requests (RFC 826) and neighbour solicitations (RFC 4861) for service addresses
//! are answered here with the MAC of the interface they came in by. Everything else of ARP and neighbour
//! discovery is the kernel's.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::btf_maps::HashMap;
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;
use lb_common::checksum;
use lb_common::layout::{FAMILY_V4, Interface, MAX_INTERFACES, ServiceKey};
use lb_common::reason::Reason;
use network_types::arp::ArpHdr;
use network_types::eth::EthHdr;
use network_types::ip::Ipv6Hdr;

use crate::constants::ANNOUNCE;
use crate::packet;
use crate::service;

/// The interfaces that we answer on, by their index.
#[btf_map]
static INTERFACES: HashMap<u32, Interface, { MAX_INTERFACES as usize }> = HashMap::new();

#[repr(C, packed)]
struct ArpFrame {
    ethernet: EthHdr,
    arp: ArpHdr,
}

const ARP_REQUEST: u16 = 1;
const ARP_REPLY: u16 = 2;

/// Answers an ARP request for a service address.
#[inline(always)]
pub fn arp(ctx: &XdpContext) -> Result<Reason, Reason> {
    if ANNOUNCE.load() == 0 {
        return Err(Reason::NotIp);
    }
    let frame = packet::at::<ArpFrame>(ctx, 0).ok_or(Reason::NotIp)?;
    // SAFETY: `at` checked the bounds; the struct is packed.
    let frame = unsafe { &mut *frame };
    let arp = &mut frame.arp;
    let ethernet_and_ipv4 = arp.htype == 1_u16.to_be_bytes()
        && arp.ptype == 0x0800_u16.to_be_bytes()
        && arp.hlen == 6
        && arp.plen == 4;
    if !ethernet_and_ipv4 || arp.oper != ARP_REQUEST.to_be_bytes() {
        return Err(Reason::NotIp);
    }
    let target = ServiceKey {
        address: [0, 0, 0, u32::from_ne_bytes(arp.tpa)],
        port: 0,
        protocol: 0,
        family: FAMILY_V4,
    };
    if !service::has_address(target) {
        return Err(Reason::NotIp);
    }
    let mac = own_mac(ctx).ok_or(Reason::NotIp)?;
    let (asker, address) = (arp.sha, arp.tpa);
    arp.oper = ARP_REPLY.to_be_bytes();
    arp.tha = asker;
    arp.tpa = arp.spa;
    arp.sha = mac;
    arp.spa = address;
    frame.ethernet.dst_addr = asker;
    frame.ethernet.src_addr = mac;
    Ok(Reason::ArpReply)
}

/// A neighbour solicitation, or advertisement, with one link-layer address option (RFC 4861, 4.3 and 4.4).
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Neighbor {
    kind: u8,
    code: u8,
    checksum: [u8; 2],
    flags: [u8; 4],
    target: [u8; 16],
}

#[repr(C, packed)]
#[derive(Clone, Copy)]
struct LinkLayerOption {
    kind: u8,
    length: u8,
    mac: [u8; 6],
}

const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const SOURCE_LINK_LAYER: u8 = 1;
const TARGET_LINK_LAYER: u8 = 2;
const SOLICITED_AND_OVERRIDE: u8 = 0x60;
const MESSAGE_LEN: usize = size_of::<Neighbor>() + size_of::<LinkLayerOption>();

#[repr(C, packed)]
struct NeighborFrame {
    ethernet: EthHdr,
    ip: Ipv6Hdr,
    message: Neighbor,
    option: LinkLayerOption,
}

/// Answers a neighbour solicitation for a service address. Only the usual form is answered here: no
/// extension headers, one source link-layer option, a unicast asker. A probe for a duplicate address (asker
/// `::`) goes to the kernel like all other ICMPv6.
#[inline(always)]
pub fn neighbor(ctx: &XdpContext) -> Option<Reason> {
    if ANNOUNCE.load() == 0 {
        return None;
    }
    match neighbor_apart(ctx.ctx) {
        Reason::NeighborReply => Some(Reason::NeighborReply),
        _ => None,
    }
}

/// Not inlined: solicitations are rare, and the message takes much of the stack.
#[inline(never)]
fn neighbor_apart(ctx: *mut xdp_md) -> Reason {
    match answer_neighbor(&XdpContext::new(ctx)) {
        Ok(reason) | Err(reason) => reason,
    }
}

#[inline(always)]
fn answer_neighbor(ctx: &XdpContext) -> Result<Reason, Reason> {
    const OTHER: Reason = Reason::OtherProtocol;
    let ip = packet::ipv6(ctx)?;
    if ip.length as usize != Ipv6Hdr::LEN + MESSAGE_LEN || ip.source == [0; 4] {
        return Err(OTHER);
    }
    let frame = packet::at::<NeighborFrame>(ctx, 0).ok_or(OTHER)?;
    // SAFETY: `at` checked the bounds; the struct is packed.
    let frame = unsafe { &mut *frame };
    let solicitation = frame.message.kind == SOLICITATION
        && frame.message.code == 0
        && frame.ip.hop_limit == 255
        && frame.option.kind == SOURCE_LINK_LAYER
        && frame.option.length == 1;
    if !solicitation || sum_of(frame) != 0xffff {
        return Err(OTHER);
    }
    let target = frame.message.target;
    let key = ServiceKey {
        address: packet::words(target),
        ..ip.key(0, 0)
    };
    if !service::has_address(key) {
        return Err(OTHER);
    }
    let mac = own_mac(ctx).ok_or(OTHER)?;
    frame.ethernet.dst_addr = frame.ethernet.src_addr;
    frame.ethernet.src_addr = mac;
    frame.ip.dst_addr = frame.ip.src_addr;
    frame.ip.src_addr = target;
    frame.message = Neighbor {
        kind: ADVERTISEMENT,
        code: 0,
        checksum: [0; 2],
        flags: [SOLICITED_AND_OVERRIDE, 0, 0, 0],
        target,
    };
    frame.option = LinkLayerOption {
        kind: TARGET_LINK_LAYER,
        length: 1,
        mac,
    };
    frame.message.checksum = (!sum_of(frame)).to_ne_bytes();
    Ok(Reason::NeighborReply)
}

/// The folded sum of message and pseudo-header (RFC 8200 section 8.1); 0xffff where the checksum is right.
#[inline(always)]
fn sum_of(frame: &NeighborFrame) -> u16 {
    let mut sum = u32::from((MESSAGE_LEN as u16).to_be()) + u32::from(u16::from(packet::ICMPV6).to_be());
    sum += sum16(&frame.ip.src_addr) + sum16(&frame.ip.dst_addr) + sum16(&frame.message.target);
    let Neighbor {
        kind,
        code,
        checksum,
        flags: [f0, f1, f2, f3],
        ..
    } = frame.message;
    let LinkLayerOption {
        kind: option,
        length,
        mac: [m0, m1, m2, m3, m4, m5],
    } = frame.option;
    let words = [
        [kind, code],
        checksum,
        [f0, f1],
        [f2, f3],
        [option, length],
        [m0, m1],
        [m2, m3],
        [m4, m5],
    ];
    for word in words {
        sum += u32::from(u16::from_ne_bytes(word));
    }
    checksum::fold(sum)
}

#[inline(always)]
fn sum16(address: &[u8; 16]) -> u32 {
    let mut sum = 0;
    for word in packet::words(*address) {
        sum += (word & 0xffff) + (word >> 16);
    }
    sum
}

#[inline(always)]
fn own_mac(ctx: &XdpContext) -> Option<[u8; 6]> {
    let ifindex = ctx.ingress_ifindex() as u32;
    // SAFETY: written once for an interface before the program is attached to it.
    let interface = unsafe { INTERFACES.get(ifindex) }?;
    let [a, b, c] = interface.mac;
    let ([a0, a1], [b0, b1], [c0, c1]) = (a.to_ne_bytes(), b.to_ne_bytes(), c.to_ne_bytes());
    Some([a0, a1, b0, b1, c0, c1])
}
