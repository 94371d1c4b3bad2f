//! `maxconn:` of agent checks: a backend with as many connections as it says it takes gets no new ones.
//!
//! Only where all flows are remembered (`tracking = "full"`) is it known how many a backend has, as far as one direction
//! tells. Where all that could serve are full the limit yields: to refuse everybody is worse than a full backend.

use std::collections::{BTreeMap, BTreeSet};

use super::Agent;
use crate::control::{self, Steer};
use crate::model::{AdminState, BackendId, OperState, ServiceKey, Tracking};

impl Agent {
    /// Looks who is full, and who no longer.
    pub(super) fn look_who_is_full(&mut self) {
        let limits: Vec<(BackendId, u32)> = self.agents.limits().collect();
        let full = self.full(&limits);
        let changed: Vec<BackendId> = self
            .statuses
            .iter()
            .filter(|(id, status)| status.steer.full != full.contains(id))
            .map(|(id, _)| *id)
            .collect();
        for id in changed {
            let is_full = full.contains(&id);
            log::info!(
                "backend {}: {}",
                self.describe(&id),
                if is_full {
                    "it has as many connections as it takes"
                } else {
                    "it takes new connections again"
                }
            );
            let status = self.statuses.entry(id).or_default();
            status.steer = Steer {
                full: is_full,
                ..status.steer
            };
            self.behind = true;
        }
    }

    fn full(&self, limits: &[(BackendId, u32)]) -> BTreeSet<BackendId> {
        let mut full = BTreeSet::new();
        let mut touched: BTreeMap<ServiceKey, ()> = BTreeMap::new();
        for (probed, limit) in limits {
            let mut group = self.sharing.with(probed);
            group.retain(|id| {
                self.service(&id.service)
                    .is_some_and(|service| service.tracking() == Tracking::Full)
            });
            let active = |id: &BackendId| {
                let index = self.dataplane.index_of(id);
                index.map_or(0, |index| self.dataplane.maps.flow_cache.active(index))
            };
            let active: u64 = group.iter().map(active).sum();
            let was = group
                .iter()
                .any(|id| self.statuses.get(id).is_some_and(|status| status.steer.full));
            if !group.is_empty() && control::is_full(active, *limit, was) {
                touched.extend(group.iter().map(|id| (id.service, ())));
                full.extend(group);
            }
        }
        for service in touched.into_keys() {
            if !self.somebody_has_room(&service, &full) {
                full.retain(|id| id.service != service);
            }
        }
        full
    }

    /// Whether a backend of a service that is not full could serve.
    fn somebody_has_room(&self, service: &ServiceKey, full: &BTreeSet<BackendId>) -> bool {
        let backends = self.service(service).into_iter().flat_map(|service| {
            let backends = service.backends.iter();
            backends.map(|backend| (backend.id(service.key), backend.weight))
        });
        backends.into_iter().any(|(id, weight)| {
            !full.contains(&id)
                && self.statuses.get(&id).is_some_and(|status| {
                    status.state_in_force() == OperState::Up
                        && status.admin_in_force() == AdminState::Ready
                        && status.weight_in_force(weight) > 0
                })
        })
    }
}
