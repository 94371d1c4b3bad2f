//! Many packets for each way to a backend: whole, mutated, truncated, through program and model.
//!
//! The numbers that they are made of come from a seed, which is printed; `XLB_FUZZ_SEED` repeats a run. What a run finds
//! is written to `found/` as a line of hexadecimal digits, one file a frame, and goes through both in every later run.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use etherparse::IpNumber;
use lb_common::reason::Reason;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use xlb::config::Config;
use xlb::datapath::simulate::{MTU, Simulator};

use super::{Model, features, tagged};
use crate::build::{extended, no_operations, options, raw_in, syn, tcp_in, transport_of, udp_in, v4, v6};
use crate::load::short;
use crate::world::{config, options as world_options, world_with};

/// A service of each forward mode and family: what it shows, address, ports of its TCP and its UDP.
pub const WAYS: [(&str, &str, u16, u16); 9] = [
    ("dsr-l2, IPv4", "192.0.2.10", 80, 53),
    ("dsr-l2, IPv6", "2001:db8::10", 80, 53),
    ("dsr-ipip, IPv4 in IPv4", "192.0.2.20", 443, 443),
    ("dsr-ipip, IPv6 in IPv6", "2001:db8::20", 443, 443),
    ("dsr-ipip, IPv4 in IPv6", "192.0.2.30", 443, 443),
    ("dsr-gue, IPv4 in IPv4", "192.0.2.60", 443, 443),
    ("dsr-gue, IPv6 in IPv6", "2001:db8::60", 443, 443),
    ("dsr-gue, IPv4 in IPv6", "192.0.2.61", 443, 443),
    ("the last port of a range", "192.0.2.20", 8100, 443),
];

/// Packets for each way in the test run.
pub(crate) const CROWD: u32 = 100_000;
pub(crate) const SEED: u64 = 0x243F_6A88_85A3_08D3;

/// A packet of a service, or nearly.
fn packet(random: &mut StdRng, (_, address, tcp, udp): (&str, &str, u16, u16)) -> Vec<u8> {
    let source = random.random();
    let payload: Vec<u8> = (0..random.random_range(0..64_usize))
        .map(|_| random.random())
        .collect();
    let foreign = random.random_ratio(1, 16);
    let port = |port: u16| if foreign { port ^ 1 } else { port };
    let over_tcp = random.random_ratio(2, 3);
    let mut header = syn(source, port(tcp));
    (header.syn, header.ack) = (random.random(), random.random());
    if address.contains(':') {
        let mut ip = v6(address);
        ip.traffic_class = random.random();
        let (whole, last) = if over_tcp {
            (tcp_in(ip, header, &payload), IpNumber::TCP)
        } else {
            (udp_in(ip, source, port(udp), &payload), IpNumber::UDP)
        };
        if random.random_ratio(3, 4) {
            return whole;
        }
        let extensions = [(
            IpNumber::IPV6_HEADER_HOP_BY_HOP,
            options(random.random_range(1..4)),
        )];
        return extended(address, &extensions, last, transport_of(&whole));
    }
    let mut ip = v4(address);
    if random.random_ratio(1, 4) {
        ip.options = no_operations(random.random_range(0..=10));
    }
    match random.random_range(0..16) {
        0 => raw_in(ip, IpNumber(random.random()), &payload),
        _ if over_tcp => tcp_in(ip, header, &payload),
        _ => udp_in(ip, source, port(udp), &payload),
    }
}

/// Changes some bits of its headers, cuts its end off, or makes it longer than the way is wide.
pub(crate) fn spoil(random: &mut StdRng, frame: &mut Vec<u8>) {
    match random.random_range(0..8) {
        0..=2 => {}
        3..=5 => {
            for _ in 0..random.random_range(1..4) {
                let at = random.random_range(0..frame.len().min(100));
                frame[at] = if random.random() {
                    random.random()
                } else {
                    frame[at] ^ 1 << random.random_range(0..8)
                };
            }
        }
        6 => frame.truncate(random.random_range(14..=frame.len())),
        _ => frame.resize(frame.len() + random.random_range(0..1600_usize), 0),
    }
}

