//! Path MTUs that routers on the way to backends told us of.
//!
//! Where one is believed, the backend's record says so from then on, and clients whose packets are longer are told as for
//! any way that is too narrow. It is forgotten after ten minutes in which no router repeated it (RFC 1191 section 6.3,
//! RFC 8201 section 4), and not raised before: routers say what does not fit, not what does.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use lb_common::hash::{self, HashKey};

use super::Agent;
use crate::config::Service;
use crate::control::HopView;
use crate::model::{Forward, Protocol};
use crate::net::path_mtu::{Listener, Notice, Quoted};

/// How long a path MTU counts after the last time that somebody said it.
const LIFE: Duration = Duration::from_secs(10 * 60);

/// What is known of ways, and the ear for more.
#[derive(Debug)]
pub(super) struct PathMtus {
    /// `None`: nothing can be heard.
    listener: Option<Listener>,
    learned: Learned,
}

/// Path MTUs by the backend's address.
#[derive(Debug, Default)]
struct Learned(BTreeMap<IpAddr, Way>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Way {
    mtu: u32,
    until: Instant,
}

impl PathMtus {
    /// Begins to listen, where that is allowed.
    pub fn listening() -> Self {
        let listener = Listener::open()
            .inspect_err(|error| log::warn!("path MTUs that routers tell of are not heard: {error}"))
            .ok();
        Self {
            listener,
            learned: Learned::default(),
        }
    }

    /// The next notice; waits for ever where nothing can be heard.
    pub async fn next(&mut self) -> Notice {
        if let Some(listener) = &mut self.listener
            && let Some(notice) = listener.next().await
        {
            return notice;
        }
        std::future::pending().await
    }

    /// The next hops with what fits the whole way.
    pub fn narrowed<'a>(&self, hops: &'a BTreeMap<IpAddr, HopView>) -> Cow<'a, BTreeMap<IpAddr, HopView>> {
        self.learned.narrowed(hops)
    }

    /// Until when the MTU of the way to a backend is one that a router told us of.
    pub fn until(&self, backend: IpAddr) -> Option<Instant> {
        self.learned.0.get(&backend).map(|way| way.until)
    }
}

impl Learned {
    /// Takes in what fits; gives back whether that is news.
    fn learn(&mut self, backend: IpAddr, mtu: u32, now: Instant) -> bool {
        let until = now + LIFE;
        match self.0.get_mut(&backend) {
            Some(way) if mtu > way.mtu => false,
            Some(way) => {
                way.until = until;
                std::mem::replace(&mut way.mtu, mtu) != mtu
            }
            None => self.0.insert(backend, Way { mtu, until }).is_none(),
        }
    }

    /// Forgets what is old; gives back whether anything was.
    fn forget(&mut self, now: Instant) -> bool {
        let before = self.0.len();
        self.0.retain(|_, way| way.until > now);
        self.0.len() != before
    }

    fn narrowed<'a>(&self, hops: &'a BTreeMap<IpAddr, HopView>) -> Cow<'a, BTreeMap<IpAddr, HopView>> {
        let mut hops = Cow::Borrowed(hops);
        for (backend, way) in &self.0 {
            if let Some(view) = hops.get(backend)
                && view.hop.iter().chain(&view.last).any(|hop| hop.mtu > way.mtu)
                && let Some(view) = hops.to_mut().get_mut(backend)
            {
                for hop in view.hop.iter_mut().chain(&mut view.last) {
                    hop.mtu = hop.mtu.min(way.mtu);
                }
            }
        }
        hops
    }
}

/// Whether a notice is about a packet that we send: to a backend of a service that encapsulates, from where its outer
/// headers come from, narrower than the way is known to be. Where the outer header bears bits of the flow's hash, which is
/// keyed, only who saw a packet of ours can name them.
fn is_ours(notice: &Notice, services: &[Service], key: &HashKey, hop: Option<&HopView>) -> bool {
    let hop = hop.and_then(|view| view.hop.as_ref().ok().or(view.last.as_ref()));
    let Some(hop) = hop.filter(|hop| notice.mtu < hop.mtu) else {
        return false;
    };
    let forward = if notice.gue {
        Forward::DsrGue
    } else {
        Forward::DsrIpip
    };
    let sent = services.iter().any(|service| {
        service.forward == forward
            && service
                .backends
                .iter()
                .any(|backend| backend.address == notice.backend)
            && service.outer_source(hop.source).contains(&notice.source)
            && notice.flow.is_none_or(|flow| is_for(&flow, service))
    });
    sent && notice
        .spread
        .is_none_or(|spread| notice.flow.is_some_and(|flow| spread.is_of(hash_of(&flow, key))))
}

fn is_for(flow: &Quoted, service: &Service) -> bool {
    let protocol = match service.key.protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    };
    let [_, _, high, low] = flow.ports;
    let (first, last) = service.ports();
    flow.service == service.key.address
        && flow.protocol == protocol
        && (first..=last).contains(&u16::from_be_bytes([high, low]))
}

/// As the program computes it.
fn hash_of(flow: &Quoted, key: &HashKey) -> u32 {
    let ports = u32::from_le_bytes(flow.ports);
    match flow.client {
        IpAddr::V4(client) => hash::flow_v4(key, u32::from_le_bytes(client.octets()), ports),
        IpAddr::V6(client) => {
            let o = client.octets();
            let word = |n: usize| u32::from_le_bytes([o[n], o[n + 1], o[n + 2], o[n + 3]]);
            hash::flow_v6(key, [word(0), word(4), word(8), word(12)], ports)
        }
    }
}

impl Agent {
    /// Judges what a router said.
    pub(super) fn take_notice(&mut self, notice: &Notice) {
        let hop = self.hops.get(&notice.backend);
        if !is_ours(notice, &self.config.services, &self.key, hop) {
            log::debug!("a path MTU that is not believed: {notice:?}");
            return;
        }
        let (backend, mtu) = (notice.backend, notice.mtu);
        if self.paths.learned.learn(backend, mtu, Instant::now()) {
            log::info!(
                "the way to {backend} takes packets of {mtu} bytes, says a router: clients are told for {} min",
                LIFE.as_secs() / 60
            );
            self.behind = true;
        }
    }

    /// Forgets path MTUs that are old.
    pub(super) fn look_after_paths(&mut self, now: Instant) {
        if self.paths.learned.forget(now) {
            log::info!("path MTUs that no router repeated are forgotten");
            self.behind = true;
        }
    }
}

#[cfg(test)]
mod tests;
