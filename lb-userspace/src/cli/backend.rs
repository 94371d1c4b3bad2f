//! `xlb backend`.

mod drain;

use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::args::{self, Place};
use super::outcome::{Context, Outcome, Screen};
use super::source::{self, Pins};
use super::status::{backend_grid, backend_row, serving};
use super::{block_on, done, human};
use crate::api::types::{BackendOrder, BackendStatus, Order, ServiceStatus, Status, WeightOrder};

/// Show the backends, take them out and put them back, change their weights.
///
/// Orders hold over reloads and restarts of the agent. One that would leave a service without a serving backend is
/// refused unless --force is given.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  xlb backend list web
  xlb backend drain web 10.0.1.11         no new flows; checks go on
  xlb backend drain --wait web 10.0.1.11  and wait until its old flows are known
  xlb backend maint --host 2001:db8::11   no traffic, in every service that has it
  xlb backend ready web [2001:db8::11]:80
  xlb backend set-weight web 10.0.1.11 50%
  xlb backend set-weight --host 10.0.1.11 default")]
pub(super) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    List(List),
    /// Give a backend no new flows (DRAIN); its checks go on.
    #[command(
        override_usage = "xlb backend drain [--wait] SERVICE ADDRESS[:PORT]\n       xlb backend drain [--wait] --host ADDRESS"
    )]
    Drain(Drain),
    /// Give a backend no traffic at all (MAINT); its checks stop.
    #[command(
        override_usage = "xlb backend maint SERVICE ADDRESS[:PORT]\n       xlb backend maint --host ADDRESS"
    )]
    Maint(Target),
    /// Let a backend take traffic again (READY), as its checks say.
    #[command(
        override_usage = "xlb backend ready SERVICE ADDRESS[:PORT]\n       xlb backend ready --host ADDRESS"
    )]
    Ready(Target),
    SetWeight(SetWeight),
}

/// List the backends with their states, of one service or of all.
#[derive(Debug, Args)]
struct List {
    /// Name of the service.
    service: Option<String>,
    #[command(flatten)]
    pins: Pins,
}

/// Which backend: of one service, or a host in all of them.
#[derive(Debug, Args)]
struct Target {
    /// Name of the service.
    #[arg(
        required_unless_present = "host",
        requires = "backend",
        conflicts_with = "host"
    )]
    service: Option<String>,
    /// Address of the backend, with its port where the service has the address more than once.
    #[arg(value_name = "ADDRESS[:PORT]")]
    backend: Option<Place>,
    /// In every service that has a backend with this address.
    #[arg(long, value_name = "ADDRESS")]
    host: Option<IpAddr>,
    /// Do it although a service is left without a serving backend.
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
struct Drain {
    #[command(flatten)]
    target: Target,
    /// Wait until every old flow has been seen or is gone, and say how many are left.
    #[arg(long)]
    wait: bool,
    /// Give up waiting after this time, with exit status 1.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, requires = "wait")]
    timeout: Option<Duration>,
}

/// Change the weight of a backend until further notice; `default` takes the file's again.
#[derive(Debug, Args)]
#[command(
    override_usage = "xlb backend set-weight SERVICE ADDRESS[:PORT] N|N%|default\n       xlb backend set-weight --host ADDRESS N|N%|default"
)]
struct SetWeight {
    /// Name of the service.
    #[arg(
        required_unless_present = "host",
        requires = "weight",
        conflicts_with = "host"
    )]
    service: Option<String>,
    /// Address of the backend, with its port where the service has the address more than once.
    #[arg(value_name = "ADDRESS[:PORT]")]
    backend: Option<Place>,
    /// 0 to 65535 (0: no new flows), a percentage of the weight in the file, or default.
    #[arg(value_name = "N|N%|default", value_parser = args::weight, allow_hyphen_values = true)]
    weight: Option<WeightOrder>,
    /// In every service that has a backend with this address.
    #[arg(long, num_args = 2, value_names = ["ADDRESS", "N|N%|default"], allow_hyphen_values = true)]
    host: Option<Vec<HostWord>>,
    /// Do it although a service is left without a serving backend.
    #[arg(long)]
    force: bool,
}

/// One of the two words behind `set-weight --host`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HostWord {
    Address(IpAddr),
    Weight(WeightOrder),
}

impl FromStr for HostWord {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address = text.parse().map(Self::Address);
        address.or_else(|_| args::weight(text).map(Self::Weight)).map_err(|_| {
            "expected an address, then 0 to 65535, a percentage of the weight in the file (50%), or default".into()
        })
    }
}

impl SetWeight {
    fn order(self) -> anyhow::Result<BackendOrder> {
        let Self {
            service,
            backend,
            weight,
            host,
            force,
        } = self;
        let (address, port, weight) = match (host.as_deref(), backend, weight) {
            (Some([HostWord::Address(address), HostWord::Weight(weight)]), ..) => (*address, None, *weight),
            (None, Some(place), Some(weight)) => (place.address, place.port, weight),
            _ => bail!("expected SERVICE ADDRESS[:PORT] and a weight, or --host ADDRESS and a weight"),
        };
        Ok(BackendOrder {
            service,
            address,
            port,
            order: Order::Weight(weight),
            force,
        })
    }
}

