//! The packet that is asked about.

use std::net::{IpAddr, SocketAddr};

use lb_common::checksum;
use lb_common::layout::FlowEntry;

use crate::model::{Protocol, ServiceKey};

/// Which packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    pub source: SocketAddr,
    /// Address, port and protocol that it is sent to; of the family of `source`.
    pub service: ServiceKey,
    /// It opens a connection; else it is one of a connection that exists. TCP only.
    pub syn: bool,
    /// Bytes of the IP packet; at least its headers.
    pub length: u16,
    /// It is QUIC with this connection id, of 20 bytes at most: an Initial packet if it opens a connection, else one with
    /// a short header. UDP only.
    pub quic_dcid: Option<Vec<u8>>,
}

impl Query {
    /// Source and destination port as they stand in the packet.
    pub(super) fn ports(&self) -> u32 {
        let ([a, b], [c, d]) = (self.source.port().to_be_bytes(), self.service.port.to_be_bytes());
        u32::from_ne_bytes([a, b, c, d])
    }
}

const MACS: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9];
const TTL: u8 = 64;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
/// A sequence number like any other.
const SEQUENCE: u32 = 1_000_000;

/// The frame. Where an entry of the flow is known, the segment is one that continues what made it.
pub(super) fn build(query: &Query, entry: Option<FlowEntry>) -> Vec<u8> {
    let transport = match query.service.protocol {
        Protocol::Tcp => {
            let sequence = entry.map_or(SEQUENCE, |entry| entry.isn);
            tcp(
                query,
                if query.syn {
                    sequence
                } else {
                    sequence.wrapping_add(1)
                },
            )
        }
        Protocol::Udp => udp(query),
    };
    let (header, ethertype) = match (query.source.ip(), query.service.address) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let total = (20 + transport.len()).max(usize::from(query.length));
            let mut header = vec![
                0x45,
                0,
                0,
                0,
                0,
                0,
                0x40,
                0,
                TTL,
                query.service.protocol.number(),
                0,
                0,
            ];
            header[2..4].copy_from_slice(&(total as u16).to_be_bytes());
            header.extend(from.octets());
            header.extend(to.octets());
            let check = !checksum::fold(checksum::sum(&header));
            header[10..12].copy_from_slice(&check.to_ne_bytes());
            (header, 0x0800_u16)
        }
        (from, to) => {
            let payload = transport.len().max(usize::from(query.length).saturating_sub(40));
            let mut header = vec![0x60, 0, 0, 0, 0, 0, query.service.protocol.number(), TTL];
            header[4..6].copy_from_slice(&(payload as u16).to_be_bytes());
            for address in [from, to] {
                header.extend(match address {
                    IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                    IpAddr::V6(v6) => v6.octets(),
                });
            }
            (header, 0x86dd)
        }
    };
    let start = 14 + header.len();
    let mut frame = [&MACS[..], &ethertype.to_be_bytes(), &header, &transport].concat();
    frame[start..start + 4].copy_from_slice(&query.ports().to_ne_bytes());
    let end = 14 + usize::from(query.length);
    if frame.len() < end {
        frame.resize(end, 0);
    }
    frame
}

/// Its checksum is 0: nobody looks at it.
fn udp(query: &Query) -> Vec<u8> {
    let payload = query.quic_dcid.as_ref().map_or_else(Vec::new, |id| {
        let head: Vec<u8> = if query.syn {
            vec![0xc0, 0, 0, 0, 1, id.len() as u8]
        } else {
            vec![0x40]
        };
        [&head[..], id, &[0; lb_common::quic::LOOKED_AT]].concat()
    });
    let length = 8 + payload.len() as u16;
    [&[0; 4][..], &length.to_be_bytes(), &[0; 2], &payload].concat()
}

fn tcp(query: &Query, sequence: u32) -> Vec<u8> {
    let mut segment = vec![0; 20];
    segment[4..8].copy_from_slice(&sequence.to_be_bytes());
    segment[12] = 5 << 4;
    segment[13] = if query.syn { SYN } else { ACK };
    segment[14..16].copy_from_slice(&u16::MAX.to_be_bytes());
    segment
}

#[cfg(test)]
mod tests {
    use etherparse::{SlicedPacket, TransportSlice};

    use super::*;

    fn query(source: &str, address: &str, protocol: Protocol, syn: bool, length: u16) -> Query {
        Query {
            source: source.parse().unwrap(),
            service: ServiceKey {
                address: address.parse().unwrap(),
                port: 443,
                protocol,
            },
            syn,
            length,
            quic_dcid: None,
        }
    }

    #[test]
    fn frames_are_what_was_asked_for() {
        for (source, address) in [
            ("203.0.113.7:4000", "192.0.2.1"),
            ("[2001:db8::7]:4000", "2001:db8::1"),
        ] {
            for length in [0, 80, 1500] {
                for syn in [false, true] {
                    let asked = query(source, address, Protocol::Tcp, syn, length);
                    let frame = build(&asked, None);
                    let headers = if asked.source.is_ipv4() { 40 } else { 60 };
                    assert_eq!(frame.len() - 14, usize::from(length).max(headers));
                    let packet = SlicedPacket::from_ethernet(&frame).unwrap();
                    let Some(TransportSlice::Tcp(tcp)) = packet.transport else {
                        panic!("TCP");
                    };
                    assert_eq!((tcp.source_port(), tcp.destination_port()), (4000, 443));
                    assert_eq!((tcp.syn(), tcp.ack()), (syn, !syn));
                }
                let frame = build(&query(source, address, Protocol::Udp, false, length), None);
                let packet = SlicedPacket::from_ethernet(&frame).unwrap();
                assert!(packet.net.is_some());
            }
        }
    }

    #[test]
    fn a_segment_continues_what_made_its_entry() {
        let entry = FlowEntry {
            isn: u32::MAX,
            ..FlowEntry::default()
        };
        for (syn, expected) in [(true, u32::MAX), (false, 0)] {
            let asked = query("203.0.113.7:4000", "192.0.2.1", Protocol::Tcp, syn, 0);
            let frame = build(&asked, Some(entry));
            assert_eq!(frame[38..42], expected.to_be_bytes());
        }
    }
}
