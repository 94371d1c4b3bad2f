//! A translator in plain Rust, written from the table of reasons and the RFCs (3022, 5508, 1624): what must become of
//! each frame, byte for byte. Of the program it learns one thing only: which address and port of the pool it gave to a
//! flow; the model holds that against the pool and against all flows before.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use lb_common::hash;
use lb_common::reason::{Reason, Verdict};
use xlb::datapath::simulate::{MTU, OWN_MAC, Outcome, Simulator};
use xlb::model::Protocol;

use super::rewriting::{Rewriting, Sockets};
use super::world::Way;
use crate::model::tagged;
use crate::model::{self, FRAGMENT, ICMP, ICMPV6, TCP, UDP, be, is_host, v4_at, v6_at, walk};
use crate::out;
use crate::vlan;
use crate::world::mac_of;

/// A flow as its client's packets show it, or as its backend's do.
pub type Key = (u8, Sockets);
/// What the fragments of a datagram have in common; the protocol counts for IPv4 only.
type Datagram = (IpAddr, IpAddr, u32, Option<u8>);

/// What one side has done last.
#[derive(Clone, Copy, Default)]
struct Side {
    fin: bool,
    rst: bool,
}

impl Side {
    fn sent(&mut self, flags: u8, syn: bool) {
        self.rst = !syn && flags & 4 != 0;
        self.fin |= !syn && flags & 1 != 0;
    }
}

#[derive(Clone)]
pub struct Flow {
    pub client: SocketAddr,
    pub backend: SocketAddr,
    /// What the backend sees as the client; `None`: it has not been told, as none of its packets has left.
    pub seen_as: Option<SocketAddr>,
    /// The first twelve bytes of the frame that opened it, and its VLAN tags.
    macs: [u8; 12],
    tags: Vec<u8>,
    sides: [Side; 2],
}

#[derive(Clone)]
struct Fragmented {
    to: (IpAddr, IpAddr),
    macs: ([u8; 6], [u8; 6]),
    tags: Vec<u8>,
    forward: bool,
}

pub struct Model {
    way: Way,
    owners: Vec<IpAddr>,
    pub flows: HashMap<Key, Flow>,
    /// From the packets of backends to the flow.
    replies: HashMap<Key, Key>,
    fragments: HashMap<Datagram, (Fragmented, Instant)>,
    /// Protocol and sockets of what was sent in fragments.
    sent: HashMap<Datagram, (Key, Instant)>,
    passed: HashSet<Datagram>,
    /// The flow that was noted last.
    pub last_opened: Option<Key>,
    /// The VLAN tags of the frame at hand.
    tags: Vec<u8>,
    /// Those that the frame which came out had.
    tags_out: Vec<u8>,
    /// A flow of which the model is to be told what it was given ([`Model::learn`]): its first packet did not leave.
    pub unseen: Option<Key>,
}

/// A packet by its headers.
struct Packet<'a> {
    frame: &'a [u8],
    /// From the IP header to its end by that header.
    bytes: &'a [u8],
    source: IpAddr,
    destination: IpAddr,
}

/// What must become of a frame.
enum Expected {
    Settled(Reason),
    /// Too long for the way to the backend.
    TooLong {
        quiet: bool,
    },
    /// On its last hop; who answers.
    Expired {
        us: IpAddr,
        quiet: bool,
    },
    Sent {
        rewriting: Box<Rewriting>,
        /// The VLAN tags that it leaves with.
        tags: Vec<u8>,
        forward: bool,
    },
}

impl From<Reason> for Expected {
    fn from(reason: Reason) -> Self {
        Self::Settled(reason)
    }
}

impl Model {
    pub fn new(world: &Simulator, way: &Way) -> Self {
        let service = &way.config().services[0];
        let owner = |index: &u32| world.dataplane.backend_at(*index).expect("an owner").address;
        Self {
            way: way.clone(),
            owners: world.dataplane.owners(&service.key).iter().map(owner).collect(),
            flows: HashMap::new(),
            replies: HashMap::new(),
            fragments: HashMap::new(),
            sent: HashMap::new(),
            passed: HashSet::new(),
            last_opened: None,
            tags: Vec::new(),
            tags_out: Vec::new(),
            unseen: None,
        }
    }

