//! The program of `xlb decap`: outer headers of the load balancers named come off, everything else is left
//! alone and counted.

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{MapData, PerCpuArray};
use aya::{Ebpf, EbpfLoader};
use etherparse::{EtherType, Ethernet2Slice, IpNumber, Ipv4Header, Ipv6Header};
use lb_common::decap::Outcome;
use xlb::datapath::simulate::{OWN_MAC, SOURCE_V4, SOURCE_V6};
use xlb::datapath::testrun::{self, Action};
use xlb::datapath::{attach, object};

use crate::build::{CLIENT_MAC, ETHERNET, frame, no_operations, tcp, udp};
use crate::world::{root, send, world};

/// The program with the prefixes 198.51.100.0/24 and 2001:db8:ffff::/48, which the load balancer of the other
/// tests is in.
struct Decap {
    ebpf: Ebpf,
    counts: PerCpuArray<MapData, u64>,
}

impl Decap {
    fn new() -> Option<Self> {
        root().then(|| {
            let mut ebpf = EbpfLoader::new()
                .override_global("FRAGS", &1_u8, true)
                .load(object::DECAP)
                .expect("an object that loads");
            attach::verify(&mut ebpf, "decap").expect("a program that loads");
            let v4 = ebpf.take_map("FROM_V4").expect("the map");
            let mut v4: LpmTrie<_, [u8; 4], u32> = v4.try_into().expect("a prefix tree");
            let [a, b, c, _] = SOURCE_V4.octets();
            v4.insert(&Key::new(24, [a, b, c, 0]), 1, 0).expect("inserting");
            let v6 = ebpf.take_map("FROM_V6").expect("the map");
            let mut v6: LpmTrie<_, [u8; 16], u32> = v6.try_into().expect("a prefix tree");
            let mut prefix = [0; 16];
            prefix[..6].copy_from_slice(&SOURCE_V6.octets()[..6]);
            v6.insert(&Key::new(48, prefix), 1, 0).expect("inserting");
            let counts = ebpf.take_map("DECAP_COUNTS").expect("the map");
            let counts = counts.try_into().expect("counters");
            Self { ebpf, counts }
        })
    }

    fn counts(&self) -> Vec<u64> {
        let count = |outcome: &Outcome| self.counts.get(&(*outcome as u32), 0).expect("a count");
        Outcome::ALL
            .iter()
            .map(|outcome| count(outcome).iter().sum())
            .collect()
    }

    /// Runs the program; it passes every packet on, counted under one outcome.
    fn run(&self, packet: &[u8]) -> (Outcome, Vec<u8>) {
        let (action, outcome, out) = self.judge(packet);
        assert_eq!(action, Action::Pass, "{packet:02x?}");
        (outcome, out)
    }

    /// Like [`Decap::run`], whatever becomes of the packet.
    fn judge(&self, packet: &[u8]) -> (Action, Outcome, Vec<u8>) {
        let before = self.counts();
        let program = self.ebpf.program("decap").expect("the program");
        let run = testrun::run(program.try_into().expect("XDP"), packet).expect("a run");
        let after = self.counts();
        let counted: Vec<Outcome> = Outcome::ALL
            .into_iter()
            .filter(|outcome| after[*outcome as usize] != before[*outcome as usize])
            .collect();
        let [outcome] = counted[..] else {
            panic!("counted under {counted:?}")
        };
        assert_eq!(after.iter().sum::<u64>(), before.iter().sum::<u64>() + 1);
        if outcome != Outcome::Decapsulated {
            assert_eq!(run.packet, packet, "{outcome:?}: left alone");
        }
        (run.action, outcome, run.packet)
    }

    fn leaves_alone(&self, shows: &str, packet: &[u8], why: Outcome) {
        assert_eq!(self.run(packet).0, why, "{shows}");
    }
}

/// What to call a packet's type after its first byte.
fn ethertype(ip: &[u8]) -> EtherType {
    if ip[0] >> 4 == 4 {
        EtherType::IPV4
    } else {
        EtherType::IPV6
    }
}

fn assert_is(shows: &str, stripped: &[u8], macs: &[u8], inner: &[u8]) {
    let ethernet = Ethernet2Slice::from_slice_without_fcs(stripped).expect("a frame");
    assert_eq!(&stripped[..12], macs, "{shows}: the MACs are the outer frame's");
    assert_eq!(ethernet.ether_type(), ethertype(inner), "{shows}");
    assert_eq!(ethernet.payload_slice(), inner, "{shows}");
}

