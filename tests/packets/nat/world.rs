//! One service of `nat` or `full-nat` with two backends, and the packets of both sides.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    Ipv4Header, Ipv6Header, NetSlice, PacketBuilder, SlicedPacket, TcpHeader, TransportSlice, UdpHeader,
};
use lb_common::nat::{self, NatKey};
use xlb::config::Config;
use xlb::datapath::identity;
use xlb::datapath::simulate::{OWN_MAC, Outcome, Simulator};

use super::model::Key;
use crate::build::{self, CLIENT_MAC};
use crate::vlan;
use crate::world::{CLIENT_V4, CLIENT_V6, mac_of, options, world_with};

pub const FIRST_PORT: u16 = 20_000;
pub const LAST_PORT: u16 = 29_999;

/// What kind of service.
#[derive(Clone, Debug)]
pub struct Way {
    pub full: bool,
    pub v6: bool,
    pub udp: bool,
    pub backend_port: u16,
    pub ports: (u16, u16),
    /// Tags are looked into, and backends are in VLANs as [`vlan::tags_of`] says.
    pub vlans: bool,
    /// The type of the checks.
    pub check: &'static str,
    /// Further lines of `[agent]`.
    pub agent: String,
}

/// Every combination of mode, family and protocol.
pub fn all_ways() -> Vec<Way> {
    let mut ways = Vec::new();
    for full in [false, true] {
        for v6 in [false, true] {
            for udp in [false, true] {
                ways.push(Way {
                    full,
                    v6,
                    udp,
                    backend_port: 8080,
                    ports: (FIRST_PORT, LAST_PORT),
                    vlans: false,
                    check: "none",
                    agent: String::new(),
                });
            }
        }
    }
    ways
}

impl Way {
    pub fn name(&self) -> String {
        let mode = if self.full { "full-nat" } else { "nat" };
        let family = if self.v6 { "IPv6" } else { "IPv4" };
        let protocol = if self.udp { "UDP" } else { "TCP" };
        format!("{mode} {family} {protocol}")
    }

    fn address(&self, v4: &str, v6: &str) -> IpAddr {
        let text = if self.v6 { v6 } else { v4 };
        text.parse().expect("an address")
    }

    pub fn service(&self) -> SocketAddr {
        SocketAddr::new(self.address("192.0.2.10", "2001:db8::10"), 80)
    }

    pub fn snat(&self) -> IpAddr {
        self.address("10.0.1.5", "2001:db8:1::5")
    }

    pub fn client(&self, port: u16) -> SocketAddr {
        let address = if self.v6 {
            CLIENT_V6.into()
        } else {
            CLIENT_V4.into()
        };
        SocketAddr::new(address, port)
    }

    pub fn config(&self) -> Config {
        let text = self.text();
        let mut config = Config::parse(&text).unwrap_or_else(|faults| panic!("{faults}\n{text}"));
        if self.vlans {
            config.agent.vlans = true;
            for backend in config
                .services
                .iter_mut()
                .flat_map(|service| &mut service.backends)
            {
                backend.tags = vlan::tags_of(backend.address);
            }
        }
        config
    }

    /// The last numbers of the backends' addresses.
    fn backends(&self) -> &'static [u8] {
        if self.vlans { &[11, 12, 13] } else { &[11, 12] }
    }

    fn text(&self) -> String {
        let (mode, protocol) = (
            if self.full { "full-nat" } else { "nat" },
            if self.udp { "udp" } else { "tcp" },
        );
        let mut text = format!(
            "schema = 1\n[agent]\ninterfaces = [\"lo\"]\nmax_services = 64\nmax_backends = 64\n\
             snat_addresses = [\"{}\"]\nsnat_ports = \"{}-{}\"\n{}\n\
             [[service]]\nname = \"web\"\naddress = \"{}\"\nport = 80\nprotocol = \"{protocol}\"\n\
             forward = \"{mode}\"\n[service.check]\ntype = \"{}\"\n",
            self.snat(),
            self.ports.0,
            self.ports.1,
            self.agent,
            self.service().ip(),
            self.check,
        );
        for number in self.backends() {
            let backend = self.address(&format!("10.0.1.{number}"), &format!("2001:db8:1::{number}"));
            text += &format!(
                "[[service.backend]]\naddress = \"{backend}\"\nport = {}\n",
                self.backend_port
            );
        }
        text
    }
}

