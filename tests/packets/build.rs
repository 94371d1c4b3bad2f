//! Packets to send.

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::{
    IpFragOffset, IpHeaders, IpNumber, Ipv4Header, Ipv4Options, Ipv6FlowLabel, Ipv6Header, PacketBuilder,
    TcpHeader,
};
use xlb::datapath::simulate::OWN_MAC;

use crate::world::{CLIENT_V4, CLIENT_V6};

pub const CLIENT_MAC: [u8; 6] = [0x02, 0xc1, 0x1e, 0x17, 0x00, 0x07];
pub const SOURCE_PORT: u16 = 40000;
pub const ETHERNET: usize = 14;

/// What is in the packets.
pub const PAYLOAD: &[u8] = b"twenty-six bytes of payload";

/// An IPv4 header to `destination` with DSCP and ECN that can be told from 0.
pub fn v4(destination: &str) -> Ipv4Header {
    let destination: Ipv4Addr = destination.parse().expect("an address");
    let mut header = Ipv4Header::new(0, 57, IpNumber::TCP, CLIENT_V4.octets(), destination.octets())
        .expect("no payload yet");
    header.dscp = 46.try_into().expect("6 bits");
    header.ecn = 2.try_into().expect("2 bits");
    header.identification = 0x1234;
    header
}

/// An IPv6 header to `destination` with a traffic class and a flow label.
pub fn v6(destination: &str) -> Ipv6Header {
    let destination: Ipv6Addr = destination.parse().expect("an address");
    Ipv6Header {
        traffic_class: 0xb9,
        flow_label: Ipv6FlowLabel::try_new(0xabcde).expect("20 bits"),
        hop_limit: 57,
        source: CLIENT_V6.octets(),
        destination: destination.octets(),
        ..Ipv6Header::default()
    }
}

/// Headers of either family.
pub fn ip(destination: &str) -> IpHeaders {
    if destination.contains(':') {
        v6(destination).into_headers()
    } else {
        v4(destination).into_headers()
    }
}

pub trait IntoHeaders {
    fn into_headers(self) -> IpHeaders;
}

impl IntoHeaders for Ipv4Header {
    fn into_headers(self) -> IpHeaders {
        IpHeaders::Ipv4(self, etherparse::Ipv4Extensions::default())
    }
}

impl IntoHeaders for Ipv6Header {
    fn into_headers(self) -> IpHeaders {
        IpHeaders::Ipv6(self, etherparse::Ipv6Extensions::default())
    }
}

impl IntoHeaders for IpHeaders {
    fn into_headers(self) -> IpHeaders {
        self
    }
}

/// A SYN.
pub fn tcp(destination: &str, port: u16) -> Vec<u8> {
    tcp_in(ip(destination), syn(SOURCE_PORT, port), PAYLOAD)
}

pub fn udp(destination: &str, port: u16) -> Vec<u8> {
    udp_in(ip(destination), SOURCE_PORT, port, PAYLOAD)
}

pub fn syn(source_port: u16, destination_port: u16) -> TcpHeader {
    let mut header = TcpHeader::new(source_port, destination_port, 1000, 64000);
    header.syn = true;
    header
}

pub fn tcp_in(ip: impl IntoHeaders, tcp: TcpHeader, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(CLIENT_MAC, OWN_MAC)
        .ip(ip.into_headers())
        .tcp_header(tcp);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).expect("headers that fit");
    frame
}

pub fn udp_in(ip: impl IntoHeaders, source_port: u16, destination_port: u16, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(CLIENT_MAC, OWN_MAC)
        .ip(ip.into_headers())
        .udp(source_port, destination_port);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).expect("headers that fit");
    frame
}

/// An IP packet of any protocol.
pub fn raw_in(ip: impl IntoHeaders, protocol: IpNumber, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(CLIENT_MAC, OWN_MAC).ip(ip.into_headers());
    let mut frame = Vec::new();
    builder
        .write(&mut frame, protocol, payload)
        .expect("headers that fit");
    frame
}

/// A frame of any type.
pub fn frame(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&OWN_MAC, &CLIENT_MAC, &ethertype.to_be_bytes()[..], payload].concat()
}

/// The second fragment of a datagram.
pub fn later_fragment(mut header: Ipv4Header) -> Ipv4Header {
    header.fragment_offset = IpFragOffset::try_new(185).expect("13 bits");
    header
}

/// The first fragment of a datagram.
pub fn first_fragment(mut header: Ipv4Header) -> Ipv4Header {
    header.more_fragments = true;
    header
}

/// IPv4 options of so many words that say nothing.
pub fn no_operations(words: usize) -> Ipv4Options {
    Ipv4Options::try_from(&vec![1; words * 4][..]).expect("at most ten words")
}

/// An IPv6 packet with these extension headers (number and bytes without the first) before `transport`.
pub fn extended(
    destination: &str,
    extensions: &[(IpNumber, Vec<u8>)],
    last: IpNumber,
    transport: &[u8],
) -> Vec<u8> {
    let mut payload = Vec::new();
    let followers = extensions.iter().skip(1).map(|(number, _)| *number).chain([last]);
    for ((_, rest), next) in extensions.iter().zip(followers) {
        payload.push(next.0);
        payload.extend(rest);
    }
    payload.extend(transport);
    let first = extensions.first().map_or(last, |(number, _)| *number);
    let mut header = v6(destination);
    header.next_header = first;
    header.payload_length = payload.len() as u16;
    let mut bytes = Vec::new();
    header.write(&mut bytes).expect("writing to memory");
    frame(0x86dd, &[bytes, payload].concat())
}

/// Hop-by-hop or destination options of `units` x 8 bytes, all padding.
pub fn options(units: u8) -> Vec<u8> {
    let padding = usize::from(units) * 8 - 4;
    [vec![units - 1, 1, padding as u8], vec![0; padding]].concat()
}

/// A routing header with no segments left.
pub fn routing() -> Vec<u8> {
    vec![0, 4, 0, 0, 0, 0, 0]
}

/// An authentication header with a check value of 12 bytes.
pub fn authentication() -> Vec<u8> {
    let mut bytes = vec![4, 0, 0];
    bytes.extend([0, 0, 1, 0, 0, 0, 0, 1]);
    bytes.extend([0xaa; 12]);
    bytes
}

/// A fragment header.
pub fn fragment(offset: u16, more: bool) -> Vec<u8> {
    let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
    vec![0, high, low, 0, 0, 0, 9]
}

/// TCP or UDP behind an IPv6 header, taken out of a whole packet.
pub fn transport_of(packet: &[u8]) -> &[u8] {
    &packet[ETHERNET + Ipv6Header::LEN..]
}
