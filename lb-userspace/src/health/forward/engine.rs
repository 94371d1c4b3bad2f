//! The sockets of the forward path: one that sends frames, one a family that hears the answers, one that holds the port.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::sys::socket::{
    self as nix_socket, AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, setsockopt, sockopt,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::segment::{Answer, answer};
use crate::health::socket::watch;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// Who waits for an answer from this address that acknowledges this number.
type Waiting = Arc<Mutex<HashMap<(SocketAddr, u32), oneshot::Sender<bool>>>>;

#[derive(Debug)]
pub(super) struct Engine {
    sender: OwnedFd,
    port: u16,
    _port_holder: OwnedFd,
    waiting: Waiting,
    listeners: [JoinHandle<()>; 2],
}

impl Drop for Engine {
    fn drop(&mut self) {
        for listener in &self.listeners {
            listener.abort();
        }
    }
}

/// An answer that is waited for, until it is dropped.
pub(super) struct Awaited<'e> {
    engine: &'e Engine,
    key: (SocketAddr, u32),
    receiver: oneshot::Receiver<bool>,
}

impl Awaited<'_> {
    /// Whether the connection was accepted.
    pub async fn answer(mut self) -> bool {
        match (&mut self.receiver).await {
            Ok(accepted) => accepted,
            // The listeners end with the engine only.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        lock(&self.engine.waiting).remove(&self.key);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Engine {
    pub fn start() -> io::Result<Self> {
        let (port_holder, port) = hold_port()?;
        let waiting = Waiting::default();
        let listen = |ethertype: u16| -> io::Result<JoinHandle<()>> {
            let socket = watch(listener(ethertype, port)?, Interest::READABLE)?;
            Ok(tokio::spawn(hear(socket, Arc::clone(&waiting))))
        };
        Ok(Self {
            sender: packet_socket(libc::SOCK_RAW)?,
            port,
            _port_holder: port_holder,
            listeners: [listen(ETHERTYPE_IPV4)?, listen(ETHERTYPE_IPV6)?],
            waiting,
        })
    }

    /// The port that probes come from.
    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn expect(&self, from: SocketAddr, acknowledges: u32) -> Awaited<'_> {
        let (sender, receiver) = oneshot::channel();
        let key = (from, acknowledges);
        lock(&self.waiting).insert(key, sender);
        Awaited {
            engine: self,
            key,
            receiver,
        }
    }

    /// Sends a whole frame.
    pub fn send(&self, frame: &[u8], ifindex: u32) -> io::Result<()> {
        let mut destination = link_address(u16::from_be_bytes([frame[12], frame[13]]));
        destination.sll_ifindex = ifindex as i32;
        destination.sll_halen = 6;
        destination.sll_addr[..6].copy_from_slice(&frame[..6]);
        // SAFETY: frame and address are valid for the lengths passed.
        let sent = unsafe {
            libc::sendto(
                self.sender.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                libc::MSG_DONTWAIT,
                (&raw const destination).cast(),
                size_of_val(&destination) as libc::socklen_t,
            )
        };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

/// A port that no connection of this machine has: bound, for both families, and never used.
fn hold_port() -> io::Result<(OwnedFd, u16)> {
    let socket = nix_socket::socket(
        AddressFamily::Inet6,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    setsockopt(&socket, sockopt::Ipv6V6Only, &false)?;
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    nix_socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(any))?;
    let bound: nix_socket::SockaddrIn6 = nix_socket::getsockname(socket.as_raw_fd())?;
    Ok((socket, bound.port()))
}

fn packet_socket(kind: libc::c_int) -> io::Result<OwnedFd> {
    let kind = kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no pointers are passed. Protocol 0: it receives nothing until it is bound to one.
    let socket = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}

fn link_address(ethertype: u16) -> libc::sockaddr_ll {
    // SAFETY: all zeroes is a valid `sockaddr_ll`.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = ethertype.to_be();
    address
}

/// A socket that receives the IP packets of one family that carry TCP to `port`.
fn listener(ethertype: u16, port: u16) -> io::Result<OwnedFd> {
    let socket = packet_socket(libc::SOCK_DGRAM)?;
    let mut filter = filter(ethertype, port);
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the program and its instructions live during the call, which copies them.
    let attached = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of_val(&program) as libc::socklen_t,
        )
    };
    if attached != 0 {
        return Err(io::Error::last_os_error());
    }
    let address = link_address(ethertype);
    // SAFETY: the address is valid for the length passed.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    };
    if bound != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

/// Classic BPF over an IP packet: its protocol is TCP and the destination port `port`; else 0 bytes of it.
fn filter(ethertype: u16, port: u16) -> Vec<libc::sock_filter> {
    let step = |code: u32, jt, jf, k| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let load = libc::BPF_LD | libc::BPF_ABS;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let give = libc::BPF_RET | libc::BPF_K;
    if ethertype == ETHERTYPE_IPV4 {
        vec![
            step(load | libc::BPF_B, 0, 0, 9),
            step(equal, 0, 4, 6),
            step(libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH, 0, 0, 0),
            step(libc::BPF_LD | libc::BPF_H | libc::BPF_IND, 0, 0, 2),
            step(equal, 0, 1, u32::from(port)),
            step(give, 0, 0, u32::from(u16::MAX)),
            step(give, 0, 0, 0),
        ]
    } else {
        vec![
            step(load | libc::BPF_B, 0, 0, 6),
            step(equal, 0, 3, 6),
            step(load | libc::BPF_H, 0, 0, 42),
            step(equal, 0, 1, u32::from(port)),
            step(give, 0, 0, u32::from(u16::MAX)),
            step(give, 0, 0, 0),
        ]
    }
}

/// Hands answers to those who wait for them.
async fn hear(socket: AsyncFd<OwnedFd>, waiting: Waiting) {
    let mut buffer = [0; 256];
    loop {
        let Ok(mut guard) = socket.readable().await else {
            return;
        };
        match nix_socket::recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) => {
                if let Some(Answer {
                    from,
                    acknowledges,
                    accepted,
                }) = answer(&buffer[..length])
                    && let Some(waiter) = lock(&waiting).remove(&(from, acknowledges))
                {
                    // It may have given up just now.
                    let _ = waiter.send(accepted);
                }
                tokio::task::coop::consume_budget().await;
            }
            Err(Errno::EAGAIN) => guard.clear_ready(),
            // An interface that went down: the socket goes on with the others.
            Err(_) => tokio::task::yield_now().await,
        }
    }
}
