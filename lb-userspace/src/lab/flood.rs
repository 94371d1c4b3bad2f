//! SYNs from addresses that nobody has, as many as asked for and no more.

use std::io;
use std::mem;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lb_common::checksum;
use rand::Rng;

use super::netns::Netns;
use super::network::DEVICE;

/// What to send.
#[derive(Clone, Copy, Debug)]
pub struct Flood {
    pub to: (Ipv4Addr, u16),
    pub packets: u32,
    pub packets_per_s: u32,
}

const FRAME_LEN: usize = 54;
/// Frames of one system call.
const BATCH: usize = 64;
/// 198.18.0.0/15, kept for measurements (RFC 2544): no host of the lab has a route there.
const SOURCES: u32 = 0xc612_0000;
const SOURCE_BITS: u32 = (1 << 17) - 1;

impl Flood {
    /// Sends from a client to the MAC address of the load balancer; how long it took.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn send(&self, client: &Netns, lb: &Netns) -> anyhow::Result<Duration> {
        let to_mac = lb.enter(|| mac_of(DEVICE))?;
        client.enter(|| {
            let from_mac = mac_of(DEVICE)?;
            let socket = raw_socket(DEVICE)?;
            self.run(&socket, to_mac, from_mac)
        })
    }

    fn run(&self, socket: &OwnedFd, to_mac: [u8; 6], from_mac: [u8; 6]) -> anyhow::Result<Duration> {
        ensure!(self.packets_per_s > 0, "a rate");
        let begun = Instant::now();
        let mut random = rand::rng();
        let mut frames = [[0_u8; FRAME_LEN]; BATCH];
        let mut sent = 0;
        while sent < self.packets {
            let count = (self.packets - sent).min(BATCH as u32);
            for frame in &mut frames[..count as usize] {
                let source = Ipv4Addr::from(SOURCES | random.random::<u32>() & SOURCE_BITS);
                *frame = syn(
                    to_mac,
                    from_mac,
                    (source, random.random()),
                    self.to,
                    random.random(),
                );
            }
            send_all(socket, &frames[..count as usize])?;
            sent += count;
            let due = Duration::from_secs_f64(f64::from(sent) / f64::from(self.packets_per_s));
            if let Some(early) = due.checked_sub(begun.elapsed()) {
                std::thread::sleep(early);
            }
        }
        Ok(begun.elapsed())
    }
}

/// A frame with a SYN (RFC 9293, section 3.1), without options.
fn syn(
    to_mac: [u8; 6],
    from_mac: [u8; 6],
    source: (Ipv4Addr, u16),
    destination: (Ipv4Addr, u16),
    sequence: u32,
) -> [u8; FRAME_LEN] {
    let mut frame = [0; FRAME_LEN];
    frame[..6].copy_from_slice(&to_mac);
    frame[6..12].copy_from_slice(&from_mac);
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    let (ip, tcp) = frame[14..].split_at_mut(20);
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&40_u16.to_be_bytes());
    ip[6] = 0x40;
    ip[8] = 64;
    ip[9] = 6;
    ip[12..16].copy_from_slice(&source.0.octets());
    ip[16..20].copy_from_slice(&destination.0.octets());
    let sum = !checksum::fold(checksum::sum(ip));
    ip[10..12].copy_from_slice(&sum.to_ne_bytes());
    tcp[..2].copy_from_slice(&source.1.to_be_bytes());
    tcp[2..4].copy_from_slice(&destination.1.to_be_bytes());
    tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
    tcp[12] = 5 << 4;
    tcp[13] = 0x02;
    tcp[14..16].copy_from_slice(&64_240_u16.to_be_bytes());
    let mut pseudo = [0; 12];
    pseudo[..8].copy_from_slice(&ip[12..20]);
    pseudo[9] = 6;
    pseudo[11] = 20;
    let sum = !checksum::fold(checksum::sum(&pseudo) + checksum::sum(tcp));
    tcp[16..18].copy_from_slice(&sum.to_ne_bytes());
    frame
}

fn send_all(socket: &OwnedFd, frames: &[[u8; FRAME_LEN]]) -> anyhow::Result<()> {
    let mut parts: Vec<libc::iovec> = frames
        .iter()
        .map(|frame| libc::iovec {
            iov_base: frame.as_ptr().cast_mut().cast(),
            iov_len: FRAME_LEN,
        })
        .collect();
    let mut messages: Vec<libc::mmsghdr> = parts
        .iter_mut()
        .map(|part| {
            // SAFETY: plain integers and pointers, for which all zeros is a value.
            let mut message: libc::mmsghdr = unsafe { mem::zeroed() };
            message.msg_hdr.msg_iov = part;
            message.msg_hdr.msg_iovlen = 1;
            message
        })
        .collect();
    let mut done = 0;
    while done < messages.len() {
        let rest = &mut messages[done..];
        // SAFETY: the messages and the frames that they point to outlive the call, which only reads frames.
        let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), rest.as_mut_ptr(), rest.len() as u32, 0) };
        match usize::try_from(sent) {
            Ok(sent) => done += sent,
            Err(_) if io::Error::last_os_error().raw_os_error() == Some(libc::ENOBUFS) => {
                std::thread::yield_now();
            }
            Err(_) => return Err(io::Error::last_os_error()).context("sending frames"),
        }
    }
    Ok(())
}

/// A socket that sends whole frames by a device and receives none.
fn raw_socket(device: &str) -> anyhow::Result<OwnedFd> {
    // SAFETY: a plain system call; the descriptor is taken over at once.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error()).context("a raw socket");
        }
        OwnedFd::from_raw_fd(fd)
    };
    // SAFETY: plain integers, for which all zeros is a value.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = nix::net::if_::if_nametoindex(device)?.cast_signed();
    let len = size_of_val(&address) as u32;
    // SAFETY: the address lives until the call returns, and `len` is its size.
    match unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) } {
        0 => Ok(socket),
        _ => Err(io::Error::last_os_error()).context(device.to_owned()),
    }
}

/// The MAC address of a device of this namespace.
///
/// # Errors
/// Where there is no such device, or it has none.
pub fn mac_of(device: &str) -> anyhow::Result<[u8; 6]> {
    nix::ifaddrs::getifaddrs()?
        .filter(|interface| interface.interface_name == device)
        .find_map(|interface| interface.address?.as_link_addr()?.addr())
        .with_context(|| format!("{device} has no MAC address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_syn_is_well_formed() {
        let source = (Ipv4Addr::new(198, 18, 1, 2), 4000);
        let frame = syn([1; 6], [2; 6], source, (Ipv4Addr::new(192, 0, 2, 10), 7000), 99);
        let packet = etherparse::PacketHeaders::from_ethernet_slice(&frame).unwrap();
        let Some(etherparse::NetHeaders::Ipv4(ip, _)) = packet.net else {
            panic!("no IPv4 header");
        };
        let Some(etherparse::TransportHeader::Tcp(tcp)) = packet.transport else {
            panic!("no TCP header");
        };
        assert_eq!(ip.header_checksum, ip.calc_header_checksum());
        assert_eq!(tcp.checksum, tcp.calc_checksum_ipv4(&ip, &[]).unwrap());
        assert_eq!(
            (tcp.source_port, tcp.destination_port, tcp.sequence_number),
            (4000, 7000, 99)
        );
        assert!(tcp.syn && !tcp.ack);
    }
}
