//! QUIC: packets whose connection id names a backend go there from any address, all others by their flow.

use std::net::{IpAddr, SocketAddr};

use lb_common::quic::QuicCounters;
use lb_common::reason::Reason;
use lb_common::rule::Standing;
use xlb::config::Config;
use xlb::datapath::simulate::Simulator;
use xlb::model::{BackendId, Protocol, ServiceKey};

use crate::build::{IntoHeaders, ip, udp_in};
use crate::world::{options, send, world_with};

/// Service address, forward mode and backends of each service; each has what encapsulates in its name, for the check of
/// what leaves.
const SERVICES: [(&str, &str, &str, [&str; 3]); 7] = [
    (
        "l2",
        "192.0.2.10",
        "dsr-l2",
        ["10.0.1.11", "10.0.1.12", "10.0.1.13"],
    ),
    (
        "l2-v6",
        "2001:db8::10",
        "dsr-l2",
        ["2001:db8:1::11", "2001:db8:1::12", "2001:db8:1::13"],
    ),
    (
        "4in4",
        "192.0.2.20",
        "dsr-ipip",
        ["10.0.1.11", "10.0.1.12", "10.0.1.13"],
    ),
    (
        "4in6",
        "192.0.2.30",
        "dsr-ipip",
        ["2001:db8:1::11", "2001:db8:1::12", "2001:db8:1::13"],
    ),
    (
        "6in6",
        "2001:db8::20",
        "dsr-ipip",
        ["2001:db8:1::11", "2001:db8:1::12", "2001:db8:1::13"],
    ),
    (
        "gue-4in4",
        "192.0.2.60",
        "dsr-gue",
        ["10.0.1.11", "10.0.1.12", "10.0.1.13"],
    ),
    (
        "gue-6in6",
        "2001:db8::60",
        "dsr-gue",
        ["2001:db8:1::11", "2001:db8:1::12", "2001:db8:1::13"],
    ),
];

/// Server ids of the three backends: the draft's example among them, and two of configuration 1.
const IDS: [&str; 3] = [
    "quic_ids = [\"0:c4605e\", \"1:350d28b420\"]",
    "quic_ids = [\"0:000001\", \"1:0000000001\"]",
    "quic_ids = [\"0:000002\"]",
];

const PORT: u16 = 443;

fn text(more: &str) -> String {
    let mut text =
        format!("schema = 1\n[agent]\ninterfaces = [\"lo\"]\nmax_services = 64\nmax_backends = 64\n{more}\n");
    for (name, address, forward, backends) in SERVICES {
        text += &format!(
            "[[service]]\nname = \"{name}\"\naddress = \"{address}\"\nport = {PORT}\nprotocol = \"udp\"\n\
             forward = \"{forward}\"\nquic = true\n[service.check]\ntype = \"none\"\n"
        );
        for (backend, ids) in backends.iter().zip(IDS) {
            text += &format!("[[service.backend]]\naddress = \"{backend}\"\n{ids}\n");
        }
    }
    text
}

fn config(more: &str) -> Config {
    let text = text(more);
    Config::parse(&text).unwrap_or_else(|faults| panic!("{faults}\n{text}"))
}

fn world() -> Option<Simulator> {
    world_with(&config(""), &options())
}

fn bytes(hex: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal digits");
    (0..hex.len()).step_by(2).map(digit).collect()
}

/// A short header, the id in hexadecimal, and 21 bytes that look like nothing.
fn short(id: &str) -> Vec<u8> {
    [&[0x4e][..], &bytes(id), &[0xab; 21]].concat()
}

/// A long header: its first byte, the version and the id.
fn long(first: u8, version: u32, id: &str) -> Vec<u8> {
    let id = bytes(id);
    let length = u8::try_from(id.len()).expect("an id");
    [
        &[first][..],
        &version.to_be_bytes(),
        &[length],
        &id,
        &[0, 0xab, 0xcd],
        &[0; 1180],
    ]
    .concat()
}

/// A datagram from a port of the client.
fn from(port: u16, service: &str, payload: &[u8]) -> Vec<u8> {
    udp_in(ip(service), port, PORT, payload)
}

