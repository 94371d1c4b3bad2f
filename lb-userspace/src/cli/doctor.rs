//! `xlb doctor`.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Args;
use serde::Serialize;

use super::outcome::{Context, Outcome, Screen};
use super::{CONFIG, PIN_DIR, block_on, human};
use crate::config::Config;
use crate::datapath::attach;
use crate::datapath::pins::PinDir;
use crate::net::doctor::{self, BackendToCheck, Checkup, Finding, Fragments, Severity};

/// Look for what stands in the way of good service on this machine, and say how to mend it.
///
/// Kernel, BPF file system, driver and the XDP mode it will get, MTU, queues, offloads, bond or bridge membership, foreign
/// XDP programs, rp_filter; with a configuration also the next hop of each backend, whether it can be sent to, the MTU on
/// the way, and by which interface the answers of `nat` and `full-nat` come. Changes nothing, needs no agent. Exit status 1 where something does not work.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  xlb doctor                        the interfaces and backends of /etc/xlb/xlb.toml
  xlb doctor --interface eth0       before there is a configuration")]
pub(super) struct Arguments {
    /// Look at this interface instead of those of the configuration.
    #[arg(long, short, value_name = "IF")]
    interface: Option<String>,
    /// Configuration file with the backends to look at [default: /etc/xlb/xlb.toml, where there is one].
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// The answer of `doctor -o json`.
#[derive(Debug, Serialize)]
struct Answer {
    /// Whether nothing fails.
    ok: bool,
    findings: Vec<Placed>,
}

#[derive(Debug, Serialize)]
struct Placed {
    /// The interface that was being looked at.
    interface: String,
    #[serde(flatten)]
    finding: Finding,
}

pub(super) fn run(arguments: &Arguments, context: &Context) -> anyhow::Result<Outcome> {
    let config = configuration(arguments)?;
    let interfaces = match (&arguments.interface, &config) {
        (Some(interface), _) => vec![interface.clone()],
        (None, Some(config)) => config.agent.interfaces.clone(),
        (None, None) => {
            bail!("there is no {CONFIG}: name an interface with --interface, or a file with --config")
        }
    };
    let pin_dir = config
        .as_ref()
        .map_or(Path::new(PIN_DIR), |config| &config.agent.pin_dir);
    let backends = config.as_ref().map(backends).unwrap_or_default();
    let attached = config
        .as_ref()
        .map_or_else(|| interfaces.clone(), |config| config.agent.interfaces.clone());
    let addresses = config.as_ref().map(|config| {
        let of_v4 = config.services.iter().map(|service| service.key.address);
        let of_v4: BTreeSet<IpAddr> = of_v4.filter(IpAddr::is_ipv4).collect();
        of_v4.into_iter().collect::<Vec<_>>()
    });
    let addresses = addresses.unwrap_or_default();
    let fragments = config.as_ref().and_then(|config| {
        Some(Fragments {
            by: config.agent.fragment_by.as_deref()?,
            interfaces: &config.agent.interfaces,
            addresses: &addresses,
        })
    });
    let own_programs = own_programs(pin_dir);
    let mut findings: Vec<Placed> = Vec::new();
    for interface in interfaces {
        let found = block_on(async {
            let checkup = Checkup {
                interface: &interface,
                backends: &backends,
                interfaces: &attached,
                pin_dir,
                fragments,
                own_programs: own_programs.as_deref(),
            };
            Ok(doctor::findings(&checkup).await?)
        })?;
        for finding in found {
            // What is true of the machine is found with every interface.
            if !findings.iter().any(|earlier| earlier.finding == finding) {
                let interface = interface.clone();
                findings.push(Placed { interface, finding });
            }
        }
    }
    let ok = !findings
        .iter()
        .any(|placed| placed.finding.severity == Severity::Fail);
    let outcome = context.show(&Answer { ok, findings }, render)?;
    Ok(outcome.with_code(u8::from(!ok)))
}

/// The configuration that was named, or that of the machine where there is one.
fn configuration(arguments: &Arguments) -> anyhow::Result<Option<Config>> {
    match &arguments.config {
        Some(path) => Ok(Some(Config::load(path)?)),
        None if !Path::new(CONFIG).exists() => Ok(None),
        None => match (Config::load(Path::new(CONFIG)), &arguments.interface) {
            (Ok(config), _) => Ok(Some(config)),
            (Err(error), None) => Err(error.into()),
            (Err(_), Some(_)) => {
                log::warn!("{CONFIG} has faults (see: xlb config check): its backends are not looked at");
                Ok(None)
            }
        },
    }
}

fn backends(config: &Config) -> Vec<BackendToCheck> {
    let of = |service: &crate::config::Service| {
        let (name, forward) = (service.name.clone(), service.forward);
        let backends: Vec<_> = service.backends.iter().map(|backend| backend.address).collect();
        backends.into_iter().map(move |address| BackendToCheck {
            service: name.clone(),
            address,
            forward,
        })
    };
    config.services.iter().flat_map(of).collect()
}

/// The ids of the programs that an agent pinned; `None` without the permission to see them.
fn own_programs(pin_dir: &Path) -> Option<Vec<u32>> {
    if fs::read_dir(pin_dir).is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied) {
        return None;
    }
    let Ok(pins) = PinDir::open(pin_dir) else {
        return Some(Vec::new());
    };
    let links = pins.links().unwrap_or_default();
    let programs = links
        .iter()
        .filter_map(|interface| attach::own_link(&pins, interface).ok()?)
        .map(|link| link.program_id)
        .collect();
    Some(programs)
}

