//! Whether a frame left as its reason and its backend demand.

use std::net::IpAddr;

use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::{
    EtherType, Ethernet2Slice, Icmpv4Type, Icmpv6Type, IpNumber, Ipv4HeaderSlice, Ipv6HeaderSlice, NetSlice,
    SlicedPacket, TransportSlice, UdpHeaderSlice,
};
use lb_common::reason::{Reason, Verdict};
use xlb::datapath::simulate::{OWN_MAC, Outcome, SOURCE_V4, SOURCE_V6};

use crate::build::ETHERNET;
use crate::world::mac_of;

/// Passed frames are untouched, forwarded ones right in every byte. Dropped ones may look like anything, and
/// answers to ARP and solicitations have tests of their own.
pub fn check(shows: &str, packet: &[u8], outcome: &Outcome) {
    match outcome.reason {
        Reason::Transmitted | Reason::Redirected => forwarded(shows, packet, outcome),
        Reason::ArpReply | Reason::NeighborReply => {}
        Reason::EchoReply => echo_reply(shows, packet, &outcome.out),
        Reason::TooBigAnswered => too_big(shows, packet, &outcome.out),
        reason if reason.verdict() == Verdict::Pass => assert_eq!(outcome.out, packet, "{shows}"),
        _ => {}
    }
}

fn forwarded(shows: &str, packet: &[u8], outcome: &Outcome) {
    let backend = outcome.backend.expect("a packet is sent to a backend").ip();
    let service = outcome
        .service
        .as_deref()
        .expect("a packet is sent for a service");
    let ethernet = Ethernet2Slice::from_slice_without_fcs(&outcome.out).expect("an Ethernet frame");
    let before = Ethernet2Slice::from_slice_without_fcs(packet).expect("an Ethernet frame");
    assert_eq!(ethernet.destination(), mac_of(backend), "{shows}: to its backend");
    assert_eq!(ethernet.source(), OWN_MAC, "{shows}: from us");
    let inner = before.payload_slice();
    let encapsulates = ["4in4", "6in6", "4in6", "one-port", "gue"];
    let gue = service.starts_with("gue");
    if encapsulates.iter().any(|name| service.starts_with(name)) {
        let rest = match backend {
            IpAddr::V4(_) => outer_v4(shows, &ethernet, inner, backend, gue),
            IpAddr::V6(_) => outer_v6(shows, &ethernet, inner, backend, gue),
        };
        let rest = if gue { behind_udp(shows, rest, inner) } else { rest };
        assert_eq!(
            rest, inner,
            "{shows}: what is inside, padding included, is untouched"
        );
        assert_eq!(
            outcome.out.len() - packet.len(),
            if backend.is_ipv4() { 20 } else { 40 } + if gue { 8 } else { 0 },
            "{shows}"
        );
    } else {
        assert_eq!(
            outcome.out[ETHERNET - 2..],
            packet[ETHERNET - 2..],
            "{shows}: only MACs change"
        );
    }
}

/// Length of an IP packet by its own header, and its traffic class.
fn inner_of(ip: &[u8]) -> (u16, u8) {
    match ip[0] >> 4 {
        4 => {
            let header = Ipv4HeaderSlice::from_slice(ip).expect("an IPv4 header");
            let class = header.dcp().value() << 2 | header.ecn().value();
            (header.total_len(), class)
        }
        _ => {
            let header = Ipv6HeaderSlice::from_slice(ip).expect("an IPv6 header");
            (header.payload_length() + 40, header.traffic_class())
        }
    }
}

/// RFC 2003; gives back what is behind the outer header.
fn outer_v4<'a>(
    shows: &str,
    frame: &Ethernet2Slice<'a>,
    inner: &[u8],
    backend: IpAddr,
    gue: bool,
) -> &'a [u8] {
    let (len, class) = inner_of(inner);
    let (len, protocol) = if gue {
        (len + 8, IpNumber::UDP)
    } else {
        (len, IpNumber::IPV4)
    };
    assert_eq!(frame.ether_type(), EtherType::IPV4, "{shows}");
    let slice = Ipv4HeaderSlice::from_slice(frame.payload_slice()).expect("an outer IPv4 header");
    let header = slice.to_header();
    assert_eq!(
        header.header_checksum,
        header.calc_header_checksum(),
        "{shows}: outer checksum"
    );
    assert_eq!(header.total_len, len + 20, "{shows}: outer length");
    assert_eq!(
        header.dscp.value() << 2 | header.ecn.value(),
        class,
        "{shows}: DSCP and ECN"
    );
    assert_eq!(header.protocol, protocol, "{shows}");
    assert_eq!(IpAddr::from(header.source), IpAddr::V4(SOURCE_V4), "{shows}");
    assert_eq!(IpAddr::from(header.destination), backend, "{shows}");
    assert_eq!((header.time_to_live, header.identification), (64, 0), "{shows}");
    assert!(
        header.dont_fragment && !header.is_fragmenting_payload(),
        "{shows}"
    );
    assert!(header.options.is_empty(), "{shows}");
    &frame.payload_slice()[20..]
}

