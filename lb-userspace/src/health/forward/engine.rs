//! The sockets of the forward path: one that sends frames, one a family that hears the answers, and those that hold ports.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::sys::socket::{self as nix_socket, MsgFlags, setsockopt, sockopt};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::Path;
use super::ports::{BLOCK, Ports};
use super::segment::{self, Answer, Came, Said, answer, came};
use crate::health::socket::watch;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// Of each listener, as the kernel counts: for thousands of answers.
const RECEIVE_BUFFER_BYTES: usize = 8 << 20;

/// Packets that a session has not looked at yet; more are lost, as on any link.
const ROOM: usize = 256;

/// The same of answers to a SYN.
const ROOM_SYN: usize = 8;

/// Who talks with this service, over this protocol, from this port.
pub(super) type Talk = (SocketAddr, u8, u16);

#[derive(Debug)]
pub(super) struct Engine {
    sender: OwnedFd,
    ports: Mutex<Ports>,
    askers: Arc<Askers>,
    listeners: [JoinHandle<()>; 2],
}

/// Those whom packets are for.
#[derive(Debug, Default)]
struct Askers {
    /// From which ports services are sent SYNs that were not answered yet, with the numbers that answers acknowledge. Two
    /// that are under way at one moment have two ports as long as there are some: several backends may be one host, to
    /// which they would be one connection.
    asking: Mutex<HashMap<(SocketAddr, u16), Vec<u32>>>,
    /// Who waits for an answer from this address that acknowledges this number.
    waiting: Mutex<HashMap<(SocketAddr, u32), mpsc::Sender<Said>>>,
    talking: Mutex<HashMap<Talk, mpsc::Sender<Event>>>,
}

/// What came for a session.
#[derive(Debug)]
pub(super) enum Event {
    /// An IP packet from the service to the port.
    Packet(Vec<u8>),
    /// An ICMP error about a packet of the session: it did not arrive.
    Unreachable,
}

/// A port of our own, and what comes for it from one service.
#[derive(Debug)]
pub(super) struct Session {
    engine: Arc<Engine>,
    talk: Talk,
    events: mpsc::Receiver<Event>,
    path: Path,
}

impl Session {
    /// `None`: all ports are in use with this service. Others may have the same ones.
    pub fn open(engine: &Arc<Engine>, service: SocketAddr, protocol: u8, path: Path) -> Option<Self> {
        let (sender, events) = mpsc::channel(ROOM);
        let mut talking = lock(&engine.askers.talking);
        let in_use = |port| talking.contains_key(&(service, protocol, port));
        let port = lock(&engine.ports).take(in_use)?;
        let talk = (service, protocol, port);
        talking.insert(talk, sender);
        drop(talking);
        Some(Self {
            engine: Arc::clone(engine),
            talk,
            events,
            path,
        })
    }

    pub fn port(&self) -> u16 {
        self.talk.2
    }

    /// Sends an IP packet to the service, through the path.
    pub fn send(&self, packet: &[u8]) -> io::Result<()> {
        let Path {
            forward,
            hop,
            backend,
        } = &self.path;
        let frame = segment::carry(packet, *forward, hop, *backend);
        // The families were compared when the session was opened.
        let frame = frame.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        self.engine.send(&frame, hop.ifindex)
    }

