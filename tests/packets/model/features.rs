//! The same packets through programs with other features: what other services need changes nothing for them.

use xlb::config::Config;

use super::crowd::{Both, SEED, WAYS, seed};
use crate::vlan::tags_of;
use crate::world::{RANGES, SERVICES, config, root, text_of};

/// Services that have every feature switched on. Their addresses differ from all others in every byte, so that no spoiled
/// packet is theirs.
const NEIGHBORS: &str = r#"
[[service]]
name = "free"
address = "198.18.7.71"
port = 80
protocol = "tcp"
forward = "dsr-l2"
scheduler = "lc"
persistence_timeout = "1m"
allow = ["198.51.100.0/24"]
on_down = "reset"
limit = { new_flows = 10, udp_packets_per_client = 10 }
check = { type = "tcp" }
backend = [{ address = "10.0.1.11" }]
[[service]]
name = "by-source"
address = "198.18.7.72"
port = 53
protocol = "udp"
forward = "dsr-ipip"
scheduler = "sh"
tracking = "full"
outer_sources = ["10.255.0.0/16"]
check = { type = "none" }
backend = [{ address = "10.0.1.12" }]
[[service]]
name = "translated"
address = "198.18.7.73"
port = 80
protocol = "tcp"
forward = "nat"
check = { type = "none" }
backend = [{ address = "10.0.9.13" }]
"#;

/// The services of all tests beside others with every feature.
fn everything() -> Config {
    let text = text_of(&SERVICES, true) + RANGES + NEIGHBORS;
    Config::parse(&text).unwrap_or_else(|faults| panic!("{faults}\n{text}"))
}

/// The same with VLANs.
fn everything_tagged() -> Config {
    let mut config = everything();
    config.agent.vlans = true;
    for service in &mut config.services {
        for backend in &mut service.backends {
            backend.tags = tags_of(backend.address);
        }
    }
    config
}

/// Programs with few features and with all, each with its model. `None` where tests that need root are left out.
pub fn all() -> Option<Vec<(&'static str, Both)>> {
    if !root() {
        return None;
    }
    let configs = [
        ("few features", config(false)),
        ("announced", config(true)),
        ("every feature", everything()),
        ("every feature, tagged", everything_tagged()),
    ];
    let both = |(name, config): (&'static str, Config)| Some((name, Both::of(&config)?));
    configs.into_iter().map(both).collect()
}

/// Packets for each way and each program in the test run.
const FEW: u32 = 5_000;

#[test]
fn features_of_other_services_change_nothing() {
    let Some(all) = all() else { return };
    for (name, mut both) in all {
        println!("{name}:");
        for way in WAYS {
            both.crowd(way, FEW, seed().unwrap_or(SEED));
        }
    }
}
