//! A program that passes everything, on the devices that veth needs it on: packets that `XDP_TX` or a redirect
//! puts on a veth pair are lost unless the other end takes part in XDP.

use crate::datapath::object;
use anyhow::Context;
use aya::Ebpf;
use aya::programs::{Xdp, XdpMode};

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
        netns.enter(|| {
            let mut ebpf = Ebpf::load(object::harness())?;
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
