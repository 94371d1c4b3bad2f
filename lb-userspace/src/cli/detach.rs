//! `xlb detach`.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context as _, bail};
use clap::Args;

use super::outcome::{Context, Outcome};
use super::source::{Pins, Unreachable};
use super::{block_on, done};
use crate::api::types::Done;
use crate::api::{client, frozen};
use crate::datapath::pins::PinDir;
use crate::datapath::{self, losses, pins, sys};
use crate::net::announce;

/// Take the program off every interface, and forget states, tables and counters.
///
/// A running agent does it and ends. Where none runs, the pins are removed, and with the last of them the kernel lets go
/// of program and maps. Packets of the services then go to the kernel as all others do.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    pins: Pins,
}

pub(super) fn run(arguments: &Arguments, context: &Context) -> anyhow::Result<Outcome> {
    let answer = block_on(async {
        match context.client.detach().await {
            Err(client::Error::NotRunning { .. }) => without_agent(&arguments.pins.pin_dir, context),
            answer => Ok(answer?),
        }
    })?;
    done::show(&answer, context)
}

fn without_agent(path: &Path, context: &Context) -> anyhow::Result<Done> {
    let names = match names(path) {
        Ok(names) => names,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Done::default()),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    if !sys::is_bpffs(path).with_context(|| path.display().to_string())? {
        bail!(
            "{} is not on a BPF file system: nothing was removed",
            path.display()
        );
    }
    if let Some(foreign) = names.iter().find(|name| !is_ours(name)) {
        bail!(
            "{} holds {foreign}, which no agent pins: nothing was removed; name the folder of the agent's pins with --pin-dir",
            path.display()
        );
    }
    let pins = PinDir::create(path)?;
    let _lock = match pins.lock() {
        Err(datapath::Error::Locked { path }) => {
            let held = frozen::Error::Held { path };
            return Err(Unreachable::of(&context.client, held).into());
        }
        lock => lock?,
    };
    let interfaces = pins.links()?;
    leave_groups(&pins, &interfaces);
    pins.remove()?;
    let changes = match interfaces.is_empty() {
        true => format!("removed the pins in {}; nothing was attached", path.display()),
        false => format!("detached from {}", interfaces.join(", ")),
    };
    Ok(Done {
        changed: true,
        changes: vec![changes],
        ..Done::default()
    })
}

/// Undoes what `announce = "l2"` left on the interfaces: the multicast groups in which neighbour solicitations for the
/// service addresses come. Whether it was on is not in the pins; leaving a group that was never joined changes nothing.
fn leave_groups(pins: &PinDir, interfaces: &[String]) {
    let addresses = match frozen::addresses(pins) {
        Ok(addresses) => addresses,
        Err(error) => {
            log::warn!("multicast groups of service addresses may stay on the interfaces: {error}");
            return;
        }
    };
    for interface in interfaces {
        for address in &addresses {
            if let IpAddr::V6(address) = address
                && let Err(error) = announce::leave_solicited_node(interface, *address)
            {
                log::debug!("interface {interface}: leaving the multicast group of {address}: {error}");
            }
        }
    }
}

fn names(path: &Path) -> io::Result<Vec<String>> {
    fs::read_dir(path)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// Whether an agent pins something of this name. Removing a folder of others' pins would take their programs away.
fn is_ours(name: &str) -> bool {
    let prefixed = ["link_", "slab_", "program", "parts_", losses::PIN]
        .iter()
        .any(|prefix| name.starts_with(prefix));
    let mut known = pins::ALL.iter().chain([&losses::LOSSES]);
    prefixed || known.any(|pin| pin.pin == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::outcome::Format;
    use crate::cli::tests::screen;

    #[test]
    fn only_an_agents_pins_are_ours() {
        for name in [
            "agent",
            "services",
            "slab_0",
            "link_eth0",
            "program",
            "program_new",
            "parts_17",
            "trace_xdp_devmap_xmit",
            "losses",
        ] {
            assert!(is_ours(name), "{name}");
        }
        for name in ["", "cilium_lxc", "tc", "xlb"] {
            assert!(!is_ours(name), "{name}");
        }
    }

    #[test]
    fn a_folder_elsewhere_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("agent"), "precious").unwrap();
        let context = Context {
            client: client::Client::new("/s"),
            format: Format::Table,
            screen: screen(None),
        };
        let error = without_agent(folder.path(), &context).unwrap_err();
        assert!(error.to_string().contains("not on a BPF file system"), "{error}");
        assert!(folder.path().join("agent").exists());
    }
}
