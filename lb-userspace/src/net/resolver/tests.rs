//! The resolver against the kernel: a load balancer and a backend, each in a namespace of its own,
//! joined by a veth pair. All need root and are skipped without.
//!
//! ```text
//!   balancer eth0 10.0.0.1/24, fd00::1/64  <------>  10.0.0.2/24, fd00::2/64 eth0 backend
//! ```

use super::*;
use crate::net::NextHop;
use crate::net::link::link_by_name;
use crate::net::neighbor::{NeighborState, neighbor_state};
use crate::net::testing::{Namespace, run_ip};

/// Long enough for anything that is going to happen at all.
const PATIENCE: Duration = Duration::from_secs(30);

fn lab(test: &str) -> Option<(Namespace, Namespace)> {
    let (balancer, backend) = Namespace::pair_or_skip(test)?;
    for (namespace, host) in [(&balancer, 1), (&backend, 2)] {
        namespace.ip(&format!("address add 10.0.0.{host}/24 dev eth0"));
        namespace.ip(&format!("address add fd00::{host}/64 dev eth0 nodad"));
    }
    Some((balancer, backend))
}

fn targets(addresses: &[&str]) -> BTreeSet<IpAddr> {
    addresses.iter().map(|address| addr(address)).collect()
}

fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}

async fn resolve(addresses: &[&str]) -> Arc<NextHops> {
    tokio::time::timeout(PATIENCE, resolve_once(targets(addresses)))
        .await
        .unwrap()
}

/// Waits until the next hop of a target is as wanted.
async fn until(
    hops: &mut watch::Receiver<Arc<NextHops>>,
    target: &str,
    wanted: impl Fn(&Result<NextHop, Unresolved>) -> bool,
) {
    let target = addr(target);
    let found = hops.wait_for(|hops| hops.get(&target).is_some_and(&wanted));
    if tokio::time::timeout(PATIENCE, found).await.is_err() {
        panic!("{target} stayed {:?}", hops.borrow().get(&target));
    }
}

async fn state_of(address: &str) -> Option<NeighborState> {
    let netlink = Netlink::open().unwrap();
    let eth0 = link_by_name(&netlink, "eth0").await.unwrap().unwrap();
    let neighbor = neighbor_state(&netlink, addr(address), eth0.ifindex)
        .await
        .unwrap();
    neighbor.map(|neighbor| neighbor.state)
}

fn mac_of_eth0(namespace: &Namespace) -> [u8; 6] {
    namespace.run(|| async {
        let netlink = Netlink::open().unwrap();
        let eth0 = link_by_name(&netlink, "eth0").await.unwrap().unwrap();
        eth0.mac.unwrap()
    })
}

#[test]
fn a_backend_on_the_link_is_resolved() {
    let Some((balancer, backend)) = lab("a_backend_on_the_link_is_resolved") else {
        return;
    };
    let (source_mac, destination_mac) = (mac_of_eth0(&balancer), mac_of_eth0(&backend));
    balancer.run(move || async move {
        let hops = resolve(&["10.0.0.2", "fd00::2"]).await;
        for (target, source) in [("10.0.0.2", "10.0.0.1"), ("fd00::2", "fd00::1")] {
            let hop = hops[&addr(target)].as_ref().unwrap();
            assert_eq!(hop.interface, "eth0");
            assert_eq!(hop.destination_mac, destination_mac);
            assert_eq!(hop.source_mac, source_mac);
            assert_eq!(hop.source, addr(source));
            assert_eq!(hop.gateway, None);
            assert_eq!(hop.mtu, 1500);
        }
    });
}

#[test]
fn a_backend_behind_a_router_is_sent_to_the_router() {
    let Some((balancer, backend)) = lab("a_backend_behind_a_router_is_sent_to_the_router") else {
        return;
    };
    balancer.ip("route add 10.9.0.0/16 via 10.0.0.2 mtu 1400");
    balancer.ip("route add fd09::/64 via fd00::2");
    balancer.ip("route add 10.8.0.0/16 via inet6 fd00::2 dev eth0");
    let router_mac = mac_of_eth0(&backend);
    balancer.run(move || async move {
        let hops = resolve(&["10.9.0.7", "fd09::7", "10.8.0.7"]).await;
        for (target, gateway, mtu) in [
            ("10.9.0.7", "10.0.0.2", 1400),
            ("fd09::7", "fd00::2", 1500),
            ("10.8.0.7", "fd00::2", 1500),
        ] {
            let hop = hops[&addr(target)].as_ref().unwrap();
            assert_eq!(hop.gateway, Some(addr(gateway)));
            assert_eq!(hop.destination_mac, router_mac);
            assert_eq!(hop.mtu, mtu);
        }
    });
}

