//! Frames of several buffers (`xdp.frags`): jumbo frames are longer than the page that the first buffer is.

use lb_common::reason::Reason;
use xlb::datapath::simulate::{Options, Simulator};
use xlb::datapath::testrun::MAX_FRAME;

use crate::build::{ETHERNET, ip, syn, tcp_in, udp_in};
use crate::out::told_mtu;
use crate::world::{config, options, send, world_with};

/// Service address, port over TCP and over UDP (0: none), bytes of the outer headers.
const WAYS: [(&str, u16, u16, usize); 8] = [
    ("192.0.2.10", 80, 53, 0),
    ("2001:db8::10", 80, 53, 0),
    ("192.0.2.20", 443, 443, 20),
    ("2001:db8::20", 443, 443, 40),
    ("192.0.2.30", 443, 0, 40),
    ("192.0.2.60", 443, 443, 28),
    ("2001:db8::60", 443, 443, 48),
    ("192.0.2.61", 443, 0, 48),
];

const JUMBO_MTU: u32 = 9000;

fn jumbo_world() -> Option<Simulator> {
    let wide = Options {
        mtu: JUMBO_MTU,
        ..options()
    };
    world_with(&config(false), &wide)
}

/// A packet of so many bytes, headers included, none like another.
fn packet(address: &str, port: u16, over_tcp: bool, length: usize) -> Vec<u8> {
    let headers = if address.contains(':') { 40 } else { 20 } + if over_tcp { 20 } else { 8 };
    let payload: Vec<u8> = (0..length - headers)
        .map(|at| (at / 7) as u8 ^ at as u8)
        .collect();
    if over_tcp {
        tcp_in(ip(address), syn(4711, port), &payload)
    } else {
        udp_in(ip(address), 4711, port, &payload)
    }
}

/// Bytes of all that was forwarded.
fn bytes(world: &Simulator) -> u64 {
    let maps = &world.dataplane.maps;
    (1..64)
        .map(|index| maps.backend_counters(index).expect("reading the map").bytes)
        .sum()
}

#[test]
fn jumbo_frames_go_every_way_and_all_their_bytes_count() {
    let Some(mut world) = jumbo_world() else { return };
    for (address, tcp, udp, added) in WAYS {
        let room = JUMBO_MTU as usize - added;
        // Around the end of the first buffer, and what just fits.
        for length in [MAX_FRAME - 15, MAX_FRAME - 14, MAX_FRAME - 13, 4096, 8192, room] {
            for (port, over_tcp) in [(tcp, true), (udp, false)] {
                if port == 0 {
                    continue;
                }
                let shows = format!("{address}, {length} bytes");
                let frame = packet(address, port, over_tcp, length);
                let before = bytes(&world);
                let outcome = send(&mut world, &shows, &frame);
                assert_eq!(outcome.reason, Reason::Transmitted, "{shows}");
                assert_eq!(outcome.out.len(), frame.len() + added, "{shows}");
                assert_eq!(outcome.out[ETHERNET + added..], frame[ETHERNET..], "{shows}");
                assert_eq!(bytes(&world) - before, frame.len() as u64, "{shows}");
            }
        }
    }
}

#[test]
fn jumbo_frames_that_do_not_fit_are_answered() {
    let Some(mut world) = jumbo_world() else { return };
    for (address, tcp, _, added) in WAYS {
        let room = JUMBO_MTU as usize - added;
        let frame = packet(address, tcp, true, room + 1);
        let outcome = send(&mut world, address, &frame);
        assert_eq!(outcome.reason, Reason::TooBigAnswered, "{address}");
        assert_eq!(told_mtu(&outcome.out), room, "{address}");
    }
}

#[test]
fn jumbo_frames_that_are_cut_short_are_refused() {
    let Some(mut world) = jumbo_world() else { return };
    for (address, tcp, ..) in WAYS {
        let frame = packet(address, tcp, true, 8000);
        for length in [frame.len() - 1, MAX_FRAME + 1, MAX_FRAME, MAX_FRAME - 1] {
            let outcome = send(&mut world, address, &frame[..length]);
            assert_eq!(outcome.reason, Reason::Malformed, "{address}, {length} bytes");
        }
    }
}
