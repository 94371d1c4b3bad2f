//! Backends: reading them, and the rules between them and their service.

use std::collections::HashMap;
use std::net::IpAddr;

use lb_common::layout::{SERVICE_TAG_TYPE, TAG_TYPE, Tags};

use crate::model::{Forward, Protocol, ServiceKey};

use super::agent_check::{self, AgentLayer};
use super::check::{
    CheckType, Layer, LayerRead, refuse_foreign_source, refuse_misfits, refuse_misplaced_via, settle_via,
};
use super::fault::{At, Report, Reported};
use super::keys;
use super::machine::Machine;
use super::quic;
use super::types::{Backend, Check, CheckKind, Role};
use super::value;
use super::walk::Walk;

/// What backends have to know of their service.
#[derive(Debug)]
pub(super) struct Context<'c> {
    pub address: Result<IpAddr, Reported>,
    pub port: Result<At<u16>, Reported>,
    pub protocol: Result<Protocol, Reported>,
    pub forward: Result<Forward, Reported>,
    /// `[defaults.check]`.
    pub defaults: Result<&'c Layer, Reported>,
    /// `[service.check]`.
    pub layer: Result<&'c Layer, Reported>,
    pub check_type: Result<Option<CheckType>, Reported>,
    /// `[service.agent_check]`.
    pub agent: Result<Option<&'c AgentLayer>, Reported>,
    /// The table that the backends stand in: `service` or `pool`.
    pub table: &'static str,
    /// The backends are from a pool whose services have different ports.
    pub ports_differ: bool,
    /// Datagrams of a service of the backends are QUIC.
    pub quic: Result<bool, Reported>,
}

impl Context<'_> {
    /// The check of a service's backends that say nothing about it.
    fn service_check(&self) -> Result<Check, Reported> {
        let base = self.defaults?.over(&Check::built_in(self.protocol?));
        Ok(self.layer?.over(&base))
    }

    /// Reports what does not fit together in the service's own check table.
    pub fn judge_service_check(&self, report: &Report<'_>) {
        if let (Ok(check), Ok(layer), Ok(defaults)) = (self.service_check(), self.layer, self.defaults) {
            refuse_misfits(&check, &[layer, defaults], report);
        }
    }

    /// The check of the backend at `address` whose own table is `layer`.
    fn backend_check(
        &self,
        layer: &Layer,
        address: Result<IpAddr, Reported>,
        tagged: bool,
        report: &Report<'_>,
    ) -> Result<Check, Reported> {
        let mut check = layer.over(&self.service_check()?);
        let layers = [layer, self.layer?, self.defaults?];
        refuse_misfits(&check, &layers, report);
        let port = self.port?;
        let service = ServiceKey {
            address: self.address?,
            port: port.value,
            protocol: self.protocol?,
        };
        let forward = self.forward?;
        refuse_misplaced_via(&check, &layers, service, forward, report);
        if let Ok(address) = address {
            settle_via(&mut check, service, forward, address, tagged);
            refuse_foreign_source(&check, &layers, address, report);
        }
        let also = check.also.iter().map(|probe| (&probe.kind, probe.port));
        let lacks_port = [(&check.kind, check.port)]
            .into_iter()
            .chain(also)
            .any(|(kind, port)| port.is_none() && kind.needs_port());
        if port.value == 0 && lacks_port {
            let kind = layer.kind.or(self.layer?.kind);
            report.fault_with_rest(
                kind.map_or(port.offset, |kind| kind.offset),
                "the check needs a port, and the service has more than one",
                "`port` in the check, or `type = \"none\"`",
            );
        }
        if self.ports_differ && lacks_port {
            let kind = layer.kind.or(self.layer?.kind);
            report.fault_with_rest(
                kind.map_or(port.offset, |kind| kind.offset),
                "the check needs a port: the services of the pool have different ones",
                "`port` in the check of the pool",
            );
        }
        Ok(check)
    }
}

/// Reads the backends of one service and remembers what must not come twice.
#[derive(Debug)]
pub(super) struct Backends<'b> {
    service: &'b Context<'b>,
    machine: Option<&'b Machine>,
    report: &'b Report<'b>,
    /// Where each address was first seen.
    addresses: HashMap<IpAddr, usize>,
    quic_ids: quic::Ids,
}

impl<'b> Backends<'b> {
    pub fn new(service: &'b Context<'b>, machine: Option<&'b Machine>, report: &'b Report<'b>) -> Self {
        Self {
            service,
            machine,
            report,
            addresses: HashMap::new(),
            quic_ids: quic::Ids::default(),
        }
    }

