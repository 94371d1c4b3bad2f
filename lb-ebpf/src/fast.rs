//! The way that nearly all packets go: TCP or UDP in IPv4 without options or in IPv6 without extension headers, whole,
//! to a service that its bucket knows, in a slot that does not move, to a backend that serves.
//!
//! Whatever is not like that ends here with `None` and begins again in [`crate::rest`], which knows every case and is
//! a function of its own. So nothing but the context has to outlive a decision to leave, which keeps the values of
//! this path in registers, and its code stands together.
//!
//! It is there twice, and one of the two is in the loaded program ([`PLAIN`]): the checks of a constant go with it, but
//! not the load of the constant, nor what the compiler kept ready for the case that it is set.

use aya_ebpf::programs::XdpContext;
use lb_common::hash;
use lb_common::layout::{FAMILY_V4, FAMILY_V6, FlowKey, ServiceKey, kind};
use lb_common::reason::Reason;
use lb_common::rule::Standing;

use crate::bounds::at;
use crate::constants::{self, GUE, NAT, PLAIN, SPREAD, VLANS};
use crate::forward::{self, gue, ipip, l2};
use crate::packet::{ETHERNET_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, TCP, UDP, goes_on, linear_len, opens};
use crate::service::{self, Door};
use crate::word::word;
use crate::{flow, full, guard, quic, schedule, stats, suspect, vlan};

const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
const TCP_LEN: usize = 20;
const UDP_LEN: usize = 8;

/// A packet of a shape that this path takes.
struct Plain {
    key: ServiceKey,
    /// The client's address as [`ServiceKey::address`].
    source: [u32; 4],
    /// As [`crate::packet::Flow::ports`].
    ports: u32,
    /// Length of the IP packet.
    length: u32,
    /// Of TCP; 0 for UDP.
    flags: u8,
}

/// What becomes of the packet; `None`: something rarer, the packet is as it was.
#[inline(always)]
pub fn steer(ctx: &XdpContext) -> Option<Reason> {
    if PLAIN.load() != 0 {
        read::<true>(ctx)
    } else {
        read::<false>(ctx)
    }
}

#[inline(always)]
fn read<const PLAIN: bool>(ctx: &XdpContext) -> Option<Reason> {
    let frame = holding::<{ ETHERNET_LEN + IPV4_LEN + UDP_LEN }>(ctx)?;
    // SAFETY: `holding` checked the bounds.
    match unsafe { word::<u16, 12>(frame) } {
        TYPE_IPV4 => balance::<PLAIN>(ctx, &ipv4(ctx, frame)?),
        TYPE_IPV6 => balance::<PLAIN>(ctx, &ipv6(ctx)?),
        _ => None,
    }
}

const TYPE_IPV4: u16 = ETHERTYPE_IPV4.to_be();
const TYPE_IPV6: u16 = ETHERTYPE_IPV6.to_be();

/// The start of the frame, if it has `LEN` bytes.
#[inline(always)]
fn holding<const LEN: usize>(ctx: &XdpContext) -> Option<*mut u8> {
    Some(at::<[u8; LEN]>(ctx, 0)?.cast())
}

/// Reads a frame that has room for IPv4 and UDP header. Of the words of 64 bits the first is version, header length, type
/// of service, total length, identification and place among fragments, the last destination and both ports.
#[inline(always)]
fn ipv4(ctx: &XdpContext, frame: *mut u8) -> Option<Plain> {
    /// Version, header length, and what says that this is a fragment (RFC 791 section 3.1).
    const SHAPE: u64 = 0xff3f_0000_0000_00ff;
    // SAFETY: the caller checked the bounds.
    let (first, second, source, last) = unsafe {
        (
            word::<u64, 14>(frame),
            word::<u16, 22>(frame),
            word::<u32, 26>(frame),
            word::<u64, 30>(frame),
        )
    };
    if first & SHAPE != 0x45 {
        return None;
    }
    let length = u32::from(u16::from_be((first >> 16) as u16));
    let protocol = (second >> 8) as u8;
    let ports = (last >> 32) as u32;
    Some(Plain {
        key: key([0, 0, 0, last as u32], ports, protocol, FAMILY_V4),
        source: [0, 0, 0, source],
        ports,
        length,
        flags: transport::<IPV4_LEN, { ETHERNET_LEN + IPV4_LEN + TCP_LEN }>(ctx, protocol, length)?,
    })
}

