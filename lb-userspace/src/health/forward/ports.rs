//! The ports that probes through the forward path come from.
//!
//! Answers to them arrive for sockets of the kernel that never sent anything: it would answer those of TCP with resets,
//! which would end our connections, and those of UDP with ICMP errors. So each port is held by sockets with a filter
//! that lets nothing through, one that listens and one for UDP: what comes for them is dropped without a word.
//!
//! All ports are of one block of [`BLOCK`], so that one filter knows what is ours; a block outside of the range that the
//! kernel takes ports from where there is one.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::socket::{
    self as nix_socket, AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, setsockopt, sockopt,
};

/// Ports of a block: a power of two.
pub(super) const BLOCK: u16 = 1024;

/// So many of them at most, the first ones, are for SYNs that no connection follows.
pub(super) const SYN_PORTS: u16 = 256;

/// So many of these are held from the start, and taken at random; the others only while all of those are in use.
const AT_RANDOM: u16 = 32;

/// The ports of one engine.
#[derive(Debug)]
pub(super) struct Ports {
    first: u16,
    /// Held, the first of the block among them.
    held: HashMap<u16, [OwnedFd; 2]>,
    /// How many of the first [`SYN_PORTS`] are taken at random, and how many may be held: each takes two descriptors.
    random_syns: u16,
    syns: u16,
    /// How many of those behind may be held.
    room: u16,
    /// The one of them taken last, counted from 0.
    last: u16,
}

impl Ports {
    /// Takes a block of its own.
    pub fn take_block() -> io::Result<Self> {
        let mut refused = io::Error::from(io::ErrorKind::AddrInUse);
        for first in blocks(kernels_range()) {
            match hold(first) {
                Ok(sockets) => {
                    let [syns, room] = room();
                    let mut ports = Self {
                        first,
                        held: [(first, sockets)].into(),
                        random_syns: syns.min(AT_RANDOM),
                        syns,
                        room,
                        last: 0,
                    };
                    for offset in 0..ports.random_syns {
                        // Who cannot be held is not taken.
                        ports.hold(first + offset);
                    }
                    return Ok(ports);
                }
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }

    /// The first port of the block: all its bits above those of [`BLOCK`] are those of the block.
    pub fn first(&self) -> u16 {
        self.first
    }

    /// A port for a SYN, not `in_use` where there is one such. At random: a server to which our reset got lost holds a
    /// connection half open for a minute, and is to meet another port next time.
    pub fn for_syn(&mut self, random: u16, in_use: impl Fn(u16) -> bool) -> u16 {
        let (first, count) = (self.first, self.random_syns);
        let begin = first + random % count;
        let mut ports = (begin..first + count)
            .chain(first..begin)
            .chain(first + count..first + self.syns);
        let free = ports.find(|port| !in_use(*port) && self.hold(*port));
        // Answers to a port that nobody holds are for the kernel, which ends what they are of.
        free.or_else(|| self.hold(begin).then_some(begin))
            .unwrap_or(first)
    }

    /// A port for a connection that is not `in_use`, the others in turn: so one is left alone for as long as can be, and
    /// what comes late for it finds nobody. None where there is none.
    pub fn take(&mut self, in_use: impl Fn(u16) -> bool) -> Option<u16> {
        for _ in 0..self.room {
            self.last = (self.last + 1) % self.room;
            let port = self.first + SYN_PORTS + self.last;
            if !in_use(port) && self.hold(port) {
                return Some(port);
            }
        }
        None
    }

    /// Whether it is ours.
    fn hold(&mut self, port: u16) -> bool {
        match self.held.entry(port) {
            Entry::Occupied(_) => true,
            Entry::Vacant(vacant) => hold(port).map(|sockets| vacant.insert(sockets)).is_ok(),
        }
    }
}

/// So many that they take an eighth and a quarter of the open files we may have.
fn room() -> [u16; 2] {
    let open_files = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _hard)| soft);
    let part = |share: u64, most: u16| {
        u16::try_from(open_files / share)
            .unwrap_or(u16::MAX)
            .clamp(16, most)
    };
    [part(16, SYN_PORTS), part(8, BLOCK - SYN_PORTS)]
}

/// First ports of blocks, the best first.
fn blocks((low, high): (u16, u16)) -> impl Iterator<Item = u16> {
    let all = || (1..=u16::MAX / BLOCK).rev().map(|block| block * BLOCK);
    let apart = move |first: &u16| *first > high || first.saturating_add(BLOCK - 1) < low;
    all()
        .filter(apart)
        .chain(all().filter(move |first| !apart(first)))
}

/// The ports that the kernel gives to sockets which ask for none.
fn kernels_range() -> (u16, u16) {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut numbers = text.split_whitespace().map_while(|number| number.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(low), Some(high)) => (low, high),
        // The kernel's default.
        _ => (32768, 60999),
    }
}

fn hold(port: u16) -> io::Result<[OwnedFd; 2]> {
    let listening = deaf(SockType::Stream, port)?;
    nix_socket::listen(&listening, Backlog::new(1)?)?;
    Ok([listening, deaf(SockType::Datagram, port)?])
}

/// A socket of both families that is bound and receives nothing.
fn deaf(kind: SockType, port: u16) -> io::Result<OwnedFd> {
    let socket = nix_socket::socket(AddressFamily::Inet6, kind, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::Ipv6V6Only, &false)?;
    let nothing = [libc::sock_filter {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k: 0,
    }];
    super::engine::filter_with(&socket, &nothing)?;
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    nix_socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(any))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_outside_of_the_kernels_range_come_first() {
        let blocks: Vec<u16> = blocks((32768, 60999)).collect();
        assert_eq!(blocks[..4], [64512, 63488, 62464, 61440]);
        assert_eq!(blocks[4], 31744);
        assert_eq!(blocks.len(), 63);
        assert!(blocks[34] < 32768 && blocks[35] >= 32768, "{blocks:?}");
        assert!(blocks.iter().all(|first| first % BLOCK == 0 && *first > 0));
    }

    #[test]
    fn two_have_blocks_of_their_own_and_ports_are_taken_in_turn() {
        let (mut one, other) = (Ports::take_block().unwrap(), Ports::take_block().unwrap());
        assert_ne!(one.first(), other.first());
        (one.random_syns, one.syns, one.room) = (3, 4, 3);
        let first = one.first();
        let offset = |port: u16| port - first;
        let mut take = |in_use: &[u16]| one.take(|port| in_use.contains(&(offset(port) - SYN_PORTS)));
        let taken = [take(&[]), take(&[2, 0]), take(&[]), take(&[0]), take(&[0, 1, 2])];
        let expected = [Some(1), Some(1), Some(2), Some(1), None];
        assert_eq!(
            taken.map(|port| port.map(|port| offset(port) - SYN_PORTS)),
            expected
        );
        let mut syn =
            |random, in_use: &[u16]| offset(one.for_syn(random, |port| in_use.contains(&offset(port))));
        assert_eq!([syn(0, &[]), syn(4, &[]), syn(2, &[2])], [0, 1, 0]);
        assert_eq!([syn(1, &[0, 1, 2]), syn(5, &[0, 1, 2, 3])], [3, 2]);
    }
}
