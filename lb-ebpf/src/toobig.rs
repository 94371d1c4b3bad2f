//! A packet that does not fit the way to its backend is answered: "fragmentation needed" (RFC 792, RFC 1191) or
//! "packet too big" (RFC 4443 section 3.2, RFC 8201), with the length that would fit.
//!
//! The answer comes from the service address. It is the only address of ours that the client knows, its way back
//! is the one that the client's firewall expects, and a service address needs no route of its own here. It quotes
//! as much of the packet as RFC 1812 section 4.3.2.3 (576 bytes in all) and RFC 4443 section 2.4 (1280 bytes) say.
//!
//! An IPv4 packet without Don't Fragment may be cut in pieces, which a program that sends one packet for each it gets
//! cannot do. The kernel can, on the way by an interface (`fragment_by`) whose other end brings the pieces back to the
//! program; where there is none, such a packet is answered too. To drop it in silence would help nobody, and senders that
//! learn the path MTU from such an answer (Linux does, for the fragments of long datagrams) come through.
//!
//! Where less than 1280 bytes would fit an IPv6 packet, nothing is said: no sender may go below (RFC 8200
//! section 5), so no answer would help.

use aya_ebpf::bindings::{bpf_fib_lookup as Params, xdp_md};
use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::helpers::{bpf_csum_diff, bpf_fib_lookup, bpf_xdp_adjust_head, bpf_xdp_adjust_tail};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;
use lb_common::checksum;
use lb_common::reason::Reason;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::clock::now_ns;
use crate::constants::{FRAGMENT_BY, FRAGMENTS_FROM, ICMP_ERROR_RATE};
use crate::link::{self, Link, put};
use crate::packet::{self, ETHERNET_LEN, Ip};

pub const ICMP_LEN: usize = 8;
/// What of the packet is quoted. The short form is for ways that take less than that: the longest IPv4 header and
/// eight bytes.
pub const QUOTE_V4: usize = 576 - Ipv4Hdr::LEN - ICMP_LEN;
const QUOTE_V4_SHORT: usize = 68;
pub const QUOTE_V6: usize = 1280 - Ipv6Hdr::LEN - ICMP_LEN;

/// The least that a way can take (RFC 791, RFC 8200).
const LEAST_V4: u32 = 68;
const LEAST_V6: u32 = 1280;

/// As many answers at once as are saved up.
const BURST: u64 = 50;

/// For each CPU, the time up to which its answers are used up, in nanoseconds since boot.
#[btf_map]
static ICMP_ERRORS_UNTIL: PerCpuArray<u64, 1> = PerCpuArray::new();

const DONT_FRAGMENT: u8 = 1 << 6;
const AF_INET: u8 = 2;

/// Whether the kernel would cut this IPv4 packet in pieces and send them by the interface that brings them back.
#[inline(always)]
pub fn is_for_the_kernel(ctx: &XdpContext) -> bool {
    kernel_fragments(ctx.ctx) != 0
}

/// Out of line and global: it is rare, and what it asks with takes much of a stack. Whatever the routing table says but that
/// interface (a local address, the default route, no forwarding) is a no, so that nothing of a service ever goes
/// elsewhere; and what comes back too long still is not sent round again.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn kernel_fragments(ctx: *mut xdp_md) -> u32 {
    let ctx = &XdpContext::new(ctx);
    let ingress = ctx.ingress_ifindex() as u32;
    let Some(header) = packet::read_anew::<[u8; Ipv4Hdr::LEN]>(ctx, ETHERNET_LEN) else {
        return 0;
    };
    if header[6] & DONT_FRAGMENT != 0 || ingress == FRAGMENTS_FROM.load() {
        return 0;
    }
    // SAFETY: integers only, for which all zeros is a value. No length: a packet that is too long for the interface is
    // what is looked for.
    let mut params: Params = unsafe { core::mem::zeroed() };
    params.family = AF_INET;
    params.l4_protocol = header[9];
    params.ifindex = ingress;
    let [.., s0, s1, s2, s3, d0, d1, d2, d3] = header;
    params.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes([s0, s1, s2, s3]);
    params.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes([d0, d1, d2, d3]);
    // SAFETY: a valid context, and a block of the size given.
    let found = unsafe { bpf_fib_lookup(ctx.ctx.cast(), &raw mut params, size_of::<Params>() as i32, 0) };
    u32::from(found == 0 && params.ifindex == FRAGMENT_BY.load())
}

/// Answers a packet of which only `room` bytes would fit, or gives it up.
#[inline(always)]
pub fn answer(ctx: &XdpContext, ip: &Ip, room: u32) -> Reason {
    let room = if ip.quiet { 0 } else { room };
    let answered = if ip.is_v4() {
        too_big_v4(ctx.ctx, room)
    } else {
        too_big_v6(ctx.ctx, room)
    };
    if answered != 0 {
        Reason::TooBigAnswered
    } else {
        Reason::TooBig
    }
}