/// RFC 2473; gives back what is behind the outer header.
fn outer_v6<'a>(
    shows: &str,
    frame: &Ethernet2Slice<'a>,
    inner: &[u8],
    backend: IpAddr,
    gue: bool,
) -> &'a [u8] {
    let (len, class) = inner_of(inner);
    let len = if gue { len + 8 } else { len };
    assert_eq!(frame.ether_type(), EtherType::IPV6, "{shows}");
    let header = Ipv6HeaderSlice::from_slice(frame.payload_slice()).expect("an outer IPv6 header");
    let next = if gue {
        IpNumber::UDP
    } else if inner[0] >> 4 == 4 {
        IpNumber::IPV4
    } else {
        IpNumber::IPV6
    };
    assert_eq!(header.payload_length(), len, "{shows}: outer length");
    assert_eq!(header.traffic_class(), class, "{shows}: traffic class");
    assert_eq!(header.next_header(), next, "{shows}");
    assert_eq!(IpAddr::from(header.source()), IpAddr::V6(SOURCE_V6), "{shows}");
    assert_eq!(IpAddr::from(header.destination()), backend, "{shows}");
    assert_eq!(header.hop_limit(), 64, "{shows}");
    &frame.payload_slice()[40..]
}

/// Variant 1 of GUE (draft-ietf-intarea-gue section 4): UDP to port 6080 without checksum (RFC 6935), then the packet.
fn behind_udp<'a>(shows: &str, datagram: &'a [u8], inner: &[u8]) -> &'a [u8] {
    let (len, _) = inner_of(inner);
    let udp = UdpHeaderSlice::from_slice(datagram).expect("a UDP header");
    assert_eq!((udp.destination_port(), udp.checksum()), (6080, 0), "{shows}");
    assert!(udp.source_port() >= 0xC000, "{shows}: an ephemeral port");
    assert_eq!(udp.length(), len + 8, "{shows}: length of the datagram");
    &datagram[8..]
}

/// Whether an Internet checksum over these bytes is right (RFC 1071): the sum with the checksum in it is all ones.
pub fn sums_up(parts: &[&[u8]]) -> bool {
    let mut sum = 0_u64;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
        }
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum == 0xffff
}

/// Whether the checksum of an ICMP or ICMPv6 message behind a plain IP header is right.
pub fn icmp_sums_up(ip: &[u8]) -> bool {
    if ip[0] >> 4 == 4 {
        let total = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
        return sums_up(&[&ip[20..total]]);
    }
    // The pseudo-header of RFC 8200 section 8.1.
    let length = usize::from(u16::from_be_bytes([ip[4], ip[5]]));
    sums_up(&[&ip[8..40], &ip[4..6], &[0, 58], &ip[40..40 + length]])
}

/// What comes back goes to the station that sent it.
fn turned(shows: &str, packet: &[u8], out: &[u8]) {
    assert_eq!(out[..6], packet[6..12], "{shows}: back to its sender");
    assert_eq!(
        out[6..12],
        packet[..6],
        "{shows}: from the address it was sent to"
    );
    assert_eq!(out[12..14], packet[12..14], "{shows}: the same family");
}

/// RFC 792 and RFC 4443: the request with type, addresses and hop limit changed, and checksums as right as before.
fn echo_reply(shows: &str, packet: &[u8], out: &[u8]) {
    turned(shows, packet, out);
    assert_eq!(out.len(), packet.len(), "{shows}");
    let (asked, answer) = (&packet[ETHERNET..], &out[ETHERNET..]);
    let mut expected = asked.to_vec();
    let icmp = if asked[0] >> 4 == 4 {
        expected[8] = 64;
        expected[12..16].copy_from_slice(&asked[16..20]);
        expected[16..20].copy_from_slice(&asked[12..16]);
        expected[10..12].copy_from_slice(&answer[10..12]);
        expected[20] = 0;
        assert_eq!(
            sums_up(&[&asked[..20]]),
            sums_up(&[&answer[..20]]),
            "{shows}: header"
        );
        20
    } else {
        expected[7] = 64;
        expected[8..24].copy_from_slice(&asked[24..40]);
        expected[24..40].copy_from_slice(&asked[8..24]);
        expected[40] = 129;
        40
    };
    expected[icmp + 2..icmp + 4].copy_from_slice(&answer[icmp + 2..icmp + 4]);
    assert_eq!(answer, expected, "{shows}");
    assert_eq!(
        icmp_sums_up(asked),
        icmp_sums_up(answer),
        "{shows}: checksum {:02x?} of {:02x?}",
        &answer[icmp + 2..icmp + 4],
        &asked[icmp + 2..icmp + 4],
    );
}

