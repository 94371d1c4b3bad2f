//! The packets, read by an independent parser.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};

use super::*;

fn hop(source: &str) -> NextHop {
    NextHop {
        ifindex: 1,
        interface: "eth0".to_owned(),
        below: None,
        destination_mac: [2, 0, 0, 0, 0, 1],
        source_mac: [2, 0, 0, 0, 0, 2],
        source: source.parse().unwrap(),
        gateway: None,
        mtu: 1500,
    }
}

fn syn(source: &str, destination: &str) -> Segment {
    Segment {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        sequence: 0x0102_0304,
        flags: SYN,
    }
}

/// Holds the packet to be `segment`, with right checksums.
fn is_the_segment(packet: &[u8], segment: &Segment) {
    let sliced = SlicedPacket::from_ip(packet).unwrap();
    let Some(TransportSlice::Tcp(tcp)) = sliced.transport else {
        panic!("TCP");
    };
    let checksum = match sliced.net.unwrap() {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            assert_eq!(IpAddr::V4(header.source_addr()), segment.source.ip());
            assert_eq!(IpAddr::V4(header.destination_addr()), segment.destination.ip());
            assert_eq!(
                header.header_checksum(),
                header.to_header().calc_header_checksum()
            );
            tcp.calc_checksum_ipv4(header.source(), header.destination())
                .unwrap()
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header().to_header();
            assert_eq!(IpAddr::V6(header.source_addr()), segment.source.ip());
            assert_eq!(IpAddr::V6(header.destination_addr()), segment.destination.ip());
            tcp.calc_checksum_ipv6(header.source, header.destination).unwrap()
        }
        NetSlice::Arp(_) => panic!("IP"),
    };
    assert_eq!(tcp.checksum(), checksum);
    assert_eq!(tcp.source_port(), segment.source.port());
    assert_eq!(tcp.destination_port(), segment.destination.port());
    assert_eq!(tcp.sequence_number(), segment.sequence);
    assert!(tcp.syn() && !tcp.ack() && !tcp.rst());
}

#[test]
fn frames_are_those_of_the_forward_modes() {
    let v4 = syn("10.0.0.1:4000", "192.0.2.10:80");
    let v6 = syn("[2001:db8::1]:4000", "[2001:db8::10]:80");
    for (segment, forward, source, backend, outer_bytes) in [
        (&v4, Forward::DsrL2, "10.0.0.1", "10.0.0.2", 0),
        (&v6, Forward::DsrL2, "2001:db8::1", "2001:db8::2", 0),
        (&v4, Forward::DsrIpip, "10.0.0.1", "10.0.0.2", 20),
        (&v6, Forward::DsrIpip, "2001:db8::1", "2001:db8::2", 40),
        (&v4, Forward::DsrIpip, "2001:db8::1", "2001:db8::2", 40),
        (&v4, Forward::DsrGue, "10.0.0.1", "10.0.0.2", 28),
        (&v6, Forward::DsrGue, "2001:db8::1", "2001:db8::2", 48),
        (&v4, Forward::DsrGue, "2001:db8::1", "2001:db8::2", 48),
    ] {
        let backend: IpAddr = backend.parse().unwrap();
        let frame = frame(segment, forward, &hop(source), backend).unwrap();
        assert_eq!(frame[..12], [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
        let packet = &frame[14..];
        is_the_segment(&packet[outer_bytes..], segment);
        let ethertype = u16::from_be_bytes([frame[12], frame[13]]);
        assert_eq!(ethertype, if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd });
        if outer_bytes > 0 {
            let outer = SlicedPacket::from_ethernet(&frame).unwrap();
            let (from, to) = match outer.net.unwrap() {
                NetSlice::Ipv4(ip) => (
                    IpAddr::V4(ip.header().source_addr()),
                    IpAddr::V4(ip.header().destination_addr()),
                ),
                NetSlice::Ipv6(ip) => (
                    IpAddr::V6(ip.header().source_addr()),
                    IpAddr::V6(ip.header().destination_addr()),
                ),
                NetSlice::Arp(_) => panic!("IP"),
            };
            assert_eq!((from, to), (source.parse().unwrap(), backend));
            if forward == Forward::DsrGue {
                let Some(TransportSlice::Udp(udp)) = outer.transport else {
                    panic!("UDP");
                };
                assert_eq!((udp.destination_port(), udp.checksum()), (6080, 0));
                assert_eq!(usize::from(udp.length()), packet.len() - outer_bytes + 8);
            }
        }
    }
    let mixed = syn("10.0.0.1:4000", "[2001:db8::10]:80");
    assert!(
        frame(
            &mixed,
            Forward::DsrL2,
            &hop("10.0.0.1"),
            "10.0.0.2".parse().unwrap()
        )
        .is_none()
    );
}

#[test]
fn answers_are_accepting_or_refusing() {
    for (service, client) in [
        ("192.0.2.10:80", "10.0.0.1:4000"),
        ("[2001:db8::10]:80", "[2001:db8::1]:4000"),
    ] {
        for (flags, said) in [
            (SYN | ACK, Some(Said::Accepted)),
            (RST | ACK, Some(Said::Refused)),
            (ACK, Some(Said::Connected(7))),
            (FIN | ACK, Some(Said::Connected(7))),
            (SYN, None),
            (RST, None),
            (SYN | RST | ACK, None),
        ] {
            let segment = Segment {
                flags,
                ..syn(service, client)
            };
            let mut tcp = tcp(&segment);
            tcp[8..12].copy_from_slice(&7_u32.to_be_bytes());
            let packet = packet(segment.source.ip(), segment.destination.ip(), TCP, &tcp).unwrap();
            let expected = said.map(|said| Answer {
                from: segment.source,
                to: segment.destination.port(),
                acknowledges: 7,
                said,
            });
            assert_eq!(answer(&packet), expected, "{flags:#x}");
            for length in 0..packet.len() {
                assert_eq!(answer(&packet[..length]), None, "cut to {length}");
            }
        }
    }
}