    pub fn read(&mut self, walk: &Walk<'_, '_>) -> Result<Backend, Reported> {
        let address = walk.need(&keys::BACKEND_ADDRESS, value::routable_address);
        let port = walk.maybe(&keys::BACKEND_PORT, value::integer);
        let weight = walk.or_default(&keys::WEIGHT, value::integer);
        let backup = walk.or_default(&keys::BACKUP, value::boolean);
        let vlan = walk.maybe(&keys::VLAN, value::integer);
        let vlan_outer = walk.maybe(&keys::VLAN_OUTER, value::integer);
        let quic_ids = self.quic_ids.read(walk, self.service.quic, self.report);
        let LayerRead { layer, .. } = LayerRead::of(walk, self.service.check_type, self.report);

        let own_agent = AgentLayer::of(walk);

        if let Ok(address) = address {
            self.judge_address(address);
        }
        if let Ok(Some(port)) = port {
            self.refuse_translation(port);
        }
        let check = layer.and_then(|layer| {
            let address = address.map(|at| at.value);
            let tagged = matches!(vlan, Ok(Some(_)));
            self.service.backend_check(&layer, address, tagged, self.report)
        });
        let agent_check = own_agent.and_then(|own| {
            let layers = [own.as_ref(), self.service.agent?];
            agent_check::settle(layers, address?.value, self.report)
        });

        let tags = self.tags(vlan, vlan_outer);
        if let (Ok(check), Ok(Some(vlan))) = (&check, vlan)
            && check.goes_forward()
        {
            self.report.fault_with_rest(
                vlan.offset,
                "the check has `via = \"forward\"`, whose probes have no tags",
                "no `vlan` with it: a route through a VLAN interface, and `vlans = true` in [agent]",
            );
        }

        let port = port?.map(|at| at.value);
        Ok(Backend {
            address: address?.value,
            port: port.unwrap_or(self.service.port?.value),
            weight: weight?,
            role: if backup? { Role::Backup } else { Role::Primary },
            tags: tags?,
            quic_ids: quic_ids?,
            check: check?,
            agent_check: agent_check?,
        })
    }

    /// The backend that answers when nobody serves.
    pub fn sorry(&mut self, address: At<IpAddr>) -> Result<Backend, Reported> {
        self.judge_address(address);
        Ok(Backend {
            address: address.value,
            port: self.service.port?.value,
            weight: 1,
            role: Role::Sorry,
            tags: None,
            quic_ids: Vec::new(),
            check: Check {
                kind: CheckKind::None,
                ..Check::built_in(self.service.protocol?)
            },
            agent_check: None,
        })
    }

    fn tags(
        &self,
        vlan: Result<Option<At<u16>>, Reported>,
        outer: Result<Option<At<u16>>, Reported>,
    ) -> Result<Option<Tags>, Reported> {
        let inner = |tags: Tags, vlan: At<u16>| tags.within(TAG_TYPE, vlan.value);
        match (vlan?, outer?) {
            (None, None) => Ok(None),
            (Some(vlan), None) => Ok(Some(inner(Tags::NONE, vlan))),
            (Some(vlan), Some(outer)) => Ok(Some(inner(
                Tags::NONE.within(SERVICE_TAG_TYPE, outer.value),
                vlan,
            ))),
            (None, Some(outer)) => Err(self.report.fault_with_rest(
                outer.offset,
                "`vlan_outer` is the tag around that of `vlan`, which is missing",
                "`vlan` too; for one tag only `vlan`",
            )),
        }
    }

    fn judge_address(&mut self, address: At<IpAddr>) {
        let At { value, offset } = address;
        let first = *self.addresses.entry(value).or_insert(offset);
        if first != offset {
            self.report.fault(
                offset,
                format!("the backend of line {} is {value} too", self.report.line(first)),
                "each backend of a service once",
            );
            return;
        }
        if self.service.address.is_ok_and(|service| service == value) {
            self.report.fault_with_rest(
                offset,
                format!("{value} is the address of the service"),
                "the backend's own address",
            );
            return;
        }
        if self
            .machine
            .is_some_and(|machine| machine.addresses.contains(&value))
        {
            self.report.fault_with_rest(
                offset,
                format!("{value} is an address of this machine: packets leave it through its interfaces"),
                "the address of another host",
            );
            return;
        }
        if let (Ok(service), Ok(forward)) = (self.service.address, self.service.forward) {
            self.judge_family(address, service, forward);
        }
    }

    fn judge_family(&self, address: At<IpAddr>, service: IpAddr, forward: Forward) {
        let family = |address: IpAddr| if address.is_ipv4() { "IPv4" } else { "IPv6" };
        let fits = match (service, address.value, forward) {
            (IpAddr::V4(_), IpAddr::V6(_), forward) => forward.encapsulates(),
            (service, backend, _) => service.is_ipv4() == backend.is_ipv4(),
        };
        if !fits {
            let expected = match (service, forward) {
                (IpAddr::V4(_), Forward::DsrL2) => {
                    "an IPv4 address, or `forward = \"dsr-ipip\"`, which carries IPv4 in IPv6"
                }
                (IpAddr::V4(_), Forward::DsrIpip | Forward::DsrGue) => "an IPv4 or IPv6 address",
                (IpAddr::V4(_), Forward::Nat | Forward::FullNat) => "an IPv4 address",
                (IpAddr::V6(_), _) => "an IPv6 address",
            };
            self.report.fault_with_rest(
                address.offset,
                format!(
                    "the backend's address {} is {}, the service's is {} and `forward` is \"{forward}\"",
                    address.value,
                    family(address.value),
                    family(service)
                ),
                expected,
            );
        }
    }

    /// Ports are translated by `nat` and `full-nat` alone: in the DSR modes the backend sees the client's packet.
    fn refuse_translation(&self, port: At<u16>) {
        if let (Ok(service_port), Ok(forward)) = (self.service.port, self.service.forward)
            && !forward.translates()
            && service_port.value != port.value
        {
            self.report.fault_with_rest(
                port.offset,
                format!(
                    "the backend's port is {}, the service's {}: \"{forward}\" does not translate ports",
                    port.value, service_port.value
                ),
                format!(
                    "{} or no `port`, or forward \"nat\" or \"full-nat\"",
                    service_port.value
                ),
            );
        }
    }
}
