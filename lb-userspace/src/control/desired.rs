//! Configuration, states, next hops and what was before -> what the data plane must be.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use lb_common::client::Persistence;
use lb_common::layout::{Backend as Record, Tags};

use super::eligible::{self, Before, Choice, Member, Why};
use super::{OldFlows, Steer, keeps_old_flows, slow_start};
use crate::config::{self, AccessList, Limits, QuicId, Role};
use crate::datapath::record::{self, Hop};
use crate::maglev::{self, Candidate};
use crate::model::{AdminState, BackendId, Forward, OperState, Scheduler, ServiceKey, Tracking};
use crate::net::{NextHop, Unresolved};
use crate::rounds;

/// What checks and operators say of a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendStatus {
    pub state: OperState,
    pub admin: AdminState,
    /// Set at runtime; wins over the file.
    pub runtime_weight: Option<u16>,
    /// It was UP at some time: it may take part when all are DOWN.
    pub ever_up: bool,
    /// While DOWN: its host answers nothing at all. `false` where it refuses or answers wrongly, and until its
    /// silence is known.
    pub host_silent: bool,
    /// While DOWN: since when, where this agent saw it go DOWN.
    pub down_since: Option<Instant>,
    /// While UP: since when, where this agent saw it come UP after its first round of checks.
    pub up_since: Option<Instant>,
    /// What its agent says of it.
    pub steer: Steer,
}

impl BackendStatus {
    /// Of a backend that nothing is known of.
    pub const UNSEEN: Self = Self {
        state: OperState::Unknown,
        admin: AdminState::Ready,
        runtime_weight: None,
        ever_up: false,
        host_silent: false,
        down_since: None,
        up_since: None,
        steer: Steer::NONE,
    };
}

/// The way to a backend's address.
#[derive(Clone, Debug)]
pub struct HopView {
    pub hop: Result<NextHop, Unresolved>,
    /// The last one that was known, for a backend that is in use while its neighbour entry is gone.
    pub last: Option<NextHop>,
    /// It was lost, and is not believed to be: the fault may be ours. The last one is used on.
    pub doubted: bool,
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
    /// Services whose backups were in use.
    pub backups: &'a BTreeSet<ServiceKey>,
    /// Frames may have VLAN tags: what leaves through a VLAN interface is sent on the one below, with its tags.
    pub vlans: bool,
    /// Where the program is: what answers come in by has to be among them. `None`: everywhere.
    pub interfaces: Option<&'a [String]>,
    pub now: Instant,
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
    /// It takes the ports from that of its key to this one; `None`: that one, or every port.
    pub last_port: Option<u16>,
    pub forward: Forward,
    /// Its datagrams are QUIC.
    pub quic: bool,
    pub scheduler: Scheduler,
    pub tracking: Tracking,
    /// Which clients it takes packets from; `None`: all.
    pub access: Option<AccessList>,
    /// How much it takes.
    pub limits: Option<Limits>,
    /// How long its flows may be idle: as long as slots that move stay open.
    pub idle_timeout: Duration,
    /// How it keeps its clients.
    pub persistence: Persistence,
    /// Slots of its table; a new size moves nearly every slot.
    pub size: u32,
    /// The backends that own slots. Empty: nobody serves, packets are dropped.
    pub candidates: Vec<Candidate>,
    /// Why just these.
    pub why: Why,
    /// No backend takes new flows by its verdict: who does is up to `on_all_down`.
    pub all_down: bool,
    /// Its backups are in use.
    pub backups: bool,
    /// So many of the candidates are DOWN, and take part because of `max_ejection_percent`.
    pub spared: usize,
    pub backends: BTreeMap<BackendId, DesiredBackend>,
}

