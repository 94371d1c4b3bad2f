//! A client with one connection.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};

use super::registry::{Live, Open, Registry};
use super::{Habit, Target, leaves};
use crate::lab::ledger::{Cause, End};
use crate::lab::wire::{self, ANSWER_LEN, Name};
use crate::model::Protocol;

/// What the handshake and the first answer may take together; two SYNs may be lost.
const OPEN_LIMIT: Duration = Duration::from_secs(5);
/// What an answer may take: TCP repeats itself several times within it.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

pub async fn client(registry: &Registry, service: usize, target: &Target, habit: Habit) {
    let at = Instant::now();
    let to = SocketAddr::new(target.key.address, target.key.port);
    let Ok((socket, port)) = bound(to) else { return };
    let first = timeout(OPEN_LIMIT, async {
        let mut stream = socket.connect(to).await.map_err(|_| Cause::Reset)?;
        let _ = stream.set_nodelay(true);
        let name = exchange(&mut stream, 0, None).await?;
        Ok::<_, Cause>((stream, name))
    });
    let opened = first.await.ok().and_then(Result::ok);
    registry.opened(Open {
        service,
        port,
        at,
        backend: opened.as_ref().map(|(_, name)| *name),
    });
    let Some((mut stream, backend)) = opened else {
        return;
    };
    let living = registry.lives(Live {
        service,
        port,
        backend,
    });
    registry.answered();
    let mut last_answer = Instant::now();
    let end = converse(registry, &mut stream, target, habit, backend, &mut last_answer);
    let cause = end.await;
    drop(living);
    if let Some(cause) = cause {
        registry.ended(End {
            service,
            protocol: Protocol::Tcp,
            port,
            backend,
            last_answer,
            ended: Instant::now(),
            cause,
        });
    }
}

/// A socket whose port is known although it may never be connected.
fn bound(to: SocketAddr) -> std::io::Result<(TcpSocket, u16)> {
    let socket = match to {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    let any = match to {
        SocketAddr::V4(_) => SocketAddr::from(([0; 4], 0)),
        SocketAddr::V6(_) => SocketAddr::from(([0_u16; 8], 0)),
    };
    socket.bind(any)?;
    let port = socket.local_addr()?.port();
    Ok((socket, port))
}

/// Until the client leaves (`None`) or the connection ends.
async fn converse(
    registry: &Registry,
    stream: &mut TcpStream,
    target: &Target,
    habit: Habit,
    backend: Name,
    last_answer: &mut Instant,
) -> Option<Cause> {
    let leaves = leaves(habit);
    let mut count = 1;
    while !registry.stopped() && leaves.is_none_or(|at| Instant::now() < at) {
        if let Err(cause) = rest(stream, target.pause(habit)).await {
            return Some(cause);
        }
        match timeout(ANSWER_LIMIT, exchange(stream, count, Some(backend))).await {
            Ok(Ok(_)) => {
                registry.answered();
                *last_answer = Instant::now();
                count += 1;
            }
            Ok(Err(cause)) => return Some(cause),
            Err(_) => return Some(Cause::Timeout),
        }
    }
    None
}

/// Idle, but the end of the connection is noticed.
async fn rest(stream: &TcpStream, pause: Duration) -> Result<(), Cause> {
    let noticed = async {
        loop {
            if stream.readable().await.is_err() {
                return Cause::Reset;
            }
            match stream.try_read(&mut [0]) {
                Ok(0) => return Cause::Reset,
                Ok(_) => return Cause::Sequence,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return Cause::Reset,
            }
        }
    };
    tokio::select! {
        () = sleep(pause) => Ok(()),
        cause = noticed => Err(cause),
    }
}

/// One request and its answer, which must be by `expected` and have the right number.
async fn exchange(stream: &mut TcpStream, count: u64, expected: Option<Name>) -> Result<Name, Cause> {
    let mut answer = [0; ANSWER_LEN];
    stream
        .write_all(&wire::request(count))
        .await
        .map_err(|_| Cause::Reset)?;
    stream.read_exact(&mut answer).await.map_err(|_| Cause::Reset)?;
    let (number, name) = wire::read_answer(&answer).ok_or(Cause::Sequence)?;
    match expected {
        Some(expected) if expected != name => Err(Cause::WrongServer),
        _ if number != count => Err(Cause::Sequence),
        _ => Ok(name),
    }
}
