//! `[service.limit]`.

use super::fault::{Report, Reported};
use super::types::Limits;
use super::walk::Walk;
use super::{keys, value};

/// What the table in `service` says, where there is one.
pub(super) fn read(service: &Walk<'_, '_>, report: &Report<'_>) -> Result<Option<Limits>, Reported> {
    let Some(walk) = service.table(&keys::LIMIT_TABLE)? else {
        return Ok(None);
    };
    let new_flows = walk.maybe(&keys::NEW_FLOWS, value::integer);
    let per_client = walk.maybe(&keys::NEW_FLOWS_PER_CLIENT, value::integer);
    let udp_packets = walk.maybe(&keys::UDP_PACKETS_PER_CLIENT, value::integer);
    let prefix_v4 = walk.or_default(&keys::CLIENT_PREFIX_V4, value::integer);
    let prefix_v6 = walk.or_default(&keys::CLIENT_PREFIX_V6, value::integer);
    let dry_run = walk.or_default(&keys::DRY_RUN, value::boolean);
    let limits = Limits {
        new_flows: new_flows?.map(|at| at.value),
        new_flows_per_client: per_client?.map(|at| at.value),
        udp_packets_per_client: udp_packets?.map(|at| at.value),
        client_prefix_v4: prefix_v4?,
        client_prefix_v6: prefix_v6?,
        dry_run: dry_run?,
    };
    if [
        limits.new_flows,
        limits.new_flows_per_client,
        limits.udp_packets_per_client,
    ] == [None; 3]
    {
        return Err(report.fault_with_rest(
            walk.offset,
            "[service.limit] limits nothing",
            "new_flows, new_flows_per_client or udp_packets_per_client",
        ));
    }
    Ok(Some(limits))
}