#[test]
fn each_reason_for_no_next_hop_is_found() {
    let Some((balancer, _backend)) = lab("each_reason_for_no_next_hop_is_found") else {
        return;
    };
    for route in ["blackhole", "prohibit", "unreachable"] {
        balancer.ip(&format!("route add {route} 10.{}.0.0/16", route.len()));
        balancer.ip(&format!("route add {route} fd{:02}::/64", route.len()));
    }
    balancer.run(|| async {
        let hops = resolve(&[
            "10.0.0.99",
            "fd00::99",
            "10.0.0.1",
            "fd00::1",
            "192.0.2.1",
            "2001:db8::1",
            "10.9.0.1",
            "fd09::1",
            "10.8.0.1",
            "fd08::1",
            "10.11.0.1",
            "fd11::1",
            "10.0.0.255",
        ])
        .await;
        let why = |target| hops[&addr(target)].clone().unwrap_err();
        for silent in ["10.0.0.99", "fd00::99"] {
            assert!(
                matches!(why(silent), Unresolved::NoNeighbor { address, .. } if address == addr(silent)),
                "{silent}: {:?}",
                why(silent)
            );
        }
        assert_eq!(why("10.0.0.1"), Unresolved::LocalAddress);
        assert_eq!(why("fd00::1"), Unresolved::LocalAddress);
        assert_eq!(why("192.0.2.1"), Unresolved::NoRoute);
        assert_eq!(why("2001:db8::1"), Unresolved::NoRoute);
        for (kind, v4, v6) in [
            ("blackhole", "10.9.0.1", "fd09::1"),
            ("prohibit", "10.8.0.1", "fd08::1"),
            ("unreachable", "10.11.0.1", "fd11::1"),
        ] {
            assert_eq!(why(v4), Unresolved::Forbidden { kind });
            assert_eq!(why(v6), Unresolved::Forbidden { kind });
        }
        assert!(matches!(why("10.0.0.255"), Unresolved::NotUnicast { .. }));
    });
}

#[test]
fn a_new_target_does_not_hide_the_others() {
    let Some((balancer, _backend)) = lab("a_new_target_does_not_hide_the_others") else {
        return;
    };
    balancer.run(|| async {
        let (resolver, mut hops) = Resolver::spawn();
        resolver.set_targets(targets(&["10.0.0.2"]));
        resolver.wait_resolved().await;
        // The new one never answers; the old one stays published while it is waited for.
        resolver.set_targets(targets(&["10.0.0.2", "10.0.0.99"]));
        until(&mut hops, "10.0.0.99", Result::is_err).await;
        assert!(hops.borrow()[&addr("10.0.0.2")].is_ok());
        resolver.set_targets(targets(&["10.0.0.99"]));
        let gone = hops.wait_for(|hops| !hops.contains_key(&addr("10.0.0.2")));
        assert!(tokio::time::timeout(PATIENCE, gone).await.is_ok());
    });
}

#[test]
fn changes_of_links_routes_and_neighbors_are_followed() {
    let Some((balancer, backend)) = lab("changes_of_links_routes_and_neighbors_are_followed") else {
        return;
    };
    balancer.run(move || async move {
        let (resolver, mut hops) = Resolver::spawn();
        resolver.set_targets(targets(&["10.0.0.2", "10.9.0.7"]));
        let first = resolver.wait_resolved().await;
        assert_eq!(first[&addr("10.9.0.7")], Err(Unresolved::NoRoute));

        run_ip("route add 10.9.0.0/16 via 10.0.0.2");
        until(&mut hops, "10.9.0.7", Result::is_ok).await;
        run_ip("rule add to 10.9.0.7 prohibit");
        let prohibited = Err(Unresolved::Forbidden { kind: "prohibit" });
        until(&mut hops, "10.9.0.7", |hop| *hop == prohibited).await;

        run_ip("neighbor replace 10.0.0.2 lladdr 02:00:00:00:00:99 dev eth0 nud reachable");
        let other_mac = |hop: &Result<NextHop, _>| {
            hop.as_ref()
                .is_ok_and(|hop| hop.destination_mac == [2, 0, 0, 0, 0, 0x99])
        };
        until(&mut hops, "10.0.0.2", other_mac).await;

        run_ip("link set eth0 address 02:00:00:00:00:77");
        let new_source = |hop: &Result<NextHop, _>| {
            hop.as_ref()
                .is_ok_and(|hop| hop.source_mac == [2, 0, 0, 0, 0, 0x77])
        };
        until(&mut hops, "10.0.0.2", new_source).await;
        run_ip("link set eth0 mtu 1400");
        until(&mut hops, "10.0.0.2", |hop| {
            hop.as_ref().is_ok_and(|hop| hop.mtu == 1400)
        })
        .await;

        backend.ip("link set eth0 down");
        let no_carrier = Err(Unresolved::InterfaceDown {
            interface: "eth0".to_owned(),
            admin_up: true,
        });
        until(&mut hops, "10.0.0.2", |hop| *hop == no_carrier).await;
        backend.ip("link set eth0 up");
        until(&mut hops, "10.0.0.2", Result::is_ok).await;

        run_ip("link set eth0 down");
        // The routes of an interface that is set down go with it.
        until(&mut hops, "10.0.0.2", |hop| *hop == Err(Unresolved::NoRoute)).await;
        run_ip("link set eth0 up");
        until(&mut hops, "10.0.0.2", Result::is_ok).await;
    });
}

