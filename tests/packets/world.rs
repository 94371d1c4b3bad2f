//! The services that the packets are for, in the real program.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::reason::Reason;
use lb_tests::KEY;
use xlb::config::Config;
use xlb::datapath::simulate::{Options, Outcome, Simulator};

use crate::out;

pub const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
pub const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 7);

const NEAR_V4: &[(&str, u16)] = &[("10.0.1.11", 1), ("10.0.1.12", 1), ("10.0.1.13", 1)];
const NEAR_V6: &[(&str, u16)] = &[("2001:db8:1::11", 1), ("2001:db8:1::12", 1)];

/// A service: name, address, port, protocol, forward mode, backends with their weights.
pub type Line<'a> = (&'a str, &'a str, u16, &'a str, &'a str, &'a [(&'a str, u16)]);

/// Named after what they show.
pub const SERVICES: [Line<'_>; 18] = [
    ("l2-tcp", "192.0.2.10", 80, "tcp", "dsr-l2", NEAR_V4),
    ("l2-udp", "192.0.2.10", 53, "udp", "dsr-l2", NEAR_V4),
    ("l2-tcp-v6", "2001:db8::10", 80, "tcp", "dsr-l2", NEAR_V6),
    ("l2-udp-v6", "2001:db8::10", 53, "udp", "dsr-l2", NEAR_V6),
    ("4in4", "192.0.2.20", 443, "tcp", "dsr-ipip", NEAR_V4),
    ("4in4-udp", "192.0.2.20", 443, "udp", "dsr-ipip", NEAR_V4),
    ("6in6", "2001:db8::20", 443, "tcp", "dsr-ipip", NEAR_V6),
    ("6in6-udp", "2001:db8::20", 443, "udp", "dsr-ipip", NEAR_V6),
    ("4in6", "192.0.2.30", 443, "tcp", "dsr-ipip", NEAR_V6),
    ("gue-4in4", "192.0.2.60", 443, "tcp", "dsr-gue", NEAR_V4),
    ("gue-4in4-udp", "192.0.2.60", 443, "udp", "dsr-gue", NEAR_V4),
    ("gue-6in6", "2001:db8::60", 443, "tcp", "dsr-gue", NEAR_V6),
    ("gue-6in6-udp", "2001:db8::60", 443, "udp", "dsr-gue", NEAR_V6),
    ("gue-4in6", "192.0.2.61", 443, "tcp", "dsr-gue", NEAR_V6),
    ("every-port", "192.0.2.40", 0, "tcp", "dsr-l2", NEAR_V4),
    ("one-port", "192.0.2.40", 8080, "tcp", "dsr-ipip", NEAR_V4),
    ("every-port-v6", "2001:db8::40", 0, "udp", "dsr-l2", NEAR_V6),
    ("nobody", "192.0.2.50", 80, "tcp", "dsr-l2", &[("10.0.5.11", 0)]),
];

/// Services of ranges of ports, beside others on their addresses.
pub const RANGES: &str = "
[[service]]
name = \"4in4-range\"
address = \"192.0.2.20\"
port = \"8000-8100\"
protocol = \"tcp\"
forward = \"dsr-ipip\"
check = { type = \"none\" }
backend = [{ address = \"10.0.1.11\" }, { address = \"10.0.1.12\" }]
[[service]]
name = \"gue-in-range\"
address = \"192.0.2.20\"
port = 8050
protocol = \"tcp\"
forward = \"dsr-gue\"
check = { type = \"none\" }
backend = [{ address = \"10.0.1.13\" }]
[[service]]
name = \"range-of-every-port\"
address = \"2001:db8::40\"
port = \"9000-9007\"
protocol = \"udp\"
forward = \"dsr-l2\"
check = { type = \"none\" }
backend = [{ address = \"2001:db8:1::11\" }]
";

/// The services of these tests, with ARP and neighbour solicitations answered or not.
pub fn config(announce: bool) -> Config {
    let text = text_of(&SERVICES, announce) + RANGES;
    Config::parse(&text).unwrap_or_else(|faults| panic!("{faults}\n{text}"))
}

/// A configuration of other services.
pub fn config_of(services: &[Line<'_>], announce: bool) -> Config {
    let text = text_of(services, announce);
    Config::parse(&text).unwrap_or_else(|faults| panic!("{faults}\n{text}"))
}

/// The text of a configuration of services.
pub fn text_of(services: &[Line<'_>], announce: bool) -> String {
    let announce = if announce { "l2" } else { "none" };
    let mut text = format!(
        "schema = 1\n[agent]\ninterfaces = [\"lo\"]\nannounce = \"{announce}\"\n\
         max_services = 64\nmax_backends = 64\n"
    );
    for (name, address, port, protocol, forward, backends) in services {
        text += &format!(
            "[[service]]\nname = \"{name}\"\naddress = \"{address}\"\nport = {port}\n\
             protocol = \"{protocol}\"\nforward = \"{forward}\"\n[service.check]\ntype = \"none\"\n"
        );
        for (backend, weight) in *backends {
            text += &format!("[[service.backend]]\naddress = \"{backend}\"\nweight = {weight}\n");
        }
    }
    text
}

/// Options with [`KEY`].
pub fn options() -> Options {
    Options {
        hash_key: Some(KEY),
        ..Options::default()
    }
}

/// The program with the services of these tests. `None` where tests that need root are left out.
pub fn world(announce: bool) -> Option<Simulator> {
    world_with(&config(announce), &options())
}

/// The program with another configuration.
pub fn world_with(config: &Config, options: &Options) -> Option<Simulator> {
    root().then(|| Simulator::new(config, options).unwrap_or_else(|error| panic!("{error}")))
}

/// Whether this test can run; `false` only where those that need root are left out on purpose.
pub fn root() -> bool {
    let name = std::thread::current().name().unwrap_or("?").to_owned();
    if lb_tests::unprivileged(&name) {
        return false;
    }
    let root = nix::unistd::geteuid().is_root();
    assert!(root, "loading BPF programs needs root: sudo -E cargo xtask test");
    true
}

/// A line of a table of packets.
pub struct Case {
    pub shows: &'static str,
    pub packet: Vec<u8>,
    pub reason: Reason,
    /// The service that is named.
    pub service: Option<&'static str>,
}

/// Sends each packet and compares what the program says with what the table says. What is passed must be
/// untouched, what is forwarded must be right in every byte.
pub fn check(world: &mut Simulator, cases: &[Case]) -> Vec<Outcome> {
    cases
        .iter()
        .map(|case| {
            let outcome = send(world, case.shows, &case.packet);
            let said = (outcome.reason, outcome.service.as_deref());
            assert_eq!(said, (case.reason, case.service), "{}", case.shows);
            outcome
        })
        .collect()
}

/// Sends a packet and checks the frame that leaves against reason and service.
pub fn send(world: &mut Simulator, shows: &str, packet: &[u8]) -> Outcome {
    let outcome = world
        .packet(packet)
        .unwrap_or_else(|error| panic!("{shows}: {error}"));
    out::check(shows, packet, &outcome);
    outcome
}

/// The MAC address that the simulation gives a backend.
pub fn mac_of(backend: IpAddr) -> [u8; 6] {
    let last = match backend {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(v6) => {
            let [.., a, b, c, d] = v6.octets();
            [a, b, c, d]
        }
    };
    let [a, b, c, d] = last;
    [0x02, 0x00, a, b, c, d]
}
