//! A small load balancer in plain Rust, written from the table of reasons and the RFCs, that says what must
//! become of a frame.

pub(crate) mod crowd;
pub mod features;
mod fragment;
mod icmp;
mod random;
mod spoiled;
pub mod tagged;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::hash;
use lb_common::reason::Reason;
use lb_tests::KEY;
use xlb::config::{Config, Service};
use xlb::datapath::simulate::{Outcome, Simulator};
use xlb::model::{Forward, Protocol, ServiceKey};

use crate::out;
use crate::parser;
use crate::world::mac_of;

/// What must become of a frame.
#[derive(Debug, PartialEq)]
pub enum Expected {
    /// Settled without a backend.
    Judged {
        reason: Reason,
        /// The service that is named.
        service: Option<usize>,
    },
    /// A service's.
    Placed {
        /// Which of the services.
        service: usize,
        backend: IpAddr,
        /// Bytes of the IP packet.
        length: usize,
        /// No ICMP error may answer it.
        quiet: bool,
    },
}

impl From<Reason> for Expected {
    fn from(reason: Reason) -> Self {
        Self::Judged {
            reason,
            service: None,
        }
    }
}

const MAX_EXTENSIONS: usize = 6;

pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
pub(crate) const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
pub(crate) const ICMPV6: u8 = 58;
const DESTINATION_OPTIONS: u8 = 60;

/// The load balancer that packets are compared with.
pub struct Model {
    services: Vec<Service>,
    /// The owner of each slot, for each service.
    owners: Vec<Vec<IpAddr>>,
    /// Longest IP packet towards a backend.
    mtu: usize,
    /// Where first fragments went.
    fragments: fragment::Remembered,
    /// The frame is a later fragment whose first one came so long ago that the program may have forgotten it.
    unsure: bool,
    /// The program looks for answers that it translates among what is no service's.
    translates: bool,
}

/// A packet without its link-layer header.
struct Packet<'a> {
    /// From the IP header to its end by that header.
    bytes: &'a [u8],
    frame: &'a [u8],
    source: IpAddr,
    destination: IpAddr,
}

impl Model {
    /// For the program with its present tables. `mtu` is that of the way to the backends.
    pub fn new(world: &Simulator, config: &Config, mtu: u32) -> Self {
        let services = config.services.clone();
        let owners = services
            .iter()
            .map(|service| {
                let owner = |index: u32| world.dataplane.backend_at(index).expect("an owner").address;
                let names: BTreeMap<u32, IpAddr> = world
                    .dataplane
                    .owners(&service.key)
                    .into_iter()
                    .map(|index| (index, owner(index)))
                    .collect();
                let slots = world.dataplane.owners(&service.key);
                slots.iter().map(|index| names[index]).collect()
            })
            .collect();
        Self {
            services,
            owners,
            mtu: mtu as usize,
            fragments: fragment::Remembered::new(),
            unsure: false,
            translates: config.translates(),
        }
    }

    /// Sends a frame through the program and compares. Gives back why it went where it went.
    pub fn compare(&mut self, world: &mut Simulator, frame: &[u8]) -> Reason {
        let outcome = world
            .packet(frame)
            .unwrap_or_else(|error| panic!("{error}: {frame:02x?}"));
        self.judge_outcome(frame, &outcome)
    }

    fn judge_outcome(&mut self, frame: &[u8], outcome: &Outcome) -> Reason {
        out::check("a frame of the model", frame, outcome);
        self.unsure = false;
        let expected = self.expect(frame);
        if self.unsure {
            return outcome.reason;
        }
        let announced = matches!(outcome.reason, Reason::ArpReply | Reason::NeighborReply);
        let (reason, service, backend) = match expected {
            // Answers have tests of their own; here they only must not come for anything else.
            Expected::Judged {
                reason: Reason::NotIp | Reason::OtherProtocol,
                ..
            } if announced => (outcome.reason, None, None),
            // Both are passed; the one that looks for answers says it of what cannot be one.
            Expected::Judged {
                reason: Reason::NotService,
                ..
            } if self.translates && outcome.reason == Reason::OtherProtocol => (outcome.reason, None, None),
            Expected::Judged { reason, service } => (reason, service, None),
            Expected::Placed {
                service,
                backend,
                length,
                quiet,
            } => {
                let reason = self.sent(
                    &self.services[service],
                    backend,
                    frame,
                    &outcome.out,
                    length,
                    quiet,
                );
                (reason, Some(service), Some(backend))
            }
        };
        let service = service.map(|index| self.services[index].name.as_str());
        let said = (
            outcome.reason,
            outcome.service.as_deref(),
            outcome.backend.map(|b| b.ip()),
        );
        assert_eq!(said, (reason, service, backend), "{frame:02x?}");
        outcome.reason
    }

