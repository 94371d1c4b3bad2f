//! Many packets of clients, backends and routers, whole, mutated and truncated, through program and model, for each mode,
//! family and protocol. `XLB_FUZZ_SEED` repeats a run.

use std::net::{IpAddr, SocketAddr};

use etherparse::{IpNumber, Ipv4Header};
use lb_common::reason::Reason;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use xlb::datapath::simulate::OWN_MAC;

use super::model::{Key, Model};
use super::world::{Way, World, all_ways};
use crate::build::{CLIENT_MAC, no_operations};
use crate::model::crowd::{self, SEED, seed, spoil};
use crate::model::tagged;
use crate::world::{CLIENT_V4, CLIENT_V6};

const TCP: u8 = 6;
const UDP: u8 = 17;

/// What stands between an IP header and what it carries.
#[derive(Clone, Copy, Default)]
pub struct Extra {
    /// Identification, offset in units of 8 bytes, whether more follow.
    pub fragment: Option<(u16, u16, bool)>,
    /// IPv4 options, or an extension header.
    pub options: bool,
    pub hops: u8,
}

/// Adds 16-bit words as RFC 1071 says.
fn sum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u64 = words
        .map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn pseudo_sum(from: IpAddr, to: IpAddr, protocol: u8, body: &[u8]) -> u16 {
    let length = (body.len() as u32).to_be_bytes();
    sum(&[&octets(from), &octets(to), &length, &[0, 0, 0, protocol], body])
}

/// A segment or datagram with a right checksum.
pub fn transport(udp: bool, from: SocketAddr, to: SocketAddr, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut body = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    let at = if udp {
        body.extend(((8 + payload.len()) as u16).to_be_bytes());
        body.extend([0, 0]);
        6
    } else {
        body.extend([0, 0, 1, 0, 0, 0, 2, 0, 0x50, flags, 0xfa, 0, 0, 0, 0, 0]);
        16
    };
    body.extend(payload);
    let protocol = if udp { UDP } else { TCP };
    let check = !pseudo_sum(from.ip(), to.ip(), protocol, &body);
    let check = if udp && check == 0 { 0xffff } else { check };
    body[at..at + 2].copy_from_slice(&check.to_be_bytes());
    body
}

/// An IP packet.
pub fn packet(from: IpAddr, to: IpAddr, protocol: u8, extra: Extra, body: &[u8]) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header = Ipv4Header::new(0, extra.hops, IpNumber(protocol), from.octets(), to.octets())
                .expect("no payload yet");
            if extra.options {
                header.options = no_operations(3);
            }
            if let Some((identification, offset, more)) = extra.fragment {
                header.identification = identification;
                header.fragment_offset = offset.try_into().expect("13 bits");
                header.more_fragments = more;
            }
            header.set_payload_len(body.len()).expect("it fits");
            header.header_checksum = header.calc_header_checksum();
            [&header.to_bytes()[..], body].concat()
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut next = protocol;
            let mut behind = body.to_vec();
            if let Some((identification, offset, more)) = extra.fragment {
                let place = (offset << 3 | u16::from(more)).to_be_bytes();
                let [a, b] = identification.to_be_bytes();
                behind.splice(..0, [next, 0, place[0], place[1], 0, 0, a, b]);
                next = 44;
            }
            if extra.options {
                behind.splice(..0, [next, 0, 1, 4, 0, 0, 0, 0]);
                next = 60;
            }
            let mut header = vec![0x6b, 0x9a, 0xbc, 0xde];
            header.extend((behind.len() as u16).to_be_bytes());
            header.extend([next, extra.hops]);
            header.extend(from.octets());
            header.extend(to.octets());
            header.extend(behind);
            header
        }
        _ => panic!("two families"),
    }
}

/// An ICMP error of `from` about `quoted`, to whom sent that.
pub fn error(from: IpAddr, to: IpAddr, kind: [u8; 2], hops: u8, quoted: &[u8]) -> Vec<u8> {
    let mut message = vec![kind[0], kind[1], 0, 0, 0, 0, 0x05, 0x14];
    message.extend(quoted);
    let (protocol, check) = match from {
        IpAddr::V4(_) => (1, !sum(&[&message])),
        IpAddr::V6(_) => (58, !pseudo_sum(from, to, 58, &message)),
    };
    message[2..4].copy_from_slice(&check.to_be_bytes());
    let extra = Extra {
        hops,
        ..Extra::default()
    };
    packet(from, to, protocol, extra, &message)
}

