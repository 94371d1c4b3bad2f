//! `xlb decap`, on backends.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand, ValueEnum};
use ipnet::IpNet;
use serde::Serialize;

use super::grid::{Column, Grid};
use super::outcome::{Context, Outcome, Screen};
use super::{args, block_on, done, human};
use lb_common::mss;

use crate::api::types::Done;
use crate::config::XdpMode;
use crate::datapath::attach::Target;
use crate::datapath::mss::Limit;
use crate::datapath::{self, decap};
use crate::model::Forward;
use crate::net::netlink::Netlink;
use crate::net::{address, link};

/// On a backend of forward mode dsr-ipip or dsr-gue: take the load balancer's outer header off.
///
/// For backends without a tunnel device. Only packets from the prefixes named are touched; all others are counted and
/// left alone. It stays until `xlb decap detach` or the next boot, whatever becomes of this process. Needs root.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  xlb decap attach --interface eth0 --from 10.0.0.2 2001:db8::/64
  xlb decap attach --interface eth0 --from 10.0.0.2 --mss auto
  xlb decap status
  xlb decap detach --interface eth0")]
pub(super) struct Arguments {
    #[command(subcommand)]
    what: What,
    /// Folder of the pins, on a BPF file system; network namespaces that share one need a folder each.
    #[arg(long, global = true, value_name = "DIR", default_value = decap::ROOT)]
    pin_dir: PathBuf,
}

#[derive(Debug, Subcommand)]
enum What {
    Attach(Attach),
    /// Take the program off an interface, with its counts.
    Detach(Interface),
    /// Show where the program is, whose packets it unwraps, and what became of packets.
    Status(MaybeInterface),
}

/// Put the program on an interface; where it is already, change whose packets it unwraps.
#[derive(Debug, Args)]
struct Attach {
    #[command(flatten)]
    interface: Interface,
    /// Addresses or prefixes of the load balancers, as outer headers have them.
    #[arg(long, value_name = "PREFIX", required = true, num_args = 1.., value_parser = args::prefix)]
    from: Vec<IpNet>,
    /// Lower the MSS that leaves in SYNs and SYN-ACKs of service addresses to so many bytes, so that segments of clients
    /// fit with the outer header; auto: by the MTU of the interface. Left out: leave it alone.
    #[arg(long, value_name = "N|auto", value_parser = mss)]
    mss: Option<Mss>,
    /// With --mss, the service addresses [default: those on lo].
    #[arg(long, value_name = "PREFIX", requires = "mss", num_args = 1.., value_parser = args::prefix)]
    address: Vec<IpNet>,
    /// How XDP is attached: native where the driver can, else generic.
    #[arg(long, value_enum, value_name = "MODE", default_value_t)]
    mode: Mode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mss {
    Auto,
    Bytes(u16),
}

/// What Linux takes at least for one that it is told (`TCP_MIN_MSS`).
const LEAST_MSS: u16 = 88;

fn mss(text: &str) -> Result<Mss, String> {
    if text == "auto" {
        return Ok(Mss::Auto);
    }
    let bytes = text.parse().ok().filter(|bytes| *bytes >= LEAST_MSS);
    bytes
        .map(Mss::Bytes)
        .ok_or_else(|| format!("expected auto, or a number of bytes from {LEAST_MSS} to 65535"))
}

/// What of a segment on an interface with this MTU is left for data, when the load balancers that have these addresses put
/// the longest of their outer headers before it.
fn most_of(mtu: u32, from: &[IpNet], address: IpAddr) -> u16 {
    let outer = from.iter().map(|net| Forward::DsrGue.overhead(net.addr())).max();
    let headers = if address.is_ipv4() {
        mss::HEADERS_V4
    } else {
        mss::HEADERS_V6
    };
    let most = mtu.saturating_sub(outer.unwrap_or(0) + headers);
    u16::try_from(most).unwrap_or(u16::MAX).max(LEAST_MSS)
}

#[derive(Debug, Args)]
struct Interface {
    /// The interface that packets of the load balancers come in by.
    #[arg(long, short, value_name = "IF")]
    interface: String,
}

#[derive(Debug, Args)]
struct MaybeInterface {
    /// Only this interface.
    #[arg(long, short, value_name = "IF")]
    interface: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Mode {
    #[default]
    Auto,
    Native,
    Generic,
}

impl From<Mode> for XdpMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Auto => Self::Auto,
            Mode::Native => Self::Native,
            Mode::Generic => Self::Generic,
        }
    }
}

