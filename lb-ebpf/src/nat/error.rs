//! ICMP errors about translated flows, either way (RFC 5508 section 4, for translators of addresses).
//!
//! An error quotes a packet that we sent: as a reply to the client where a client or a router on its side complains, as
//! a request to the backend where the backend's side does. Source and destination exchanged that is what the other side
//! sends us, and so the key of an entry; what the entry makes of such a packet, exchanged again, is what the one who
//! gets the error has sent, and so what must be quoted to him.
//!
//! The error itself goes the way of the flow, to the destination of the flow. Its source becomes ours where the flow's
//! does: nobody beyond us knows the addresses on our other side, and many networks let none but their own out.
//!
//! The checksum of the message covers the quotation: every word that changes in there is taken out of it and put in anew,
//! the checksums inside among them. A later fragment that is quoted has no ports; its datagram tells the flow ([`fragment`]).

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use lb_common::layout::FAMILY_V4;
use lb_common::nat::{NatKey, turn};
use lb_common::reason::Reason;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use super::fragment;
use super::rewrite::{self, Delta};
use super::table::{self, FOUND, Work};
use crate::packet::{self, ETHERNET_LEN, FRAGMENT, Flow, Ip, TCP, UDP};
use crate::service;

/// Length of what stands before the quotation.
const MESSAGE_LEN: u32 = 8;
/// Ports: what is always quoted (RFC 792).
const PORTS_LEN: u32 = 4;

const UNREACHABLE: u8 = 3;
const FRAGMENTATION_NEEDED: u8 = 4;
const TIME_EXCEEDED: u8 = 11;
const PARAMETER_PROBLEM: u8 = 12;
const UNREACHABLE_V6: u8 = 1;
const PARAMETER_PROBLEM_V6: u8 = 4;

/// Where the checksum is in the headers that are quoted.
const HEADER_CHECK: u32 = 10;
const TCP_CHECK: u32 = 16;
const UDP_CHECK: u32 = 6;

/// Makes the error what the entry of its flow says, which is then in [`Work::to`].
///
/// Functions one after the other, with what they know of the packet in [`Work`]: none stands on another's stack.
#[inline(always)]
pub fn translate(ctx: &XdpContext, ip: &Ip) -> Result<(), Reason> {
    let read = if ip.is_v4() {
        nat_error_v4(ctx.ctx)
    } else {
        nat_outer_v6(ctx.ctx);
        nat_error_v6(ctx.ctx)
    };
    done(read)?;
    if !ip.is_v4() {
        done(nat_inner_v6(ctx.ctx))?;
    }
    if table::nat_quoted() != FOUND {
        done(nat_unmatched(ctx.ctx))?;
    }
    if !rewrite::lives(ctx, ip) {
        return Err(Reason::TtlExceeded);
    }
    done(nat_error(ctx.ctx))
}

#[inline(always)]
fn done(bits: u32) -> Result<(), Reason> {
    if bits == FOUND {
        return Ok(());
    }
    Err(Reason::from_index(bits).unwrap_or(Reason::Malformed))
}

#[inline(always)]
fn bits(result: Result<(), Reason>) -> u32 {
    result.map_or_else(|reason| reason as u32, |()| FOUND)
}

/// An error at hand: where its parts are, in bytes from the start of the IP header, and who sent it.
#[repr(C)]
pub struct At {
    message: u32,
    inner: u32,
    /// 0: a later fragment is quoted, which has no ports.
    transport: u32,
    /// 1: packets of its flow do not arrive.
    pub unreachable: u32,
    /// Length of the IP packet.
    length: u32,
    source: [u32; 4],
}

/// What is quoted.
struct Quoted {
    source: [u32; 4],
    destination: [u32; 4],
    protocol: u8,
    ports: u32,
}

/// Not inlined, like its sister: they are rare, and long. Gives back [`FOUND`] or the number of a reason.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nat_error_v4(ctx: *mut xdp_md) -> u32 {
    bits(error_v4(&XdpContext::new(ctx)))
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nat_error_v6(ctx: *mut xdp_md) -> u32 {
    bits(error_v6(&XdpContext::new(ctx)))
}

