//! The checker checked: outcomes that were made wrong, each in one way, must all be told from right ones.

use std::panic::{AssertUnwindSafe, catch_unwind};

use lb_common::reason::{Reason, Verdict};
use xlb::datapath::simulate::Outcome;

use super::crowd::{Extra, error, frame, packet, transport};
use super::model::Model;
use super::world::{Way, World, all_ways};
use crate::build::{CLIENT_MAC, PAYLOAD};
use crate::world::mac_of;

type Fault = (&'static str, fn(&mut Outcome));

const IP: usize = 14;

fn add(o: &mut Outcome, at: usize, by: u16) {
    let word = u16::from_be_bytes([o.out[at], o.out[at + 1]]).wrapping_add(by);
    o.out[at..at + 2].copy_from_slice(&word.to_be_bytes());
}

/// The checksum of an IPv4 header, made right.
fn rightly(o: &mut Outcome) {
    super::world::fix_header_v4(&mut o.out);
}

const ANY: &[Fault] = &[
    ("the last byte is missing", |o| o.out.truncate(o.out.len() - 1)),
    ("a byte too many", |o| o.out.push(0)),
    ("a byte of the payload changed", |o| {
        let last = o.out.len() - 1;
        o.out[last] ^= 1;
    }),
    ("passed to the kernel", |o| {
        (o.reason, o.verdict) = (Reason::NotService, Verdict::Pass);
    }),
    ("dropped", |o| {
        (o.reason, o.verdict) = (Reason::NatRefused, Verdict::Drop);
    }),
    ("the MAC addresses are swapped", |o| {
        for at in 0..6 {
            o.out.swap(at, at + 6);
        }
    }),
];

const V4: &[Fault] = &[
    ("the carry of the header's checksum is missing", |o| {
        add(o, IP + 10, u16::MAX);
    }),
    ("the header's checksum does not know of the TTL", |o| {
        add(o, IP + 10, 0xff00);
    }),
    ("the TTL is as it was", |o| {
        o.out[IP + 8] += 1;
        rightly(o);
    }),
    ("the TTL went down by two", |o| {
        o.out[IP + 8] -= 1;
        rightly(o);
    }),
    ("the type of service is lost", |o| {
        o.out[IP + 1] ^= 4;
        rightly(o);
    }),
    ("to the next address", |o| {
        o.out[IP + 19] ^= 1;
        rightly(o);
    }),
    ("source and destination are swapped", |o| {
        for at in IP + 12..IP + 16 {
            o.out.swap(at, at + 4);
        }
    }),
    ("the ports are swapped", |o| {
        for at in IP + 20..IP + 22 {
            o.out.swap(at, at + 2);
        }
    }),
    ("another source port", |o| add(o, IP + 20, 1)),
    ("another destination port", |o| add(o, IP + 22, 1)),
];

const TCP_V4: &[Fault] = &[
    ("the carry of the segment's checksum is missing", |o| {
        add(o, IP + 36, u16::MAX);
    }),
    ("the segment's checksum is not turned over", |o| {
        o.out[IP + 36] ^= 0xff;
        o.out[IP + 37] ^= 0xff;
    }),
    ("the bytes of the segment's checksum are swapped", |o| {
        o.out.swap(IP + 36, IP + 37);
    }),
    ("a flag is lost", |o| o.out[IP + 33] = 0),
];

const UDP_V6: &[Fault] = &[
    ("the checksum of the datagram is 0", |o| {
        o.out[IP + 46..IP + 48].fill(0);
    }),
    ("the hop limit is as it was", |o| o.out[IP + 7] += 1),
    ("the flow label is lost", |o| o.out[IP + 3] = 0),
    ("half of the source address is as it was", |o| {
        o.out[IP + 8..IP + 16].fill(0);
    }),
];

const ERROR_V4: &[Fault] = &[
    ("the carry of the message's checksum is missing", |o| {
        add(o, IP + 22, u16::MAX);
    }),
    ("the ports inside are swapped", |o| {
        for at in IP + 48..IP + 50 {
            o.out.swap(at, at + 2);
        }
    }),
    ("the addresses inside are swapped", |o| {
        for at in IP + 40..IP + 44 {
            o.out.swap(at, at + 4);
        }
    }),
    ("the header's checksum inside is one off", |o| {
        add(o, IP + 38, 1);
        add(o, IP + 22, u16::MAX);
    }),
    ("the segment's checksum inside is one off", |o| {
        add(o, IP + 64, 1);
        add(o, IP + 22, u16::MAX);
    }),
    ("the TTL inside went down", |o| o.out[IP + 36] -= 1),
    ("the MTU is another", |o| add(o, IP + 26, 20)),
];

struct Tried {
    caught: u32,
    missed: Vec<&'static str>,
}

impl Tried {
    fn faults(&mut self, group: &str, model: &mut Model, sent: &[u8], right: &Outcome, faults: &[Fault]) {
        for (what, fault) in faults {
            let mut wrong = right.clone();
            fault(&mut wrong);
            assert_ne!(&wrong, right, "{group}: {what}: nothing was changed");
            let judged = catch_unwind(AssertUnwindSafe(|| model.judge(sent, &wrong)));
            println!(
                "{group}: {what}: {}",
                if judged.is_err() { "caught" } else { "MISSED" }
            );
            if judged.is_ok() {
                self.missed.push(what);
            } else {
                self.caught += 1;
            }
        }
    }
}

fn full(v6: bool, udp: bool) -> Way {
    let ways = all_ways().into_iter();
    let way = ways
        .into_iter()
        .find(|way| way.full && way.v6 == v6 && way.udp == udp);
    way.expect("it is among them")
}

#[test]
fn every_fault_is_found() {
    let mut tried = Tried {
        caught: 0,
        missed: Vec::new(),
    };
    let extra = Extra {
        hops: 57,
        ..Extra::default()
    };
    for (v6, udp) in [(false, false), (true, true)] {
        let way = full(v6, udp);
        let Some(mut world) = World::new(&way) else { return };
        let mut model = Model::new(&world.simulator, &way);
        let protocol = if udp { 17 } else { 6 };
        let (client, service) = (way.client(40_000), way.service());
        let body = transport(udp, client, service, 2, PAYLOAD);
        let request = frame(
            CLIENT_MAC,
            &packet(client.ip(), service.ip(), protocol, extra, &body),
        );
        let sent = world.send("a request", &request);
        model.judge(&request, &sent);
        let families = if v6 { UDP_V6 } else { V4 };
        tried.faults("a request", &mut model, &request, &sent, ANY);
        tried.faults("a request", &mut model, &request, &sent, families);

        let flow = model.flows.values().next().expect("a flow").clone();
        let seen_as = flow.seen_as.expect("it was learned");
        let body = transport(udp, flow.backend, seen_as, 0x12, PAYLOAD);
        let answer = packet(flow.backend.ip(), seen_as.ip(), protocol, extra, &body);
        let answer = frame(mac_of(flow.backend.ip()), &answer);
        let back = world.send("an answer", &answer);
        model.judge(&answer, &back);
        tried.faults("an answer", &mut model, &answer, &back, ANY);
        tried.faults("an answer", &mut model, &answer, &back, families);
        if v6 {
            continue;
        }
        tried.faults("a request", &mut model, &request, &sent, TCP_V4);
        tried.faults("an answer", &mut model, &answer, &back, TCP_V4);
        let router = "198.51.100.1".parse().expect("an address");
        for (group, about, to) in [
            ("an error to the client", &sent.out[IP..], seen_as.ip()),
            ("an error to the backend", &back.out[IP..], service.ip()),
        ] {
            let message = frame(CLIENT_MAC, &error(router, to, [3, 4], 57, about));
            let told = world.send(group, &message);
            model.judge(&message, &told);
            tried.faults(group, &mut model, &message, &told, ANY);
            tried.faults(group, &mut model, &message, &told, &V4[..6]);
            tried.faults(group, &mut model, &message, &told, ERROR_V4);
        }
    }
    println!("{} faults caught", tried.caught);
    assert!(tried.missed.is_empty(), "{:?}", tried.missed);
}

#[test]
fn a_port_of_another_flow_and_one_beside_the_pool_are_found() {
    let way = full(false, false);
    let Some(mut world) = World::new(&way) else { return };
    let extra = Extra {
        hops: 57,
        ..Extra::default()
    };
    let request = |port| {
        let (client, service) = (way.client(port), way.service());
        let body = transport(false, client, service, 2, PAYLOAD);
        frame(CLIENT_MAC, &packet(client.ip(), service.ip(), 6, extra, &body))
    };
    let first = world.send("a request", &request(1));
    let port: [u8; 2] = first.out[IP + 20..IP + 22].try_into().expect("two bytes");
    // A flow to the same backend.
    let other = (2..).find(|other| {
        let outcome = world.send("a request", &request(*other));
        outcome.backend == first.backend
    });
    let other = other.expect("one of two backends");
    let right = world.send("a request", &request(other));
    for (what, port) in [("another flow's", port), ("beside the pool", [0, 80])] {
        let mut model = Model::new(&world.simulator, &way);
        model.judge(&request(1), &first);
        let mut wrong = right.clone();
        wrong.out[IP + 20..IP + 22].copy_from_slice(&port);
        let judged = catch_unwind(AssertUnwindSafe(|| model.judge(&request(other), &wrong)));
        assert!(judged.is_err(), "{what}");
    }
}