/// Where there is no terminal, lines are as long as what they say.
const ENDLESS: usize = usize::MAX;

fn render(answer: &Answer, screen: &Screen) -> String {
    let topic_width = answer
        .findings
        .iter()
        .map(|placed| placed.finding.topic.len())
        .max();
    let topic_width = topic_width.unwrap_or_default();
    let indent = "WARN  ".len() + topic_width + 2;
    let width = screen
        .width
        .map_or(ENDLESS, |width| usize::from(width).saturating_sub(indent).max(30));
    let mut text = String::new();
    let mut interface = None;
    for placed in &answer.findings {
        if interface != Some(&placed.interface) {
            interface = Some(&placed.interface);
            text += &format!("{}\n", placed.interface);
        }
        let Finding {
            severity,
            topic,
            what,
            fix,
        } = &placed.finding;
        let (word, colour) = match severity {
            Severity::Ok => ("OK  ", "32"),
            Severity::Warn => ("WARN", "33"),
            Severity::Fail => ("FAIL", "31"),
        };
        let word = match screen.colour {
            true => format!("\x1b[{colour}m{word}\x1b[0m"),
            false => word.to_owned(),
        };
        let fix = fix
            .iter()
            .flat_map(|fix| human::wrap(&format!("fix: {fix}"), width));
        for (place, line) in human::wrap(what, width).into_iter().chain(fix).enumerate() {
            let line = human::printable(&line);
            text += &match place {
                0 => format!("{word}  {topic:topic_width$}  {line}\n"),
                _ => format!("{:indent$}{line}\n", ""),
            };
        }
    }
    let count = |severity| {
        answer
            .findings
            .iter()
            .filter(|placed| placed.finding.severity == severity)
            .count()
    };
    let summary = match (count(Severity::Fail), count(Severity::Warn)) {
        (0, 0) => "nothing to mend".to_owned(),
        (0, warnings) => human::counted(warnings, "warning"),
        (failures, warnings) => {
            format!(
                "{}, {}",
                human::counted(failures, "failure"),
                human::counted(warnings, "warning")
            )
        }
    };
    text + &summary + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::screen;

    fn answer() -> Answer {
        let placed = |interface: &str, severity, topic, what: &str, fix: Option<&str>| Placed {
            interface: interface.into(),
            finding: Finding {
                severity,
                topic,
                what: what.into(),
                fix: fix.map(str::to_owned),
            },
        };
        Answer {
            ok: false,
            findings: vec![
                placed("eth0", Severity::Ok, "kernel", "6.1.0", None),
                placed(
                    "eth0",
                    Severity::Warn,
                    "XDP mode",
                    "generic: the driver does not run XDP programs",
                    Some("use another NIC"),
                ),
                placed(
                    "eth1",
                    Severity::Fail,
                    "link",
                    "eth1 is down",
                    Some("ip link set eth1 up"),
                ),
            ],
        }
    }

    #[test]
    fn every_fault_stands_with_its_fix() {
        assert_eq!(
            render(&answer(), &screen(None)),
            "\
eth0
OK    kernel    6.1.0
WARN  XDP mode  generic: the driver does not run XDP programs
                fix: use another NIC
eth1
FAIL  link      eth1 is down
                fix: ip link set eth1 up
1 failure, 1 warning
"
        );
    }

    #[test]
    fn long_lines_are_broken_on_a_terminal() {
        let text = render(&answer(), &screen(Some(50)));
        assert!(
            text.contains("generic: the driver does not run\n                XDP programs\n"),
            "{text}"
        );
        assert!(text.lines().all(|line| line.len() <= 50), "{text}");
    }

    #[test]
    fn json_has_a_flat_list() {
        let json = serde_json::to_value(answer()).unwrap();
        assert_eq!(json["ok"], false);
        assert_eq!(json["findings"][2]["severity"], "fail");
        assert_eq!(json["findings"][2]["interface"], "eth1");
        assert_eq!(json["findings"][0]["fix"], serde_json::Value::Null);
    }
}