/// Where the message of ICMPv6 begins: [`At::message`], 0 where no end of the extension headers is found. Before
/// [`nat_error_v6`] and not within, on whose stack its own would stand.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nat_outer_v6(ctx: *mut xdp_md) -> u32 {
    let Some(work) = table::work() else {
        return 0;
    };
    let ctx = &XdpContext::new(ctx);
    let outer = packet::ipv6(ctx)
        .ok()
        .and_then(|ip| packet::walk_anew(ctx, ip.length, ip.protocol, Ipv6Hdr::LEN as u32));
    work.error.message = outer.map_or(0, |behind| behind.offset);
    FOUND
}

#[inline(always)]
fn error_v4(ctx: &XdpContext) -> Result<(), Reason> {
    let ip = packet::ipv4(ctx)?;
    let message = ip.header_len;
    let inner = message + MESSAGE_LEN;
    if inner > ip.length {
        return Err(stray(&ip, Reason::Malformed));
    }
    let [kind, code] = read::<[u8; 2]>(ctx, message)?;
    if !matches!(kind, UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM) {
        return Err(Reason::OtherProtocol);
    }
    let unmatched = stray(&ip, Reason::IcmpUnmatched);
    if inner + Ipv4Hdr::LEN as u32 > ip.length {
        return Err(unmatched);
    }
    let quoted = packet::ipv4_at(ctx, ETHERNET_LEN + inner as usize).map_err(|_| unmatched)?;
    let transport = inner + quoted.header_len;
    if quoted.header_len < Ipv4Hdr::LEN as u32 {
        return Err(unmatched);
    }
    is_ours(&ip, &quoted)?;
    is_translated(quoted.protocol)?;
    let unreachable = kind == UNREACHABLE && code != FRAGMENTATION_NEEDED;
    let work = table::work().ok_or(Reason::OtherProtocol)?;
    let (transport, ports) = if quoted.fragment_offset != 0 {
        let identification = u32::from(read::<u16>(ctx, inner + 4)?);
        let sent = fragment::sent(work, &quoted, identification, quoted.protocol);
        (0, sent.ok_or(unmatched)?.0)
    } else if transport + PORTS_LEN > ip.length {
        return Err(unmatched);
    } else {
        (transport, read(ctx, transport)?)
    };
    work.error = At {
        message,
        inner,
        transport,
        unreachable: u32::from(unreachable),
        length: ip.length,
        source: ip.source,
    };
    let quoted = Quoted {
        source: quoted.source,
        destination: quoted.destination,
        protocol: quoted.protocol,
        ports,
    };
    keep(&ip, work, &quoted);
    Ok(())
}

#[inline(always)]
fn error_v6(ctx: &XdpContext) -> Result<(), Reason> {
    let ip = packet::ipv6(ctx)?;
    let work = table::work().ok_or(Reason::OtherProtocol)?;
    work.error.length = ip.length;
    work.error.source = ip.source;
    let message = work.error.message & FARTHEST;
    if message == 0 {
        return Err(stray(&ip, Reason::IcmpUnmatched));
    }
    let inner = message + MESSAGE_LEN;
    if inner > ip.length {
        return Err(stray(&ip, Reason::Malformed));
    }
    let [kind, _] = read::<[u8; 2]>(ctx, message)?;
    if !matches!(kind, UNREACHABLE_V6..=PARAMETER_PROBLEM_V6) {
        return Err(Reason::OtherProtocol);
    }
    work.error.inner = inner;
    work.error.unreachable = u32::from(kind == UNREACHABLE_V6);
    Ok(())
}

/// What the error of ICMPv6 at hand quotes.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nat_inner_v6(ctx: *mut xdp_md) -> u32 {
    bits(inner_v6(&XdpContext::new(ctx)))
}

