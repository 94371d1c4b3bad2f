//! The echo server: answers each request with its name and a count of the connection's requests.
//!
//! SIGUSR1 makes it deaf to new connections: it accepts none and lets only one wait, so that the kernel answers no
//! further SYN, while the connections that it has go on. SIGUSR2 ends that.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::task::{LocalSet, spawn_local};

use crate::lab::wire::{self, Name, REQUEST_LEN};

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;

/// Serves connections to `listen`, and datagrams to each of `udp`: answers leave from the address that was asked.
///
/// # Errors
/// Where an address cannot be listened on.
pub(super) async fn run(name: &str, listen: SocketAddr, udp: &[SocketAddr]) -> anyhow::Result<()> {
    let name = Name::new(name);
    for address in udp {
        let socket = UdpSocket::bind(address)
            .await
            .with_context(|| format!("UDP {address}"))?;
        tokio::spawn(datagrams(socket, name));
    }
    LocalSet::new().run_until(connections(listen, name)).await
}

async fn connections(listen: SocketAddr, name: Name) -> anyhow::Result<()> {
    let socket = if listen.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind(listen).with_context(|| listen.to_string())?;
    // Before anybody can connect, and so before anybody can know that there is somebody to be told.
    let (mut close, mut open) = (
        signal(SignalKind::user_defined1())?,
        signal(SignalKind::user_defined2())?,
    );
    let listener = socket.listen(BACKLOG)?;
    let deaf = Rc::new(Cell::new(false));
    let changed = Rc::new(Notify::new());
    let (fd, told, wake) = (listener.as_raw_fd(), Rc::clone(&deaf), Rc::clone(&changed));
    spawn_local(async move {
        loop {
            let closed = tokio::select! {
                _ = close.recv() => true,
                _ = open.recv() => false,
            };
            // SAFETY: a plain system call on a descriptor that lives as long as the process.
            unsafe { libc::listen(fd, if closed { 0 } else { BACKLOG.cast_signed() }) };
            told.set(closed);
            wake.notify_one();
        }
    });
    accept(&listener, name, &deaf, &changed).await
}

async fn accept(
    listener: &TcpListener,
    name: Name,
    deaf: &Cell<bool>,
    changed: &Notify,
) -> anyhow::Result<()> {
    loop {
        if deaf.get() {
            changed.notified().await;
            continue;
        }
        let stream = tokio::select! {
            // Whoever waits once it is deaf goes on waiting: with nobody accepted, the kernel answers no other.
            biased;
            () = changed.notified() => continue,
            accepted = listener.accept() => accepted,
        };
        if let Ok((stream, _)) = stream {
            // A client that goes away is no concern of the server.
            spawn_local(async move { drop(connection(stream, name).await) });
        }
    }
}

async fn connection(mut stream: TcpStream, name: Name) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut request = [0; REQUEST_LEN];
    let mut count = 0;
    loop {
        stream.read_exact(&mut request).await?;
        if wire::read_request(&request).is_none() {
            return Ok(());
        }
        stream.write_all(&wire::answer(count, name)).await?;
        count += 1;
    }
}

async fn datagrams(socket: UdpSocket, name: Name) {
    let socket = Arc::new(socket);
    let mut request = [0; REQUEST_LEN];
    loop {
        // Errors are ICMP messages about clients that went away.
        let Ok((len, from)) = socket.recv_from(&mut request).await else {
            continue;
        };
        if let Some(sequence) = wire::read_request(&request[..len]) {
            let _ = socket.send_to(&wire::answer(sequence, name), from).await;
        }
    }
}