/// The flags of a segment; UDP has none.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpFlags {
    pub syn: bool,
    pub ack: bool,
    pub fin: bool,
    pub rst: bool,
}

impl TcpFlags {
    const NONE: Self = Self {
        syn: false,
        ack: false,
        fin: false,
        rst: false,
    };
    pub const SYN: Self = Self {
        syn: true,
        ..Self::NONE
    };
    pub const SYN_ACK: Self = Self {
        syn: true,
        ack: true,
        ..Self::NONE
    };
    pub const ACK: Self = Self {
        ack: true,
        ..Self::NONE
    };
    pub const FIN: Self = Self {
        fin: true,
        ack: true,
        ..Self::NONE
    };
    pub const RST: Self = Self {
        rst: true,
        ..Self::NONE
    };
}

/// The program with the service.
pub struct World {
    pub simulator: Simulator,
    pub way: Way,
}

impl World {
    /// `None` where tests that need root are left out.
    pub fn new(way: &Way) -> Option<Self> {
        Some(Self {
            simulator: world_with(&way.config(), &options())?,
            way: way.clone(),
        })
    }

    pub fn send(&mut self, shows: &str, packet: &[u8]) -> Outcome {
        self.simulator
            .packet(packet)
            .unwrap_or_else(|error| panic!("{shows}: {error}"))
    }

    /// What the backend is to see as the client of a flow, by the table of the program.
    pub fn given(&self, (protocol, (from, to)): &Key) -> SocketAddr {
        let (source, family) = identity::words(from.ip());
        let (destination, _) = identity::words(to.ip());
        let ports = nat::ports(from.port().to_be(), to.port().to_be());
        let kind = NatKey::kind(family, *protocol);
        let flows = &self.simulator.dataplane.maps.nat.flows;
        let key = NatKey {
            source,
            destination,
            ports,
            kind,
        };
        let entry = flows.get(&key).expect("the table").expect("an entry of the flow");
        let address = identity::address(entry.source, family).expect("an address");
        SocketAddr::new(address, u16::from_be(entry.ports as u16))
    }

    /// A packet of the client.
    pub fn client(&self, port: u16, flags: TcpFlags, payload: &[u8]) -> Vec<u8> {
        let (from, to) = (self.way.client(port), self.way.service());
        segment(CLIENT_MAC, self.way.udp, from, to, flags, payload)
    }

    /// The answer of whoever got `request`.
    pub fn backend(&self, request: &Packet, flags: TcpFlags, payload: &[u8]) -> Vec<u8> {
        let mac = mac_of(request.destination.ip());
        segment(
            mac,
            self.way.udp,
            request.destination,
            request.source,
            flags,
            payload,
        )
    }
}

/// A packet with all checksums right.
pub fn segment(
    mac: [u8; 6],
    udp: bool,
    from: SocketAddr,
    to: SocketAddr,
    flags: TcpFlags,
    payload: &[u8],
) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(mac, OWN_MAC);
    let ip = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => builder.ipv4(from.octets(), to.octets(), 57),
        (IpAddr::V6(from), IpAddr::V6(to)) => builder.ipv6(from.octets(), to.octets(), 57),
        _ => panic!("two families"),
    };
    let mut frame = Vec::new();
    if udp {
        let builder = ip.udp(from.port(), to.port());
        builder.write(&mut frame, payload).expect("headers that fit");
    } else {
        let mut header = TcpHeader::new(from.port(), to.port(), 1000, 64_000);
        (header.syn, header.ack, header.fin, header.rst) = (flags.syn, flags.ack, flags.fin, flags.rst);
        let builder = ip.tcp_header(header);
        builder.write(&mut frame, payload).expect("headers that fit");
    }
    frame
}

