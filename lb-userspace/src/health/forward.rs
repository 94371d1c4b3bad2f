//! Probes through the path that traffic takes: `via = "forward"` of a `tcp` check.
//!
//! A SYN to the service address is sent as the program sends a client's: to the next hop's MAC (`dsr-l2`), or with the
//! outer header too (`dsr-ipip`). A backend that does not hold the address, or does not take the outer header off, does
//! not answer. The answer comes straight from the service address to an address of this machine, as it would to any
//! client; a reset along the same path ends the connection before the program behind it sees it.
//!
//! The kernel cannot do this for us: the service address may be its own, and it has no route by backend. So frames are
//! sent and received as they are (`AF_PACKET`, `CAP_NET_RAW`). Nothing is installed in the kernel but sockets, which end
//! with the process. One port is held by a socket that is bound and no more, so that no connection of this machine
//! has it; answers are told apart by the number they acknowledge, 32 random bits a probe. A filter in the kernel lets
//! nothing but segments to that port through.
//!
//! What it does not see: the program itself (loaded, attached, its tables); that is what `status` and the counters show.

mod engine;
mod segment;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tokio::sync::{OnceCell, watch};

use self::engine::Engine;
use self::segment::{RST, SYN, Segment};
use super::probe::{Limit, Outcome, Probe};
use super::socket::describe;
use crate::model::{CheckCode, Forward};
use crate::net::{NextHop, NextHops, Unresolved};

/// Sends probes through the forward path.
#[derive(Debug)]
pub struct Forwarder {
    hops: watch::Receiver<Arc<NextHops>>,
    /// Made for the first probe: who has none needs no rights.
    engine: OnceCell<Engine>,
}

impl Forwarder {
    /// `hops`: the ways to the backends, as they are known at any moment.
    #[must_use]
    pub fn new(hops: watch::Receiver<Arc<NextHops>>) -> Self {
        Self {
            hops,
            engine: OnceCell::new(),
        }
    }

    /// Asks the backend at the address of `probe` for a connection to `service`.
    pub(super) async fn check(
        &self,
        service: SocketAddr,
        forward: Forward,
        probe: &Probe,
        limit: Limit,
    ) -> Outcome {
        let backend = probe.address.ip();
        let hop = match self.hop(backend) {
            Ok(hop) => hop,
            Err(outcome) => return outcome,
        };
        let source = probe.source.unwrap_or(hop.source);
        if source.is_ipv4() != service.is_ipv4() || source == service.ip() {
            return Outcome::new(
                CheckCode::Sockerr,
                format!(
                    "the check needs a `source` to ask {} from, not {source}",
                    service.ip()
                ),
            );
        }
        let engine = self.engine.get_or_try_init(|| async { Engine::start() }).await;
        let engine = match engine {
            Ok(engine) => engine,
            Err(error) => {
                return Outcome::new(
                    CheckCode::Sockerr,
                    format!("cannot send and receive frames: {}", describe(&error)),
                );
            }
        };
        let segment = Segment {
            source: SocketAddr::new(source, engine.port()),
            destination: service,
            sequence: rand::random(),
            flags: SYN,
        };
        ask(engine, &segment, forward, &hop, backend, limit).await
    }

    fn hop(&self, backend: IpAddr) -> Result<NextHop, Outcome> {
        match self.hops.borrow().get(&backend) {
            Some(Ok(hop)) => Ok(hop.clone()),
            // Nobody there answers.
            Some(Err(error @ Unresolved::NoNeighbor { .. })) => {
                Err(Outcome::new(CheckCode::L4tout, format!("no next hop: {error}")))
            }
            Some(Err(error)) => Err(Outcome::new(CheckCode::Sockerr, format!("no next hop: {error}"))),
            None => Err(Outcome::new(CheckCode::Sockerr, "its next hop is not known yet")),
        }
    }
}

async fn ask(
    engine: &Engine,
    segment: &Segment,
    forward: Forward,
    hop: &NextHop,
    backend: IpAddr,
    limit: Limit,
) -> Outcome {
    let send = |segment: &Segment| -> Result<(), Outcome> {
        let Some(frame) = segment::frame(segment, forward, hop, backend) else {
            return Err(Outcome::new(
                CheckCode::Sockerr,
                format!("{backend} cannot be sent packets of {}", segment.destination),
            ));
        };
        engine
            .send(&frame, hop.ifindex)
            .map_err(|error| Outcome::new(CheckCode::Sockerr, format!("cannot send: {}", describe(&error))))
    };
    let awaited = engine.expect(segment.destination, segment.sequence.wrapping_add(1));
    if let Err(outcome) = send(segment) {
        return outcome;
    }
    let accepted = limit
        .run(
            awaited.answer(),
            CheckCode::L4tout,
            "no answer to the SYN through the forward path",
        )
        .await;
    match accepted {
        Err(late) => late,
        Ok(false) => Outcome::new(CheckCode::L4con, "connection refused"),
        Ok(true) => {
            // An answer was there: what becomes of the reset changes nothing.
            let _ = send(&Segment {
                sequence: segment.sequence.wrapping_add(1),
                flags: RST,
                ..*segment
            });
            Outcome::new(CheckCode::L4ok, "connected through the forward path")
        }
    }
}
