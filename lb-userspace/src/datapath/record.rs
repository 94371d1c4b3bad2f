//! Ready-made headers: from a next hop to the record the program copies from. Pure.

use std::net::IpAddr;

use ipnet::IpNet;
use lb_common::checksum;
use lb_common::layout::{Backend, OUTER_LEN, kind};

use super::identity;
use crate::model::Forward;

/// Where and how to send; what is needed of a next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    pub ifindex: u32,
    pub destination_mac: [u8; 6],
    pub source_mac: [u8; 6],
    /// Longest IP packet of the outgoing interface, in bytes.
    pub mtu: u32,
}

/// Hop limit and TTL of outer headers (the default of RFC 1700 and RFC 2473 section 6.3).
const OUTER_TTL: u8 = 64;

/// Protocols of what an outer IPv4 header carries.
const IPV4_IN: u8 = 4;
const UDP: u8 = 17;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86DD;

/// The record of a `dsr-l2` backend.
#[must_use]
pub fn l2(hop: &Hop) -> Backend {
    base(hop, kind::L2, 0)
}

/// The record of a `dsr-ipip` or `dsr-gue` backend. `source` is the load balancer's address towards it, or a prefix of
/// addresses that flows are spread over; where the families
/// differ nothing can be sent.
#[must_use]
pub fn encapsulating(hop: &Hop, forward: Forward, source: IpNet, destination: IpAddr) -> Backend {
    let mask = spread_mask(source);
    let source = source.network();
    let gue = forward == Forward::DsrGue;
    let mut outer = [0_u8; OUTER_LEN];
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            outer[0] = 0x45;
            // Don't Fragment is set always: the packet is never cut on the way, and with identification 0
            // it is an atomic datagram (RFC 6864 section 4.1).
            outer[6] = 0x40;
            outer[8] = OUTER_TTL;
            outer[9] = if gue { UDP } else { IPV4_IN };
            outer[12..16].copy_from_slice(&source.octets());
            outer[16..20].copy_from_slice(&destination.octets());
            let mut record = base(hop, if gue { kind::GUE_V4 } else { kind::IPV4 }, ETHERTYPE_IPV4);
            record.checksum_seed = checksum::fold(checksum::sum(&outer[..20]));
            record.outer = words(&outer);
            record.outer[OUTER_LEN / 8 - 1] = u64::from(mask);
            record
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            outer[0] = 0x60;
            outer[7] = OUTER_TTL;
            outer[8..24].copy_from_slice(&source.octets());
            outer[24..40].copy_from_slice(&destination.octets());
            let mut record = base(hop, if gue { kind::GUE_V6 } else { kind::IPV6 }, ETHERTYPE_IPV6);
            record.outer = words(&outer);
            record.checksum_seed = mask;
            record
        }
        _ => Backend::UNRESOLVED,
    }
}

/// The record of a `nat` or `full-nat` backend.
#[must_use]
pub fn nat(hop: &Hop, address: IpAddr, port: u16, full: bool) -> Backend {
    let kind = if full { kind::FULL_NAT } else { kind::NAT };
    let mut record = base(hop, kind, 0);
    let ([a, b, c, d], _) = identity::words(address);
    let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    record.outer = [pair(a, b), pair(c, d), u64::from(port.to_be()), 0, 0];
    record
}

/// The bits of a source address that follow the flow: those beyond the prefix, of the last two bytes; in memory order.
fn spread_mask(source: IpNet) -> u16 {
    let free = (source.max_prefix_len() - source.prefix_len()).min(16);
    ((1_u32 << free) - 1).to_be_bytes()[2..]
        .try_into()
        .map_or(0, u16::from_ne_bytes)
}

fn base(hop: &Hop, kind: u8, ethertype: u16) -> Backend {
    let Hop {
        ifindex,
        destination_mac: [d0, d1, d2, d3, d4, d5],
        source_mac: [s0, s1, s2, s3, s4, s5],
        mtu,
    } = *hop;
    let pair = |a, b| u16::from_ne_bytes([a, b]);
    Backend {
        kind,
        standing: 0,
        mtu: u16::try_from(mtu).unwrap_or(u16::MAX),
        ifindex,
        ethernet: [
            pair(d0, d1),
            pair(d2, d3),
            pair(d4, d5),
            pair(s0, s1),
            pair(s2, s3),
            pair(s4, s5),
            ethertype.to_be(),
        ],
        checksum_seed: 0,
        outer: [0; OUTER_LEN / 8],
    }
}

