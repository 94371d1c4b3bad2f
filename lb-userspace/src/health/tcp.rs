//! The `tcp` check: a connection can be made.
//!
//! A connection is closed the normal way, with a FIN, so that the target sees a client that came and went.
//! A reset would spare us its 60 s in TIME-WAIT, but servers report resets as errors, in the worst case
//! in their `accept`. The price is small: at an interval of 200 ms a target has 300 of its own 28,000 ports
//! in TIME-WAIT. (A server that speaks first, as in SMTP, may still be sent a reset for its greeting.)

use std::io;
use std::net::{SocketAddr, TcpStream as StdTcpStream};
use std::os::fd::AsRawFd as _;

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage};
use tokio::net::TcpStream;

use super::probe::{Limit, Outcome};
use crate::model::CheckCode;

pub(super) async fn check(address: SocketAddr, limit: Limit) -> Outcome {
    match connect(address, limit).await {
        Ok(_stream) => Outcome::new(CheckCode::L4ok, "connected"),
        Err(outcome) => outcome,
    }
}

/// Connects to `address`. The error is an outcome: `L4CON`, `L4TOUT` or `SOCKERR`.
pub(super) async fn connect(address: SocketAddr, limit: Limit) -> Result<TcpStream, Outcome> {
    let stream = start_connecting(address).map_err(|error| not_sent(&error))?;
    let finished = async {
        stream.writable().await?;
        match stream.take_error()? {
            Some(error) => Err(error),
            None => Ok(()),
        }
    };
    limit
        .run(finished, CheckCode::L4tout, "no answer to the SYN")
        .await?
        .map_err(|error| answered(&error))?;
    Ok(stream)
}

/// Sends the SYN. tokio's own `connect` would not tell what failed before it was sent from what came
/// back after.
fn start_connecting(address: SocketAddr) -> io::Result<TcpStream> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket::socket(family, SockType::Stream, flags, SockProtocol::Tcp)?;
    match socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(address)) {
        Ok(()) | Err(Errno::EINPROGRESS) => TcpStream::from_std(StdTcpStream::from(socket)),
        Err(error) => Err(error.into()),
    }
}

/// What it means that connecting failed at once: the SYN did not leave (no route, no port, no descriptor,
/// no memory, forbidden), which says nothing about the target. But a refusal that was quick is a refusal.
fn not_sent(error: &io::Error) -> Outcome {
    match errno(error) {
        Some(Errno::ECONNREFUSED) => answered(error),
        _ => Outcome::new(CheckCode::Sockerr, format!("cannot connect: {}", describe(error))),
    }
}

/// What it means that connecting failed after the SYN was sent: the target or a router on the way said no,
/// or something broke here.
fn answered(error: &io::Error) -> Outcome {
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