/// Not inlined, like its sister: they are rare. Global, so that the kernel verifies them once for all their callers.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn too_big_v4(ctx: *mut xdp_md, room: u32) -> u32 {
    u32::from(answer_v4(&XdpContext::new(ctx), room).is_some())
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn too_big_v6(ctx: *mut xdp_md, room: u32) -> u32 {
    u32::from(answer_v6(&XdpContext::new(ctx), room).is_some())
}

#[inline(always)]
fn answer_v4(ctx: &XdpContext, room: u32) -> Option<()> {
    let ip = packet::ipv4(ctx).ok()?;
    let link = link::read(ctx)?;
    let (client, service) = (ip.source[3], ip.destination[3]);
    if room < LEAST_V4 || !link.is_unicast() || !packet::is_host_v4(client) || !allowed() {
        return None;
    }
    if ip.length >= QUOTE_V4 as u32 {
        finish_v4::<QUOTE_V4>(ctx, room, &link, client, service)
    } else {
        finish_v4::<QUOTE_V4_SHORT>(ctx, room, &link, client, service)
    }
}

pub const TTL: u8 = 64;
/// Precedence 6, internetwork control (RFC 1812 section 4.3.2.5).
pub const PRECEDENCE: u8 = 0xc0;
const DESTINATION_UNREACHABLE: u8 = 3;
const FRAGMENTATION_NEEDED: u8 = 4;
const PACKET_TOO_BIG: u8 = 2;

#[inline(always)]
fn finish_v4<const QUOTE: usize>(
    ctx: &XdpContext,
    room: u32,
    link: &Link,
    client: u32,
    service: u32,
) -> Option<()> {
    resize(ctx, ETHERNET_LEN + QUOTE, Ipv4Hdr::LEN + ICMP_LEN)?;
    link.turned().write(ctx)?;
    put(
        ctx,
        ETHERNET_LEN - size_of::<u16>(),
        packet::ETHERTYPE_IPV4.to_be(),
    )?;
    let length = ((Ipv4Hdr::LEN + ICMP_LEN + QUOTE) as u16).to_be();
    let ([s0, s1], [c0, c1]) = (halves(service), halves(client));
    // Identification 0 and Don't Fragment: an atomic datagram (RFC 6864).
    let header = [
        u16::from_ne_bytes([0x45, PRECEDENCE]),
        length,
        0,
        u16::from_ne_bytes([0x40, 0]),
        u16::from_ne_bytes([TTL, packet::ICMP]),
        0,
        s0,
        s1,
        c0,
        c1,
    ];
    let mut sum = 0;
    for word in header {
        sum += u32::from(word);
    }
    let [h0, h1, h2, h3, h4, _, h6, h7, h8, h9] = header;
    let check = !checksum::fold(sum);
    put(ctx, ETHERNET_LEN, [h0, h1, h2, h3, h4, check, h6, h7, h8, h9])?;
    let kind = u16::from_ne_bytes([DESTINATION_UNREACHABLE, FRAGMENTATION_NEEDED]);
    let mtu = (room as u16).to_be();
    let quoted = sum_of::<QUOTE>(ctx, ETHERNET_LEN + Ipv4Hdr::LEN + ICMP_LEN)?;
    let check = !checksum::fold_wide(quoted + u64::from(kind) + u64::from(mtu));
    put(ctx, ETHERNET_LEN + Ipv4Hdr::LEN, [kind, check, 0, mtu])
}

