//! The programs under test with their services, tables and packets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, bail};
use etherparse::PacketBuilder;
use lb_common::hash;
use lb_common::layout::{self, FlowControl, Slot};
use lb_common::nat::{self, NatEntry, NatKey, NatSeen, REPLY};
use xlb::config::Config;
use xlb::datapath::clock::monotonic_ns;
use xlb::datapath::identity;
use xlb::datapath::measure::Flows;
use xlb::datapath::simulate::{Options, Simulator};
use xlb::datapath::testrun::INGRESS_IFINDEX;
use xlb::model::{BackendId, Protocol, ServiceKey};

use super::cases::{Case, Family, Kind, MANY, Setting};
use crate::KEY;

const SERVICE_V4: [u8; 4] = [192, 0, 2, 10];
const SERVICE_V6: [u8; 16] = [0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10];
const CLIENT_V4: [u8; 4] = [203, 0, 113, 7];
const CLIENT_V6: [u8; 16] = [0x20, 0x01, 0x0d, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
const CLIENT_PORT: u16 = 40_000;
const PORT: u16 = 80;
const TCP: u8 = 6;
/// Whom answers are sent to.
const MAC: [u16; 3] = [2, 0, 9];

/// The program in a setting.
pub fn simulator(setting: Setting) -> Result<Simulator> {
    let options = Options {
        hash_key: Some(KEY),
        ..Options::default()
    };
    let mut simulator = Simulator::for_speed(&configuration(setting)?, &options)?;
    match setting {
        Setting::L2
        | Setting::Ipip
        | Setting::Gue
        | Setting::Impassive
        | Setting::Full
        | Setting::FullLarge
        | Setting::FullCrowded
        | Setting::FullAnew
        | Setting::NatAnew
        | Setting::FullNatAnew
        | Setting::Listed
        | Setting::Denied => {}
        Setting::Nat | Setting::FullNat => expect_answers(&mut simulator)?,
        Setting::Moved => move_slots(&simulator, 1 << 30, |_, _| true)?,
        Setting::MovedWithout => move_slots(&simulator, 0, |_, _| true)?,
        Setting::TenthMoving => move_slots(&simulator, 1 << 30, |number, own| number % 10 == (own + 1) % 10)?,
    }
    Ok(simulator)
}

/// Forgets the flows of a setting that is to begin anew; gives back how many there were.
pub fn begin(setting: Setting, simulator: &mut Simulator) -> Result<usize> {
    let maps = &mut simulator.dataplane.maps;
    if setting == Setting::FullAnew {
        return Ok(maps.flow_cache.forget(|_| true));
    }
    let entries = maps.nat.flows.all()?;
    for (key, _) in &entries {
        maps.nat.flows.remove(key)?;
    }
    // One for each direction.
    Ok(entries.len() / 2)
}

/// Puts in what the answers of one backend of each family to as many clients as there are find: entries as the program
/// makes them. An answer of `full-nat` finds its own in the same way, so that here it is to an address of ours that is
/// the client's.
fn expect_answers(simulator: &mut Simulator) -> Result<()> {
    let now_ns = monotonic_ns();
    for family in [Family::V4, Family::V6] {
        let (client, _) = identity::words(client(family));
        let (service, number) = identity::words(service(family));
        let (source, _) = identity::words(backend(family));
        let [a, b, c, own] = client;
        for last in std::iter::once(own).chain((0..MANY).map(Flows::client)) {
            let key = NatKey {
                source,
                destination: [a, b, c, last],
                ports: nat::ports(PORT.to_be(), CLIENT_PORT.to_be()),
                kind: NatKey::kind(number, TCP),
            };
            let entry = NatEntry {
                tag: key.tag(),
                seen: NatSeen::at(now_ns).and(NatSeen::SOME, now_ns),
                source: service,
                destination: key.destination,
                ports: key.ports,
                direction: REPLY,
                way: nat::way(MAC, MAC, INGRESS_IFINDEX),
                ..NatEntry::default()
            };
            simulator.dataplane.maps.nat.flows.set(&key, entry)?;
        }
    }
    Ok(())
}

fn client(family: Family) -> IpAddr {
    match family {
        Family::V4 => CLIENT_V4.into(),
        Family::V6 => CLIENT_V6.into(),
    }
}

fn service(family: Family) -> IpAddr {
    match family {
        Family::V4 => SERVICE_V4.into(),
        Family::V6 => SERVICE_V6.into(),
    }
}

/// The one that answers.
fn backend(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 0, 1, 1).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1).into(),
    }
}

/// Moves slots of the service of TCP over IPv4, by their number and that of the client, to the next backend. So many
/// entries may be made of each kind.
fn move_slots(simulator: &Simulator, entries: u64, moves: impl Fn(u32, u32) -> bool) -> Result<()> {
    let dataplane = &simulator.dataplane;
    let service = ServiceKey {
        address: IpAddr::from(SERVICE_V4),
        port: PORT,
        protocol: Protocol::Tcp,
    };
    let index = dataplane.index_of_service(&service).context("the service")?;
    let next = |backend: u32| -> Result<u32> {
        let id = dataplane.backend_at(backend).context("a backend")?;
        let IpAddr::V4(address) = id.address else {
            bail!("a backend of the other family");
        };
        let [a, b, c, d] = address.octets();
        let address = IpAddr::from([a, b, c, if d == 100 { 1 } else { d + 1 }]);
        dataplane
            .index_of(&BackendId { address, ..id })
            .context("the next backend")
    };
    let owners = dataplane.owners(&service);
    let own = hash::slot(
        hash::flow_v4(&KEY, u32::from_le_bytes(CLIENT_V4), client_ports()),
        owners.len() as u32,
    );
    let mut slots = Vec::with_capacity(owners.len());
    for (number, owner) in (0..).zip(owners) {
        slots.push(if moves(number, own) {
            Slot::new(next(owner)?, owner, true)
        } else {
            Slot::stable(owner)
        });
    }
    let maps = &dataplane.maps;
    let control = FlowControl {
        refused_ns: 0,
        syn_left: entries,
        data_left: entries,
        udp_left: entries,
    };
    maps.flow_control.set(index, control);
    maps.slabs.write(maps.records.table(index).place(), slots);
    Ok(())
}

