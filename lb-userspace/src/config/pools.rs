//! `[[pool]]`: backends that several services share. Each stands once, is probed once and drained once.
//!
//! A pool is read anew for each service that names it, in the light of that service: its backends must suit every one
//! of them. Its checks are the same for all.

use crate::model::Protocol;

use super::fault::{At, Report, Reported};
use super::nearest;
use super::walk::Walk;
use super::{keys, value};

/// The pools of a file.
#[derive(Debug)]
pub(super) struct Pools<'w, 't> {
    pools: Vec<Pool<'w, 't>>,
}

/// One pool, and what the services that name it have in common.
#[derive(Debug)]
pub(super) struct Pool<'w, 't> {
    name: Option<String>,
    pub walk: Walk<'w, 't>,
    /// UDP where all services are, else TCP: what a check without a type is about.
    pub protocol: Option<Protocol>,
    /// Services have different ports: a check has to name one.
    pub ports_differ: bool,
    /// Datagrams of some service are QUIC.
    pub quic: bool,
}

impl<'w, 't> Pools<'w, 't> {
    /// The pools of the file `root`, whose services are `services`.
    pub fn read(
        root: &Walk<'w, 't>,
        services: &[Result<Walk<'w, 't>, Reported>],
        report: &Report<'_>,
    ) -> Result<Self, Reported> {
        let mut pools: Vec<Pool<'w, 't>> = Vec::new();
        for walk in root.tables(&keys::POOLS)? {
            let walk = walk?;
            let name = walk.need(&keys::POOL_NAME, value::name).ok();
            if let Some(name) = &name
                && let Some(first) = pools.iter().find(|pool| pool.is(&name.value))
            {
                report.fault(
                    name.offset,
                    format!(
                        "the pool of line {} is named \"{}\" too",
                        report.line(first.walk.offset),
                        name.value
                    ),
                    "a name of its own for each pool",
                );
            }
            pools.push(Pool::new(walk, name.map(|name| name.value), services));
        }
        Ok(Self { pools })
    }

    /// The pool that a service names.
    pub fn find(&self, name: &At<String>, report: &Report<'_>) -> Result<&Pool<'w, 't>, Reported> {
        if let Some(pool) = self.pools.iter().find(|pool| pool.is(&name.value)) {
            return Ok(pool);
        }
        let known = || self.pools.iter().filter_map(|pool| pool.name.as_deref());
        let near = nearest::nearest(&name.value, known())
            .map(|near| format!(", did you mean \"{near}\"?"))
            .unwrap_or_default();
        Err(report.fault_with_rest(
            name.offset,
            format!("there is no pool \"{}\"{near}", name.value),
            "the name of a [[pool]]",
        ))
    }

    /// Pools that no service names, each with the proof that this was reported.
    pub fn unused(&self, report: &Report<'_>) -> Vec<(&Pool<'w, 't>, Reported)> {
        self.pools
            .iter()
            .filter(|pool| pool.name.is_some() && pool.protocol.is_none())
            .map(|pool| {
                let reported = report.fault_with_rest(
                    pool.walk.offset,
                    "no service uses the pool",
                    "`pool = \"NAME\"` in a service",
                );
                (pool, reported)
            })
            .collect()
    }
}

impl<'w, 't> Pool<'w, 't> {
    fn new(walk: Walk<'w, 't>, name: Option<String>, services: &[Result<Walk<'w, 't>, Reported>]) -> Self {
        let users: Vec<_> = services
            .iter()
            .flatten()
            .filter(|service| {
                let named = service.maybe(&keys::SERVICE_POOL, value::name);
                matches!(named, Ok(Some(at)) if Some(&at.value) == name.as_ref())
            })
            .collect();
        let protocols: Vec<Protocol> = users
            .iter()
            .map(|service| {
                let protocol = service.maybe(&keys::PROTOCOL, value::choice);
                protocol.ok().flatten().map_or(Protocol::Tcp, |at| at.value)
            })
            .collect();
        let mut ports: Vec<Option<(u16, Option<u16>)>> = users
            .iter()
            .map(|service| {
                let port = service.maybe(&keys::SERVICE_PORT, value::service_port);
                port.ok().flatten().map(|at| at.value)
            })
            .collect();
        ports.dedup();
        Self {
            name,
            walk,
            protocol: protocols.iter().copied().min(),
            ports_differ: ports.len() > 1,
            quic: users.iter().any(|service| {
                let quic = service.maybe(&keys::QUIC, value::boolean);
                quic.ok().flatten().is_some_and(|at| at.value)
            }),
        }
    }

    fn is(&self, name: &str) -> bool {
        self.name.as_deref() == Some(name)
    }
}
