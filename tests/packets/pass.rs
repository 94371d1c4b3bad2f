//! What is no service's goes to the kernel, bit for bit.

use etherparse::{IpNumber, PacketBuilder, VlanId};
use lb_common::reason::Reason;
use xlb::datapath::simulate::OWN_MAC;

use crate::build::{
    CLIENT_MAC, ETHERNET, PAYLOAD, extended, first_fragment, fragment, frame, ip, later_fragment,
    no_operations, options, raw_in, tcp, transport_of, udp, v4,
};
use crate::world::{CLIENT_V4, Case, check, world};

fn case(shows: &'static str, packet: Vec<u8>, reason: Reason) -> Case {
    Case {
        shows,
        packet,
        reason,
        service: None,
    }
}

#[test]
fn packets_of_no_service() {
    let Some(mut world) = world(false) else { return };
    use Reason::NotService;
    let cases = [
        case("another address", tcp("192.0.2.99", 80), NotService),
        case("another port", tcp("192.0.2.10", 81), NotService),
        case("the other protocol", udp("192.0.2.10", 80), NotService),
        case("another IPv6 address", tcp("2001:db8::99", 80), NotService),
        case("another port over IPv6", tcp("2001:db8::10", 81), NotService),
        case(
            "the other protocol over IPv6",
            udp("2001:db8::10", 80),
            NotService,
        ),
        case(
            "an IPv6 address that ends like a service's",
            tcp("::192.0.2.10", 80),
            NotService,
        ),
        case("a backend's own address", tcp("10.0.1.11", 80), NotService),
    ];
    check(&mut world, &cases);
}

#[test]
fn other_protocols_even_to_service_addresses() {
    let Some(mut world) = world(false) else { return };
    use Reason::OtherProtocol;
    let raw = |destination, protocol| raw_in(ip(destination), protocol, PAYLOAD);
    let mut icmpv6_in_v4_options = v4("192.0.2.10");
    icmpv6_in_v4_options.options = no_operations(5);
    let cases = [
        case("SCTP", raw("192.0.2.10", IpNumber::SCTP), OtherProtocol),
        case(
            "SCTP over IPv6",
            raw("2001:db8::10", IpNumber::SCTP),
            OtherProtocol,
        ),
        case("GRE", raw("192.0.2.20", IpNumber::GRE), OtherProtocol),
        case(
            "ESP over IPv6",
            raw("2001:db8::20", IpNumber::ENCAPSULATING_SECURITY_PAYLOAD),
            OtherProtocol,
        ),
        case(
            "no next header",
            raw("2001:db8::20", IpNumber::IPV6_NO_NEXT_HEADER),
            OtherProtocol,
        ),
        case(
            "IP in IP to a service address",
            raw("192.0.2.20", IpNumber::IPV4),
            OtherProtocol,
        ),
        case(
            "protocol 58 behind an IPv4 header as long as Ethernet and IPv6",
            raw_in(icmpv6_in_v4_options, IpNumber::IPV6_ICMP, &[0; 32]),
            OtherProtocol,
        ),
        case(
            "ICMPv6 behind an extension header",
            extended(
                "2001:db8::10",
                &[(IpNumber::IPV6_DESTINATION_OPTIONS, options(1))],
                IpNumber::IPV6_ICMP,
                &[128; 8],
            ),
            OtherProtocol,
        ),
    ];
    check(&mut world, &cases);
}

#[test]
fn vlan_tags_are_not_looked_into() {
    let Some(mut world) = world(false) else { return };
    let id = VlanId::try_new(5).expect("12 bits");
    let tagged = PacketBuilder::ethernet2(CLIENT_MAC, OWN_MAC)
        .single_vlan(id)
        .ipv4(CLIENT_V4.octets(), [192, 0, 2, 10], 64)
        .tcp(40000, 80, 1, 100);
    let twice = PacketBuilder::ethernet2(CLIENT_MAC, OWN_MAC)
        .double_vlan(id, id)
        .ipv4(CLIENT_V4.octets(), [192, 0, 2, 10], 64)
        .tcp(40000, 80, 1, 100);
    let (mut one, mut two) = (Vec::new(), Vec::new());
    tagged.write(&mut one, PAYLOAD).expect("a packet");
    twice.write(&mut two, PAYLOAD).expect("a packet");
    check(
        &mut world,
        &[
            case("802.1Q", one, Reason::Vlan),
            case("802.1ad", two, Reason::Vlan),
        ],
    );
}

#[test]
fn other_frames() {
    let Some(mut world) = world(false) else { return };
    let packet = tcp("192.0.2.10", 80);
    let mut cases = Vec::new();
    // Lengths of IEEE 802.3, LLDP, MPLS, PPPoE, IPX, and TCP/IP under a wrong type.
    for ethertype in [0x0000, 0x002e, 0x05dc, 0x88cc, 0x8847, 0x8864, 0x8137, 0xffff] {
        cases.push(case(
            "another ethertype",
            frame(ethertype, &packet[ETHERNET..]),
            Reason::NotIp,
        ));
    }
    check(&mut world, &cases);
}

#[test]
fn fragments_to_other_addresses() {
    let Some(mut world) = world(false) else { return };
    let body = transport_of(&tcp("2001:db8::99", 80)).to_vec();
    let pieces = |offset, more| {
        extended(
            "2001:db8::99",
            &[(IpNumber::IPV6_FRAGMENTATION_HEADER, fragment(offset, more))],
            IpNumber::TCP,
            &body,
        )
    };
    let cases = [
        case(
            "first",
            raw_in(first_fragment(v4("192.0.2.99")), IpNumber::UDP, PAYLOAD),
            Reason::NotService,
        ),
        case(
            "later",
            raw_in(later_fragment(v4("192.0.2.99")), IpNumber::UDP, PAYLOAD),
            Reason::NotService,
        ),
        case("first over IPv6", pieces(0, true), Reason::NotService),
        case("later over IPv6", pieces(100, false), Reason::NotService),
    ];
    check(&mut world, &cases);
}
