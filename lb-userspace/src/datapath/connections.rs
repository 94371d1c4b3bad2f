//! The flows that are remembered, for people: those of slots on the move (the flow table), those of services that
//! remember every flow (the cache), and those that are translated. Read from the pins, beside whoever works with them, a batch at a time.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use lb_common::layout::{FlowEntry, FlowKey, ServiceMeta};
use lb_common::nat::{self, FORWARD, NatEntry, NatKey, NatState};
use lb_common::rule::State;

use super::flows::Cursor;
use super::maps::Maps;
use super::pins::PinDir;
use super::{Error, apply, identity};
use crate::model::ServiceKey;

/// Which flows are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Name of the service.
    pub service: Option<String>,
    /// Address of the backend, and its port where it counts.
    pub backend: Option<(IpAddr, Option<u16>)>,
    pub state: Option<Stage>,
    /// Flows whose client is not known do not match.
    pub client: Option<IpNet>,
    /// So many are listed at most; all are counted.
    pub limit: usize,
}

/// What a flow has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// A SYN, which nothing followed yet.
    Unconfirmed,
    Established,
    /// The client has sent FIN or RST.
    Closing,
    /// Unconfirmed, and another connection has the same addresses and ports.
    Contested,
}

/// A flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    pub service: String,
    pub key: ServiceKey,
    /// `None`: the cache knows flows by a hash alone.
    pub client: Option<SocketAddr>,
    /// `None`: it is gone.
    pub backend: Option<SocketAddr>,
    pub stage: Stage,
    /// Since its last packet; of cached flows give or take a second.
    pub idle: Duration,
    /// It is in the cache, not in the flow table.
    pub cached: bool,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// The first of those that match, in no order.
    pub flows: Vec<Flow>,
    /// How many match, by stage.
    pub matching: BTreeMap<Stage, u64>,
    /// Cached flows that would match, but for a client that is asked for and not known.
    pub unknown: u64,
    /// How many flows were looked at.
    pub looked_at: u64,
}

struct Backend {
    place: SocketAddr,
    service: u32,
}

struct Names {
    services: BTreeMap<u32, (String, ServiceKey)>,
    backends: BTreeMap<u32, Backend>,
}

/// Reads the flows of an agent's pins.
///
/// # Errors
/// [`Error::NothingPinned`], [`Error::LayoutMismatch`], [`Error::Map`], [`Error::Syscall`].
pub fn list(pins: &PinDir, filter: &Filter, now_ns: u64) -> Result<Listing, Error> {
    let maps = Maps::open(pins)?;
    let names = Names::read(&maps)?;
    let mut listing = Listing::default();
    let mut cursor = Cursor::default();
    loop {
        let more = maps.flows.read_batch(&mut cursor)?;
        for (key, entry) in cursor.entries() {
            if let Some(flow) = names.of_entry(&key, &entry, now_ns) {
                listing.take(flow, filter);
            }
        }
        if !more {
            break;
        }
    }
    let mut cursor = Cursor::default();
    loop {
        let more = maps.nat.flows.read_batch(&mut cursor)?;
        for (key, entry) in cursor.entries() {
            if entry.direction != FORWARD {
                continue;
            }
            let reply = maps.nat.flows.get(&entry.peer(key.kind))?;
            if let Some(flow) = names.of_translated(&key, &entry, reply.as_ref(), now_ns) {
                listing.take(flow, filter);
            }
        }
        if !more {
            break;
        }
    }
    for way in maps.flow_cache.all() {
        let Some(backend) = names.backends.get(&way.word.backend()) else {
            continue;
        };
        let Some((service, key)) = names.services.get(&backend.service) else {
            continue;
        };
        let flow = Flow {
            service: service.clone(),
            key: *key,
            client: None,
            backend: Some(backend.place),
            stage: if way.word.is_live() {
                Stage::Established
            } else {
                Stage::Closing
            },
            idle: Duration::from_nanos(now_ns.saturating_sub(way.seen_ns)),
            cached: true,
        };
        listing.take(flow, filter);
    }
    Ok(listing)
}

