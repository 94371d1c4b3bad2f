//! The way of every packet that [`crate::fast`] does not take: whatever is rare about it, be it the packet, its slot or its
//! backend.
//!
//! Functions one after the other, with what they know of the packet in a per-CPU map between them: so none stands on
//! another's stack. They are global, so that the kernel verifies each once, by itself.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;
use lb_common::reason::Reason;

use crate::constants::{NAT, VLANS};
use crate::packet::{self, Ip, NoFlow};
use crate::seen::{Found, Seen};
use crate::{
    announce, end, flow, forward, fragment, guard, icmp, nat, quic, schedule, service, stats, suspect, vlan,
};

/// The packet that is at work on this CPU.
#[btf_map]
static WORK: PerCpuArray<Work, 1> = PerCpuArray::new();

/// What is known of a packet.
#[repr(C, align(8))]
struct Work {
    ip: Ip,
    seen: Seen,
    why: NoFlow,
}

#[inline(always)]
fn work() -> Option<&'static mut Work> {
    // SAFETY: a valid, aligned per-CPU value, of which each function takes one reference; nothing else runs on this
    // CPU meanwhile.
    WORK.get_ptr_mut(0).map(|work| unsafe { &mut *work })
}

/// The packet's way; gives back the XDP action, or [`nat::leave_over`]. Three functions of which none stands on the stack
/// of a fourth: what they call needs all that the oldest kernels have.
#[inline(always)]
pub fn rest(ctx: *mut xdp_md) -> u32 {
    let mut found = rest_begin(ctx);
    if found == Found::YES.number() {
        found = deliver(ctx);
    }
    rest_end(ctx, found)
}

/// The number of a reason, from here on: the packet's tags, if it has any, are on it still.
const AS_IT_CAME: u32 = 0x100;

/// Takes the tags off and looks for the flow; gives back the number of a [`Found`], or one with [`AS_IT_CAME`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn rest_begin(ctx: *mut xdp_md) -> u32 {
    if VLANS.load() != 0
        && let Err(reason) = vlan::take(&XdpContext::new(ctx))
    {
        return AS_IT_CAME + reason as u32;
    }
    match parse(ctx) {
        NO_FLOW => look(ctx),
        found => found,
    }
}

/// Puts the tags of a packet back that is not sent on, and counts it; gives back what [`rest`] does.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn rest_end(ctx: *mut xdp_md, found: u32) -> u32 {
    let ctx = &XdpContext::new(ctx);
    let as_it_came = found >= AS_IT_CAME;
    let number = if as_it_came { found - AS_IT_CAME } else { found };
    let reason = Reason::from_index(number).unwrap_or(Reason::Malformed);
    if as_it_came {
        return end(ctx, reason);
    }
    if nat::is_concerned(reason) {
        return nat::leave_over(reason);
    }
    if VLANS.load() != 0 {
        return end(ctx, vlan::put_back(ctx, reason));
    }
    end(ctx, reason)
}

/// Not a [`Found`]: the packet has no flow that could be read, and [`Work::why`] says why.
const NO_FLOW: u32 = Found::YES.number() - 1;

/// Reads the flow of the packet; gives back [`NO_FLOW`] or the number of a [`Found`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn parse(ctx: *mut xdp_md) -> u32 {
    let (Ok(found) | Err(found)) = parse_network(&XdpContext::new(ctx)).map_err(|reason| reason as u32);
    found
}

#[inline(always)]
fn parse_network(ctx: &XdpContext) -> Result<u32, Reason> {
    // Compiled once for each family: neither path asks again which one it is.
    match packet::network(ctx)? {
        packet::Network::Ipv4 => parse_ip(ctx, packet::ipv4(ctx)?),
        packet::Network::Ipv6 => parse_ip(ctx, packet::ipv6(ctx)?),
        packet::Network::Arp => announce::arp(ctx).map(|reason| reason as u32),
    }
}

#[inline(always)]
fn parse_ip(ctx: &XdpContext, ip: Ip) -> Result<u32, Reason> {
    let work = work().ok_or(Reason::Malformed)?;
    work.ip = ip;
    work.seen = Seen::NOTHING;
    match ip.flow(ctx) {
        Ok(flow) => {
            work.seen.flow = flow;
            Ok(Found::YES.number())
        }
        Err(why) => {
            work.why = why;
            Ok(NO_FLOW)
        }
    }
}

/// Finds the flow of the packet, or its place, in another way; gives back the number of a [`Found`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn look(ctx: *mut xdp_md) -> u32 {
    let Some(Work { ip, seen, why }) = work() else {
        return Reason::Malformed as u32;
    };
    let found = look_for(&XdpContext::new(ctx), ip, *why, seen);
    if found.is_ok() {
        *ip = seen.of(ip);
    }
    Found::new(found).number()
}

/// Finds the flow of a packet that is neither TCP nor UDP, or cannot be read so far.
#[inline(always)]
fn look_for(ctx: &XdpContext, ip: &Ip, why: NoFlow, seen: &mut Seen) -> Result<(), Reason> {
    match why {
        NoFlow::Icmpv6 => match announce::neighbor(ctx) {
            Some(answered) => Err(answered),
            None => icmp::look(ctx, ip, seen),
        },
        NoFlow::Icmp => icmp::look(ctx, ip, seen),
        NoFlow::Fragment => fragment::look(ctx, ip, seen),
        why => Err(service::judge(ip, why)),
    }
}

/// Brings the packet to its backend; gives back the number of a [`Reason`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn deliver(ctx: *mut xdp_md) -> u32 {
    let Some(Work { ip, seen, .. }) = work() else {
        return Reason::Malformed as u32;
    };
    let (Ok(reason) | Err(reason)) = balance(&XdpContext::new(ctx), ip, seen);
    reason as u32
}

#[inline(always)]
fn balance(ctx: &XdpContext, ip: &Ip, seen: &Seen) -> Result<Reason, Reason> {
    let flow = &seen.flow;
    if seen.index != 0 {
        return forward::forward(ctx, ip, flow, seen.hash, seen.index);
    }
    let service = service::find(ip, flow).ok_or(Reason::NotService)?;
    stats::explain_service(service);
    guard::ask(&ip.source, service)?;
    guard::limit(&ip.source, flow, service)?;
    let table = service::table(service).ok_or(Reason::NoBackend)?;
    if NAT.load() != 0 && table.is_nat() {
        return Err(Reason::Nat);
    }
    let hash = ip.hash(flow);
    let mut index = 0;
    if quic::is_on(table) && flow.transport != 0 {
        let way = quic::way(ctx, flow.transport, service);
        way.count(service);
        index = way.backend();
    }
    if index == 0 {
        index = schedule::backend(ctx, ip, flow, service, table, hash).ok_or(Reason::NoBackend)?;
    }
    stats::explain_backend(index);
    if seen.record != 0 {
        fragment::record(service, hash, index);
    }
    suspect::look(ctx, flow.opens, flow.transport, hash, index);
    let reason = forward::forward(ctx, ip, flow, hash, index)?;
    if matches!(reason, Reason::ResetSent) {
        flow::count_reset(service);
    }
    Ok(reason)
}
