//! What a frame becomes where addresses and ports are rewritten, and whether it did.

use std::net::{IpAddr, SocketAddr};

use crate::out::sums_up;

/// Source and destination.
pub type Sockets = (SocketAddr, SocketAddr);

/// How a frame is rewritten. Places are bytes from the start of the frame.
pub struct Rewriting {
    /// Destination and source.
    pub macs: ([u8; 6], [u8; 6]),
    pub to: Sockets,
    /// Where the ports are, if there are any.
    pub ports_at: Option<usize>,
    pub udp: bool,
    /// Length of the IP packet, where that is all that its checksums cover.
    pub whole: Option<usize>,
    /// Of an ICMP error: where the message is, where the ports are that it quotes (a later fragment has none), and what the
    /// quoted packet becomes.
    pub inside: Option<(usize, Option<usize>, Sockets)>,
}

/// A checksum, and the places of what it covers that may change.
struct Covered {
    at: usize,
    places: Vec<(usize, usize)>,
    /// 0 says that there is none.
    udp: bool,
}

impl Rewriting {
    /// Panics where `out` is not what the frame must become.
    pub fn check(&self, frame: &[u8], out: &[u8]) {
        let mut want = frame.to_vec();
        let mut sums = Vec::new();
        want[..6].copy_from_slice(&self.macs.0);
        want[6..12].copy_from_slice(&self.macs.1);
        let v4 = self.to.0.is_ipv4();
        want[if v4 { 22 } else { 21 }] -= 1;
        let outer = put_addresses(&mut want, 14, &self.to, &mut sums, true);
        if let Some(at) = self.ports_at {
            put_ports(&mut want, at, &self.to);
            sums.push(Covered {
                at: at + if self.udp { 6 } else { 16 },
                places: vec![outer, (at, 4)],
                udp: self.udp,
            });
        }
        if let Some((message, ports, to)) = &self.inside {
            let end = 14 + self.whole.expect("its length");
            let addresses = put_addresses(&mut want, message + 8, to, &mut sums, false);
            let mut covered = vec![addresses];
            if v4 {
                covered.push((message + 18, 2));
            } else {
                covered.push(outer);
            }
            if let Some(ports) = ports {
                put_ports(&mut want, *ports, to);
                covered.push((*ports, 4));
                let at = ports + if self.udp { 6 } else { 16 };
                if at + 2 <= end {
                    covered.push((at, 2));
                    sums.push(Covered {
                        at,
                        places: vec![addresses, (*ports, 4)],
                        udp: self.udp,
                    });
                }
            }
            sums.push(Covered {
                at: message + 2,
                places: covered,
                udp: false,
            });
        }
        assert_eq!(out.len(), want.len(), "{frame:02x?}: length");
        for Covered { at, places, udp } in &sums {
            let (old, new) = (word(frame, *at), word(out, *at));
            let is_none = *udp && old == 0;
            assert_eq!(is_none, *udp && new == 0, "{frame:02x?}: a checksum of 0 at {at}");
            // RFC 1071: all of it together is the same number modulo 65535 as before.
            let total = |bytes: &[u8], check: u16| {
                let words = places.iter().flat_map(|(at, len)| bytes[*at..at + len].chunks(2));
                let sum: u64 = words
                    .map(|pair| u64::from(pair[0]) << 8 | u64::from(pair[1]))
                    .sum();
                (sum + u64::from(check)) % 65_535
            };
            assert!(
                is_none || total(frame, old) == total(out, new),
                "{frame:02x?}: the checksum at {at} became {new:#06x}"
            );
            want[*at..at + 2].copy_from_slice(&out[*at..at + 2]);
        }
        assert_eq!(out, want, "{frame:02x?}");
        self.recompute(frame, out);
    }

    /// Computes checksums anew: what was right is right.
    fn recompute(&self, frame: &[u8], out: &[u8]) {
        let v4 = self.to.0.is_ipv4();
        if v4 {
            let header = 14..14 + usize::from(frame[14] & 15) * 4;
            let was = sums_up(&[&frame[header.clone()]]);
            assert!(!was || sums_up(&[&out[header]]), "{frame:02x?}: header checksum");
        }
        let Some(length) = self.whole else { return };
        let (start, protocol) = match (self.ports_at, &self.inside) {
            (Some(at), _) => (at, if self.udp { 17 } else { 6 }),
            (None, Some((message, ..))) => (*message, 58),
            _ => return,
        };
        let end = 14 + length;
        if self.udp && self.ports_at.is_some() && word(frame, start + 6) == 0 {
            return;
        }
        let size = ((end - start) as u32).to_be_bytes();
        let pseudo = |bytes: &[u8]| {
            if v4 && self.inside.is_some() {
                return sums_up(&[&bytes[start..end]]);
            }
            let addresses = if v4 { 26..34 } else { 22..54 };
            sums_up(&[&bytes[addresses], &size, &[0, 0, 0, protocol], &bytes[start..end]])
        };
        assert!(!pseudo(frame) || pseudo(out), "{frame:02x?}: transport checksum");
    }
}

/// Writes the addresses of the IP header at `at`; gives back their place. `hop`: its TTL counts too.
fn put_addresses(
    want: &mut [u8],
    at: usize,
    to: &Sockets,
    sums: &mut Vec<Covered>,
    hop: bool,
) -> (usize, usize) {
    match (to.0.ip(), to.1.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            want[at + 12..at + 16].copy_from_slice(&source.octets());
            want[at + 16..at + 20].copy_from_slice(&destination.octets());
            let mut places = vec![(at + 12, 8)];
            if hop {
                places.push((at + 8, 2));
            }
            sums.push(Covered {
                at: at + 10,
                places,
                udp: false,
            });
            (at + 12, 8)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            want[at + 8..at + 24].copy_from_slice(&source.octets());
            want[at + 24..at + 40].copy_from_slice(&destination.octets());
            (at + 8, 32)
        }
        _ => panic!("two families"),
    }
}

fn put_ports(want: &mut [u8], at: usize, to: &Sockets) {
    want[at..at + 2].copy_from_slice(&to.0.port().to_be_bytes());
    want[at + 2..at + 4].copy_from_slice(&to.1.port().to_be_bytes());
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}
