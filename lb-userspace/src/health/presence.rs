//! Whether a host answers at all, whatever becomes of its services.
//!
//! One on the same link answers for its address: the kernel is asked to verify its neighbour entry, which it does
//! with an ARP request or a neighbour solicitation of its own (RFC 4861 section 7.3). One behind a router is sent an
//! ICMP echo.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::doubt::Sign;
use super::{CheckKind, Probe, Subject, probe};
use crate::config::Require;
use crate::net::neighbor::{self, NeighborKey, NeighborState};
use crate::net::netlink::Netlink;
use crate::net::route;

/// How often a neighbour entry is looked at while it is verified.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// Whether the host with this address answers within `limit`.
pub async fn answers(netlink: &Netlink, address: IpAddr, limit: Duration) -> bool {
    let on_link = match route::route_to(netlink, address).await {
        Ok(route) if route.gateway.is_none() => route.ifindex,
        _ => None,
    };
    match on_link {
        Some(ifindex) => neighbor_answers(netlink, (ifindex, address), limit).await,
        None => echoes(address, limit).await,
    }
}

/// Whether the neighbour answers within `limit`.
pub async fn neighbor_answers(netlink: &Netlink, key: NeighborKey, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    let (ifindex, address) = key;
    let state = || async {
        let neighbor = neighbor::neighbor_state(netlink, address, ifindex).await;
        neighbor.ok().flatten().map(|neighbor| neighbor.state)
    };
    match state().await {
        // Entries that are never verified say nothing.
        Some(NeighborState::Permanent | NeighborState::Noarp) => return echoes(address, limit).await,
        Some(
            NeighborState::Reachable | NeighborState::Stale | NeighborState::Delay | NeighborState::Probe,
        ) => drop(neighbor::verify_neighbor(netlink, key).await),
        _ => drop(neighbor::use_neighbor(netlink, key).await),
    }
    // Questions to the kernel are not broken off: it answers at once.
    while Instant::now() < deadline {
        sleep(LOOK_INTERVAL).await;
        if state().await == Some(NeighborState::Reachable) {
            return true;
        }
    }
    false
}

/// Whether an ICMP echo comes back within `limit`.
pub async fn echoes(address: IpAddr, limit: Duration) -> bool {
    ask(CheckKind::Icmp, SocketAddr::new(address, 0), limit).await
}

/// Whether anything comes back from a TCP port within `limit`; a refusal will do.
pub async fn port_answers(address: SocketAddr, limit: Duration) -> bool {
    ask(CheckKind::Tcp, address, limit).await
}

async fn ask(kind: CheckKind, address: SocketAddr, limit: Duration) -> bool {
    let subject = Subject {
        probes: vec![Probe {
            kind,
            address,
            source: None,
        }],
        require: Require::All,
    };
    let result = probe::probe(&subject, limit).await;
    matches!(Sign::of(&result), Sign::Passed | Sign::Refused)
}
