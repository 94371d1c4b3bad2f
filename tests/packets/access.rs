//! Access lists: whom a service takes packets from.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use etherparse::{IpHeaders, IpNumber};
use lb_common::reason::Reason;
use xlb::config::{Access, AccessList, Config};
use xlb::datapath::simulate::Simulator;
use xlb::datapath::testrun::Action;
use xlb::model::{Protocol, ServiceKey};

use crate::build::{PAYLOAD, ip, syn, tcp_in, udp_in};
use crate::fragments::pieces;
use crate::icmp::{ERRORS_V4, ERRORS_V6, error, quoted};
use crate::world::{config, options, send, world_with};

/// The services with lists, each with an address that nothing else has.
const SERVICES: &str = r#"
[[service]]
name = "friends"
address = "192.0.2.60"
port = 80
protocol = "tcp"
forward = "dsr-l2"
allow = ["198.18.0.0/15", "198.51.100.7", "203.0.113.0/24"]
deny = ["198.18.1.0/24", "203.0.113.128/25"]
[service.check]
type = "none"
[[service.backend]]
address = "10.0.1.11"

[[service]]
name = "4in4-strangers"
address = "192.0.2.61"
port = 53
protocol = "udp"
forward = "dsr-ipip"
deny = ["0.0.0.0/1", "203.0.113.7"]
[service.check]
type = "none"
[[service.backend]]
address = "10.0.1.11"

[[service]]
name = "6in6-friends"
address = "2001:db8::60"
port = 80
protocol = "tcp"
forward = "dsr-ipip"
allow = ["2001:db8:c::/48"]
deny = ["2001:db8:c:0:8000::/65", "2001:db8:c::bad"]
[service.check]
type = "none"
[[service.backend]]
address = "2001:db8:1::11"

[[service]]
name = "friends-udp-v6"
address = "2001:db8::60"
port = 53
protocol = "udp"
forward = "dsr-l2"
deny = ["2001:db8:d::/48"]
[service.check]
type = "none"
[[service.backend]]
address = "2001:db8:1::11"

[[service]]
name = "open"
address = "192.0.2.60"
port = 81
protocol = "tcp"
forward = "dsr-l2"
[service.check]
type = "none"
[[service.backend]]
address = "10.0.1.11"
"#;

const HEAD: &str =
    "schema = 1\n[agent]\ninterfaces = [\"lo\"]\nmax_services = 64\nmax_backends = 64\n[defaults]\n";

fn guarded() -> Option<Simulator> {
    let config = Config::parse(&format!("{HEAD}{SERVICES}")).unwrap_or_else(|faults| panic!("{faults}"));
    world_with(&config, &options())
}

/// Headers of a packet from a client.
pub fn from(client: &str, service: &str) -> IpHeaders {
    let mut headers = ip(service);
    match (&mut headers, client.parse().expect("an address")) {
        (IpHeaders::Ipv4(header, _), IpAddr::V4(client)) => header.source = client.octets(),
        (IpHeaders::Ipv6(header, _), IpAddr::V6(client)) => header.source = client.octets(),
        _ => panic!("{client} and {service} are of two families"),
    }
    headers
}

/// Service, client, whether it is let in.
const CLIENTS: [(&str, &str, bool); 26] = [
    ("friends", "198.18.0.0", true),
    ("friends", "198.19.255.255", true),
    ("friends", "198.17.255.255", false),
    ("friends", "198.20.0.0", false),
    ("friends", "198.18.0.255", true),
    ("friends", "198.18.1.0", false),
    ("friends", "198.18.1.255", false),
    ("friends", "198.18.2.0", true),
    ("friends", "198.51.100.7", true),
    ("friends", "198.51.100.6", false),
    ("friends", "203.0.113.127", true),
    ("friends", "203.0.113.128", false),
    ("4in4-strangers", "127.255.255.255", false),
    ("4in4-strangers", "128.0.0.0", true),
    ("4in4-strangers", "203.0.113.7", false),
    ("4in4-strangers", "203.0.113.8", true),
    ("6in6-friends", "2001:db8:c::1", true),
    ("6in6-friends", "2001:db8:c:0:7fff:ffff:ffff:ffff", true),
    ("6in6-friends", "2001:db8:c:0:8000::", false),
    ("6in6-friends", "2001:db8:c:1::", true),
    ("6in6-friends", "2001:db8:c::bad", false),
    ("6in6-friends", "2001:db8:b:ffff::", false),
    ("friends-udp-v6", "2001:db8:d::1", false),
    ("friends-udp-v6", "2001:db8:e::1", true),
    ("open", "198.17.255.255", true),
    ("open", "203.0.113.128", true),
];

