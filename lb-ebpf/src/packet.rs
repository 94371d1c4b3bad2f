//! Parsing, on top of the one function that turns packet memory into pointers ([`crate::bounds`]).
//!
//! Header types come from `network-types` and have alignment 1.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use lb_common::hash;
use lb_common::layout::{FAMILY_V4, FAMILY_V6, ServiceKey};
use lb_common::reason::Reason;
use network_types::eth::EthHdr;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::bounds::{MAX_OFFSET, bounded, whole_len};
pub use crate::bounds::{at, at_anew, linear_len};
use crate::constants::{self, FRAGS};

/// Where the IP header begins: VLAN tags are off the frame by then.
pub const ETHERNET_LEN: usize = EthHdr::LEN;

pub const ETHERTYPE_IPV4: u16 = 0x0800;
pub const ETHERTYPE_IPV6: u16 = 0x86DD;
pub const ETHERTYPE_ARP: u16 = 0x0806;
pub const ETHERTYPE_VLAN: u16 = 0x8100;
pub const ETHERTYPE_QINQ: u16 = 0x88A8;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMP: u8 = 1;
pub const ICMPV6: u8 = 58;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
pub const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

/// Flags of a TCP segment.
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// How many IPv6 extension headers are followed. RFC 8200 names each at most once, destination options
/// twice.
const MAX_EXTENSIONS: usize = 6;

/// A copy of a `T` in the packet.
#[inline(always)]
pub fn read<T: Copy>(ctx: &XdpContext, offset: usize) -> Option<T> {
    // SAFETY: within bounds, alignment 1, and every `T` used here is made of integers.
    at::<T>(ctx, offset).map(|pointer| unsafe { pointer.read() })
}

/// Like [`read`], for offsets that vary (see [`at_anew`]).
#[inline(always)]
pub fn read_anew<T: Copy>(ctx: &XdpContext, offset: usize) -> Option<T> {
    // SAFETY: within bounds, alignment 1 or 2, and every `T` used here is made of integers.
    at_anew::<T>(ctx, offset).map(|pointer| unsafe { pointer.read() })
}

/// What the frame carries.
pub enum Network {
    Ipv4,
    Ipv6,
    Arp,
}

/// The fixed part of an IP header, which is all there is to say whose packet it is.
#[derive(Clone, Copy)]
pub struct Ip {
    /// [`FAMILY_V4`] or [`FAMILY_V6`].
    pub family: u8,
    /// Destination address as [`ServiceKey::address`].
    pub destination: [u32; 4],
    /// Source address as [`ServiceKey::address`].
    pub source: [u32; 4],
    /// Length of the IP packet by its header.
    pub length: u32,
    /// Type of service or traffic class.
    pub traffic_class: u8,
    /// Protocol or first next header.
    pub protocol: u8,
    /// IPv4: header length in bytes, may be below 20. IPv6: 40.
    pub header_len: u32,
    /// IPv4: fragment offset or more-fragments bit are set.
    pub fragment: bool,
    /// IPv4: fragment offset in units of 8 bytes.
    pub fragment_offset: u32,
    /// No ICMP error may answer it (RFC 1122 section 3.2.2): it is one itself, or not a first fragment.
    pub quiet: bool,
}

/// A packet of TCP or UDP. All fields have one size, and so has [`NoFlow`]: the result of the two then lives
/// in registers, where smaller ones would be packed together on the stack.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Flow {
    pub protocol: u32,
    /// Source and destination port as their four bytes stand in the packet.
    pub ports: u32,
    /// 1 for a TCP segment with SYN and without ACK, else 0.
    pub opens: u32,
    /// Where the transport header begins, in bytes from the start of the frame; 0 for a flow that an ICMP error
    /// quotes.
    pub transport: u32,
}

/// Why there is no flow. What follows depends on whose address it is.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum NoFlow {
    /// ICMPv6 directly behind the IPv6 header.
    Icmpv6,
    /// ICMP, or ICMPv6 behind extension headers.
    Icmp,
    /// Neither TCP nor UDP.
    OtherProtocol,
    /// Cut short, or lengths that contradict each other.
    Malformed,
    Fragment,
    /// More than [`MAX_EXTENSIONS`] extension headers.
    Extensions,
}