/// How many flows the flow table of an agent's pins knows in slots of services, by the index of the service. `slots`: for
/// each slot of its table whether it counts. Flows that were sent their last packet count as well while they have an entry.
///
/// # Errors
/// As [`list`].
pub fn in_slots(pins: &PinDir, slots: &BTreeMap<u32, &[bool]>) -> Result<BTreeMap<u32, u64>, Error> {
    let maps = Maps::open(pins)?;
    let reader = maps.reader();
    let mut found = BTreeMap::new();
    let mut cursor = Cursor::default();
    loop {
        let more = maps.flows.read_batch(&mut cursor)?;
        for (key, entry) in cursor.entries() {
            let Some(slots) = slots.get(&key.service) else {
                continue;
            };
            let slot = reader
                .slot(&key, entry.owner.hash())
                .map(|(slot, _)| slot as usize);
            if slot.and_then(|slot| slots.get(slot)) == Some(&true) {
                *found.entry(key.service).or_default() += 1;
            }
        }
        if !more {
            return Ok(found);
        }
    }
}

impl Listing {
    fn take(&mut self, flow: Flow, filter: &Filter) {
        self.looked_at += 1;
        let wanted = filter.service.as_ref().is_none_or(|name| *name == flow.service)
            && filter.state.is_none_or(|stage| stage == flow.stage)
            && filter.backend.is_none_or(|(address, port)| {
                let of =
                    |place: SocketAddr| place.ip() == address && port.is_none_or(|port| port == place.port());
                flow.backend.is_some_and(of)
            });
        if !wanted {
            return;
        }
        if let Some(client) = filter.client {
            match flow.client {
                None => {
                    self.unknown += 1;
                    return;
                }
                Some(place) if !client.contains(&place.ip()) => return,
                Some(_) => {}
            }
        }
        *self.matching.entry(flow.stage).or_default() += 1;
        if self.flows.len() < filter.limit {
            self.flows.push(flow);
        }
    }
}

impl Names {
    fn read(maps: &Maps) -> Result<Self, Error> {
        let mut services = BTreeMap::new();
        for index in 0..maps.service_meta.len().min(maps.records.room()) {
            let meta: ServiceMeta = maps.service_meta.get(&index, 0)?;
            if let Some(key) = identity::service_of(&meta.key).filter(|_| meta.in_use != 0) {
                services.insert(index, (apply::name_of(&meta), key));
            }
        }
        let mut backends = BTreeMap::new();
        for index in 1..maps.backend_meta.len() {
            let meta = maps.backend_meta.get(&index, 0)?;
            let address = identity::address(meta.address, meta.family).filter(|_| meta.in_use != 0);
            if let Some(address) = address {
                let backend = Backend {
                    place: SocketAddr::new(address, u16::from_be(meta.port)),
                    service: meta.service,
                };
                backends.insert(index, backend);
            }
        }
        Ok(Self { services, backends })
    }

    /// `None` where the service is gone.
    fn of_translated(
        &self,
        key: &NatKey,
        entry: &NatEntry,
        reply: Option<&NatEntry>,
        now_ns: u64,
    ) -> Option<Flow> {
        let (service, service_key) = self.services.get(&entry.service)?;
        let family = (key.kind >> 8) as u8;
        let place = |address, ports: u32| {
            let address = identity::address(address, family)?;
            Some(SocketAddr::new(address, u16::from_be(ports as u16)))
        };
        // One without a reply entry is on its way out.
        let (stage, seen_ns) = match reply {
            Some(reply) => (
                match nat::state(entry.seen, reply.seen) {
                    NatState::Opening => Stage::Unconfirmed,
                    NatState::Established => Stage::Established,
                    NatState::Closing | NatState::Closed | NatState::Reset => Stage::Closing,
                },
                entry.seen.at_ns().max(reply.seen.at_ns()),
            ),
            None => (Stage::Closing, entry.seen.at_ns()),
        };
        Some(Flow {
            service: service.clone(),
            key: *service_key,
            client: place(key.source, key.ports),
            backend: place(entry.destination, nat::turn(entry.ports)),
            stage,
            idle: Duration::from_nanos(now_ns.saturating_sub(seen_ns)),
            cached: false,
        })
    }