    fn protocol(&self) -> u8 {
        if self.way.udp { UDP } else { TCP }
    }

    fn is_ours(&self, address: IpAddr) -> bool {
        address == self.way.service().ip()
    }

    /// The same of a frame that may have VLAN tags, for a program that looks into them.
    pub fn judge_tagged(&mut self, frame: &[u8], outcome: &Outcome) -> Reason {
        let Some(tags) = tagged::tags_of(frame) else {
            assert_eq!(
                (outcome.reason, &*outcome.out),
                (Reason::Vlan, frame),
                "{frame:02x?}"
            );
            return outcome.reason;
        };
        let (bare, tags) = split(frame, tags);
        let dropped = outcome.verdict == Verdict::Drop;
        let left = if dropped {
            0
        } else {
            tagged::tags_of(&outcome.out).expect("tags of ours")
        };
        let (out, tags_out) = split(&outcome.out, left);
        (self.tags, self.tags_out) = (tags, tags_out);
        let bare_outcome = Outcome {
            out,
            ..outcome.clone()
        };
        let reason = self.judge(&bare, &bare_outcome);
        let is_sent = matches!(reason, Reason::Transmitted | Reason::NatReply);
        if !is_sent && !dropped {
            assert_eq!(self.tags_out, self.tags, "{frame:02x?}: goes back as it came");
        }
        reason
    }

    /// A datagram that was sent in fragments, with its protocol; `number` chooses one.
    pub fn any_sent(&self, number: usize) -> Option<(IpAddr, IpAddr, u32, u8)> {
        let mut all: Vec<_> = self.sent.iter().collect();
        all.sort_by_key(|(datagram, _)| **datagram);
        let ((from, to, identification, _), ((protocol, _), _)) = all.get(number % all.len().max(1))?;
        Some((*from, *to, *identification, *protocol))
    }

    /// Holds what the program did against what it must do.
    pub fn judge(&mut self, frame: &[u8], outcome: &Outcome) -> Reason {
        let reason = match self.expect(frame, outcome) {
            Expected::Settled(reason) => reason,
            Expected::TooLong { quiet } => {
                self.answered(frame, quiet, Reason::TooBig, Reason::TooBigAnswered)
            }
            Expected::Expired { us, quiet } => {
                let (dropped, told) = (Reason::TtlExceeded, Reason::TtlExceededAnswered);
                let reason = self.answered(frame, quiet, dropped, told);
                if reason == told && outcome.reason == told {
                    out::time_exceeded("a frame of the model", frame, &outcome.out, us);
                }
                reason
            }
            Expected::Sent {
                rewriting,
                tags,
                forward,
            } => {
                let reason = if forward {
                    Reason::Transmitted
                } else {
                    Reason::NatReply
                };
                assert_eq!(outcome.reason, reason, "{frame:02x?}");
                rewriting.check(frame, &outcome.out);
                assert_eq!(self.tags_out, tags, "{frame:02x?}: tags");
                return reason;
            }
        };
        assert_eq!(outcome.reason, reason, "{frame:02x?}");
        out::check("a frame of the model", frame, outcome);
        if reason == Reason::TooBigAnswered {
            assert_eq!(out::told_mtu(&outcome.out), MTU as usize);
        }
        reason
    }

    /// What becomes of a frame whose sender is to be told, if he may be.
    fn answered(&self, frame: &[u8], quiet: bool, dropped: Reason, told: Reason) -> Reason {
        let source = if self.way.v6 {
            v6_at(frame, 22)
        } else {
            v4_at(frame, 26)
        };
        if quiet || !is_host(source) || frame[0] & 1 != 0 {
            dropped
        } else {
            told
        }
    }

