//! Keeps the next hops of all backends true.
//!
//! A task mirrors the kernel's interfaces and neighbours, asks for the route to each target, and
//! publishes what follows from them whenever that changes:
//!
//! ```text
//!   events: neigh ------------> mirror of neighbours --+
//!           link -------------> mirror of links -------+--> next hops --> watch channel
//!           link, addr, -> a few ms -> ask for every --+
//!           route, rule                route
//! ```
//!
//! A change of a neighbour or of a link's state is published without asking the kernel anything.
//! [`DEBOUNCE`] after an event that may change routes, they are all asked for; under a storm of events
//! (a routing daemon loads a table) the pauses grow, so that asking takes a fifth of the time at most.
//! Events can get lost; the kernel says so, and then, and every [`RESYNC_INTERVAL`] in any case,
//! everything is read anew.
//!
//! Packets that leave through XDP do not tell the kernel that a neighbour is in use: its entry would
//! become stale, be forgotten, and its MAC address go with it. So the task acts as their user: it has
//! the kernel verify stale entries and resolve missing and failed ones (`NTF_USE`), when an event shows
//! them and every [`USE_INTERVAL`]. Nothing of that stays in the kernel when the agent dies.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkPayload;
use tokio::sync::watch;
use tokio::time::Instant;

use super::link::{self, LinkUpdate};
use super::neighbor::{self, NeighborKey};
use super::netlink::{self, Events, Netlink, NetlinkError};
use super::nexthop::{NextHops, Tables, Unresolved};
use super::route;

/// How long events are collected before routes are asked for: they come in groups.
pub const DEBOUNCE: Duration = Duration::from_millis(3);

/// How often everything is read anew, whatever events say.
pub const RESYNC_INTERVAL: Duration = Duration::from_secs(30);

/// How often the neighbours are gone through for those that need to be resolved or verified, apart
/// from events that say so.
pub const USE_INTERVAL: Duration = Duration::from_secs(1);

/// One neighbour is not used more often than this, however often it fails.
const USE_PAUSE: Duration = Duration::from_millis(200);

/// How long a new target's neighbour has for its first answer. Until then it is not published.
pub const FIRST_ANSWER: Duration = Duration::from_secs(1);

/// How many questions are under way at once: their answers must fit the socket's buffer.
const REQUESTS_AT_ONCE: usize = 32;

/// After asking for all routes, this many times as long as that took is spent not asking.
const REST_FACTOR: u32 = 4;

const GROUPS: [MulticastGroup; 8] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv6Rule,
];

/// The handle of the task. The task ends when it is dropped.
#[derive(Debug)]
pub struct Resolver {
    targets: watch::Sender<BTreeSet<IpAddr>>,
    next_hops: watch::Receiver<Arc<NextHops>>,
}

impl Resolver {
    /// Starts the task in the current runtime, with no targets. The receiver always holds the latest
    /// next hops of the targets that have an answer.
    #[must_use]
    pub fn spawn() -> (Self, watch::Receiver<Arc<NextHops>>) {
        let (targets, asked) = watch::channel(BTreeSet::new());
        let (publisher, next_hops) = watch::channel(Arc::default());
        tokio::spawn(run(asked, publisher));
        let resolver = Self {
            targets,
            next_hops: next_hops.clone(),
        };
        (resolver, next_hops)
    }

    /// Replaces the targets. Those not named any more vanish from the next hops.
    pub fn set_targets(&self, targets: BTreeSet<IpAddr>) {
        self.targets.send_if_modified(|current| {
            let changed = *current != targets;
            *current = targets;
            changed
        });
    }