#[test]
fn a_host_that_comes_late_is_found() {
    let Some((balancer, backend)) = lab("a_host_that_comes_late_is_found") else {
        return;
    };
    balancer.run(move || async move {
        let (resolver, mut hops) = Resolver::spawn();
        resolver.set_targets(targets(&["10.0.0.3"]));
        assert!(resolver.wait_resolved().await[&addr("10.0.0.3")].is_err());
        backend.ip("address add 10.0.0.3/24 dev eth0");
        until(&mut hops, "10.0.0.3", Result::is_ok).await;
    });
}

#[test]
fn a_flushed_neighbor_does_not_flap() {
    let Some((balancer, _backend)) = lab("a_flushed_neighbor_does_not_flap") else {
        return;
    };
    balancer.run(|| async {
        let (resolver, mut hops) = Resolver::spawn();
        resolver.set_targets(targets(&["10.0.0.2", "fd00::2"]));
        resolver.wait_resolved().await;
        let before = hops.borrow_and_update().clone();
        assert!(before.values().all(Result::is_ok), "{before:?}");
        run_ip("neighbor flush all");
        // Nobody else sends anything: the entry comes back because the resolver asks for it.
        for address in ["10.0.0.2", "fd00::2"] {
            tokio::time::timeout(PATIENCE, async {
                while state_of(address).await != Some(NeighborState::Reachable) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
            .await
            .unwrap();
        }
        assert!(
            !hops.has_changed().unwrap(),
            "{before:?} became {:?}",
            hops.borrow()
        );
    });
}

#[test]
fn a_stale_neighbor_is_verified_and_a_permanent_one_left_alone() {
    let Some((balancer, backend)) = lab("a_stale_neighbor_is_verified_and_a_permanent_one_left_alone") else {
        return;
    };
    let backend_mac = mac_of_eth0(&backend);
    balancer.run(move || async move {
        let lladdr = crate::net::DisplayMac(backend_mac);
        run_ip(&format!(
            "neighbor replace 10.0.0.2 lladdr {lladdr} dev eth0 nud stale"
        ));
        run_ip(&format!(
            "neighbor replace 10.0.0.3 lladdr {lladdr} dev eth0 nud permanent"
        ));
        let (resolver, _hops) = Resolver::spawn();
        resolver.set_targets(targets(&["10.0.0.2", "10.0.0.3"]));
        let first = resolver.wait_resolved().await;
        assert!(first.values().all(Result::is_ok), "{first:?}");
        tokio::time::timeout(PATIENCE, async {
            while state_of("10.0.0.2").await == Some(NeighborState::Stale) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .unwrap();
        assert_eq!(state_of("10.0.0.3").await, Some(NeighborState::Permanent));
    });
}

#[test]
fn hundreds_of_targets_are_resolved_in_one_round() {
    let Some((balancer, backend)) = lab("hundreds_of_targets_are_resolved_in_one_round") else {
        return;
    };
    backend.ip("route add local 10.0.8.0/22 dev eth0");
    balancer.ip("route add 10.0.8.0/22 dev eth0");
    balancer.run(|| async {
        let many: BTreeSet<IpAddr> = (1..=300u16)
            .map(|n| IpAddr::from([10, 0, 8 + (n >> 8) as u8, n as u8]))
            .collect();
        let hops = tokio::time::timeout(PATIENCE, resolve_once(many.clone()))
            .await
            .unwrap();
        let resolved = many.iter().filter(|target| hops[target].is_ok()).count();
        assert_eq!(resolved, many.len());
    });
}

#[test]
fn nothing_runs_on_after_the_handle_is_dropped() {
    let Some((balancer, _backend)) = lab("nothing_runs_on_after_the_handle_is_dropped") else {
        return;
    };
    balancer.run(|| async {
        let (resolver, mut hops) = Resolver::spawn();
        drop(resolver);
        let ended = async { while hops.changed().await.is_ok() {} };
        assert!(tokio::time::timeout(PATIENCE, ended).await.is_ok());
    });
}
