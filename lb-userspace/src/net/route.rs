//! Routes: the kernel's own answer to "how would you send to this address", and default gateways.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteType, RouteVia,
};
use rtnetlink::RouteMessageBuilder;

use super::netlink::{self, Netlink, NetlinkError};

/// How the kernel would send to an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub kind: RouteType,
    pub ifindex: Option<u32>,
    /// The router to send to; `None`: the address itself is on the link. An IPv4 route may have an
    /// IPv6 router (RFC 8950).
    pub gateway: Option<IpAddr>,
    /// The source address the kernel would choose.
    pub source: Option<IpAddr>,
    /// The MTU of the route where it has one: configured, or learnt from the path.
    pub mtu: Option<u32>,
}

/// Asks how the kernel would send to `target` (`ip route get`).
///
/// # Errors
/// The kernel says that there is no way by refusing: `ENETUNREACH` for no route, `EHOSTUNREACH`,
/// `EINVAL` and `EACCES` for routes of the types unreachable, blackhole and prohibit.
pub async fn route_to(netlink: &Netlink, target: IpAddr) -> Result<Route, NetlinkError> {
    let (address_family, destination_prefix_length) = match target {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    let mut question = RouteMessage::default();
    question.header = RouteHeader {
        address_family,
        destination_prefix_length,
        ..RouteHeader::default()
    };
    question
        .attributes
        .push(RouteAttribute::Destination(target.into()));
    let answers = netlink.handle().route().get(question).execute();
    let answer = netlink::first("look up a route", answers).await?;
    Ok(parse(&answer))
}

/// The routers of the default routes in the main table, each with the interface it is on.
///
/// # Errors
/// Where the kernel cannot be asked.
pub async fn default_gateways(netlink: &Netlink) -> Result<Vec<(IpAddr, u32)>, NetlinkError> {
    let mut gateways = Vec::new();
    for all in [
        RouteMessageBuilder::<Ipv4Addr>::new().build(),
        RouteMessageBuilder::<Ipv6Addr>::new().build(),
    ] {
        let routes = netlink::collect("list its routes", netlink.handle().route().get(all).execute()).await?;
        for route in routes {
            let header = &route.header;
            if header.destination_prefix_length == 0 && header.table == RouteHeader::RT_TABLE_MAIN {
                gateways.extend(routers(&route));
            }
        }
    }
    gateways.sort_unstable();
    gateways.dedup();
    Ok(gateways)
}

fn parse(message: &RouteMessage) -> Route {
    let mut route = Route {
        kind: message.header.kind,
        ifindex: None,
        gateway: None,
        source: None,
        mtu: None,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(ifindex) => route.ifindex = Some(*ifindex),
            RouteAttribute::PrefSource(source) => route.source = ip_of(source),
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    route.gateway = router(&message.attributes);
    route
}

/// The routers of one route, which may have several next hops.
fn routers(message: &RouteMessage) -> Vec<(IpAddr, u32)> {
    let mut found = Vec::new();
    let route = parse(message);
    found.extend(route.gateway.zip(route.ifindex));
    for attribute in &message.attributes {
        if let RouteAttribute::MultiPath(hops) = attribute {
            found.extend(
                hops.iter()
                    .filter_map(|hop| Some((router(&hop.attributes)?, hop.interface_index))),
            );
        }
    }
    found
}

fn router(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(address) => ip_of(address),
        RouteAttribute::Via(RouteVia::Inet(v4)) => Some(IpAddr::V4(*v4)),
        RouteAttribute::Via(RouteVia::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    })
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::address::local_addresses;
    use crate::net::link::link_by_name;
    use crate::net::testing::Namespace;

    #[test]
    fn gateways_and_addresses_are_listed() {
        let Some((namespace, _peer)) = Namespace::pair_or_skip("gateways_and_addresses_are_listed") else {
            return;
        };
        for command in [
            "address add 10.0.0.1/24 dev eth0",
            "address add 192.0.2.1 peer 192.0.2.2 dev eth0",
            "route add default via 10.0.0.2",
            "route add default metric 50 nexthop via 10.0.0.3 nexthop via 10.0.0.4",
            "route add 10.9.0.0/16 via 10.0.0.5",
            "route add default via 10.0.0.6 table 100",
            "-6 route add default via fe80::2 dev eth0",
        ] {
            namespace.ip(command);
        }
        namespace.run(|| async {
            let netlink = Netlink::open().unwrap();
            let eth0 = link_by_name(&netlink, "eth0").await.unwrap().unwrap().ifindex;
            let expected = ["10.0.0.2", "10.0.0.3", "10.0.0.4", "fe80::2"]
                .map(|gateway| (gateway.parse().unwrap(), eth0));
            assert_eq!(default_gateways(&netlink).await.unwrap(), expected);

            let addresses = local_addresses(&netlink).await.unwrap();
            for ours in ["10.0.0.1/24", "192.0.2.1/32", "fe80::1/64"] {
                assert!(
                    addresses.contains(&(eth0, ours.parse().unwrap())),
                    "{addresses:?}"
                );
            }
        });
    }
}
