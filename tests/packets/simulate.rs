//! `simulate` as operators call it: captures in, a report and a capture out.

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use etherparse::ArpOperation;
use pcap_file::DataLink;
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapReader, PcapWriter, RawPcapPacket};
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketBlock;
use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionBlock;
use pcap_file::pcapng::{Block, PcapNgBlock, PcapNgWriter};
use xlb::datapath::simulate::{Error, Report, Task, run};

use crate::announce::arp;
use crate::build::{syn, tcp, tcp_in, udp, v4};
use crate::world::{config, root};

const SECOND: Duration = Duration::new(1_700_000_000, 123_456_000);

fn write_pcap(path: &Path, link: DataLink, packets: &[Vec<u8>]) {
    let header = PcapHeader {
        datalink: link,
        ..PcapHeader::default()
    };
    let mut writer = PcapWriter::with_header(File::create(path).expect("a file"), header).expect("a header");
    for packet in packets {
        let packet = PcapPacket::new(SECOND, packet.len() as u32, packet);
        writer.write_packet(&packet).expect("a packet");
    }
}

fn packets() -> Vec<Vec<u8>> {
    vec![
        tcp("192.0.2.10", 80),
        tcp("192.0.2.99", 80),
        tcp("192.0.2.50", 80),
        tcp("2001:db8::20", 443),
        udp("192.0.2.20", 443),
        vec![0; 9],
    ]
}

struct Place {
    _folder: tempfile::TempDir,
    input: PathBuf,
    output: PathBuf,
}

fn place() -> Place {
    let folder = tempfile::tempdir().expect("a folder");
    Place {
        input: folder.path().join("in.pcap"),
        output: folder.path().join("out.pcap"),
        _folder: folder,
    }
}

fn task(place: &Place, repeat: Option<u32>) -> Task {
    Task {
        input: place.input.clone(),
        output: Some(place.output.clone()),
        repeat,
        ..Task::default()
    }
}

fn words(report: &Report) -> Vec<(&str, &str, Option<&str>)> {
    let words = report.packets.iter().map(|packet| {
        let (verdict, reason) = (packet.verdict.as_str(), packet.reason.as_str());
        (verdict, reason, packet.service.as_deref())
    });
    words.collect()
}

const EXPECTED: [(&str, &str, Option<&str>); 6] = [
    ("tx", "transmitted", Some("l2-tcp")),
    ("pass", "not_service", None),
    ("drop", "no_backend", Some("nobody")),
    ("tx", "transmitted", Some("6in6")),
    ("tx", "transmitted", Some("4in4-udp")),
    ("pass", "not_ip", None),
];

#[test]
fn a_capture_is_judged_and_written_as_it_left() {
    if !root() {
        return;
    }
    let place = place();
    write_pcap(&place.input, DataLink::ETHERNET, &packets());
    let report = run(&config(false), &task(&place, None)).expect("a report");
    assert_eq!(words(&report), EXPECTED);
    assert_eq!(report.floor_ns, None);
    let indices: Vec<_> = report.packets.iter().map(|p| (p.index, p.out_index)).collect();
    assert_eq!(
        indices,
        [
            (0, Some(0)),
            (1, Some(1)),
            (2, None),
            (3, Some(2)),
            (4, Some(3)),
            (5, Some(4))
        ]
    );
    assert!(
        report.packets[0]
            .backend
            .as_deref()
            .is_some_and(|b| b.starts_with("10.0.1.1") && b.ends_with(":80"))
    );
    assert!(
        report.packets[3]
            .backend
            .as_deref()
            .is_some_and(|b| b.starts_with("[2001:db8:1::1"))
    );
    assert!(report.packets[5].note.is_some());

    let mut reader = PcapReader::new(File::open(&place.output).expect("the output")).expect("a header");
    let mut written = Vec::new();
    while let Some(packet) = reader.next_packet() {
        let packet = packet.expect("a packet");
        assert_eq!(packet.timestamp, SECOND);
        written.push(packet.data.into_owned());
    }
    let sent = packets();
    assert_eq!(written.len(), 5);
    assert_eq!(written[0][14..], sent[0][14..]);
    assert_eq!(written[1], sent[1]);
    assert_eq!(written[2][54..], sent[3][14..]);
    assert_eq!(written[3][34..], sent[4][14..]);
    assert_eq!(written[4], sent[5]);
}

#[test]
fn the_shape_that_scripts_read() {
    if !root() {
        return;
    }
    let place = place();
    write_pcap(&place.input, DataLink::ETHERNET, &packets());
    let report = run(&config(false), &task(&place, None)).expect("a report");
    let json = serde_json::to_value(&report).expect("JSON");
    for (index, packet) in json["packets"].as_array().expect("an array").iter().enumerate() {
        assert_eq!(packet["index"], index);
        for key in ["verdict", "reason", "service", "backend", "ns"] {
            assert!(packet.get(key).is_some(), "{key}: {packet}");
        }
        assert!(packet["ns"].is_null());
    }
    assert!(json["packets"][1]["service"].is_null() && json["packets"][1]["backend"].is_null());
    assert_eq!(json["packets"][2]["service"], "nobody");
}