    /// `None` where the service is gone.
    fn of_entry(&self, key: &FlowKey, entry: &FlowEntry, now_ns: u64) -> Option<Flow> {
        let (service, service_key) = self.services.get(&key.service)?;
        let (_, family) = identity::words(service_key.address);
        let [high, low, ..] = key.ports.to_ne_bytes();
        let address = identity::address(key.source, family)?;
        Some(Flow {
            service: service.clone(),
            key: *service_key,
            client: Some(SocketAddr::new(address, u16::from_be_bytes([high, low]))),
            backend: self
                .backends
                .get(&entry.owner.backend())
                .map(|backend| backend.place),
            stage: match entry.seen.state() {
                State::Unconfirmed => Stage::Unconfirmed,
                State::Established => Stage::Established,
                State::Closing => Stage::Closing,
                State::Contested => Stage::Contested,
            },
            idle: Duration::from_nanos(now_ns.saturating_sub(entry.seen.at_ns())),
            cached: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;

    fn flow(client: Option<&str>, stage: Stage) -> Flow {
        Flow {
            service: "web".into(),
            key: ServiceKey {
                address: "192.0.2.10".parse().unwrap(),
                port: 80,
                protocol: Protocol::Tcp,
            },
            client: client.map(|client| client.parse().unwrap()),
            backend: Some("10.0.1.11:80".parse().unwrap()),
            stage,
            idle: Duration::from_secs(3),
            cached: client.is_none(),
        }
    }

    fn counted(filter: &Filter) -> (u64, usize, u64) {
        let mut listing = Listing::default();
        for n in 0..10 {
            let client = format!("203.0.113.{n}:4000");
            listing.take(flow(Some(&client), Stage::Established), filter);
        }
        listing.take(flow(Some("198.51.100.1:5"), Stage::Closing), filter);
        listing.take(flow(None, Stage::Established), filter);
        (
            listing.matching.values().sum(),
            listing.flows.len(),
            listing.unknown,
        )
    }

    #[test]
    fn all_that_match_are_counted_and_as_many_listed_as_are_asked_for() {
        let filter = |change: fn(&mut Filter)| {
            let mut filter = Filter {
                limit: 100,
                ..Filter::default()
            };
            change(&mut filter);
            counted(&filter)
        };
        assert_eq!(filter(|_| ()), (12, 12, 0));
        assert_eq!(filter(|f| f.limit = 3), (12, 3, 0));
        assert_eq!(filter(|f| f.limit = 0), (12, 0, 0));
        assert_eq!(filter(|f| f.service = Some("api".into())), (0, 0, 0));
        assert_eq!(filter(|f| f.state = Some(Stage::Closing)), (1, 1, 0));
        // Whose the cached one is, is not known.
        assert_eq!(
            filter(|f| f.client = Some("203.0.113.0/29".parse().unwrap())),
            (8, 8, 1)
        );
        let backend = |port| Some(("10.0.1.11".parse().unwrap(), port));
        assert_eq!(
            filter(|f| f.backend = Some(("10.0.1.11".parse().unwrap(), None))).0,
            12
        );
        assert_eq!(
            counted(&Filter {
                backend: backend(Some(80)),
                ..Filter::default()
            })
            .0,
            12
        );
        assert_eq!(
            counted(&Filter {
                backend: backend(Some(81)),
                ..Filter::default()
            })
            .0,
            0
        );
    }
}
