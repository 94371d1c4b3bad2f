//! Who is a backend of what: asked for every result of a probe, so answered without walking through the configuration.

use std::collections::{HashMap, HashSet};

use super::Agent;
use crate::config::{Config, Service};
use crate::control::BackendStatus;
use crate::model::{BackendId, ServiceKey};

/// Backends and services by their names, as of the last time that targets were set.
#[derive(Debug, Default)]
pub(super) struct Members {
    /// Backends of the configuration in force, and of one that waits.
    ids: HashSet<BackendId>,
    /// Where the services of the configuration in force stand in it.
    services: HashMap<ServiceKey, usize>,
}

impl Members {
    pub fn of(in_force: &Config, waiting: Option<&Config>) -> Self {
        let configs = [Some(in_force), waiting].into_iter().flatten();
        let ids = configs.flat_map(|config| &config.services).flat_map(|service| {
            let backends = service.backends.iter();
            backends.map(|backend| backend.id(service.key))
        });
        let services = in_force.services.iter().enumerate();
        Self {
            ids: ids.collect(),
            services: services.map(|(place, service)| (service.key, place)).collect(),
        }
    }

    /// All backends.
    pub fn all(&self) -> impl Iterator<Item = &BackendId> {
        self.ids.iter()
    }
}

impl Agent {
    /// Whether a backend is checked: it is in the configuration, or in the one that a reload waits with, and not
    /// in maintenance.
    pub(super) fn checks(&self, id: &BackendId) -> bool {
        self.members.ids.contains(id) && self.statuses.get(id).is_none_or(BackendStatus::is_probed)
    }

    /// A service of the configuration in force.
    pub(super) fn service(&self, key: &ServiceKey) -> Option<&Service> {
        let services = &self.config.services;
        let noted = self
            .members
            .services
            .get(key)
            .and_then(|place| services.get(*place));
        match noted {
            Some(service) if service.key == *key => Some(service),
            // In the middle of a reload the places are those of before.
            _ => services.iter().find(|service| service.key == *key),
        }
    }

    /// `10.0.1.11:80 of web`.
    pub(super) fn describe(&self, id: &BackendId) -> String {
        let address = std::net::SocketAddr::new(id.address, id.port);
        match self.service(&id.service) {
            Some(service) => format!("{address} of {}", service.name),
            None => format!("{address} of {}", id.service),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(address: &str) -> Config {
        let text = format!(
            "schema = 1\n[agent]\ninterfaces = [\"lo\"]\n[[service]]\nname = \"web\"\naddress = \"{address}\"\nport = 80\n\
             protocol = \"tcp\"\nforward = \"dsr-l2\"\n[[service.backend]]\naddress = \"10.0.1.11\"\n"
        );
        Config::parse(&text).unwrap_or_else(|faults| panic!("{faults}"))
    }

    #[test]
    fn backends_of_both_configurations_are_members_and_services_those_of_one() {
        let (one, other) = (config("192.0.2.1"), config("192.0.2.2"));
        let id = |config: &Config| config.services[0].backends[0].id(config.services[0].key);
        let members = Members::of(&one, Some(&other));
        assert!(members.ids.contains(&id(&one)) && members.ids.contains(&id(&other)));
        assert_eq!(members.services.get(&one.services[0].key), Some(&0));
        assert_eq!(members.services.get(&other.services[0].key), None);
        assert!(!Members::of(&one, None).ids.contains(&id(&other)));
    }
}