    fn expect(&mut self, frame: &[u8], outcome: &Outcome) -> Expected {
        if frame.len() < 14 {
            return Reason::NotIp.into();
        }
        let packet = &frame[14..];
        match be(frame, 12) {
            0x0800 if packet.len() >= 20 && packet[0] >> 4 == 4 => self.ipv4(packet, frame, outcome),
            0x86dd if packet.len() >= 40 && packet[0] >> 4 == 6 => self.ipv6(packet, frame, outcome),
            0x0800 | 0x86dd => Reason::BadHeader.into(),
            0x8100 | 0x88a8 => Reason::Vlan.into(),
            _ => Reason::NotIp.into(),
        }
    }

    fn of_address(&self, address: IpAddr, ours: Reason, elsewhere: Reason) -> Expected {
        if self.is_ours(address) { ours } else { elsewhere }.into()
    }

    fn ipv4(&mut self, bytes: &[u8], frame: &[u8], outcome: &Outcome) -> Expected {
        let (source, destination) = (v4_at(bytes, 12), v4_at(bytes, 16));
        let (header, total) = (usize::from(bytes[0] & 15) * 4, be(bytes, 2));
        if total > bytes.len() || header < 20 || header > total {
            return self.of_address(destination, Reason::Malformed, Reason::BadHeader);
        }
        let packet = Packet {
            frame,
            bytes: &bytes[..total],
            source,
            destination,
        };
        let (more, offset) = (bytes[6] & 0x20 != 0, be(bytes, 6) & 0x1fff);
        if !more && offset == 0 {
            return self.transport(&packet, bytes[9], header, outcome);
        }
        if !matches!(bytes[9], TCP | UDP) {
            // To no service, of whatever protocol.
            return self.of_address(destination, Reason::OtherProtocol, Reason::OtherProtocol);
        }
        let datagram = (source, destination, be(bytes, 4) as u32, Some(bytes[9]));
        if offset != 0 {
            return self.later(&packet, &datagram, outcome);
        }
        self.first(&packet, datagram, true, (bytes[9], header), outcome)
    }

    fn ipv6(&mut self, bytes: &[u8], frame: &[u8], outcome: &Outcome) -> Expected {
        let (source, destination) = (v6_at(bytes, 8), v6_at(bytes, 24));
        let total = 40 + be(bytes, 4);
        if total > bytes.len() {
            return self.of_address(destination, Reason::Malformed, Reason::BadHeader);
        }
        let packet = Packet {
            frame,
            bytes: &bytes[..total],
            source,
            destination,
        };
        match walk(packet.bytes, bytes[6], 40) {
            Err(model::Walk::CutShort) => self.of_address(destination, Reason::Malformed, Reason::BadHeader),
            Err(model::Walk::TooDeep) => {
                self.of_address(destination, Reason::ExtensionHeaders, Reason::NotService)
            }
            Ok((FRAGMENT, offset)) => self.fragment_v6(&packet, offset, outcome),
            Ok((next, offset)) => self.transport(&packet, next, offset, outcome),
        }
    }

    fn fragment_v6(&mut self, packet: &Packet<'_>, offset: usize, outcome: &Outcome) -> Expected {
        let Some(header) = packet.bytes.get(offset..offset + 8) else {
            return self.of_address(packet.destination, Reason::Malformed, Reason::NotService);
        };
        let identification = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        let datagram = (packet.source, packet.destination, identification, None);
        let (place, more) = (be(header, 2) >> 3, header[3] & 1 != 0);
        if place != 0 {
            return self.later(packet, &datagram, outcome);
        }
        match walk(packet.bytes, header[0], offset + 8) {
            Ok((next @ (TCP | UDP), offset)) => self.first(packet, datagram, more, (next, offset), outcome),
            Ok(_) => Reason::OtherProtocol.into(),
            Err(_) => self.of_address(packet.destination, Reason::Malformed, Reason::NotService),
        }
    }

