//! The `tcp` check: a connection can be made.
//!
//! The target's kernel answers the SYN; its program does not see the probe. The last packet of the handshake is held
//! back (`TCP_QUICKACK` off) and the connection reset instead, while the target still waits for it, so that its
//! accept queue is not touched and nothing is logged. That also leaves no port of ours in TIME-WAIT, of which
//! thousands of probes a second would leave hundreds of thousands. HAProxy does the same.
//!
//! A program that hangs without accepting passes until its accept queue is full: an `http` check sees that at once.

use std::io;
use std::net::TcpStream as StdTcpStream;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{SockProtocol, SockType, setsockopt, sockopt};
use tokio::net::TcpStream;

use super::probe::{Limit, Outcome, Probe};
use super::socket::{self, answered, not_sent};
use crate::model::CheckCode;

pub(super) async fn check(probe: &Probe, limit: Limit) -> Outcome {
    match connected(start(probe, silently), limit).await {
        Ok(_stream) => Outcome::new(CheckCode::L4ok, "connected"),
        Err(outcome) => outcome,
    }
}

/// Connects to the address of `probe`, to talk. The error is an outcome: `L4CON`, `L4TOUT` or `SOCKERR`.
pub(super) async fn connect(probe: &Probe, limit: Limit) -> Result<TcpStream, Outcome> {
    connected(start(probe, |_| Ok(())), limit).await
}

async fn connected(started: io::Result<TcpStream>, limit: Limit) -> Result<TcpStream, Outcome> {
    let stream = started.map_err(|error| not_sent(&error))?;
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
fn start(probe: &Probe, prepare: impl FnOnce(&OwnedFd) -> io::Result<()>) -> io::Result<TcpStream> {
    let socket = socket::open(probe.address, probe.source, SockType::Stream, SockProtocol::Tcp)?;
    prepare(&socket)?;
    socket::connect(&socket, probe.address)?;
    TcpStream::from_std(StdTcpStream::from(socket))
}

/// Has the handshake stay unfinished, and closing be a reset.
fn silently(socket: &OwnedFd) -> io::Result<()> {
    let off: libc::c_int = 0;
    let length = size_of_val(&off) as libc::socklen_t;
    // SAFETY: the descriptor is open, and the option's value is an integer that lives during the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_QUICKACK,
            (&raw const off).cast(),
            length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let reset = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    Ok(setsockopt(socket, sockopt::Linger, &reset)?)
}
