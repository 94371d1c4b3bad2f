//! The next hop of a backend: everything that has to stand in front of a packet for it to get there.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use lb_common::layout::Tags;
use netlink_packet_route::route::RouteType;
use tokio::time::Instant;

use super::link::{Link, Tag};
use super::neighbor::{NeighborKey, NeighborState, NeighborTable};
use super::netlink::NetlinkError;
use super::route::Route;
use super::{DisplayMac, MacAddress};

/// The next hops of all targets.
pub type NextHops = BTreeMap<IpAddr, Result<NextHop, Unresolved>>;

/// How a packet leaves this machine towards a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextHop {
    pub ifindex: u32,
    pub interface: String,
    /// Where the interface is a VLAN: the one below it.
    pub below: Option<Below>,
    pub destination_mac: MacAddress,
    pub source_mac: MacAddress,
    /// The address the kernel would send from: the outer source of an encapsulated packet.
    pub source: IpAddr,
    /// The router in between; `None`: the target is on the link, which `dsr-l2` needs.
    pub gateway: Option<IpAddr>,
    /// The largest IP packet in bytes: that of the interface, or of the route where it is smaller.
    pub mtu: u32,
}

/// The interface below a VLAN, or two, and the tags that frames have there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Below {
    pub ifindex: u32,
    pub tags: Tags,
}

impl fmt::Display for NextHop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(gateway) = self.gateway {
            write!(f, "via {gateway} ")?;
        }
        write!(
            f,
            "dev {} lladdr {}",
            self.interface,
            DisplayMac(self.destination_mac)
        )
    }
}

/// Why a target has no next hop, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unresolved {
    #[error("there is no route to it: add one, or check the address")]
    NoRoute,
    #[error("it is an address of this machine: a backend must be another host")]
    LocalAddress,
    #[error("the route to it says `{kind}`: `ip route get` shows which; remove it or add a better one")]
    Forbidden { kind: &'static str },
    #[error("it is not the address of one host, but {kind}: check the address")]
    NotUnicast { kind: &'static str },
    #[error("{}", down(interface, *admin_up))]
    InterfaceDown { interface: String, admin_up: bool },
    #[error(
        "the route to it leaves through {interface}, which is not Ethernet: route it over another interface"
    )]
    NotEthernet { interface: String },
    #[error("this machine has no address to send from on {interface}: give it one of the same family")]
    NoSource { interface: String },
    #[error(
        "{address} does not answer on {interface} (neighbour entry: {state}): \
         is the host up, and in the same network segment?"
    )]
    NoNeighbor {
        /// The gateway, or the target itself where there is none.
        address: IpAddr,
        interface: String,
        state: NeighborState,
    },
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

impl Unresolved {
    /// Whether it may be this machine that is cut off, rather than the target that is gone.
    #[must_use]
    pub fn may_be_our_fault(&self) -> bool {
        match self {
            Self::NoRoute
            | Self::InterfaceDown { .. }
            | Self::NoSource { .. }
            | Self::NoNeighbor { .. }
            | Self::Netlink(_) => true,
            Self::LocalAddress
            | Self::Forbidden { .. }
            | Self::NotUnicast { .. }
            | Self::NotEthernet { .. } => false,
        }
    }
}

fn down(interface: &str, admin_up: bool) -> String {
    if admin_up {
        format!("the route to it leaves through {interface}, which has no carrier: check cable and peer")
    } else {
        format!("the route to it leaves through {interface}, which is down: `ip link set {interface} up`")
    }
}

/// What the kernel was found to hold: all that next hops are made of.
#[derive(Debug, Default)]
pub struct Tables {
    pub links: BTreeMap<u32, Link>,
    pub neighbors: NeighborTable,
    /// The answer of the kernel for each target.
    pub routes: BTreeMap<IpAddr, Result<Route, NetlinkError>>,
}

impl Tables {
    /// The next hop of one target; `None` if its route was not asked for yet.
    #[must_use]
    pub fn next_hop(&self, target: IpAddr, now: Instant) -> Option<Result<NextHop, Unresolved>> {
        Some(
            self.routes
                .get(&target)?
                .clone()
                .map_err(no_way)
                .and_then(|route| {
                    let (link, key) = self.first_step(target, &route)?;
                    self.finish(&route, link, key, now)
                }),
        )
    }

    /// The neighbour that packets for a target are handed to.
    #[must_use]
    pub fn neighbor_of(&self, target: IpAddr) -> Option<NeighborKey> {
        let route = self.routes.get(&target)?.as_ref().ok()?;
        Some(self.first_step(target, route).ok()?.1)
    }

