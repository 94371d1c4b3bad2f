//! Fragments of translated flows. The first of a datagram has the ports and is translated like any packet; what becomes
//! of the others is remembered for as long as reassembly takes, and the flow of what we sent, for errors that quote them.
//! One that comes before its first is not translated.

#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "keys and values given by value would be copied to the stack"
)]

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::btf_maps::LruHashMap;
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;
use lb_common::layout::{FragmentKey, MAX_FRAGMENTS};
use lb_common::nat::NatFragment;
use lb_common::reason::Reason;
use network_types::ip::Ipv6Hdr;

use super::table::{self, FOUND, Work};
use crate::clock::now_ns;
use crate::packet::{self, FRAGMENT, Ip, TCP, UDP};
use crate::{fragment, service};

/// What the first fragments of datagrams became, by the datagram as it came and as it was sent. The oldest give way.
#[btf_map]
static NAT_FRAGMENTS: LruHashMap<FragmentKey, NatFragment, { 2 * MAX_FRAGMENTS as usize }> =
    LruHashMap::new();

/// As for the fragments of other services.
const LIFETIME_NS: u64 = 30_000_000_000;

/// A fragment, by what is known of it.
pub enum Place {
    /// The ports are in it; the flow is in [`Work::flow`].
    First,
    /// The way of its first is in [`Work::to`].
    Later,
}

const FIRST: u32 = FOUND;
const LATER: u32 = FOUND - 1;

/// Reads a fragment.
#[inline(always)]
pub fn look(ctx: &XdpContext, ip: &Ip) -> Result<Place, Reason> {
    let found = if ip.is_v4() {
        nat_fragment_v4(ctx.ctx)
    } else {
        nat_fragment_v6(ctx.ctx)
    };
    match found {
        FIRST => Ok(Place::First),
        LATER => Ok(Place::Later),
        reason => Err(Reason::from_index(reason).unwrap_or(Reason::Malformed)),
    }
}

/// Not inlined, like its sister: their offsets vary.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nat_fragment_v4(ctx: *mut xdp_md) -> u32 {
    let (Ok(found) | Err(found)) = fragment_v4(&XdpContext::new(ctx)).map_err(|reason| reason as u32);
    found
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nat_fragment_v6(ctx: *mut xdp_md) -> u32 {
    let (Ok(found) | Err(found)) = fragment_v6(&XdpContext::new(ctx)).map_err(|reason| reason as u32);
    found
}

#[inline(always)]
fn fragment_v4(ctx: &XdpContext) -> Result<u32, Reason> {
    let ip = packet::ipv4(ctx)?;
    if !matches!(ip.protocol, TCP | UDP) {
        return Err(Reason::OtherProtocol);
    }
    let work = table::work().ok_or(Reason::Fragment)?;
    let identification =
        packet::read_anew::<[u8; 2]>(ctx, packet::ETHERNET_LEN + 4).ok_or(Reason::Malformed)?;
    let identification = u32::from(u16::from_ne_bytes(identification));
    key(work, &ip, identification, ip.protocol);
    if ip.fragment_offset != 0 {
        return later(work, &ip);
    }
    first(ctx, work, &ip, ip.protocol, ip.header_len)?;
    work.more = 1;
    Ok(FIRST)
}

#[inline(always)]
fn fragment_v6(ctx: &XdpContext) -> Result<u32, Reason> {
    let ip = packet::ipv6(ctx)?;
    let work = table::work().ok_or(Reason::Fragment)?;
    let behind = packet::walk_anew(ctx, ip.length, ip.protocol, Ipv6Hdr::LEN as u32)
        .filter(|behind| behind.next == FRAGMENT)
        .ok_or_else(|| stray(&ip, Reason::Malformed))?;
    let fragment =
        packet::fragment_v6(ctx, &ip, behind.offset).ok_or_else(|| stray(&ip, Reason::Malformed))?;
    key(work, &ip, fragment.identification, 0);
    if fragment.offset != 0 {
        return later(work, &ip);
    }
    let next = behind.offset + packet::FRAGMENT_LEN;
    let behind = packet::walk_anew(ctx, ip.length, fragment.next, next)
        .ok_or_else(|| stray(&ip, Reason::Malformed))?;
    if !matches!(behind.next, TCP | UDP) {
        return Err(Reason::OtherProtocol);
    }
    first(ctx, work, &ip, behind.next, behind.offset)?;
    // Nothing follows an atomic fragment (RFC 6946).
    work.more = fragment.more;
    Ok(FIRST)
}