    /// Waits until every target has an answer, be it that it is unresolved, and returns all of them.
    /// This takes little more than [`FIRST_ANSWER`] at most, unless the kernel cannot be asked.
    pub async fn wait_resolved(&self) -> Arc<NextHops> {
        let targets = self.targets.borrow().clone();
        let mut next_hops = self.next_hops.clone();
        let complete = next_hops
            .wait_for(|hops| targets.iter().all(|target| hops.contains_key(target)))
            .await;
        match complete {
            Ok(hops) => Arc::clone(&hops),
            // Only a panic ends the task before its handle is gone.
            Err(_) => Arc::clone(&self.next_hops.borrow()),
        }
    }
}

/// Finds the next hops of some targets once.
pub async fn resolve_once(targets: BTreeSet<IpAddr>) -> Arc<NextHops> {
    let (resolver, _) = Resolver::spawn();
    resolver.set_targets(targets);
    resolver.wait_resolved().await
}

/// Runs sessions until the handle is dropped.
async fn run(mut targets: watch::Receiver<BTreeSet<IpAddr>>, publisher: watch::Sender<Arc<NextHops>>) {
    loop {
        let error = match Session::open().await {
            Ok(session) => match session.run(&mut targets, &publisher).await {
                Ok(Dropped) => return,
                Err(error) => error,
            },
            Err(error) => error,
        };
        log::warn!("next hops are not watched: {error}; trying again");
        publish_failure(&targets, &publisher, &error);
        tokio::time::sleep(netlink::RETRY_PAUSE).await;
        if targets.has_changed().is_err() {
            return;
        }
    }
}

/// The handle is gone.
struct Dropped;

/// Targets that never had an answer get the error; what is known stays, as packets go on by it.
fn publish_failure(
    targets: &watch::Receiver<BTreeSet<IpAddr>>,
    publisher: &watch::Sender<Arc<NextHops>>,
    error: &NetlinkError,
) {
    let targets = targets.borrow();
    publisher.send_if_modified(|published| {
        let mut hops = NextHops::clone(published);
        hops.retain(|target, _| targets.contains(target));
        for target in targets.iter() {
            hops.entry(*target)
                .or_insert_with(|| Err(Unresolved::Netlink(error.clone())));
        }
        replace_if_different(published, hops)
    });
}

fn replace_if_different(published: &mut Arc<NextHops>, hops: NextHops) -> bool {
    let changed = **published != hops;
    if changed {
        *published = Arc::new(hops);
    }
    changed
}

/// What has to be read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stale {
    Routes,
    Everything,
}

/// What an event asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Effect {
    Nothing,
    Publish,
    /// Publish, and ask for the routes soon.
    Routes,
    /// Publish, and read everything soon: events were lost.
    Everything,
}

/// One pair of sockets, and what was learnt through them.
struct Session {
    netlink: Netlink,
    events: Events,
    tables: Tables,
    /// What to read again, and when.
    pending: Option<(Stale, Instant)>,
    last_read_took: Duration,
    last_read_ended: Instant,
    next_resync: Instant,
    /// When each neighbour was last used.
    used: BTreeMap<NeighborKey, Instant>,
    /// Targets without an answer, and until when their neighbours may take to give one.
    awaited: BTreeMap<IpAddr, Instant>,
}

impl Session {
    async fn open() -> Result<Self, NetlinkError> {
        let now = Instant::now();
        Ok(Self {
            // Events first: nothing that happens after the tables were read is missed.
            events: netlink::watch(&GROUPS)?,
            netlink: Netlink::open()?,
            tables: Tables::default(),
            pending: Some((Stale::Everything, now)),
            last_read_took: Duration::ZERO,
            last_read_ended: now,
            next_resync: now + RESYNC_INTERVAL,
            used: BTreeMap::new(),
            awaited: BTreeMap::new(),
        })
    }