/// Both ports of the client's packets, as they stand in them.
fn client_ports() -> u32 {
    let ([a, b], [c, d]) = (CLIENT_PORT.to_be_bytes(), PORT.to_be_bytes());
    u32::from_le_bytes([a, b, c, d])
}

fn configuration(setting: Setting) -> Result<Config> {
    use std::fmt::Write as _;

    let forward = match setting {
        Setting::L2 => "dsr-l2",
        Setting::Gue => "dsr-gue",
        Setting::Nat | Setting::NatAnew => "nat",
        Setting::FullNat | Setting::FullNatAnew => "full-nat",
        _ => "dsr-ipip",
    };
    let mut text = "schema = 1\n[agent]\ninterfaces = [\"lo\"]\n".to_owned();
    if let Some(flows) = setting.flow_cache_size() {
        writeln!(text, "flow_cache_size = {flows}")?;
    }
    if setting.translates() {
        writeln!(text, "nat_table_size = {}", 1 << 18)?;
        writeln!(text, "snat_addresses = [\"10.0.1.250\", \"2001:db8:1::250\"]")?;
    }
    for (family, address) in [(4, "192.0.2.10"), (6, "2001:db8::10")] {
        let more = match setting {
            _ if setting.flow_cache_size().is_some() => "tracking = \"full\"\n".into(),
            Setting::Impassive => "[service.check]\npassive = false\n".into(),
            Setting::Listed if family == 4 => denied(None),
            Setting::Denied if family == 4 => denied(Some("203.0.113.0/24")),
            _ => String::new(),
        };
        for protocol in ["tcp", "udp"] {
            write!(
                text,
                "[[service]]\nname = \"{protocol}{family}\"\naddress = \"{address}\"\nport = {PORT}\n\
                 protocol = \"{protocol}\"\nforward = \"{forward}\"\n{more}"
            )?;
            for backend in 1..=100 {
                let prefix = if family == 4 { "10.0.1." } else { "2001:db8:1::" };
                write!(text, "[[service.backend]]\naddress = \"{prefix}{backend}\"\n")?;
            }
        }
    }
    match Config::parse(&text) {
        Ok(config) => Ok(config),
        Err(error) => bail!("the configuration of the benchmark: {error:?}"),
    }
}

/// 5,000 prefixes that are denied, and one more. So short a part of all addresses that no client of a case is in one.
fn denied(more: Option<&str>) -> String {
    let prefixes = (0..5000_u32).map(|n| {
        let [_, b, c, d] = (n << 6).to_be_bytes();
        format!("\"100.{b}.{c}.{d}/28\"")
    });
    let all: Vec<String> = prefixes.chain(more.map(|more| format!("\"{more}\""))).collect();
    format!("deny = [{}]\n", all.join(", "))
}

/// The key of the service over IPv4 that a case is for.
pub fn service_key(kind: Kind) -> layout::ServiceKey {
    layout::ServiceKey {
        address: [0, 0, 0, u32::from_ne_bytes(SERVICE_V4)],
        port: PORT.to_be(),
        protocol: if kind == Kind::Udp { 17 } else { 6 },
        family: layout::FAMILY_V4,
    }
}

/// The packet of a case.
pub fn frame(case: &Case) -> Result<Vec<u8>> {
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 1]);
    let (from, to) = match case.kind {
        Kind::Reply => (backend(case.family), client(case.family)),
        _ => (client(case.family), service(case.family)),
    };
    let ip = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
        _ => bail!("two families"),
    };
    let mut frame = Vec::new();
    let payload = [0; 10];
    let (from, to) = match case.kind {
        Kind::Foreign => (CLIENT_PORT, PORT + 1),
        Kind::Reply => (PORT, CLIENT_PORT),
        _ => (CLIENT_PORT, PORT),
    };
    match case.kind {
        Kind::Udp => ip.udp(from, to).write(&mut frame, &payload),
        kind => {
            let tcp = ip.tcp(from, to, 1000, 65_535);
            let tcp = if kind == Kind::Syn { tcp.syn() } else { tcp.ack(1) };
            tcp.write(&mut frame, &payload)
        }
    }
    .context("building the packet of a case")?;
    Ok(frame)
}

/// Where the last four bytes of the client's address lie in the packet of a case.
pub fn client_offset(case: &Case) -> u16 {
    let back = case.kind == Kind::Reply;
    match case.family {
        Family::V4 => 14 + 12 + if back { 4 } else { 0 },
        Family::V6 => 14 + 8 + 12 + if back { 16 } else { 0 },
    }
}
