//! Services: reading them, and the rules between them.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::model::{Forward, Protocol, Scheduler, ServiceKey, Tracking};

use super::access;
use super::agent_check::AgentLayer;
use super::backend::{Backends, Context};
use super::check::{CheckType, Layer, LayerRead};
use super::fault::{At, Report, Reported};
use super::keys::{self, Key};
use super::limit;
use super::machine::Machine;
use super::outer;
use super::pool::RulesLayer;
use super::pools::{Pool, Pools};
use super::quic;
use super::snat::Snat;
use super::types::{Backend, Check, OnAllDown, PoolRules, Role, Service};
use super::value;
use super::walk::Walk;

/// Reads the services of a file and remembers what must not come twice.
#[derive(Debug)]
pub(super) struct Services<'r> {
    machine: Option<&'r Machine>,
    report: &'r Report<'r>,
    /// Where each name, and each key, was first seen.
    names: HashMap<String, usize>,
    keys: HashMap<ServiceKey, usize>,
    /// The ranges of ports: the key of the service, which has the first, the last one, and where it stands.
    ranges: Vec<(ServiceKey, u16, usize)>,
    /// Where each service, and each backend, begins.
    service_offsets: Vec<usize>,
    backend_offsets: Vec<usize>,
    /// The addresses of services of `full-nat`, and where their `forward` stands.
    full_nat: Vec<(IpAddr, usize)>,
}

impl<'r> Services<'r> {
    pub fn new(machine: Option<&'r Machine>, report: &'r Report<'r>) -> Self {
        Self {
            machine,
            report,
            names: HashMap::new(),
            keys: HashMap::new(),
            ranges: Vec::new(),
            service_offsets: Vec::new(),
            backend_offsets: Vec::new(),
            full_nat: Vec::new(),
        }
    }

    /// The services of the file `root`.
    pub fn read(&mut self, root: &Walk<'_, '_>) -> Result<Vec<Service>, Reported> {
        let defaults = Defaults::read(root, self.report);
        let walks = root.tables(&keys::SERVICES)?;
        let pools = Pools::read(root, &walks, self.report)?;
        let services: Vec<_> = walks
            .into_iter()
            .map(|walk| self.service(&walk?, &defaults, &pools))
            .collect();
        for (pool, reported) in pools.unused(self.report) {
            self.judge_unused(pool, &defaults, reported);
        }
        defaults.check.layer?;
        defaults.rules?;
        services.into_iter().collect()
    }

    /// Reports the first service and the first backend beyond the limits that the agent's table sets.
    pub fn refuse_too_many(&self, agent: &Walk<'_, '_>) {
        self.refuse_beyond(agent, &keys::MAX_SERVICES, "services", &self.service_offsets);
        self.refuse_beyond(agent, &keys::MAX_BACKENDS, "backends", &self.backend_offsets);
    }

    /// Reports services that need an address to rewrite sources to, and addresses that are a service's.
    pub fn judge_snat(&self, snat: &Snat) {
        for (address, offset) in &self.full_nat {
            if snat.of_family(*address).next().is_none() {
                let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
                self.report.fault_with_rest(
                    *offset,
                    format!(
                        "`forward` is \"full-nat\", and [agent] has no {family} address to rewrite sources to"
                    ),
                    format!("an {family} address in `snat_addresses` of [agent]"),
                );
            }
        }
        for (key, offset) in &self.keys {
            if snat.addresses.contains(&key.address) {
                self.report.fault_with_rest(
                    *offset,
                    format!("{} is one of `snat_addresses` too", key.address),
                    "another address for one of them",
                );
            }
        }
    }

    fn refuse_beyond(&self, agent: &Walk<'_, '_>, limit_key: &Key, what: &str, offsets: &[usize]) {
        let Ok(limit) = agent.or_default::<u32>(limit_key, value::integer) else {
            return;
        };
        let beyond = usize::try_from(limit).ok().and_then(|limit| offsets.get(limit));
        if let Some(&offset) = beyond {
            self.report.fault_with_rest(
                offset,
                format!("there are {} {what}", offsets.len()),
                format!("at most {limit} (`{}` of [agent])", limit_key.name),
            );
        }
    }

