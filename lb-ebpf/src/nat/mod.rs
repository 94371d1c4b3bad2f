//! `nat` and `full-nat`: a program of its own, which the main program hands packets over to.
//!
//! [`hand_over`] is all that the main program has of it, and nothing at all where no service needs it. The program
//! behind it ([`handle`]) reads the packet anew and owes the main program nothing: it has its own 512 bytes of stack
//! and its own share of the verifier's patience, and both can change without regard to each other. Program and
//! array of programs belong to one loaded version and are replaced with it.
//!
//! ```text
//!  to a service of nat ─▶ table::request   the flow's entry, or a new one      ─▶ rewrite ─▶ to the backend
//!  anything else       ─▶ table::reply     the entry of a backend's answer     ─▶ rewrite ─▶ to the client
//!                                          none: not ours                                 ─▶ pass
//!  ICMP errors         ─▶ error            the entry of the packet inside      ─▶ rewrite both
//!  fragments           ─▶ fragment         what their first became             ─▶ rewrite
//! ```
//!
//! As a router would, it takes one off the TTL or hop limit, in both directions, and answers what has none left
//! ([`expired`]).

mod error;
mod expired;
mod fragment;
mod rewrite;
mod route;
mod table;

use aya_ebpf::btf_maps::ProgramArray;
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;
use lb_common::layout::{Backend, kind};
use lb_common::nat::{self, FORWARD, NatEntry, NatKey, NatSeen, ifindex_of};
use lb_common::reason::Reason;

use crate::constants::{NAT, VLANS};
use crate::packet::{self, Flow, Ip, NoFlow, TCP};
use crate::seen::Found;
use crate::{forward, quic, reset, schedule, service, stats, suspect, toobig, vlan};

/// The programs of this loaded version that are not the main one.
#[btf_map]
static PARTS: ProgramArray<1> = ProgramArray::new();

/// Whether a packet that ends so may be the other program's.
#[inline(always)]
pub fn is_concerned(reason: Reason) -> bool {
    NAT.load() != 0
        && matches!(
            reason,
            Reason::Nat | Reason::NotService | Reason::OtherProtocol | Reason::Fragment
        )
}

/// Beyond every XDP action: the reason of a packet that is to be handed over follows. Only the main program itself can
/// jump; its functions tell it so.
const LEFT_OVER: u32 = 0x100;

/// What a function of the main program gives back instead of an action.
#[inline(always)]
pub fn leave_over(reason: Reason) -> u32 {
    LEFT_OVER + reason as u32
}

/// Whether it did.
#[inline(always)]
pub fn is_left_over(action: u32) -> bool {
    NAT.load() != 0 && action >= LEFT_OVER
}

/// The reason in it.
#[inline(always)]
pub fn left_over(action: u32) -> Reason {
    Reason::from_index(action.wrapping_sub(LEFT_OVER)).unwrap_or(Reason::Malformed)
}

/// The reason of a packet that the straight way took, whose frame had no tags.
#[inline(always)]
pub fn plain(reason: Reason) -> Reason {
    if NAT.load() != 0 && VLANS.load() != 0 {
        vlan::take_none();
    }
    reason
}

/// Goes on in the other program with a packet that may be its own; returns where it is not, or is missing.
#[inline(always)]
pub fn hand_over(ctx: &XdpContext, reason: Reason) {
    if is_concerned(reason) {
        // SAFETY: nothing here has anything to drop.
        unsafe { PARTS.tail_call(ctx, 0) };
    }
}

/// The way of a packet that was handed over.
#[inline(always)]
pub fn handle(ctx: &XdpContext) -> Reason {
    let result = match packet::network(ctx) {
        Ok(packet::Network::Ipv4) => packet::ipv4(ctx).and_then(|ip| translate(ctx, &ip)),
        Ok(packet::Network::Ipv6) => packet::ipv6(ctx).and_then(|ip| translate(ctx, &ip)),
        Ok(packet::Network::Arp) => Err(Reason::NotIp),
        Err(reason) => Err(reason),
    };
    let reason = match result {
        Ok(reason) | Err(reason) => reason,
    };
    // The main program took them off.
    if VLANS.load() != 0 {
        return vlan::put_back(ctx, reason);
    }
    reason
}