/// One backend as it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredBackend {
    /// Weight from the configuration.
    pub weight: u16,
    pub role: Role,
    /// What connection ids of QUIC say of it.
    pub quic_ids: Vec<QuicId>,
    pub status: BackendStatus,
    /// What becomes of the flows it has.
    pub old_flows: OldFlows,
    pub record: Record,
    /// Of the VLAN that it is in.
    pub tags: Tags,
    /// How much of its weight it has while it starts slowly, in [`slow_start::STEPS`].
    pub steps: u32,
    /// Why packets cannot be sent to it at present.
    pub unresolved: Option<String>,
    /// That is not believed yet: it keeps its slots.
    pub doubted: bool,
    /// Longest packet of a client that fits the way to it, in bytes.
    pub packet_mtu: Option<u32>,
}

impl DesiredBackend {
    /// The weight in force.
    #[must_use]
    pub fn effective_weight(&self) -> u16 {
        self.status.weight_in_force(self.weight)
    }

    /// Whether it may take new flows by its verdict; whether it does depends on the others too.
    #[must_use]
    pub fn eligible(&self) -> bool {
        let Member {
            may_serve, healthy, ..
        } = self.member();
        may_serve && healthy
    }

    fn member(&self) -> Member {
        let Self {
            weight: _,
            role,
            quic_ids: _,
            status,
            old_flows: _,
            steps: _,
            record,
            tags: _,
            unresolved,
            doubted,
            packet_mtu: _,
        } = self;
        Member {
            role: *role,
            may_serve: status.admin_in_force() == AdminState::Ready
                && !status.steer.full
                && self.effective_weight() > 0
                && *record != Record::UNRESOLVED,
            healthy: status.state_in_force() == OperState::Up && (unresolved.is_none() || *doubted),
            ever_up: status.ever_up,
            down_since: status.down_since,
        }
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

/// The owner of each slot of a table of `size` slots, as an index into the candidates.
#[must_use]
pub fn owners(service: &DesiredService, size: u32) -> Vec<Option<u32>> {
    let weights = |flat: bool| -> Vec<u32> {
        let weights = service.candidates.iter().map(|candidate| candidate.weight);
        weights
            .map(|weight| if flat { weight.min(1) } else { weight })
            .collect()
    };
    match service.scheduler {
        Scheduler::Maglev | Scheduler::Sh | Scheduler::Random | Scheduler::Twos => {
            maglev::build(size, &service.candidates)
        }
        Scheduler::Wrr => rounds::build(size, &weights(false)),
        Scheduler::Rr | Scheduler::Lc | Scheduler::Wlc => rounds::build(size, &weights(true)),
    }
}

/// Slots for a service that has no table yet. Schedulers that walk through the table give each backend as many turns as
/// it has slots: ten times as many make that as exact as the weights.
fn first_size(service: &config::Service) -> u32 {
    let backends = service.backends.len();
    maglev::size_for(if service.scheduler.is_free() {
        backends * 10
    } else {
        backends
    })
}

fn one(service: &config::Service, inputs: &Inputs<'_>) -> DesiredService {
    let earlier = inputs
        .earlier
        .get(&service.key)
        .filter(|earlier| earlier.size > 0);
    let size = service
        .table_size
        .or(earlier.map(|earlier| earlier.size))
        .unwrap_or_else(|| first_size(service));
    let ids: Vec<BackendId> = service.backends.iter().map(|b| b.id(service.key)).collect();
    let backends: BTreeMap<_, _> = service
        .backends
        .iter()
        .zip(&ids)
        .map(|(backend, id)| {
            let status = inputs.statuses.get(id).copied().unwrap_or_default();
            let view = inputs.hops.get(&backend.address);
            let mut resolved = resolve(service, backend, status, view, inputs);
            resolved.steps = slow_start::steps(status.up_since, service.rules.slow_start, inputs.now);
            (*id, resolved)
        })
        .collect();
    let members: Vec<Member> = ids.iter().map(|id| backends[id].member()).collect();
    let before = Before {
        had_table: earlier.is_some(),
        backups: inputs.backups.contains(&service.key),
    };
    let Choice {
        takes,
        why,
        backups,
        spared,
    } = eligible::choose(&members, &service.rules, before);
    let taking: BTreeSet<&BackendId> = ids
        .iter()
        .zip(takes)
        .filter_map(|(id, takes)| takes.then_some(id))
        .collect();
    DesiredService {
        name: service.name.clone(),
        last_port: service.last_port,
        forward: service.forward,
        quic: service.quic,
        scheduler: service.scheduler,
        // Translated flows have their own table: slots can move at once.
        tracking: if service.forward.translates() {
            Tracking::None
        } else {
            service.tracking()
        },
        access: service.access.clone(),
        limits: service.limits,
        idle_timeout: service.rules.idle_timeout(service.key.protocol),
        persistence: service.persistence(),
        size,
        candidates: candidates(&backends, |id| taking.contains(id)),
        why,
        all_down: !matches!(why, Why::Serving | Why::Panic),
        backups,
        spared,
        backends,
    }
}

fn candidates(
    backends: &BTreeMap<BackendId, DesiredBackend>,
    takes_part: impl Fn(&BackendId) -> bool,
) -> Vec<Candidate> {
    let taking = || backends.iter().filter(|(id, _)| takes_part(id));
    let all_in_full = taking().all(|(_, backend)| backend.steps == slow_start::STEPS);
    taking()
        .map(|(id, backend)| Candidate {
            address: id.address,
            port: id.port,
            // Weights count in proportion: a part of one is the multiple of all others.
            weight: u32::from(backend.effective_weight()) * if all_in_full { 1 } else { backend.steps },
        })
        .collect()
}

fn resolve(
    service: &config::Service,
    backend: &config::Backend,
    status: BackendStatus,
    view: Option<&HopView>,
    inputs: &Inputs<'_>,
) -> DesiredBackend {
    let Inputs {
        vlans, interfaces, ..
    } = *inputs;
    let mut unresolved = match view.map(|view| &view.hop) {
        None => Some("its next hop was not looked up yet".to_owned()),
        Some(Err(why)) => Some(why.to_string()),
        Some(Ok(_)) => None,
    };
    let hop = view.and_then(|view| view.hop.as_ref().ok().or(view.last.as_ref()));
    let mut record = Record::UNRESOLVED;
    let mut packet_mtu = None;
    let mut tags = Tags::NONE;
    if let Some(hop) = hop {
        let below = hop.below.filter(|_| vlans);
        tags = backend
            .tags
            .or(below.map(|below| below.tags))
            .unwrap_or(Tags::NONE);
        let way = Hop {
            ifindex: below.map_or(hop.ifindex, |below| below.ifindex),
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
            (Forward::DsrIpip | Forward::DsrGue, _) => {
                record = record::encapsulating(
                    &way,
                    service.forward,
                    service.outer_source(hop.source),
                    backend.address,
                );
                if record == Record::UNRESOLVED {
                    unresolved.get_or_insert_with(|| {
                        format!("{} has no address of its family to send from", hop.interface)
                    });
                }
                packet_mtu = Some(hop.mtu.saturating_sub(service.forward.overhead(backend.address)));
            }
            (Forward::Nat | Forward::FullNat, _) => {
                let full = service.forward == Forward::FullNat;
                match interfaces {
                    Some(known) if below.is_none() && !known.contains(&hop.interface) => {
                        unresolved = Some(format!(
                            "it is reached by {}, which is not among `interfaces`: its answers would not be \
                             translated",
                            hop.interface
                        ));
                    }
                    _ => {
                        record = record::nat(&way, backend.address, backend.port, full);
                        packet_mtu = Some(hop.mtu);
                    }
                }
            }
        }
    }
    let old_flows = if record == Record::UNRESOLVED {
        OldFlows::Move
    } else {
        keeps_old_flows(&status, service.rules.on_down, service.key.protocol)
    };
    DesiredBackend {
        weight: backend.weight,
        role: backend.role,
        // A pool's may be for another service.
        quic_ids: if service.quic {
            backend.quic_ids.clone()
        } else {
            Vec::new()
        },
        status,
        old_flows,
        steps: slow_start::STEPS,
        doubted: record != Record::UNRESOLVED && view.is_some_and(|view| view.hop.is_err() && view.doubted),
        record,
        tags,
        unresolved,
        packet_mtu,
    }
}

#[cfg(test)]
mod tests;
