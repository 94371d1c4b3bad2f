//! A program that passes everything, on the devices that veth needs it on: packets that `XDP_TX` or a redirect
//! puts on a veth pair are lost unless the other end takes part in XDP.

use crate::datapath::object;
use anyhow::Context;
use aya::Ebpf;
use aya::maps::HashMap;
use aya::programs::{Xdp, XdpMode};
use nix::net::if_::if_nametoindex;

use super::netns::Netns;

/// The passing program on some devices of a namespace; off again when dropped.
#[derive(Debug)]
pub struct Pass {
    _ebpf: Ebpf,
}

impl Pass {
    /// # Errors
    /// Where the program cannot be loaded or attached in native mode.
    pub fn attach(netns: &Netns, devices: &[&str]) -> anyhow::Result<Self> {
        Self::attach_other(netns, devices, "floor")
    }

    /// Another program that measurements have, in its place.
    ///
    /// # Errors
    /// As [`Pass::attach`].
    pub fn attach_other(netns: &Netns, devices: &[&str], name: &'static str) -> anyhow::Result<Self> {
        Self::attach_in(netns, devices, name, &[])
    }

    /// One that sends frames from port to port of a switch: those to each Ethernet address out by its device.
    ///
    /// # Errors
    /// As [`Pass::attach`].
    pub fn switching(netns: &Netns, ports: &[(&str, [u8; 6])]) -> anyhow::Result<Self> {
        let devices: Vec<&str> = ports.iter().map(|(device, _)| *device).collect();
        Self::attach_in(netns, &devices, "switch", ports)
    }

    fn attach_in(
        netns: &Netns,
        devices: &[&str],
        name: &'static str,
        ports: &[(&str, [u8; 6])],
    ) -> anyhow::Result<Self> {
        netns.enter(|| {
            let mut ebpf = Ebpf::load(object::harness())?;
            let mut map: HashMap<_, [u8; 6], u32> = ebpf.map_mut("PORTS").context("PORTS")?.try_into()?;
            for (device, address) in ports {
                map.insert(address, if_nametoindex(*device)?, 0)?;
            }
            let program: &mut Xdp = ebpf.program_mut(name).context(name)?.try_into()?;
            program.load()?;
            for device in devices {
                program
                    .attach(device, XdpMode::Driver)
                    .with_context(|| format!("XDP on {device}"))?;
            }
            Ok(Self { _ebpf: ebpf })
        })
    }
}