/// Of the words the first is version, traffic class, flow label, payload length, next header and hop limit.
#[inline(always)]
fn ipv6(ctx: &XdpContext) -> Option<Plain> {
    let frame = holding::<{ ETHERNET_LEN + IPV6_LEN + UDP_LEN }>(ctx)?;
    // SAFETY: `holding` checked the bounds.
    let (first, source, destination, ports) = unsafe {
        (
            word::<u64, 14>(frame),
            [
                word::<u32, 22>(frame),
                word::<u32, 26>(frame),
                word::<u32, 30>(frame),
                word::<u32, 34>(frame),
            ],
            [word::<u64, 38>(frame), word::<u64, 46>(frame)],
            word::<u32, 54>(frame),
        )
    };
    if first & 0xf0 != 0x60 {
        return None;
    }
    let length = u32::from(u16::from_be((first >> 32) as u16)) + IPV6_LEN as u32;
    let protocol = (first >> 48) as u8;
    Some(Plain {
        key: key(words(destination), ports, protocol, FAMILY_V6),
        source,
        ports,
        length,
        flags: transport::<IPV6_LEN, { ETHERNET_LEN + IPV6_LEN + TCP_LEN }>(ctx, protocol, length)?,
    })
}

/// The flags of a packet with an IP header of `HEADER` bytes; `None` where the transport header is not in
/// the packet or the packet not in the frame. With a TCP header the frame has `WHOLE` bytes at least.
#[inline(always)]
fn transport<const HEADER: usize, const WHOLE: usize>(
    ctx: &XdpContext,
    protocol: u8,
    length: u32,
) -> Option<u8> {
    if length + ETHERNET_LEN as u32 > linear_len(ctx) {
        return None;
    }
    if protocol == TCP && length >= (HEADER + TCP_LEN) as u32 {
        let frame = holding::<WHOLE>(ctx)?;
        // SAFETY: `holding` checked the bounds.
        return Some(unsafe { *frame.add(ETHERNET_LEN + HEADER + 13) });
    }
    (protocol == UDP && length >= (HEADER + UDP_LEN) as u32).then_some(0)
}

#[inline(always)]
fn key(address: [u32; 4], ports: u32, protocol: u8, family: u8) -> ServiceKey {
    ServiceKey {
        address,
        port: (ports >> 16) as u16,
        protocol,
        family,
    }
}

#[inline(always)]
fn words([a, b]: [u64; 2]) -> [u32; 4] {
    [a as u32, (a >> 32) as u32, b as u32, (b >> 32) as u32]
}

/// From the packet to its backend.
#[inline(always)]
fn balance<const PLAIN: bool>(ctx: &XdpContext, packet: &Plain) -> Option<Reason> {
    let service = match service::door(&packet.key) {
        Door::Service(index) => index,
        Door::None => return Some(Reason::NotService),
        Door::Unknown => return None,
    };
    stats::explain_service(service);
    if !PLAIN && let Err(reason) = guard::ask(&packet.source, service) {
        return Some(reason);
    }
    if !PLAIN && guard::is_limited(service, packet.opens(), packet.key.protocol) {
        return None;
    }
    let table = service::table(service)?;
    if !PLAIN && NAT.load() != 0 && table.is_nat() {
        return Some(Reason::Nat);
    }
    if table.is_resizing() {
        return None;
    }
    let hash = packet.hash(packet.ports);
    if !PLAIN && quic::is_on(table) {
        let way = quic::way(ctx, packet.transport(), service);
        if !way.is_none() {
            let index = way.backend();
            if index == 0 {
                return None;
            }
            let reason = leave::<PLAIN>(ctx, packet, hash, index)?;
            way.count(service);
            return Some(reason);
        }
    }
    if !PLAIN && constants::choosers() && table.is_full() {
        let index = full::known(packet.identity(hash, service), packet.goes_on(), service);
        return leave::<PLAIN>(ctx, packet, hash, index?);
    }
    let slot_hash = if !PLAIN && constants::choosers() && schedule::is_by_source(table) {
        packet.hash(0)
    } else {
        hash
    };
    let slot = schedule::slot(table, slot_hash)?;
    let index = if slot.consult() {
        let key = FlowKey {
            source: packet.source,
            ports: packet.ports,
            service,
        };
        // What a datagram of QUIC is to its entry, the rule has to say.
        flow::known(&key, hash, packet.goes_on() && !quic::is_on(table))?
    } else {
        slot.current()
    };
    leave::<PLAIN>(ctx, packet, hash, index)
}

