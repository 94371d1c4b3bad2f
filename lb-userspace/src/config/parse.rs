//! From text to [`Config`], with every fault on the way.
//!
//! Reading goes on after a fault: each value is read into a `Result` first, and only when all of a
//! table are read does `?` give up on it.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use super::fault::{Faults, LoadError, Report, Reported};
use super::keys;
use super::machine::Machine;
use super::service::Services;
use super::snat;
use super::types::{Agent, Config, EntryRates};
use super::value;
use super::walk::Walk;

/// The size of the largest configuration that is read: room for every service and backend there can
/// be, each with a check of its own.
pub const MAX_CONFIG_BYTES: usize = 16 << 20;

/// Up to this size all syntax errors are told; above only the first, for each costs memory.
const MAX_RECOVERY_BYTES: usize = 1 << 20;

impl Config {
    /// Reads a configuration without asking what machine it is for.
    ///
    /// # Errors
    ///
    /// Every fault there is. After a syntax error only what stands before it is judged.
    pub fn parse(text: &str) -> Result<Self, Faults> {
        parse(text, None)
    }

    /// Like [`Config::parse`]; interfaces and addresses that do not fit `machine` are faults too.
    ///
    /// # Errors
    ///
    /// As [`Config::parse`].
    pub fn parse_for(text: &str, machine: &Machine) -> Result<Self, Faults> {
        parse(text, Some(machine))
    }

    /// Like [`Config::parse`], from a file.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, and as [`Config::parse`].
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        load(path, None)
    }

    /// Like [`Config::parse_for`], from a file.
    ///
    /// # Errors
    ///
    /// As [`Config::load`].
    pub fn load_for(path: &Path, machine: &Machine) -> Result<Self, LoadError> {
        load(path, Some(machine))
    }
}

fn load(path: &Path, machine: Option<&Machine>) -> Result<Config, LoadError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_CONFIG_BYTES as u64 + 1).read_to_end(&mut bytes))
        .map_err(|source| LoadError::Read {
            path: path.to_owned(),
            source,
        })?;
    parse_bytes(&bytes, machine).map_err(|faults| LoadError::Invalid {
        path: path.to_owned(),
        faults,
    })
}

fn parse_bytes(bytes: &[u8], machine: Option<&Machine>) -> Result<Config, Faults> {
    let error = match std::str::from_utf8(bytes) {
        Ok(text) => return parse(text, machine),
        Err(error) => error,
    };
    // The limit may have cut a character in two.
    let before = std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default();
    let report = Report::new(before);
    let reported = if bytes.len() > MAX_CONFIG_BYTES {
        too_large(&report)
    } else {
        report.fault(before.len(), "not UTF-8", "a text file in UTF-8")
    };
    report.finish(Err(reported))
}

fn too_large(report: &Report<'_>) -> Reported {
    report.fault(
        0,
        "the configuration is too large",
        format!("at most {MAX_CONFIG_BYTES} bytes"),
    )
}

fn parse(text: &str, machine: Option<&Machine>) -> Result<Config, Faults> {
    if text.len() > MAX_CONFIG_BYTES {
        let report = Report::new("");
        let reported = too_large(&report);
        return report.finish(Err(reported));
    }
    let report = Report::new(text);
    let (table, errors) = if text.len() <= MAX_RECOVERY_BYTES {
        DeTable::parse_recoverable(text)
    } else {
        match DeTable::parse(text) {
            Ok(table) => (table, Vec::new()),
            Err(error) => (toml::Spanned::new(0..0, DeTable::new()), vec![error]),
        }
    };
    let config = root(
        &Walk::new(&keys::ROOT, table.get_ref(), 0, &report),
        machine,
        &report,
    );
    report_syntax(&errors, &report);
    report.finish(config)
}

/// Reports syntax errors, one a line: the others are mostly its consequences.
fn report_syntax(errors: &[toml::de::Error], report: &Report<'_>) {
    // A key given twice is found in text that is read well otherwise.
    const DUPLICATE_KEY: &str = "duplicate key";
    let offset = |error: &toml::de::Error| error.span().map_or(0, |span| span.start);
    let first = errors
        .iter()
        .filter(|error| error.message() != DUPLICATE_KEY)
        .map(offset)
        .min();
    if let Some(first) = first {
        report.distrust_from(first);
    }
    let mut by_line = HashMap::new();
    for error in errors {
        let told = by_line.entry(report.line(offset(error))).or_insert(error);
        if offset(error) < offset(told) {
            *told = error;
        }
    }
    for error in by_line.into_values() {
        let (message, expected) = error
            .message()
            .split_once(", expected ")
            .unwrap_or((error.message(), ""));
        let expected = match (message, expected) {
            (DUPLICATE_KEY, _) => "each key and each table once",
            (_, "" | "nothing") => "TOML (https://toml.io/en/v1.1.0)",
            (_, expected) => expected,
        };
        report.fault(offset(error), format!("TOML syntax: {message}"), expected);
    }
}

