//! The classifier of `xlb decap --mss`: in SYNs and SYN-ACKs out of the addresses named the MSS is lowered, and nothing
//! else is touched in any packet.

use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{MapData, PerCpuArray};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use etherparse::{NetSlice, SlicedPacket, TcpHeader, TcpOptionElement, TransportSlice};
use lb_common::mss::Fate;
use xlb::datapath::object;

use crate::build::{ETHERNET, frame, ip, later_fragment, no_operations, syn, tcp_in, udp, v4};
use crate::world::{CLIENT_V4, CLIENT_V6, root};

const MOST: u16 = 1400;

struct Classifier {
    ebpf: Ebpf,
    counts: PerCpuArray<MapData, u64>,
}

impl Classifier {
    /// With the limit for the addresses that the packets of the tests come from.
    fn new() -> Option<Self> {
        root().then(|| {
            let mut ebpf = Ebpf::load(object::MSS).expect("an object that loads");
            let program: &mut SchedClassifier = ebpf
                .program_mut("xlb_mss")
                .expect("the program")
                .try_into()
                .expect("a classifier");
            program.load().expect("a program that loads");
            let v4 = ebpf.take_map("MSS_V4").expect("the map");
            let mut v4: LpmTrie<_, [u8; 4], u32> = v4.try_into().expect("a prefix tree");
            v4.insert(&Key::new(32, CLIENT_V4.octets()), u32::from(MOST), 0)
                .expect("inserting");
            let v6 = ebpf.take_map("MSS_V6").expect("the map");
            let mut v6: LpmTrie<_, [u8; 16], u32> = v6.try_into().expect("a prefix tree");
            v6.insert(&Key::new(128, CLIENT_V6.octets()), u32::from(MOST), 0)
                .expect("inserting");
            let counts = ebpf.take_map("MSS_COUNTS").expect("the map");
            let counts = counts.try_into().expect("counters");
            Self { ebpf, counts }
        })
    }

    fn counts(&self) -> Vec<u64> {
        let count = |fate: &Fate| self.counts.get(&(*fate as u32), 0).expect("a count");
        Fate::ALL.iter().map(|fate| count(fate).iter().sum()).collect()
    }

    /// Runs the program; what the packet was counted under, and what it is then.
    fn run(&self, packet: &[u8]) -> (Option<Fate>, Vec<u8>) {
        let before = self.counts();
        let program: &SchedClassifier = self
            .ebpf
            .program("xlb_mss")
            .expect("the program")
            .try_into()
            .expect("a classifier");
        let mut out = vec![0; packet.len() + 64];
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            ..TestRunOptions::default()
        };
        let result = program.test_run(options).expect("a run");
        out.truncate(result.data_size_out as usize);
        // TC_ACT_UNSPEC: whoever comes next decides.
        assert_eq!(result.return_value, u32::MAX);
        let after = self.counts();
        let mut counted = Fate::ALL.into_iter().filter(|fate| {
            let fate = *fate as usize;
            assert!(after[fate] <= before[fate] + 1);
            after[fate] > before[fate]
        });
        let fate = counted.next();
        assert_eq!(counted.next(), None);
        if fate != Some(Fate::Lowered) {
            assert_eq!(out, packet, "{fate:?}: left alone");
        }
        (fate, out)
    }
}

fn with_options(mut header: TcpHeader, options: &[u8]) -> TcpHeader {
    header.set_options_raw(options).expect("40 bytes at most");
    header
}

/// The TCP header, once its checksum is found right.
fn tcp_of(shows: &str, packet: &[u8]) -> TcpHeader {
    let sliced = SlicedPacket::from_ethernet(packet).expect("a packet");
    let Some(TransportSlice::Tcp(tcp)) = sliced.transport else {
        panic!("{shows}: no TCP")
    };
    let header = tcp.to_header();
    let sum = match sliced.net {
        Some(NetSlice::Ipv4(ip)) => header.calc_checksum_ipv4(&ip.header().to_header(), tcp.payload()),
        Some(NetSlice::Ipv6(ip)) => header.calc_checksum_ipv6(&ip.header().to_header(), tcp.payload()),
        _ => panic!("{shows}: no IP"),
    };
    assert_eq!(header.checksum, sum.expect("a sum"), "{shows}: checksum");
    header
}

fn mss_of(header: &TcpHeader) -> Option<u16> {
    header.options_iterator().find_map(|option| match option {
        Ok(TcpOptionElement::MaximumSegmentSize(mss)) => Some(mss),
        _ => None,
    })
}