/// Address, port and protocol of a service.
fn key(service: &str) -> (&'static str, u16, IpNumber) {
    match service {
        "friends" => ("192.0.2.60", 80, IpNumber::TCP),
        "4in4-strangers" => ("192.0.2.61", 53, IpNumber::UDP),
        "6in6-friends" => ("2001:db8::60", 80, IpNumber::TCP),
        "friends-udp-v6" => ("2001:db8::60", 53, IpNumber::UDP),
        _ => ("192.0.2.60", 81, IpNumber::TCP),
    }
}

fn packet(service: &str, client: &str) -> Vec<u8> {
    let (address, port, protocol) = key(service);
    let headers = from(client, address);
    if protocol == IpNumber::TCP {
        tcp_in(headers, syn(4000, port), PAYLOAD)
    } else {
        udp_in(headers, 4000, port, PAYLOAD)
    }
}

fn expected(allowed: bool) -> Reason {
    if allowed {
        Reason::Transmitted
    } else {
        Reason::Denied
    }
}

fn index_of(world: &Simulator, service: &str) -> u32 {
    let (address, port, protocol) = key(service);
    let key = ServiceKey {
        address: address.parse().expect("an address"),
        port,
        protocol: match protocol {
            IpNumber::TCP => Protocol::Tcp,
            _ => Protocol::Udp,
        },
    };
    world
        .dataplane
        .index_of_service(&key)
        .expect("a service that is there")
}

fn denied(world: &Simulator, service: &str) -> u64 {
    let index = index_of(world, service);
    world
        .dataplane
        .maps
        .guards
        .counters(index)
        .expect("the map")
        .denied
}

#[test]
fn the_longest_prefix_decides() {
    let Some(mut world) = guarded() else { return };
    for (service, client, allowed) in CLIENTS {
        let before = denied(&world, service);
        let shows = format!("{client} to {service}");
        let outcome = send(&mut world, &shows, &packet(service, client));
        assert_eq!(outcome.reason, expected(allowed), "{shows}");
        assert_eq!(outcome.service.as_deref(), Some(service), "{shows}");
        assert_eq!(outcome.backend.is_some(), allowed, "{shows}");
        assert_eq!(denied(&world, service) - before, u64::from(!allowed), "{shows}");
    }
}

#[test]
fn segments_of_a_connection_are_judged_like_its_syn() {
    let Some(mut world) = guarded() else { return };
    for (client, allowed) in [("198.18.0.1", true), ("198.18.1.1", false)] {
        let mut segment = syn(4000, 80);
        segment.syn = false;
        segment.ack = true;
        let packet = tcp_in(from(client, "192.0.2.60"), segment, PAYLOAD);
        assert_eq!(
            send(&mut world, client, &packet).reason,
            expected(allowed),
            "{client}"
        );
    }
}

/// A router on the way that reports an error need not be a client: who the error is about counts.
#[test]
fn errors_are_judged_by_the_client_they_are_about() {
    let Some(mut world) = guarded() else { return };
    for (service, client, allowed) in CLIENTS {
        let (address, port, protocol) = key(service);
        let mut inner = quoted(address, port, 4000, protocol);
        // The quoted packet went to the client.
        match client.parse().expect("an address") {
            IpAddr::V4(client) => inner[16..20].copy_from_slice(&client.octets()),
            IpAddr::V6(client) => inner[24..40].copy_from_slice(&client.octets()),
        }
        let heads: &[[u8; 8]] = if address.contains(':') {
            &ERRORS_V6
        } else {
            &ERRORS_V4
        };
        for head in heads {
            let outcome = send(&mut world, client, &error(address, *head, &inner));
            assert_eq!(
                outcome.reason,
                expected(allowed),
                "{client} to {service}: {head:?}"
            );
        }
    }
}

#[test]
fn fragments_follow_the_list_of_today() {
    let Some(mut world) = guarded() else { return };
    let (address, port, _) = key("4in4-strangers");
    let index = index_of(&world, "4in4-strangers");
    let pieces = pieces(address, 4000, port, 7, 4000);
    // The tests' own client, 203.0.113.7, is denied.
    assert_eq!(send(&mut world, "the first", &pieces[0]).reason, Reason::Denied);
    assert_eq!(send(&mut world, "behind it", &pieces[1]).reason, Reason::Fragment);
    let nobody = list(&[("203.0.113.8/32", Access::Deny)]);
    world
        .dataplane
        .maps
        .guards
        .put_list(index, &nobody)
        .expect("a list");
    for piece in &pieces {
        assert_eq!(send(&mut world, "allowed", piece).reason, Reason::Transmitted);
    }
    let client = list(&[("203.0.113.7/32", Access::Deny)]);
    world
        .dataplane
        .maps
        .guards
        .put_list(index, &client)
        .expect("a list");
    for piece in &pieces {
        assert_eq!(send(&mut world, "denied since", piece).reason, Reason::Denied);
    }
}

