//! Findings about `fragment_by`: whether the kernel takes packets that are to be cut in pieces, and the pieces come back.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{Finding, Fragments};
use crate::net::nexthop::NextHops;
use crate::net::pairs::Pair;

const TOPIC: &str = "fragments";

/// What is known of the machine.
#[derive(Clone, Debug)]
pub(super) struct Facts<'a> {
    /// The pair, or why it is none.
    pub pair: Result<Pair, String>,
    pub mtu: u32,
    /// Whether the kernel forwards IPv4.
    pub forwarding: bool,
    /// The ways that the kernel would send packets for the service addresses.
    pub ways: &'a NextHops,
    /// How long packets may be for each backend.
    pub room: &'a BTreeMap<IpAddr, u32>,
}

pub(super) fn judge(fragments: &Fragments<'_>, facts: &Facts<'_>) -> Vec<Finding> {
    let Fragments { by, interfaces, .. } = fragments;
    let pair = match &facts.pair {
        Ok(pair) => pair,
        Err(why) => {
            return vec![Finding::fail(
                TOPIC,
                format!("fragment_by: {by}: {why}"),
                format!("ip link add {by} mtu 1400 type veth peer name {by}-back mtu 1400"),
            )];
        }
    };
    let mut found = Vec::new();
    if !interfaces.contains(&pair.other) {
        found.push(Finding::fail(
            TOPIC,
            format!("pieces come back by {}, where no program takes them", pair.other),
            format!("interfaces = [.., \"{}\"]", pair.other),
        ));
    }
    if !facts.forwarding {
        found.push(Finding::fail(
            TOPIC,
            "the kernel forwards nothing, so it cuts nothing in pieces",
            "sysctl -w net.ipv4.ip_forward=1",
        ));
    }
    for (address, way) in facts.ways {
        let where_to = match way {
            Ok(hop) if hop.interface == *by => continue,
            Ok(hop) => format!("the kernel sends {address} by {}", hop.interface),
            Err(why) => format!("the kernel does not send {address} by {by}: {why}"),
        };
        found.push(Finding::fail(
            TOPIC,
            format!("{where_to}: what is too long for its backends is answered, not cut"),
            format!("ip route add {address} via 169.254.77.1 dev {by} onlink   # and no interface may have the address"),
        ));
    }
    for (address, room) in facts.room {
        if facts.mtu > *room {
            found.push(Finding::warn(
                TOPIC,
                format!(
                    "pieces of {} bytes do not fit the way to {address}, which takes {room}",
                    facts.mtu
                ),
                format!(
                    "ip link set {by} mtu {room}; ip link set {} mtu {room}",
                    pair.other
                ),
            ));
        }
    }
    if found.is_empty() {
        found.push(Finding::ok(
            TOPIC,
            format!(
                "IPv4 without Don't Fragment that is too long goes out by {by} and comes back by {} in pieces of {} bytes",
                pair.other, facts.mtu
            ),
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::doctor::Severity;

    #[test]
    fn each_thing_that_is_missing_is_said() {
        let own = ["eth0".to_owned(), "frag1".to_owned()];
        let fragments = Fragments {
            by: "frag0",
            interfaces: &own,
            addresses: &[],
        };
        let (ways, room) = (
            NextHops::new(),
            BTreeMap::from([("10.0.1.11".parse().unwrap(), 1480)]),
        );
        let facts = Facts {
            pair: Ok(Pair {
                ifindexes: [5, 6],
                other: "frag1".into(),
            }),
            mtu: 1480,
            forwarding: true,
            ways: &ways,
            room: &room,
        };
        let severities = |facts: &Facts<'_>, fragments: &Fragments<'_>| -> Vec<Severity> {
            judge(fragments, facts)
                .iter()
                .map(|finding| finding.severity)
                .collect()
        };
        assert_eq!(severities(&facts, &fragments), [Severity::Ok]);
        let wide = Facts {
            mtu: 1481,
            ..facts.clone()
        };
        assert_eq!(severities(&wide, &fragments), [Severity::Warn]);
        let still = Facts {
            forwarding: false,
            ..facts.clone()
        };
        assert_eq!(severities(&still, &fragments), [Severity::Fail]);
        let away = Fragments {
            interfaces: &own[..1],
            ..fragments
        };
        assert_eq!(severities(&facts, &away), [Severity::Fail]);
        let none = Facts {
            pair: Err("it is no veth".into()),
            ..facts
        };
        assert_eq!(severities(&none, &fragments), [Severity::Fail]);
    }
}