    /// The interface and the neighbour a route names, if it leads to an interface that works.
    fn first_step(&self, target: IpAddr, route: &Route) -> Result<(&Link, NeighborKey), Unresolved> {
        match route.kind {
            RouteType::Unicast => {}
            RouteType::Local => return Err(Unresolved::LocalAddress),
            RouteType::Broadcast => {
                return Err(Unresolved::NotUnicast {
                    kind: "a broadcast address",
                });
            }
            RouteType::Multicast => {
                return Err(Unresolved::NotUnicast {
                    kind: "a multicast group",
                });
            }
            RouteType::Anycast => {
                return Err(Unresolved::NotUnicast {
                    kind: "an anycast address",
                });
            }
            RouteType::BlackHole => return Err(Unresolved::Forbidden { kind: "blackhole" }),
            RouteType::Prohibit => return Err(Unresolved::Forbidden { kind: "prohibit" }),
            RouteType::Unreachable => return Err(Unresolved::Forbidden { kind: "unreachable" }),
            _ => return Err(Unresolved::NoRoute),
        }
        let ifindex = route.ifindex.ok_or(Unresolved::NoRoute)?;
        // A route whose interface is unknown is about to go away with it.
        let link = self.links.get(&ifindex).ok_or(Unresolved::NoRoute)?;
        if !(link.up && link.carrier) {
            return Err(Unresolved::InterfaceDown {
                interface: link.name.clone(),
                admin_up: link.up,
            });
        }
        Ok((link, (ifindex, route.gateway.unwrap_or(target))))
    }

    fn finish(
        &self,
        route: &Route,
        link: &Link,
        key: NeighborKey,
        now: Instant,
    ) -> Result<NextHop, Unresolved> {
        let interface = || link.name.clone();
        let source_mac = link.mac.ok_or_else(|| Unresolved::NotEthernet {
            interface: interface(),
        })?;
        let source = route.source.ok_or_else(|| Unresolved::NoSource {
            interface: interface(),
        })?;
        let destination_mac =
            self.neighbors
                .usable_mac(key, now)
                .map_err(|state| Unresolved::NoNeighbor {
                    address: key.1,
                    interface: interface(),
                    state,
                })?;
        Ok(NextHop {
            ifindex: link.ifindex,
            interface: interface(),
            below: self.below(link),
            destination_mac,
            source_mac,
            source,
            gateway: route.gateway,
            mtu: route.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu)),
        })
    }
}

impl Tables {
    /// What is below a VLAN interface, through one more at most: frames have no room for a third tag.
    fn below(&self, link: &Link) -> Option<Below> {
        let parent = |link: &Link| self.links.get(&link.parent?);
        let Tag { kind, vlan } = link.vlan?;
        let below = parent(link)?;
        let Some(outer) = below.vlan else {
            return Some(Below {
                ifindex: below.ifindex,
                tags: Tags::NONE.within(kind, vlan),
            });
        };
        let lowest = parent(below).filter(|lowest| lowest.vlan.is_none())?;
        Some(Below {
            ifindex: lowest.ifindex,
            tags: Tags::NONE.within(outer.kind, outer.vlan).within(kind, vlan),
        })
    }
}

/// What the kernel means when it refuses to name a route (`fib_props` in its sources).
fn no_way(error: NetlinkError) -> Unresolved {
    match error.errno() {
        Some(libc::ENETUNREACH) => Unresolved::NoRoute,
        Some(libc::EHOSTUNREACH) => Unresolved::Forbidden { kind: "unreachable" },
        Some(libc::EINVAL) => Unresolved::Forbidden { kind: "blackhole" },
        Some(libc::EACCES) => Unresolved::Forbidden { kind: "prohibit" },
        _ => Unresolved::Netlink(error),
    }
}

#[cfg(test)]
mod tests {
    use lb_common::layout::{SERVICE_TAG_TYPE, TAG_TYPE};

    use super::*;
    use crate::net::neighbor::Neighbor;

