//! Fragments to service addresses. Only the first fragment of a datagram has ports: it goes where its flow goes, and
//! the others of the datagram (same addresses, protocol and identification: RFC 791, RFC 8200 section 4.5) follow it.
//!
//! A program cannot keep a packet back: a fragment that comes before its first is dropped (`fragment`). Adapters
//! put all fragments between two addresses into one receive queue, and senders send the first one first, so that
//! happens where the network reorders only.
//!
//! What is remembered lives for [`LIFETIME_NS`] at most and names the backend by index and by fingerprint: an index
//! that was given to another backend meanwhile is not followed.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::btf_maps::{LruHashMap, PerCpuArray};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;
use lb_common::layout::{FragmentKey, FragmentPlace, MAX_FRAGMENTS};
use lb_common::reason::Reason;
use network_types::ip::Ipv6Hdr;

use crate::clock::now_ns;
use crate::packet::{self, FRAGMENT, Ip, TCP, UDP};
use crate::seen::{Found, Seen};
use crate::{forward, guard, service, stats};

/// Where the first fragments of datagrams went. The oldest give way: a flood of first fragments costs others their
/// later ones, and no memory.
#[btf_map]
static FRAGMENTS: LruHashMap<FragmentKey, FragmentPlace, { MAX_FRAGMENTS as usize }> = LruHashMap::new();

/// The key of the fragment that is at work on this CPU.
#[btf_map]
static FRAGMENT_AT_WORK: PerCpuArray<FragmentKey, 1> = PerCpuArray::new();

/// How long reassembly takes at most (RFC 1122 section 3.3.2: 60 s; Linux: 30 s).
const LIFETIME_NS: u64 = 30_000_000_000;

/// Finds the flow of a first fragment, or where the first one went.
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
        return Err(Reason::NotService);
    }
    if !matches!(ip.protocol, TCP | UDP) {
        return Err(Reason::OtherProtocol);
    }
    let identification =
        packet::read_anew::<[u8; 2]>(ctx, packet::ETHERNET_LEN + 4).ok_or(Reason::Malformed)?;
    let key = key(&ip, u32::from(u16::from_ne_bytes(identification)), ip.protocol)?;
    if ip.fragment_offset != 0 {
        return follow(key, seen);
    }
    first(ctx, &ip, ip.protocol, ip.header_len, key, seen)?;
    seen.record = 1;
    Ok(())
}

#[inline(always)]
fn look_v6(ctx: &XdpContext, seen: &mut Seen) -> Result<(), Reason> {
    let ip = packet::ipv6(ctx)?;
    if !service::has_address(ip.key(0, 0)) {
        return Err(Reason::NotService);
    }
    let behind = packet::walk_anew(ctx, ip.length, ip.protocol, Ipv6Hdr::LEN as u32)
        .filter(|behind| behind.next == FRAGMENT)
        .ok_or(Reason::Malformed)?;
    let fragment = packet::fragment_v6(ctx, &ip, behind.offset).ok_or(Reason::Malformed)?;
    // The type of what is in the fragments is the first one's business.
    let key = key(&ip, fragment.identification, 0)?;
    if fragment.offset != 0 {
        return follow(key, seen);
    }
    let behind = packet::walk_anew(
        ctx,
        ip.length,
        fragment.next,
        behind.offset + packet::FRAGMENT_LEN,
    )
    .ok_or(Reason::Malformed)?;
    if !matches!(behind.next, TCP | UDP) {
        return Err(Reason::OtherProtocol);
    }
    first(ctx, &ip, behind.next, behind.offset, key, seen)?;
    // Nothing follows an atomic fragment (RFC 6946).
    seen.record = fragment.more;
    Ok(())
}

#[inline(always)]
fn key(ip: &Ip, identification: u32, protocol: u8) -> Result<&'static FragmentKey, Reason> {
    let place = FRAGMENT_AT_WORK.get_ptr_mut(0).ok_or(Reason::Fragment)?;
    // SAFETY: a per-CPU value; nothing else runs on this CPU meanwhile.
    let key = unsafe { &mut *place };
    *key = FragmentKey {
        source: ip.source,
        destination: ip.destination,
        identification,
        kind: u32::from(ip.family) << 8 | u32::from(protocol),
    };
    Ok(key)
}

/// A fragment with ports.
#[inline(always)]
fn first(
    ctx: &XdpContext,
    ip: &Ip,
    protocol: u8,
    offset: u32,
    key: &FragmentKey,
    seen: &mut Seen,
) -> Result<(), Reason> {
    let flow = packet::ports_anew(ctx, ip.length, protocol, offset).ok_or(Reason::Malformed)?;
    if service::find(ip, &flow).is_none() {
        // The kernel gets the others too.
        let _ = FRAGMENTS.insert(key, place(0, 0, 0), 0);
        return Err(Reason::NotService);
    }
    seen.source = ip.source;
    seen.flow = flow;
    Ok(())
}

/// A fragment without.
#[inline(always)]
fn follow(key: &FragmentKey, seen: &mut Seen) -> Result<(), Reason> {
    // SAFETY: copied at once; elements are recycled under their readers, and the fingerprint tells.
    let place = unsafe { FRAGMENTS.get(key) }.copied().ok_or(Reason::Fragment)?;
    if place.until_ns < now_ns() {
        return Err(Reason::Fragment);
    }
    if place.index == 0 {
        return Err(Reason::NotService);
    }
    if place.fingerprint != forward::fingerprint(place.index) {
        return Err(Reason::Fragment);
    }
    stats::explain_service(place.service);
    guard::ask(&key.source, place.service)?;
    stats::explain_backend(place.index);
    seen.index = place.index;
    seen.hash = place.hash;
    seen.quiet = 1;
    Ok(())
}

/// Whether the first fragment of a datagram was no service's.
#[inline(always)]
pub fn is_passed(key: &FragmentKey) -> bool {
    // SAFETY: copied at once; an element that is recycled meanwhile is at worst another datagram's.
    let place = unsafe { FRAGMENTS.get(key) };
    place.is_some_and(|place| place.index == 0 && place.until_ns >= now_ns())
}

/// Remembers where the first fragment went that is at work on this CPU.
#[inline(never)]
pub fn record(service: u32, hash: u32, index: u32) -> u32 {
    let Some(key) = FRAGMENT_AT_WORK.get_ptr(0) else {
        return 0;
    };
    // SAFETY: a per-CPU value; nothing else runs on this CPU meanwhile.
    let key = unsafe { &*key };
    u32::from(FRAGMENTS.insert(key, place(service, hash, index), 0).is_ok())
}

#[inline(always)]
fn place(service: u32, hash: u32, index: u32) -> FragmentPlace {
    FragmentPlace {
        until_ns: now_ns() + LIFETIME_NS,
        fingerprint: forward::fingerprint(index),
        index,
        hash,
        service,
        reserved: 0,
    }
}