fn goes(world: &mut Simulator, shows: &str, packet: &[u8]) -> IpAddr {
    let outcome = send(world, shows, packet);
    assert_eq!(outcome.reason, Reason::Transmitted, "{shows}");
    outcome.backend.expect("a backend").ip()
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Where a datagram that is not QUIC goes from there: by its hash.
fn hashed(world: &mut Simulator, port: u16, service: &str) -> IpAddr {
    goes(world, "no QUIC", &from(port, service, &[0]))
}

fn key(service: &str) -> ServiceKey {
    ServiceKey {
        address: address(service),
        port: PORT,
        protocol: Protocol::Udp,
    }
}

fn counted(world: &Simulator, service: &str) -> (u64, u64, u64) {
    let index = world.dataplane.index_of_service(&key(service)).expect("an index");
    let counters = world.dataplane.maps.quic.counters(index).expect("counters");
    let QuicCounters {
        by_id,
        unroutable,
        gone,
    } = counters;
    (by_id, unroutable, gone)
}

/// What a backend takes.
fn set_standing(world: &Simulator, service: &str, backend: &str, standing: Standing) {
    let id = BackendId {
        service: key(service),
        address: address(backend),
        port: PORT,
    };
    let index = world.dataplane.index_of(&id).expect("an index");
    let mut record = world.dataplane.maps.backends.get(index);
    record.standing = standing.bits();
    world.dataplane.maps.backends.set(index, &record);
}

#[test]
fn an_id_leads_to_its_backend_from_every_address_in_every_mode() {
    let Some(mut world) = world() else { return };
    for (name, service, _, backends) in SERVICES {
        let ids = [
            ("07c4605e4504cc4f", backends[0]),
            ("2a350d28b4203487d9700b", backends[0]),
            ("00000001aabbccdd", backends[1]),
            ("3f0000000001aabbccdd", backends[1]),
            ("1f000002aabbccddeeff00112233", backends[2]),
        ];
        let mut elsewhere = 0;
        for port in 5000..5016 {
            let otherwise = hashed(&mut world, port, service);
            for (id, backend) in ids {
                let backend = address(backend);
                elsewhere += usize::from(otherwise != backend);
                for (shows, payload) in [
                    ("a short header", short(id)),
                    ("a Handshake packet", long(0xe0, 1, id)),
                    ("an Initial packet with the server's id", long(0xc0, 1, id)),
                    ("of version 2", long(0xf0, 0x6b33_43cf, id)),
                    ("of no version that is known", long(0xff, 0x1a2a_3a4a, id)),
                ] {
                    let packet = from(port, service, &payload);
                    assert_eq!(goes(&mut world, shows, &packet), backend, "{name} {id} {shows}");
                }
            }
        }
        assert!(
            elsewhere > 30,
            "{name}: the hash would lead elsewhere ({elsewhere})"
        );
        assert_eq!(counted(&world, service).0, 16 * 5 * 5, "{name}");
    }
}

#[test]
fn what_no_id_leads_anywhere_goes_by_its_hash() {
    let Some(mut world) = world() else { return };
    for (name, service, ..) in SERVICES {
        for port in 6000..6016 {
            let hashed = hashed(&mut world, port, service);
            for (shows, payload) in [
                ("a server that there is not", short("00ffffff00000000")),
                ("a configuration that there is not", short("40c4605e4504cc4f")),
                ("an id that says that it says nothing", short("e0c4605e4504cc4f")),
                ("an id of the client", long(0xc0, 1, "8394c8f03e515708")),
                ("an id that ends too early", long(0xe0, 1, "07c460")),
                ("an empty id", long(0xc0, 1, "")),
                ("cut short", bytes("4107c4605e4504cc4f")),
                ("a long header cut short", bytes("e0000000010807c4605e")),
                ("nothing", Vec::new()),
            ] {
                let packet = from(port, service, &payload);
                assert_eq!(goes(&mut world, shows, &packet), hashed, "{name} {shows}");
            }
        }
        let (by_id, unroutable, gone) = counted(&world, service);
        // Six that could name a server; what is too short to be QUIC is not looked at.
        assert_eq!((by_id, unroutable, gone), (0, 16 * 6, 0), "{name}");
    }
}

#[test]
fn bytes_behind_the_datagram_are_not_its_id() {
    let Some(mut world) = world() else { return };
    for port in 6000..6016 {
        let hashed = hashed(&mut world, port, "192.0.2.10");
        // The frame has more bytes than its datagram says, as padding has.
        let mut packet = from(port, "192.0.2.10", &short("00000001aabbccdd"));
        let at = 14 + 20 + 4;
        packet[at..at + 2].copy_from_slice(&(8 + 9_u16).to_be_bytes());
        assert_eq!(goes(&mut world, "padding", &packet), hashed);
    }
}

/// RFC 9001 appendix A.2: the client's own id, whose configuration (4) is not in use.
#[test]
fn the_initial_packet_of_rfc_9001_goes_by_its_hash_until_its_id_is_known() {
    let Some(mut world) = world() else { return };
    let mut payload = bytes(
        "c000000001088394c8f03e5157080000449e7b9aec34d1b1c98dd7689fb8ec11d242b123dc9bd8bab936b47d92ec356c",
    );
    payload.resize(1200, 0x5a);
    for port in 6000..6016 {
        let hashed = hashed(&mut world, port, "192.0.2.10");
        assert_eq!(
            goes(&mut world, "RFC 9001", &from(port, "192.0.2.10", &payload)),
            hashed
        );
    }
    let text = text("").replace("\"0:000002\"", "\"4:94c8f03e515708\"");
    let config = Config::parse(&text).expect("a configuration");
    let mut world = world_with(&config, &options()).expect("root, as above");
    for port in 6000..6016 {
        let backend = goes(&mut world, "a server's id", &from(port, "192.0.2.10", &payload));
        assert_eq!(backend, address("10.0.1.13"));
    }
}

#[test]
fn an_id_of_a_backend_that_is_gone_leads_nowhere() {
    let Some(mut world) = world() else { return };
    let (service, backend) = ("192.0.2.20", "10.0.1.12");
    for (standing, kept) in [(Standing::Gone, false), (Standing::Serves, true)] {
        set_standing(&world, service, backend, standing);
        let mut to_others = 0;
        for port in 7000..7016 {
            let otherwise = hashed(&mut world, port, service);
            let packet = from(port, service, &short("00000001aabbccdd"));
            let went = goes(&mut world, "its id", &packet);
            if kept {
                assert_eq!(went, address(backend));
            } else {
                assert_eq!(went, otherwise);
                to_others += usize::from(went != address(backend));
            }
        }
        assert!(kept || to_others > 0);
    }
    let (by_id, _, gone) = counted(&world, service);
    assert_eq!((by_id, gone), (16, 16));
}

#[test]
fn headers_that_are_rare_hide_no_id() {
    let Some(mut world) = world() else { return };
    let payload = short("00000001aabbccdd");
    for port in 5000..5008 {
        let mut header = crate::build::v4("192.0.2.20");
        header.options = crate::build::no_operations(2);
        let packet = udp_in(header.into_headers(), port, PORT, &payload);
        assert_eq!(goes(&mut world, "IPv4 options", &packet), address("10.0.1.12"));
    }
}

#[test]
fn what_changes_in_the_file_changes_in_the_maps() {
    let Some(mut world) = world() else { return };
    let goes_to = |world: &mut Simulator, id: &str| {
        let mut went: Vec<_> = (5000..5016)
            .map(|port| goes(world, id, &from(port, "192.0.2.10", &short(id))))
            .collect();
        went.sort();
        went.dedup();
        went
    };
    let before = world.dataplane.maps.quic.servers().len();
    assert_eq!(before, 5 * SERVICES.len());
    assert_eq!(goes_to(&mut world, "00000001aabbccdd"), [address("10.0.1.12")]);
    // Two backends change their ids, the third has one of another length in another configuration.
    let renumbered = text("")
        .replace("\"0:c4605e\"", "\"0:0000ff\"")
        .replace("\"0:000001\"", "\"0:c4605e\"")
        .replace("\"0:0000ff\"", "\"0:000001\"")
        .replace("\"0:000002\"", "\"5:02\"");
    apply(&mut world, &renumbered);
    assert_eq!(goes_to(&mut world, "00000001aabbccdd"), [address("10.0.1.11")]);
    assert_eq!(goes_to(&mut world, "07c4605e4504cc4f"), [address("10.0.1.12")]);
    assert_eq!(goes_to(&mut world, "a002aabbccddeeff"), [address("10.0.1.13")]);
    assert!(
        goes_to(&mut world, "00000002aabbccdd").len() > 1,
        "it is nobody's any longer"
    );
    assert_eq!(world.dataplane.maps.quic.servers().len(), before);
    // A backend goes, and with it its ids; another one that comes is given them.
    let replaced = renumbered.replace("\"10.0.1.12\"", "\"10.0.1.77\"");
    apply(&mut world, &replaced);
    assert_eq!(goes_to(&mut world, "07c4605e4504cc4f"), [address("10.0.1.77")]);
    // Without QUIC nothing is left.
    let off: String = replaced
        .lines()
        .filter(|line| !line.starts_with("quic"))
        .map(|line| format!("{line}\n"))
        .collect();
    apply(&mut world, &off);
    assert!(world.dataplane.maps.quic.servers().is_empty());
    assert!(goes_to(&mut world, "07c4605e4504cc4f").len() > 1);
    let index = world
        .dataplane
        .index_of_service(&key("192.0.2.10"))
        .expect("an index");
    let is_quic = |world: &Simulator| world.dataplane.maps.records.table(index).is_quic();
    assert_eq!(world.dataplane.maps.quic.lengths(index).0, 0);
    assert!(!is_quic(&world));
    apply(&mut world, &replaced);
    assert!(is_quic(&world));
    assert_eq!(goes_to(&mut world, "07c4605e4504cc4f"), [address("10.0.1.77")]);
}

fn apply(world: &mut Simulator, text: &str) {
    let config = Config::parse(text).unwrap_or_else(|faults| panic!("{faults}\n{text}"));
    let desired = xlb::datapath::simulate::desired(&config, &options(), &world.dataplane);
    world
        .dataplane
        .apply(&desired, &xlb::datapath::clock::monotonic_ns)
        .expect("maps that can be written");
}

#[test]
fn a_service_that_translates_gives_a_moved_client_its_backend() {
    let mut text = text("snat_addresses = [\"198.51.100.9\", \"2001:db8:9::9\"]");
    for forward in ["dsr-l2", "dsr-ipip", "dsr-gue"] {
        text = text.replace(&format!("\"{forward}\""), "\"full-nat\"");
    }
    // IPv4 cannot become IPv6.
    let (head, tail) = text
        .split_once("[[service]]\nname = \"4in6\"")
        .expect("that service");
    let (_, tail) = tail.split_once("[[service]]").expect("another one");
    let config =
        Config::parse(&format!("{head}[[service]]{tail}")).unwrap_or_else(|faults| panic!("{faults}"));
    let Some(mut world) = world_with(&config, &options()) else {
        return;
    };
    for service in ["192.0.2.10", "2001:db8::10"] {
        let mut hashed = std::collections::BTreeSet::new();
        for port in 5000..5016 {
            let to = |world: &mut Simulator, port, payload: &[u8]| {
                let packet = from(port, service, payload);
                let outcome = world.packet(&packet).expect("a packet that runs");
                assert_eq!(outcome.reason, Reason::Transmitted);
                outcome.backend.as_ref().map(SocketAddr::ip).expect("a backend")
            };
            hashed.insert(to(&mut world, port, &long(0xc0, 1, "8394c8f03e515708")));
            let by_id = to(&mut world, port + 100, &short("00000001aabbccdd"));
            assert_eq!(
                by_id.to_string(),
                if service.contains(':') {
                    "2001:db8:1::12"
                } else {
                    "10.0.1.12"
                }
            );
        }
        assert!(hashed.len() > 1, "new connections spread");
    }
}
