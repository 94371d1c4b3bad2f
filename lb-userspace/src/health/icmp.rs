//! The `icmp` check: an echo comes back (RFC 792, RFC 4443).
//!
//! A ping socket where the kernel lets us have one (`net.ipv4.ping_group_range`): it delivers the answers to its own
//! requests only. Else a raw socket (`CAP_NET_RAW`), connected, so that the kernel delivers what comes from the target
//! only, with a number of its own in each request.
//!
//! An answer says that the host lives and is reachable, nothing about what it serves; the kernel of a host often limits
//! how many it gives.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{self as nix_socket, MsgFlags, SockProtocol, SockType, setsockopt, sockopt};
use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, Ready};

use super::probe::{Limit, Outcome, Probe};
use super::socket::{self, answered, describe, not_sent};
use crate::model::CheckCode;

const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;

/// Type, code, checksum, identifier, sequence number, and eight bytes that no other request has.
const REQUEST_BYTES: usize = 16;

/// The longest IPv4 header and a reply.
const BUFFER_BYTES: usize = 60 + REQUEST_BYTES;

pub(super) async fn check(probe: &Probe, limit: Limit) -> Outcome {
    // Ping sockets take a port for their identifier.
    let peer = SocketAddr::new(probe.address.ip(), 0);
    let (kind, socket) = match open(peer, probe) {
        Ok(opened) => opened,
        Err(error) => return not_sent(&error),
    };
    let nonce: u64 = rand::random();
    let request = request(peer.is_ipv4(), nonce);
    let socket = match socket::watch(socket, Interest::READABLE | Interest::ERROR) {
        Ok(socket) => socket,
        Err(error) => return not_sent(&error),
    };
    if let Err(error) = nix_socket::send(socket.as_raw_fd(), &request, MsgFlags::empty()) {
        let error = io::Error::from(error);
        return Outcome::new(CheckCode::Sockerr, format!("cannot send: {}", describe(&error)));
    }
    let reply = reply(&socket, kind, peer.is_ipv4(), nonce);
    match limit.run(reply, CheckCode::L4tout, "no echo").await {
        Ok(Ok(())) => Outcome::new(CheckCode::L4ok, "echo"),
        Ok(Err(error)) => answered(&error),
        Err(late) => late,
    }
}

/// A connected socket that sends ICMP, and of which kind.
fn open(peer: SocketAddr, probe: &Probe) -> io::Result<(SockType, OwnedFd)> {
    let protocol = if peer.is_ipv4() {
        SockProtocol::Icmp
    } else {
        SockProtocol::IcmpV6
    };
    let ping = socket::open(peer, probe.source, SockType::Datagram, protocol);
    let (kind, socket) = match ping {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => (
            SockType::Raw,
            socket::open(peer, probe.source, SockType::Raw, protocol)?,
        ),
        ping => (SockType::Datagram, ping?),
    };
    // Has "unreachable" messages come back as errors.
    if peer.is_ipv4() {
        setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
    } else {
        setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?;
    }
    socket::connect(&socket, peer)?;
    Ok((kind, socket))
}

/// An echo request. A ping socket sets the identifier and the checksum; the kernel sets that of ICMPv6 anyway.
fn request(v4: bool, nonce: u64) -> [u8; REQUEST_BYTES] {
    let mut request = [0; REQUEST_BYTES];
    request[0] = if v4 { ECHO_REQUEST } else { ECHO_REQUEST_V6 };
    let nonce = nonce.to_be_bytes();
    request[4..8].copy_from_slice(&nonce[..4]);
    request[8..].copy_from_slice(&nonce);
    let checksum = checksum(&request);
    request[2..4].copy_from_slice(&checksum.to_be_bytes());
    request
}

/// RFC 1071.
fn checksum(bytes: &[u8; REQUEST_BYTES]) -> u16 {
    let words = bytes
        .chunks_exact(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

/// Waits for the reply to the request with this nonce.
async fn reply(socket: &AsyncFd<OwnedFd>, kind: SockType, v4: bool, nonce: u64) -> io::Result<()> {
    let mut buffer = [0; BUFFER_BYTES];
    loop {
        // Errors from the network make a socket readable as an error, not as data.
        let mut guard = socket.ready(Interest::READABLE | Interest::ERROR).await?;
        match nix_socket::recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) if is_reply(&buffer[..length], kind, v4, nonce) => return Ok(()),
            Ok(_) => tokio::task::coop::consume_budget().await,
            Err(Errno::EAGAIN) => {
                if let Some(error) = pending_error(socket) {
                    return Err(error);
                }
                guard.clear_ready_matching(Ready::READABLE | Ready::ERROR);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn pending_error(socket: &AsyncFd<OwnedFd>) -> Option<io::Error> {
    match nix_socket::getsockopt(socket, sockopt::SocketError) {
        Ok(0) | Err(_) => None,
        Ok(error) => Some(io::Error::from_raw_os_error(error)),
    }
}

/// A raw IPv4 socket gives the IP header too.
fn is_reply(packet: &[u8], kind: SockType, v4: bool, nonce: u64) -> bool {
    let header = match packet.first() {
        Some(first) if kind == SockType::Raw && v4 => usize::from(first & 0xf) * 4,
        _ => 0,
    };
    let Some(message) = packet.get(header..) else {
        return false;
    };
    let wanted = if v4 { ECHO_REPLY } else { ECHO_REPLY_V6 };
    message.len() >= REQUEST_BYTES
        && message[..2] == [wanted, 0]
        && message[8..REQUEST_BYTES] == nonce.to_be_bytes()
}

#[cfg(test)]
#[path = "tests/icmp.rs"]
mod tests;