pub(super) fn run(arguments: &Arguments, context: &Context) -> anyhow::Result<Outcome> {
    let Arguments { what, pin_dir } = arguments;
    match what {
        What::Attach(arguments) => done::show(&attach(pin_dir, arguments)?, context),
        What::Detach(Interface { interface }) => done::show(&detach(pin_dir, interface)?, context),
        What::Status(MaybeInterface { interface }) => {
            context.show(&status(pin_dir, interface.as_deref())?, render)
        }
    }
}

fn attach(pin_dir: &Path, arguments: &Attach) -> anyhow::Result<Done> {
    let Attach {
        interface: Interface { interface },
        from,
        mss,
        address,
        mode,
    } = arguments;
    let link = block_on(async { Ok(link::link_by_name(&Netlink::open()?, interface).await?) })?;
    let Some(link) = link else {
        bail!(datapath::Error::NoInterface(interface.clone()));
    };
    let limits = match mss {
        None => Vec::new(),
        Some(mss) => {
            let addresses = match &address[..] {
                [] => service_addresses()?,
                named => named.to_vec(),
            };
            let limit = |addresses: IpNet| Limit {
                addresses,
                most: match mss {
                    Mss::Bytes(bytes) => *bytes,
                    Mss::Auto => most_of(link.mtu, from, addresses.addr()),
                },
            };
            addresses.into_iter().map(limit).collect()
        }
    };
    let target = Target {
        interface,
        ifindex: link.ifindex,
        present: link
            .xdp
            .map(|xdp| (xdp.program_id, xdp.mode == link::XdpMode::Native)),
    };
    let done = decap::attach(pin_dir, target, from, &limits, (*mode).into())?;
    let mut changes = vec![format!(
        "{interface}: outer headers of packets from {} are taken off ({} mode, program {})",
        list(from),
        if done.native { "native" } else { "generic" },
        done.program_id
    )];
    changes.extend(limits.iter().map(|Limit { addresses, most }| {
        format!("{interface}: the MSS that {addresses} tells clients is {most} bytes at most")
    }));
    Ok(Done {
        changed: true,
        changes,
        ..Done::default()
    })
}

/// The addresses on `lo`, but for those that every `lo` has.
fn service_addresses() -> anyhow::Result<Vec<IpNet>> {
    let on_lo = block_on(async {
        let netlink = Netlink::open()?;
        let lo = link::link_by_name(&netlink, "lo")
            .await?
            .context("there is no lo")?;
        let all = address::local_addresses(&netlink).await?;
        let on_lo = all.into_iter().filter(|(ifindex, _)| *ifindex == lo.ifindex);
        Ok(on_lo.map(|(_, net)| IpNet::from(net.addr())).collect::<Vec<_>>())
    })?;
    let services: Vec<_> = on_lo
        .into_iter()
        .filter(|net| !net.addr().is_loopback())
        .collect();
    if services.is_empty() {
        bail!("there is no service address on lo: name them with --address");
    }
    Ok(services)
}

fn detach(pin_dir: &Path, interface: &str) -> anyhow::Result<Done> {
    match decap::detach(pin_dir, interface) {
        Err(datapath::Error::NothingPinned { .. }) => Ok(Done::default()),
        Err(error) => Err(error.into()),
        Ok(()) => Ok(Done {
            changed: true,
            changes: vec![format!("{interface}: detached")],
            ..Done::default()
        }),
    }
}

/// The answer of `decap status -o json`.
#[derive(Debug, Serialize)]
struct Answer {
    interfaces: Vec<Place>,
}

#[derive(Debug, Serialize)]
struct Place {
    interface: String,
    attached: bool,
    program_id: Option<u32>,
    prefixes: Vec<IpNet>,
    /// The greatest MSS that service addresses tell clients; empty: as it comes.
    mss: BTreeMap<IpNet, u16>,
    /// Packets by what became of them.
    counts: BTreeMap<&'static str, u64>,
}

impl From<decap::Status> for Place {
    fn from(status: decap::Status) -> Self {
        let decap::Status {
            interface,
            attached,
            prefixes,
            counts,
            mss,
        } = status;
        let (limits, fates) = mss.map(|mss| (mss.limits, mss.counts)).unwrap_or_default();
        let fates = fates.into_iter().map(|(fate, packets)| (fate.name(), packets));
        Self {
            interface,
            attached: attached.is_some(),
            program_id: attached.map(|attached| attached.program_id),
            prefixes,
            mss: limits
                .into_iter()
                .map(|Limit { addresses, most }| (addresses, most))
                .collect(),
            counts: counts
                .into_iter()
                .map(|(outcome, packets)| (outcome.name(), packets))
                .chain(fates)
                .collect(),
        }
    }
}