    /// What becomes of a packet on its way to a backend.
    fn sent(
        &self,
        service: &Service,
        backend: IpAddr,
        frame: &[u8],
        out: &[u8],
        length: usize,
        quiet: bool,
    ) -> Reason {
        if service.forward == Forward::DsrL2 && frame[..6] == mac_of(backend) {
            return Reason::Flooded;
        }
        let room = self.mtu
            - match (service.forward, backend) {
                (Forward::DsrL2, _) => 0,
                (Forward::Nat | Forward::FullNat, _) => unreachable!("a model of its own: {service:?}"),
                (Forward::DsrIpip, IpAddr::V4(_)) => 20,
                (Forward::DsrIpip, IpAddr::V6(_)) => 40,
                (Forward::DsrGue, IpAddr::V4(_)) => 28,
                (Forward::DsrGue, IpAddr::V6(_)) => 48,
            };
        if length <= room {
            return Reason::Transmitted;
        }
        let v4 = frame[12..14] == [0x08, 0x00];
        let client = if v4 {
            let source = Ipv4Addr::from(<[u8; 4]>::try_from(&frame[26..30]).expect("4 bytes"));
            is_host(source.into())
        } else {
            let source = Ipv6Addr::from(<[u8; 16]>::try_from(&frame[22..38]).expect("16 bytes"));
            is_host(source.into())
        };
        let least = if v4 { 68 } else { 1280 };
        if quiet || room < least || !client || frame[0] & 1 != 0 {
            return Reason::TooBig;
        }
        assert_eq!(out::told_mtu(out), room, "{frame:02x?}");
        Reason::TooBigAnswered
    }

    pub fn expect(&mut self, frame: &[u8]) -> Expected {
        let expected = self.by_rules(frame);
        // Where the independent parser is content and the rules are about nothing else, it must say the same.
        if let Some((key, extensions)) = parser::key_of(frame)
            && extensions <= MAX_EXTENSIONS
        {
            let ruled = match &expected {
                Expected::Placed { service, .. } => Some(*service),
                Expected::Judged { service, .. } => *service,
            };
            assert_eq!(ruled, self.find(key), "the model is wrong: {frame:02x?}");
        }
        expected
    }

    fn by_rules(&mut self, frame: &[u8]) -> Expected {
        if frame.len() < 14 {
            return Reason::NotIp.into();
        }
        match be(frame, 12) {
            0x0800 => self.ipv4(&frame[14..], frame),
            0x86dd => self.ipv6(&frame[14..], frame),
            0x8100 | 0x88a8 => Reason::Vlan.into(),
            _ => Reason::NotIp.into(),
        }
    }

    fn ipv4(&mut self, packet: &[u8], frame: &[u8]) -> Expected {
        if packet.len() < 20 || packet[0] >> 4 != 4 {
            return Reason::BadHeader.into();
        }
        let (source, destination) = (v4_at(packet, 12), v4_at(packet, 16));
        let (header, total) = (usize::from(packet[0] & 15) * 4, be(packet, 2));
        if total > packet.len() || header < 20 || header > total {
            return self.judge(destination, Reason::Malformed, Reason::BadHeader);
        }
        let (more, offset) = (packet[6] & 0x20 != 0, be(packet, 6) & 0x1fff);
        let (protocol, identification) = (packet[9], be(packet, 4) as u32);
        let packet = Packet {
            bytes: &packet[..total],
            frame,
            source,
            destination,
        };
        if more || offset != 0 {
            return self.fragment_v4(&packet, protocol, identification, offset, header);
        }
        self.transport(&packet, protocol, header)
    }

    fn ipv6(&mut self, packet: &[u8], frame: &[u8]) -> Expected {
        if packet.len() < 40 || packet[0] >> 4 != 6 {
            return Reason::BadHeader.into();
        }
        let (source, destination) = (v6_at(packet, 8), v6_at(packet, 24));
        let total = 40 + be(packet, 4);
        if total > packet.len() {
            return self.judge(destination, Reason::Malformed, Reason::BadHeader);
        }
        let packet = Packet {
            bytes: &packet[..total],
            frame,
            source,
            destination,
        };
        match walk(packet.bytes, packet.bytes[6], 40) {
            Err(Walk::CutShort) => self.judge(destination, Reason::Malformed, Reason::BadHeader),
            Err(Walk::TooDeep) => self.judge(destination, Reason::ExtensionHeaders, Reason::NotService),
            Ok((FRAGMENT, offset)) => self.fragment_v6(&packet, offset),
            Ok((next, offset)) => self.transport(&packet, next, offset),
        }
    }

    fn transport(&mut self, packet: &Packet<'_>, protocol: u8, offset: usize) -> Expected {
        let (protocol, least) = match (protocol, packet.source) {
            (TCP, _) => (Protocol::Tcp, 20),
            (UDP, _) => (Protocol::Udp, 8),
            (ICMP, IpAddr::V4(_)) | (ICMPV6, IpAddr::V6(_)) => return self.icmp(packet, offset),
            _ => return Reason::OtherProtocol.into(),
        };
        if offset + least > packet.bytes.len() {
            return self.judge(packet.destination, Reason::Malformed, Reason::BadHeader);
        }
        let ports = [0, 1, 2, 3].map(|n| packet.bytes[offset + n]);
        let flow = Flow {
            client: packet.source,
            service: packet.destination,
            protocol,
            ports,
        };
        self.place(&flow, packet.bytes.len(), false)
    }