/// A frame to us.
pub fn frame(from: [u8; 6], ip: &[u8]) -> Vec<u8> {
    let kind = if ip[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] };
    [&OWN_MAC[..], &from, &kind, ip].concat()
}

/// What sends the packets.
struct Crowd {
    random: StdRng,
    way: Way,
    /// Flows that there are, or were.
    known: Vec<Key>,
}

impl Crowd {
    fn client(&mut self) -> SocketAddr {
        let number = self.random.random_range(0..6_u8);
        let ip = match self.way.v6 {
            false => IpAddr::from((u32::from(CLIENT_V4) + u32::from(number)).to_be_bytes()),
            true => IpAddr::from((u128::from(CLIENT_V6) + (u128::from(number) << 40)).to_be_bytes()),
        };
        SocketAddr::new(ip, 1024 + self.random.random_range(0..200))
    }

    fn router(&mut self) -> IpAddr {
        let last = self.random.random();
        if self.way.v6 {
            IpAddr::from([0x20, 1, 0xd, 0xb8, 0, 0xee, 0, 0, 0, 0, 0, 0, 0, 0, 0, last])
        } else {
            IpAddr::from([198, 51, 100, last])
        }
    }

    fn flags(&mut self) -> u8 {
        match self.random.random_range(0..12) {
            0..=2 => 0x02,
            3 => 0x12,
            4..=8 => 0x10,
            9 => 0x11,
            10 => 0x14,
            _ => self.random.random(),
        }
    }

    fn payload(&mut self) -> Vec<u8> {
        let len = self.random.random_range(0..64);
        (0..len).map(|_| self.random.random()).collect()
    }

    fn hops(&mut self) -> u8 {
        match self.random.random_range(0..20) {
            0 => self.random.random_range(0..3),
            _ => self.random.random(),
        }
    }

    /// Both ends of the packets of one direction of a flow that the model knows, and of the client's or the backend's.
    fn ends(&mut self, model: &Model) -> Option<(SocketAddr, SocketAddr, bool)> {
        if self.known.is_empty() {
            return None;
        }
        let key = self.known[self.random.random_range(0..self.known.len())];
        let flow = model.flows.get(&key)?;
        Some(if self.random.random() {
            (flow.client, key.1.1, true)
        } else {
            (flow.backend, flow.seen_as?, false)
        })
    }

    fn fragment(&mut self) -> (u16, u16, bool) {
        let offset = if self.random.random() {
            0
        } else {
            self.random.random_range(1..200)
        };
        (
            self.random.random_range(0..4),
            offset,
            self.random.random_ratio(7, 8),
        )
    }

    /// An error of whoever got a later fragment, or of a router before it.
    fn about_a_fragment(&mut self, model: &Model, hops: u8) -> Vec<u8> {
        let udp = self.way.udp;
        let (from, to, identification, protocol) = model
            .any_sent(self.random.random_range(0..1 << 20))
            .unwrap_or_else(|| {
                let protocol = if udp { UDP } else { TCP };
                (self.way.service().ip(), self.client().ip(), 1, protocol)
            });
        let extra = Extra {
            fragment: Some((
                identification as u16,
                self.random.random_range(1..200),
                self.random.random(),
            )),
            options: self.random.random_ratio(1, 8),
            hops: 9,
        };
        let quoted = packet(from, to, protocol, extra, &self.payload());
        let sender = if self.random.random() { self.router() } else { to };
        let kind = if to.is_ipv4() { [11, 1] } else { [3, 1] };
        error(sender, from, kind, hops, &quoted)
    }