    pub async fn next(&mut self) -> Event {
        match self.events.recv().await {
            Some(event) => event,
            // The sender is taken away with us only.
            None => std::future::pending().await,
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        lock(&self.engine.askers.talking).remove(&self.talk);
    }
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
    service: SocketAddr,
    /// Where the SYN has to come from.
    pub port: u16,
    acknowledges: u32,
    receiver: mpsc::Receiver<Said>,
}

impl Awaited<'_> {
    /// The next one: acceptance and refusal are the last.
    pub async fn answer(&mut self) -> Said {
        match self.receiver.recv().await {
            Some(said) => said,
            // The sender is taken away with us, or with the last answer.
            None => std::future::pending().await,
        }
    }
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        let askers = &self.engine.askers;
        lock(&askers.waiting).remove(&(self.service, self.acknowledges));
        if let Entry::Occupied(mut numbers) = lock(&askers.asking).entry((self.service, self.port)) {
            numbers.get_mut().retain(|number| *number != self.acknowledges);
            if numbers.get().is_empty() {
                numbers.remove();
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Engine {
    pub fn start() -> io::Result<Self> {
        let ports = Ports::take_block()?;
        let first_port = ports.first();
        let askers = Arc::<Askers>::default();
        let listen = |ethertype: u16| -> io::Result<JoinHandle<()>> {
            let socket = watch(listener(ethertype, first_port)?, Interest::READABLE)?;
            Ok(tokio::spawn(hear(socket, Arc::clone(&askers))))
        };
        Ok(Self {
            sender: packet_socket(libc::SOCK_RAW)?,
            ports: Mutex::new(ports),
            listeners: [listen(ETHERTYPE_IPV4)?, listen(ETHERTYPE_IPV6)?],
            askers,
        })
    }

    /// A port for a SYN to `service` that no connection follows, and the answers to it, the last of which acknowledges this
    /// number.
    pub fn expect(&self, service: SocketAddr, acknowledges: u32) -> Awaited<'_> {
        let mut asking = lock(&self.askers.asking);
        let port = lock(&self.ports).for_syn(rand::random(), |port| asking.contains_key(&(service, port)));
        asking.entry((service, port)).or_default().push(acknowledges);
        drop(asking);
        let (sender, receiver) = mpsc::channel(ROOM_SYN);
        let waiting = (service, acknowledges);
        lock(&self.askers.waiting).insert(waiting, sender);
        Awaited {
            engine: self,
            service,
            port,
            acknowledges,
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

/// Lets the socket receive what the program of classic BPF says.
pub(super) fn filter_with(socket: &impl AsFd, filter: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: the program and its instructions live during the call, which copies and does not change them.
    let attached = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of_val(&program) as libc::socklen_t,
        )
    };
    if attached != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A socket that receives the IP packets of one family that carry TCP or UDP to a port of our block, and those that
/// say that something was unreachable.
fn listener(ethertype: u16, first_port: u16) -> io::Result<OwnedFd> {
    let socket = packet_socket(libc::SOCK_DGRAM)?;
    filter_with(&socket, &filter(ethertype, first_port))?;
    // Answers to all probes wait here while others have the processor: one that is lost is silence. More than the usual
    // limit takes a right that the agent has; without it the limit is what we get.
    if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES).is_err() {
        setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER_BYTES)?;
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

/// Classic BPF over an IP packet: what [`listener`] lets through, whole; else 0 bytes of it.
fn filter(ethertype: u16, first_port: u16) -> Vec<libc::sock_filter> {
    let step = |code: u32, jt, jf, k| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let load = libc::BPF_LD | libc::BPF_ABS;
    let load_behind = libc::BPF_LD | libc::BPF_IND;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let give = libc::BPF_RET | libc::BPF_K;
    // The length of the header goes to X: it varies in one family, and is loaded as a constant in the other.
    let (protocol_at, header, icmp, unreachable) = if ethertype == ETHERTYPE_IPV4 {
        (
            9,
            step(libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH, 0, 0, 0),
            1,
            3,
        )
    } else {
        (
            6,
            step(libc::BPF_LDX | libc::BPF_W | libc::BPF_IMM, 0, 0, 40),
            58,
            1,
        )
    };
    vec![
        header,
        step(load | libc::BPF_B, 0, 0, protocol_at),
        step(equal, 2, 0, segment::TCP.into()),
        step(equal, 1, 0, segment::UDP.into()),
        step(equal, 3, 6, icmp),
        step(load_behind | libc::BPF_H, 0, 0, 2),
        step(
            libc::BPF_ALU | libc::BPF_AND | libc::BPF_K,
            0,
            0,
            (!(BLOCK - 1)).into(),
        ),
        step(equal, 2, 3, first_port.into()),
        step(load_behind | libc::BPF_B, 0, 0, 0),
        step(equal, 0, 1, unreachable),
        step(give, 0, 0, u32::MAX),
        step(give, 0, 0, 0),
    ]
}

/// Hands what came to those who wait for it.
async fn hear(socket: AsyncFd<OwnedFd>, askers: Arc<Askers>) {
    // Segments may come put together to more than one packet of the link.
    let mut buffer = vec![0; 1 << 16];
    loop {
        let Ok(mut guard) = socket.readable().await else {
            return;
        };
        match nix_socket::recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) => {
                askers.hand_over(&buffer[..length]);
                tokio::task::coop::consume_budget().await;
            }
            Err(Errno::EAGAIN) => guard.clear_ready(),
            // An interface that went down: the socket goes on with the others.
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

impl Askers {
    fn hand_over(&self, packet: &[u8]) {
        let (talk, event) = match came(packet) {
            Some(Came::For(talk)) => (talk, Event::Packet(packet.to_vec())),
            Some(Came::Unreachable(talk)) => (talk, Event::Unreachable),
            None => return,
        };
        if let Some(session) = lock(&self.talking).get(&talk) {
            // What there is no room for is lost.
            let _ = session.try_send(event);
            return;
        }
        let Some(answer) = answer(packet) else { return };
        if matches!(answer.said, Said::Connected(_)) {
            return self.tell_of_another(&answer);
        }
        let waiter = lock(&self.waiting).remove(&(answer.from, answer.acknowledges));
        match waiter {
            // It may have given up just now.
            Some(waiter) => drop(waiter.try_send(answer.said)),
            None if answer.said == Said::Accepted => self.tell_of_another(&answer),
            // That other connection is over.
            None => {}
        }
    }

    /// A server that answers for another connection of a port does not answer the SYN from it. Where several share the port,
    /// nobody knows whose server it is: to the others it makes no difference.
    fn tell_of_another(&self, answer: &Answer) {
        let asking = lock(&self.asking).get(&(answer.from, answer.to)).cloned();
        let waiting = lock(&self.waiting);
        for acknowledges in asking.unwrap_or_default() {
            if let Some(waiter) = waiting.get(&(answer.from, acknowledges)) {
                let _ = waiter.try_send(Said::Connected(answer.acknowledges));
            }
        }
    }
}