    /// Where a packet of a flow goes.
    fn place(&self, flow: &Flow, length: usize, quiet: bool) -> Expected {
        let key = ServiceKey {
            address: flow.service,
            port: be(&flow.ports, 2) as u16,
            protocol: flow.protocol,
        };
        let Some(service) = self.find(key) else {
            return Reason::NotService.into();
        };
        let owners = &self.owners[service];
        if owners.is_empty() {
            return Expected::Judged {
                reason: Reason::NoBackend,
                service: Some(service),
            };
        }
        let backend = owners[hash::slot(flow.hash(), owners.len() as u32) as usize];
        Expected::Placed {
            service,
            backend,
            length,
            quiet,
        }
    }

    fn judge(&self, address: IpAddr, ours: Reason, elsewhere: Reason) -> Expected {
        if self.has_address(address) {
            ours
        } else {
            elsewhere
        }
        .into()
    }

    fn has_address(&self, address: IpAddr) -> bool {
        self.services.iter().any(|service| service.key.address == address)
    }

    fn find(&self, key: ServiceKey) -> Option<usize> {
        let takes = |service: &Service| {
            let (first, last) = service.ports();
            let same = (service.key.address, service.key.protocol) == (key.address, key.protocol);
            same && (first..=last).contains(&key.port)
        };
        // The narrowest of those that take the port.
        let all = self
            .services
            .iter()
            .enumerate()
            .filter(|(_, service)| takes(service));
        let narrowest = all.min_by_key(|(_, service)| service.ports().1 - service.ports().0);
        narrowest.map(|(number, _)| number)
    }
}

/// A flow as its client sees it.
pub(crate) struct Flow {
    pub client: IpAddr,
    pub service: IpAddr,
    pub protocol: Protocol,
    /// Source and destination port as they are sent.
    pub ports: [u8; 4],
}

impl Flow {
    pub fn hash(&self) -> u32 {
        let ports = u32::from_le_bytes(self.ports);
        match self.client {
            IpAddr::V4(client) => hash::flow_v4(&KEY, u32::from_le_bytes(client.octets()), ports),
            IpAddr::V6(client) => {
                let o = client.octets();
                let word = |n| u32::from_le_bytes([o[n], o[n + 1], o[n + 2], o[n + 3]]);
                hash::flow_v6(&KEY, [word(0), word(4), word(8), word(12)], ports)
            }
        }
    }
}

/// Why extension headers cannot be followed.
pub(crate) enum Walk {
    CutShort,
    TooDeep,
}

/// Follows IPv6 extension headers to what is none, or is a fragment header: its type and offset.
pub(crate) fn walk(packet: &[u8], mut next: u8, mut offset: usize) -> Result<(u8, usize), Walk> {
    let mut followed = 0;
    loop {
        let unit = match next {
            AUTHENTICATION => 4,
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => 8,
            _ => return Ok((next, offset)),
        };
        if followed == MAX_EXTENSIONS {
            return Err(Walk::TooDeep);
        }
        let Some([after, length]) = packet.get(offset..offset + 2) else {
            return Err(Walk::CutShort);
        };
        // An authentication header counts words beyond the second, the others 8 bytes beyond the first.
        offset += (usize::from(*length) + if unit == 4 { 2 } else { 1 }) * unit;
        if offset > packet.len() {
            return Err(Walk::CutShort);
        }
        next = *after;
        followed += 1;
    }
}

/// Whether it can be the address of one host (RFC 1122 section 3.2.2, RFC 4443 section 2.4).
pub(crate) fn is_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let reserved = v4.octets()[0] >= 240;
            !(v4.octets()[0] == 0 || v4.is_loopback() || v4.is_multicast() || reserved)
        }
        IpAddr::V6(v6) => !(v6.is_unspecified() || v6.is_multicast()),
    }
}

pub(crate) fn be(bytes: &[u8], offset: usize) -> usize {
    usize::from(u16::from_be_bytes([bytes[offset], bytes[offset + 1]]))
}

pub(crate) fn v4_at(bytes: &[u8], offset: usize) -> IpAddr {
    let octets: [u8; 4] = bytes[offset..offset + 4].try_into().expect("4 bytes");
    Ipv4Addr::from(octets).into()
}

pub(crate) fn v6_at(bytes: &[u8], offset: usize) -> IpAddr {
    let octets: [u8; 16] = bytes[offset..offset + 16].try_into().expect("16 bytes");
    Ipv6Addr::from(octets).into()
}
