//! The packets of a probe through the forward path: frames that carry a TCP segment to the service address the way the
//! program sends clients' packets there, and what comes back. Pure.

use std::net::{IpAddr, SocketAddr};

use lb_common::layout::{GUE_PORT, UDP_LEN};

use super::engine::Talk;
use crate::model::Forward;
use crate::net::NextHop;

pub(super) const FIN: u8 = 0x01;
pub(super) const SYN: u8 = 0x02;
pub(super) const RST: u8 = 0x04;
pub(super) const ACK: u8 = 0x10;

const TTL: u8 = 64;
/// Source port of `dsr-gue`: one of those that packets have.
const GUE_SOURCE_PORT: u16 = 0xC000;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
const TCP_HEADER_BYTES: usize = 20;

/// A TCP segment without data and options.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub sequence: u32,
    pub flags: u8,
}

/// The frame that carries `segment` to `backend` over `hop`. `None`: the families do not go together.
pub(super) fn frame(segment: &Segment, forward: Forward, hop: &NextHop, backend: IpAddr) -> Option<Vec<u8>> {
    let inner = packet(segment.source.ip(), segment.destination.ip(), TCP, &tcp(segment))?;
    carry(&inner, forward, hop, backend)
}

/// What encapsulation adds to a packet.
pub(super) fn overhead(forward: Forward, backend: IpAddr) -> u16 {
    match (forward, backend) {
        (Forward::DsrL2 | Forward::Nat | Forward::FullNat, _) => 0,
        (Forward::DsrIpip, IpAddr::V4(_)) => 20,
        (Forward::DsrIpip, IpAddr::V6(_)) => 40,
        (Forward::DsrGue, IpAddr::V4(_)) => 20 + UDP_LEN as u16,
        (Forward::DsrGue, IpAddr::V6(_)) => 40 + UDP_LEN as u16,
    }
}

/// The frame that carries an IP packet to `backend` over `hop`. `None`: the families do not go together.
pub(super) fn carry(inner: &[u8], forward: Forward, hop: &NextHop, backend: IpAddr) -> Option<Vec<u8>> {
    let packet = match forward {
        Forward::DsrL2 => inner.to_vec(),
        Forward::DsrIpip => {
            let protocol = if inner.first()? >> 4 == 4 { 4 } else { 41 };
            packet(hop.source, backend, protocol, inner)?
        }
        Forward::DsrGue => packet(hop.source, backend, UDP, &gue(inner)?)?,
        // The answer would not come back to us: the configuration refuses it.
        Forward::Nat | Forward::FullNat => return None,
    };
    let ether_type: u16 = if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd };
    let mut frame = Vec::with_capacity(14 + packet.len());
    frame.extend(hop.destination_mac);
    frame.extend(hop.source_mac);
    frame.extend(ether_type.to_be_bytes());
    frame.extend(packet);
    Some(frame)
}

/// A packet behind a UDP header without checksum, as the program has it.
fn gue(inner: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(UDP_LEN + inner.len()).ok()?;
    let mut datagram = Vec::with_capacity(usize::from(length));
    for field in [GUE_SOURCE_PORT, GUE_PORT, length, 0] {
        datagram.extend(field.to_be_bytes());
    }
    datagram.extend(inner);
    Some(datagram)
}

/// An IP packet.
fn packet(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(payload.len()).ok()?;
    let mut packet = Vec::with_capacity(40 + payload.len());
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            packet.extend([0x45, 0]);
            packet.extend((length + 20).to_be_bytes());
            // Don't Fragment, so the identification may be 0 (RFC 6864, section 4.1).
            packet.extend([0, 0, 0x40, 0, TTL, protocol, 0, 0]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
            let checksum = finish(sum(&packet));
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(length.to_be_bytes());
            packet.extend([protocol, TTL]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
        }
        _ => return None,
    }
    packet.extend(payload);
    Some(packet)
}

/// The segment with its checksum (RFC 9293, section 3.1).
fn tcp(segment: &Segment) -> [u8; TCP_HEADER_BYTES] {
    let mut bytes = [0; TCP_HEADER_BYTES];
    bytes[..2].copy_from_slice(&segment.source.port().to_be_bytes());
    bytes[2..4].copy_from_slice(&segment.destination.port().to_be_bytes());
    bytes[4..8].copy_from_slice(&segment.sequence.to_be_bytes());
    bytes[12] = (TCP_HEADER_BYTES as u8 / 4) << 4;
    bytes[13] = segment.flags;
    bytes[14..16].copy_from_slice(&u16::MAX.to_be_bytes());
    let checksum = checksum(segment.source.ip(), segment.destination.ip(), TCP, &bytes);
    bytes[16..18].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

/// The checksum of a transport header and what follows it, with the pseudo header.
fn checksum(source: IpAddr, destination: IpAddr, protocol: u8, bytes: &[u8]) -> u16 {
    let addresses = |address: IpAddr| match address {
        IpAddr::V4(address) => sum(&address.octets()),
        IpAddr::V6(address) => sum(&address.octets()),
    };
    let pseudo_header = addresses(source) + addresses(destination) + u32::from(protocol) + bytes.len() as u32;
    finish(pseudo_header + sum(bytes))
}

/// RFC 1071.
fn sum(bytes: &[u8]) -> u32 {
    bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum()
}

fn finish(sum: u32) -> u16 {
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

/// What came back from a service address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub from: SocketAddr,
    /// Our port.
    pub to: u16,
    /// The number it acknowledges.
    pub acknowledges: u32,
    pub said: Said,
}

/// What a segment says to somebody who sent a SYN with the number before the one that it acknowledges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    Accepted,
    Refused,
    /// The other side has another connection from this port, and awaits this number next (RFC 9293, section 3.10.7.4).
    Connected(u32),
}