    fn service(
        &mut self,
        walk: &Walk<'_, '_>,
        defaults: &Defaults,
        pools: &Pools<'_, '_>,
    ) -> Result<Service, Reported> {
        self.service_offsets.push(walk.offset);
        let name = walk.need(&keys::NAME, value::name);
        let address = walk.need(&keys::SERVICE_ADDRESS, value::routable_address);
        let port = walk.need(&keys::SERVICE_PORT, value::service_port);
        let protocol = walk.need(&keys::PROTOCOL, value::choice);
        let forward = walk.need(&keys::FORWARD, value::choice);
        let outer_sources = outer::read(walk, &forward, self.report);
        let quic = quic::read(walk, &protocol, self.report);
        let scheduler = walk.or_default(&keys::SCHEDULER, value::choice);
        let table_size = walk.maybe(&keys::TABLE_SIZE, value::integer);
        let sorry = walk.maybe(&keys::SORRY, value::routable_address);
        let rules = self.rules(walk, defaults, &sorry);
        let own_address = address.as_ref().map(|at| at.value).map_err(|reported| *reported);
        let access = access::read(walk, own_address, self.report);
        let limits = limit::read(walk, self.report);
        let pool_name = walk.maybe(&keys::SERVICE_POOL, value::name);
        let pool = match &pool_name {
            Ok(Some(name)) => pools.find(name, self.report).map(Some),
            Ok(None) => Ok(None),
            Err(reported) => Err(*reported),
        };
        if matches!(pool_name, Ok(Some(_))) {
            self.refuse_own_beside_pool(walk);
        }
        // What backends and checks are read from.
        let source = pool.map(|pool| pool.map_or(walk, |pool| &pool.walk));
        let shared = pool.ok().flatten();
        let checked: Result<Protocol, Reported> = match (&protocol, shared) {
            (
                Ok(_),
                Some(Pool {
                    protocol: Some(shared),
                    ..
                }),
            ) => Ok(*shared),
            (Ok(protocol), _) => Ok(protocol.value),
            (Err(reported), _) => Err(*reported),
        };
        let LayerRead { check_type, layer } = match source {
            Ok(source) => LayerRead::of(source, base_type(defaults.check.check_type, checked), self.report),
            Err(reported) => LayerRead {
                check_type: Err(reported),
                layer: Err(reported),
            },
        };

        let agent = source.and_then(AgentLayer::of);

        if let Ok(name) = &name {
            self.refuse_second_name(name);
        }
        if let (Ok(address), Ok(port), Ok(protocol)) = (&address, &port, &protocol) {
            let key = ServiceKey {
                address: address.value,
                port: port.value.0,
                protocol: protocol.value,
            };
            self.refuse_second_key(key, address.offset);
            self.refuse_overlap(key, port);
            self.refuse_own_address_whole(key, address.offset);
        }
        let context = Context {
            address: address.map(|at| at.value),
            // Backends of several ports are given the packet's own, as those of every port.
            port: port.as_ref().map_err(|&reported| reported).map(|port| At {
                value: match port.value {
                    (first, None) => first,
                    _ => 0,
                },
                offset: port.offset,
            }),
            protocol: checked,
            forward: forward.as_ref().map(|at| at.value).map_err(|reported| *reported),
            table: if shared.is_some() { "pool" } else { "service" },
            ports_differ: shared.is_some_and(|pool| pool.ports_differ),
            quic: shared.map_or(quic, |pool| Ok(pool.quic)),
            defaults: defaults.check.layer.as_ref().map_err(|&reported| reported),
            layer: layer.as_ref().map_err(|&reported| reported),
            check_type,
            agent: agent.as_ref().map(Option::as_ref).map_err(|&reported| reported),
        };
        let backends = source.and_then(|source| self.backends(source, &context, sorry));

        if let (Ok(scheduler), Ok(rules), Some(offset)) = (&scheduler, &rules, walk.place(&keys::TRACKING)) {
            self.refuse_to_forget(*scheduler, rules, offset);
        }
        let mut rules = rules;
        if let (
            Ok(At {
                value: forward,
                offset,
            }),
            Ok(rules),
        ) = (&forward, &mut rules)
            && forward.translates()
        {
            if let (Ok(address), Forward::FullNat) = (&address, forward) {
                self.full_nat.push((address.value, *offset));
            }
            if rules.persistence_timeout.is_some() {
                self.report.fault_with_rest(
                    walk.place(&keys::PERSISTENCE_TIMEOUT).unwrap_or(*offset),
                    format!("`persistence_timeout` is not built yet for forward \"{forward}\""),
                    "no `persistence_timeout`: scheduler \"sh\" keeps clients with their backend",
                );
            }
            self.judge_translation(walk, *forward, scheduler, rules.tracking);
            // Every flow has its entries.
            rules.tracking = Tracking::Full;
        }

        layer?;
        Ok(Service {
            name: name?.value,
            key: ServiceKey {
                address: address?.value,
                port: port.as_ref().map_err(|&reported| reported)?.value.0,
                protocol: protocol?.value,
            },
            last_port: port?.value.1,
            forward: forward?.value,
            outer_sources: outer_sources?,
            quic: quic?,
            scheduler: scheduler?,
            table_size: table_size?.map(|at| at.value),
            rules: rules?,
            access: access?,
            limits: limits?,
            pool: pool_name?.map(|name| name.value),
            backends: backends?,
        })
    }

