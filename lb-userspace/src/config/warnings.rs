//! What is allowed and yet worth saying.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::maglev;
use crate::model::Protocol;

use super::quic;
use super::types::{Check, CheckKind, Config, Role, Service};

/// How many slots of a lookup table a backend should have, so that shares follow the weights.
const SLOTS_PER_BACKEND: usize = 100;

impl Config {
    /// What an operator should know about this configuration, a sentence each.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        if self.services.is_empty() {
            return vec!["there is no service: every packet is passed".to_owned()];
        }
        let hidden = self.services.iter().flat_map(|service| self.hides(service));
        self.services
            .iter()
            .flat_map(service_warnings)
            .chain(hidden)
            .collect()
    }

    /// The backends whose answers have to come back through the program.
    #[must_use]
    pub fn translated_backends(&self) -> BTreeSet<IpAddr> {
        let services = self
            .services
            .iter()
            .filter(|service| service.forward.translates());
        let backends = services.flat_map(|service| &service.backends);
        backends.map(|backend| backend.address).collect()
    }

    /// The same for the interfaces that [`Config::translated_backends`] are reached by.
    #[must_use]
    pub fn answers_missed(&self, reached_by: &BTreeMap<IpAddr, String>) -> Vec<String> {
        let mut missed = Vec::new();
        for service in self
            .services
            .iter()
            .filter(|service| service.forward.translates())
        {
            for backend in &service.backends {
                let Some(interface) = reached_by.get(&backend.address) else {
                    continue;
                };
                if !self.agent.interfaces.contains(interface) {
                    missed.push(format!(
                        "service {}: backend {} is reached by {interface}, which is not among `interfaces`: its answers \
                         would not be translated, and it will take no flows",
                        service.name, backend.address
                    ));
                }
            }
        }
        missed
    }

    /// What a service takes away from wider ones.
    fn hides<'c>(&'c self, service: &'c Service) -> impl Iterator<Item = String> + 'c {
        let (first, last) = service.ports();
        let wider = self.services.iter().filter(move |wide| {
            let (from, to) = wide.ports();
            let same = (wide.key.address, wide.key.protocol) == (service.key.address, service.key.protocol);
            same && to - from > last - first && from <= last && first <= to
        });
        wider.map(move |wide| {
            let own = match service.last_port {
                None => format!("port {first}"),
                Some(last) => format!("ports {first}-{last}"),
            };
            let whole = match wide.last_port {
                None => "every port".to_owned(),
                Some(last) => format!("ports {}-{last}", wide.key.port),
            };
            format!(
                "service {}: takes {own} out of service {}, which has {whole} of {}",
                service.name, wide.name, service.key.address
            )
        })
    }
}

fn service_warnings(service: &Service) -> Vec<String> {
    let mut warnings = Vec::new();
    let name = &service.name;
    let slots = service
        .table_size
        .unwrap_or_else(|| maglev::size_for(service.backends.len()));
    let wanted = service.backends.len().saturating_mul(SLOTS_PER_BACKEND);
    if usize::try_from(slots).is_ok_and(|slots| slots < wanted) {
        warnings.push(format!(
            "service {name}: a lookup table of {slots} slots for {} backends is less than \
             {SLOTS_PER_BACKEND} a backend; shares will be off the weights",
            service.backends.len()
        ));
    }
    let checked: Vec<_> = service
        .backends
        .iter()
        .filter(|backend| backend.role != Role::Sorry)
        .collect();
    if checked.iter().all(|backend| backend.weight == 0) {
        warnings.push(format!(
            "service {name}: every backend has weight 0; it takes no new flows"
        ));
    }
    let limits = service.limits.as_ref();
    let (flows, packets) = limits.map_or((false, false), |limits| {
        let flows = limits.new_flows.or(limits.new_flows_per_client);
        (flows.is_some(), limits.udp_packets_per_client.is_some())
    });
    match service.key.protocol {
        Protocol::Tcp if packets => warnings.push(format!(
            "service {name}: `udp_packets_per_client` limits nothing of a TCP service"
        )),
        Protocol::Udp if flows => warnings.push(format!(
            "service {name}: UDP does not show which packet begins a flow; limits of new flows limit nothing there"
        )),
        _ => {}
    }
    warnings.extend(quic::warning(service));
    let count = |is: fn(&Check) -> bool| checked.iter().filter(|backend| is(&backend.check)).count();
    let of = checked.len();
    let primaries = checked
        .iter()
        .filter(|backend| backend.role == Role::Primary)
        .count();
    let quorum = service.rules.quorum as usize;
    if primaries < quorum && primaries < of {
        warnings.push(format!(
            "service {name}: the quorum is {quorum} of {primaries} backends, so its backups are always used"
        ));
    }
    let unchecked = count(|check| check.kind == CheckKind::None);
    if unchecked > 0 {
        warnings.push(format!(
            "service {name}: {unchecked} of {of} backends are not checked and count as UP whatever happens"
        ));
    }
    let slow = count(|check| check.kind != CheckKind::None && check.fast_interval > check.interval);
    if slow > 0 {
        warnings.push(format!(
            "service {name}: `fast_interval` is longer than `interval` for {slow} of {of} backends"
        ));
    }
    let patient = count(|check| check.kind != CheckKind::None && check.fast_timeout > check.timeout);
    if patient > 0 {
        warnings.push(format!(
            "service {name}: `fast_timeout` is longer than `timeout` for {patient} of {of} backends"
        ));
    }
    warnings
}