#[test]
fn repeating_gives_nanoseconds_and_the_same_verdicts() {
    if !root() {
        return;
    }
    let place = place();
    write_pcap(&place.input, DataLink::ETHERNET, &packets());
    let report = run(&config(false), &task(&place, Some(2000))).expect("a report");
    assert_eq!(words(&report), EXPECTED);
    assert!(report.floor_ns.is_some_and(|ns| ns > 0));
    for packet in &report.packets[..5] {
        assert!(packet.ns.is_some_and(|ns| ns > 0), "{packet:?}");
    }
    assert_eq!(
        report.packets[5].ns, None,
        "what cannot be run cannot be measured"
    );
}

#[test]
fn what_cannot_be_restored_is_not_measured() {
    if !root() {
        return;
    }
    let place = place();
    let long = tcp_in(v4("192.0.2.10"), syn(1, 80), &[0; 5000]);
    let frames = [
        arp(ArpOperation::REQUEST, Ipv4Addr::new(192, 0, 2, 10)),
        long.clone(),
    ];
    write_pcap(&place.input, DataLink::ETHERNET, &frames);
    let report = run(&config(true), &task(&place, Some(10))).expect("a report");
    // A kernel without `xdp.frags` hands over the first page of it alone.
    let whole = xlb::datapath::has_frags();
    let long_one = if whole {
        ("tx", "too_big_answered", Some("l2-tcp"))
    } else {
        ("drop", "malformed", None)
    };
    assert_eq!(words(&report), [("tx", "arp_reply", None), long_one]);
    assert!(report.packets.iter().all(|packet| packet.ns.is_none()));
    assert_eq!(report.packets[1].length, long.len());
    assert_eq!(report.packets[1].note.is_none(), whole);
}

#[test]
fn pcapng_is_read_too() {
    if !root() {
        return;
    }
    let place = place();
    let file = File::create(&place.input).expect("a file");
    let mut writer = PcapNgWriter::new(file).expect("a header");
    let mut write = |block: Block<'_>| writer.write_block(&block).expect("a block");
    write(InterfaceDescriptionBlock::new(DataLink::ETHERNET, 0xffff).into_block());
    for packet in packets() {
        let block = EnhancedPacketBlock {
            interface_id: 0,
            // Microseconds, which the crate takes for nanoseconds.
            timestamp: Duration::from_nanos(SECOND.as_micros() as u64),
            original_len: packet.len() as u32,
            data: packet.into(),
            options: Vec::new(),
        };
        write(block.into_block());
    }
    let report = run(&config(false), &task(&place, None)).expect("a report");
    assert_eq!(words(&report), EXPECTED);
    let mut reader = PcapReader::new(File::open(&place.output).expect("the output")).expect("a header");
    let first = reader.next_packet().expect("a packet").expect("a packet");
    assert_eq!(first.timestamp, SECOND);
}

#[test]
fn a_small_snap_length_is_noted() {
    if !root() {
        return;
    }
    let place = place();
    let header = PcapHeader {
        snaplen: 64,
        ..PcapHeader::default()
    };
    let file = File::create(&place.input).expect("a file");
    let mut writer = PcapWriter::with_header(file, header).expect("a header");
    let packet = tcp("192.0.2.10", 80);
    let raw = RawPcapPacket {
        ts_sec: 1,
        ts_frac: 2,
        incl_len: 64,
        orig_len: packet.len() as u32,
        data: packet[..64].into(),
    };
    writer.write_raw_packet(&raw).expect("a packet");
    drop(writer);
    let report = run(&config(false), &task(&place, None)).expect("a report");
    assert_eq!(words(&report), [("drop", "malformed", None)]);
    let note = report.packets[0].note.as_deref().expect("a note");
    assert!(note.contains("64 of its"), "{note}");
}

#[test]
fn other_link_types_and_damaged_files_are_refused() {
    let place = place();
    let error = |what: &str| {
        let error = run(&config(false), &task(&place, None)).expect_err(what);
        assert!(error.to_string().contains("in.pcap"), "{error}");
        error
    };
    write_pcap(&place.input, DataLink::LINUX_SLL, &packets());
    assert!(matches!(error("a cooked capture"), Error::LinkType { .. }));
    std::fs::write(&place.input, b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n").expect("a file");
    assert!(matches!(error("no capture"), Error::Capture { .. }));
    std::fs::write(&place.input, b"").expect("a file");
    assert!(matches!(error("an empty file"), Error::Capture { .. }));
    write_pcap(&place.input, DataLink::ETHERNET, &packets());
    let whole = std::fs::read(&place.input).expect("the file");
    std::fs::write(&place.input, &whole[..whole.len() - 3]).expect("a file");
    assert!(matches!(error("a file cut short"), Error::Capture { .. }));
    std::fs::remove_file(&place.input).expect("removing it");
    assert!(matches!(error("no file"), Error::Io { .. }));
}