#[inline(always)]
fn answer_v6(ctx: &XdpContext, room: u32) -> Option<()> {
    let [client, _] = addresses_v6(ctx, ETHERNET_LEN)?;
    let link = link::read(ctx)?;
    // A packet that is too long for 1280 bytes is long enough for the quotation.
    if room < LEAST_V6 || !link.is_unicast() || !packet::is_host_v6(&client) || !allowed() {
        return None;
    }
    resize(ctx, ETHERNET_LEN + QUOTE_V6, Ipv6Hdr::LEN + ICMP_LEN)?;
    link.turned().write(ctx)?;
    put(
        ctx,
        ETHERNET_LEN - size_of::<u16>(),
        packet::ETHERTYPE_IPV6.to_be(),
    )?;
    let length = ((ICMP_LEN + QUOTE_V6) as u16).to_be();
    let version = u16::from_ne_bytes([0x60, 0]);
    let next_and_hops = u16::from_ne_bytes([packet::ICMPV6, TTL]);
    put(ctx, ETHERNET_LEN, [version, 0, length, next_and_hops])?;
    let mut sum = u64::from(length) + u64::from(u16::from(packet::ICMPV6).to_be());
    // Read once more from the quotation: kept over all of this they would take half of the stack.
    let [client, service] = addresses_v6(ctx, ETHERNET_LEN + Ipv6Hdr::LEN + ICMP_LEN)?;
    sum += put_address(ctx, ETHERNET_LEN + 8, service)?;
    sum += put_address(ctx, ETHERNET_LEN + 24, client)?;
    let kind = u16::from_ne_bytes([PACKET_TOO_BIG, 0]);
    let mtu = (room as u16).to_be();
    sum +=
        sum_of::<QUOTE_V6>(ctx, ETHERNET_LEN + Ipv6Hdr::LEN + ICMP_LEN)? + u64::from(kind) + u64::from(mtu);
    put(
        ctx,
        ETHERNET_LEN + Ipv6Hdr::LEN,
        [kind, !checksum::fold_wide(sum), 0, mtu],
    )
}

/// Source and destination of the IPv6 header at `offset` from the start of the frame.
#[inline(always)]
fn addresses_v6(ctx: &XdpContext, offset: usize) -> Option<[[u32; 4]; 2]> {
    let both = packet::read_anew::<[[u8; 16]; 2]>(ctx, offset + 8)?;
    Some(both.map(packet::words))
}

/// Writes an IPv6 address and gives back its sum.
#[inline(always)]
pub fn put_address(ctx: &XdpContext, offset: usize, [a, b, c, d]: [u32; 4]) -> Option<u64> {
    let ([a0, a1], [b0, b1], [c0, c1], [d0, d1]) = (halves(a), halves(b), halves(c), halves(d));
    put(ctx, offset, [a0, a1, b0, b1, c0, c1, d0, d1])?;
    Some(u64::from(a) + u64::from(b) + u64::from(c) + u64::from(d))
}

/// A word in memory order as the two that stand in memory.
#[inline(always)]
pub const fn halves(word: u32) -> [u16; 2] {
    [word as u16, (word >> 16) as u16]
}

/// Cuts the frame to `keep` bytes and makes room for `before` more at its start.
#[inline(always)]
pub fn resize(ctx: &XdpContext, keep: usize, before: usize) -> Option<()> {
    let surplus = keep as i32 - packet::frame_len(ctx) as i32;
    // SAFETY: a valid context; no pointer into the packet is held.
    let cut = unsafe { bpf_xdp_adjust_tail(ctx.ctx, surplus) };
    // SAFETY: as above.
    let grown = unsafe { bpf_xdp_adjust_head(ctx.ctx, -(before as i32)) };
    (cut == 0 && grown == 0).then_some(())
}

/// What the helper sums at most in one call on older kernels.
const CHUNK: usize = 512;

/// The sum of `LEN` bytes of the packet, a multiple of 4.
#[inline(always)]
fn sum_of<const LEN: usize>(ctx: &XdpContext, offset: usize) -> Option<u64> {
    const { assert!(LEN.is_multiple_of(4) && LEN <= 3 * CHUNK) };
    let bytes = packet::at_anew::<[u8; LEN]>(ctx, offset)?.cast::<u8>();
    let mut sum = 0;
    for chunk in 0..LEN.div_ceil(CHUNK) {
        let len = if LEN - chunk * CHUNK < CHUNK {
            LEN % CHUNK
        } else {
            CHUNK
        };
        // SAFETY: `at` checked the bounds of all of it; nothing is read through the null pointer of length 0.
        let part = unsafe {
            bpf_csum_diff(
                core::ptr::null_mut(),
                0,
                bytes.add(chunk * CHUNK).cast(),
                len as u32,
                0,
            )
        };
        sum += part as u64 & 0xffff_ffff;
    }
    Some(sum)
}

/// Whether this CPU may send one more ICMP error: a bucket of [`BURST`] that fills with the configured rate.
#[inline(always)]
pub fn allowed() -> bool {
    let rate = u64::from(ICMP_ERROR_RATE.load());
    if rate == 0 {
        return true;
    }
    let Some(until) = ICMP_ERRORS_UNTIL.get_ptr_mut(0) else {
        return false;
    };
    let interval_ns = 1_000_000_000 / rate;
    let now_ns = now_ns();
    // SAFETY: a per-CPU value; nothing else runs on this CPU meanwhile.
    let until = unsafe { &mut *until };
    let saved_up = now_ns.saturating_sub(BURST * interval_ns);
    let begin = if *until < saved_up { saved_up } else { *until };
    if begin > now_ns {
        return false;
    }
    *until = begin + interval_ns;
    true
}
