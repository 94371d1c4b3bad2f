//! Sockets as probes want them, and what their errors say about whom.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    self, AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, setsockopt, sockopt,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::probe::Outcome;
use crate::model::CheckCode;

/// A socket that does not block, for peers like `peer`; bound to `source` where there is one.
pub(super) fn open(
    peer: SocketAddr,
    source: Option<IpAddr>,
    kind: SockType,
    protocol: SockProtocol,
) -> io::Result<OwnedFd> {
    let family = match peer {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket::socket(family, kind, flags, protocol)?;
    if let Some(source) = source {
        // Else bind takes a port that no other connection of this address may share.
        if kind == SockType::Stream {
            setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        }
        socket::bind(
            socket.as_raw_fd(),
            &SockaddrStorage::from(SocketAddr::new(source, 0)),
        )?;
    }
    Ok(socket)
}

/// Connects; `Ok` also where that goes on.
pub(super) fn connect(socket: &OwnedFd, peer: SocketAddr) -> io::Result<()> {
    match socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(peer)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A descriptor whose readiness the runtime watches.
pub(crate) fn watch(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and the same descriptor as long as it lives, and the result owns it.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, interest) }?)
}

/// What it means that sending failed at once: nothing left (no route, no port, no descriptor, no memory, forbidden),
/// which says nothing about the target. But a refusal that was quick is a refusal.
pub(super) fn not_sent(error: &io::Error) -> Outcome {
    match errno(error) {
        Some(Errno::ECONNREFUSED) => answered(error),
        _ => Outcome::new(CheckCode::Sockerr, format!("cannot connect: {}", describe(error))),
    }
}

/// What it means that a socket fails after something was sent: the target or a router on the way said no,
/// or something broke here.
pub(super) fn answered(error: &io::Error) -> Outcome {
    let code = match errno(error) {
        Some(Errno::ETIMEDOUT) => CheckCode::L4tout,
        None | Some(Errno::EADDRNOTAVAIL | Errno::ENETDOWN | Errno::ENOBUFS | Errno::ENOMEM) => {
            CheckCode::Sockerr
        }
        Some(_) => CheckCode::L4con,
    };
    Outcome::new(code, describe(error))
}

/// The error as a line in lower case, without its number: `connection refused`.
pub(super) fn describe(error: &io::Error) -> String {
    match errno(error) {
        Some(errno) => errno.desc().to_lowercase(),
        None => error.to_string(),
    }
}

fn errno(error: &io::Error) -> Option<Errno> {
    error.raw_os_error().map(Errno::from_raw)
}
