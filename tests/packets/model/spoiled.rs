//! The checker checked: outcomes of the program that were made wrong, each in one way, must all be told from right ones.

use std::panic::{AssertUnwindSafe, catch_unwind};

use lb_common::reason::{Reason, Verdict};
use xlb::datapath::simulate::{MTU, Outcome};

use super::Model;
use crate::build::{PAYLOAD, syn, tcp_in, v4, v6};
use crate::out::sums_up;
use crate::world::{config, world};

/// What is done to an outcome.
type Fault = fn(&mut Outcome);
/// What shows the faults: a name, a frame, and they.
type Group = (&'static str, Vec<u8>, &'static [(&'static str, Fault)]);

/// Where things lie in a frame with an outer IPv4 header.
const IP: usize = 14;

const IN_IPV4: [(&str, Fault); 16] = [
    ("the carry of the outer checksum is missing", |o| {
        change(o, IP + 11, |b| b.wrapping_sub(1));
    }),
    ("the bytes of the outer checksum are swapped", |o| {
        o.out.swap(IP + 10, IP + 11);
    }),
    ("the outer checksum is left 0", |o| {
        o.out[IP + 10..IP + 12].fill(0);
    }),
    ("the outer checksum is not turned over", |o| {
        change(o, IP + 10, |b| !b);
        change(o, IP + 11, |b| !b);
    }),
    ("the outer length is one too long", |o| {
        rightly(o, |o| change(o, IP + 3, |b| b + 1));
    }),
    ("the outer length is that of the packet inside", |o| {
        rightly(o, |o| change(o, IP + 3, |b| b - 20));
    }),
    ("DSCP and ECN are lost", |o| rightly(o, |o| o.out[IP + 1] = 0)),
    ("ECN is lost", |o| rightly(o, |o| change(o, IP + 1, |b| b & !3))),
    ("may be fragmented", |o| rightly(o, |o| o.out[IP + 6] = 0)),
    ("a time to live of 1", |o| rightly(o, |o| o.out[IP + 8] = 1)),
    ("says that IPv6 is inside", |o| rightly(o, |o| o.out[IP + 9] = 41)),
    ("source and destination are swapped", |o| {
        rightly(o, |o| {
            for at in IP + 12..IP + 16 {
                o.out.swap(at, at + 4);
            }
        });
    }),
    ("to the next backend's address", |o| {
        rightly(o, |o| change(o, IP + 19, |b| b ^ 1));
    }),
    ("the ports inside are swapped", |o| {
        for at in IP + 40..IP + 42 {
            o.out.swap(at, at + 2);
        }
    }),
    ("the last byte is missing", |o| {
        o.out.pop();
    }),
    ("a byte too many", |o| o.out.push(0)),
];

const IN_IPV6: [(&str, Fault); 6] = [
    ("the outer payload length counts its own header", |o| {
        change(o, IP + 5, |b| b + 40);
    }),
    (
        "the outer payload length is that of the packet inside less its header",
        |o| change(o, IP + 5, |b| b - 40),
    ),
    ("the traffic class is lost", |o| {
        o.out[IP] = 0x60;
        change(o, IP + 1, |b| b & 0xf);
    }),
    ("the halves of the traffic class are swapped", |o| {
        let (high, low) = (o.out[IP] & 0xf, o.out[IP + 1] >> 4);
        o.out[IP] = 0x60 | low;
        o.out[IP + 1] = high << 4 | o.out[IP + 1] & 0xf;
    }),
    ("a hop limit of 63", |o| o.out[IP + 7] = 63),
    ("says that IPv4 is inside", |o| o.out[IP + 6] = 4),
];

const IN_GUE: [(&str, Fault); 4] = [
    ("the ports of the outer UDP header are swapped", |o| {
        for at in IP + 20..IP + 22 {
            o.out.swap(at, at + 2);
        }
    }),
    ("the outer UDP length lacks its header", |o| {
        change(o, IP + 25, |b| b - 8);
    }),
    ("the outer UDP checksum is not 0", |o| o.out[IP + 26] = 1),
    ("a source port that is no ephemeral one", |o| o.out[IP + 20] = 1),
];

const IN_L2: [(&str, Fault); 7] = [
    ("to the MAC address of another backend", |o| {
        change(o, 5, |b| b ^ 1);
    }),
    ("the MAC addresses are swapped", |o| {
        for at in 0..6 {
            o.out.swap(at, at + 6);
        }
    }),
    ("the time to live was counted down", |o| {
        change(o, IP + 8, |b| b - 1);
    }),
    ("to another backend than the hash says", |o| {
        let backend = o.backend.as_mut().expect("a backend");
        let other = if backend.ip().to_string().ends_with("11") {
            "10.0.1.12"
        } else {
            "10.0.1.11"
        };
        backend.set_ip(other.parse().expect("an address"));
        o.out[5] = if other.ends_with("12") { 12 } else { 11 };
    }),
    ("for another service", |o| o.service = Some("l2-udp".to_owned())),
    ("passed to the kernel", |o| {
        (o.reason, o.verdict) = (Reason::NotService, Verdict::Pass);
        (o.service, o.backend) = (None, None);
    }),
    ("dropped", |o| {
        (o.reason, o.verdict) = (Reason::NoBackend, Verdict::Drop);
    }),
];

const OF_NO_SERVICE: [(&str, Fault); 2] = [
    ("a byte of a packet that is passed was changed", |o| {
        change(o, IP + 30, |b| b ^ 1);
    }),
    ("a packet of no service is dropped", |o| {
        (o.reason, o.verdict) = (Reason::Malformed, Verdict::Drop);
    }),
];

fn change(outcome: &mut Outcome, at: usize, change: impl FnOnce(u8) -> u8) {
    outcome.out[at] = change(outcome.out[at]);
}

/// A fault with a checksum that is right: it must be found for what it is.
fn rightly(outcome: &mut Outcome, fault: impl FnOnce(&mut Outcome)) {
    fault(outcome);
    let header = &mut outcome.out[IP..IP + 20];
    header[10..12].fill(0);
    let mut sum: u32 = header
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
        .sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    header[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    assert!(sums_up(&[&outcome.out[IP..IP + 20]]));
}

#[test]
fn every_fault_is_found() {
    let Some(mut world) = world(false) else { return };
    let over_v4 = |address: &str, port| {
        let mut ip = v4(address);
        ip.dscp = 0x2e.try_into().expect("six bits");
        ip.ecn = 1.try_into().expect("two bits");
        tcp_in(ip, syn(40_000, port), PAYLOAD)
    };
    let over_v6 = |address: &str| {
        let mut ip = v6(address);
        ip.traffic_class = 0xb9;
        tcp_in(ip, syn(40_000, 443), PAYLOAD)
    };
    let groups: [Group; 5] = [
        ("IPv4 in IPv4", over_v4("192.0.2.20", 443), &IN_IPV4),
        ("IPv6 in IPv6", over_v6("2001:db8::20"), &IN_IPV6),
        ("IPv4 in GUE", over_v4("192.0.2.60", 443), &IN_GUE),
        ("dsr-l2", over_v4("192.0.2.10", 80), &IN_L2),
        ("no service", over_v4("192.0.2.99", 80), &OF_NO_SERVICE),
    ];
    let mut model = Model::new(&world, &config(false), MTU);
    let mut missed = Vec::new();
    let mut caught = 0;
    for (group, frame, faults) in groups {
        let right = world.packet(&frame).expect("an outcome");
        model.judge_outcome(&frame, &right);
        for (what, fault) in faults {
            let mut wrong = right.clone();
            fault(&mut wrong);
            assert_ne!(wrong, right, "{group}: {what}: nothing was changed");
            let judged = catch_unwind(AssertUnwindSafe(|| model.judge_outcome(&frame, &wrong)));
            println!(
                "{group}: {what}: {}",
                if judged.is_err() { "caught" } else { "MISSED" }
            );
            if judged.is_ok() {
                missed.push(*what);
            } else {
                caught += 1;
            }
        }
    }
    println!("{caught} faults caught");
    assert!(missed.is_empty(), "{missed:?}");
}