/// What the load balancer encapsulates comes out again as it was.
#[test]
fn there_and_back() {
    let (Some(mut world), Some(decap)) = (world(false), Decap::new()) else {
        return;
    };
    for (shows, packet) in [
        ("4 in 4", tcp("192.0.2.20", 443)),
        ("UDP, 4 in 4", udp("192.0.2.20", 443)),
        ("6 in 6", tcp("2001:db8::20", 443)),
        ("4 in 6", tcp("192.0.2.30", 443)),
        ("4 in UDP over 4", tcp("192.0.2.60", 443)),
        ("UDP, 4 in UDP over 4", udp("192.0.2.60", 443)),
        ("6 in UDP over 6", tcp("2001:db8::60", 443)),
        ("4 in UDP over 6", tcp("192.0.2.61", 443)),
    ] {
        let sent = send(&mut world, shows, &packet);
        let (outcome, stripped) = decap.run(&sent.out);
        assert_eq!(outcome, Outcome::Decapsulated, "{shows}");
        assert_is(shows, &stripped, &sent.out[..12], &packet[ETHERNET..]);
    }
}

fn outer_v4(source: [u8; 4], protocol: IpNumber, inner: usize) -> Ipv4Header {
    let mut header = Ipv4Header::new(inner as u16, 64, protocol, source, [10, 0, 1, 11]).expect("it fits");
    header.header_checksum = header.calc_header_checksum();
    header
}

fn outer_v6(source: [u8; 16], next_header: IpNumber, inner: usize) -> Ipv6Header {
    Ipv6Header {
        payload_length: inner as u16,
        next_header,
        hop_limit: 64,
        source,
        destination: [0xfd; 16],
        ..Ipv6Header::default()
    }
}

fn in_v4(header: &Ipv4Header, inner: &[u8]) -> Vec<u8> {
    frame(0x0800, &[&header.to_bytes()[..], inner].concat())
}

fn in_v6(header: &Ipv6Header, inner: &[u8]) -> Vec<u8> {
    frame(0x86dd, &[&header.to_bytes()[..], inner].concat())
}

fn inner_v4() -> Vec<u8> {
    tcp("192.0.2.20", 443).split_off(ETHERNET)
}

fn inner_v6() -> Vec<u8> {
    tcp("2001:db8::20", 443).split_off(ETHERNET)
}

#[test]
fn every_pair_of_families_and_outer_options() {
    let Some(decap) = Decap::new() else { return };
    let (source_v4, source_v6) = (SOURCE_V4.octets(), SOURCE_V6.octets());
    let macs = [&OWN_MAC[..], &CLIENT_MAC].concat();
    for (protocol, inner) in [(IpNumber::IPV4, inner_v4()), (IpNumber::IPV6, inner_v6())] {
        let over_v6 = in_v6(&outer_v6(source_v6, protocol, inner.len()), &inner);
        let (outcome, stripped) = decap.run(&over_v6);
        assert_eq!(outcome, Outcome::Decapsulated);
        assert_is("over IPv6", &stripped, &macs, &inner);
        for words in 0..=10 {
            let mut header = outer_v4(source_v4, protocol, inner.len());
            header.options = no_operations(words);
            header.set_payload_len(inner.len()).expect("it fits");
            let (outcome, stripped) = decap.run(&in_v4(&header, &inner));
            assert_eq!(outcome, Outcome::Decapsulated, "{words} words of options");
            assert_is("over IPv4", &stripped, &macs, &inner);
        }
    }
}

#[test]
fn padding_stays_behind_the_packet() {
    let Some(decap) = Decap::new() else { return };
    let inner = inner_v4();
    let mut packet = in_v4(&outer_v4(SOURCE_V4.octets(), IpNumber::IPV4, inner.len()), &inner);
    packet.extend([0; 11]);
    let (outcome, stripped) = decap.run(&packet);
    assert_eq!(outcome, Outcome::Decapsulated);
    assert_eq!(stripped[ETHERNET..], [&inner[..], &[0; 11]].concat());
}