#[inline(always)]
fn key(work: &mut Work, ip: &Ip, identification: u32, protocol: u8) {
    work.fragment = FragmentKey {
        source: ip.source,
        destination: ip.destination,
        identification,
        kind: u32::from(ip.family) << 8 | u32::from(protocol),
    };
}

/// A fragment with ports.
#[inline(always)]
fn first(ctx: &XdpContext, work: &mut Work, ip: &Ip, protocol: u8, offset: u32) -> Result<(), Reason> {
    let flow = packet::ports_anew(ctx, ip.length, protocol, offset);
    work.flow = flow.ok_or_else(|| stray(ip, Reason::Malformed))?;
    Ok(())
}

/// A fragment without.
#[inline(always)]
fn later(work: &mut Work, ip: &Ip) -> Result<u32, Reason> {
    let Some(place) = NAT_FRAGMENTS.get_ptr(&work.fragment) else {
        return Err(if fragment::is_passed(&work.fragment) {
            Reason::NotService
        } else {
            stray(ip, Reason::Fragment)
        });
    };
    let tag = NatFragment::tag_of(&work.fragment);
    // SAFETY: a valid, aligned map value of integers; volatile because elements are recycled under their readers, which
    // the tag shows that is read before the rest and after it.
    unsafe {
        if core::ptr::read_volatile(&raw const (*place).tag) != tag {
            return Err(stray(ip, Reason::Fragment));
        }
        let until_ns = core::ptr::read_volatile(&raw const (*place).until_ns);
        work.to.source = core::ptr::read_volatile(&raw const (*place).source);
        work.to.destination = core::ptr::read_volatile(&raw const (*place).destination);
        work.to.service = core::ptr::read_volatile(&raw const (*place).service);
        work.to.backend = core::ptr::read_volatile(&raw const (*place).backend);
        work.to.direction = core::ptr::read_volatile(&raw const (*place).direction);
        work.to.mtu = core::ptr::read_volatile(&raw const (*place).mtu);
        work.to.way = core::ptr::read_volatile(&raw const (*place).way);
        work.to.tags = core::ptr::read_volatile(&raw const (*place).tags);
        if until_ns < now_ns() || core::ptr::read_volatile(&raw const (*place).tag) != tag {
            return Err(stray(ip, Reason::Fragment));
        }
    }
    Ok(LATER)
}

/// Whose a fragment is that is not translated.
#[inline(always)]
fn stray(ip: &Ip, of_service: Reason) -> Reason {
    if service::has_address(ip.key(0, 0)) {
        of_service
    } else {
        Reason::NotService
    }
}

/// Remembers what the first fragment at hand became, if others follow it.
#[inline(always)]
pub fn record() {
    if table::work().is_some_and(|work| work.more != 0) {
        nat_record();
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nat_record() -> u32 {
    let Some(work) = table::work() else {
        return 0;
    };
    let mut kept = NatFragment {
        tag: NatFragment::tag_of(&work.fragment),
        until_ns: now_ns() + LIFETIME_NS,
        source: work.to.source,
        destination: work.to.destination,
        service: work.to.service,
        backend: work.to.backend,
        direction: work.to.direction,
        mtu: work.to.mtu,
        way: work.to.way,
        tags: work.to.tags,
        ports: work.to.ports,
        kind: work.key.kind,
    };
    if NAT_FRAGMENTS.insert(&work.fragment, &kept, 0).is_err() {
        return 0;
    }
    work.fragment.source = work.to.source;
    work.fragment.destination = work.to.destination;
    work.fragment.kind |= NatFragment::SENT;
    kept.tag = NatFragment::tag_of(&work.fragment);
    u32::from(NAT_FRAGMENTS.insert(&work.fragment, &kept, 0).is_ok())
}

/// Ports and kind of the flow of a fragment that we sent, if it is known; `quoted` is its header.
#[inline(always)]
pub fn sent(work: &mut Work, quoted: &Ip, identification: u32, protocol: u8) -> Option<(u32, u32)> {
    key(work, quoted, identification, protocol);
    work.fragment.kind |= NatFragment::SENT;
    let place = NAT_FRAGMENTS.get_ptr(&work.fragment)?;
    let tag = NatFragment::tag_of(&work.fragment);
    // SAFETY: as in `later`.
    unsafe {
        if core::ptr::read_volatile(&raw const (*place).tag) != tag {
            return None;
        }
        let until_ns = core::ptr::read_volatile(&raw const (*place).until_ns);
        let ports = core::ptr::read_volatile(&raw const (*place).ports);
        let kind = core::ptr::read_volatile(&raw const (*place).kind);
        let still = core::ptr::read_volatile(&raw const (*place).tag) == tag;
        (still && until_ns >= now_ns()).then_some((ports, kind))
    }
}