/// As much of a TCP header as is used, and what must be there to be one.
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Tcp {
    ports: [u8; 4],
    sequence: [u8; 4],
    acknowledgment: [u8; 4],
    offset_and_flags: [u8; 2],
    rest: [u8; 6],
}

#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Udp {
    ports: [u8; 4],
    length_and_checksum: [u8; 4],
}

/// Where the extension headers of an IPv6 packet end.
#[derive(Clone, Copy)]
pub struct Behind {
    /// Type of the header there.
    pub next: u8,
    /// Where it begins, in bytes from the start of the IP header.
    pub offset: u32,
}

/// The first bytes of an IPv6 extension header.
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Extension {
    next: u8,
    length: u8,
}

/// What the rare paths must know of a TCP segment.
#[derive(Clone, Copy)]
pub struct Segment {
    /// As [`Flow::ports`].
    pub ports: u32,
    pub sequence: u32,
    pub acknowledgment: u32,
    /// Length of the TCP header in bytes, by itself: may be below 20, and beyond the packet.
    pub header_len: u32,
    pub flags: u8,
}

/// Reads the TCP header that [`Flow::transport`] tells the place of.
#[inline(always)]
pub fn segment(ctx: &XdpContext, transport: u32) -> Option<Segment> {
    if transport > MAX_OFFSET {
        return None;
    }
    let Tcp {
        ports,
        sequence,
        acknowledgment,
        offset_and_flags: [offset, flags],
        ..
    } = read(ctx, bounded(transport))?;
    Some(Segment {
        ports: u32::from_ne_bytes(ports),
        sequence: u32::from_be_bytes(sequence),
        acknowledgment: u32::from_be_bytes(acknowledgment),
        header_len: u32::from(offset >> 4) * 4,
        flags,
    })
}

impl Segment {
    /// SYN without ACK: the client opens a connection.
    #[inline(always)]
    pub fn opens(&self) -> bool {
        opens(self.flags)
    }

    #[inline(always)]
    pub fn fin(&self) -> bool {
        self.flags & FIN != 0
    }

    #[inline(always)]
    pub fn rst(&self) -> bool {
        self.flags & RST != 0
    }
}

/// SYN without ACK among the flags of a TCP segment: the client opens a connection.
#[inline(always)]
pub fn opens(flags: u8) -> bool {
    flags & (SYN | ACK) == SYN
}

/// Neither SYN nor FIN nor RST among the flags of a TCP segment.
#[inline(always)]
pub fn goes_on(flags: u8) -> bool {
    flags & (SYN | FIN | RST) == 0
}

/// Length of the frame in bytes, with all its buffers.
#[inline(always)]
pub fn frame_len(ctx: &XdpContext) -> u32 {
    if FRAGS.load() == 0 {
        return linear_len(ctx);
    }
    whole_len(ctx)
}

/// Reads the Ethernet header.
#[inline(always)]
pub fn network(ctx: &XdpContext) -> Result<Network, Reason> {
    let ethernet = at::<EthHdr>(ctx, 0).ok_or(Reason::NotIp)?;
    // SAFETY: `at` checked the bounds, and frames start at even addresses.
    let ethertype = u16::from_be(unsafe { (*ethernet).ether_type });
    match ethertype {
        ETHERTYPE_IPV4 => Ok(Network::Ipv4),
        ETHERTYPE_IPV6 => Ok(Network::Ipv6),
        ETHERTYPE_ARP => Ok(Network::Arp),
        ETHERTYPE_VLAN | ETHERTYPE_QINQ => Err(Reason::Vlan),
        _ => Err(Reason::NotIp),
    }
}

/// Reads the fixed part of an IPv4 header.
#[inline(always)]
pub fn ipv4(ctx: &XdpContext) -> Result<Ip, Reason> {
    ipv4_at(ctx, ETHERNET_LEN)
}

