//! By which interfaces addresses are reached, by the routing table alone: nothing is sent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::link;
use super::netlink::{Netlink, NetlinkError};
use super::route;

/// The interface of each address that there is a route to. With `vlans`, nothing is said of those behind a VLAN interface:
/// the program is on the one below.
///
/// # Errors
/// Where the kernel cannot be asked at all.
pub async fn reached_by(
    targets: BTreeSet<IpAddr>,
    vlans: bool,
) -> Result<BTreeMap<IpAddr, String>, NetlinkError> {
    let netlink = Netlink::open()?;
    let links = link::links(&netlink).await?;
    let mut reached = BTreeMap::new();
    for target in targets {
        let Ok(route) = route::route_to(&netlink, target).await else {
            continue;
        };
        let by = links.iter().find(|link| Some(link.ifindex) == route.ifindex);
        if let Some(link) = by.filter(|link| !vlans || link.vlan.is_none()) {
            reached.insert(target, link.name.clone());
        }
    }
    Ok(reached)
}
