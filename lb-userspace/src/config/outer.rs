//! Where the outer headers of a service come from.

use ipnet::IpNet;

use super::access;
use super::fault::{At, Report, Reported};
use super::keys;
use super::walk::Walk;
use crate::model::Forward;

/// Prefixes of the list, at most one of each family.
pub(super) fn read(
    walk: &Walk<'_, '_>,
    forward: &Result<At<Forward>, Reported>,
    report: &Report<'_>,
) -> Result<Vec<IpNet>, Reported> {
    let Some(list) = walk.list(&keys::OUTER_SOURCES, access::prefix)? else {
        return Ok(Vec::new());
    };
    if let (Ok(forward), Some(first)) = (forward, list.first())
        && forward.value != Forward::DsrIpip
    {
        return Err(report.fault_with_rest(
            first.offset,
            format!(
                "`outer_sources` is for `forward = \"dsr-ipip\"`, and `forward` is \"{}\"",
                forward.value
            ),
            "no `outer_sources` (dsr-gue spreads flows by its UDP port)",
        ));
    }
    let mut prefixes: Vec<IpNet> = Vec::new();
    for At { value, offset } in list {
        if prefixes
            .iter()
            .any(|other| other.addr().is_ipv4() == value.addr().is_ipv4())
        {
            return Err(report.fault(
                offset,
                format!("{value} is the second prefix of its address family"),
                "one of each",
            ));
        }
        prefixes.push(value);
    }
    Ok(prefixes)
}
