//! The frames that announce an address: pure functions from addresses to bytes.

use std::net::{Ipv4Addr, Ipv6Addr};

use lb_common::checksum;

use crate::net::MacAddress;

const BROADCAST_MAC: MacAddress = [0xff; 6];
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ICMPV6: u8 = 58;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_MLDV2_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);

/// How many groups fit one report: 20 bytes each, in a packet of at most 1280 bytes.
pub const GROUPS_PER_REPORT: usize = 60;

/// An ARP announcement (RFC 5227 section 3): a broadcast request in which sender and target are both
/// `address`. Whoever has an entry for it replaces the MAC address there.
#[must_use]
pub fn arp_announcement(mac: MacAddress, address: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet(BROADCAST_MAC, mac, ETHERTYPE_ARP);
    // Ethernet, IPv4, their address lengths, request.
    frame.extend([0, 1, 0x08, 0x00, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(address.octets());
    frame.extend([0; 6]);
    frame.extend(address.octets());
    frame
}

/// An unsolicited neighbour advertisement to all nodes (RFC 4861 section 7.2.6), with the override
/// flag: whoever has an entry for `address` replaces the MAC address there.
#[must_use]
pub fn neighbor_advertisement(mac: MacAddress, address: Ipv6Addr) -> Vec<u8> {
    const OVERRIDE: u8 = 0x20;
    // Type, code, checksum, flags and reserved; then the option for the target's MAC address.
    let mut message = vec![136, 0, 0, 0, OVERRIDE, 0, 0, 0];
    message.extend(address.octets());
    message.extend([2, 1]);
    message.extend(mac);
    set_checksum(&mut message, address, ALL_NODES);

    let mut frame = ethernet(multicast_mac(ALL_NODES), mac, ETHERTYPE_IPV6);
    // 255: nobody outside the link can have sent it (RFC 4861 section 7.1.2).
    frame.extend(ipv6(ICMPV6, message.len(), 255, address, ALL_NODES));
    frame.extend(message);
    frame
}

/// A report that we listen to `groups` (MLDv2, RFC 3810 section 5.2), for switches that send multicast
/// only where somebody asked for it. `source`: a link-local address of the interface, or `::` where it
/// has none (RFC 3590). At most [`GROUPS_PER_REPORT`] groups.
#[must_use]
pub fn listener_report(mac: MacAddress, source: Ipv6Addr, groups: &[Ipv6Addr]) -> Vec<u8> {
    const CHANGE_TO_EXCLUDE: u8 = 4;
    let groups = &groups[..groups.len().min(GROUPS_PER_REPORT)];
    let mut message = vec![143, 0, 0, 0, 0, 0, 0, groups.len() as u8];
    for group in groups {
        message.extend([CHANGE_TO_EXCLUDE, 0, 0, 0]);
        message.extend(group.octets());
    }
    set_checksum(&mut message, source, ALL_MLDV2_ROUTERS);

    // Hop-by-hop options: router alert for MLD (RFC 2711), and padding.
    let options = [ICMPV6, 0, 5, 2, 0, 0, 1, 0];
    let mut frame = ethernet(multicast_mac(ALL_MLDV2_ROUTERS), mac, ETHERTYPE_IPV6);
    frame.extend(ipv6(
        0,
        options.len() + message.len(),
        1,
        source,
        ALL_MLDV2_ROUTERS,
    ));
    frame.extend(options);
    frame.extend(message);
    frame
}

/// The group in which solicitations for `address` arrive (RFC 4291 section 2.7.1). Addresses with the
/// same last 24 bits share it.
#[must_use]
pub fn solicited_node_group(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

/// The MAC address that frames to a multicast group have (RFC 2464 section 7).
#[must_use]
pub fn multicast_mac(group: Ipv6Addr) -> MacAddress {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d]
}

fn ethernet(destination: MacAddress, source: MacAddress, ethertype: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(128);
    frame.extend(destination);
    frame.extend(source);
    frame.extend(ethertype.to_be_bytes());
    frame
}

fn ipv6(
    next_header: u8,
    length: usize,
    hop_limit: u8,
    source: Ipv6Addr,
    destination: Ipv6Addr,
) -> impl Iterator<Item = u8> {
    let [high, low] = (length as u16).to_be_bytes();
    [0x60, 0, 0, 0, high, low, next_header, hop_limit]
        .into_iter()
        .chain(source.octets())
        .chain(destination.octets())
}

/// Fills in the checksum of an ICMPv6 message of even length (RFC 4443 section 2.3; the pseudo-header
/// is that of RFC 8200 section 8.1).
fn set_checksum(message: &mut [u8], source: Ipv6Addr, destination: Ipv6Addr) {
    let length = (message.len() as u32).to_be_bytes();
    let sum = checksum::sum(&source.octets())
        + checksum::sum(&destination.octets())
        + checksum::sum(&length)
        + checksum::sum(&[0, 0, 0, ICMPV6])
        + checksum::sum(message);
    message[2..4].copy_from_slice(&(!checksum::fold(sum)).to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::icmpv6::NdpOptionSlice;
    use etherparse::{Icmpv6Slice, NetSlice, SlicedPacket, TransportSlice};

    const MAC: MacAddress = [2, 0, 0, 0, 0, 7];

    /// Checks link and network layer with an independent parser and returns the ICMPv6 message, whose
    /// checksum it verifies as well.
    fn icmpv6<'a>(
        frame: &'a [u8],
        hop_limit: u8,
        source: Ipv6Addr,
        destination: Ipv6Addr,
    ) -> Icmpv6Slice<'a> {
        let packet = SlicedPacket::from_ethernet(frame).unwrap();
        let ethernet = packet
            .link
            .as_ref()
            .unwrap()
            .to_header()
            .unwrap()
            .ethernet2()
            .unwrap();
        assert_eq!(ethernet.source, MAC);
        assert_eq!(ethernet.destination[..2], [0x33, 0x33]);
        assert_eq!(ethernet.destination[2..], destination.octets()[12..]);
        let Some(NetSlice::Ipv6(ip)) = packet.net else {
            panic!("{:?}", packet.net)
        };
        let header = ip.header();
        assert_eq!(header.source_addr(), source);
        assert_eq!(header.destination_addr(), destination);
        assert_eq!(header.hop_limit(), hop_limit);
        assert_eq!(usize::from(header.payload_length()), frame.len() - 14 - 40);
        let Some(TransportSlice::Icmpv6(message)) = packet.transport else {
            panic!("{:?}", packet.transport)
        };
        assert!(message.is_checksum_valid(source.octets(), destination.octets()));
        message
    }

    #[test]
    fn an_arp_announcement_names_the_address_twice() {
        let address = Ipv4Addr::new(192, 0, 2, 10);
        let frame = arp_announcement(MAC, address);
        let packet = SlicedPacket::from_ethernet(&frame).unwrap();
        let ethernet = packet
            .link
            .as_ref()
            .unwrap()
            .to_header()
            .unwrap()
            .ethernet2()
            .unwrap();
        assert_eq!((ethernet.source, ethernet.destination), (MAC, [0xff; 6]));
        let Some(NetSlice::Arp(arp)) = packet.net else {
            panic!("{:?}", packet.net)
        };
        let arp = arp.to_packet().try_eth_ipv4().unwrap();
        assert_eq!(arp.operation, etherparse::ArpOperation::REQUEST);
        assert_eq!((arp.sender_mac, arp.target_mac), (MAC, [0; 6]));
        assert_eq!(
            (arp.sender_ipv4, arp.target_ipv4),
            (address.octets(), address.octets())
        );
    }

    #[test]
    fn an_advertisement_overrides_what_others_know() {
        let address: Ipv6Addr = "2001:db8::10".parse().unwrap();
        let frame = neighbor_advertisement(MAC, address);
        let message = icmpv6(&frame, 255, address, "ff02::1".parse().unwrap());
        let etherparse::Icmpv6Type::NeighborAdvertisement(header) = message.icmp_type() else {
            panic!("{:?}", message.icmp_type())
        };
        assert!(header.r#override && !header.solicited && !header.router);
        let payload = message.payload_slice().unwrap();
        let etherparse::icmpv6::Icmpv6PayloadSlice::NeighborAdvertisement(payload) = payload else {
            panic!("{payload:?}")
        };
        assert_eq!(payload.target_address(), address);
        let options: Vec<_> = payload.options_iterator().map(Result::unwrap).collect();
        assert!(
            matches!(&options[..], [NdpOptionSlice::TargetLinkLayerAddress(option)]
                if option.link_layer_address() == MAC),
            "{options:?}"
        );
    }

    #[test]
    fn a_report_names_every_group() {
        let groups: Vec<Ipv6Addr> = ["ff02::1:ff00:10", "ff02::1:ffab:cdef"]
            .map(|group| group.parse().unwrap())
            .to_vec();
        for source in ["::", "fe80::7"] {
            let source = source.parse().unwrap();
            let frame = listener_report(MAC, source, &groups);
            let message = icmpv6(&frame, 1, source, "ff02::16".parse().unwrap());
            let bytes = message.slice();
            assert_eq!(bytes[0], 143);
            assert_eq!(bytes[6..8], [0, 2]);
            for (record, group) in bytes[8..].chunks(20).zip(&groups) {
                assert_eq!(record[..4], [4, 0, 0, 0]);
                assert_eq!(record[4..], group.octets());
            }
            assert_eq!(bytes.len(), 8 + 20 * groups.len());
        }
    }

    #[test]
    fn groups_and_their_mac_addresses_follow_the_rfcs() {
        let address = "4037::1:800:200e:8c6c".parse().unwrap();
        let group = solicited_node_group(address);
        assert_eq!(group, "ff02::1:ff0e:8c6c".parse::<Ipv6Addr>().unwrap());
        assert_eq!(multicast_mac(group), [0x33, 0x33, 0xff, 0x0e, 0x8c, 0x6c]);
    }
}