    fn first(
        &mut self,
        packet: &Packet<'_>,
        datagram: Datagram,
        more: bool,
        (protocol, offset): (u8, usize),
        outcome: &Outcome,
    ) -> Expected {
        let least = if protocol == TCP { 20 } else { 8 };
        if offset + least > packet.bytes.len() {
            return self.of_address(packet.destination, Reason::Malformed, Reason::NotService);
        }
        let expected = self.transport(packet, protocol, offset, outcome);
        match &expected {
            Expected::Sent {
                rewriting,
                tags,
                forward,
            } if more => {
                let kept = Fragmented {
                    to: (rewriting.to.0.ip(), rewriting.to.1.ip()),
                    macs: rewriting.macs,
                    tags: tags.clone(),
                    forward: *forward,
                };
                let (source, destination) = kept.to;
                let (_, _, identification, of_v4) = datagram;
                let sent = (source, destination, identification, of_v4);
                let now = Instant::now();
                self.sent.insert(sent, ((protocol, rewriting.to), now));
                self.fragments.insert(datagram, (kept, now));
            }
            Expected::Settled(Reason::NotService) if self.is_ours(packet.destination) => {
                self.passed.insert(datagram);
            }
            _ => {}
        }
        expected
    }

    fn later(&self, packet: &Packet<'_>, datagram: &Datagram, outcome: &Outcome) -> Expected {
        let Some(Fragmented {
            to,
            macs,
            tags,
            forward,
        }) = remembered(self.fragments.get(datagram), outcome)
        else {
            if self.passed.contains(datagram) {
                return Reason::NotService.into();
            }
            return self.of_address(packet.destination, Reason::Fragment, Reason::NotService);
        };
        if forward && packet.bytes.len() > MTU as usize {
            return Expected::TooLong { quiet: true };
        }
        if packet.hops() < 2 {
            return Reason::TtlExceeded.into();
        }
        let with = |ip| SocketAddr::new(ip, 0);
        let rewriting = Rewriting {
            macs,
            to: (with(to.0), with(to.1)),
            ports_at: None,
            udp: false,
            whole: None,
            inside: None,
        };
        Expected::Sent {
            rewriting: Box::new(rewriting),
            tags,
            forward,
        }
    }

    fn transport(&mut self, packet: &Packet<'_>, protocol: u8, offset: usize, outcome: &Outcome) -> Expected {
        let least = match (protocol, packet.source) {
            (TCP, _) => 20,
            (UDP, _) => 8,
            (ICMP, IpAddr::V4(_)) | (ICMPV6, IpAddr::V6(_)) => return self.icmp(packet, offset, outcome),
            _ => return Reason::OtherProtocol.into(),
        };
        let Some(header) = packet.bytes.get(offset..offset + least) else {
            return self.of_address(packet.destination, Reason::Malformed, Reason::BadHeader);
        };
        let from = SocketAddr::new(packet.source, be(header, 0) as u16);
        let to = SocketAddr::new(packet.destination, be(header, 2) as u16);
        let flags = if protocol == TCP { header[13] } else { 0 };
        let key = (protocol, (from, to));
        let forward = protocol == self.protocol() && to == self.way.service();
        let (socket, macs, tags) = if forward {
            if packet.hops() < 2 {
                let us = packet.destination;
                return Expected::Expired { us, quiet: false };
            }
            self.request(packet, &key, flags);
            if packet.bytes.len() > MTU as usize {
                return Expected::TooLong { quiet: false };
            }
            let backend = self.flows[&key].backend;
            if let Some(reason) = packet.refused(header, protocol) {
                return reason.into();
            }
            let seen_as = self.seen_as(&key, packet, outcome, offset);
            let tags = self.tags_to(backend);
            ((seen_as, backend), (mac_of(backend.ip()), OWN_MAC), tags)
        } else {
            let Some(of) = self.replies.get(&key) else {
                return Reason::NotService.into();
            };
            let flow = self.flows.get_mut(of).expect("its flow");
            flow.sides[1].sent(flags, false);
            if packet.hops() < 2 {
                let us = if self.way.full {
                    packet.destination
                } else {
                    self.way.service().ip()
                };
                return Expected::Expired { us, quiet: false };
            }
            if let Some(reason) = packet.refused(header, protocol) {
                return reason.into();
            }
            let [d, s] = [0, 6].map(|at| <[u8; 6]>::try_from(&flow.macs[at..at + 6]).expect("6 bytes"));
            ((self.way.service(), flow.client), (s, d), flow.tags.clone())
        };
        let rewriting = Rewriting {
            macs,
            to: socket,
            ports_at: Some(14 + offset),
            udp: protocol == UDP,
            whole: (!packet.is_fragment()).then_some(packet.bytes.len()),
            inside: None,
        };
        Expected::Sent {
            rewriting: Box::new(rewriting),
            tags,
            forward,
        }
    }

