//! What `etherparse` makes of a frame.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use xlb::model::{Protocol, ServiceKey};

/// The service key of a whole, unfragmented TCP or UDP packet without a VLAN tag, and how many IPv6 extension
/// headers it has.
pub fn key_of(frame: &[u8]) -> Option<(ServiceKey, usize)> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    if !packet.link_exts.is_empty() || packet.is_ip_payload_fragmented() {
        return None;
    }
    let (address, extensions) = match packet.net? {
        // An authentication header behind IPv4 is another protocol to us.
        NetSlice::Ipv4(ip) if ip.extensions().is_empty() => (ip.header().destination_addr().into(), 0),
        // The parser takes an IPv6 payload length of 0 for that of a jumbogram (RFC 2675).
        NetSlice::Ipv6(ip) if ip.header().payload_length() != 0 => {
            let extensions = ip.extensions().clone().into_iter().count();
            (ip.header().destination_addr().into(), extensions)
        }
        _ => return None,
    };
    let (protocol, port) = match packet.transport? {
        TransportSlice::Tcp(tcp) => (Protocol::Tcp, tcp.destination_port()),
        TransportSlice::Udp(udp) => (Protocol::Udp, udp.destination_port()),
        _ => return None,
    };
    let key = ServiceKey {
        address,
        port,
        protocol,
    };
    // The parser takes an atomic fragment (RFC 6946) for a whole packet; to us it is a fragment.
    (!has_fragment_header(frame)).then_some((key, extensions))
}

fn has_fragment_header(frame: &[u8]) -> bool {
    let packet = SlicedPacket::from_ethernet(frame).ok();
    match packet.and_then(|packet| packet.net) {
        Some(NetSlice::Ipv6(ip)) => ip
            .extensions()
            .clone()
            .into_iter()
            .any(|extension| matches!(extension, etherparse::Ipv6ExtensionSlice::Fragment(_))),
        _ => false,
    }
}