pub(super) fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Outcome> {
    let order = match arguments.what {
        What::List(list) => return self::list(&list, context),
        What::Drain(Drain {
            target,
            wait,
            timeout,
        }) => {
            let order = target.order(Order::Drain);
            if wait {
                return drain::run(&order, timeout, context);
            }
            order
        }
        What::Maint(target) => target.order(Order::Maint),
        What::Ready(target) => target.order(Order::Ready),
        What::SetWeight(order) => order.order()?,
    };
    let answer = block_on(async { Ok(context.client.order(&order).await?) })?;
    done::show_with_slots(&answer, context)
}

impl Target {
    fn order(self, order: Order) -> BackendOrder {
        let Self {
            service,
            backend,
            host,
            force,
        } = self;
        let (address, port) = match (backend, host) {
            (Some(place), _) => (place.address, place.port),
            (None, Some(host)) => (host, None),
            (None, None) => unreachable!("clap wants one of them"),
        };
        BackendOrder {
            service,
            address,
            port,
            order,
            force,
        }
    }
}

/// The answer of `backend list -o json`.
#[derive(Debug, Serialize)]
struct Answer {
    backends: Vec<Member>,
}

#[derive(Debug, Serialize)]
struct Member {
    service: String,
    #[serde(flatten)]
    backend: BackendStatus,
}

fn list(arguments: &List, context: &Context) -> anyhow::Result<Outcome> {
    let Status {
        agent,
        interfaces: _,
        mut services,
        migrations: _,
        flow_table: _,
        flow_cache: _,
        nat: _,
        memory: _,
    } = block_on(source::status(&context.client, &arguments.pins.pin_dir))?;
    if let Some(name) = &arguments.service {
        let known: Vec<_> = services.iter().map(|service| service.name.clone()).collect();
        services.retain(|service| service.name == *name);
        if services.is_empty() {
            bail!(
                "there is no service {name}; the services are: {}",
                known.join(", ")
            );
        }
    }
    let answer = Answer {
        backends: services
            .iter()
            .flat_map(|service| {
                service
                    .backends
                    .iter()
                    .map(|backend| (service.name.clone(), backend.clone()))
            })
            .map(|(service, backend)| Member { service, backend })
            .collect(),
    };
    context.show(&answer, |_, screen| {
        let head = if agent.running {
            String::new()
        } else {
            source::frozen_line(&agent)
        };
        head + &render(&services, screen)
    })
}

fn render(services: &[ServiceStatus], screen: &Screen) -> String {
    let mut parts = Vec::new();
    for service in services {
        let place = human::service_place(service.address, service.port, service.last_port, service.protocol);
        let mut grid = backend_grid();
        for backend in &service.backends {
            let (cells, notes) = backend_row(backend, service.protocol, screen);
            grid.row(cells, notes);
        }
        parts.push(format!(
            "{}  {place}  {}\n{}",
            service.name,
            serving(service),
            grid.render(screen, "  ")
        ));
    }
    match parts.is_empty() {
        true => "no services\n".to_owned(),
        false => parts.join("\n"),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::tests::{example_status, screen};

    #[derive(Debug, Parser)]
    struct Probe {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn order(line: &str) -> BackendOrder {
        let probe = Probe::try_parse_from(format!("xlb {line}").split_whitespace()).unwrap();
        match probe.arguments.what {
            What::Drain(drain) => drain.target.order(Order::Drain),
            What::Maint(target) => target.order(Order::Maint),
            What::Ready(target) => target.order(Order::Ready),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_order_is_about_a_service_or_a_host() {
        assert_eq!(
            order("drain web [2001:db8::1]:80 --force"),
            BackendOrder {
                service: Some("web".into()),
                address: "2001:db8::1".parse().unwrap(),
                port: Some(80),
                order: Order::Drain,
                force: true,
            }
        );
        assert_eq!(
            order("maint --host 2001:db8::1"),
            BackendOrder {
                service: None,
                address: "2001:db8::1".parse().unwrap(),
                port: None,
                order: Order::Maint,
                force: false,
            }
        );
    }

    #[test]
    fn backends_stand_under_their_service() {
        let text = render(&example_status().services, &screen(None));
        assert!(
            text.starts_with("web  192.0.2.10:80/tcp  1 of 3 backends serve\n  BACKEND "),
            "{text}"
        );
        assert!(
            text.contains("\n\ndns  [2001:db8::10]:80/udp  1 of 2 backends serve\n"),
            "{text}"
        );
        assert_eq!(render(&[], &screen(None)), "no services\n");
    }
}
