//! The `udp` check: a datagram is answered as expected.
//!
//! Silence fails: without an answer a server that lives cannot be told from a machine that is gone. The first
//! datagram that comes back decides; the socket is connected, so that others cannot answer for the target.

use std::io;
use std::net::UdpSocket as StdUdpSocket;

use nix::sys::socket::{SockProtocol, SockType};
use tokio::net::UdpSocket;

use super::forward::Datagrams;
use super::probe::{Limit, Outcome, Probe};
use super::socket::{self, answered, describe, not_sent};
use super::way::Way;
use crate::config::UdpCheck;
use crate::model::CheckCode;

/// The longest answer that is looked at; what is beyond it is cut off.
pub(super) const MAX_ANSWER_BYTES: usize = 4096;

pub(super) async fn check(check: &UdpCheck, way: Way<'_>, probe: &Probe, limit: Limit) -> Outcome {
    let mut socket = match sent(&check.send, way, probe).await {
        Ok(socket) => socket,
        Err(outcome) => return outcome,
    };
    let mut buffer = [0; MAX_ANSWER_BYTES];
    let answer = match limit
        .run(socket.recv(&mut buffer), CheckCode::L7tout, "no answer")
        .await
    {
        Ok(Ok(length)) => &buffer[..length],
        Ok(Err(outcome)) | Err(outcome) => return outcome,
    };
    let length = answer.len();
    match &check.expect {
        Some(expected) if !contains(answer, expected) => Outcome::new(
            CheckCode::L7rsp,
            format!("an answer of {length} bytes, not the expected one"),
        ),
        _ => Outcome::new(CheckCode::L7ok, format!("an answer of {length} bytes")),
    }
}

/// What answers come back by.
pub(super) enum Exchange {
    Socket(UdpSocket),
    Forwarded(Datagrams),
}

impl Exchange {
    /// The next datagram that came back; of a longer one what fits into `buffer`.
    pub async fn recv(&mut self, buffer: &mut [u8]) -> Result<usize, Outcome> {
        match self {
            Self::Socket(socket) => socket.recv(buffer).await.map_err(|error| answered(&error)),
            Self::Forwarded(datagrams) => datagrams.recv(buffer).await,
        }
    }
}

/// Sends `datagram` to the target of `probe`.
pub(super) async fn sent(datagram: &[u8], way: Way<'_>, probe: &Probe) -> Result<Exchange, Outcome> {
    if let Way::Forward {
        forwarder,
        service,
        forward,
    } = way
    {
        let sent = forwarder.ask(service, forward, probe, datagram).await;
        return sent.map(Exchange::Forwarded);
    }
    let open = || -> io::Result<UdpSocket> {
        let socket = socket::open(probe.address, probe.source, SockType::Datagram, SockProtocol::Udp)?;
        socket::connect(&socket, probe.address)?;
        UdpSocket::from_std(StdUdpSocket::from(socket))
    };
    let socket = open().map_err(|error| not_sent(&error))?;
    match socket.send(datagram).await {
        Ok(_) => Ok(Exchange::Socket(socket)),
        Err(error) => Err(Outcome::new(
            CheckCode::Sockerr,
            format!("cannot send: {}", describe(&error)),
        )),
    }
}

pub(super) fn contains(text: &[u8], part: &[u8]) -> bool {
    part.is_empty() || text.windows(part.len()).any(|window| window == part)
}
