//! Probes through the forward path, and connections that a server still holds: none is left there, and those that are
//! (their reset got lost, or an agent was killed in the middle of a probe) do not make it look silent.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read as _};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, ensure};
use etherparse::{PacketBuilder, SlicedPacket, TcpSlice, TransportSlice};
use lb_tests::agent::Agent;
use lb_tests::config::{Config, FAST_CHECK, Family, Service};
use lb_tests::lab::{Host, Lab, LabOptions, VIPS_V4};
use lb_tests::privileged;
use lb_tests::wait::wait_until;
use socket2::{Domain, Protocol, SockAddr, SockFilter, Socket, Type};
use support::World;
use xlb::model::Forward;

const VIP: Ipv4Addr = VIPS_V4[0];
const PORT: u16 = 80;

fn web(lab: &Lab) -> Service {
    Service {
        check: "type = \"tcp\"\n".into(),
        ..Service::http("web", VIP.into(), Forward::DsrL2, Family::V4, &lab.backends)
    }
}

/// A server whose answers are lost keeps what was asked of it half open for a minute. All of it is taken back, so that it
/// has not one SYN to refuse because another connection had its port.
#[test]
fn probes_whose_answers_are_lost_leave_nothing_half_open() -> anyhow::Result<()> {
    privileged!("probes_whose_answers_are_lost_leave_nothing_half_open");
    let World {
        lab,
        servers: _servers,
        ..
    } = World::of(2)?;
    let config = Config {
        check: FAST_CHECK.into(),
        services: vec![web(&lab)],
        ..Config::default()
    };
    let agent = Agent::running(&lab.lb.netns, &config)?;
    let (host, lb) = (&lab.backends[0], lab.lb.v4);
    agent.wait_serving(|_| true)?;
    // Its answers go to itself, where nobody takes them.
    host.netns.ip(&format!("route add {lb}/32 dev lo\n"))?;
    agent.wait_serving(|address| address != host.v4)?;
    let asked = || host.netns.counter("Tcp", "OutSegs");
    let before = asked()?;
    wait_until("more probes", || Ok(asked()? >= before + 10))?;
    // Between two probes there is none.
    wait_until("no connection to be half open", || Ok(half_open(host)? == 0))?;
    host.netns.ip(&format!("route del {lb}/32 dev lo\n"))?;
    agent.wait_serving(|_| true)?;
    // SYNs that came while another connection of the same port was half open, beyond those that the kernel answers
    // (`net.ipv4.tcp_invalid_ratelimit`).
    assert_eq!(host.netns.counter("TcpExt", "TCPACKSkippedSynRecv")?, 0);
    Ok(())
}

/// Connections that wait for the last segment of their handshake.
fn half_open(host: &Host) -> anyhow::Result<usize> {
    const SYN_RECEIVED: &str = "03";
    let table = host
        .netns
        .enter(|| std::fs::read_to_string("/proc/thread-self/net/tcp"))?;
    let state = |line: &&str| line.split_whitespace().nth(3) == Some(SYN_RECEIVED);
    Ok(table.lines().skip(1).filter(state).count())
}

/// A TCP that has a connection of every port already, the next number of which is [`next`], and answers as RFC 9293,
/// section 3.10.7.4 says.
struct Occupied {
    ended: Arc<AtomicUsize>,
    accepted: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
    /// Keeps the kernel from answering.
    _deaf: Socket,
}

/// What the server awaits next of its connection from a port.
fn next(port: u16) -> u32 {
    0xffff_0000 | u32::from(port)
}