/// Computes the checksum of an IPv4 header anew.
pub fn fix_header_v4(packet: &mut [u8]) {
    let (mut header, _) = Ipv4Header::from_slice(&packet[build::ETHERNET..]).expect("an IPv4 header");
    header.header_checksum = header.calc_header_checksum();
    let check = header.header_checksum.to_be_bytes();
    packet[build::ETHERNET + 10..build::ETHERNET + 12].copy_from_slice(&check);
}

/// A packet as an independent parser reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub hops: u8,
    pub payload: Vec<u8>,
}

impl Packet {
    /// Reads a frame; panics where one of its checksums is wrong.
    pub fn read(shows: &str, frame: &[u8]) -> Self {
        let sliced = SlicedPacket::from_ethernet(frame).unwrap_or_else(|error| panic!("{shows}: {error}"));
        match sliced.net.as_ref() {
            Some(NetSlice::Ipv4(ip)) => {
                let header = ip.header().to_header();
                assert_eq!(
                    header.header_checksum,
                    header.calc_header_checksum(),
                    "{shows}: header checksum"
                );
                let (source, destination, payload) = match &sliced.transport {
                    Some(TransportSlice::Tcp(tcp)) => {
                        let computed = tcp.to_header().calc_checksum_ipv4(&header, tcp.payload());
                        assert_eq!(
                            tcp.checksum(),
                            computed.expect("it fits"),
                            "{shows}: TCP checksum"
                        );
                        (tcp.source_port(), tcp.destination_port(), tcp.payload())
                    }
                    Some(TransportSlice::Udp(udp)) => {
                        if udp.checksum() != 0 {
                            let computed = udp.to_header().calc_checksum_ipv4(&header, udp.payload());
                            assert_eq!(
                                udp.checksum(),
                                computed.expect("it fits"),
                                "{shows}: UDP checksum"
                            );
                        }
                        (udp.source_port(), udp.destination_port(), udp.payload())
                    }
                    other => panic!("{shows}: {other:?}"),
                };
                Self {
                    source: SocketAddr::new(ip.header().source_addr().into(), source),
                    destination: SocketAddr::new(ip.header().destination_addr().into(), destination),
                    hops: header.time_to_live,
                    payload: payload.to_vec(),
                }
            }
            Some(NetSlice::Ipv6(ip)) => {
                let header: Ipv6Header = ip.header().to_header();
                let (source, destination, payload) = match &sliced.transport {
                    Some(TransportSlice::Tcp(tcp)) => {
                        let computed = tcp.to_header().calc_checksum_ipv6(&header, tcp.payload());
                        assert_eq!(
                            tcp.checksum(),
                            computed.expect("it fits"),
                            "{shows}: TCP checksum"
                        );
                        (tcp.source_port(), tcp.destination_port(), tcp.payload())
                    }
                    Some(TransportSlice::Udp(udp)) => {
                        let header_of: UdpHeader = udp.to_header();
                        let computed = header_of.calc_checksum_ipv6(&header, udp.payload());
                        assert_eq!(
                            udp.checksum(),
                            computed.expect("it fits"),
                            "{shows}: UDP checksum"
                        );
                        assert_ne!(udp.checksum(), 0, "{shows}: IPv6 has to have one");
                        (udp.source_port(), udp.destination_port(), udp.payload())
                    }
                    other => panic!("{shows}: {other:?}"),
                };
                Self {
                    source: SocketAddr::new(ip.header().source_addr().into(), source),
                    destination: SocketAddr::new(ip.header().destination_addr().into(), destination),
                    hops: header.hop_limit,
                    payload: payload.to_vec(),
                }
            }
            other => panic!("{shows}: {other:?}"),
        }
    }
}