    async fn run(
        mut self,
        targets: &mut watch::Receiver<BTreeSet<IpAddr>>,
        publisher: &watch::Sender<Arc<NextHops>>,
    ) -> Result<Dropped, NetlinkError> {
        let mut tick = tokio::time::interval(USE_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let now = Instant::now();
            let wake = self.next_wake(now);
            let effect = tokio::select! {
                biased;
                changed = targets.changed() => {
                    if changed.is_err() {
                        return Ok(Dropped);
                    }
                    self.schedule(Stale::Routes, now);
                    Effect::Nothing
                }
                event = self.events.next() => {
                    let Some((message, _)) = event else {
                        return Err(NetlinkError::Broken { request: "watch for events" });
                    };
                    let first = self.take_in(message.payload, now);
                    first.max(self.take_in_what_is_queued(now)?)
                }
                () = tokio::time::sleep_until(wake) => Effect::Publish,
                _ = tick.tick() => Effect::Publish,
            };
            self.plan(effect, now);
            if self.read_if_due(targets).await? || effect >= Effect::Publish {
                self.publish(&targets.borrow(), publisher);
                self.use_neighbors(&targets.borrow());
            }
        }
    }

    /// When something is due even if nothing happens; the tick of the loop comes apart from it.
    fn next_wake(&mut self, now: Instant) -> Instant {
        let pending = self.pending.map(|(_, due)| due);
        let awaited = self.awaited.values().min().copied();
        let held = self.tables.neighbors.next_expiry(now);
        [pending, awaited, held]
            .into_iter()
            .flatten()
            .fold(self.next_resync, Instant::min)
    }

    fn take_in_what_is_queued(&mut self, now: Instant) -> Result<Effect, NetlinkError> {
        let mut effect = Effect::Nothing;
        while let Some(event) = self.events.next().now_or_never() {
            let Some((message, _)) = event else {
                return Err(NetlinkError::Broken {
                    request: "watch for events",
                });
            };
            effect = effect.max(self.take_in(message.payload, now));
        }
        Ok(effect)
    }

    fn take_in(&mut self, payload: NetlinkPayload<RouteNetlinkMessage>, now: Instant) -> Effect {
        use RouteNetlinkMessage::{
            DelAddress, DelLink, DelNeighbour, DelRoute, DelRule, NewAddress, NewLink, NewNeighbour,
            NewRoute, NewRule,
        };
        let message = match payload {
            NetlinkPayload::InnerMessage(message) => message,
            NetlinkPayload::Overrun(_) => return Effect::Everything,
            _ => return Effect::Nothing,
        };
        let changed = match &message {
            NewNeighbour(entry) => match neighbor::parse(entry) {
                Some((key, neighbor)) => self.tables.neighbors.observe(key, neighbor, now),
                None => false,
            },
            DelNeighbour(entry) => match neighbor::parse(entry) {
                Some((key, _)) => self.tables.neighbors.forget(key, now),
                None => false,
            },
            NewLink(_) | DelLink(_) => {
                let changed = match LinkUpdate::of(&message) {
                    Some(LinkUpdate::Present(link)) => {
                        self.tables.links.insert(link.ifindex, link.clone()) != Some(link)
                    }
                    Some(LinkUpdate::Gone(ifindex)) => self.tables.links.remove(&ifindex).is_some(),
                    None => false,
                };
                return if changed { Effect::Routes } else { Effect::Nothing };
            }
            NewAddress(_) | DelAddress(_) | NewRoute(_) | DelRoute(_) | NewRule(_) | DelRule(_) => {
                return Effect::Routes;
            }
            _ => false,
        };
        if changed { Effect::Publish } else { Effect::Nothing }
    }

    fn plan(&mut self, effect: Effect, now: Instant) {
        let due = (now + DEBOUNCE).max(self.last_read_ended + self.last_read_took * REST_FACTOR);
        match effect {
            Effect::Nothing | Effect::Publish => {}
            Effect::Routes => self.schedule(Stale::Routes, due),
            Effect::Everything => self.schedule(Stale::Everything, due),
        }
        if self.next_resync <= now {
            self.schedule(Stale::Everything, now);
        }
    }

    fn schedule(&mut self, what: Stale, due: Instant) {
        self.pending = Some(match self.pending {
            Some((other, earlier)) => (what.max(other), due.min(earlier)),
            None => (what, due),
        });
    }