impl Occupied {
    fn serve(host: &Host) -> anyhow::Result<Self> {
        let (ended, accepted) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let stop = Arc::new(AtomicBool::new(false));
        let (mut socket, deaf) = host.netns.enter(|| -> anyhow::Result<(Socket, Socket)> {
            let deaf = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            // Classic BPF: return 0 bytes.
            deaf.attach_filter(&[SockFilter::new(6, 0, 0, 0)])?;
            deaf.bind(&SocketAddrV4::new(VIP, PORT).into())?;
            deaf.listen(1)?;
            let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP))?;
            socket.bind(&SocketAddrV4::new(VIP, 0).into())?;
            socket.set_read_timeout(Some(Duration::from_millis(100)))?;
            Ok((socket, deaf))
        })?;
        let counts = (Arc::clone(&ended), Arc::clone(&accepted));
        let until = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let (mut free, mut open) = (BTreeSet::new(), BTreeMap::new());
            let mut buffer = [0; 2048];
            while !until.load(Ordering::Relaxed) {
                let packet = match socket.read(&mut buffer) {
                    Ok(length) => &buffer[..length],
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                        continue;
                    }
                    Err(error) => return Err(error).context("receiving"),
                };
                let sliced = SlicedPacket::from_ip(packet);
                let Ok(Some(TransportSlice::Tcp(tcp))) = sliced.map(|sliced| sliced.transport) else {
                    continue;
                };
                let client = Ipv4Addr::new(packet[12], packet[13], packet[14], packet[15]);
                if tcp.destination_port() != PORT {
                    continue;
                }
                let (port, sequence) = (tcp.source_port(), tcp.sequence_number());
                if tcp.rst() {
                    if sequence == next(port) && free.insert(port) {
                        counts.0.fetch_add(1, Ordering::Relaxed);
                    } else if open.remove(&port) == Some(sequence) {
                        counts.1.fetch_add(1, Ordering::Relaxed);
                    }
                } else if tcp.syn() && free.contains(&port) {
                    open.insert(port, sequence.wrapping_add(1));
                    answer(&socket, client, &tcp, true, sequence.wrapping_add(1))?;
                } else if tcp.syn() {
                    answer(&socket, client, &tcp, false, next(port))?;
                }
            }
            Ok(())
        });
        Ok(Self {
            ended,
            accepted,
            stop,
            thread: Some(thread),
            _deaf: deaf,
        })
    }

    fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    fn finish(mut self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("a thread")?;
        thread.join().expect("the server panicked")
    }
}

impl Drop for Occupied {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(Ok(Err(error))) = self.thread.take().map(JoinHandle::join) {
            eprintln!("the server: {error:#}");
        }
    }
}

/// Sends a segment with ACK, and SYN where the connection is accepted; the kernel puts the IP header before it.
fn answer(
    socket: &Socket,
    client: Ipv4Addr,
    syn: &TcpSlice<'_>,
    accepts: bool,
    acknowledges: u32,
) -> anyhow::Result<()> {
    let ip = PacketBuilder::ipv4(VIP.octets(), client.octets(), 64);
    let tcp = ip.tcp(PORT, syn.source_port(), 7_000_000, 1024).ack(acknowledges);
    let mut packet = Vec::new();
    if accepts { tcp.syn() } else { tcp }.write(&mut packet, &[])?;
    socket.send_to(&packet[20..], &SockAddr::from(SocketAddrV4::new(client, 0)))?;
    Ok(())
}

#[test]
fn a_server_that_holds_earlier_connections_is_not_silent() -> anyhow::Result<()> {
    privileged!("a_server_that_holds_earlier_connections_is_not_silent");
    let lab = Lab::new(LabOptions {
        backends: 1,
        ..LabOptions::default()
    })?;
    let server = Occupied::serve(&lab.backends[0])?;
    let config = Config {
        check: "interval = \"200ms\"\ntimeout = \"200ms\"\nfast_timeout = \"200ms\"\n".into(),
        services: vec![web(&lab)],
        ..Config::default()
    };
    let agent = Agent::running(&lab.lb.netns, &config)?;
    agent.wait_serving(|_| true)?;
    wait_until("probes from many ports", || {
        ensure!(!server.has_ended(), "the server ended");
        Ok(server.ended.load(Ordering::Relaxed) >= 20 && server.accepted.load(Ordering::Relaxed) >= 20)
    })
    .with_context(|| format!("the agent's log:\n{}", agent.log()))?;
    server.finish()
}