fn status(pin_dir: &Path, interface: Option<&str>) -> anyhow::Result<Answer> {
    let names = match interface {
        Some(name) => vec![name.to_owned()],
        None => decap::interfaces(pin_dir)?,
    };
    let mut interfaces = Vec::new();
    for name in names {
        let status = match decap::status(pin_dir, &name) {
            Err(datapath::Error::NothingPinned { .. }) => {
                bail!(
                    "decap is not attached to {name}; attach it with: xlb decap attach --interface {name} --from PREFIX"
                )
            }
            status => status.with_context(|| format!("interface {name}"))?,
        };
        interfaces.push(status.into());
    }
    Ok(Answer { interfaces })
}

fn render(answer: &Answer, screen: &Screen) -> String {
    let mut parts = Vec::new();
    for place in &answer.interfaces {
        let state = match place.program_id {
            Some(id) => format!("attached (program {id})"),
            None => "DETACHED: the interface is gone or the link was removed; attach again".to_owned(),
        };
        let mut grid = Grid::new(&[Column::left("PACKETS THAT WERE"), Column::right("COUNT")]);
        for (outcome, packets) in &place.counts {
            grid.row(vec![outcome.into(), human::count(*packets).into()], vec![]);
        }
        let limits: String = place
            .mss
            .iter()
            .map(|(addresses, most)| format!("  MSS of {addresses} at most {most}\n"))
            .collect();
        parts.push(format!(
            "{}  {state}\n  from {}\n{limits}{}",
            place.interface,
            list(&place.prefixes),
            grid.render(screen, "  ")
        ));
    }
    match parts.is_empty() {
        true => "decap is attached to no interface\n".to_owned(),
        false => parts.join("\n"),
    }
}

fn list(prefixes: &[IpNet]) -> String {
    let texts: Vec<_> = prefixes.iter().map(ToString::to_string).collect();
    texts.join(", ")
}

#[cfg(test)]
mod tests {
    use lb_common::decap::Outcome as Fate;

    use super::*;
    use crate::cli::tests::screen;

    fn place(attached: bool) -> Place {
        decap::Status {
            interface: "eth0".into(),
            attached: attached.then_some(decap::Attached {
                ifindex: 2,
                program_id: 42,
            }),
            prefixes: vec!["10.0.0.2/32".parse().unwrap()],
            counts: vec![(Fate::Decapsulated, 1234), (Fate::NotFromUs, 1)],
            mss: attached.then(|| datapath::mss::Status {
                limits: vec![Limit {
                    addresses: "192.0.2.10/32".parse().unwrap(),
                    most: 1432,
                }],
                counts: vec![(mss::Fate::Lowered, 7)],
            }),
        }
        .into()
    }

    #[test]
    fn an_interface_has_its_prefixes_and_counts() {
        let answer = Answer {
            interfaces: vec![place(true)],
        };
        assert_eq!(
            render(&answer, &screen(None)),
            "\
eth0  attached (program 42)
  from 10.0.0.2/32
  MSS of 192.0.2.10/32 at most 1432
  PACKETS THAT WERE  COUNT
  decapsulated       1,234
  mss_lowered            7
  not_from_us            1
"
        );
        let json = serde_json::to_value(&answer).unwrap();
        assert_eq!(json["interfaces"][0]["counts"]["decapsulated"], 1234);
        assert_eq!(json["interfaces"][0]["prefixes"][0], "10.0.0.2/32");
    }

    #[test]
    fn an_mss_leaves_room_for_the_outer_header() {
        let v4 = ["10.0.0.2/32".parse().unwrap()];
        let both = ["10.0.0.2/32".parse().unwrap(), "2001:db8::/64".parse().unwrap()];
        let (of_v4, of_v6) = ("192.0.2.10".parse().unwrap(), "2001:db8::10".parse().unwrap());
        // 8 bytes of UDP and 20 or 40 of IP.
        assert_eq!(most_of(1500, &v4, of_v4), 1500 - 28 - 40);
        assert_eq!(most_of(1500, &both, of_v4), 1500 - 48 - 40);
        assert_eq!(most_of(1500, &both, of_v6), 1500 - 48 - 60);
        assert_eq!(most_of(65_535, &v4, of_v4), 65_535 - 68);
        assert_eq!(most_of(68, &both, of_v6), LEAST_MSS);
        assert_eq!(mss("auto"), Ok(Mss::Auto));
        assert_eq!(mss("1400"), Ok(Mss::Bytes(1400)));
        for wrong in ["", "0", "87", "65536", "Auto", "-1"] {
            assert!(mss(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_link_that_is_gone_is_told() {
        let answer = Answer {
            interfaces: vec![place(false)],
        };
        assert!(render(&answer, &screen(None)).starts_with("eth0  DETACHED: "));
        let nowhere = Answer { interfaces: vec![] };
        assert_eq!(
            render(&nowhere, &screen(None)),
            "decap is attached to no interface\n"
        );
    }
}