    /// The tags of the VLAN that a backend is in.
    fn tags_to(&self, backend: SocketAddr) -> Vec<u8> {
        if self.way.vlans {
            vlan::expected_tags(backend.ip())
        } else {
            Vec::new()
        }
    }

    /// A packet of the client: its flow, the one there is or another one.
    fn request(&mut self, packet: &Packet<'_>, key: &Key, flags: u8) {
        let syn = flags & 0x12 == 2;
        let over = self.flows.get(key).is_some_and(|flow| {
            let [client, backend] = flow.sides;
            client.rst || backend.rst || client.fin && backend.fin
        });
        if syn && over {
            let old = self.flows.remove(key).expect("a flow");
            if let Some(seen_as) = old.seen_as {
                self.replies.remove(&(key.0, (old.backend, seen_as)));
            }
        }
        if !self.flows.contains_key(key) {
            let client = key.1.0;
            let [a, b] = client.port().to_be_bytes();
            let [c, d] = key.1.1.port().to_be_bytes();
            let hashed = model::Flow {
                client: client.ip(),
                service: key.1.1.ip(),
                protocol: if self.way.udp {
                    Protocol::Udp
                } else {
                    Protocol::Tcp
                },
                ports: [a, b, c, d],
            };
            let slot = hash::slot(hashed.hash(), self.owners.len() as u32);
            let backend = SocketAddr::new(self.owners[slot as usize], self.way.backend_port);
            let flow = Flow {
                client,
                backend,
                seen_as: None,
                macs: packet.frame[..12].try_into().expect("12 bytes"),
                tags: self.tags.clone(),
                sides: [Side::default(); 2],
            };
            self.flows.insert(*key, flow);
            if self.way.full {
                self.unseen = Some(*key);
            } else {
                self.note(key, client);
            }
        }
        let flow = self.flows.get_mut(key).expect("a flow");
        flow.sides[0].sent(flags, syn);
    }

    /// What the backend sees as the client: what it saw before, or else what the program chose.
    fn seen_as(&mut self, key: &Key, packet: &Packet<'_>, outcome: &Outcome, offset: usize) -> SocketAddr {
        if let Some(known) = self.flows[key].seen_as {
            return known;
        }
        let out = &outcome.out;
        assert!(out.len() >= packet.frame.len(), "{:02x?}", packet.frame);
        let address = if self.way.v6 {
            v6_at(out, 22)
        } else {
            v4_at(out, 26)
        };
        let chosen = SocketAddr::new(address, be(out, 14 + offset) as u16);
        self.learn(key, chosen);
        chosen
    }

    /// Takes down what a flow was given.
    pub fn learn(&mut self, key: &Key, chosen: SocketAddr) {
        assert_eq!(chosen.ip(), self.way.snat(), "an address of the pool");
        let (first, last) = self.way.ports;
        assert!(
            (first..=last).contains(&chosen.port()),
            "a port of the pool: {chosen}"
        );
        self.note(key, chosen);
    }

    fn note(&mut self, key: &Key, seen_as: SocketAddr) {
        let flow = self.flows.get_mut(key).expect("a flow");
        flow.seen_as = Some(seen_as);
        let before = self.replies.insert((key.0, (flow.backend, seen_as)), *key);
        assert_eq!(before, None, "{seen_as} is another flow's");
        self.last_opened = Some(*key);
        self.unseen = None;
    }