#[inline(always)]
fn translate(ctx: &XdpContext, ip: &Ip) -> Result<Reason, Reason> {
    let (flow, is_first) = match ip.flow(ctx) {
        Ok(flow) => (flow, false),
        Err(NoFlow::Icmp | NoFlow::Icmpv6) => return error(ctx, ip),
        Err(NoFlow::Fragment) => match fragment::look(ctx, ip)? {
            fragment::Place::First => (table::work().ok_or(Reason::Fragment)?.flow, true),
            fragment::Place::Later => return later(ctx, ip),
        },
        Err(why) => return Err(service::judge(ip, why)),
    };
    let reason = match of_service(ip, &flow) {
        Some(service) => request(ctx, ip, &flow, service)?,
        None => reply(ctx, ip, &flow)?,
    };
    if is_first {
        fragment::record();
    }
    Ok(reason)
}

/// The service of this kind that a packet is for.
#[inline(always)]
fn of_service(ip: &Ip, flow: &Flow) -> Option<u32> {
    let service = service::find(ip, flow)?;
    service::table(service)?.is_nat().then_some(service)
}

/// From a client.
#[inline(always)]
fn request(ctx: &XdpContext, ip: &Ip, flow: &Flow, service: u32) -> Result<Reason, Reason> {
    stats::explain_service(service);
    // Before it could open a flow.
    if !rewrite::lives(ctx, ip) {
        return Err(expired::answer(ctx, ip, &ip.destination));
    }
    let work = table::work().ok_or(Reason::NatRefused)?;
    work.key = key(ip, flow);
    work.service = service;
    (work.opens, work.flags) = seen_of(ctx, flow, true).ok_or(Reason::Malformed)?;
    match table::nat_request() {
        table::FOUND => {}
        table::RESETS => return reset::answer(ctx, ip, flow),
        table::ABSENT => {
            let table = service::table(service).ok_or(Reason::NoBackend)?;
            work.hash = ip.hash(flow);
            work.backend = 0;
            if quic::is_on(table) {
                let way = quic::way(ctx, flow.transport, service);
                way.count(service);
                work.backend = way.backend();
            }
            if work.backend == 0 {
                work.backend = schedule::fresh(ip, table, work.hash).ok_or(Reason::NoBackend)?;
            }
            stats::explain_backend(work.backend);
            Found::of_bits(table::nat_open(ctx.ctx)).ok()?;
        }
        refused => Found::of_bits(refused).ok()?,
    }
    if flow.opens != 0 {
        suspect::look(ctx, flow.opens, flow.transport, ip.hash(flow), work.to.backend);
    }
    let backend = backend_of(ctx, ip, work)?;
    let bytes = frame_len(ctx);
    rewrite::packet(ctx, ip, flow, &work.to)?;
    to_backend(ctx, backend, work.to.backend, bytes, flow.opens)
}

/// The backend of the entry at hand, if it can be reached and the packet fits the way to it.
#[inline(always)]
fn backend_of(ctx: &XdpContext, ip: &Ip, work: &table::Work) -> Result<&'static Backend, Reason> {
    stats::explain_backend(work.to.backend);
    let backend = forward::backend(work.to.backend).ok_or(Reason::NoBackend)?;
    if !matches!(backend.kind, kind::NAT | kind::FULL_NAT) {
        return Err(Reason::NoNextHop);
    }
    if !table::is_its(&work.to, backend) {
        return Err(Reason::NoBackend);
    }
    fits(ctx, ip, u32::from(backend.mtu))?;
    Ok(backend)
}

/// Sends a packet that was rewritten to a backend.
#[inline(always)]
fn to_backend(
    ctx: &XdpContext,
    backend: &Backend,
    index: u32,
    bytes: u64,
    opens: u32,
) -> Result<Reason, Reason> {
    towards(ctx, backend)?;
    if VLANS.load() != 0 {
        vlan::put_for(ctx, index)?;
    }
    let redirected = forward::leave(ctx, backend.ifindex)?;
    stats::forwarded(index, bytes, opens, redirected);
    Ok(if redirected {
        Reason::Redirected
    } else {
        Reason::Transmitted
    })
}

/// From a backend, perhaps.
#[inline(always)]
fn reply(ctx: &XdpContext, ip: &Ip, flow: &Flow) -> Result<Reason, Reason> {
    let work = table::work().ok_or(Reason::NotService)?;
    work.key = key(ip, flow);
    (work.opens, work.flags) = seen_of(ctx, flow, false).ok_or(Reason::NotService)?;
    if table::nat_reply(ctx.ctx) != table::FOUND {
        return Err(Reason::NotService);
    }
    stats::explain_service(work.to.service);
    stats::explain_backend(work.to.backend);
    // The first that it says to the client.
    if work.flags & NatSeen::RST != 0 && !work.to.seen.has(NatSeen::SOME) {
        suspect::refused(work.to.backend);
    }
    if !rewrite::lives(ctx, ip) {
        // Where the client's address was kept, the backend's packet was for it and not for us.
        let us = if work.to.destination == work.key.destination {
            &work.to.source
        } else {
            &ip.destination
        };
        return Err(expired::answer(ctx, ip, us));
    }
    fits(ctx, ip, work.to.mtu)?;
    let bytes = frame_len(ctx);
    rewrite::packet(ctx, ip, flow, &work.to)?;
    to_client(ctx, &work.to, bytes)
}

