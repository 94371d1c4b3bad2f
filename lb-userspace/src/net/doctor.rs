//! What stands in the way of good service on this machine, and what to do about it (`xlb doctor`).
//!
//! [`findings`] collects facts and hands them to pure functions, a file a subject, that judge them.
//! Nothing is configured; backends are asked for their MAC addresses, as any packet to them would do.

mod backends;
mod fragments;
mod interface;
mod system;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use serde::Serialize;

use super::ethtool::{self, Channels, Features};
use super::link::{self, Link};
use super::netlink::{Netlink, NetlinkError};
use super::nexthop::NextHops;
use super::pairs;
use super::resolver;
use super::sysctl;
use super::xdp_features::{self, XdpFeatures};
use crate::model::Forward;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Ok,
    /// It works, but not as well as it could, or not for all traffic.
    Warn,
    /// It does not work.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub severity: Severity,
    /// What was looked at, in a word or two.
    pub topic: &'static str,
    /// What was found.
    pub what: String,
    /// What to do, where something is to be done.
    pub fix: Option<String>,
}

impl Finding {
    fn ok(topic: &'static str, what: impl Into<String>) -> Self {
        Self {
            severity: Severity::Ok,
            topic,
            what: what.into(),
            fix: None,
        }
    }

    fn warn(topic: &'static str, what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warn,
            fix: Some(fix.into()),
            ..Self::ok(topic, what)
        }
    }

    fn fail(topic: &'static str, what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            severity: Severity::Fail,
            ..Self::warn(topic, what, fix)
        }
    }
}

/// A backend to look at, as one service has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendToCheck {
    pub service: String,
    pub address: IpAddr,
    pub forward: Forward,
}

/// What to look at.
#[derive(Clone, Copy, Debug)]
pub struct Checkup<'a> {
    pub interface: &'a str,
    pub backends: &'a [BackendToCheck],
    /// Those that the program is attached to.
    pub interfaces: &'a [String],
    pub pin_dir: &'a Path,
    /// Where packets are to be cut in pieces (`fragment_by`).
    pub fragments: Option<Fragments<'a>>,
    /// The ids of XDP programs that are ours: one of them on the interface is no stranger. `None`: no permission to
    /// see them.
    pub own_programs: Option<&'a [u32]>,
}

/// What the configuration says of packets that are to be cut in pieces.
#[derive(Clone, Copy, Debug)]
pub struct Fragments<'a> {
    /// The interface that they leave by.
    pub by: &'a str,
    /// Those that have the program.
    pub interfaces: &'a [String],
    /// Service addresses over IPv4.
    pub addresses: &'a [IpAddr],
}

/// An interface, and what its driver and the kernel say of it.
#[derive(Clone, Debug)]
struct Device {
    link: Link,
    driver: Option<String>,
    features: Features,
    channels: Option<Channels>,
    /// `None`: the kernel is too old to say.
    xdp: Option<XdpFeatures>,
}

impl Device {
    fn inspect(link: Link) -> Self {
        Self {
            driver: ethtool::driver(&link.name).ok().map(|info| info.driver),
            features: ethtool::features(&link.name),
            channels: ethtool::channels(&link.name).ok(),
            xdp: xdp_features::xdp_features(link.ifindex).ok().flatten(),
            link,
        }
    }

    fn name(&self) -> &str {
        &self.link.name
    }

    fn is_veth(&self) -> bool {
        self.link.kind.as_deref() == Some("veth")
    }

    /// The driver's name, for people.
    fn driver_name(&self) -> &str {
        self.driver.as_deref().unwrap_or("unknown driver")
    }

    /// Whether the driver itself runs XDP programs.
    fn native(&self, kernel: (u32, u32)) -> bool {
        match (self.xdp, &self.driver) {
            (Some(features), _) => features.native(),
            (None, Some(driver)) => xdp_features::driver_takes_xdp(driver, kernel),
            (None, None) => false,
        }
    }
}

/// Looks at everything and says what it found, the machine first, then the interface, then the
/// backends.
///
/// # Errors
/// Where the kernel cannot be asked at all.
pub async fn findings(checkup: &Checkup<'_>) -> Result<Vec<Finding>, NetlinkError> {
    let links = link::links(&Netlink::open()?).await?;
    let release = system::kernel_release();
    let kernel = system::version_of(&release);
    let mut found = vec![
        system::kernel(&release),
        system::bpffs(checkup.pin_dir, system::is_bpffs(checkup.pin_dir)),
    ];
    found.extend(system::jit(sysctl::bpf_jit()));

    let Some(link) = links.iter().find(|link| link.name == checkup.interface) else {
        found.push(interface::missing(checkup.interface, &links));
        return Ok(found);
    };
    let device = Device::inspect(link.clone());
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    found.extend(interface::judge(
        &device,
        &links,
        checkup.own_programs,
        kernel,
        cpus,
    ));
    found.extend(
        sysctl::rp_filter(checkup.interface).map(|filter| system::rp_filter(checkup.interface, filter)),
    );

    let pair = checkup
        .fragments
        .map(|fragments| pairs::pair(fragments.by).map_err(|why| why.to_string()));
    if let Some(Ok(pair)) = &pair
        && pair.other == checkup.interface
    {
        // Nothing is sent back by where pieces come in.
        found.retain(|finding| finding.topic != interface::VETH_PEER);
    }

    let addresses: BTreeSet<IpAddr> = checkup.backends.iter().map(|backend| backend.address).collect();
    let hops = resolver::resolve_once(addresses).await;
    let egress = egress_devices(&hops, &links, &device);
    found.extend(backends::judge(checkup.backends, &hops, &device, &egress, kernel));
    found.extend(backends::answers(checkup.backends, &hops, checkup.interfaces));
    if let (Some(fragments), Some(pair)) = (&checkup.fragments, pair) {
        let ways = resolver::resolve_once(fragments.addresses.iter().copied().collect()).await;
        let room = backends::room(checkup.backends, &hops);
        let facts = fragments::Facts {
            pair,
            mtu: links
                .iter()
                .find(|link| link.name == fragments.by)
                .map_or(0, |link| link.mtu),
            forwarding: sysctl::ip_forward().unwrap_or(false),
            ways: &ways,
            room: &room,
        };
        found.extend(fragments::judge(fragments, &facts));
    }
    Ok(found)
}

/// The interfaces other than ours through which backends are reached.
fn egress_devices(hops: &NextHops, links: &[Link], ours: &Device) -> BTreeMap<u32, Device> {
    let indexes: BTreeSet<u32> = hops.values().flatten().map(|hop| hop.ifindex).collect();
    links
        .iter()
        .filter(|link| indexes.contains(&link.ifindex) && link.ifindex != ours.link.ifindex)
        .map(|link| (link.ifindex, Device::inspect(link.clone())))
        .collect()
}

#[cfg(test)]
mod tests;