/// Reads the fixed part of an IPv4 header, `start` bytes from the start of the frame.
#[inline(always)]
pub fn ipv4_at(ctx: &XdpContext, start: usize) -> Result<Ip, Reason> {
    let header = at::<Ipv4Hdr>(ctx, start).ok_or(Reason::BadHeader)?;
    // SAFETY: `at` checked the bounds; the fields have alignment 1.
    let header = unsafe { &*header };
    if header.vihl >> 4 != 4 {
        return Err(Reason::BadHeader);
    }
    let frags = u16::from_be_bytes(header.frags);
    Ok(Ip {
        family: FAMILY_V4,
        destination: [0, 0, 0, u32::from_ne_bytes(header.dst_addr)],
        source: [0, 0, 0, u32::from_ne_bytes(header.src_addr)],
        length: u32::from(u16::from_be_bytes(header.tot_len)),
        traffic_class: header.tos,
        protocol: header.proto,
        header_len: u32::from(header.vihl & 0xf) * 4,
        fragment: frags & 0x3fff != 0,
        fragment_offset: u32::from(frags & 0x1fff),
        quiet: false,
    })
}

/// Reads an IPv6 header.
#[inline(always)]
pub fn ipv6(ctx: &XdpContext) -> Result<Ip, Reason> {
    ipv6_at(ctx, ETHERNET_LEN)
}

/// Reads an IPv6 header, `start` bytes from the start of the frame.
#[inline(always)]
pub fn ipv6_at(ctx: &XdpContext, start: usize) -> Result<Ip, Reason> {
    let header = at::<Ipv6Hdr>(ctx, start).ok_or(Reason::BadHeader)?;
    // SAFETY: `at` checked the bounds; the fields have alignment 1.
    let header = unsafe { &*header };
    let vcf = u32::from_be_bytes(header.vcf);
    if vcf >> 28 != 6 {
        return Err(Reason::BadHeader);
    }
    Ok(Ip {
        family: FAMILY_V6,
        destination: words(header.dst_addr),
        source: words(header.src_addr),
        length: u32::from(u16::from_be_bytes(header.payload_len)) + Ipv6Hdr::LEN as u32,
        traffic_class: (vcf >> 20) as u8,
        protocol: header.next_hdr,
        header_len: Ipv6Hdr::LEN as u32,
        fragment: false,
        fragment_offset: 0,
        quiet: false,
    })
}

/// Follows IPv6 extension headers from the one of type `next` at `offset` from the start of the IP header, as far as
/// they can be followed: to the transport header, or a fragment header. `length` is that of the packet.
#[inline(always)]
fn walk(
    ctx: &XdpContext,
    length: u32,
    mut next: u8,
    mut offset: u32,
    read: impl Fn(&XdpContext, usize) -> Option<Extension>,
) -> Result<Behind, NoFlow> {
    for _ in 0..MAX_EXTENSIONS {
        match next {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | AUTHENTICATION => {}
            _ => break,
        }
        let extension = read(ctx, ETHERNET_LEN + offset as usize).ok_or(NoFlow::Malformed)?;
        // RFC 8200 section 4: units of 8 bytes beyond the first; RFC 4302 section 2.2: units of 4, less 2.
        let len = if next == AUTHENTICATION {
            (u32::from(extension.length) + 2) * 4
        } else {
            (u32::from(extension.length) + 1) * 8
        };
        offset += len;
        if offset > length {
            return Err(NoFlow::Malformed);
        }
        next = extension.next;
    }
    match next {
        HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | AUTHENTICATION => Err(NoFlow::Extensions),
        _ => Ok(Behind { next, offset }),
    }
}

/// How far [`walk_anew`] goes: twice what [`MAX_EXTENSIONS`] headers can take, and a bound for the verifier.
const FARTHEST: u32 = 0x7fff;

/// Like [`walk`], for the rare paths, where it is called several times; `None` where it comes to no end.
#[inline(always)]
pub fn walk_anew(ctx: &XdpContext, length: u32, next: u8, offset: u32) -> Option<Behind> {
    let found = walk_apart(ctx.ctx, length, u32::from(next), offset);
    (found != NOWHERE).then_some(Behind {
        next: (found >> 32) as u8,
        offset: found as u32 & FARTHEST,
    })
}

const NOWHERE: u64 = u64::MAX;

/// Not inlined, or its copies would fill the stack of its callers.
#[inline(never)]
fn walk_apart(ctx: *mut xdp_md, length: u32, next: u32, offset: u32) -> u64 {
    match walk(
        &XdpContext::new(ctx),
        length,
        next as u8,
        offset & FARTHEST,
        read_anew,
    ) {
        Ok(Behind { next, offset }) if offset <= FARTHEST => u64::from(next) << 32 | u64::from(offset),
        _ => NOWHERE,
    }
}

/// Length of a fragment header (RFC 8200 section 4.5).
pub const FRAGMENT_LEN: u32 = 8;

