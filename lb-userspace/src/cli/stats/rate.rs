//! `xlb stats --rate`: the difference of two readings. Pure.

use std::net::IpAddr;

use serde::Serialize;

use super::drop_tone;
use crate::api::types::{BackendStats, DriverStats, LostStats, ReasonStats, ServiceStats, Stats};
use crate::cli::grid::{Cell, Column, Grid};
use crate::cli::human;
use crate::cli::outcome::Screen;
use crate::model::Protocol;

/// What happens per second.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Rates {
    /// Seconds between the two readings.
    pub interval_s: f64,
    pub services: Vec<ServiceRates>,
    pub reasons: Vec<ReasonRate>,
    pub drivers: Vec<DriverRates>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct DriverRates {
    pub interface: String,
    pub lost: Vec<LostRate>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct LostRate {
    pub counter: String,
    pub packets_per_s: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct ServiceRates {
    pub name: String,
    pub address: IpAddr,
    pub port: u16,
    pub last_port: Option<u16>,
    pub protocol: Protocol,
    #[serde(flatten)]
    pub rate: Rate,
    pub backends: Vec<BackendRates>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct BackendRates {
    pub address: IpAddr,
    pub port: u16,
    #[serde(flatten)]
    pub rate: Rate,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Rate {
    pub packets_per_s: f64,
    pub bits_per_s: f64,
    pub new_flows_per_s: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct ReasonRate {
    pub reason: String,
    pub verdict: String,
    pub packets_per_s: f64,
    pub meaning: String,
}

/// Counts of one thing.
#[derive(Clone, Copy, Default)]
struct Counts {
    packets: u64,
    bytes: u64,
    new_flows: u64,
}

/// What happened per second between two readings. What was not there in the first began at 0 after it; a counter that
/// went back was made anew meanwhile and counts from 0 too.
pub(super) fn rates(before: &Stats, after: &Stats) -> Rates {
    let interval_s = (after.at_ms.saturating_sub(before.at_ms).max(1)) as f64 / 1000.0;
    let services = after.services.iter().map(|service| {
        let earlier = before.services.iter().find(|earlier| same(earlier, service));
        service_rates(earlier, service, interval_s)
    });
    let reasons = after.reasons.iter().map(|after| {
        let ReasonStats {
            reason,
            verdict,
            packets,
            meaning,
        } = after;
        let earlier = before.reasons.iter().find(|earlier| earlier.reason == *reason);
        ReasonRate {
            reason: reason.clone(),
            verdict: verdict.clone(),
            packets_per_s: per_second(earlier.map_or(0, |earlier| earlier.packets), *packets, interval_s),
            meaning: meaning.clone(),
        }
    });
    let drivers = after.drivers.iter().map(|after| {
        let earlier = before.drivers.iter();
        let earlier = earlier.filter(|earlier| earlier.interface == after.interface);
        let earlier: Vec<_> = earlier.flat_map(|earlier| &earlier.lost).collect();
        driver_rates(&earlier, after, interval_s)
    });
    Rates {
        interval_s,
        services: services.collect(),
        reasons: reasons.collect(),
        drivers: drivers.collect(),
    }
}

fn driver_rates(before: &[&LostStats], after: &DriverStats, interval_s: f64) -> DriverRates {
    let lost = after.lost.iter().map(|LostStats { counter, packets }| {
        let earlier = before.iter().find(|earlier| earlier.counter == *counter);
        LostRate {
            counter: counter.clone(),
            packets_per_s: per_second(earlier.map_or(0, |earlier| earlier.packets), *packets, interval_s),
        }
    });
    DriverRates {
        interface: after.interface.clone(),
        lost: lost.collect(),
    }
}

fn same(a: &ServiceStats, b: &ServiceStats) -> bool {
    (a.address, a.port, a.protocol) == (b.address, b.port, b.protocol)
}

fn service_rates(before: Option<&ServiceStats>, after: &ServiceStats, interval_s: f64) -> ServiceRates {
    let counts = |service: &ServiceStats| Counts {
        packets: service.packets,
        bytes: service.bytes,
        new_flows: service.new_flows,
    };
    let backend_counts = |backend: &BackendStats| Counts {
        packets: backend.packets,
        bytes: backend.bytes,
        new_flows: backend.new_flows,
    };
    let earlier = |backend: &BackendStats| {
        let earlier = before?.backends.iter();
        earlier
            .filter(|earlier| (earlier.address, earlier.port) == (backend.address, backend.port))
            .map(backend_counts)
            .next()
    };
    let backends = after.backends.iter().map(|backend| BackendRates {
        address: backend.address,
        port: backend.port,
        rate: rate(
            earlier(backend).unwrap_or_default(),
            backend_counts(backend),
            interval_s,
        ),
    });
    ServiceRates {
        name: after.name.clone(),
        address: after.address,
        port: after.port,
        last_port: after.last_port,
        protocol: after.protocol,
        rate: rate(before.map(counts).unwrap_or_default(), counts(after), interval_s),
        backends: backends.collect(),
    }
}

fn rate(before: Counts, after: Counts, interval_s: f64) -> Rate {
    Rate {
        packets_per_s: per_second(before.packets, after.packets, interval_s),
        bits_per_s: 8.0 * per_second(before.bytes, after.bytes, interval_s),
        new_flows_per_s: per_second(before.new_flows, after.new_flows, interval_s),
    }
}

fn per_second(before: u64, after: u64, interval_s: f64) -> f64 {
    after.checked_sub(before).unwrap_or(after) as f64 / interval_s
}

pub(super) fn render(rates: &Rates, reasons: bool, screen: &Screen) -> String {
    let mut text = String::new();
    if rates.services.is_empty() {
        text += "no services\n";
    } else {
        text += &service_grid(&rates.services).render(screen, "");
    }
    if reasons {
        let mut grid = Grid::new(&[
            Column::left("REASON"),
            Column::left("VERDICT"),
            Column::right("PACKETS/S"),
            Column::left("MEANING").dispensable(1),
        ]);
        for ReasonRate {
            reason,
            verdict,
            packets_per_s,
            meaning,
        } in &rates.reasons
        {
            let tone = drop_tone(verdict, *packets_per_s > 0.0);
            grid.row(
                [
                    reason.into(),
                    Cell::toned(verdict, tone),
                    human::rate(*packets_per_s, "").into(),
                    meaning.into(),
                ],
                vec![],
            );
        }
        text += "\n";
        text += &grid.render(screen, "");
        text += &render_drivers(&rates.drivers, screen);
    }
    text
}

fn render_drivers(drivers: &[DriverRates], screen: &Screen) -> String {
    let mut grid = Grid::new(&[
        Column::left("LOST AFTER THE VERDICT"),
        Column::left("COUNTER"),
        Column::right("PACKETS/S"),
    ]);
    if drivers.iter().all(|driver| driver.lost.is_empty()) {
        return String::new();
    }
    for DriverRates { interface, lost } in drivers {
        for LostRate {
            counter,
            packets_per_s,
        } in lost
        {
            let tone = drop_tone("drop", *packets_per_s > 0.0);
            let rate = Cell::toned(&human::rate(*packets_per_s, ""), tone);
            grid.row([interface.into(), counter.into(), rate], vec![]);
        }
    }
    format!("\n{}", grid.render(screen, ""))
}

fn service_grid(services: &[ServiceRates]) -> Grid {
    let mut grid = Grid::new(&[
        Column::left("SERVICE, BACKEND"),
        Column::right("PACKETS/S"),
        Column::right("RATE"),
        Column::right("NEW FLOWS/S"),
    ]);
    for service in services {
        let mut row = |name: String, rate: &Rate| {
            let flows = match service.protocol {
                Protocol::Tcp => format!("~{}", human::rate(rate.new_flows_per_s, "")),
                Protocol::Udp => "-".to_owned(),
            };
            let cells = [
                name.into(),
                human::rate(rate.packets_per_s, "").into(),
                human::rate(rate.bits_per_s, "bit/s").into(),
                flows.into(),
            ];
            grid.row(cells, vec![]);
        };
        let place = human::service_place(service.address, service.port, service.last_port, service.protocol);
        row(format!("{}  {place}", service.name), &service.rate);
        for backend in &service.backends {
            row(
                format!("  {}", human::place(backend.address, backend.port)),
                &backend.rate,
            );
        }
    }
    grid
}