    const TARGET: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 1, 11));
    const GATEWAY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const SOURCE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    fn route() -> Route {
        Route {
            kind: RouteType::Unicast,
            ifindex: Some(7),
            gateway: Some(GATEWAY),
            source: Some(SOURCE),
            mtu: None,
        }
    }

    fn tables(route: Result<Route, NetlinkError>) -> (Tables, Instant) {
        let now = Instant::now();
        let mut tables = Tables::default();
        let link = Link {
            ifindex: 7,
            name: "eth0".to_owned(),
            mac: Some([2, 0, 0, 0, 0, 7]),
            mtu: 1500,
            up: true,
            carrier: true,
            kind: None,
            master: None,
            parent: None,
            vlan: None,
            xdp: None,
            num_rx_queues: 1,
            num_tx_queues: 1,
        };
        tables.links.insert(7, link);
        let reachable = Neighbor {
            state: NeighborState::Reachable,
            mac: Some([2, 0, 0, 0, 0, 1]),
        };
        tables.neighbors.observe((7, GATEWAY), reachable, now);
        tables.routes.insert(TARGET, route);
        (tables, now)
    }

    fn resolve(route: Result<Route, NetlinkError>) -> Result<NextHop, Unresolved> {
        let (tables, now) = tables(route);
        tables.next_hop(TARGET, now).unwrap()
    }

    #[test]
    fn a_target_behind_a_router_is_sent_to_the_router() {
        let expected = NextHop {
            ifindex: 7,
            interface: "eth0".to_owned(),
            below: None,
            destination_mac: [2, 0, 0, 0, 0, 1],
            source_mac: [2, 0, 0, 0, 0, 7],
            source: SOURCE,
            gateway: Some(GATEWAY),
            mtu: 1500,
        };
        assert_eq!(
            expected.to_string(),
            "via 10.0.0.1 dev eth0 lladdr 02:00:00:00:00:01"
        );
        assert_eq!(resolve(Ok(route())), Ok(expected));
    }

    #[test]
    fn what_is_below_vlans_is_found() {
        let (mut tables, now) = tables(Ok(route()));
        let below = |tables: &Tables| tables.next_hop(TARGET, now).unwrap().unwrap().below;
        let plain = tables.links[&7].clone();
        let mut stack = |ifindex, parent, vlan| {
            let link = Link {
                ifindex,
                parent,
                vlan,
                ..plain.clone()
            };
            tables.links.insert(ifindex, link);
        };
        let tag = |kind, vlan| Some(Tag { kind, vlan });
        stack(5, None, None);
        stack(7, Some(5), tag(TAG_TYPE, 100));
        let one = Below {
            ifindex: 5,
            tags: Tags::NONE.within(TAG_TYPE, 100),
        };
        assert_eq!(below(&tables), Some(one));
        let mut stack = |ifindex, parent, vlan| {
            let link = Link {
                ifindex,
                parent,
                vlan,
                ..plain.clone()
            };
            tables.links.insert(ifindex, link);
        };
        stack(6, Some(5), tag(SERVICE_TAG_TYPE, 200));
        stack(7, Some(6), tag(TAG_TYPE, 100));
        let two = Below {
            ifindex: 5,
            tags: Tags::NONE.within(SERVICE_TAG_TYPE, 200).within(TAG_TYPE, 100),
        };
        assert_eq!(below(&tables), Some(two));
        tables.links.get_mut(&5).unwrap().vlan = tag(TAG_TYPE, 300);
        assert_eq!(below(&tables), None, "three");
        tables.links.remove(&5);
        assert_eq!(below(&tables), None, "it lies in another namespace");
    }

    #[test]
    fn a_target_on_the_link_is_its_own_neighbor() {
        let on_link = Route {
            gateway: None,
            ..route()
        };
        let expected = Unresolved::NoNeighbor {
            address: TARGET,
            interface: "eth0".to_owned(),
            state: NeighborState::None,
        };
        assert_eq!(resolve(Ok(on_link)), Err(expected));
    }

    #[test]
    fn the_smaller_mtu_counts() {
        let mtu = |mtu| resolve(Ok(Route { mtu, ..route() })).unwrap().mtu;
        assert_eq!(mtu(None), 1500);
        assert_eq!(mtu(Some(1400)), 1400);
        assert_eq!(mtu(Some(9000)), 1500);
    }

    #[test]
    fn an_unknown_target_has_no_answer() {
        let (tables, now) = tables(Ok(route()));
        assert_eq!(tables.next_hop(SOURCE, now), None);
    }

    #[test]
    fn each_reason_is_told_apart() {
        let refused = |errno| {
            resolve(Err(NetlinkError::Refused {
                request: "look up a route",
                errno,
            }))
        };
        let of_kind = |kind| resolve(Ok(Route { kind, ..route() }));
        assert_eq!(refused(libc::ENETUNREACH), Err(Unresolved::NoRoute));
        let forbidden = |kind| Err(Unresolved::Forbidden { kind });
        assert_eq!(refused(libc::EHOSTUNREACH), forbidden("unreachable"));
        assert_eq!(refused(libc::EINVAL), forbidden("blackhole"));
        assert_eq!(refused(libc::EACCES), forbidden("prohibit"));
        assert!(matches!(refused(libc::EPERM), Err(Unresolved::Netlink(_))));
        assert_eq!(of_kind(RouteType::Local), Err(Unresolved::LocalAddress));
        assert!(matches!(
            of_kind(RouteType::Multicast),
            Err(Unresolved::NotUnicast { .. })
        ));
        assert!(matches!(
            resolve(Ok(Route {
                source: None,
                ..route()
            })),
            Err(Unresolved::NoSource { .. })
        ));
        assert_eq!(
            resolve(Ok(Route {
                ifindex: Some(8),
                ..route()
            })),
            Err(Unresolved::NoRoute)
        );
    }

    #[test]
    fn the_interface_must_be_ethernet_and_running() {
        let with_link = |change: fn(&mut Link)| {
            let (mut tables, now) = tables(Ok(route()));
            change(tables.links.get_mut(&7).unwrap());
            tables.next_hop(TARGET, now).unwrap().unwrap_err()
        };
        let interface = || "eth0".to_owned();
        assert_eq!(
            with_link(|link| link.carrier = false),
            Unresolved::InterfaceDown {
                interface: interface(),
                admin_up: true
            }
        );
        assert_eq!(
            with_link(|link| link.up = false),
            Unresolved::InterfaceDown {
                interface: interface(),
                admin_up: false
            }
        );
        assert_eq!(
            with_link(|link| link.mac = None),
            Unresolved::NotEthernet {
                interface: interface()
            }
        );
    }
}
