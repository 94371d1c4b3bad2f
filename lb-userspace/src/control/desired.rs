//! Configuration, states, next hops and what was before -> what the data plane must be.

use std::collections::BTreeMap;
use std::net::IpAddr;

use lb_common::layout::Backend as Record;

use crate::config;
use crate::datapath::record::{self, Hop};
use crate::maglev::{self, Candidate};
use crate::model::{AdminState, BackendId, Forward, OperState, Scheduler, ServiceKey};
use crate::net::{NextHop, Unresolved};

/// What checks and operators say of a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendStatus {
    pub state: OperState,
    pub admin: AdminState,
    /// Set at runtime; wins over the file.
    pub runtime_weight: Option<u16>,
    /// It was UP at some time: it may take part when all are DOWN.
    pub ever_up: bool,
}

/// The way to a backend's address.
#[derive(Clone, Debug)]
pub struct HopView {
    pub hop: Result<NextHop, Unresolved>,
    /// The last one that was known, for a backend that is in use while its neighbour entry is gone.
    pub last: Option<NextHop>,
}

/// What was installed before, of one service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Earlier {
    /// Slots of its table; 0 where there is none.
    pub size: u32,
}

/// Everything [`desired`] depends on.
#[derive(Debug)]
pub struct Inputs<'a> {
    pub services: &'a [config::Service],
    pub statuses: &'a BTreeMap<BackendId, BackendStatus>,
    pub hops: &'a BTreeMap<IpAddr, HopView>,
    pub earlier: &'a BTreeMap<ServiceKey, Earlier>,
}

/// What the maps must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    pub services: BTreeMap<ServiceKey, DesiredService>,
}

/// One service as it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredService {
    pub name: String,
    pub forward: Forward,
    pub scheduler: Scheduler,
    /// Slots of its table; a new size moves nearly every slot.
    pub size: u32,
    /// The backends that own slots. Empty: nobody serves, packets are dropped.
    pub candidates: Vec<Candidate>,
    /// No backend may take new flows; the table is the one of before the failures began.
    pub all_down: bool,
    pub backends: BTreeMap<BackendId, DesiredBackend>,
}

/// One backend as it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredBackend {
    /// Weight from the configuration.
    pub weight: u16,
    pub status: BackendStatus,
    pub record: Record,
    /// Why packets cannot be sent to it at present.
    pub unresolved: Option<String>,
    /// Longest packet of a client that fits the way to it, in bytes.
    pub packet_mtu: Option<u32>,
}

impl DesiredBackend {
    /// The weight in force.
    #[must_use]
    pub fn effective_weight(&self) -> u16 {
        self.status.runtime_weight.unwrap_or(self.weight)
    }

    /// Whether it takes new flows.
    #[must_use]
    pub fn eligible(&self) -> bool {
        self.status.state == OperState::Up
            && self.status.admin == AdminState::Ready
            && self.effective_weight() > 0
            && self.unresolved.is_none()
    }

    /// Whether it takes part when no backend is eligible: not where an operator took it out, nor where it
    /// never was UP.
    fn last_resort(&self) -> bool {
        self.status.ever_up
            && self.status.admin == AdminState::Ready
            && self.effective_weight() > 0
            && self.record != Record::UNRESOLVED
    }
}

/// What the maps must hold.
#[must_use]
pub fn desired(inputs: &Inputs<'_>) -> Desired {
    let services = inputs
        .services
        .iter()
        .map(|service| (service.key, one(service, inputs)))
        .collect();
    Desired { services }
}

/// The owner of each slot, as an index into the candidates.
#[must_use]
pub fn owners(service: &DesiredService) -> Vec<Option<u32>> {
    match service.scheduler {
        Scheduler::Maglev => maglev::build(service.size, &service.candidates),
    }
}

fn one(service: &config::Service, inputs: &Inputs<'_>) -> DesiredService {
    let earlier = inputs
        .earlier
        .get(&service.key)
        .filter(|earlier| earlier.size > 0);
    let size = service
        .table_size
        .or(earlier.map(|earlier| earlier.size))
        .unwrap_or_else(|| maglev::size_for(service.backends.len()));
    let backends: BTreeMap<_, _> = service
        .backends
        .iter()
        .map(|backend| {
            let id = BackendId {
                service: service.key,
                address: backend.address,
                port: backend.port,
            };
            let status = inputs.statuses.get(&id).copied().unwrap_or_default();
            (
                id,
                resolve(service, backend, status, inputs.hops.get(&backend.address)),
            )
        })
        .collect();
    let mut candidates = candidates(&backends, DesiredBackend::eligible);
    let all_down = candidates.is_empty();
    if all_down && earlier.is_some() {
        candidates = self::candidates(&backends, DesiredBackend::last_resort);
    }
    DesiredService {
        name: service.name.clone(),
        forward: service.forward,
        scheduler: service.scheduler,
        size,
        candidates,
        all_down,
        backends,
    }
}

fn candidates(
    backends: &BTreeMap<BackendId, DesiredBackend>,
    takes_part: impl Fn(&DesiredBackend) -> bool,
) -> Vec<Candidate> {
    backends
        .iter()
        .filter(|(_, backend)| takes_part(backend))
        .map(|(id, backend)| Candidate {
            address: id.address,
            port: id.port,
            weight: u32::from(backend.effective_weight()),
        })
        .collect()
}

fn resolve(
    service: &config::Service,
    backend: &config::Backend,
    status: BackendStatus,
    view: Option<&HopView>,
) -> DesiredBackend {
    let mut unresolved = match view.map(|view| &view.hop) {
        None => Some("its next hop was not looked up yet".to_owned()),
        Some(Err(why)) => Some(why.to_string()),
        Some(Ok(_)) => None,
    };
    let hop = view.and_then(|view| view.hop.as_ref().ok().or(view.last.as_ref()));
    let mut record = Record::UNRESOLVED;
    let mut packet_mtu = None;
    if let Some(hop) = hop {
        let way = Hop {
            ifindex: hop.ifindex,
            destination_mac: hop.destination_mac,
            source_mac: hop.source_mac,
            mtu: hop.mtu,
        };
        match (service.forward, hop.gateway) {
            (Forward::DsrL2, Some(gateway)) => {
                unresolved = Some(format!(
                    "it is behind the router {gateway}; dsr-l2 needs it on the same layer 2 (use dsr-ipip)"
                ));
            }
            (Forward::DsrL2, None) => {
                record = record::l2(&way);
                packet_mtu = Some(hop.mtu);
            }
            (Forward::DsrIpip, _) => {
                record = record::ipip(&way, hop.source, backend.address);
                if record == Record::UNRESOLVED {
                    unresolved.get_or_insert_with(|| {
                        format!("{} has no address of its family to send from", hop.interface)
                    });
                }
                packet_mtu = Some(hop.mtu.saturating_sub(record::overhead(backend.address)));
            }
        }
    }
    DesiredBackend {
        weight: backend.weight,
        status,
        record,
        unresolved,
        packet_mtu,
    }
}

#[cfg(test)]
mod tests;