#[inline(always)]
fn inner_v6(ctx: &XdpContext) -> Result<(), Reason> {
    let ip = packet::ipv6(ctx)?;
    let unmatched = stray(&ip, Reason::IcmpUnmatched);
    let work = table::work().ok_or(Reason::OtherProtocol)?;
    let inner = work.error.inner & FARTHEST;
    if inner + Ipv6Hdr::LEN as u32 > ip.length {
        return Err(unmatched);
    }
    let quoted = packet::ipv6_at(ctx, ETHERNET_LEN + inner as usize).map_err(|_| unmatched)?;
    is_ours(&ip, &quoted)?;
    let mut behind =
        packet::walk_anew(ctx, ip.length, quoted.protocol, inner + Ipv6Hdr::LEN as u32).ok_or(unmatched)?;
    if behind.next == FRAGMENT {
        let fragment = packet::fragment_v6(ctx, &ip, behind.offset).ok_or(unmatched)?;
        if fragment.offset != 0 {
            let sent = fragment::sent(work, &quoted, fragment.identification, 0);
            let (ports, kind) = sent.ok_or(unmatched)?;
            work.error.transport = 0;
            let quoted = Quoted {
                source: quoted.source,
                destination: quoted.destination,
                protocol: kind as u8,
                ports,
            };
            keep(&ip, work, &quoted);
            return Ok(());
        }
        let next = behind.offset + packet::FRAGMENT_LEN;
        behind = packet::walk_anew(ctx, ip.length, fragment.next, next).ok_or(unmatched)?;
    }
    is_translated(behind.next)?;
    if behind.offset + PORTS_LEN > ip.length {
        return Err(unmatched);
    }
    work.error.transport = behind.offset;
    let quoted = Quoted {
        source: quoted.source,
        destination: quoted.destination,
        protocol: behind.next,
        ports: read(ctx, behind.offset)?,
    };
    keep(&ip, work, &quoted);
    Ok(())
}

/// What becomes of an error that is about no flow of ours: to a service address it is nobody else's either.
#[inline(always)]
fn stray(ip: &Ip, of_service: Reason) -> Reason {
    if service::has_address(ip.key(0, 0)) {
        of_service
    } else {
        Reason::OtherProtocol
    }
}

/// Whether whom an error is sent to has sent what it quotes.
#[inline(always)]
fn is_ours(ip: &Ip, quoted: &Ip) -> Result<(), Reason> {
    if quoted.source == ip.destination {
        return Ok(());
    }
    Err(stray(ip, Reason::NotService))
}

#[inline(always)]
fn is_translated(protocol: u8) -> Result<(), Reason> {
    if matches!(protocol, TCP | UDP) {
        return Ok(());
    }
    Err(Reason::OtherProtocol)
}

/// Keeps the key of the flow.
#[inline(always)]
fn keep(ip: &Ip, work: &mut Work, quoted: &Quoted) {
    work.key = NatKey {
        source: quoted.destination,
        destination: quoted.source,
        ports: turn(quoted.ports),
        kind: NatKey::kind(ip.family, quoted.protocol),
    };
}

/// Why an error about no flow that is known is not translated.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nat_unmatched(ctx: *mut xdp_md) -> u32 {
    let Some(work) = table::work() else {
        return Reason::OtherProtocol as u32;
    };
    let ctx = &XdpContext::new(ctx);
    let is_v4 = (work.key.kind >> 8) as u8 == FAMILY_V4;
    let (Ok(ip) | Err(ip)) = if is_v4 {
        packet::ipv4(ctx)
    } else {
        packet::ipv6(ctx)
    }
    .map_err(|_| Ip::NONE);
    let flow = Flow {
        protocol: u32::from(work.key.protocol()),
        ports: work.key.ports,
        opens: 0,
        transport: 0,
    };
    let reason = match service::find(&ip, &flow) {
        Some(_) => Reason::IcmpUnmatched,
        None => stray(&ip, Reason::NotService),
    };
    reason as u32
}

/// Rewrites the error at hand, which is whole by its lengths.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nat_error(ctx: *mut xdp_md) -> u32 {
    let Some(work) = table::work() else {
        return Reason::OtherProtocol as u32;
    };
    bits(rewrite_error(&XdpContext::new(ctx), work))
}