#[test]
fn from_addresses_that_are_not_named() {
    let Some(decap) = Decap::new() else { return };
    let (inner, inner_six) = (inner_v4(), inner_v6());
    for (shows, source, expected) in [
        ("below the prefix", [198, 51, 99, 255], Outcome::NotFromUs),
        ("its first address", [198, 51, 100, 0], Outcome::Decapsulated),
        ("its last address", [198, 51, 100, 255], Outcome::Decapsulated),
        ("above the prefix", [198, 51, 101, 0], Outcome::NotFromUs),
        ("anybody", [203, 0, 113, 7], Outcome::NotFromUs),
    ] {
        let packet = in_v4(&outer_v4(source, IpNumber::IPV4, inner.len()), &inner);
        assert_eq!(decap.run(&packet).0, expected, "{shows}");
    }
    let mut near = SOURCE_V6.octets();
    near[15] ^= 1;
    let mut far = SOURCE_V6.octets();
    far[5] ^= 1;
    for (source, expected) in [(near, Outcome::Decapsulated), (far, Outcome::NotFromUs)] {
        let packet = in_v6(&outer_v6(source, IpNumber::IPV6, inner_six.len()), &inner_six);
        assert_eq!(decap.run(&packet).0, expected);
    }
}

#[test]
fn what_is_no_tunnel() {
    let Some(decap) = Decap::new() else { return };
    let from_us = |protocol| in_v4(&outer_v4(SOURCE_V4.octets(), protocol, 40), &[0; 40]);
    for (shows, packet) in [
        ("TCP", tcp("192.0.2.20", 443)),
        ("TCP over IPv6", tcp("2001:db8::20", 443)),
        ("a probe of the load balancer", from_us(IpNumber::TCP)),
        ("GRE from the load balancer", from_us(IpNumber::GRE)),
        ("ARP", frame(0x0806, &[0; 46])),
        ("a VLAN tag", frame(0x8100, &[0; 60])),
        ("an empty frame", frame(0x0800, &[])),
        ("half a header", frame(0x0800, &[0x45; 19])),
        ("half an IPv6 header", frame(0x86dd, &[0x60; 39])),
    ] {
        decap.leaves_alone(shows, &packet, Outcome::NotTunneled);
    }
}

#[test]
fn fragments_and_contradictions() {
    let Some(decap) = Decap::new() else { return };
    let (inner, inner_six) = (inner_v4(), inner_v6());
    let usual = outer_v4(SOURCE_V4.octets(), IpNumber::IPV4, inner.len());
    let usual_six = outer_v6(SOURCE_V6.octets(), IpNumber::IPV6, inner_six.len());
    let malformed = |shows, packet: Vec<u8>| decap.leaves_alone(shows, &packet, Outcome::Malformed);
    let with = |change: fn(&mut Ipv4Header)| {
        let mut header = usual.clone();
        change(&mut header);
        in_v4(&header, &inner)
    };
    malformed("a first fragment", with(|header| header.more_fragments = true));
    malformed(
        "a later fragment",
        with(|header| {
            header.fragment_offset = etherparse::IpFragOffset::try_new(1).expect("13 bits");
        }),
    );
    malformed("longer than the frame", with(|header| header.total_len += 1));
    malformed("shorter than its header", with(|header| header.total_len = 19));
    malformed("nothing inside", with(|header| header.total_len = 20));
    malformed("half a header inside", with(|header| header.total_len = 39));
    malformed(
        "IPv6 announced, IPv4 inside",
        with(|header| header.protocol = IpNumber::IPV6),
    );
    let mut short = in_v4(&usual, &inner);
    short[ETHERNET] = 0x44;
    malformed("a header length below the minimum", short.clone());
    short[ETHERNET] = 0x65;
    malformed("another version", short);
    let with_six = |change: fn(&mut Ipv6Header)| {
        let mut header = usual_six.clone();
        change(&mut header);
        in_v6(&header, &inner_six)
    };
    malformed(
        "IPv6 longer than the frame",
        with_six(|header| header.payload_length += 1),
    );
    malformed(
        "nothing inside IPv6",
        with_six(|header| header.payload_length = 0),
    );
    malformed(
        "half a header inside IPv6",
        with_six(|header| header.payload_length = 39),
    );
    malformed(
        "IPv4 announced, IPv6 inside",
        with_six(|header| header.next_header = IpNumber::IPV4),
    );
}

/// A UDP datagram to the port of GUE.
fn gue(port: u16, payload: &[u8]) -> Vec<u8> {
    let length = 8 + payload.len() as u16;
    let header = [0xC000, port, length, 0].map(u16::to_be_bytes).concat();
    [header, payload.to_vec()].concat()
}

