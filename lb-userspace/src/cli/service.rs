//! `xlb service`.

use std::net::IpAddr;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::grid::{Cell, Column, Grid, Tone};
use super::outcome::{Context, Outcome, Screen};
use super::source::{self, Pins};
use super::{block_on, human};
use crate::api::types::{ServiceStatus, Status};
use crate::model::{Forward, Protocol, Scheduler};

/// Show the services.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List the services, a line each.
    List(Pins),
}

/// The answer of `service list -o json`.
#[derive(Debug, Serialize)]
struct Answer {
    services: Vec<Summary>,
}

#[derive(Debug, Serialize)]
struct Summary {
    name: String,
    address: IpAddr,
    port: u16,
    last_port: Option<u16>,
    protocol: Protocol,
    forward: Forward,
    scheduler: Scheduler,
    tracking: String,
    table_size: u32,
    generation: u64,
    all_down: bool,
    backends_total: usize,
    backends_serving: usize,
    packets: u64,
    bytes: u64,
    new_flows: u64,
}

pub(super) fn run(arguments: &Arguments, context: &Context) -> anyhow::Result<Outcome> {
    let What::List(pins) = &arguments.what;
    let Status {
        agent,
        interfaces: _,
        services,
        migrations: _,
        flow_table: _,
        flow_cache: _,
        nat: _,
        memory: _,
    } = block_on(source::status(&context.client, &pins.pin_dir))?;
    let answer = Answer {
        services: services.into_iter().map(Summary::from).collect(),
    };
    context.show(&answer, |answer, screen| {
        let head = if agent.running {
            String::new()
        } else {
            source::frozen_line(&agent)
        };
        head + &render(answer, screen)
    })
}

impl From<ServiceStatus> for Summary {
    fn from(service: ServiceStatus) -> Self {
        let ServiceStatus {
            name,
            address,
            port,
            last_port,
            protocol,
            forward,
            scheduler,
            tracking,
            idle_timeout_ms: _,
            persistence: _,
            table_size,
            generation,
            all_down,
            pool: _,
            selection: _,
            backups_in_use: _,
            packets,
            bytes,
            new_flows,
            backends,
        } = service;
        Self {
            name,
            address,
            port,
            last_port,
            protocol,
            forward,
            scheduler,
            tracking,
            table_size,
            generation,
            all_down,
            backends_total: backends.len(),
            backends_serving: backends.iter().filter(|backend| backend.serving).count(),
            packets,
            bytes,
            new_flows,
        }
    }
}

fn render(answer: &Answer, screen: &Screen) -> String {
    if answer.services.is_empty() {
        return "no services\n".to_owned();
    }
    let mut grid = Grid::new(&[
        Column::left("SERVICE"),
        Column::left("ADDRESS"),
        Column::left("FORWARD"),
        Column::left("SCHEDULER").dispensable(3),
        Column::right("SERVING"),
        Column::right("SLOTS").dispensable(5),
        Column::right("NEW FLOWS").dispensable(1),
        Column::right("PACKETS").dispensable(2),
        Column::right("BYTES").dispensable(4),
    ]);
    for service in &answer.services {
        let tone = match service.backends_serving {
            0 => Tone::Bad,
            serving if serving < service.backends_total => Tone::Warning,
            _ => Tone::Plain,
        };
        grid.row(
            [
                (&service.name).into(),
                human::service_place(service.address, service.port, service.last_port, service.protocol)
                    .into(),
                service.forward.into(),
                service.scheduler.into(),
                Cell::toned(
                    &format!("{} of {}", service.backends_serving, service.backends_total),
                    tone,
                ),
                service.table_size.into(),
                human::flows(service.new_flows, service.protocol).into(),
                human::count(service.packets).into(),
                human::bytes(service.bytes).into(),
            ],
            vec![],
        );
    }
    grid.render(screen, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::{example_status, screen};

    #[test]
    fn a_service_is_a_line() {
        let answer = Answer {
            services: example_status().services.into_iter().map(Summary::from).collect(),
        };
        assert_eq!(
            render(&answer, &screen(None)),
            "\
SERVICE  ADDRESS                FORWARD   SCHEDULER  SERVING  SLOTS  NEW FLOWS  PACKETS    BYTES
web      192.0.2.10:80/tcp      dsr-ipip  maglev      1 of 3   4093     ~2,408   24,690  2.47 MB
dns      [2001:db8::10]:80/udp  dsr-ipip  maglev      1 of 2   4093          -   24,690  2.47 MB
"
        );
    }
}