#[inline(always)]
fn rewrite_error(ctx: &XdpContext, work: &Work) -> Result<(), Reason> {
    let is_v4 = (work.key.kind >> 8) as u8 == FAMILY_V4;
    let inside = inside(ctx, is_v4, work)?;
    let source = if work.to.source == work.key.source {
        &work.error.source
    } else {
        &work.to.source
    };
    let addresses = Delta::NONE
        .address(&work.error.source, source)
        .address(&work.key.destination, &work.to.destination);
    // The checksum of ICMPv6 covers the addresses (RFC 4443 section 2.3).
    let covered = if is_v4 { inside } else { inside.with(addresses) };
    let check = work.error.message + 2;
    write(ctx, check, covered.apply(read(ctx, check)?))?;
    rewrite::header(ctx, is_v4, addresses, source, &work.to.destination)
}

/// Rewrites the quotation; what the checksum of the message sees of that.
#[inline(always)]
fn inside(ctx: &XdpContext, is_v4: bool, work: &Work) -> Result<Delta, Reason> {
    // Of what comes the other way.
    let (source, destination) = (&work.to.destination, &work.to.source);
    let (old_ports, ports) = (turn(work.key.ports), turn(work.to.ports));
    let addresses = Delta::NONE
        .address(&work.key.destination, source)
        .address(&work.key.source, destination);
    let has_ports = work.error.transport != 0;
    let all = if has_ports {
        addresses.word(old_ports, ports)
    } else {
        addresses
    };
    let mut seen = all;
    let (inner, transport) = (work.error.inner, work.error.transport);
    if is_v4 {
        let place = inner + HEADER_CHECK;
        let old: u16 = read(ctx, place)?;
        let new = addresses.apply(old);
        write(ctx, place, new)?;
        seen = seen.half(old, new);
        write(ctx, inner + 12, rewrite::halves(source[3]))?;
        write(ctx, inner + 16, rewrite::halves(destination[3]))?;
    } else {
        address(ctx, inner + 8, source)?;
        address(ctx, inner + 24, destination)?;
    }
    if !has_ports {
        return Ok(seen);
    }
    let is_udp = work.key.protocol() == UDP;
    let place = transport + if is_udp { UDP_CHECK } else { TCP_CHECK };
    // Of a short quotation there is no more than the ports.
    if place + 2 <= work.error.length {
        let old: u16 = read(ctx, place)?;
        let new = if is_udp {
            rewrite::of_datagram(old, all)
        } else {
            all.apply(old)
        };
        write(ctx, place, new)?;
        seen = seen.half(old, new);
    }
    write(ctx, transport, rewrite::halves(ports))?;
    Ok(seen)
}

#[inline(always)]
fn address(ctx: &XdpContext, offset: u32, words: &[u32; 4]) -> Result<(), Reason> {
    let [a, b, c, d] = *words;
    write(ctx, offset, rewrite::halves(a))?;
    write(ctx, offset + 4, rewrite::halves(b))?;
    write(ctx, offset + 8, rewrite::halves(c))?;
    write(ctx, offset + 12, rewrite::halves(d))
}

/// Beyond every packet that is looked into, and a bound for the verifier.
const FARTHEST: u32 = 0x7fff;

/// A value `offset` bytes from the start of the IP header.
#[inline(always)]
fn read<T: Copy>(ctx: &XdpContext, offset: u32) -> Result<T, Reason> {
    #[repr(C, packed(2))]
    #[derive(Clone, Copy)]
    struct Halves<T>(T);
    let place = ETHERNET_LEN + (offset & FARTHEST) as usize;
    let Halves(value) = packet::read_anew::<Halves<T>>(ctx, place).ok_or(Reason::Malformed)?;
    Ok(value)
}

#[inline(always)]
fn write<T>(ctx: &XdpContext, offset: u32, value: T) -> Result<(), Reason> {
    let place = ETHERNET_LEN + (offset & FARTHEST) as usize;
    let pointer = packet::at_anew::<T>(ctx, place).ok_or(Reason::Malformed)?;
    // SAFETY: `at_anew` checked the bounds.
    unsafe { pointer.write(value) };
    Ok(())
}
