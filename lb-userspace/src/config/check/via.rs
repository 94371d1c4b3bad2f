//! Which way probes take: through the forward path wherever that can be, unless the file says otherwise.

use std::net::IpAddr;

use super::{CheckType, Layer};
use crate::config::fault::Report;
use crate::config::types::{Check, CheckKind, Via};
use crate::model::{Forward, Protocol, ServiceKey};

/// Decides for the probes of `check` that the file leaves to us. A probe goes the way of clients' packets where what it
/// asks is asked of the port of the service, the mode is one in which answers do not come back this way by themselves,
/// and it can be sent so: without tags of a VLAN, from an address of the service's family.
pub(in crate::config) fn settle_via(
    check: &mut Check,
    service: ServiceKey,
    forward: Forward,
    backend: IpAddr,
    tagged: bool,
) {
    let settled = |via: Via, kind: &CheckKind, elsewhere: bool, source: Option<IpAddr>| {
        let from = source.unwrap_or(backend);
        let can = !forward.translates()
            && !tagged
            && !elsewhere
            && service.port != 0
            && protocol_of(kind) == Some(service.protocol)
            && from.is_ipv4() == service.address.is_ipv4();
        match via {
            Via::Auto if can => Via::Forward,
            Via::Auto => Via::Direct,
            said => said,
        }
    };
    let elsewhere = |address: Option<IpAddr>, port: Option<u16>| {
        address.is_some_and(|address| address != backend) || port.is_some_and(|port| port != service.port)
    };
    check.via = settled(
        check.via,
        &check.kind,
        elsewhere(check.address, check.port),
        check.source,
    );
    for probe in &mut check.also {
        let elsewhere = elsewhere(probe.address, probe.port);
        probe.via = settled(probe.via, &probe.kind, elsewhere, probe.source);
    }
}

/// The transport of what is asked of a port; `None`: no port is asked.
fn protocol_of(kind: &CheckKind) -> Option<Protocol> {
    match kind {
        CheckKind::None | CheckKind::Icmp | CheckKind::Exec(_) => None,
        CheckKind::Udp(_) | CheckKind::Dns(_) => Some(Protocol::Udp),
        CheckKind::Tcp | CheckKind::Http(_) | CheckKind::Https(..) | CheckKind::Grpc(_) => {
            Some(Protocol::Tcp)
        }
    }
}

/// Reports probes through the forward path that are none: only what is asked of the port of the service can go that
/// way.
pub(in crate::config) fn refuse_misplaced_via(
    check: &Check,
    layers: &[&Layer],
    service: ServiceKey,
    forward: Forward,
    report: &Report<'_>,
) {
    let own = layers.iter().find_map(|layer| layer.specific.via);
    let also = layers.iter().find_map(|layer| layer.also.as_ref());
    let places = also.into_iter().flatten().map(|also| also.specific.via);
    let probes = check.also.iter().map(|probe| {
        let elsewhere = probe.address.is_some() || probe.port.is_some();
        (probe.via, &probe.kind, elsewhere)
    });
    let elsewhere = check.address.is_some() || check.port.is_some();
    for ((via, kind, elsewhere), place) in [(check.via, &check.kind, elsewhere)]
        .into_iter()
        .chain(probes)
        .zip([own].into_iter().chain(places))
    {
        let (Via::Forward, Some(place)) = (via, place) else {
            continue;
        };
        if elsewhere {
            report.fault_with_rest(
                place.offset,
                "`via` is \"forward\", and the check has an `address` or a `port` of its own",
                "neither of them: such a probe goes to the address and port of the service",
            );
        }
        if forward.translates() {
            report.fault_with_rest(
                place.offset,
                format!("`via` is \"forward\", and the service's `forward` is \"{forward}\""),
                "\"direct\": a probe of the backend's own address goes the same way",
            );
        }
        let (needed, name) = match kind {
            CheckKind::Udp(_) | CheckKind::Dns(_) => (Protocol::Udp, "UDP"),
            _ => (Protocol::Tcp, "TCP"),
        };
        if service.protocol != needed || service.port == 0 {
            let kind = CheckType::of(kind).name();
            report.fault_with_rest(
                place.offset,
                format!("`via` of a check of type \"{kind}\" is \"forward\", and the service is {service}"),
                format!("a service of one {name} port with it"),
            );
        }
    }
}
