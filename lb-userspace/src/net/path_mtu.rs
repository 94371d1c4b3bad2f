//! What routers between us and a backend say of the length of our packets: ICMP "fragmentation needed" (RFC 1191) and
//! ICMPv6 "packet too big" (RFC 8201) about packets that the program encapsulated. Their outer source is an address of
//! this machine, so the answers come here; the kernel has no use for them, because no socket of its own sent the packet.
//!
//! A message is believed only as far as what it quotes is what we send: an atomic datagram of the right shape, longer than
//! what is said to fit. Whether it was sent to a backend is for the caller to judge ([`Notice`] has what that needs).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use lb_common::checksum;
use lb_common::layout::{GUE_PORT, UDP_LEN};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::health::socket::watch;

/// A smaller MTU is believed of no way. RFC 1191 would take down to 68 bytes, which only a forger asks for; RFC 8201
/// section 4 has a node discard what is below 1280.
pub const LEAST_V4: u32 = 576;
pub const LEAST_V6: u32 = 1280;

const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
const ICMP_LEN: usize = 8;

const IPV4_IN: u8 = 4;
const TCP: u8 = 6;
const UDP: u8 = 17;
const IPV6_IN: u8 = 41;

/// Somebody says that a packet of ours was too long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Where the packet came from by its outer header.
    pub source: IpAddr,
    /// Where it was going.
    pub backend: IpAddr,
    /// Behind a UDP header (`dsr-gue`).
    pub gue: bool,
    /// What fits, in bytes of the outer packet.
    pub mtu: u32,
    /// Bits of the flow's hash that the outer header bears.
    pub spread: Option<Spread>,
    /// Whose packet it was, where enough of it is quoted.
    pub flow: Option<Quoted>,
}

/// Where bits of a flow's hash stand in an outer header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// The source port of UDP.
    Port(u16),
    /// The low end of the flow label.
    Label(u16),
}

impl Spread {
    /// Whether a flow with this hash bears it.
    #[must_use]
    pub const fn is_of(self, hash: u32) -> bool {
        match self {
            Self::Port(port) => port == hash as u16 | 0xC000,
            Self::Label(label) => label == hash as u16,
        }
    }
}

/// The flow of a client's packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted {
    pub client: IpAddr,
    pub service: IpAddr,
    /// Number of the protocol: TCP or UDP.
    pub protocol: u8,
    /// Source and destination port as they are sent.
    pub ports: [u8; 4],
}

/// Reads an IPv4 packet with its header, as a raw socket gives it.
#[must_use]
pub fn of_icmp(packet: &[u8]) -> Option<Notice> {
    let header = usize::from(packet.first()? & 15) * 4;
    let message = packet.get(header..)?;
    let (head, quoted) = message.split_at_checked(ICMP_LEN)?;
    // The kernel gives raw sockets what came, right or not.
    if head[..2] != [3, 4] || !sums_up(message) {
        return None;
    }
    let mtu = be(head, 6);
    let (outer, behind) = quoted.split_at_checked(IPV4_LEN)?;
    // As the program writes them: no options, Don't Fragment, identification 0.
    let ours = outer[0] == 0x45 && outer[4..8] == [0, 0, 0x40, 0];
    let source = v4(outer, 12);
    if !ours || u32::from(be(outer, 2)) <= mtu.into() || source != v4(packet, 16) || mtu < LEAST_V4 as u16 {
        return None;
    }
    let (gue, port, inner) = unwrap(outer[9], behind)?;
    Some(Notice {
        source: source.into(),
        backend: v4(outer, 16).into(),
        gue,
        mtu: mtu.into(),
        spread: port.map(Spread::Port),
        flow: flow(inner),
    })
}

/// Whether a message has the checksum that it says; the byte that an odd length lacks is 0 (RFC 1071).
fn sums_up(message: &[u8]) -> bool {
    let (pairs, last) = message.as_chunks::<2>();
    let odd = last
        .first()
        .map_or(0, |byte| u32::from(u16::from_ne_bytes([*byte, 0])));
    checksum::fold(checksum::sum(pairs.as_flattened()) + odd) == 0xffff
}

/// Reads an ICMPv6 message without its header, as a raw socket gives it; the kernel checked its sum.
#[must_use]
pub fn of_icmpv6(message: &[u8]) -> Option<Notice> {
    let (head, quoted) = message.split_at_checked(ICMP_LEN)?;
    if head[..2] != [2, 0] {
        return None;
    }
    let mtu = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
    let (outer, behind) = quoted.split_at_checked(IPV6_LEN)?;
    let length = IPV6_LEN as u32 + u32::from(be(outer, 4));
    if outer[0] >> 4 != 6 || length <= mtu || mtu < LEAST_V6 {
        return None;
    }
    let (gue, _, inner) = unwrap(outer[6], behind)?;
    Some(Notice {
        source: v6(outer, 8).into(),
        backend: v6(outer, 24).into(),
        gue,
        mtu,
        spread: Some(Spread::Label(be(outer, 2))),
        flow: flow(inner),
    })
}

