//! `on_down = "reset"`: the reset in the name of a backend that is DOWN, read by another parser.

use etherparse::{IpHeaders, IpNumber, NetSlice, SlicedPacket, TcpHeader, TransportSlice};
use lb_common::layout::Slot;
use lb_common::reason::Reason;
use lb_common::rule::Standing;
use lb_common::rule::State::{Established, Unconfirmed};
use xlb::datapath::simulate::OWN_MAC;

use super::{Bench, PORT, data, destination, fin, rst, syn};
use crate::build::{CLIENT_MAC, PAYLOAD, extended, ip, no_operations, options, tcp_in, transport_of, v4};
use crate::world::{CLIENT_V4, CLIENT_V6};

/// Every slot moved from A, which resets, to B.
fn bench_of_resets(mut bench: Bench) -> Bench {
    let (a, b) = (bench.a, bench.b);
    bench.set_standing(a, Standing::Resets);
    bench.set_slots(Slot::new(b, a, true));
    bench
}

struct Answer {
    tcp: TcpHeader,
    length: usize,
}

/// The frame as a segment from the service to the client, checked in everything but its numbers.
fn parse(bench: &Bench, frame: &[u8]) -> Answer {
    let packet = SlicedPacket::from_ethernet(frame).expect("a frame");
    let Some(etherparse::LinkSlice::Ethernet2(ethernet)) = packet.link else {
        panic!("no Ethernet")
    };
    assert_eq!(ethernet.destination(), CLIENT_MAC);
    assert_eq!(ethernet.source(), OWN_MAC);
    let Some(TransportSlice::Tcp(tcp)) = &packet.transport else {
        panic!("no TCP")
    };
    assert!(tcp.payload().is_empty() && tcp.options().is_empty());
    let header = tcp.to_header();
    match packet.net.expect("a network header") {
        NetSlice::Ipv4(slice) => {
            let header = slice.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            assert_eq!((header.total_len, header.protocol), (40, IpNumber::TCP));
            assert!(header.dont_fragment && !header.is_fragmenting_payload());
            assert!(header.options.is_empty());
            assert_eq!(header.destination, CLIENT_V4.octets());
            assert_eq!(std::net::IpAddr::from(header.source), bench.service.address);
            let checksum = tcp.calc_checksum_ipv4(header.source, header.destination);
            assert_eq!(tcp.checksum(), checksum.expect("a short segment"));
        }
        NetSlice::Ipv6(slice) => {
            let header = slice.header().to_header();
            assert_eq!((header.payload_length, header.next_header), (20, IpNumber::TCP));
            assert_eq!(header.destination, CLIENT_V6.octets());
            assert_eq!(std::net::IpAddr::from(header.source), bench.service.address);
            let checksum = tcp.calc_checksum_ipv6(header.source, header.destination);
            assert_eq!(tcp.checksum(), checksum.expect("a short segment"));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(header.source_port, PORT);
    assert!(header.rst && !header.syn && !header.fin && !header.psh && !header.urg);
    assert_eq!((header.window_size, header.urgent_pointer), (0, 0));
    Answer {
        tcp: header,
        length: frame.len(),
    }
}

/// Sends a frame that must be answered; gives back sequence number, and acknowledgment where there is one.
fn answered(bench: &mut Bench, shows: &str, frame: &[u8]) -> (u32, Option<u32>) {
    let outcome = bench.send(shows, frame);
    assert_eq!(outcome.reason, Reason::ResetSent, "{shows}");
    let Answer { tcp, length } = parse(bench, &outcome.out);
    assert_eq!(length, if bench.v6() { 74 } else { 60 }, "{shows}");
    assert!(tcp.ack || tcp.acknowledgment_number == 0);
    (tcp.sequence_number, tcp.ack.then_some(tcp.acknowledgment_number))
}

#[test]
fn old_flows_are_reset_with_the_right_numbers() {
    Bench::tcp(|bench| {
        let mut bench = bench_of_resets(bench);
        let frame = bench.frame(data(1, 50));
        assert_eq!(answered(&mut bench, "data", &frame), (0x1234_5678, None));
        let frame = bench.frame(fin(1, 50));
        assert_eq!(answered(&mut bench, "FIN", &frame), (0x1234_5678, None));
        let mut syn_ack = syn(1, 50);
        syn_ack.ack = true;
        syn_ack.acknowledgment_number = 99;
        let frame = bench.frame(syn_ack);
        assert_eq!(answered(&mut bench, "SYN and ACK", &frame), (99, None));

        // Without an acknowledgment: all that the segment has is acknowledged.
        let bare = |sequence, fin| {
            let mut header = TcpHeader::new(1, PORT, sequence, 5);
            header.fin = fin;
            header
        };
        let payload = PAYLOAD.len() as u32;
        let frame = bench.frame(bare(50, false));
        assert_eq!(answered(&mut bench, "no ACK", &frame), (0, Some(50 + payload)));
        let frame = bench.frame(bare(u32::MAX, true));
        assert_eq!(answered(&mut bench, "FIN, no ACK", &frame), (0, Some(payload)));
        assert_eq!(bench.counters().resets, 5);
        assert_eq!(bench.entries(), 0);
    });
}

#[test]
fn options_and_extension_headers_are_left_out() {
    let mut header = data(1, 50);
    header.set_options_raw(&[1; 40]).expect("40 bytes");
    Bench::tcp(|bench| {
        let mut bench = bench_of_resets(bench);
        let long = tcp_in(ip(destination(bench.v6())), header.clone(), &[7; 1000]);
        assert_eq!(answered(&mut bench, "options of TCP", &long), (0x1234_5678, None));
        let mut bare = header.clone();
        bare.ack = false;
        let long = tcp_in(ip(destination(bench.v6())), bare, &[7; 1000]);
        assert_eq!(answered(&mut bench, "no ACK", &long), (0, Some(1050)));
        let frame = if bench.v6() {
            let inner = tcp_in(ip(destination(true)), header.clone(), PAYLOAD);
            let extensions = [(IpNumber::IPV6_HEADER_HOP_BY_HOP, options(2))];
            extended(
                destination(true),
                &extensions,
                IpNumber::TCP,
                transport_of(&inner),
            )
        } else {
            let mut outer = v4(destination(false));
            outer.options = no_operations(10);
            tcp_in(
                IpHeaders::Ipv4(outer, etherparse::Ipv4Extensions::default()),
                header.clone(),
                PAYLOAD,
            )
        };
        assert_eq!(answered(&mut bench, "options of IP", &frame), (0x1234_5678, None));
    });
}

/// A frame shorter than Ethernet allows, as virtual devices have them.
#[test]
fn a_short_frame_stays_short() {
    let Some(bench) = Bench::new(false, xlb::model::Protocol::Tcp) else {
        return;
    };
    let mut bench = bench_of_resets(bench);
    let frame = tcp_in(ip(destination(false)), data(1, 50), &[]);
    let outcome = bench.send("54 bytes", &frame);
    assert_eq!((outcome.reason, outcome.out.len()), (Reason::ResetSent, 54));
    assert!(parse(&bench, &outcome.out).tcp.rst);
    let padded = [frame, vec![0xee; 6]].concat();
    let outcome = bench.send("padded", &padded);
    assert_eq!((outcome.reason, outcome.out.len()), (Reason::ResetSent, 60));
    assert_eq!(outcome.out[54..], [0; 6]);
}

#[test]
fn nothing_answers_a_reset() {
    Bench::tcp(|bench| {
        let mut bench = bench_of_resets(bench);
        let frame = bench.frame(rst(1, 50));
        assert_eq!(bench.send("a reset", &frame).reason, Reason::NoBackend);
        assert_eq!(bench.counters().resets, 0);
    });
}

#[test]
fn new_flows_go_elsewhere() {
    Bench::tcp(|bench| {
        let mut bench = bench_of_resets(bench);
        let (a, b) = (bench.a, bench.b);
        assert_eq!(bench.segment("a SYN", syn(1, 50)), b);
        assert_eq!(bench.known(1), Some((b, Unconfirmed)));
        assert_eq!(bench.segment("its first segment", data(1, 51)), b);
        assert_eq!(bench.known(1), Some((b, Established)));
        // An entry of the dead: its flow is reset, a SYN with its ports begins anew.
        let hash = bench.hash(2);
        bench.write_entry(2, hash, a, Established);
        let frame = bench.frame(data(2, 50));
        assert_eq!(answered(&mut bench, "an entry", &frame), (0x1234_5678, None));
        assert_eq!(bench.segment("a SYN", syn(2, 50)), b);
        assert_eq!(bench.known(2), Some((b, Unconfirmed)));
        // Refused it is dropped: the next try may find room.
        bench.allow(0, 0, 0);
        assert_eq!(bench.segment("a SYN", syn(3, 50)), 0);
    });
}
