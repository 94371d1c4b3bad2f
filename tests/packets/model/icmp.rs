//! ICMP (RFC 792) and ICMPv6 (RFC 4443) to service addresses: errors follow the flow of the packet inside, echo
//! requests are answered.

use std::net::IpAddr;

use lb_common::reason::Reason;
use xlb::model::Protocol;

use super::{Expected, FRAGMENT, Flow, Model, Packet, TCP, UDP, be, is_host, v4_at, v6_at, walk};

impl Model {
    pub(super) fn icmp(&self, packet: &Packet<'_>, offset: usize) -> Expected {
        if !self.has_address(packet.destination) {
            return Reason::OtherProtocol.into();
        }
        let Some(message) = packet.bytes.get(offset..offset + 8) else {
            return Reason::Malformed.into();
        };
        let v4 = packet.destination.is_ipv4();
        let (kind, code) = (message[0], message[1]);
        if kind == if v4 { 8 } else { 128 } && code == 0 {
            // Options and extension headers would have to be answered too.
            let plain = offset == if v4 { 20 } else { 40 };
            let answered = plain && is_host(packet.source) && packet.frame[0] & 1 == 0;
            return if answered {
                Reason::EchoReply
            } else {
                Reason::OtherProtocol
            }
            .into();
        }
        let error = if v4 {
            matches!(kind, 3 | 11 | 12)
        } else {
            matches!(kind, 1..=4)
        };
        if !error {
            return Reason::OtherProtocol.into();
        }
        let quoted = if v4 {
            quoted_v4(packet, offset + 8)
        } else {
            quoted_v6(packet, offset + 8)
        };
        match quoted {
            Err(reason) => reason.into(),
            Ok(flow) => self.place(&flow, packet.bytes.len(), true),
        }
    }
}

/// The flow of the packet that an error quotes from `offset`.
fn quoted_v4(packet: &Packet<'_>, offset: usize) -> Result<Flow, Reason> {
    let inner = &packet.bytes[offset..];
    if inner.len() < 20 || inner[0] >> 4 != 4 || inner[0] & 15 < 5 {
        return Err(Reason::IcmpUnmatched);
    }
    if v4_at(inner, 12) != packet.destination {
        return Err(Reason::NotService);
    }
    let protocol = protocol(inner[9])?;
    let ports = inner
        .get(usize::from(inner[0] & 15) * 4..)
        .and_then(<[u8]>::first_chunk);
    match ports {
        Some(ports) if be(inner, 6) & 0x1fff == 0 => Ok(flow(packet, v4_at(inner, 16), protocol, *ports)),
        _ => Err(Reason::IcmpUnmatched),
    }
}

fn quoted_v6(packet: &Packet<'_>, offset: usize) -> Result<Flow, Reason> {
    const UNMATCHED: Reason = Reason::IcmpUnmatched;
    let inner = &packet.bytes[offset..];
    if inner.len() < 40 || inner[0] >> 4 != 6 {
        return Err(UNMATCHED);
    }
    if v6_at(inner, 8) != packet.destination {
        return Err(Reason::NotService);
    }
    let (mut next, mut behind) = walk(inner, inner[6], 40).map_err(|_| UNMATCHED)?;
    if next == FRAGMENT {
        let Some(header) = inner.get(behind..behind + 8) else {
            return Err(UNMATCHED);
        };
        if be(header, 2) >> 3 != 0 {
            return Err(UNMATCHED);
        }
        (next, behind) = walk(inner, header[0], behind + 8).map_err(|_| UNMATCHED)?;
    }
    let protocol = protocol(next)?;
    match inner.get(behind..).and_then(<[u8]>::first_chunk) {
        Some(ports) => Ok(flow(packet, v6_at(inner, 24), protocol, *ports)),
        None => Err(UNMATCHED),
    }
}

fn protocol(number: u8) -> Result<Protocol, Reason> {
    match number {
        TCP => Ok(Protocol::Tcp),
        UDP => Ok(Protocol::Udp),
        _ => Err(Reason::OtherProtocol),
    }
}

/// The quoted packet went from the service to the client.
fn flow(packet: &Packet<'_>, client: IpAddr, protocol: Protocol, ports: [u8; 4]) -> Flow {
    let [from_high, from_low, to_high, to_low] = ports;
    Flow {
        client,
        service: packet.destination,
        protocol,
        ports: [to_high, to_low, from_high, from_low],
    }
}