#[test]
fn generic_udp_encapsulation() {
    let Some(decap) = Decap::new() else { return };
    let macs = [&OWN_MAC[..], &CLIENT_MAC].concat();
    let over_v4 = |source, datagram: &[u8], words| {
        let mut header = outer_v4(source, IpNumber::UDP, datagram.len());
        header.options = no_operations(words);
        header.set_payload_len(datagram.len()).expect("it fits");
        in_v4(&header, datagram)
    };
    let over_v6 = |source, datagram: &[u8]| in_v6(&outer_v6(source, IpNumber::UDP, datagram.len()), datagram);
    let (ours, ours_six) = (SOURCE_V4.octets(), SOURCE_V6.octets());
    for inner in [inner_v4(), inner_v6()] {
        let datagram = gue(6080, &inner);
        let packets = (0..=10)
            .map(|words| over_v4(ours, &datagram, words))
            .chain([over_v6(ours_six, &datagram)]);
        for packet in packets {
            let (outcome, stripped) = decap.run(&packet);
            assert_eq!(outcome, Outcome::Decapsulated);
            assert_is("GUE", &stripped, &macs, &inner);
        }
    }
    let datagram = gue(6080, &inner_v4());
    for (shows, packet) in [
        ("another port", over_v4(ours, &gue(6081, &inner_v4()), 0)),
        ("another port over IPv6", over_v6(ours_six, &gue(53, &inner_v4()))),
        ("half a UDP header", over_v4(ours, &datagram[..7], 0)),
    ] {
        decap.leaves_alone(shows, &packet, Outcome::NotTunneled);
    }
    decap.leaves_alone(
        "anybody",
        &over_v4([203, 0, 113, 7], &datagram, 0),
        Outcome::NotFromUs,
    );
    decap.leaves_alone(
        "anybody over IPv6",
        &over_v6([0xfd; 16], &datagram),
        Outcome::NotFromUs,
    );
    let with_length = |length: u16| {
        let mut datagram = datagram.clone();
        datagram[4..6].copy_from_slice(&length.to_be_bytes());
        datagram
    };
    let length = datagram.len() as u16;
    for (shows, datagram) in [
        (
            "variant 0: a header of its own",
            gue(6080, &[0, 4, 0, 0, 0x45, 0, 0, 0]),
        ),
        ("neither IPv4 nor IPv6", gue(6080, &[0x75; 60])),
        ("half a header inside", gue(6080, &inner_v4()[..19])),
        ("a length below the packet's", with_length(length - 1)),
        ("a length beyond the packet's", with_length(length + 1)),
        ("a length below its own header", with_length(7)),
    ] {
        decap.leaves_alone(shows, &over_v4(ours, &datagram, 0), Outcome::Malformed);
        decap.leaves_alone(shows, &over_v6(ours_six, &datagram), Outcome::Malformed);
    }
}

#[test]
fn cut_short_and_lying_everywhere() {
    let Some(decap) = Decap::new() else { return };
    let (inner, inner_six) = (inner_v4(), inner_v6());
    let mut long = outer_v4(SOURCE_V4.octets(), IpNumber::IPV4, inner.len());
    long.options = no_operations(10);
    long.set_payload_len(inner.len()).expect("it fits");
    for packet in [
        in_v4(&outer_v4(SOURCE_V4.octets(), IpNumber::IPV4, inner.len()), &inner),
        in_v4(
            &outer_v4(SOURCE_V4.octets(), IpNumber::IPV6, inner_six.len()),
            &inner_six,
        ),
        in_v4(&long, &inner),
        in_v6(
            &outer_v6(SOURCE_V6.octets(), IpNumber::IPV6, inner_six.len()),
            &inner_six,
        ),
        in_v6(&outer_v6(SOURCE_V6.octets(), IpNumber::IPV4, inner.len()), &inner),
        in_v4(
            &outer_v4(SOURCE_V4.octets(), IpNumber::UDP, inner.len() + 8),
            &gue(6080, &inner),
        ),
        in_v6(
            &outer_v6(SOURCE_V6.octets(), IpNumber::UDP, inner_six.len() + 8),
            &gue(6080, &inner_six),
        ),
    ] {
        for len in ETHERNET..packet.len() {
            assert_ne!(decap.run(&packet[..len]).0, Outcome::Decapsulated, "{len}");
        }
        for offset in 12..packet.len().min(100) {
            for lie in [
                0, 1, 4, 0x0f, 0x29, 0x40, 0x44, 0x45, 0x46, 0x4f, 0x60, 0x6f, 0x7f, 0x80, 0xff,
            ] {
                let mut frame = packet.clone();
                frame[offset] = lie;
                let (_, outcome, stripped) = decap.judge(&frame);
                if outcome == Outcome::Decapsulated {
                    // Only a mark of congestion, and the checksum over it, may differ.
                    assert!(frame.ends_with(&stripped[ETHERNET + 12..]), "{offset} {lie}");
                }
            }
        }
    }
}

