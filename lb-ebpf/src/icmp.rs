//! ICMP and ICMPv6 to service addresses.
//!
//! An error (RFC 792, RFC 4443) is about a packet that some backend sent: it goes to the backend of the flow that
//! the quoted packet is of. The quoted packet went from the service to the client, so its addresses and ports
//! are those of the flow in reverse. An echo request is answered here. Everything else is the kernel's.
//!
//! All of it is rare, and is kept out of the fast path by functions of its own that are not inlined.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use lb_common::checksum;
use lb_common::reason::Reason;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::constants::{ICMP_ECHO, NAT};
use crate::link::{self, put};
use crate::packet::{self, ETHERNET_LEN, FRAGMENT, Flow, Ip, TCP, UDP};
use crate::seen::{Found, Seen};
use crate::service;

/// The first eight bytes of a message.
#[repr(C)]
#[derive(Clone, Copy)]
struct Message {
    /// Type and code.
    kind: [u8; 2],
    checksum: u16,
    rest: [u16; 2],
}

const MESSAGE_LEN: u32 = size_of::<Message>() as u32;

const ECHO: u8 = 8;
const ECHO_REPLY: u8 = 0;
const UNREACHABLE: u8 = 3;
const TIME_EXCEEDED: u8 = 11;
const PARAMETER_PROBLEM: u8 = 12;

const ECHO_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;
/// Unreachable, packet too big, time exceeded, parameter problem.
const FIRST_ERROR_V6: u8 = 1;
const LAST_ERROR_V6: u8 = 4;

const HOP_LIMIT: u8 = 64;
/// Ports: what is needed of a quoted transport header, and always there (RFC 792 quotes eight bytes).
const PORTS_LEN: u32 = 4;

/// Finds the flow that a packet of ICMP or ICMPv6 is about, or settles what becomes of it. The packet is whole by its
/// lengths.
#[inline(always)]
pub fn look(ctx: &XdpContext, ip: &Ip, seen: &mut Seen) -> Result<(), Reason> {
    if ip.is_v4() {
        v4(ctx.ctx, seen).ok()
    } else {
        v6(ctx.ctx, seen).ok()
    }
}

#[inline(never)]
fn v4(ctx: *mut xdp_md, seen: &mut Seen) -> Found {
    Found::new(look_v4(&XdpContext::new(ctx), seen))
}

#[inline(never)]
fn v6(ctx: *mut xdp_md, seen: &mut Seen) -> Found {
    Found::new(look_v6(&XdpContext::new(ctx), seen))
}

#[inline(always)]
fn look_v4(ctx: &XdpContext, seen: &mut Seen) -> Result<(), Reason> {
    let ip = packet::ipv4(ctx)?;
    if !service::has_address(ip.key(0, 0)) {
        return Err(Reason::OtherProtocol);
    }
    let message = message(ctx, &ip, ip.header_len)?;
    match message.kind {
        [ECHO, 0] if ICMP_ECHO.load() != 0 => Err(echo_v4(ctx.ctx)),
        [UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM, _] => {
            quoted_v4(ctx, &ip, ip.header_len + MESSAGE_LEN, seen)
        }
        _ => Err(Reason::OtherProtocol),
    }
}

#[inline(always)]
fn look_v6(ctx: &XdpContext, seen: &mut Seen) -> Result<(), Reason> {
    let ip = packet::ipv6(ctx)?;
    if !service::has_address(ip.key(0, 0)) {
        return Err(Reason::OtherProtocol);
    }
    let behind =
        packet::walk_anew(ctx, ip.length, ip.protocol, Ipv6Hdr::LEN as u32).ok_or(Reason::Malformed)?;
    let message = message(ctx, &ip, behind.offset)?;
    match message.kind {
        // Behind extension headers it is the kernel's: a reply would have to answer those too.
        [ECHO_V6, 0] if ICMP_ECHO.load() != 0 && ip.protocol == packet::ICMPV6 => Err(echo_v6(ctx.ctx)),
        [FIRST_ERROR_V6..=LAST_ERROR_V6, _] => quoted_v6(ctx, &ip, behind.offset + MESSAGE_LEN, seen),
        _ => Err(Reason::OtherProtocol),
    }
}

