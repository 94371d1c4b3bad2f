//! A client with one UDP flow.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio::time::{sleep, timeout};

use super::registry::{Live, Open, Registry};
use super::{Habit, Target, leaves};
use crate::lab::ledger::{Cause, End};
use crate::lab::wire::{self, ANSWER_LEN, Name};
use crate::model::Protocol;

/// What one answer may take; a datagram can be lost.
const ANSWER_LIMIT: Duration = Duration::from_millis(500);
/// Requests in a row without an answer that end the flow.
const PATIENCE: u32 = 10;

pub async fn client(registry: &Registry, service: usize, target: &Target, habit: Habit) {
    let at = Instant::now();
    let Ok((socket, port)) = connected(SocketAddr::new(target.key.address, target.key.port)).await else {
        return;
    };
    let mut sequence = 0;
    let first = ask(&socket, &mut sequence).await;
    registry.opened(Open {
        service,
        port,
        at,
        backend: first,
    });
    let Some(backend) = first else { return };
    let living = registry.lives(Live {
        service,
        port,
        backend,
    });
    registry.answered();
    let (leaves, mut last_answer) = (leaves(habit), Instant::now());
    let cause = loop {
        if registry.stopped() || leaves.is_some_and(|at| Instant::now() >= at) {
            break None;
        }
        sleep(target.pause(habit)).await;
        match ask(&socket, &mut sequence).await {
            Some(name) if name == backend => {
                registry.answered();
                last_answer = Instant::now();
            }
            Some(_) => break Some(Cause::WrongServer),
            None => break Some(Cause::Timeout),
        }
    };
    drop(living);
    if let Some(cause) = cause {
        registry.ended(End {
            service,
            protocol: Protocol::Udp,
            port,
            backend,
            last_answer,
            ended: Instant::now(),
            cause,
        });
    }
}

async fn connected(to: SocketAddr) -> io::Result<(UdpSocket, u16)> {
    let any = if to.is_ipv4() {
        SocketAddr::from(([0; 4], 0))
    } else {
        SocketAddr::from(([0_u16; 8], 0))
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(to).await?;
    let port = socket.local_addr()?.port();
    Ok((socket, port))
}

/// Who answers a request, which is repeated with another number where no answer comes.
async fn ask(socket: &UdpSocket, sequence: &mut u64) -> Option<Name> {
    for _ in 0..PATIENCE {
        *sequence += 1;
        // Errors are ICMP messages about earlier datagrams.
        let _ = socket.send(&wire::request(*sequence)).await;
        if let Ok(Some(name)) = timeout(ANSWER_LIMIT, answer(socket, *sequence)).await {
            return Some(name);
        }
    }
    None
}

async fn answer(socket: &UdpSocket, sequence: u64) -> Option<Name> {
    let mut bytes = [0; ANSWER_LEN];
    loop {
        match socket.recv(&mut bytes).await {
            Ok(len) => match wire::read_answer(&bytes[..len]) {
                Some((number, name)) if number == sequence => return Some(name),
                // A late answer to an earlier one.
                _ => {}
            },
            Err(_) => {
                // Refused: the server is not there; not asked again at once.
                sleep(ANSWER_LIMIT).await;
                return None;
            }
        }
    }
}
