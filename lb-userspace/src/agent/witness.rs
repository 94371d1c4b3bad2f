//! The witness: a host that is asked, besides the backends, whether we are still connected.
//!
//! Asked every second, and at once when something falls silent: an answer must be there before the verdict.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::doubt::Heard;
use crate::config::Witness;
use crate::health::presence;
use crate::net::netlink::Netlink;
use crate::net::route;

/// How often it is asked while all is well.
const INTERVAL: Duration = Duration::from_secs(1);

/// It is not asked more often than this.
const PAUSE: Duration = Duration::from_millis(100);

/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_millis(500);

/// How often the default routes are read: there may be a million other ones beside them.
const ROUTES_INTERVAL: Duration = Duration::from_secs(30);

/// The task that asks. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Asker {
    task: Option<JoinHandle<()>>,
    now: Arc<Notify>,
}

impl Asker {
    pub fn spawn(witness: Witness, heard: mpsc::Sender<Heard>) -> Self {
        let now = Arc::new(Notify::new());
        let task = (witness != Witness::None).then(|| {
            let now = Arc::clone(&now);
            tokio::spawn(async move {
                match Netlink::open() {
                    Ok(netlink) => ask_on(&netlink, witness, &now, &heard).await,
                    Err(error) => log::warn!("no witness: {error}"),
                }
            })
        });
        Self { task, now }
    }

    /// Asks now rather than in its turn.
    pub fn hurry(&self) {
        self.now.notify_one();
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// Where to ask.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// On the link with this index.
    Neighbor(u32, IpAddr),
    Host(IpAddr),
    Port(SocketAddr),
}

impl Place {
    fn address(self) -> IpAddr {
        match self {
            Self::Neighbor(_, address) | Self::Host(address) => address,
            Self::Port(address) => address.ip(),
        }
    }

    async fn answers(self, netlink: &Netlink) -> bool {
        match self {
            Self::Neighbor(ifindex, address) => {
                presence::neighbor_answers(netlink, (ifindex, address), PATIENCE).await
            }
            Self::Host(address) => presence::answers(netlink, address, PATIENCE).await,
            Self::Port(address) => presence::port_answers(address, PATIENCE).await,
        }
    }
}

async fn ask_on(netlink: &Netlink, witness: Witness, now: &Notify, heard: &mpsc::Sender<Heard>) {
    let mut places: Vec<Place> = Vec::new();
    let mut read: Option<Instant> = None;
    loop {
        if read.is_none_or(|read| read.elapsed() > ROUTES_INTERVAL) {
            let found = places_of(netlink, witness).await;
            // A gateway that is gone with its route is still the one to ask: its absence is the question.
            if !found.is_empty() || read.is_none() {
                let first = found.first().map(|place| place.address());
                if heard.send(Heard::Witness(first)).await.is_err() {
                    return;
                }
                places = found;
            }
            read = Some(Instant::now());
        }
        for place in &places {
            let asked = Instant::now();
            if place.answers(netlink).await {
                if heard.send(Heard::Answered(place.address(), asked)).await.is_err() {
                    return;
                }
                break;
            }
        }
        sleep(PAUSE).await;
        // Either way it is time to ask again.
        let _ = timeout(INTERVAL, now.notified()).await;
    }
}

async fn places_of(netlink: &Netlink, witness: Witness) -> Vec<Place> {
    match witness {
        Witness::None => Vec::new(),
        Witness::Host(address) => vec![Place::Host(address)],
        Witness::Port(address) => vec![Place::Port(address)],
        Witness::Gateway => match route::default_gateways(netlink).await {
            Ok(gateways) => gateways
                .into_iter()
                .map(|(address, ifindex)| Place::Neighbor(ifindex, address))
                .collect(),
            Err(error) => {
                log::warn!("looking for the default gateway: {error}");
                Vec::new()
            }
        },
    }
}