/// The message at `offset` from the start of the IP header.
#[inline(always)]
fn message(ctx: &XdpContext, ip: &Ip, offset: u32) -> Result<Message, Reason> {
    if offset + MESSAGE_LEN > ip.length {
        return Err(Reason::Malformed);
    }
    packet::read_anew(ctx, ETHERNET_LEN + offset as usize).ok_or(Reason::Malformed)
}

/// Turns an echo request round. Its options would have to be answered too (RFC 1122 section 3.2.2.6): with
/// options it is the kernel's.
#[inline(never)]
fn echo_v4(ctx: *mut xdp_md) -> Reason {
    answer_v4(&XdpContext::new(ctx)).map_or(Reason::OtherProtocol, |()| Reason::EchoReply)
}

#[inline(always)]
fn answer_v4(ctx: &XdpContext) -> Option<()> {
    let ip = packet::ipv4(ctx).ok()?;
    let message = message(ctx, &ip, Ipv4Hdr::LEN as u32).ok()?;
    let link = link::read(ctx)?;
    if ip.header_len != Ipv4Hdr::LEN as u32 || !link.is_unicast() || !packet::is_host_v4(ip.source[3]) {
        return None;
    }
    let header = packet::at_anew::<Ipv4Hdr>(ctx, ETHERNET_LEN)?;
    // SAFETY: `at` checked the bounds; the fields have alignment 1.
    let header = unsafe { &mut *header };
    let before = u16::from_ne_bytes([header.ttl, header.proto]);
    let after = u16::from_ne_bytes([HOP_LIMIT, header.proto]);
    header.ttl = HOP_LIMIT;
    let check = checksum::update(u16::from_ne_bytes(header.check), before, after);
    header.check = check.to_ne_bytes();
    core::mem::swap(&mut header.src_addr, &mut header.dst_addr);
    link.turned().write(ctx)?;
    let check = checksum::update(message.checksum, u16::from(ECHO), u16::from(ECHO_REPLY));
    // A message of zeros has the sum 0, of which only 0xffff is a checksum; it is as good as 0 of any other.
    let check = if check == 0 { 0xffff } else { check };
    put(ctx, ETHERNET_LEN + Ipv4Hdr::LEN, [u16::from(ECHO_REPLY), check])
}

/// Turns an echo request round. The pseudo-header has the same addresses either way.
#[inline(never)]
fn echo_v6(ctx: *mut xdp_md) -> Reason {
    answer_v6(&XdpContext::new(ctx)).map_or(Reason::OtherProtocol, |()| Reason::EchoReply)
}

#[inline(always)]
fn answer_v6(ctx: &XdpContext) -> Option<()> {
    let ip = packet::ipv6(ctx).ok()?;
    let message = message(ctx, &ip, Ipv6Hdr::LEN as u32).ok()?;
    let link = link::read(ctx)?;
    if !link.is_unicast() || !packet::is_host_v6(&ip.source) {
        return None;
    }
    let header = packet::at_anew::<Ipv6Hdr>(ctx, ETHERNET_LEN)?;
    // SAFETY: `at` checked the bounds; the fields have alignment 1.
    let header = unsafe { &mut *header };
    header.hop_limit = HOP_LIMIT;
    core::mem::swap(&mut header.src_addr, &mut header.dst_addr);
    link.turned().write(ctx)?;
    let check = checksum::update(message.checksum, u16::from(ECHO_V6), u16::from(ECHO_REPLY_V6));
    put(
        ctx,
        ETHERNET_LEN + Ipv6Hdr::LEN,
        [u16::from(ECHO_REPLY_V6), check],
    )
}