fn list(prefixes: &[(&str, Access)]) -> AccessList {
    let parsed = prefixes
        .iter()
        .map(|(prefix, access)| (prefix.parse().unwrap(), *access));
    AccessList::new(parsed.collect())
}

/// Prefixes of which no two lists have one in common but the last two, by which the friend and the foe are judged.
fn long_list(number: u8, prefixes: u32) -> AccessList {
    let mut list = BTreeMap::new();
    for n in 0..prefixes {
        let [_, _, b, c] = n.to_be_bytes();
        let access = if n % 2 == 0 { Access::Allow } else { Access::Deny };
        list.insert(format!("{}.{b}.{c}.0/24", 20 + number).parse().unwrap(), access);
    }
    list.insert("198.18.0.7/32".parse().unwrap(), Access::Allow);
    list.insert("198.18.0.8/32".parse().unwrap(), Access::Deny);
    AccessList::new(list)
}

#[test]
fn a_list_of_5000_is_replaced_without_a_gap() {
    let Some(world) = guarded() else { return };
    let index = index_of(&world, "friends");
    let lists: Vec<_> = (0..8).map(|n| long_list(n, 5000)).collect();
    world
        .dataplane
        .maps
        .guards
        .put_list(index, &lists[0])
        .expect("a list");
    let (friend, foe) = (packet("friends", "198.18.0.7"), packet("friends", "198.18.0.8"));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut sent = 0_u64;
            while !over.load(Ordering::Relaxed) || sent == 0 {
                for (packet, action) in [(&friend, Action::Tx), (&foe, Action::Drop)] {
                    let run = world.run(packet).expect("a frame");
                    assert_eq!(run.action, action, "after {sent} pairs");
                }
                sent += 1;
            }
            sent
        });
        for _ in 0..3 {
            for list in &lists {
                world.dataplane.maps.guards.put_list(index, list).expect("a list");
            }
        }
        over.store(true, Ordering::Relaxed);
        let pairs = sender.join().expect("no gap");
        println!("24 lists of 5002 prefixes, {pairs} pairs of packets, 0 gaps");
    });
}

/// Each prefix counts against an oracle that looks at all of them.
#[test]
fn a_long_list_means_what_it_says() {
    let Some(mut world) = guarded() else { return };
    let index = index_of(&world, "friends");
    let mut random = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 33) % below
    };
    let mut prefixes = BTreeMap::new();
    for _ in 0..3000 {
        let bits = 8 + next(25) as u8;
        // Close together, so that they lie inside each other.
        let address = std::net::Ipv4Addr::from(0x0a00_0000 | (next(1 << 14) as u32) << (next(10) as u32));
        let prefix = ipnet::IpNet::new(address.into(), bits).expect("a length").trunc();
        prefixes.insert(prefix, if next(2) == 0 { Access::Allow } else { Access::Deny });
    }
    let list = AccessList::new(prefixes.clone());
    world
        .dataplane
        .maps
        .guards
        .put_list(index, &list)
        .expect("a list");
    let (mut allowed, mut denied) = (0, 0);
    for n in 0..3000 {
        let client = std::net::Ipv4Addr::from(0x0a00_0000 | (next(1 << 24) as u32) >> (n % 12));
        let covers = prefixes
            .iter()
            .filter(|(prefix, _)| prefix.contains(&IpAddr::from(client)));
        let longest = covers.max_by_key(|(prefix, _)| prefix.prefix_len());
        let let_in = longest.is_some_and(|(_, access)| *access == Access::Allow);
        let client = client.to_string();
        let outcome = send(&mut world, &client, &packet("friends", &client));
        assert_eq!(outcome.reason, expected(let_in), "{client}");
        *(if let_in { &mut allowed } else { &mut denied }) += 1;
    }
    assert!(
        allowed > 300 && denied > 300,
        "{allowed} allowed, {denied} denied"
    );
}

#[test]
fn without_lists_every_client_is_let_in() {
    let Some(mut world) = world_with(&config(false), &options()) else {
        return;
    };
    let packet = tcp_in(from("198.17.255.255", "192.0.2.10"), syn(4000, 80), PAYLOAD);
    assert_eq!(send(&mut world, "anybody", &packet).reason, Reason::Transmitted);
}