/// What an IPv6 fragment header says.
#[derive(Clone, Copy)]
pub struct FragmentV6 {
    pub next: u8,
    /// In units of 8 bytes.
    pub offset: u32,
    /// Not 0: more fragments follow.
    pub more: u32,
    /// As it stands in memory.
    pub identification: u32,
}

/// Reads the fragment header at `offset` from the start of the IP header.
#[inline(always)]
pub fn fragment_v6(ctx: &XdpContext, ip: &Ip, offset: u32) -> Option<FragmentV6> {
    if offset + FRAGMENT_LEN > ip.length {
        return None;
    }
    let [next, _, high, low, a, b, c, d] = read_anew::<[u8; 8]>(ctx, ETHERNET_LEN + offset as usize)?;
    let place = u32::from(u16::from_be_bytes([high, low]));
    Some(FragmentV6 {
        next,
        offset: place >> 3,
        more: place & 1,
        identification: u32::from_ne_bytes([a, b, c, d]),
    })
}

/// The flow of a transport header at `offset` from the start of the IP header, for offsets that vary (see [`at_anew`]).
/// `length` is that of the packet.
#[inline(always)]
pub fn ports_anew(ctx: &XdpContext, length: u32, protocol: u8, offset: u32) -> Option<Flow> {
    let start = ETHERNET_LEN + (offset & FARTHEST) as usize;
    let (ports, opens) = if protocol == TCP {
        if offset + size_of::<Tcp>() as u32 > length {
            return None;
        }
        let Tcp {
            ports,
            offset_and_flags: [_, flags],
            ..
        } = read_anew::<Tcp>(ctx, start)?;
        (ports, u32::from(opens(flags)))
    } else {
        if offset + size_of::<Udp>() as u32 > length {
            return None;
        }
        let Udp { ports, .. } = read_anew::<Udp>(ctx, start)?;
        (ports, 0)
    };
    Some(Flow {
        protocol: u32::from(protocol),
        ports: u32::from_ne_bytes(ports),
        opens,
        transport: start as u32,
    })
}

/// Whether an IPv4 address in memory order can be that of one host: not of this network, loopback, multicast,
/// reserved or broadcast. ICMP says nothing to others (RFC 1122 section 3.2.2).
#[inline(always)]
pub fn is_host_v4(address: u32) -> bool {
    let [first, ..] = address.to_ne_bytes();
    first != 0 && first != 127 && first < 224
}

/// Whether an IPv6 address can be that of one host: neither unspecified nor multicast (RFC 4443 section 2.4 (e)).
#[inline(always)]
pub fn is_host_v6(address: &[u32; 4]) -> bool {
    let [a, b, c, d] = *address;
    let [first, ..] = a.to_ne_bytes();
    first != 0xff && a | b | c | d != 0
}

/// An IPv6 address as four words in network order.
#[inline(always)]
pub fn words(address: [u8; 16]) -> [u32; 4] {
    let [a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3] = address;
    [
        u32::from_ne_bytes([a0, a1, a2, a3]),
        u32::from_ne_bytes([b0, b1, b2, b3]),
        u32::from_ne_bytes([c0, c1, c2, c3]),
        u32::from_ne_bytes([d0, d1, d2, d3]),
    ]
}

impl Ip {
    /// Nobody's.
    pub const NONE: Self = Self {
        family: 0,
        destination: [0; 4],
        source: [0; 4],
        length: 0,
        traffic_class: 0,
        protocol: 0,
        header_len: 0,
        fragment: false,
        fragment_offset: 0,
        quiet: true,
    };

    #[inline(always)]
    pub fn is_v4(&self) -> bool {
        self.family == FAMILY_V4
    }

    /// What to ask the map of services for. `port` is in network order; with port and protocol 0 it is the
    /// address itself.
    #[inline(always)]
    pub fn key(&self, port: u16, protocol: u8) -> ServiceKey {
        ServiceKey {
            address: self.destination,
            port,
            protocol,
            family: self.family,
        }
    }

