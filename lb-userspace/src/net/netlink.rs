//! A connection to the kernel's routing socket (rtnetlink(7)): requests with a deadline, and events.
//!
//! A netlink socket loses answers when its buffer overflows, and the caller of the crate underneath
//! would then wait for ever. Every request made here therefore ends, at the latest after
//! [`REQUEST_DEADLINE`].

use std::io;
use std::time::Duration;

use futures::channel::mpsc::UnboundedReceiver;
use futures::{Stream, StreamExt, TryStreamExt};
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::packet_core::NetlinkMessage;
use rtnetlink::sys::{AsyncSocket, SocketAddr};
use rtnetlink::{Handle, MulticastGroup};

/// How long a request may take. The kernel answers within microseconds; dumps of very large tables
/// within tens of milliseconds.
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(2);

/// How long to wait before a broken connection is made again.
pub(crate) const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Room for events that have not been read yet. A routing daemon that loads a full table sends
/// hundreds of thousands; those that find no room cost one full look at the tables, not more.
const EVENT_BUFFER_BYTES: u32 = 1 << 20;

/// Why the kernel could not be asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetlinkError {
    #[error("cannot open a netlink socket: {0}")]
    Open(String),
    #[error("the kernel refused to {request}: {}", io::Error::from_raw_os_error(*errno))]
    Refused { request: &'static str, errno: i32 },
    #[error("the kernel gave no answer when asked to {request}")]
    NoAnswer { request: &'static str },
    #[error("the netlink socket broke when the kernel was asked to {request}")]
    Broken { request: &'static str },
}

impl NetlinkError {
    /// The error number of the kernel's refusal.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            Self::Open(_) | Self::NoAnswer { .. } | Self::Broken { .. } => None,
        }
    }
}

/// Events of the groups asked for, in the order the kernel sent them.
pub(crate) type Events = UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

/// A connection for requests. Clones share it; it ends with the last one.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: Handle,
}

impl Netlink {
    /// Opens a connection. Must be called within a tokio runtime, which drives it.
    ///
    /// # Errors
    /// [`NetlinkError::Open`] if the process may have no more files, or no netlink sockets.
    pub fn open() -> Result<Self, NetlinkError> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|error| NetlinkError::Open(error.to_string()))?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }
}

/// Opens a connection that receives what happens in `groups`. The stream ends when the socket breaks.
pub(crate) fn watch(groups: &[MulticastGroup]) -> Result<Events, NetlinkError> {
    let (mut connection, _, events) =
        rtnetlink::new_multicast_connection(groups).map_err(|error| NetlinkError::Open(error.to_string()))?;
    if let Err(error) = connection
        .socket_mut()
        .socket_mut()
        .set_rx_buf_sz(EVENT_BUFFER_BYTES)
    {
        log::debug!("netlink events keep the default buffer: {error}");
    }
    tokio::spawn(connection);
    Ok(events)
}

/// All answers to a request.
pub(crate) async fn collect<T>(
    request: &'static str,
    answers: impl Stream<Item = Result<T, rtnetlink::Error>>,
) -> Result<Vec<T>, NetlinkError> {
    within_deadline(request, answers.try_collect()).await
}

/// The one answer to a request; none at all is an error.
pub(crate) async fn first<T>(
    request: &'static str,
    answers: impl Stream<Item = Result<T, rtnetlink::Error>>,
) -> Result<T, NetlinkError> {
    let mut answers = std::pin::pin!(answers);
    let answer = within_deadline(request, async { answers.next().await.transpose() }).await?;
    answer.ok_or(NetlinkError::Broken { request })
}

/// Runs one request against the clock.
pub(crate) async fn within_deadline<T>(
    request: &'static str,
    answer: impl Future<Output = Result<T, rtnetlink::Error>>,
) -> Result<T, NetlinkError> {
    match tokio::time::timeout(REQUEST_DEADLINE, answer).await {
        Err(_elapsed) => Err(NetlinkError::NoAnswer { request }),
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(rtnetlink::Error::NetlinkError(message))) => Err(NetlinkError::Refused {
            request,
            errno: message.raw_code().abs(),
        }),
        Ok(Err(_)) => Err(NetlinkError::Broken { request }),
    }
}
