//! Whether a frame left as its reason and its backend demand.

use std::net::IpAddr;

use etherparse::{EtherType, Ethernet2Slice, IpNumber, Ipv4HeaderSlice, Ipv6HeaderSlice};
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
    let encapsulates = ["4in4", "6in6", "4in6", "one-port"];
    if encapsulates.iter().any(|name| service.starts_with(name)) {
        let rest = match backend {
            IpAddr::V4(_) => outer_v4(shows, &ethernet, inner, backend),
            IpAddr::V6(_) => outer_v6(shows, &ethernet, inner, backend),
        };
        assert_eq!(
            rest, inner,
            "{shows}: what is inside, padding included, is untouched"
        );
        assert_eq!(
            outcome.out.len() - packet.len(),
            if backend.is_ipv4() { 20 } else { 40 },
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
fn outer_v4<'a>(shows: &str, frame: &Ethernet2Slice<'a>, inner: &[u8], backend: IpAddr) -> &'a [u8] {
    let (len, class) = inner_of(inner);
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
    assert_eq!(header.protocol, IpNumber::IPV4, "{shows}");
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
fn outer_v6<'a>(shows: &str, frame: &Ethernet2Slice<'a>, inner: &[u8], backend: IpAddr) -> &'a [u8] {
    let (len, class) = inner_of(inner);
    assert_eq!(frame.ether_type(), EtherType::IPV6, "{shows}");
    let header = Ipv6HeaderSlice::from_slice(frame.payload_slice()).expect("an outer IPv6 header");
    let next = if inner[0] >> 4 == 4 {
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