/// Program and model, with the same services.
pub struct Both {
    world: Simulator,
    model: Model,
    compare: fn(&mut Model, &mut Simulator, &[u8]) -> Reason,
    /// Frames get tags before they go in.
    tags: bool,
}

impl Both {
    fn new() -> Option<Self> {
        Self::of(&config(false))
    }

    /// With the services of a configuration; where that has VLANs, frames have tags.
    pub fn of(config: &Config) -> Option<Self> {
        let world = world_with(config, &world_options())?;
        let model = Model::new(&world, config, MTU);
        let tags = config.agent.vlans;
        let compare = if tags {
            Model::compare_tagged
        } else {
            Model::compare
        };
        Some(Self {
            world,
            model,
            compare,
            tags,
        })
    }

    /// Runs a frame through both; what they do not agree on is kept.
    pub fn judge(&mut self, frame: &[u8]) {
        let Self {
            world,
            model,
            compare,
            ..
        } = self;
        let judged = catch_unwind(AssertUnwindSafe(|| compare(model, world, frame)));
        if let Err(panic) = judged {
            let digits: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
            let path = found().join(format!("{}.hex", &digits[digits.len().saturating_sub(16)..]));
            if let Err(error) = fs::write(&path, digits + "\n") {
                eprintln!("{}: {error}", path.display());
            }
            eprintln!("kept as {}", path.display());
            std::panic::resume_unwind(panic);
        }
    }

    /// So many packets of a way, whole and spoiled.
    pub fn crowd(&mut self, way: (&str, &str, u16, u16), packets: u32, seed: u64) {
        println!("{}: {packets} packets, seed {seed:#x}", way.0);
        let mut random = StdRng::seed_from_u64(seed);
        for _ in 0..packets {
            let mut frame = packet(&mut random, way);
            if self.tags {
                frame = tagged::with(&frame, &some_tags(&mut random));
            }
            spoil(&mut random, &mut frame);
            self.judge(&frame);
        }
    }
}

/// Up to three tags, one of which may be none.
fn some_tags(random: &mut StdRng) -> Vec<u8> {
    let kinds = [[0x81, 0x00], [0x81, 0x00], [0x88, 0xa8], [0x91, 0x00]];
    let number = random.random_range(0..4);
    let tag = |_| [kinds[random.random_range(0..kinds.len())], random.random()].concat();
    (0..number).flat_map(tag).collect()
}

fn found() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packets/model/found")
}

/// How many packets of each way: fewer on a slow machine.
pub(crate) fn crowd() -> u32 {
    if short() { CROWD / 20 } else { CROWD }
}

pub(crate) fn seed() -> Option<u64> {
    let text = std::env::var("XLB_FUZZ_SEED").ok()?;
    let digits = text.trim_start_matches("0x");
    Some(u64::from_str_radix(digits, 16).unwrap_or_else(|error| panic!("XLB_FUZZ_SEED={text}: {error}")))
}

/// One test a way, so that they run side by side.
macro_rules! crowds {
    ($($name:ident = $way:literal;)+) => {
        $(#[test]
        fn $name() {
            if let Some(mut both) = Both::new() {
                both.crowd(WAYS[$way], crowd(), seed().unwrap_or(SEED));
            }
        })+
    };
}

crowds! {
    l2_v4 = 0;
    l2_v6 = 1;
    ipip_4in4 = 2;
    ipip_6in6 = 3;
    ipip_4in6 = 4;
    gue_4in4 = 5;
    gue_6in6 = 6;
    gue_4in6 = 7;
    ranges = 8;
}

#[test]
fn what_was_found_before() {
    let Some(mut all) = features::all() else { return };
    let mut files: Vec<_> = fs::read_dir(found())
        .expect("the folder of frames")
        .map(|entry| entry.expect("a file").path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "hex"))
        .collect();
    files.sort();
    assert!(!files.is_empty());
    for path in files {
        let text = fs::read_to_string(&path).expect("a frame");
        let frame: Vec<u8> = text
            .trim()
            .as_bytes()
            .chunks(2)
            .map(|pair| {
                u8::from_str_radix(std::str::from_utf8(pair).expect("digits"), 16).expect("two digits")
            })
            .collect();
        println!("{}", path.display());
        for (_, both) in &mut all {
            both.judge(&frame);
        }
    }
}
