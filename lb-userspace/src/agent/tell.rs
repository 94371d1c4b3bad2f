//! Telling what happened: one line wherever it does.
//!
//! `self.emit(Kind::Isolated)`, `self.emit(Kind::AllDownOver.service(name))`,
//! `self.emit(self.about(&id, kind).because("refused"))`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::SystemTime;

use super::Agent;
use crate::config::Config;
use crate::control::{BackendStatus, DesiredService};
use crate::datapath::apply::{Change, ChangeKind};
use crate::model::{BackendId, OperState};
use crate::observe::{Draft, Kind, Timestamp};

impl Agent {
    /// Tells everybody who follows the events. Never waits.
    pub(super) fn emit(&self, draft: impl Into<Draft>) {
        self.events.emit(draft);
    }

    /// Something about a backend.
    pub(super) fn about(&self, id: &BackendId, kind: Kind) -> Draft {
        let service = self.service(&id.service);
        let name = service.map_or_else(|| id.service.to_string(), |service| service.name.clone());
        kind.service(name).backend(SocketAddr::new(id.address, id.port))
    }

    /// An order, or what else changed what an operator may say of a backend. `weight` is the file's.
    pub(super) fn emit_orders(&self, id: &BackendId, was: &BackendStatus, is: &BackendStatus, weight: u16) {
        let (was_admin, is_admin) = (was.admin_in_force(), is.admin_in_force());
        if was_admin != is_admin {
            let kind = Kind::BackendAdmin {
                from: was_admin,
                to: is_admin,
            };
            self.emit(self.about(id, kind));
        }
        let (was_weight, is_weight) = (was.weight_in_force(weight), is.weight_in_force(weight));
        if was_weight != is_weight || was.runtime_weight != is.runtime_weight {
            let kind = Kind::BackendWeight {
                from: was_weight,
                to: is_weight,
                file: weight,
            };
            self.emit(self.about(id, kind));
        }
    }

    /// The agent came up; the one before it lived until `observed_until` at least.
    pub(super) fn emit_start(&self, warm: bool, observed_until: Option<Timestamp>) {
        self.emit(Kind::AgentStarted {
            version: env!("CARGO_PKG_VERSION").into(),
            warm,
            observed_until,
        });
    }

    /// Backends whose state has not changed for longer than events are kept are in the history all the same.
    pub(super) fn note_members(&self) {
        let now = Timestamp::of(SystemTime::now());
        let mut history = self.archive.history();
        for service in &self.config.services {
            for backend in &service.backends {
                let id = backend.id(service.key);
                let state = self
                    .statuses
                    .get(&id)
                    .map_or(OperState::Unknown, |status| status.state);
                let place = SocketAddr::new(id.address, id.port);
                history.know(&service.name, place, state, now);
            }
        }
    }

    /// The backends and weights that a configuration changed of services that go on.
    pub(super) fn emit_membership(&self, old: &Config) {
        let members = |config: &Config| -> BTreeMap<BackendId, (String, u16)> {
            let services = config.services.iter();
            services
                .flat_map(|s| {
                    s.backends
                        .iter()
                        .map(|b| (b.id(s.key), (s.name.clone(), b.weight)))
                })
                .collect()
        };
        let (was, is) = (members(old), members(&self.config));
        let tell = |id: &BackendId, service: &str, kind: Kind| {
            let place = SocketAddr::new(id.address, id.port);
            self.emit(kind.service(service).backend(place));
        };
        for (id, (service, weight)) in &is {
            let runtime = self.statuses.get(id).and_then(|status| status.runtime_weight);
            match was.get(id) {
                None => tell(id, service, Kind::BackendAdded { weight: *weight }),
                Some((_, before)) if before != weight => {
                    let kind = Kind::BackendWeight {
                        from: runtime.unwrap_or(*before),
                        to: runtime.unwrap_or(*weight),
                        file: *weight,
                    };
                    tell(id, service, kind);
                }
                Some(_) => {}
            }
        }
        for (id, (service, _)) in &was {
            if !is.contains_key(id) {
                tell(id, service, Kind::BackendRemoved);
            }
        }
    }

    /// What a change of the maps did to a service.
    pub(super) fn emit_change(&self, change: &Change) {
        let kind = match change.kind {
            ChangeKind::Added { slots } => Kind::ServiceAdded { slots },
            ChangeKind::Removed => Kind::ServiceRemoved,
            ChangeKind::Table {
                moved,
                slots,
                generation,
            } => Kind::TableSwitched {
                generation,
                moved_slots: moved as u64,
                slots: u64::from(slots),
            },
        };
        self.emit(kind.service(change.name.as_str()));
    }

    /// No backend of a service may take new flows.
    pub(super) fn emit_all_down(&self, service: &DesiredService) {
        let kept = service.why == crate::control::Why::Last;
        self.emit(Kind::AllDown { kept }.service(service.name.as_str()));
    }
}