/// The flow of a packet of the service with these ports, that an error quotes.
#[inline(always)]
fn found(seen: &mut Seen, client: [u32; 4], protocol: u8, ports: [u8; 4]) {
    let [service_high, service_low, client_high, client_low] = ports;
    seen.source = client;
    seen.flow = Flow {
        protocol: u32::from(protocol),
        ports: u32::from_ne_bytes([client_high, client_low, service_high, service_low]),
        opens: 0,
        // An error is no packet of the flow: it changes nothing.
        transport: 0,
    };
    seen.quiet = 1;
}

/// Reads the quoted packet, `offset` bytes from the start of the IP header.
#[inline(always)]
fn quoted_v4(ctx: &XdpContext, ip: &Ip, offset: u32, seen: &mut Seen) -> Result<(), Reason> {
    const UNMATCHED: Reason = Reason::IcmpUnmatched;
    if offset + Ipv4Hdr::LEN as u32 > ip.length {
        return Err(UNMATCHED);
    }
    let inner = packet::ipv4_at(ctx, ETHERNET_LEN + offset as usize).map_err(|_| UNMATCHED)?;
    let behind = offset + inner.header_len;
    if inner.header_len < Ipv4Hdr::LEN as u32 {
        return Err(UNMATCHED);
    }
    // Not about a packet of the service: the kernel may know more.
    if inner.source != ip.destination {
        return Err(Reason::NotService);
    }
    if !matches!(inner.protocol, TCP | UDP) {
        return Err(Reason::OtherProtocol);
    }
    if inner.fragment_offset != 0 {
        return Err(about_later());
    }
    if behind + PORTS_LEN > ip.length {
        return Err(UNMATCHED);
    }
    let ports = packet::read_anew(ctx, ETHERNET_LEN + behind as usize).ok_or(UNMATCHED)?;
    found(seen, inner.destination, inner.protocol, ports);
    Ok(())
}

/// What becomes of an error that quotes a later fragment: it has no ports, and only of what is translated is the datagram
/// known as it was sent.
#[inline(always)]
fn about_later() -> Reason {
    if NAT.load() != 0 {
        Reason::Fragment
    } else {
        Reason::IcmpUnmatched
    }
}

#[inline(always)]
fn quoted_v6(ctx: &XdpContext, ip: &Ip, offset: u32, seen: &mut Seen) -> Result<(), Reason> {
    const UNMATCHED: Reason = Reason::IcmpUnmatched;
    if offset + Ipv6Hdr::LEN as u32 > ip.length {
        return Err(UNMATCHED);
    }
    let inner = packet::ipv6_at(ctx, ETHERNET_LEN + offset as usize).map_err(|_| UNMATCHED)?;
    if inner.source != ip.destination {
        return Err(Reason::NotService);
    }
    let mut behind =
        packet::walk_anew(ctx, ip.length, inner.protocol, offset + Ipv6Hdr::LEN as u32).ok_or(UNMATCHED)?;
    if behind.next == FRAGMENT {
        let fragment = packet::fragment_v6(ctx, ip, behind.offset).ok_or(UNMATCHED)?;
        if fragment.offset != 0 {
            return Err(about_later());
        }
        behind = packet::walk_anew(
            ctx,
            ip.length,
            fragment.next,
            behind.offset + packet::FRAGMENT_LEN,
        )
        .ok_or(UNMATCHED)?;
    }
    if !matches!(behind.next, TCP | UDP) {
        return Err(Reason::OtherProtocol);
    }
    if behind.offset + PORTS_LEN > ip.length {
        return Err(UNMATCHED);
    }
    let ports = packet::read_anew(ctx, ETHERNET_LEN + behind.offset as usize).ok_or(UNMATCHED)?;
    found(seen, inner.destination, behind.next, ports);
    Ok(())
}