/// A fragment without ports, the way of its first.
#[inline(always)]
fn later(ctx: &XdpContext, ip: &Ip) -> Result<Reason, Reason> {
    let work = table::work().ok_or(Reason::Fragment)?;
    let quiet = Ip { quiet: true, ..*ip };
    stats::explain_service(work.to.service);
    let bytes = frame_len(ctx);
    if work.to.direction == FORWARD {
        let backend = backend_of(ctx, &quiet, work)?;
        rewrite::fragment(ctx, ip, &work.to)?;
        return to_backend(ctx, backend, work.to.backend, bytes, 0);
    }
    stats::explain_backend(work.to.backend);
    fits(ctx, &quiet, work.to.mtu)?;
    rewrite::fragment(ctx, ip, &work.to)?;
    to_client(ctx, &work.to, bytes)
}

/// An ICMP error, to whom the flow's packets go.
#[inline(always)]
fn error(ctx: &XdpContext, ip: &Ip) -> Result<Reason, Reason> {
    let quiet = Ip { quiet: true, ..*ip };
    let bytes = frame_len(ctx);
    error::translate(ctx, ip)?;
    let work = table::work().ok_or(Reason::OtherProtocol)?;
    stats::explain_service(work.to.service);
    table::count(work.to.service, |counters| counters.errors += 1);
    if work.to.direction == FORWARD {
        let backend = backend_of(ctx, &quiet, work)?;
        return to_backend(ctx, backend, work.to.backend, bytes, 0);
    }
    stats::explain_backend(work.to.backend);
    if work.error.unreachable != 0 {
        suspect::refused(work.to.backend);
    }
    fits(ctx, &quiet, work.to.mtu)?;
    to_client(ctx, &work.to, bytes)
}

/// Sends a packet that was rewritten on the way of its entry.
#[inline(always)]
fn to_client(ctx: &XdpContext, to: &NatEntry, bytes: u64) -> Result<Reason, Reason> {
    rewrite::link(ctx, to.way)?;
    if VLANS.load() != 0 {
        vlan::put_tags(ctx, to.tags)?;
    }
    let redirected = forward::leave(ctx, ifindex_of(to.way))?;
    table::count(to.service, |counters| {
        counters.replies += 1;
        counters.reply_bytes += bytes;
    });
    Ok(if redirected {
        Reason::NatReplyRedirected
    } else {
        Reason::NatReply
    })
}

/// Length of the frame as it came in.
#[inline(always)]
fn frame_len(ctx: &XdpContext) -> u64 {
    let tags = if VLANS.load() != 0 { vlan::taken_len() } else { 0 };
    u64::from(packet::frame_len(ctx)) + tags
}

/// Addresses the frame to a backend's next hop.
#[inline(always)]
fn towards(ctx: &XdpContext, backend: &Backend) -> Result<(), Reason> {
    let [d0, d1, d2, s0, s1, s2, _] = backend.ethernet;
    rewrite::link(ctx, nat::way([d0, d1, d2], [s0, s1, s2], 0))
}

/// Answers a packet that its way does not take; 0: the way is not known so far.
#[inline(always)]
fn fits(ctx: &XdpContext, ip: &Ip, mtu: u32) -> Result<(), Reason> {
    if mtu != 0 && ip.length > mtu {
        return Err(toobig::answer(ctx, ip, mtu));
    }
    Ok(())
}

#[inline(always)]
fn key(ip: &Ip, flow: &Flow) -> NatKey {
    NatKey {
        source: ip.source,
        destination: ip.destination,
        ports: flow.ports,
        kind: NatKey::kind(ip.family, flow.protocol as u8),
    }
}

/// Whether a packet opens a connection, and what it shows of its side.
#[inline(always)]
fn seen_of(ctx: &XdpContext, flow: &Flow, from_client: bool) -> Option<(u32, u64)> {
    if flow.protocol != u32::from(TCP) {
        return Some((0, NatSeen::SOME));
    }
    let segment = packet::segment(ctx, flow.transport)?;
    if from_client && segment.opens() {
        return Some((1, 0));
    }
    let mut flags = NatSeen::SOME;
    if segment.fin() {
        flags |= NatSeen::FIN;
    }
    if segment.rst() {
        flags |= NatSeen::RST;
    }
    Some((0, flags))
}
