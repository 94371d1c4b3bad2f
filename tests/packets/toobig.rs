//! Packets that do not fit the way to their backend are answered, with the length that would.

use etherparse::IpNumber;
use lb_common::hash::HashKey;
use lb_common::reason::Reason;
use xlb::datapath::simulate::Options;

use crate::build::{SOURCE_PORT, ip, no_operations, raw_in, syn, tcp_in, udp_in, v4, v6};
use crate::out::told_mtu;
use crate::world::{Case, check, config, options, send, world_with};

fn case(shows: &'static str, packet: Vec<u8>, reason: Reason, service: Option<&'static str>) -> Case {
    Case {
        shows,
        packet,
        reason,
        service,
    }
}

/// Service address, name, bytes of the outer header.
const SERVICES: [(&str, &str, usize); 8] = [
    ("192.0.2.10", "l2-tcp", 0),
    ("2001:db8::10", "l2-tcp-v6", 0),
    ("192.0.2.20", "4in4", 20),
    ("192.0.2.30", "4in6", 40),
    ("2001:db8::20", "6in6", 40),
    ("192.0.2.60", "gue-4in4", 28),
    ("192.0.2.61", "gue-4in6", 48),
    ("2001:db8::60", "gue-6in6", 48),
];

/// The longest packets that fit, and those of one byte more, which are told of it.
#[test]
fn one_byte_too_long() {
    for mtu in [1500, 1400, 1320, 1300, 1280, 576, 300, 110, 80] {
        let Some(mut world) = world_with(&config(false), &Options { mtu, ..options() }) else {
            return;
        };
        for (destination, service, overhead) in SERVICES {
            let port = if overhead == 0 { 80 } else { 443 };
            let six = destination.contains(':');
            let headers = if six { 60 } else { 40 };
            let room = mtu as usize - overhead;
            let Some(longest) = room.checked_sub(headers) else {
                continue;
            };
            let sized = |len| tcp_in(ip(destination), syn(SOURCE_PORT, port), &vec![7; len]);
            let told = room >= if six { 1280 } else { 68 };
            let too_long = if told {
                Reason::TooBigAnswered
            } else {
                Reason::TooBig
            };
            let cases = [
                case("just fits", sized(longest), Reason::Transmitted, Some(service)),
                case("one byte more", sized(longest + 1), too_long, Some(service)),
                case("a full frame", sized(1500 - headers), too_long, Some(service)),
            ];
            let cases = &cases[..if room < 1500 { 3 } else { 2 }];
            for outcome in check(&mut world, cases) {
                if outcome.reason == Reason::TooBigAnswered {
                    assert_eq!(told_mtu(&outcome.out), room, "{service} {mtu}");
                }
            }
        }
    }
}

/// Don't Fragment or not, TCP or UDP, with options: the answer is the same.
#[test]
fn packets_of_every_form_are_answered() {
    let Some(mut world) = world_with(&config(false), &options()) else {
        return;
    };
    for words in [0, 1, 10] {
        for dont_fragment in [false, true] {
            let mut header = v4("192.0.2.20");
            header.dont_fragment = dont_fragment;
            header.options = no_operations(words);
            for packet in [
                tcp_in(header.clone(), syn(1, 443), &[1; 1450]),
                udp_in(header, 1, 443, &[2; 1465]),
            ] {
                let outcome = send(&mut world, "IPv4", &packet);
                assert_eq!(outcome.reason, Reason::TooBigAnswered);
                assert_eq!(told_mtu(&outcome.out), 1480);
            }
        }
    }
}

#[test]
fn nobody_else_is_answered() {
    let Some(mut world) = world_with(&config(false), &options()) else {
        return;
    };
    let from = |source: [u8; 4]| {
        let mut header = v4("192.0.2.20");
        header.source = source;
        tcp_in(header, syn(1, 443), &[1; 1450])
    };
    let from_six = |source: [u16; 8]| {
        let mut header = v6("2001:db8::20");
        header.source = std::net::Ipv6Addr::from(source).octets();
        tcp_in(header, syn(1, 443), &[1; 1420])
    };
    let mut to_all = tcp_in(v4("192.0.2.20"), syn(1, 443), &[1; 1450]);
    to_all[..6].copy_from_slice(&[0xff; 6]);
    let mut group = to_all.clone();
    group[..6].copy_from_slice(&[1, 0, 0x5e, 0, 0, 1]);
    let silent = |shows, packet, service| case(shows, packet, Reason::TooBig, Some(service));
    let quoted = [&[3, 4, 0, 0, 0, 0, 5, 0][..], &{
        let mut header = v4("192.0.2.20");
        std::mem::swap(&mut header.source, &mut header.destination);
        raw_in(
            header,
            IpNumber::TCP,
            &[[1, 187, 0, 1].to_vec(), vec![9; 1440]].concat(),
        )[14..]
            .to_vec()
    }]
    .concat();
    let cases = [
        silent("from nobody", from([0, 0, 0, 0]), "4in4"),
        silent("from loopback", from([127, 1, 2, 3]), "4in4"),
        silent("from a group", from([239, 1, 2, 3]), "4in4"),
        silent("from everybody", from([255, 255, 255, 255]), "4in4"),
        silent("from nobody over IPv6", from_six([0; 8]), "6in6"),
        silent(
            "from a group over IPv6",
            from_six([0xff02, 0, 0, 0, 0, 0, 0, 1]),
            "6in6",
        ),
        silent("sent to every station", to_all, "4in4"),
        silent("sent to a group of stations", group, "4in4"),
        silent(
            "an ICMP error itself",
            raw_in(v4("192.0.2.20"), IpNumber::ICMP, &quoted),
            "4in4",
        ),
    ];
    check(&mut world, &cases);
}

/// A flood of them is answered 50 times at once, and a second later with the rate.
#[test]
fn answers_are_limited() {
    let rate = 10;
    let limited = Options {
        icmp_error_rate: rate,
        hash_key: Some(HashKey([5; 8])),
        ..Options::default()
    };
    let Some(mut world) = world_with(&config(false), &limited) else {
        return;
    };
    // One CPU, because each has a limit of its own.
    let mut cpus = nix::sched::CpuSet::new();
    cpus.set(0).expect("a CPU");
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &cpus).expect("staying on one CPU");
    let packet = tcp_in(v4("192.0.2.20"), syn(1, 443), &[1; 1450]);
    let begin = std::time::Instant::now();
    let mut answered = 0;
    for _ in 0..500 {
        answered += u32::from(send(&mut world, "one of many", &packet).reason == Reason::TooBigAnswered);
    }
    // However slow this machine is, time has only so many answers.
    let most = 50 + (begin.elapsed().as_secs_f64() * f64::from(rate)) as u32 + 1;
    assert!(
        (50..=most).contains(&answered),
        "{answered} of 500, at most {most}"
    );
}
