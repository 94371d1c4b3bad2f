//! Probes through the path that traffic takes: `via = "forward"`.
//!
//! What is asked goes to the service address as the program sends a client's packets there: to the next hop's MAC
//! (`dsr-l2`), or with the outer header too (`dsr-ipip`). A backend that does not hold the address, or does not take the
//! outer header off, does not answer. The answer comes straight from the service address to an address of this machine,
//! as it would to any client. A `tcp` probe is a SYN, and a reset along the same path that ends the connection before the
//! program behind it sees it; other checks talk over a connection of their own ([`stream`]).
//!
//! The kernel cannot do this for us: the service address may be its own, and it has no route by backend. So frames are
//! sent and received as they are (`AF_PACKET`, `CAP_NET_RAW`). Nothing is installed in the kernel but sockets, which end
//! with the process. Ports are held by sockets that receive nothing ([`ports`]); a filter in the kernel lets nothing but
//! packets to them through. Answers to `tcp` probes are told apart by the number they acknowledge, 32 random bits
//! a probe.
//!
//! What it does not see: the program itself (loaded, attached, its tables); that is what `status` and the counters show.

mod engine;
mod ports;
mod segment;
mod stream;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::DuplexStream;
use tokio::sync::{OnceCell, watch};

use self::engine::{Engine, Event, Session};
use self::segment::{RST, SYN, Said, Segment};
use self::stream::Taken;
use super::probe::{Limit, Outcome, Probe};
use super::socket::describe;
use crate::model::{CheckCode, Forward};
use crate::net::{NextHop, NextHops, Unresolved};

/// Sends probes through the forward path.
#[derive(Debug)]
pub struct Forwarder {
    hops: watch::Receiver<Arc<NextHops>>,
    /// The last next hop of each backend that was known.
    known: Mutex<BTreeMap<IpAddr, NextHop>>,
    /// Made for the first probe: who has none needs no rights.
    engine: OnceCell<Arc<Engine>>,
}

impl Forwarder {
    /// `hops`: the ways to the backends, as they are known at any moment.
    #[must_use]
    pub fn new(hops: watch::Receiver<Arc<NextHops>>) -> Self {
        Self {
            hops,
            known: Mutex::default(),
            engine: OnceCell::new(),
        }
    }

    /// Asks the backend at the address of `probe` whether it takes connections to `service`.
    pub(super) async fn check(
        &self,
        service: SocketAddr,
        forward: Forward,
        probe: &Probe,
        limit: Limit,
    ) -> Outcome {
        match self.way(service, forward, probe).await {
            Ok((engine, path, source)) => ask(&engine, source, service, &path, limit).await,
            Err(outcome) => outcome,
        }
    }

    /// Connects to `service` at the backend with the address of `probe`.
    pub(super) async fn connect(
        &self,
        service: SocketAddr,
        forward: Forward,
        probe: &Probe,
        limit: Limit,
    ) -> Result<DuplexStream, Outcome> {
        let (engine, path, source) = self.way(service, forward, probe).await?;
        let mtu = u16::try_from(path.hop.mtu).unwrap_or(u16::MAX);
        let mtu = mtu.saturating_sub(segment::overhead(forward, path.backend));
        let session = Session::open(&engine, service, segment::TCP, path).ok_or_else(no_port)?;
        let source = SocketAddr::new(source, session.port());
        let (verdict, stream) = stream::open(session, source, service, mtu, limit);
        let taken = limit.run(verdict, CheckCode::L4tout, SILENT).await?;
        match taken {
            Ok(Taken::Accepted) => Ok(stream),
            Ok(Taken::Refused) => Err(Outcome::new(CheckCode::L4con, REFUSED)),
            Ok(Taken::NotSent) => Err(Outcome::new(CheckCode::Sockerr, "cannot send the SYN")),
            // It gave up before us.
            Err(_) => Err(limit.late(CheckCode::L4tout, SILENT)),
        }
    }

