//! `[service.agent_check]` and `[service.backend.agent_check]`: where a backend's agent is asked. The backend's table
//! overrides the service's key by key.

use std::net::IpAddr;
use std::time::Duration;

use super::fault::{At, Report, Reported};
use super::types::AgentCheck;
use super::walk::Walk;
use super::{keys, value};

/// What one table says.
#[derive(Debug)]
pub(super) struct AgentLayer {
    /// Where it begins.
    offset: usize,
    port: Option<u16>,
    address: Option<IpAddr>,
    interval: Option<At<Duration>>,
    timeout: Option<At<Duration>>,
    send: Option<Vec<u8>>,
    source: Option<At<IpAddr>>,
}

impl AgentLayer {
    /// The table in `parent`, where there is one.
    pub fn of(parent: &Walk<'_, '_>) -> Result<Option<Self>, Reported> {
        let Some(walk) = parent.table(&keys::AGENT_CHECK_TABLE)? else {
            return Ok(None);
        };
        let port = walk.maybe(&keys::AGENT_PORT, value::integer);
        let address = walk.maybe(&keys::CHECK_ADDRESS, value::address);
        let interval = walk.maybe(&keys::INTERVAL, value::duration);
        let timeout = walk.maybe(&keys::TIMEOUT, value::duration);
        let send = walk.maybe(&keys::AGENT_SEND, value::payload);
        let source = walk.maybe(&keys::SOURCE, value::address);
        Ok(Some(Self {
            offset: walk.offset,
            port: port?.map(|at| at.value),
            address: address?.map(|at| at.value),
            interval: interval?,
            timeout: timeout?,
            send: send?.map(|at| at.value),
            source: source?,
        }))
    }
}

/// What `layers` (the strongest first) say of the agent of the backend at `address`; `None`: nothing, it has none.
pub(super) fn settle(
    layers: [Option<&AgentLayer>; 2],
    address: IpAddr,
    report: &Report<'_>,
) -> Result<Option<AgentCheck>, Reported> {
    let layers = || layers.into_iter().flatten();
    let Some(strongest) = layers().next() else {
        return Ok(None);
    };
    let Some(port) = layers().find_map(|layer| layer.port) else {
        return Err(report.fault_with_rest(
            strongest.offset,
            "`port` is missing from [agent_check]",
            keys::AGENT_PORT.shape.expected(),
        ));
    };
    let interval = layers().find_map(|layer| layer.interval);
    let timeout = layers().find_map(|layer| layer.timeout);
    let source = layers().find_map(|layer| layer.source);
    let check = AgentCheck {
        port,
        address: layers().find_map(|layer| layer.address),
        interval: interval.map_or(AgentCheck::INTERVAL, |at| at.value),
        timeout: timeout.map_or(AgentCheck::TIMEOUT, |at| at.value),
        send: layers().find_map(|layer| layer.send.clone()).unwrap_or_default(),
        source: source.map(|at| at.value),
    };
    if let (true, Some(place)) = (check.timeout > check.interval, timeout.or(interval)) {
        report.fault_with_rest(
            place.offset,
            "the `timeout` of the agent check is longer than its `interval`",
            "`timeout` to be at most `interval`",
        );
    }
    let asked = check.address.unwrap_or(address);
    if let Some(source) = source.filter(|source| source.value.is_ipv4() != asked.is_ipv4()) {
        report.fault_with_rest(
            source.offset,
            format!("an agent at {asked} cannot be asked from {}", source.value),
            "two addresses of one family",
        );
    }
    Ok(Some(check))
}