/// An IP packet taken apart.
struct Parts<'p> {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    payload: &'p [u8],
}

impl<'p> Parts<'p> {
    /// `None`: it is none, or has extension headers.
    fn of(packet: &'p [u8]) -> Option<Self> {
        fn bytes<const N: usize>(packet: &[u8], at: usize) -> Option<[u8; N]> {
            packet.get(at..at + N)?.try_into().ok()
        }
        match packet.first()? >> 4 {
            4 => Some(Self {
                source: bytes::<4>(packet, 12)?.into(),
                destination: bytes::<4>(packet, 16)?.into(),
                protocol: *packet.get(9)?,
                payload: packet.get(usize::from(packet[0] & 0xf) * 4..)?,
            }),
            6 => Some(Self {
                source: bytes::<16>(packet, 8)?.into(),
                destination: bytes::<16>(packet, 24)?.into(),
                protocol: *packet.get(6)?,
                payload: packet.get(40..)?,
            }),
            _ => None,
        }
    }

    /// Source and destination port.
    fn ports(&self) -> Option<(u16, u16)> {
        let port = |at: usize| Some(u16::from_be_bytes(self.payload.get(at..at + 2)?.try_into().ok()?));
        Some((port(0)?, port(2)?))
    }
}

/// Whose a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Came {
    For(Talk),
    /// It says that a packet of this talk did not arrive.
    Unreachable(Talk),
}

/// Whose a packet is; `None`: nobody's.
pub(super) fn came(packet: &[u8]) -> Option<Came> {
    let parts = Parts::of(packet)?;
    match parts.protocol {
        TCP | UDP => {
            let (from, to) = parts.ports()?;
            Some(Came::For((
                SocketAddr::new(parts.source, from),
                parts.protocol,
                to,
            )))
        }
        // Destination unreachable (RFC 792; RFC 4443, section 3.1), with the packet behind eight bytes.
        1 | 58 => {
            let quoted = Parts::of(parts.payload.get(8..)?)?;
            let (ours, service) = quoted.ports()?;
            let service = SocketAddr::new(quoted.destination, service);
            Some(Came::Unreachable((service, quoted.protocol, ours)))
        }
        _ => None,
    }
}

/// The IP packet of a datagram with its checksum (RFC 768). `None`: it is too long, or the families differ.
pub(super) fn datagram(source: SocketAddr, destination: SocketAddr, data: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(8 + data.len()).ok()?;
    let mut bytes = Vec::with_capacity(length.into());
    for number in [source.port(), destination.port(), length, 0] {
        bytes.extend(number.to_be_bytes());
    }
    bytes.extend(data);
    // 0 would mean that there is none.
    let checksum = match checksum(source.ip(), destination.ip(), UDP, &bytes) {
        0 => u16::MAX,
        checksum => checksum,
    };
    bytes[6..8].copy_from_slice(&checksum.to_be_bytes());
    packet(source.ip(), destination.ip(), UDP, &bytes)
}

/// What is in the datagram that an IP packet carries.
pub(super) fn data(packet: &[u8]) -> Option<&[u8]> {
    let payload = Parts::of(packet)?.payload;
    let length = u16::from_be_bytes(payload.get(4..6)?.try_into().ok()?);
    payload.get(8..usize::from(length))
}

/// The answer in an IP packet; `None`: it is none.
pub(super) fn answer(packet: &[u8]) -> Option<Answer> {
    let Parts {
        source: address,
        protocol,
        payload: tcp,
        ..
    } = Parts::of(packet)?;
    if protocol != TCP || tcp.len() < TCP_HEADER_BYTES {
        return None;
    }
    let acknowledges = u32::from_be_bytes([tcp[8], tcp[9], tcp[10], tcp[11]]);
    let said = match tcp[13] & (FIN | SYN | RST | ACK) {
        flags if flags == SYN | ACK => Said::Accepted,
        flags if flags == RST | ACK => Said::Refused,
        flags if flags & (SYN | RST | ACK) == ACK => Said::Connected(acknowledges),
        _ => return None,
    };
    Some(Answer {
        from: SocketAddr::new(address, u16::from_be_bytes([tcp[0], tcp[1]])),
        to: u16::from_be_bytes([tcp[2], tcp[3]]),
        acknowledges,
        said,
    })
}

#[cfg(test)]
#[path = "../tests/segment.rs"]
mod tests;