    fn next(&mut self, model: &Model) -> Vec<u8> {
        let known = self.ends(model);
        let (from, to) = match known {
            Some((from, to, _)) if self.random.random_ratio(2, 3) => (from, to),
            _ => (self.client(), self.way.service()),
        };
        let (from, to) = match self.random.random_range(0..24) {
            0 => (to, from),
            1 => (from, SocketAddr::new(to.ip(), to.port() ^ 1)),
            _ => (from, to),
        };
        let udp = self.way.udp != self.random.random_ratio(1, 32);
        let (flags, payload, hops) = (self.flags(), self.payload(), self.hops());
        let protocol = if udp { UDP } else { TCP };
        let mut body = transport(udp, from, to, flags, &payload);
        if udp && self.random.random_ratio(1, 16) {
            body[6..8].fill(0);
        }
        let mut extra = Extra {
            fragment: None,
            options: self.random.random_ratio(1, 8),
            hops,
        };
        let ip = match self.random.random_range(0..8) {
            0 | 1 => {
                extra.fragment = Some(self.fragment());
                packet(from.ip(), to.ip(), protocol, extra, &body)
            }
            2 if self.random.random_ratio(1, 4) => self.about_a_fragment(model, hops),
            2 | 3 => {
                // What came out on the other side was quoted by somebody there.
                let quoted = packet(
                    to.ip(),
                    from.ip(),
                    protocol,
                    extra,
                    &transport(udp, to, from, flags, &payload),
                );
                let header = if to.is_ipv4() { 20 } else { 40 };
                let cut = self.random.random_range(header..=quoted.len());
                let kinds: &[[u8; 2]] = if to.is_ipv4() {
                    &[[3, 0], [3, 1], [3, 3], [3, 4], [11, 0], [12, 0], [8, 0], [5, 0]]
                } else {
                    &[[1, 0], [1, 4], [2, 0], [3, 0], [4, 1], [128, 0], [135, 0]]
                };
                let kind = kinds[self.random.random_range(0..kinds.len())];
                let sender = if self.random.random() {
                    self.router()
                } else {
                    from.ip()
                };
                error(sender, to.ip(), kind, hops, &quoted[..cut])
            }
            _ => packet(from.ip(), to.ip(), protocol, extra, &body),
        };
        let mut frame = frame(CLIENT_MAC, &ip);
        if self.way.vlans {
            let tags: &[u8] = match self.random.random_range(0..4) {
                0 => &[],
                1 => &[0x81, 0, 0, 100],
                2 => &[0x81, 0, 0xe0, 7],
                _ => &[0x88, 0xa8, 1, 0, 0x81, 0, 0, 5],
            };
            frame = tagged::with(&frame, tags);
        }
        spoil(&mut self.random, &mut frame);
        frame
    }

    fn run(&mut self, world: &mut World, packets: u32) {
        let mut model = Model::new(&world.simulator, &self.way);
        let mut reasons = std::collections::BTreeMap::<&str, u32>::new();
        for _ in 0..packets {
            let frame = self.next(&model);
            let outcome = world.send("a frame of the crowd", &frame);
            let reason = if self.way.vlans {
                model.judge_tagged(&frame, &outcome)
            } else {
                model.judge(&frame, &outcome)
            };
            if let Some(key) = model.unseen {
                model.learn(&key, world.given(&key));
            }
            *reasons.entry(reason.name()).or_default() += 1;
            if reason == Reason::Transmitted && self.known.len() < 4096 {
                self.known.extend(model.last_opened.take());
            }
        }
        println!("{}: {reasons:?}", self.way.name());
        for least in [
            "transmitted",
            "nat_reply",
            "ttl_exceeded",
            "ttl_exceeded_answered",
            "fragment",
            "icmp_unmatched",
            "not_service",
        ] {
            assert!(reasons.contains_key(least), "{least} is not among {reasons:?}");
        }
    }
}

/// How many ways there are.
pub const WAYS: usize = 8;

/// The packets of one way; gives back how many.
pub fn crowd(number: usize, seed: u64) -> u32 {
    crowd_of(all_ways()[number].clone(), seed)
}

fn crowd_of(way: Way, seed: u64) -> u32 {
    let way = Way {
        ports: (1024, 65_535),
        ..way
    };
    let Some(mut world) = World::new(&way) else {
        return 0;
    };
    // Each mode and family has two: one for TCP, one for UDP.
    let packets = crowd::crowd() / 2;
    println!("{}: {packets} packets, seed {seed:#x}", way.name());
    let mut crowd = Crowd {
        random: StdRng::seed_from_u64(seed),
        way,
        known: Vec::new(),
    };
    crowd.run(&mut world, packets);
    packets
}

/// One test a way, so that they run side by side.
macro_rules! crowds {
    ($($name:ident = $way:literal;)+) => {
        $(#[test]
        fn $name() {
            crowd($way, seed().unwrap_or(SEED));
        })+
    };
}

/// The same with VLANs: backends and clients in some, and in none.
#[test]
fn in_vlans() {
    for way in all_ways() {
        crowd_of(Way { vlans: true, ..way }, seed().unwrap_or(SEED));
    }
}

crowds! {
    nat_tcp_v4 = 0;
    nat_udp_v4 = 1;
    nat_tcp_v6 = 2;
    nat_udp_v6 = 3;
    full_nat_tcp_v4 = 4;
    full_nat_udp_v4 = 5;
    full_nat_tcp_v6 = 6;
    full_nat_udp_v6 = 7;
}
