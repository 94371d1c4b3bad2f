use super::*;

const OURS: [u8; 4] = [10, 0, 0, 5];
const BACKEND: [u8; 4] = [10, 0, 1, 11];
const OURS_V6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5];
const BACKEND_V6: [u8; 16] = [0xfd, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 11];

/// A segment of 203.0.113.7:4711 for 192.0.2.20:443, its first bytes.
fn client_packet() -> Vec<u8> {
    let mut packet = vec![0x45, 0, 5, 0xdc, 0, 1, 0x40, 0, 60, TCP, 0, 0];
    packet.extend([203, 0, 113, 7, 192, 0, 2, 20, 0x12, 0x67, 0x01, 0xbb, 1, 2, 3, 4]);
    packet
}

fn client_flow() -> Quoted {
    Quoted {
        client: [203, 0, 113, 7].into(),
        service: [192, 0, 2, 20].into(),
        protocol: TCP,
        ports: [0x12, 0x67, 0x01, 0xbb],
    }
}

fn outer_v4(protocol: u8, length: u16) -> Vec<u8> {
    let [high, low] = length.to_be_bytes();
    let mut header = vec![0x45, 0, high, low, 0, 0, 0x40, 0, 63, protocol, 0, 0];
    header.extend([OURS, BACKEND].concat());
    header
}

fn outer_v6(next: u8, payload: u16, label: u16) -> Vec<u8> {
    let ([high, low], [a, b]) = (payload.to_be_bytes(), label.to_be_bytes());
    let mut header = vec![0x60, 0, a, b, high, low, next, 63];
    header.extend([OURS_V6, BACKEND_V6].concat());
    header
}

fn udp(from: u16) -> Vec<u8> {
    [from.to_be_bytes(), GUE_PORT.to_be_bytes(), [5, 0], [0, 0]].concat()
}

/// The whole message of a router, with a sum that is right.
fn too_big_v4(mtu: u16, quoted: &[u8]) -> Vec<u8> {
    let mut message = vec![3, 4, 0, 0, 0, 0];
    message.extend(mtu.to_be_bytes());
    message.extend(quoted);
    let mut even = message.clone();
    even.resize(message.len().next_multiple_of(2), 0);
    let check = !checksum::fold(checksum::sum(&even));
    message[2..4].copy_from_slice(&check.to_ne_bytes());
    let mut packet = vec![0x45, 0xc0, 0, 0, 0, 0, 0, 0, 64, 1, 0, 0, 10, 0, 0, 1];
    packet.extend(OURS);
    packet.extend(message);
    packet
}

fn too_big_v6(mtu: u32, quoted: &[u8]) -> Vec<u8> {
    let mut message = vec![2, 0, 0, 0];
    message.extend(mtu.to_be_bytes());
    message.extend(quoted);
    message
}

#[test]
fn what_is_said_of_our_packets_is_read() {
    let quoted = [outer_v4(IPV4_IN, 1520), client_packet()].concat();
    let notice = of_icmp(&too_big_v4(1400, &quoted)).expect("a notice");
    let expected = Notice {
        source: OURS.into(),
        backend: BACKEND.into(),
        gue: false,
        mtu: 1400,
        spread: None,
        flow: Some(client_flow()),
    };
    assert_eq!(notice, expected);

    let quoted = [outer_v4(UDP, 1528), udp(0xC123), client_packet()].concat();
    let notice = of_icmp(&too_big_v4(1400, &quoted)).expect("a notice");
    assert!(notice.gue);
    assert_eq!(notice.spread, Some(Spread::Port(0xC123)));
    assert_eq!(notice.flow, Some(client_flow()));

    let quoted = [outer_v6(IPV4_IN, 1500, 0xbeef), client_packet()].concat();
    let notice = of_icmpv6(&too_big_v6(1400, &quoted)).expect("a notice");
    assert_eq!(
        (notice.source, notice.backend),
        (OURS_V6.into(), BACKEND_V6.into())
    );
    assert_eq!(notice.spread, Some(Spread::Label(0xbeef)));
    assert_eq!(notice.flow, Some(client_flow()));

    // Routers need not quote more than eight bytes behind the header (RFC 792).
    let short = [&outer_v4(IPV4_IN, 1520)[..], &client_packet()[..8]].concat();
    assert_eq!(of_icmp(&too_big_v4(1400, &short)).expect("a notice").flow, None);
}

#[test]
fn what_we_never_sent_is_not_believed() {
    let of = |quoted: Vec<u8>| of_icmp(&too_big_v4(1400, &[quoted, client_packet()].concat()));
    let with = |at: usize, byte: u8| {
        let mut outer = outer_v4(IPV4_IN, 1520);
        outer[at] = byte;
        of(outer)
    };
    assert!(with(8, 1).is_some(), "the hop limit changes on the way");
    assert_eq!(with(0, 0x46), None, "options");
    assert_eq!(with(5, 1), None, "an identification");
    assert_eq!(with(6, 0), None, "without Don't Fragment");
    assert_eq!(with(7, 1), None, "a fragment");
    assert_eq!(with(12, 11), None, "from another address than it comes to");
    assert_eq!(with(9, TCP), None, "not encapsulated");
    assert_eq!(of(outer_v4(IPV4_IN, 1400)), None, "not longer than what fits");
    assert_eq!(
        of([outer_v4(UDP, 1528), vec![0xC1, 0, 0, 53, 0, 0, 0, 0]].concat()),
        None
    );
    let quoted = [outer_v4(IPV4_IN, 1520), client_packet()].concat();
    for (mtu, believed) in [
        (0, false),
        (68, false),
        (575, false),
        (576, true),
        (1519, true),
        (1520, false),
    ] {
        assert_eq!(of_icmp(&too_big_v4(mtu, &quoted)).is_some(), believed, "{mtu}");
    }
    let mut wrong = too_big_v4(1400, &quoted);
    wrong[30] ^= 1;
    assert_eq!(of_icmp(&wrong), None, "a wrong sum");
    let mut other = too_big_v4(1400, &quoted);
    other[21] = 1;
    assert_eq!(of_icmp(&other), None, "another message");

    let quoted = [outer_v6(IPV4_IN, 1500, 7), client_packet()].concat();
    for (mtu, believed) in [
        (0, false),
        (1279, false),
        (1280, true),
        (1539, true),
        (1540, false),
    ] {
        assert_eq!(of_icmpv6(&too_big_v6(mtu, &quoted)).is_some(), believed, "{mtu}");
    }
}

#[test]
fn no_message_cut_short_anywhere_does_harm() {
    for quoted in [
        [outer_v4(IPV4_IN, 1520), client_packet()].concat(),
        [outer_v4(UDP, 1528), udp(0xC123), client_packet()].concat(),
    ] {
        for length in 0..quoted.len() {
            // The outer header and the first bytes behind it; with UDP its header.
            let least = if quoted[9] == UDP { 28 } else { 20 };
            let read = of_icmp(&too_big_v4(1400, &quoted[..length]));
            assert_eq!(read.is_some(), length >= least, "{length}");
        }
    }
    let whole = too_big_v4(1400, &[outer_v4(IPV4_IN, 1520), client_packet()].concat());
    for length in 0..whole.len() {
        assert_eq!(of_icmp(&whole[..length]), None, "the sum is of all of it");
    }
    let whole = too_big_v6(
        1400,
        &[outer_v6(UDP, 1500, 7), udp(0xC123), client_packet()].concat(),
    );
    for length in 0..whole.len() {
        let _ = of_icmpv6(&whole[..length]);
    }
}