/// Wherever the option stands, also at an odd place, in a SYN and a SYN-ACK, in both families, behind options of IPv4, in a
/// VLAN.
#[test]
fn it_is_lowered_wherever_it_stands_and_the_checksum_follows() {
    let Some(classifier) = Classifier::new() else {
        return;
    };
    let orders: [&[u8]; 5] = [
        &[2, 4, 0, 0],
        &[1, 2, 4, 0, 0],
        &[4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7, 2, 4, 0, 0],
        &[3, 3, 7, 2, 4, 0, 0, 4, 2],
        &[
            1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
            1, 1, 1, 1, 2, 4, 0, 0,
        ],
    ];
    for destination in ["203.0.113.9", "2001:db8:9::9"] {
        for options in orders {
            let place = options
                .windows(2)
                .position(|pair| pair == [2, 4])
                .expect("the option")
                + 2;
            for mss in [MOST + 1, 1460, 0x0579, 8960, 0xff00, 0xfffe, 0xffff] {
                for sequence in 0..64 {
                    let shows = format!("{destination} {options:?} {mss} {sequence}");
                    let mut options = options.to_vec();
                    options[place..place + 2].copy_from_slice(&mss.to_be_bytes());
                    let mut header = with_options(syn(80, 40_000), &options);
                    header.ack = sequence % 2 == 0;
                    header.sequence_number = sequence * 0x0123_4567;
                    let packet = tcp_in(ip(destination), header.clone(), &[]);
                    let (fate, out) = classifier.run(&packet);
                    assert_eq!(fate, Some(Fate::Lowered), "{shows}");
                    let lowered = tcp_of(&shows, &out);
                    assert_eq!(mss_of(&lowered), Some(MOST), "{shows}");
                    // The value and the checksum apart, it is what it was.
                    options[place..place + 2].copy_from_slice(&MOST.to_be_bytes());
                    let expected = tcp_in(ip(destination), with_options(header, &options), &[]);
                    assert_eq!(out, expected, "{shows}");
                }
            }
        }
    }
    let usual = with_options(syn(80, 40_000), &[2, 4, 5, 0xb4]);
    let mut behind_options = v4("203.0.113.9");
    behind_options.options = no_operations(10);
    let (fate, out) = classifier.run(&tcp_in(behind_options, usual.clone(), &[]));
    assert_eq!(fate, Some(Fate::Lowered), "options of IPv4");
    assert_eq!(mss_of(&tcp_of("options of IPv4", &out)), Some(MOST));
    let bare = tcp_in(ip("203.0.113.9"), usual, &[]);
    let tagged = frame(0x8100, &[&[0, 100], &bare[ETHERNET - 2..]].concat());
    let (fate, out) = classifier.run(&tagged);
    assert_eq!(fate, Some(Fate::Lowered), "in a VLAN");
    assert_eq!(mss_of(&tcp_of("in a VLAN", &out)), Some(MOST));
}

#[test]
fn what_is_small_enough_or_not_ours_is_left_alone() {
    let Some(classifier) = Classifier::new() else {
        return;
    };
    let usual: &[u8] = &[2, 4, 5, 0xb4];
    let opening = |options: &[u8]| with_options(syn(80, 40_000), options);
    let to = "203.0.113.9";
    for (shows, header) in [
        ("just small enough", opening(&[2, 4, 0x05, 0x78])),
        ("small", opening(&[2, 4, 0, 88])),
        ("none", opening(&[4, 2, 3, 3, 7])),
        ("no options", syn(80, 40_000)),
        ("behind the end", opening(&[0, 0, 0, 0, 2, 4, 5, 0xb4])),
        ("of another length", opening(&[2, 3, 5, 0xb4])),
        (
            "after one without a length",
            opening(&[8, 0, 2, 4, 5, 0xb4, 1, 1]),
        ),
    ] {
        let (fate, _) = classifier.run(&tcp_in(ip(to), header, &[]));
        assert_eq!(fate, Some(Fate::Kept), "{shows}");
    }
    let mut segment = opening(usual);
    segment.syn = false;
    segment.ack = true;
    let mut foreign = v4(to);
    foreign.source = [198, 51, 100, 77];
    let whole = tcp_in(ip(to), opening(usual), &[]);
    let mut others = vec![
        ("no SYN", tcp_in(ip(to), segment, &[])),
        ("another source", tcp_in(foreign, opening(usual), &[])),
        (
            "a later fragment",
            tcp_in(later_fragment(v4(to)), opening(usual), &[]),
        ),
        ("UDP", udp(to, 80)),
        ("neither family", frame(0x0806, &[0; 46])),
        ("no TCP header", whole[..ETHERNET + 20].to_vec()),
    ];
    others.push(("a header cut short", whole[..ETHERNET + 30].to_vec()));
    for (shows, packet) in others {
        assert_eq!(classifier.run(&packet).0, None, "{shows}");
    }
    // The header says that options follow, but they do not.
    for len in ETHERNET + 34..whole.len() {
        let (fate, _) = classifier.run(&whole[..len]);
        assert_ne!(fate, Some(Fate::Lowered), "{len}");
    }
}