/// Sends the packet to a backend.
#[inline(always)]
fn leave<const PLAIN: bool>(ctx: &XdpContext, packet: &Plain, hash: u32, index: u32) -> Option<Reason> {
    stats::explain_backend(index);
    send::<PLAIN>(ctx, packet, hash, index)
}

impl Plain {
    #[inline(always)]
    fn opens(&self) -> bool {
        opens(self.flags)
    }

    /// Neither opens a connection nor ends it.
    #[inline(always)]
    fn goes_on(&self) -> bool {
        goes_on(self.flags)
    }

    /// [`full::identity`] of its flow.
    #[inline(always)]
    fn identity(&self, hash: u32, service: u32) -> u64 {
        full::identity(self.source, self.ports, hash, service)
    }

    /// Where the transport header begins, in bytes from the start of the frame.
    #[inline(always)]
    fn transport(&self) -> u32 {
        let header = if self.key.family == FAMILY_V4 {
            IPV4_LEN
        } else {
            IPV6_LEN
        };
        (ETHERNET_LEN + header) as u32
    }

    #[inline(always)]
    fn hash(&self, ports: u32) -> u32 {
        let ports = u32::from_le(ports);
        if self.key.family == FAMILY_V4 {
            hash::flow_v4(&constants::hash_key_v4(), u32::from_le(self.source[3]), ports)
        } else {
            hash::flow_v6(&constants::hash_key_v6(), self.source.map(u32::from_le), ports)
        }
    }
}

/// Rewrites the packet for the backend and sends it.
#[inline(always)]
fn send<const PLAIN: bool>(ctx: &XdpContext, packet: &Plain, hash: u32, index: u32) -> Option<Reason> {
    const L2: u16 = shape(kind::L2);
    const IPV4: u16 = shape(kind::IPV4);
    const IPV6: u16 = shape(kind::IPV6);
    const GUE_V4: u16 = shape(kind::GUE_V4);
    const GUE_V6: u16 = shape(kind::GUE_V6);

    let backend = forward::backend(index)?;
    let bytes = u64::from(linear_len(ctx));
    let is_v4 = packet.key.family == FAMILY_V4;
    let shape = u16::from_le_bytes([backend.kind, backend.standing]);
    // Not where the packet may have to leave this path still, or it would be seen twice.
    if matches!(shape, L2 | IPV4 | IPV6 | GUE_V4 | GUE_V6)
        && packet.length + gue::OVERHEAD_V6 as u32 <= u32::from(backend.mtu)
    {
        suspect::look(ctx, u32::from(packet.opens()), packet.transport(), hash, index);
    }
    let spreads = !PLAIN && SPREAD.load() != 0;
    let rewritten = match shape {
        IPV4 if is_v4 => ipip::encapsulate_v4(ctx, packet.length, hash, backend, spreads),
        IPV6 => ipip::encapsulate_v6(ctx, is_v4, packet.length, hash, backend, spreads),
        L2 => l2::rewrite(ctx, packet.length, backend),
        GUE_V4 if GUE.load() != 0 && is_v4 => gue::encapsulate_v4(ctx, packet.length, hash, backend, spreads),
        GUE_V6 if GUE.load() != 0 => gue::encapsulate_v6(ctx, is_v4, packet.length, hash, backend, spreads),
        _ => return None,
    };
    match rewritten {
        Ok(()) => {}
        Err(Reason::TooBig) => return None,
        Err(reason) => return Some(reason),
    }
    if !PLAIN
        && VLANS.load() != 0
        && let Err(reason) = vlan::put_for(ctx, index)
    {
        return Some(reason);
    }
    Some(forward::away(
        ctx,
        backend,
        index,
        bytes,
        u32::from(packet.opens()),
    ))
}

/// How a backend that serves is reached, in the order of the fields in memory.
const fn shape(kind: u8) -> u16 {
    u16::from_le_bytes([kind, Standing::Serves.bits()])
}