/// What a router says by marking the outer header arrives inside (RFC 6040 section 4.2): every mark on every packet, for
/// every pair of families, behind UDP and not. The class of service inside stays.
#[test]
fn congestion_marks_after_the_rfc() {
    let Some(decap) = Decap::new() else { return };
    const NOT: u8 = 0;
    const ONE: u8 = 1;
    const ZERO: u8 = 2;
    const CE: u8 = 3;
    // Rows: the inner field; columns: the outer one.
    let table = [
        (
            NOT,
            [(NOT, Some(NOT)), (ZERO, Some(NOT)), (ONE, Some(NOT)), (CE, None)],
        ),
        (
            ZERO,
            [
                (NOT, Some(ZERO)),
                (ZERO, Some(ZERO)),
                (ONE, Some(ONE)),
                (CE, Some(CE)),
            ],
        ),
        (
            ONE,
            [
                (NOT, Some(ONE)),
                (ZERO, Some(ONE)),
                (ONE, Some(ONE)),
                (CE, Some(CE)),
            ],
        ),
        (
            CE,
            [(NOT, Some(CE)), (ZERO, Some(CE)), (ONE, Some(CE)), (CE, Some(CE))],
        ),
    ];
    for (inside, row) in table {
        for (outside, expected) in row {
            for dscp in [0, 0x2e] {
                for (inner, class) in [(marked_v4(dscp, inside), true), (marked_v6(dscp, inside), false)] {
                    for (shows, packet) in wrapped(&inner, class, outside) {
                        let shows = format!("{shows}: {inside:02b} in {outside:02b}, class {dscp:#x}");
                        let (action, outcome, out) = decap.judge(&packet);
                        let Some(field) = expected else {
                            assert_eq!((action, outcome), (Action::Drop, Outcome::Congestion), "{shows}");
                            continue;
                        };
                        assert_eq!(
                            (action, outcome),
                            (Action::Pass, Outcome::Decapsulated),
                            "{shows}"
                        );
                        let whole = if class {
                            marked_v4(dscp, field)
                        } else {
                            marked_v6(dscp, field)
                        };
                        // With a checksum of its own: the packet as one who never saw a tunnel builds it.
                        assert_eq!(out[ETHERNET..], whole, "{shows}");
                    }
                }
            }
        }
    }
}

fn marked_v4(dscp: u8, ecn: u8) -> Vec<u8> {
    let mut header = crate::build::v4("192.0.2.20");
    header.dscp = dscp.try_into().expect("6 bits");
    header.ecn = ecn.try_into().expect("2 bits");
    crate::build::tcp_in(header, crate::build::syn(1, 443), &[]).split_off(ETHERNET)
}

fn marked_v6(dscp: u8, ecn: u8) -> Vec<u8> {
    let mut header = crate::build::v6("2001:db8::20");
    header.traffic_class = dscp << 2 | ecn;
    crate::build::tcp_in(header, crate::build::syn(1, 443), &[]).split_off(ETHERNET)
}

/// A packet behind every outer header there is, with this mark.
fn wrapped(inner: &[u8], is_v4: bool, ecn: u8) -> [(&'static str, Vec<u8>); 4] {
    let protocol = if is_v4 { IpNumber::IPV4 } else { IpNumber::IPV6 };
    let datagram = gue(6080, inner);
    let over_v4 = |protocol, inner: &[u8]| {
        let mut header = outer_v4(SOURCE_V4.octets(), protocol, inner.len());
        header.ecn = ecn.try_into().expect("2 bits");
        in_v4(&header, inner)
    };
    let over_v6 = |protocol, inner: &[u8]| {
        let mut header = outer_v6(SOURCE_V6.octets(), protocol, inner.len());
        header.traffic_class = ecn;
        in_v6(&header, inner)
    };
    [
        ("IPv4", over_v4(protocol, inner)),
        ("IPv6", over_v6(protocol, inner)),
        ("UDP over IPv4", over_v4(IpNumber::UDP, &datagram)),
        ("UDP over IPv6", over_v6(IpNumber::UDP, &datagram)),
    ]
}