    /// Follows the headers to the transport protocol. Lengths are held against the frame: a frame may be
    /// longer than its packet (padding), never shorter.
    #[inline(always)]
    pub fn flow(&self, ctx: &XdpContext) -> Result<Flow, NoFlow> {
        if self.length + ETHERNET_LEN as u32 > frame_len(ctx) {
            return Err(NoFlow::Malformed);
        }
        if !self.is_v4() {
            return self.flow_v6(ctx);
        }
        if self.header_len < Ipv4Hdr::LEN as u32 || self.header_len > self.length {
            return Err(NoFlow::Malformed);
        }
        if self.fragment {
            return Err(NoFlow::Fragment);
        }
        // The usual header without options gets constant offsets.
        if self.header_len == Ipv4Hdr::LEN as u32 {
            return self.ports(ctx, self.protocol, Ipv4Hdr::LEN as u32);
        }
        self.ports(ctx, self.protocol, self.header_len)
    }

    #[inline(always)]
    fn flow_v6(&self, ctx: &XdpContext) -> Result<Flow, NoFlow> {
        match self.protocol {
            TCP | UDP => return self.ports(ctx, self.protocol, Ipv6Hdr::LEN as u32),
            ICMPV6 => return Err(NoFlow::Icmpv6),
            _ => {}
        }
        let Behind { next, offset } = walk(ctx, self.length, self.protocol, Ipv6Hdr::LEN as u32, read)?;
        match next {
            FRAGMENT => Err(NoFlow::Fragment),
            _ => self.ports(ctx, next, offset),
        }
    }

    /// `offset` is that of the transport header from the start of the IP header.
    #[inline(always)]
    pub fn ports(&self, ctx: &XdpContext, protocol: u8, offset: u32) -> Result<Flow, NoFlow> {
        let start = ETHERNET_LEN + offset as usize;
        match protocol {
            TCP => {
                if offset + size_of::<Tcp>() as u32 > self.length {
                    return Err(NoFlow::Malformed);
                }
                let tcp = at::<Tcp>(ctx, start).ok_or(NoFlow::Malformed)?;
                // SAFETY: `at` checked the bounds; the fields have alignment 1.
                let Tcp {
                    ports,
                    offset_and_flags: [_, flags],
                    ..
                } = unsafe { &*tcp };
                Ok(Flow {
                    protocol: u32::from(TCP),
                    ports: u32::from_ne_bytes(*ports),
                    opens: u32::from(opens(*flags)),
                    transport: start as u32,
                })
            }
            UDP => {
                if offset + size_of::<Udp>() as u32 > self.length {
                    return Err(NoFlow::Malformed);
                }
                let udp = at::<Udp>(ctx, start).ok_or(NoFlow::Malformed)?;
                // SAFETY: `at` checked the bounds; the fields have alignment 1.
                let Udp { ports, .. } = unsafe { &*udp };
                Ok(Flow {
                    protocol: u32::from(UDP),
                    ports: u32::from_ne_bytes(*ports),
                    opens: 0,
                    transport: start as u32,
                })
            }
            ICMP if self.is_v4() => Err(NoFlow::Icmp),
            ICMPV6 if !self.is_v4() => Err(NoFlow::Icmp),
            _ => Err(NoFlow::OtherProtocol),
        }
    }

    /// The keyed hash of the client's address alone.
    #[inline(always)]
    pub fn source_hash(&self) -> u32 {
        if self.is_v4() {
            hash::flow_v4(&constants::hash_key_v4(), u32::from_le(self.source[3]), 0)
        } else {
            hash::flow_v6(&constants::hash_key_v6(), self.source.map(u32::from_le), 0)
        }
    }

    /// The keyed hash that gives the flow its slot.
    #[inline(always)]
    pub fn hash(&self, flow: &Flow) -> u32 {
        let ports = u32::from_le(flow.ports);
        if self.is_v4() {
            hash::flow_v4(&constants::hash_key_v4(), u32::from_le(self.source[3]), ports)
        } else {
            hash::flow_v6(&constants::hash_key_v6(), self.source.map(u32::from_le), ports)
        }
    }
}

impl Flow {
    /// Whether this is a TCP segment itself, not one that an ICMP error quotes.
    #[inline(always)]
    pub fn is_tcp_segment(&self) -> bool {
        self.protocol == u32::from(TCP) && self.transport != 0
    }

    /// Destination port in network order.
    #[inline(always)]
    pub fn destination_port(&self) -> u16 {
        let [_, _, high, low] = self.ports.to_ne_bytes();
        u16::from_ne_bytes([high, low])
    }
}
