//! A packet that has no hop left is answered, as a router must (RFC 1812 section 5.3.1, RFC 4443 section 3.3): "time
//! exceeded", at the same rate as [`toobig`].
//!
//! The answer comes from an address of ours that the sender's network knows: to a client from the service address, which its
//! packet was for; to a backend from the address that its answer would have had, or with `full-nat` from the one that it
//! was for. It quotes as much of the packet as RFC 1812 section 4.3.2.3 (576 bytes in all) and RFC 4443 section 2.4 (1280
//! bytes) say, in words of four bytes.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use lb_common::checksum;
use lb_common::reason::Reason;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use super::table;
use crate::link::{self, put};
use crate::packet::{self, ETHERNET_LEN, Ip};
use crate::toobig::{ICMP_LEN, PRECEDENCE, QUOTE_V4, QUOTE_V6, TTL, allowed, halves, put_address, resize};

const TIME_EXCEEDED: u8 = 11;
const TIME_EXCEEDED_V6: u8 = 3;

/// Answers a packet on its last hop in the name of `us`, or gives it up.
#[inline(always)]
pub fn answer(ctx: &XdpContext, ip: &Ip, us: &[u32; 4]) -> Reason {
    let Some(work) = table::work().filter(|_| !ip.quiet) else {
        return Reason::TtlExceeded;
    };
    work.us = *us;
    let answered = if ip.is_v4() {
        nat_expired_v4(ctx.ctx)
    } else {
        nat_expired_v6(ctx.ctx)
    };
    if answered != 0 {
        Reason::TtlExceededAnswered
    } else {
        Reason::TtlExceeded
    }
}

/// Not inlined, like its sister: they are rare.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nat_expired_v4(ctx: *mut xdp_md) -> u32 {
    u32::from(answer_v4(&XdpContext::new(ctx)).is_some())
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nat_expired_v6(ctx: *mut xdp_md) -> u32 {
    u32::from(answer_v6(&XdpContext::new(ctx)).is_some())
}

#[inline(always)]
fn answer_v4(ctx: &XdpContext) -> Option<()> {
    let ip = packet::ipv4(ctx).ok()?;
    let us = table::work()?.us[3];
    let sender = ip.source[3];
    let link = link::read(ctx)?;
    if !link.is_unicast() || !packet::is_host_v4(sender) || !allowed() {
        return None;
    }
    let quote = words_of(ip.length, QUOTE_V4);
    resize(ctx, ETHERNET_LEN + quote, Ipv4Hdr::LEN + ICMP_LEN)?;
    link.turned().write(ctx)?;
    let ethertype = packet::ETHERTYPE_IPV4.to_be();
    put(ctx, ETHERNET_LEN - size_of::<u16>(), ethertype)?;
    let length = ((Ipv4Hdr::LEN + ICMP_LEN + quote) as u16).to_be();
    let ([u0, u1], [s0, s1]) = (halves(us), halves(sender));
    let first = u16::from_ne_bytes([0x45, PRECEDENCE]);
    // Identification 0 and Don't Fragment: an atomic datagram (RFC 6864).
    let whole = u16::from_ne_bytes([0x40, 0]);
    let hops = u16::from_ne_bytes([TTL, packet::ICMP]);
    let mut sum = 0;
    for word in [first, length, whole, hops, u0, u1, s0, s1] {
        sum += u32::from(word);
    }
    let check = !checksum::fold(sum);
    put(
        ctx,
        ETHERNET_LEN,
        [first, length, 0, whole, hops, check, u0, u1, s0, s1],
    )?;
    let kind = u16::from_ne_bytes([TIME_EXCEEDED, 0]);
    let quoted = sum_of(ctx, ETHERNET_LEN + Ipv4Hdr::LEN + ICMP_LEN, quote)?;
    let check = !checksum::fold_wide(quoted + u64::from(kind));
    put(ctx, ETHERNET_LEN + Ipv4Hdr::LEN, [kind, check, 0, 0])
}

#[inline(always)]
fn answer_v6(ctx: &XdpContext) -> Option<()> {
    let ip = packet::ipv6(ctx).ok()?;
    let link = link::read(ctx)?;
    if !link.is_unicast() || !packet::is_host_v6(&ip.source) || !allowed() {
        return None;
    }
    let quote = words_of(ip.length, QUOTE_V6);
    resize(ctx, ETHERNET_LEN + quote, Ipv6Hdr::LEN + ICMP_LEN)?;
    link.turned().write(ctx)?;
    let ethertype = packet::ETHERTYPE_IPV6.to_be();
    put(ctx, ETHERNET_LEN - size_of::<u16>(), ethertype)?;
    let length = ((ICMP_LEN + quote) as u16).to_be();
    let version = u16::from_ne_bytes([0x60, 0]);
    let next_and_hops = u16::from_ne_bytes([packet::ICMPV6, TTL]);
    put(ctx, ETHERNET_LEN, [version, 0, length, next_and_hops])?;
    let mut sum = u64::from(length) + u64::from(u16::from(packet::ICMPV6).to_be());
    sum += put_address(ctx, ETHERNET_LEN + 8, table::work()?.us)?;
    sum += put_address(ctx, ETHERNET_LEN + 24, ip.source)?;
    let kind = u16::from_ne_bytes([TIME_EXCEEDED_V6, 0]);
    sum += sum_of(ctx, ETHERNET_LEN + Ipv6Hdr::LEN + ICMP_LEN, quote)? + u64::from(kind);
    put(
        ctx,
        ETHERNET_LEN + Ipv6Hdr::LEN,
        [kind, !checksum::fold_wide(sum), 0, 0],
    )
}

/// How much of a packet is quoted, in whole words.
#[inline(always)]
fn words_of(length: u32, most: usize) -> usize {
    let whole = (length & 0xfffc) as usize;
    if whole < most { whole } else { most }
}

/// The sum of so many bytes of the packet, whole words.
#[inline(always)]
fn sum_of(ctx: &XdpContext, offset: usize, bytes: usize) -> Option<u64> {
    let sum = nat_sum(ctx.ctx, offset as u32, bytes as u32);
    (sum != CUT_SHORT).then_some(u64::from(sum))
}

/// No sum of so few bytes.
const CUT_SHORT: u32 = u32::MAX;

/// Not inlined and global: a loop that the verifier follows once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nat_sum(ctx: *mut xdp_md, offset: u32, bytes: u32) -> u32 {
    const WORDS: usize = QUOTE_V6 / 4;
    let ctx = &XdpContext::new(ctx);
    let start = (offset & 0xff) as usize;
    let mut sum = 0;
    for word in 0..WORDS {
        if word as u32 * 4 >= bytes {
            break;
        }
        let Some([high, low]) = packet::read_anew::<[u16; 2]>(ctx, start + word * 4) else {
            return CUT_SHORT;
        };
        sum += u32::from(high) + u32::from(low);
    }
    sum
}
