//! The programs under test with their services, tables and packets.

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use etherparse::PacketBuilder;
use lb_common::hash;
use lb_common::layout::{self, FlowControl, Slot};
use xlb::config::Config;
use xlb::datapath::simulate::{Options, Simulator};
use xlb::model::{BackendId, Protocol, ServiceKey};

use super::cases::{Case, Family, Kind, Setting};
use crate::KEY;

const SERVICE_V4: [u8; 4] = [192, 0, 2, 10];
const SERVICE_V6: [u8; 16] = [0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10];
const CLIENT_V4: [u8; 4] = [203, 0, 113, 7];
const CLIENT_V6: [u8; 16] = [0x20, 0x01, 0x0d, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
const CLIENT_PORT: u16 = 40_000;
const PORT: u16 = 80;

/// The program in a setting.
pub fn simulator(setting: Setting) -> Result<Simulator> {
    let options = Options {
        hash_key: Some(KEY),
        ..Options::default()
    };
    let simulator = Simulator::for_speed(&configuration(setting)?, &options)?;
    match setting {
        Setting::L2
        | Setting::Ipip
        | Setting::Gue
        | Setting::Impassive
        | Setting::Full
        | Setting::FullLarge
        | Setting::FullCrowded => {}
        Setting::Moved => move_slots(&simulator, 1 << 30, |_, _| true)?,
        Setting::MovedWithout => move_slots(&simulator, 0, |_, _| true)?,
        Setting::TenthMoving => move_slots(&simulator, 1 << 30, |number, own| number % 10 == (own + 1) % 10)?,
    }
    Ok(simulator)
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

    let (forward, more) = match setting {
        Setting::L2 => ("dsr-l2", ""),
        Setting::Gue => ("dsr-gue", ""),
        Setting::Full | Setting::FullLarge | Setting::FullCrowded => ("dsr-ipip", "tracking = \"full\"\n"),
        Setting::Impassive => ("dsr-ipip", "[service.check]\npassive = false\n"),
        Setting::Ipip | Setting::Moved | Setting::MovedWithout | Setting::TenthMoving => ("dsr-ipip", ""),
    };
    let mut text = "schema = 1\n[agent]\ninterfaces = [\"lo\"]\n".to_owned();
    if setting == Setting::FullLarge {
        writeln!(text, "flow_cache_size = {}", 1 << 22)?;
    }
    for (family, address) in [(4, "192.0.2.10"), (6, "2001:db8::10")] {
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
    let ip = match case.family {
        Family::V4 => ethernet.ipv4(CLIENT_V4, SERVICE_V4, 64),
        Family::V6 => ethernet.ipv6(CLIENT_V6, SERVICE_V6, 64),
    };
    let mut frame = Vec::new();
    let payload = [0; 10];
    match case.kind {
        Kind::Udp => ip.udp(CLIENT_PORT, PORT).write(&mut frame, &payload),
        kind => {
            let port = if kind == Kind::Foreign { PORT + 1 } else { PORT };
            let tcp = ip.tcp(CLIENT_PORT, port, 1000, 65_535);
            let tcp = if kind == Kind::Syn { tcp.syn() } else { tcp.ack(1) };
            tcp.write(&mut frame, &payload)
        }
    }
    .context("building the packet of a case")?;
    Ok(frame)
}