    fn icmp(&self, packet: &Packet<'_>, offset: usize, outcome: &Outcome) -> Expected {
        let ours = self.is_ours(packet.destination);
        let Some(message) = packet.bytes.get(offset..offset + 8) else {
            return self.of_address(packet.destination, Reason::Malformed, Reason::OtherProtocol);
        };
        let v4 = packet.destination.is_ipv4();
        let (kind, code) = (message[0], message[1]);
        if ours && kind == if v4 { 8 } else { 128 } && code == 0 {
            let plain = offset == if v4 { 20 } else { 40 };
            let answered = plain && is_host(packet.source) && packet.frame[0] & 1 == 0;
            return if answered {
                Reason::EchoReply
            } else {
                Reason::OtherProtocol
            }
            .into();
        }
        if !if v4 {
            matches!(kind, 3 | 11 | 12)
        } else {
            matches!(kind, 1..=4)
        } {
            return Reason::OtherProtocol.into();
        }
        let quoted = quoted(packet, offset + 8).and_then(|quoted| match quoted {
            Quoted::Whole(protocol, transport) => {
                let ports = [0, 2].map(|at| be(packet.bytes, transport + at) as u16);
                Ok((protocol, ports, Some(transport)))
            }
            Quoted::Later(datagram) => {
                let sent = remembered(self.sent.get(&datagram), outcome);
                let (protocol, (from, to)) = sent.ok_or(Reason::IcmpUnmatched)?;
                Ok((protocol, [from.port(), to.port()], None))
            }
        });
        match quoted {
            Ok((protocol, ports, transport)) => self.error(packet, (offset, transport), protocol, ports),
            Err(reason) if ours => reason.into(),
            Err(_) => Reason::OtherProtocol.into(),
        }
    }

    /// An error about a packet of ours with these ports, which are at `transport` in the IP packet, if there.
    fn error(
        &self,
        packet: &Packet<'_>,
        (offset, transport): (usize, Option<usize>),
        protocol: u8,
        [from_port, to_port]: [u16; 2],
    ) -> Expected {
        let inner = offset + 8;
        let to = if self.way.v6 {
            v6_at(packet.bytes, inner + 24)
        } else {
            v4_at(packet.bytes, inner + 16)
        };
        let sent_from = SocketAddr::new(packet.destination, from_port);
        let sent_to = SocketAddr::new(to, to_port);
        // What comes the other way.
        let key = (protocol, (sent_to, sent_from));
        let (forward, of) = match self.replies.get(&key) {
            Some(of) => (false, of),
            None => (true, &key),
        };
        let Some(flow) = self.flows.get(of) else {
            let reason = if protocol == self.protocol() && sent_from == self.way.service() {
                Reason::IcmpUnmatched
            } else if self.is_ours(packet.destination) {
                Reason::NotService
            } else {
                Reason::OtherProtocol
            };
            return reason.into();
        };
        let seen_as = flow.seen_as.expect("it was learned");
        if packet.hops() < 2 {
            return Reason::TtlExceeded.into();
        }
        if forward && packet.bytes.len() > MTU as usize {
            return Expected::TooLong { quiet: true };
        }
        let [d, s] = [0, 6].map(|at| <[u8; 6]>::try_from(&flow.macs[at..at + 6]).expect("6 bytes"));
        let (source, receiver, inside, macs, tags) = if forward {
            let source = if self.way.full {
                seen_as.ip()
            } else {
                packet.source
            };
            (
                source,
                flow.backend,
                (flow.backend, seen_as),
                (mac_of(flow.backend.ip()), OWN_MAC),
                self.tags_to(flow.backend),
            )
        } else {
            let service = self.way.service();
            let inside = (flow.client, service);
            (service.ip(), flow.client, inside, (s, d), flow.tags.clone())
        };
        let rewriting = Rewriting {
            macs,
            to: (SocketAddr::new(source, 0), receiver),
            ports_at: None,
            udp: protocol == UDP,
            whole: Some(packet.bytes.len()),
            inside: Some((14 + offset, transport.map(|at| 14 + at), inside)),
        };
        Expected::Sent {
            rewriting: Box::new(rewriting),
            tags,
            forward,
        }
    }
}