fn words(bytes: &[u8; OUTER_LEN]) -> [u64; OUTER_LEN / 8] {
    let mut words = [0; OUTER_LEN / 8];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        let mut buffer = [0; 8];
        buffer.copy_from_slice(chunk);
        *word = u64::from_ne_bytes(buffer);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOP: Hop = Hop {
        ifindex: 3,
        destination_mac: [2, 0, 0, 0, 0, 1],
        source_mac: [2, 0, 0, 0, 0, 2],
        mtu: 1500,
    };

    fn net(text: &str) -> IpNet {
        text.parse()
            .unwrap_or_else(|_| text.parse::<IpAddr>().unwrap().into())
    }

    #[test]
    fn what_a_prefix_leaves_free_follows_the_flow() {
        let mask = |text| u16::from_be(spread_mask(net(text)));
        assert_eq!(mask("10.0.0.1"), 0);
        assert_eq!(mask("10.0.0.0/31"), 1);
        assert_eq!(mask("10.0.0.0/24"), 0xff);
        assert_eq!(mask("10.0.0.0/16"), 0xffff);
        assert_eq!(mask("10.0.0.0/8"), 0xffff);
        assert_eq!(mask("fd00::/64"), 0xffff);
        assert_eq!(mask("fd00::1"), 0);
        let of = |from, to: &str| encapsulating(&HOP, Forward::DsrIpip, net(from), to.parse().unwrap());
        assert_eq!(of("10.255.0.0/20", "10.0.0.2").outer_mask(), 0x0fff_u16.to_be());
        assert_eq!(of("fd00::/112", "fd01::2").outer_mask(), 0xffff);
        assert_eq!(of("10.0.0.1", "10.0.0.2").outer_mask(), 0);
        assert_eq!(of("fd00::1", "fd01::2").outer_mask(), 0);
    }

    #[test]
    fn behind_udp_only_kind_and_protocol_are_others() {
        let of = |forward, from: &str, to: &str| encapsulating(&HOP, forward, net(from), to.parse().unwrap());
        let bytes =
            |record: &Backend| -> Vec<u8> { record.outer.iter().flat_map(|w| w.to_ne_bytes()).collect() };
        let v4 = |forward| of(forward, "10.0.0.1", "10.0.0.2");
        let (ipip, gue) = (v4(Forward::DsrIpip), v4(Forward::DsrGue));
        assert_eq!((ipip.kind, gue.kind), (kind::IPV4, kind::GUE_V4));
        assert_eq!((bytes(&ipip)[9], bytes(&gue)[9]), (4, 17));
        assert_eq!(
            gue.checksum_seed,
            checksum::fold(checksum::sum(&bytes(&gue)[..20]))
        );
        let v6 = |forward| of(forward, "2001:db8::1", "2001:db8::2");
        let (ipip, gue) = (v6(Forward::DsrIpip), v6(Forward::DsrGue));
        assert_eq!(
            (ipip.kind, gue.kind, ipip.outer),
            (kind::IPV6, kind::GUE_V6, gue.outer)
        );
    }

    #[test]
    fn mixed_families_cannot_be_sent() {
        let record = encapsulating(
            &HOP,
            Forward::DsrIpip,
            net("10.0.0.1"),
            "2001:db8::1".parse().unwrap(),
        );
        assert_eq!(record, Backend::UNRESOLVED);
    }

    #[test]
    fn macs_are_in_wire_order() {
        let record = l2(&HOP);
        let bytes: Vec<u8> = record.ethernet.iter().flat_map(|w| w.to_ne_bytes()).collect();
        assert_eq!(bytes, [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0, 0]);
    }

    #[test]
    fn a_translation_gives_back_address_and_port() {
        for (address, full) in [("10.0.1.11", true), ("2001:db8::11", false)] {
            let address: IpAddr = address.parse().unwrap();
            let record = nat(&HOP, address, 8080, full);
            assert_eq!(
                record.translation(),
                (identity::words(address).0, 8080_u16.to_be())
            );
            assert_eq!(record.kind, if full { kind::FULL_NAT } else { kind::NAT });
        }
    }

    #[test]
    fn an_mtu_beyond_16_bits_is_no_limit() {
        assert_eq!(l2(&Hop { mtu: 65536, ..HOP }).mtu, u16::MAX);
    }
}