    /// The choice of some schedulers cannot be found again, nor where a client was before: their flows are all
    /// remembered.
    fn refuse_to_forget(&self, scheduler: Scheduler, rules: &PoolRules, offset: usize) {
        let tracking = rules.tracking;
        if tracking == Tracking::Full {
            return;
        }
        let why = if scheduler.is_free() {
            format!("scheduler {scheduler}")
        } else {
            "a service with a persistence_timeout".to_owned()
        };
        if scheduler.is_free() || rules.persistence_timeout.is_some() {
            self.report.fault(
                offset,
                format!("`tracking` is \"{tracking}\", but {why} has to remember every flow"),
                "\"full\", or no `tracking`",
            );
        }
    }

    /// What does not go together with translated addresses.
    fn judge_translation(
        &self,
        walk: &Walk<'_, '_>,
        forward: Forward,
        scheduler: Result<Scheduler, Reported>,
        tracking: Tracking,
    ) {
        if let (Ok(scheduler), Some(offset)) = (scheduler, walk.place(&keys::SCHEDULER))
            && scheduler.is_free()
        {
            self.report.fault(
                offset,
                format!("`scheduler` is \"{scheduler}\", which is not built yet for forward \"{forward}\""),
                "\"maglev\" or \"sh\"",
            );
        }
        if let Some(offset) = walk.place(&keys::TRACKING)
            && tracking != Tracking::Full
        {
            self.report.fault(
                offset,
                format!("`tracking` is \"{tracking}\", but \"{forward}\" has an entry for every flow"),
                "\"full\", or no `tracking`",
            );
        }
    }

    /// What a pool has a service cannot have besides.
    fn refuse_own_beside_pool(&self, walk: &Walk<'_, '_>) {
        for (key, expected) in [
            (&keys::BACKENDS, "backends in the [[pool]] alone, or no `pool`"),
            (
                &keys::CHECK_TABLE,
                "the check in the [[pool]], which is probed once for all its services",
            ),
            (
                &keys::AGENT_CHECK_TABLE,
                "the agent check in the [[pool]], whose agents are asked once for all its services",
            ),
        ] {
            if let Some(offset) = walk.place(key) {
                let message = format!("the service names a pool and has a `{}` too", key.name);
                self.report.fault_with_rest(offset, message, expected);
            }
        }
    }

    /// Reports what is wrong in a pool that no service uses.
    fn judge_unused(&mut self, pool: &Pool<'_, '_>, defaults: &Defaults, unused: Reported) {
        let LayerRead { check_type, layer } =
            LayerRead::of(&pool.walk, defaults.check.check_type, self.report);
        let context = Context {
            address: Err(unused),
            port: Err(unused),
            protocol: Err(unused),
            forward: Err(unused),
            defaults: defaults.check.layer.as_ref().map_err(|&reported| reported),
            layer: layer.as_ref().map_err(|&reported| reported),
            check_type,
            agent: Ok(None),
            table: "pool",
            ports_differ: false,
            quic: Err(unused),
        };
        drop(self.backends(&pool.walk, &context, Ok(None)));
    }

    fn refuse_second_name(&mut self, name: &At<String>) {
        let first = *self.names.entry(name.value.clone()).or_insert(name.offset);
        if first != name.offset {
            self.report.fault(
                name.offset,
                format!(
                    "the service of line {} is named \"{}\" too",
                    self.report.line(first),
                    name.value
                ),
                "a name of its own for each service",
            );
        }
    }

    fn refuse_second_key(&mut self, key: ServiceKey, offset: usize) {
        let first = *self.keys.entry(key).or_insert(offset);
        if first != offset {
            self.report.fault(
                offset,
                format!("the service of line {} is {key} too", self.report.line(first)),
                "each address, port and protocol once",
            );
        }
    }

    /// A port belongs to one range at most: which of two would have it is nothing that a file shows.
    fn refuse_overlap(&mut self, key: ServiceKey, port: &At<(u16, Option<u16>)>) {
        let (first, Some(last)) = port.value else {
            return;
        };
        for (other, other_last, offset) in &self.ranges {
            let apart = last < other.port || *other_last < first;
            if (other.address, other.protocol) == (key.address, key.protocol) && !apart {
                self.report.fault(
                    port.offset,
                    format!(
                        "ports {first}-{last} overlap {}-{other_last} of the service of line {}",
                        other.port,
                        self.report.line(*offset)
                    ),
                    "ranges that have no port in common",
                );
            }
        }
        self.ranges.push((key, last, port.offset));
    }