/// What the program still knows of fragments: it forgets after 30 s by its own clock, which may be sooner for a test that
/// runs slowly, and is then believed.
fn remembered<T: Clone>(kept: Option<&(T, Instant)>, outcome: &Outcome) -> Option<T> {
    let (value, since) = kept?;
    let forgot = matches!(
        outcome.reason,
        Reason::Fragment | Reason::NotService | Reason::IcmpUnmatched | Reason::OtherProtocol
    );
    (!forgot || since.elapsed() < Duration::from_secs(29)).then(|| value.clone())
}

/// A frame without so many bytes of tags, and those.
fn split(frame: &[u8], tags: usize) -> (Vec<u8>, Vec<u8>) {
    if tags == 0 {
        return (frame.to_vec(), Vec::new());
    }
    (tagged::without(frame, tags), frame[12..12 + tags].to_vec())
}

impl Packet<'_> {
    fn hops(&self) -> u8 {
        self.bytes[if self.source.is_ipv4() { 8 } else { 7 }]
    }

    fn is_fragment(&self) -> bool {
        match self.source {
            IpAddr::V4(_) => be(self.bytes, 6) & 0x3fff != 0,
            IpAddr::V6(_) => matches!(walk(self.bytes, self.bytes[6], 40), Ok((FRAGMENT, _))),
        }
    }

    /// Why a packet that fits and lives is not sent on.
    fn refused(&self, header: &[u8], protocol: u8) -> Option<Reason> {
        let bare = protocol == UDP && be(header, 6) == 0 && self.source.is_ipv6();
        bare.then_some(Reason::Malformed)
    }
}

/// What an error quotes.
enum Quoted {
    /// Protocol, and where the ports are.
    Whole(u8, usize),
    /// A fragment without ports.
    Later(Datagram),
}

/// What an error quotes from `offset`, if the one it is sent to has sent that.
fn quoted(packet: &Packet<'_>, offset: usize) -> Result<Quoted, Reason> {
    const UNMATCHED: Reason = Reason::IcmpUnmatched;
    let inner = &packet.bytes[offset..];
    let is_v4 = packet.source.is_ipv4();
    let (protocol, behind) = if is_v4 {
        if inner.len() < 20 || inner[0] >> 4 != 4 || inner[0] & 15 < 5 {
            return Err(UNMATCHED);
        }
        if v4_at(inner, 12) != packet.destination {
            return Err(Reason::NotService);
        }
        let protocol = inner[9];
        if !matches!(protocol, TCP | UDP) {
            return Err(Reason::OtherProtocol);
        }
        if be(inner, 6) & 0x1fff != 0 {
            let identification = be(inner, 4) as u32;
            let to = v4_at(inner, 16);
            return Ok(Quoted::Later((
                packet.destination,
                to,
                identification,
                Some(protocol),
            )));
        }
        (protocol, usize::from(inner[0] & 15) * 4)
    } else {
        if inner.len() < 40 || inner[0] >> 4 != 6 {
            return Err(UNMATCHED);
        }
        if v6_at(inner, 8) != packet.destination {
            return Err(Reason::NotService);
        }
        let (mut next, mut behind) = walk(inner, inner[6], 40).map_err(|_| UNMATCHED)?;
        if next == FRAGMENT {
            let header = inner.get(behind..behind + 8).ok_or(UNMATCHED)?;
            if be(header, 2) >> 3 != 0 {
                let identification = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
                let to = v6_at(inner, 24);
                return Ok(Quoted::Later((packet.destination, to, identification, None)));
            }
            (next, behind) = walk(inner, header[0], behind + 8).map_err(|_| UNMATCHED)?;
        }
        if !matches!(next, TCP | UDP) {
            return Err(Reason::OtherProtocol);
        }
        (next, behind)
    };
    if inner.len() < behind + 4 {
        return Err(UNMATCHED);
    }
    Ok(Quoted::Whole(protocol, offset + behind))
}