    /// Sends a datagram to `service` at the backend with the address of `probe`.
    pub(super) async fn ask(
        &self,
        service: SocketAddr,
        forward: Forward,
        probe: &Probe,
        data: &[u8],
    ) -> Result<Datagrams, Outcome> {
        let (engine, path, source) = self.way(service, forward, probe).await?;
        let session = Session::open(&engine, service, segment::UDP, path).ok_or_else(no_port)?;
        let source = SocketAddr::new(source, session.port());
        let packet = segment::datagram(source, service, data)
            .ok_or_else(|| Outcome::new(CheckCode::Sockerr, "the datagram is too long"))?;
        session.send(&packet).map_err(|error| not_sent(&error))?;
        Ok(Datagrams(session))
    }

    /// What packets to a backend are sent with, and the address that they come from.
    async fn way(
        &self,
        service: SocketAddr,
        forward: Forward,
        probe: &Probe,
    ) -> Result<(Arc<Engine>, Path, IpAddr), Outcome> {
        let backend = probe.address.ip();
        let hop = self.hop(backend)?;
        let source = probe.source.unwrap_or(hop.source);
        if source.is_ipv4() != service.is_ipv4() || source == service.ip() {
            return Err(Outcome::new(
                CheckCode::Sockerr,
                format!(
                    "the check needs a `source` to ask {} from, not {source}",
                    service.ip()
                ),
            ));
        }
        let start = || async { Engine::start().map(Arc::new) };
        match self.engine.get_or_try_init(start).await {
            Ok(engine) => {
                let path = Path {
                    forward,
                    hop,
                    backend,
                };
                Ok((Arc::clone(engine), path, source))
            }
            Err(error) => Err(Outcome::new(
                CheckCode::Sockerr,
                format!("cannot send and receive frames: {}", describe(&error)),
            )),
        }
    }

    /// Where probes of a backend go. One whose neighbour entry failed is asked where it was last: traffic goes there too as
    /// long as our own link may be at fault, and when that returns, entries come back one after the other; a backend
    /// is not silent because its entry is the last.
    fn hop(&self, backend: IpAddr) -> Result<NextHop, Outcome> {
        let hops = self.hops.borrow();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match hops.get(&backend) {
            Some(Ok(hop)) => {
                if known.get(&backend) != Some(hop) {
                    known.insert(backend, hop.clone());
                    if known.len() > hops.len() {
                        known.retain(|backend, _| hops.contains_key(backend));
                    }
                }
                Ok(hop.clone())
            }
            // Nobody there answers.
            Some(Err(error @ Unresolved::NoNeighbor { .. })) => match known.get(&backend) {
                Some(hop) => Ok(hop.clone()),
                None => Err(Outcome::new(CheckCode::L4tout, format!("no next hop: {error}"))),
            },
            Some(Err(error)) => Err(Outcome::new(CheckCode::Sockerr, format!("no next hop: {error}"))),
            None => Err(Outcome::new(CheckCode::Sockerr, "its next hop is not known yet")),
        }
    }
}

/// How packets get to a backend.
#[derive(Clone, Debug)]
struct Path {
    forward: Forward,
    hop: NextHop,
    backend: IpAddr,
}

/// Datagrams that come back from a service.
pub(super) struct Datagrams(Session);

impl Datagrams {
    /// The next one; of a longer one what fits into `buffer`.
    pub async fn recv(&mut self, buffer: &mut [u8]) -> Result<usize, Outcome> {
        loop {
            let packet = match self.0.next().await {
                Event::Packet(packet) => packet,
                Event::Unreachable => return Err(Outcome::new(CheckCode::L4con, REFUSED)),
            };
            if let Some(data) = segment::data(&packet) {
                let length = data.len().min(buffer.len());
                buffer[..length].copy_from_slice(&data[..length]);
                return Ok(length);
            }
        }
    }
}

const REFUSED: &str = "connection refused";
const SILENT: &str = "no answer to the SYN through the forward path";

fn not_sent(error: &std::io::Error) -> Outcome {
    Outcome::new(CheckCode::Sockerr, format!("cannot send: {}", describe(error)))
}

fn no_port() -> Outcome {
    Outcome::new(CheckCode::Sockerr, "no port is left to ask from")
}