    /// Every port of an address of this machine would take its ssh away.
    fn refuse_own_address_whole(&self, key: ServiceKey, offset: usize) {
        if key.port == 0 && self.is_own(key.address) {
            self.report.fault_with_rest(
                offset,
                format!(
                    "{} is an address of this machine and the service takes every port of it",
                    key.address
                ),
                "one port, or an address that the machine does not have",
            );
        }
    }

    fn is_own(&self, address: IpAddr) -> bool {
        self.machine
            .is_some_and(|machine| machine.addresses.contains(&address))
    }

    /// What the service says of its backends as a whole.
    fn rules(
        &self,
        walk: &Walk<'_, '_>,
        defaults: &Defaults,
        sorry: &Result<Option<At<IpAddr>>, Reported>,
    ) -> Result<PoolRules, Reported> {
        let own = RulesLayer::read(walk)?;
        let defaults = defaults.rules.as_ref().map_err(|&reported| reported)?;
        let mut rules = own.over(&defaults.over(&PoolRules::default()));
        let said = own.on_all_down.or(defaults.on_all_down);
        match (sorry, said) {
            (Ok(Some(_)), None) => rules.on_all_down = OnAllDown::Sorry,
            (Ok(Some(sorry)), Some(said)) if said.value == OnAllDown::Drop => {
                self.report.fault_with_rest(
                    sorry.offset,
                    "the sorry backend is never used: on_all_down is \"drop\"",
                    "on_all_down = \"sorry\" with it, or no `sorry`",
                );
            }
            (Ok(None), Some(said)) if said.value == OnAllDown::Sorry => {
                let place = own.on_all_down.map_or(walk.offset, |own| own.offset);
                self.report.fault_with_rest(
                    place,
                    "on_all_down is \"sorry\" and the service has no sorry backend",
                    "`sorry = \"ADDRESS\"` with it, or another on_all_down",
                );
            }
            _ => {}
        }
        Ok(rules)
    }

    fn backends(
        &mut self,
        walk: &Walk<'_, '_>,
        context: &Context<'_>,
        sorry: Result<Option<At<IpAddr>>, Reported>,
    ) -> Result<Vec<Backend>, Reported> {
        let walks = walk.tables(&keys::BACKENDS)?;
        if walks.is_empty() {
            context.judge_service_check(self.report);
            return Err(self.report.fault_with_rest(
                walk.offset,
                format!("the {} has no backend", context.table),
                format!("at least one [[{}.backend]]", context.table),
            ));
        }
        let mut reader = Backends::new(context, self.machine, self.report);
        let backends: Vec<_> = walks
            .into_iter()
            .map(|walk| {
                let walk = walk?;
                self.backend_offsets.push(walk.offset);
                reader.read(&walk)
            })
            .collect();
        let sorry = sorry?.map(|sorry| {
            self.backend_offsets.push(sorry.offset);
            reader.sorry(sorry)
        });
        let backends: Vec<Backend> = backends.into_iter().chain(sorry).collect::<Result<_, _>>()?;
        if backends.iter().all(|backend| backend.role != Role::Primary) {
            return Err(self.report.fault_with_rest(
                walk.offset,
                format!("every backend of the {} is a backup", context.table),
                format!(
                    "at least one [[{}.backend]] without `backup = true`",
                    context.table
                ),
            ));
        }
        Ok(backends)
    }
}

/// `[defaults]`.
#[derive(Debug)]
struct Defaults {
    check: LayerRead,
    rules: Result<RulesLayer, Reported>,
}

impl Defaults {
    fn read(root: &Walk<'_, '_>, report: &Report<'_>) -> Self {
        match root.table(&keys::DEFAULTS_TABLE) {
            Ok(Some(walk)) => Self {
                check: LayerRead::of(&walk, Ok(None), report),
                rules: RulesLayer::read(&walk),
            },
            Ok(None) => Self {
                check: LayerRead {
                    check_type: Ok(None),
                    layer: Ok(Layer::default()),
                },
                rules: Ok(RulesLayer::default()),
            },
            Err(reported) => Self {
                check: LayerRead {
                    check_type: Err(reported),
                    layer: Err(reported),
                },
                rules: Err(reported),
            },
        }
    }
}

/// The type of the checks of a service that says nothing about it.
fn base_type(
    defaults: Result<Option<CheckType>, Reported>,
    protocol: Result<Protocol, Reported>,
) -> Result<Option<CheckType>, Reported> {
    if let Some(check_type) = defaults? {
        return Ok(Some(check_type));
    }
    Ok(Some(CheckType::of(&Check::built_in(protocol?).kind)))
}