fn root(walk: &Walk<'_, '_>, machine: Option<&Machine>, report: &Report<'_>) -> Result<Config, Reported> {
    let schema = walk.need::<u32>(&keys::SCHEMA, value::integer);
    let agent_walk = walk.need_table(&keys::AGENT_TABLE);
    let agent = agent_walk
        .as_ref()
        .map_err(|&reported| reported)
        .and_then(|walk| agent(walk, machine, report));
    let mut services = Services::new(machine, report);
    let list = services.read(walk);
    if let Ok(walk) = &agent_walk {
        services.refuse_too_many(walk);
    }
    if let Ok(agent) = &agent {
        services.judge_snat(&agent.snat);
    }
    schema?;
    Ok(Config {
        agent: agent?,
        services: list?,
    })
}

fn agent(walk: &Walk<'_, '_>, machine: Option<&Machine>, report: &Report<'_>) -> Result<Agent, Reported> {
    let interfaces = interfaces(walk, machine, report);
    let xdp_mode = walk.or_default(&keys::XDP_MODE, value::choice);
    let announce = walk.or_default(&keys::ANNOUNCE, value::choice);
    let on_stop = walk.or_default(&keys::ON_STOP, value::choice);
    let witness = walk.or_default(&keys::WITNESS, value::witness);
    let icmp_echo = walk.or_default(&keys::ICMP_ECHO, value::boolean);
    let vlans = walk.or_default(&keys::VLANS, value::boolean);
    let fragment_by = walk.maybe(&keys::FRAGMENT_BY, value::interface);
    let api_socket = walk.or_default(&keys::API_SOCKET, value::path);
    let state_dir = walk.or_default(&keys::STATE_DIR, value::path);
    let pin_dir = walk.or_default(&keys::PIN_DIR, value::path);
    let hash_key = walk.maybe(&keys::HASH_KEY, value::hash_key);
    let max_services = walk.or_default(&keys::MAX_SERVICES, value::integer);
    let max_backends = walk.or_default(&keys::MAX_BACKENDS, value::integer);
    let metrics = walk.maybe(&keys::METRICS, value::listen);
    let notify = notify(walk, report);
    let flow_table_size = walk.or_default(&keys::FLOW_TABLE_SIZE, value::integer);
    let flow_cache_size = walk.or_default(&keys::FLOW_CACHE_SIZE, value::integer);
    let client_table_size = walk.or_default(&keys::CLIENT_TABLE_SIZE, value::integer);
    let snat = snat::read(walk, machine, report);
    let nat_table_size = walk.or_default(&keys::NAT_TABLE_SIZE, value::integer);
    let by_syn = walk.or_default(&keys::ENTRIES_BY_SYN, value::integer);
    let by_data = walk.or_default(&keys::ENTRIES_BY_DATA, value::integer);
    let by_udp = walk.or_default(&keys::ENTRIES_BY_UDP, value::integer);
    Ok(Agent {
        interfaces: interfaces?,
        xdp_mode: xdp_mode?,
        announce: announce?,
        on_stop: on_stop?,
        witness: witness?,
        icmp_echo: icmp_echo?,
        vlans: vlans?,
        fragment_by: fragment_by?.map(|at| at.value),
        api_socket: api_socket?,
        state_dir: state_dir?,
        pin_dir: pin_dir?,
        hash_key: hash_key?.map(|at| at.value),
        max_services: max_services?,
        max_backends: max_backends?,
        metrics: metrics?.map(|at| at.value),
        notify: notify?,
        flow_table_size: flow_table_size?,
        flow_cache_size: flow_cache_size?,
        client_table_size: client_table_size?,
        entry_rates: EntryRates {
            by_syn: by_syn?,
            by_data: by_data?,
            by_udp: by_udp?,
        },
        snat: snat?,
        nat_table_size: nat_table_size?,
    })
}

fn notify(walk: &Walk<'_, '_>, report: &Report<'_>) -> Result<Vec<PathBuf>, Reported> {
    let items = walk.list(&keys::NOTIFY, value::path)?.unwrap_or_default();
    let mut programs = Vec::new();
    for at in items {
        if programs.contains(&at.value) {
            let message = format!("the program \"{}\" is named twice", at.value.display());
            report.fault(at.offset, message, "each program once");
        }
        programs.push(at.value);
    }
    Ok(programs)
}

fn interfaces(
    walk: &Walk<'_, '_>,
    machine: Option<&Machine>,
    report: &Report<'_>,
) -> Result<Vec<String>, Reported> {
    let items = walk
        .list(&keys::INTERFACES, value::interface)?
        .ok_or_else(|| walk.missing(&keys::INTERFACES))?;
    let mut seen = HashSet::new();
    for at in &items {
        if !seen.insert(&at.value) {
            report.fault(
                at.offset,
                format!("the interface \"{}\" is named twice", at.value),
                "each interface once",
            );
        } else if let Some(machine) = machine
            && !machine.interfaces.contains(&at.value)
        {
            let known: Vec<_> = machine.interfaces.iter().map(String::as_str).collect();
            report.fault(
                at.offset,
                format!("the interface \"{}\" does not exist", at.value),
                format!("one of {}", known.join(", ")),
            );
        }
    }
    Ok(items.into_iter().map(|at| at.value).collect())
}