/// RFC 1191 and RFC 8201: from the service address, as much quoted as may be, the MTU smaller than the packet.
fn too_big(shows: &str, packet: &[u8], out: &[u8]) {
    turned(shows, packet, out);
    let asked = &packet[ETHERNET..];
    let answer = SlicedPacket::from_ethernet(out).expect("a packet");
    let (length, _) = inner_of(asked);
    let (mtu, quoted, most) = match (answer.net.expect("IP"), answer.transport.expect("ICMP")) {
        (NetSlice::Ipv4(ip), TransportSlice::Icmpv4(icmp)) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum(), "{shows}");
            assert_eq!(header.source, asked[16..20], "{shows}: from the service address");
            assert_eq!(header.destination, asked[12..16], "{shows}: to the sender");
            assert_eq!((header.time_to_live, header.dscp.value()), (64, 48), "{shows}");
            let Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded {
                next_hop_mtu,
            }) = icmp.icmp_type()
            else {
                panic!("{shows}: {:?}", icmp.icmp_type());
            };
            let most = if length >= 548 { 548 } else { 68 };
            (next_hop_mtu, icmp.payload(), most)
        }
        (NetSlice::Ipv6(ip), TransportSlice::Icmpv6(icmp)) => {
            let header = ip.header().to_header();
            assert_eq!(header.source, asked[24..40], "{shows}: from the service address");
            assert_eq!(header.destination, asked[8..24], "{shows}: to the sender");
            assert_eq!(header.hop_limit, 64, "{shows}");
            let Icmpv6Type::PacketTooBig { mtu } = icmp.icmp_type() else {
                panic!("{shows}: {:?}", icmp.icmp_type());
            };
            assert!(mtu >= 1280, "{shows}");
            (mtu as u16, icmp.payload(), 1280 - 48)
        }
        other => panic!("{shows}: {other:?}"),
    };
    assert!(icmp_sums_up(&out[ETHERNET..]), "{shows}: checksum");
    assert!(mtu < length, "{shows}: {mtu} is told about a packet of {length}");
    assert_eq!(quoted, &asked[..most], "{shows}: the quotation");
}

/// RFC 1812 section 5.3.1 and RFC 4443 section 3.3: from `us`, as much quoted as may be, in whole words.
pub fn time_exceeded(shows: &str, packet: &[u8], out: &[u8], us: IpAddr) {
    turned(shows, packet, out);
    let asked = &packet[ETHERNET..];
    let answer = SlicedPacket::from_ethernet(out).expect("a packet");
    let (length, _) = inner_of(asked);
    let (source, destination, hops, kind, quoted, most) =
        match (answer.net.expect("IP"), answer.transport.expect("ICMP")) {
            (NetSlice::Ipv4(ip), TransportSlice::Icmpv4(icmp)) => {
                let header = ip.header().to_header();
                assert_eq!(header.header_checksum, header.calc_header_checksum(), "{shows}");
                assert_eq!(header.dscp.value(), 48, "{shows}");
                let kind = [icmp.type_u8(), icmp.code_u8()];
                let source = IpAddr::from(header.source);
                let destination = header.destination.to_vec();
                (
                    source,
                    destination,
                    header.time_to_live,
                    kind,
                    icmp.payload(),
                    548,
                )
            }
            (NetSlice::Ipv6(ip), TransportSlice::Icmpv6(icmp)) => {
                let header = ip.header().to_header();
                let kind = [icmp.type_u8(), icmp.code_u8()];
                let source = IpAddr::from(header.source);
                let destination = header.destination.to_vec();
                (
                    source,
                    destination,
                    header.hop_limit,
                    kind,
                    icmp.payload(),
                    1280 - 48,
                )
            }
            other => panic!("{shows}: {other:?}"),
        };
    let (sender, expected) = if us.is_ipv4() {
        (&asked[12..16], [11, 0])
    } else {
        (&asked[8..24], [3, 0])
    };
    assert_eq!((source, &*destination, hops), (us, sender, 64), "{shows}");
    assert_eq!(kind, expected, "{shows}");
    assert!(icmp_sums_up(&out[ETHERNET..]), "{shows}: checksum");
    let whole = usize::from(length) / 4 * 4;
    assert_eq!(quoted, &asked[..whole.min(most)], "{shows}: the quotation");
}

/// The MTU that an answer tells.
pub fn told_mtu(out: &[u8]) -> usize {
    let icmp = if out[ETHERNET] >> 4 == 4 { 20 } else { 40 };
    let at = ETHERNET + icmp + 6;
    usize::from(u16::from_be_bytes([out[at], out[at + 1]]))
}
