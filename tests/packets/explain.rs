//! `xlb explain`: what it says is what packets meet, and nothing that packets meet is changed by it.

use std::net::SocketAddr;
use std::path::Path;

use lb_common::layout::{FlowControl, FlowEntry, FlowKey, FlowOwner, FlowSeen};
use lb_common::rule::State;
use xlb::config::QuicId;
use xlb::datapath::apply::Dataplane;
use xlb::datapath::clock::monotonic_ns;
use xlb::datapath::explain::{Explanation, Query, explain};
use xlb::datapath::identity;
use xlb::datapath::maps::Maps;
use xlb::datapath::pins::PinDir;
use xlb::model::{Protocol, ServiceKey};

use crate::pins::{PIN_DIR, SIZES, apart, desired, load};
use crate::vlan::with_vlans;

fn query(source: u16, address: &str, port: u16, protocol: Protocol, syn: bool) -> Query {
    let client = if address.contains(':') {
        "2001:db8:c::7"
    } else {
        "203.0.113.7"
    };
    Query {
        source: SocketAddr::new(client.parse().expect("an address"), source),
        service: ServiceKey {
            address: address.parse().expect("an address"),
            port,
            protocol,
        },
        syn,
        length: 0,
        quic_dcid: None,
    }
}

fn ask(query: &Query) -> Explanation {
    explain(Path::new(PIN_DIR), query).unwrap_or_else(|error| panic!("{query:?}: {error}"))
}

/// The pinned maps as an agent leaves them, with services of every mode, and what wrote them.
fn installed() -> Dataplane {
    let pins = PinDir::create(Path::new(PIN_DIR)).expect("a folder");
    xlb::datapath::maps::pin_hash_key(&pins, &lb_tests::KEY).expect("the key");
    let maps = Maps::of(&mut load(&pins), SIZES, Some(&pins)).expect("maps");
    let mut dataplane = Dataplane::adopt(maps, monotonic_ns()).expect("fresh maps");
    let wanted = desired(&with_vlans(false), &dataplane);
    dataplane.apply(&wanted, &monotonic_ns).expect("writing");
    dataplane
}

/// Everything that packets change.
fn traces(dataplane: &Dataplane) -> String {
    let maps = &dataplane.maps;
    let sent: u64 = (0..maps.backends.room())
        .map(|index| maps.backend_counters(index).expect("counters").packets)
        .sum();
    let controls: Vec<FlowControl> = (0..64).map(|service| maps.flow_control.get(service)).collect();
    let flows = maps.flows.all().expect("the flow table");
    let cached = maps.flow_cache.all().count();
    let reasons = maps.reason_counts().expect("reasons");
    format!("{sent} {controls:?} {flows:?} {cached} {reasons:?}")
}

#[test]
fn packets_of_every_service_are_explained() {
    apart(|| {
        let dataplane = installed();
        let before = traces(&dataplane);
        let mut vlans = std::collections::BTreeSet::new();
        for (address, port, protocol, name, overhead) in [
            ("192.0.2.10", 80, Protocol::Tcp, "l2-tcp", 0),
            ("2001:db8::10", 53, Protocol::Udp, "l2-udp-v6", 0),
            ("192.0.2.20", 443, Protocol::Tcp, "4in4", 20),
            ("192.0.2.30", 443, Protocol::Tcp, "4in6", 40),
            ("2001:db8::60", 443, Protocol::Udp, "gue-6in6-udp", 48),
            ("192.0.2.60", 443, Protocol::Tcp, "gue-4in4", 28),
            ("192.0.2.40", 9999, Protocol::Tcp, "every-port", 0),
            ("192.0.2.20", 8033, Protocol::Tcp, "4in4-range", 20),
            ("192.0.2.20", 8050, Protocol::Tcp, "gue-in-range", 28),
        ] {
            for source in 40_000..40_003 {
                let said = ask(&query(source, address, port, protocol, protocol == Protocol::Tcp));
                assert_eq!(
                    (&*said.verdict, &*said.reason),
                    ("redirect", "redirected"),
                    "{name}"
                );
                assert_eq!(said.service.expect("a service").name, name);
                let slot = said.slot.expect("a slot");
                let backend = said.backend.expect("a backend");
                // The one comes from the host's reckoning, the other from the program.
                assert_eq!(slot.new_flows, Some(backend.address), "{name}");
                assert!(!slot.moving && said.entry.is_none());
                assert_eq!(backend.packet_mtu, Some(1500 - overhead), "{name}");
                let sent = said.sent.expect("it is sent");
                assert_eq!(sent.interface.as_deref(), Some("near"));
                let outer = sent.outer.map(|outer| outer.destination);
                assert_eq!(outer, (overhead > 0).then_some(backend.address.ip()), "{name}");
                vlans.insert(sent.vlans);
            }
        }
        assert!(vlans.len() > 1, "backends in several VLANs: {vlans:?}");
        let elsewhere = ask(&query(1, "192.0.2.99", 80, Protocol::Tcp, true));
        assert_eq!((&*elsewhere.verdict, &*elsewhere.reason), ("pass", "not_service"));
        assert_eq!((elsewhere.service, elsewhere.slot), (None, None));
        let long = Query {
            length: 1481,
            ..query(1, "192.0.2.20", 443, Protocol::Tcp, false)
        };
        assert_eq!(ask(&long).reason, "too_big_answered");
        assert_eq!(traces(&dataplane), before, "nothing is changed");
    });
}