/// Whether UDP is in between, its source port, and the client's packet as far as it is quoted.
fn unwrap(protocol: u8, behind: &[u8]) -> Option<(bool, Option<u16>, &[u8])> {
    match protocol {
        IPV4_IN | IPV6_IN => Some((false, None, behind)),
        UDP => {
            let (udp, inner) = behind.split_at_checked(UDP_LEN)?;
            (be(udp, 2) == GUE_PORT).then_some((true, Some(be(udp, 0)), inner))
        }
        _ => None,
    }
}

/// The flow of a whole packet of TCP or UDP without options or extension headers, which most are.
fn flow(packet: &[u8]) -> Option<Quoted> {
    let ports = |at: usize| packet.get(at..at + 4)?.try_into().ok();
    let (client, service, protocol, ports) = match packet.first()? >> 4 {
        4 if packet[0] == 0x45 && packet.len() >= IPV4_LEN && be(packet, 6) & 0x3fff == 0 => (
            v4(packet, 12).into(),
            v4(packet, 16).into(),
            packet[9],
            ports(IPV4_LEN)?,
        ),
        6 if packet.len() >= IPV6_LEN => (
            v6(packet, 8).into(),
            v6(packet, 24).into(),
            packet[6],
            ports(IPV6_LEN)?,
        ),
        _ => return None,
    };
    matches!(protocol, TCP | UDP).then_some(Quoted {
        client,
        service,
        protocol,
        ports,
    })
}

fn be(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn v4(bytes: &[u8], at: usize) -> Ipv4Addr {
    Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3])
}

fn v6(bytes: &[u8], at: usize) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets.copy_from_slice(&bytes[at..at + 16]);
    octets.into()
}

/// Notices that wait to be judged; more are lost, and come again with the next packet that is too long.
const ROOM: usize = 64;

/// The sockets that hear of it. They close with this.
#[derive(Debug)]
pub struct Listener {
    notices: mpsc::Receiver<Notice>,
    tasks: Vec<JoinHandle<()>>,
}

impl Listener {
    /// Listens in the network namespace of the calling thread.
    ///
    /// # Errors
    /// Without `CAP_NET_RAW`.
    pub fn open() -> io::Result<Self> {
        let (sender, notices) = mpsc::channel(ROOM);
        let tasks = vec![
            tokio::spawn(hear(icmp()?, of_icmp, sender.clone())),
            tokio::spawn(hear(icmpv6()?, of_icmpv6, sender)),
        ];
        Ok(Self { notices, tasks })
    }

    /// The next one.
    pub async fn next(&mut self) -> Option<Notice> {
        self.notices.recv().await
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn hear(socket: AsyncFd<OwnedFd>, read: fn(&[u8]) -> Option<Notice>, notices: mpsc::Sender<Notice>) {
    let mut buffer = [0; 2048];
    loop {
        let received = socket
            .async_io(Interest::READABLE, |socket| {
                Ok(recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?)
            })
            .await;
        match received {
            Ok(length) => {
                if let Some(notice) = read(&buffer[..length]) {
                    // A full channel is a flood.
                    let _ = notices.try_send(notice);
                }
            }
            Err(error) => {
                log::warn!("path MTUs are not learned any longer: {error}");
                return;
            }
        }
    }
}

/// A socket for ICMP "destination unreachable" alone.
fn icmp() -> io::Result<AsyncFd<OwnedFd>> {
    const ICMP_FILTER: libc::c_int = 1;
    let socket = raw(AddressFamily::Inet, SockProtocol::Icmp)?;
    refuse(&socket, libc::SOL_RAW, ICMP_FILTER, &!(1_u32 << 3))?;
    watch(socket, Interest::READABLE)
}

/// A socket for ICMPv6 "packet too big" alone.
fn icmpv6() -> io::Result<AsyncFd<OwnedFd>> {
    const ICMPV6_FILTER: libc::c_int = 1;
    let socket = raw(AddressFamily::Inet6, SockProtocol::IcmpV6)?;
    let mut refused = [u32::MAX; 8];
    refused[0] &= !(1 << 2);
    refuse(&socket, libc::IPPROTO_ICMPV6, ICMPV6_FILTER, &refused)?;
    watch(socket, Interest::READABLE)
}

fn raw(family: AddressFamily, protocol: SockProtocol) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(family, SockType::Raw, flags, protocol)?)
}

/// Sets a filter of types, of which each bit that is set keeps one out.
fn refuse<T: Copy>(socket: &OwnedFd, level: libc::c_int, option: libc::c_int, types: &T) -> io::Result<()> {
    // SAFETY: the value lives during the call, which copies so many bytes of it.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(types).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if set == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests;
