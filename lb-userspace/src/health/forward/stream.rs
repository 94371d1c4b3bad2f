//! TCP connections through the forward path, by smoltcp: the kernel would send their segments where its routes lead.
//!
//! A task has the stack of one connection: it takes packets that came for its port, sends those that the stack makes, and
//! moves bytes between the connection and one end of a pipe, whose other end the check talks over. When the check lets go
//! of that, the connection is closed, and reset where the target does not close it as well.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{HardwareAddress, IpCidr, Ipv4Address, Ipv6Address};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::engine::{Event, Session};
use crate::health::probe::Limit;

/// What is received at once at most, and sent.
const RECEIVE_BYTES: usize = 64 * 1024;
const SEND_BYTES: usize = 16 * 1024;

/// How long the target has to close a connection that the check is done with.
const GOODBYE: Duration = Duration::from_millis(200);

/// The packets between the stack and the wire.
struct Wire {
    received: VecDeque<Vec<u8>>,
    sent: Vec<Vec<u8>>,
    mtu: usize,
}

struct Received(Vec<u8>);

struct Sent<'w>(&'w mut Vec<Vec<u8>>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl TxToken for Sent<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        let mut packet = vec![0; length];
        let result = write(&mut packet);
        self.0.push(packet);
        result
    }
}

impl Device for Wire {
    type RxToken<'w> = Received;
    type TxToken<'w> = Sent<'w>;

    fn receive(&mut self, _: StackInstant) -> Option<(Received, Sent<'_>)> {
        let packet = self.received.pop_front()?;
        Some((Received(packet), Sent(&mut self.sent)))
    }

    fn transmit(&mut self, _: StackInstant) -> Option<Sent<'_>> {
        Some(Sent(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        // Packets of this machine's own link may come before their checksums are filled in.
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities
    }
}

/// What became of a SYN.
#[derive(Clone, Copy, Debug)]
pub(super) enum Taken {
    Accepted,
    Refused,
    NotSent,
}

pub(super) type Verdict = oneshot::Receiver<Taken>;

/// Begins a connection from `source` to `service`; `mtu` is that of the packets to it. Gives back whether it is taken, and
/// what to talk over then.
pub(super) fn open(
    session: Session,
    source: SocketAddr,
    service: SocketAddr,
    mtu: u16,
    limit: Limit,
) -> (Verdict, DuplexStream) {
    let (ours, theirs) = tokio::io::duplex(RECEIVE_BYTES);
    let (verdict, decided) = oneshot::channel();
    tokio::spawn(Connection::new(session, source, service, mtu, ours).run(verdict, limit));
    (decided, theirs)
}

struct Connection {
    session: Session,
    wire: Wire,
    stack: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    begun: Instant,
    /// `None`: the check has let go of it.
    from_check: Option<ReadHalf<DuplexStream>>,
    to_check: Option<WriteHalf<DuplexStream>>,
    /// Received, and not taken by the check yet.
    inbound: Vec<u8>,
}

impl Connection {
    fn new(session: Session, source: SocketAddr, service: SocketAddr, mtu: u16, pipe: DuplexStream) -> Self {
        let begun = Instant::now();
        let mut wire = Wire {
            received: VecDeque::new(),
            sent: Vec::new(),
            mtu: mtu.into(),
        };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = rand::random();
        let mut stack = Interface::new(config, &mut wire, StackInstant::ZERO);
        stack.update_ip_addrs(|addresses| {
            let length = if source.is_ipv4() { 32 } else { 128 };
            // There is room for more than one.
            let _ = addresses.push(IpCidr::new(source.ip().into(), length));
        });
        // Everybody is reached over the wire; the address means nothing to it.
        let routes = stack.routes_mut();
        let _ = match source.ip() {
            IpAddr::V4(_) => routes.add_default_ipv4_route(Ipv4Address::UNSPECIFIED),
            IpAddr::V6(_) => routes.add_default_ipv6_route(Ipv6Address::UNSPECIFIED),
        };
        let buffer = |bytes| SocketBuffer::new(vec![0; bytes]);
        let mut socket = Socket::new(buffer(RECEIVE_BYTES), buffer(SEND_BYTES));
        socket.set_nagle_enabled(false);
        // Of a fresh socket and two addresses nothing can be refused.
        let _ = socket.connect(
            stack.context(),
            (service.ip(), service.port()),
            (source.ip(), source.port()),
        );
        let mut sockets = SocketSet::new(Vec::new());
        let handle = sockets.add(socket);
        let (from_check, to_check) = tokio::io::split(pipe);
        Self {
            session,
            wire,
            stack,
            sockets,
            handle,
            begun,
            from_check: Some(from_check),
            to_check: Some(to_check),
            inbound: Vec::new(),
        }
    }

    fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    fn now(&self) -> StackInstant {
        StackInstant::from_micros(self.begun.elapsed().as_micros() as i64)
    }

    /// Lets the stack do what is to be done.
    fn poll(&mut self) -> std::io::Result<()> {
        self.stack.poll(self.now(), &mut self.wire, &mut self.sockets);
        let mut packets = self.wire.sent.drain(..);
        packets.try_for_each(|packet| self.session.send(&packet))
    }

    async fn run(mut self, verdict: oneshot::Sender<Taken>, limit: Limit) {
        let mut verdict = Some(verdict);
        // Whoever talks over the connection gives up at the limit. It must not find it closed instead: that is another
        // result.
        let mut deadline = limit.deadline + GOODBYE;
        let mut buffer = vec![0; SEND_BYTES];
        loop {
            if self.poll().is_err()
                && let Some(verdict) = verdict.take()
            {
                // The check may have given up.
                let _ = verdict.send(Taken::NotSent);
                return;
            }
            match self.socket().state() {
                State::SynSent | State::Listen | State::SynReceived => {}
                state => {
                    if let Some(verdict) = verdict.take() {
                        // The check may have given up.
                        let _ = verdict.send(match state {
                            State::Closed => Taken::Refused,
                            _ => Taken::Accepted,
                        });
                    }
                    if matches!(state, State::Closed | State::TimeWait) {
                        return self.hand_over_rest(deadline).await;
                    }
                }
            }
            self.receive();
            if !self.socket().may_recv() && verdict.is_none() && self.inbound.is_empty() {
                // The target has said all.
                if let Some(mut pipe) = self.to_check.take() {
                    // The other end may be gone.
                    let _ = pipe.shutdown().await;
                }
            }
            let waits = self.stack.poll_delay(self.now(), &self.sockets);
            let waits = waits.map_or(Duration::from_secs(1), |wait| {
                Duration::from_micros(wait.total_micros())
            });
            let room = self.socket().can_send().then(|| {
                let socket = self.sockets.get_mut::<Socket<'static>>(self.handle);
                socket.send_capacity() - socket.send_queue()
            });
            let room = room.unwrap_or(0).min(buffer.len());
            tokio::select! {
                event = self.session.next() => match event {
                    Event::Packet(packet) => self.wire.received.push_back(packet),
                    // The target will not have it.
                    Event::Unreachable => self.socket().abort(),
                },
                read = read(&mut self.from_check, &mut buffer[..room]), if room > 0 && self.from_check.is_some() => {
                    if read == 0 {
                        self.from_check = None;
                        self.socket().close();
                        deadline = deadline.min(Instant::now() + GOODBYE);
                    } else {
                        // There is room.
                        let _ = self.socket().send_slice(&buffer[..read]);
                    }
                }
                written = write(&mut self.to_check, &self.inbound), if !self.inbound.is_empty() => {
                    self.inbound.drain(..written);
                    if written == 0 {
                        self.inbound.clear();
                    }
                }
                () = tokio::time::sleep(waits) => {}
                () = tokio::time::sleep_until(deadline) => break,
            }
        }
        self.socket().abort();
        // A reset that is not sent is not missed.
        let _ = self.poll();
    }

    /// Takes what was received out of the stack, as long as the check keeps up.
    fn receive(&mut self) {
        if self.inbound.is_empty() && self.socket().can_recv() {
            let socket = self.sockets.get_mut::<Socket<'static>>(self.handle);
            let bytes = socket.recv(|bytes| (bytes.len(), bytes.to_vec()));
            self.inbound = bytes.unwrap_or_default();
        }
    }

    /// The connection is over: the check is given what it has not taken yet.
    async fn hand_over_rest(mut self, deadline: Instant) {
        while Instant::now() < deadline {
            self.receive();
            if self.inbound.is_empty() {
                return;
            }
            let written = tokio::time::timeout_at(deadline, write(&mut self.to_check, &self.inbound));
            match written.await {
                Ok(0) | Err(_) => return,
                Ok(written) => drop(self.inbound.drain(..written)),
            }
        }
    }
}

/// How many bytes the check wrote; 0: it has let go.
async fn read(pipe: &mut Option<ReadHalf<DuplexStream>>, buffer: &mut [u8]) -> usize {
    match pipe {
        Some(pipe) => pipe.read(buffer).await.unwrap_or(0),
        None => 0,
    }
}

/// How many bytes the check took; 0: it has let go.
async fn write(pipe: &mut Option<WriteHalf<DuplexStream>>, bytes: &[u8]) -> usize {
    match pipe {
        Some(pipe) => pipe.write(bytes).await.unwrap_or(0),
        None => 0,
    }
}