#[test]
fn ids_of_quic_are_explained() {
    apart(|| {
        let mut dataplane = installed();
        let mut wanted = desired(&with_vlans(false), &dataplane);
        let mut services = wanted.services.values_mut();
        let service = services.find(|service| service.name == "4in4-udp").expect("it");
        service.quic = true;
        for (number, backend) in service.backends.values_mut().enumerate() {
            backend.quic_ids = vec![QuicId::new(0, &[0xa1, number as u8]).expect("an id")];
        }
        let ids: Vec<_> = service.backends.keys().map(|id| id.address).collect();
        dataplane.apply(&wanted, &monotonic_ns).expect("writing");
        let before = traces(&dataplane);
        for (number, backend) in ids.into_iter().enumerate() {
            for (source, syn) in [(1000, false), (1001, false), (1002, true)] {
                let said = ask(&Query {
                    quic_dcid: Some(vec![0x1f, 0xa1, number as u8, 7, 7, 7, 7, 7]),
                    ..query(source, "192.0.2.20", 443, Protocol::Udp, syn)
                });
                assert_eq!(said.backend.map(|said| said.address.ip()), Some(backend));
                let note = format!("the connection id names {backend}");
                assert!(
                    said.notes.iter().any(|said| said.starts_with(&note)),
                    "{:?}",
                    said.notes
                );
            }
        }
        let said = ask(&Query {
            quic_dcid: Some(vec![0x1f; 8]),
            ..query(1000, "192.0.2.20", 443, Protocol::Udp, false)
        });
        let slot = said.slot.expect("a slot");
        assert_eq!(said.backend.map(|backend| backend.address), slot.new_flows);
        let note = "the connection id names nobody";
        assert!(
            said.notes.iter().any(|said| said.starts_with(note)),
            "{:?}",
            said.notes
        );
        assert_eq!(traces(&dataplane), before, "nothing is changed");
    });
}

#[test]
fn flows_of_a_slot_that_moves_follow_their_entries() {
    apart(|| {
        let mut dataplane = installed();
        let mut wanted = desired(&with_vlans(false), &dataplane);
        let service = wanted
            .services
            .values_mut()
            .find(|service| service.name == "4in4")
            .expect("the service");
        // One of three takes no new flows any longer.
        let gone = service.candidates.pop().expect("a backend");
        dataplane.apply(&wanted, &monotonic_ns).expect("writing");
        let plenty = FlowControl {
            refused_ns: 0,
            syn_left: 1000,
            data_left: 1000,
            udp_left: 1000,
        };
        for service in 0..SIZES.services {
            dataplane.maps.flow_control.allow(service, plenty);
        }
        let before = traces(&dataplane);
        let moved = (1000..2000)
            .map(|source| query(source, "192.0.2.20", 443, Protocol::Tcp, true))
            .find(|query| ask(query).slot.expect("a slot").moving)
            .expect("a slot that moves");
        let said = ask(&moved);
        let slot = said.slot.expect("a slot");
        assert_eq!(slot.old_flows.map(|old| old.ip()), Some(gone.address));
        assert_eq!(
            said.backend.map(|backend| backend.address),
            slot.new_flows,
            "a SYN"
        );
        let later = Query {
            syn: false,
            ..moved.clone()
        };
        assert_eq!(
            ask(&later).backend.map(|backend| backend.address),
            slot.old_flows,
            "no SYN"
        );
        assert_eq!(traces(&dataplane), before, "nothing is changed");

        // With an entry for the new owner the same packet goes there.
        let maps = &mut dataplane.maps;
        let index = (1..maps.backend_meta.len())
            .find(|index| {
                let meta = maps.backend_meta.get(index, 0).expect("metadata");
                let place = identity::address(meta.address, meta.family)
                    .map(|address| SocketAddr::new(address, u16::from_be(meta.port)));
                let service = maps.service_meta.get(&meta.service, 0).expect("metadata");
                place == slot.new_flows && xlb::datapath::apply::name_of(&service) == "4in4"
            })
            .expect("the new owner");
        let service = maps.backend_meta.get(&index, 0).expect("metadata").service;
        let [a, b] = moved.source.port().to_be_bytes();
        let key = FlowKey {
            source: identity::words(moved.source.ip()).0,
            ports: u32::from_ne_bytes([a, b, 443_u16.to_be_bytes()[0], 443_u16.to_be_bytes()[1]]),
            service,
        };
        let hash = lb_common::hash::flow_v4(
            &lb_tests::KEY,
            u32::from_le(key.source[3]),
            u32::from_le(key.ports),
        );
        let entry = FlowEntry {
            owner: FlowOwner::new(hash, index),
            seen: FlowSeen::new(State::Established, monotonic_ns()),
            isn: 0,
            before: 0,
        };
        maps.flows.set(&key, entry).expect("an entry");
        let said = ask(&later);
        assert_eq!(
            said.backend.map(|backend| backend.address),
            slot.new_flows,
            "by its entry"
        );
        let entry = said.entry.expect("an entry");
        assert_eq!((entry.backend, &*entry.state), (slot.new_flows, "established"));
    });
}

#[test]
fn without_pins_there_is_nothing_to_explain() {
    apart(|| {
        let error = explain(
            Path::new(PIN_DIR),
            &query(1, "192.0.2.10", 80, Protocol::Tcp, true),
        );
        let error = error.expect_err("nothing is pinned").to_string();
        assert!(error.contains("nothing is pinned in /sys/fs/bpf/xlb"), "{error}");
    });
}