    /// Says whether it read anything.
    async fn read_if_due(
        &mut self,
        targets: &mut watch::Receiver<BTreeSet<IpAddr>>,
    ) -> Result<bool, NetlinkError> {
        let started = Instant::now();
        let Some((stale, _)) = self.pending.take_if(|(_, due)| *due <= started) else {
            return Ok(false);
        };
        let targets = targets.borrow_and_update().clone();
        if stale == Stale::Everything {
            let links = link::links(&self.netlink).await?;
            self.tables.links = links.into_iter().map(|link| (link.ifindex, link)).collect();
            let neighbors = neighbor::neighbors(&self.netlink).await?;
            self.tables.neighbors.replace(neighbors, Instant::now());
            self.next_resync = Instant::now() + RESYNC_INTERVAL;
        }
        self.awaited.retain(|target, _| targets.contains(target));
        for target in &targets {
            if !self.tables.routes.contains_key(target) {
                self.awaited.insert(*target, started + FIRST_ANSWER);
            }
        }
        self.read_routes(targets).await;
        self.last_read_ended = Instant::now();
        self.last_read_took = self.last_read_ended - started;
        Ok(true)
    }

    async fn read_routes(&mut self, targets: BTreeSet<IpAddr>) {
        let netlink = &self.netlink;
        let mut routes: BTreeMap<_, _> = futures::stream::iter(targets)
            .map(|target| async move { (target, route::route_to(netlink, target).await) })
            .buffer_unordered(REQUESTS_AT_ONCE)
            .collect()
            .await;
        let mut unanswered = false;
        for (target, route) in &mut routes {
            // A refusal is the kernel's answer. No answer says nothing: what was known stays.
            if matches!(route, Err(error) if error.errno().is_none()) {
                unanswered = true;
                if let Some(known) = self.tables.routes.remove(target) {
                    *route = known;
                }
            }
        }
        self.tables.routes = routes;
        if unanswered {
            self.schedule(Stale::Everything, Instant::now() + netlink::RETRY_PAUSE);
        }
    }

    fn publish(&mut self, targets: &BTreeSet<IpAddr>, publisher: &watch::Sender<Arc<NextHops>>) {
        let now = Instant::now();
        let mut hops = NextHops::new();
        for target in targets {
            let Some(hop) = self.tables.next_hop(*target, now) else {
                continue;
            };
            if matches!(hop, Err(Unresolved::NoNeighbor { .. }))
                && self.awaited.get(target).is_some_and(|until| now < *until)
            {
                continue;
            }
            self.awaited.remove(target);
            hops.insert(*target, hop);
        }
        publisher.send_if_modified(|published| replace_if_different(published, hops));
    }

    /// Has the kernel resolve and verify the neighbours that need it. Nobody waits for the outcome:
    /// it arrives as an event.
    fn use_neighbors(&mut self, targets: &BTreeSet<IpAddr>) {
        let now = Instant::now();
        self.used.retain(|_, last| now < *last + USE_PAUSE);
        let wanted: BTreeSet<_> = targets
            .iter()
            .filter_map(|target| self.tables.neighbor_of(*target))
            .filter(|key| self.tables.neighbors.wants_use(*key) && !self.used.contains_key(key))
            .collect();
        if wanted.is_empty() {
            return;
        }
        self.used.extend(wanted.iter().map(|key| (*key, now)));
        let netlink = self.netlink.clone();
        tokio::spawn(async move {
            futures::stream::iter(wanted)
                .for_each_concurrent(REQUESTS_AT_ONCE, |key| {
                    let netlink = &netlink;
                    async move {
                        if let Err(error) = neighbor::use_neighbor(netlink, key).await {
                            log::debug!("neighbour {} on interface {}: {error}", key.1, key.0);
                        }
                    }
                })
                .await;
        });
    }
}

#[cfg(test)]
mod tests;