/// Sends a SYN, and takes back what it began. Where the server still has an earlier connection from the same port, whose
/// reset got lost, that is ended first, and the SYN sent again, as any TCP does (RFC 9293, section 3.5.1).
async fn ask(engine: &Engine, source: IpAddr, service: SocketAddr, path: &Path, limit: Limit) -> Outcome {
    let sequence: u32 = rand::random();
    let mut awaited = engine.expect(service, sequence.wrapping_add(1));
    let syn = Segment {
        source: SocketAddr::new(source, awaited.port),
        destination: service,
        sequence,
        flags: SYN,
    };
    let reset = |sequence| Segment {
        sequence,
        flags: RST,
        ..syn
    };
    if let Err(outcome) = path.send(engine, &syn) {
        return outcome;
    }
    let mut opened = Opened {
        engine,
        path,
        reset: Some(reset(sequence.wrapping_add(1))),
    };
    let mut earlier = 0;
    loop {
        match limit.run(awaited.answer(), CheckCode::L4tout, SILENT).await {
            Err(late) => return late,
            Ok(Said::Accepted) => {
                return Outcome::new(CheckCode::L4ok, "connected through the forward path");
            }
            Ok(Said::Refused) => {
                opened.reset = None;
                return Outcome::new(CheckCode::L4con, REFUSED);
            }
            // Of a server that has no such connection, both are ignored.
            Ok(Said::Connected(next)) if earlier < EARLIER_AT_MOST => {
                earlier += 1;
                for segment in [reset(next), syn] {
                    if let Err(outcome) = path.send(engine, &segment) {
                        return outcome;
                    }
                }
            }
            Ok(Said::Connected(_)) => {}
        }
    }
}

/// So many earlier connections of a port are ended for one probe.
const EARLIER_AT_MOST: u32 = 4;

/// A connection that the server has for all we know: it ends with this, also where its answer is late or nobody waits for
/// it any longer. One that is left half open is answered for in the place of the next from the same port.
struct Opened<'p> {
    engine: &'p Engine,
    path: &'p Path,
    reset: Option<Segment>,
}

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        if let Some(reset) = &self.reset {
            // Where it gets lost, the next from this port ends it.
            let _ = self.path.send(self.engine, reset);
        }
    }
}

impl Path {
    fn send(&self, engine: &Engine, segment: &Segment) -> Result<(), Outcome> {
        let Self {
            forward,
            hop,
            backend,
        } = self;
        let Some(frame) = segment::frame(segment, *forward, hop, *backend) else {
            let service = segment.destination;
            return Err(Outcome::new(
                CheckCode::Sockerr,
                format!("{backend} cannot be sent packets of {service}"),
            ));
        };
        engine.send(&frame, hop.ifindex).map_err(|error| not_sent(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::neighbor::NeighborState;

    #[test]
    fn a_backend_whose_neighbour_entry_failed_is_asked_where_it_was() {
        let backend: IpAddr = "10.0.0.1".parse().unwrap();
        let hop = NextHop {
            ifindex: 2,
            interface: "eth0".to_owned(),
            below: None,
            destination_mac: [2, 0, 0, 0, 0, 1],
            source_mac: [2, 0, 0, 0, 0, 2],
            source: "10.0.0.9".parse().unwrap(),
            gateway: None,
            mtu: 1500,
        };
        let failed = || {
            Err(Unresolved::NoNeighbor {
                address: backend,
                interface: "eth0".to_owned(),
                state: NeighborState::Failed,
            })
        };
        let (tell, hops) = watch::channel(Arc::new(NextHops::from([(backend, failed())])));
        let forwarder = Forwarder::new(hops);
        assert_eq!(forwarder.hop(backend).unwrap_err().code, CheckCode::L4tout);
        tell.send(Arc::new(NextHops::from([(backend, Ok(hop.clone()))])))
            .unwrap();
        assert_eq!(forwarder.hop(backend).unwrap(), hop);
        tell.send(Arc::new(NextHops::from([(backend, failed())])))
            .unwrap();
        assert_eq!(forwarder.hop(backend).unwrap(), hop);
    }
}
