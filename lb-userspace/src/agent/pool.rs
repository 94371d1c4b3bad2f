//! Backends that services share, and backends that flap.
//!
//! A backend of a pool is one [`BackendId`] in each of its services, and one target of the prober: the one that is
//! probed already, else the first of them that is probed through the forward path, else the first. What the
//! probes say, and what operators order, holds for all.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Instant, SystemTime};

use super::Agent;
use crate::config::Config;
use crate::control::flap::FlapRules;
use crate::model::{BackendId, OperState};
use crate::observe::{Kind, Timestamp};

/// Who shares its checks with whom.
#[derive(Clone, Debug, Default)]
pub(super) struct Sharing {
    /// All of one group, the first being the one that is probed, by each of its members.
    groups: BTreeMap<BackendId, Vec<BackendId>>,
}

impl Sharing {
    /// Of these configurations together; who was probed `before` goes on to be.
    pub fn of(configs: &[&Config], before: &Self) -> Self {
        let probed: BTreeSet<BackendId> = before.groups.values().map(|group| group[0]).collect();
        let mut by_pool: BTreeMap<(&str, IpAddr), Vec<BackendId>> = BTreeMap::new();
        let mut forward: BTreeSet<BackendId> = BTreeSet::new();
        for config in configs {
            for service in &config.services {
                let Some(pool) = &service.pool else { continue };
                // A sorry backend is the service's own.
                for backend in service.backends.iter().filter(|backend| backend.in_pool()) {
                    let group = by_pool.entry((pool, backend.address)).or_default();
                    let id = backend.id(service.key);
                    if backend.check.goes_forward() {
                        forward.insert(id);
                    }
                    if !group.contains(&id) {
                        group.push(id);
                    }
                }
            }
        }
        let mut groups = BTreeMap::new();
        for mut group in by_pool.into_values() {
            // Else the one that is probed the way of its clients' packets; the sort is stable.
            group.sort_by_key(|id| (!probed.contains(id), !forward.contains(id)));
            for id in &group {
                groups.insert(*id, group.clone());
            }
        }
        Self { groups }
    }

    /// All that share with `id`, itself among them.
    pub fn with(&self, id: &BackendId) -> Vec<BackendId> {
        self.groups.get(id).cloned().unwrap_or_else(|| vec![*id])
    }

    /// The one that is probed for `id`.
    pub fn probed(&self, id: &BackendId) -> BackendId {
        self.groups.get(id).map_or(*id, |group| group[0])
    }
}

impl Agent {
    /// Services that join a pool find its backends as they are.
    pub(super) fn inherit(&mut self, id: &BackendId) {
        let known = self
            .sharing
            .with(id)
            .into_iter()
            .find_map(|other| self.statuses.get(&other).copied());
        self.statuses.entry(*id).or_insert(known.unwrap_or_default());
    }

    /// The state of a backend whose checks say `said`, and said `changed` before: DOWN while it is held there.
    pub(super) fn damped(
        &mut self,
        id: &BackendId,
        said: OperState,
        changed: Option<(OperState, OperState)>,
        now: Instant,
    ) -> OperState {
        let rules = self.flap_rules(id);
        let went_down = changed == Some((OperState::Up, OperState::Down));
        if rules.limit == 0 {
            self.flaps.remove(id);
            return said;
        }
        if !went_down && !self.flaps.contains_key(id) {
            return said;
        }
        let flaps = self.flaps.entry(*id).or_default();
        let held = went_down.then(|| flaps.went_down(rules, now)).flatten();
        let released = flaps.release(now);
        let is_held = flaps.held_until(now).is_some();
        if let Some((flaps, until)) = held {
            let lasts = until.saturating_duration_since(now);
            log::warn!(
                "backend {}: it flapped ({flaps} times DOWN within {}) and is held DOWN for {}",
                self.describe(id),
                humantime::format_duration(rules.window),
                humantime::format_duration(lasts)
            );
            let until = Timestamp::of(SystemTime::now() + lasts);
            self.emit(self.about(id, Kind::FlapHeld { flaps, until }));
        } else if released {
            log::info!("backend {}: it is no longer held DOWN", self.describe(id));
            self.emit(self.about(id, Kind::FlapReleased));
        }
        match said {
            OperState::Up if is_held => OperState::Down,
            said => said,
        }
    }

    /// Ends a hold: an operator knows better than what was counted. Says whether there was one; the next result
    /// decides.
    pub(super) fn release(&mut self, id: &BackendId) -> bool {
        let now = Instant::now();
        let held = self.flaps.remove(id);
        held.is_some_and(|flaps| flaps.held_until(now).is_some())
    }

    /// Until when a backend is held DOWN.
    pub(super) fn held_until(&self, id: &BackendId) -> Option<SystemTime> {
        let now = Instant::now();
        let until = self.flaps.get(id)?.held_until(now)?;
        Some(SystemTime::now() + until.saturating_duration_since(now))
    }

    fn flap_rules(&self, id: &BackendId) -> FlapRules {
        self.service(&id.service)
            .map_or_else(FlapRules::default, |service| service.rules.flaps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(services: &[&str]) -> Config {
        let mut text = "schema = 1\n[agent]\ninterfaces = [\"lo\"]\n[[pool]]\nname = \"front\"\n\
                        [[pool.backend]]\naddress = \"10.0.1.11\"\n[[pool.backend]]\naddress = \"10.0.1.12\"\n"
            .to_owned();
        for service in services {
            text += &format!(
                "[[service]]\nname = \"s{service}\"\naddress = \"{service}\"\nport = 80\nprotocol = \"tcp\"\n\
                 forward = \"dsr-l2\"\npool = \"front\"\nsorry = \"10.0.1.99\"\n"
            );
        }
        Config::parse(&text).unwrap_or_else(|faults| panic!("{faults}"))
    }

    fn ids(config: &Config, service: usize) -> Vec<BackendId> {
        let service = &config.services[service];
        service.backends.iter().map(|b| b.id(service.key)).collect()
    }

    #[test]
    fn one_of_each_group_is_probed() {
        let config = config(&["192.0.2.1", "192.0.2.2"]);
        let (first, second) = (ids(&config, 0), ids(&config, 1));
        let sharing = Sharing::of(&[&config], &Sharing::default());
        assert_eq!(sharing.with(&second[0]), [first[0], second[0]]);
        assert_eq!(sharing.probed(&second[1]), first[1]);
        assert_eq!(
            sharing.with(&second[2]),
            [second[2]],
            "sorry backends are not shared"
        );
    }

    #[test]
    fn the_way_of_clients_is_preferred() {
        let config = config(&["192.0.2.1", "192.0.2.2"]);
        let mut other = config.clone();
        for backend in &mut other.services[0].backends {
            backend.check.via = crate::config::Via::Direct;
        }
        let second = ids(&config, 1);
        let sharing = Sharing::of(&[&other], &Sharing::default());
        assert_eq!(sharing.probed(&second[0]), second[0]);
    }

    #[test]
    fn who_is_probed_goes_on_to_be() {
        let (two, one) = (config(&["192.0.2.1", "192.0.2.2"]), config(&["192.0.2.2"]));
        let second = ids(&two, 1);
        let before = Sharing::of(&[&one], &Sharing::default());
        let sharing = Sharing::of(&[&two, &one], &before);
        assert_eq!(sharing.probed(&ids(&two, 0)[0]), second[0]);
        assert_eq!(sharing.with(&second[0]).len(), 2);
    }
}
