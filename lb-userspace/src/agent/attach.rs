//! On and off the interfaces: attaching after the first round, the watch over what attaching did, interfaces
//! that come back, and pins that somebody removed.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use lb_common::layout::Interface;

use super::startup::{PROGRAM, features};
use super::{Agent, trace};
use crate::config::Announce;
use crate::datapath::attach::{self, Target};
use crate::datapath::{Error, load};
use crate::net::link::{self, Link, LinkChange, LinkEvent, XdpMode};
use crate::net::{announce, neighbor, route};

/// How long carrier and gateway are watched after attaching.
const WATCH: Duration = Duration::from_secs(10);
/// Resetting a NIC to make room for XDP takes its carrier away for a moment; only a lasting loss counts.
const GRACE: Duration = Duration::from_secs(4);

/// When the first announcement is repeated.
const SECOND_ANNOUNCEMENT: Duration = Duration::from_secs(2);

/// One interface under watch since the program was put on it.
#[derive(Debug)]
pub(super) struct Watch {
    interface: String,
    until: Instant,
    had_carrier: bool,
    /// Default gateways that answered before.
    gateways: Vec<IpAddr>,
    lost_since: Option<Instant>,
}

impl Agent {
    /// Attaches to every interface of the configuration that exists, or replaces our program there.
    pub(super) async fn attach_all(&mut self) -> anyhow::Result<()> {
        let mut fresh = Vec::new();
        for interface in self.config.agent.interfaces.clone() {
            let before = self.pins.link(&interface).exists();
            match self.attach_one(&interface).await {
                Ok(()) if !before => fresh.push(interface),
                Ok(()) => {}
                Err(error) => {
                    // All or nothing: what was attached just now comes off again.
                    for interface in fresh {
                        attach::detach(&self.pins, &interface)?;
                        self.attachments.remove(&interface);
                    }
                    return Err(error.into());
                }
            }
        }
        attach::pin_program(&mut self.ebpf, PROGRAM, &self.pins)?;
        if let Some(within) = self.options.attach_confirm.take()
            && !fresh.is_empty()
        {
            self.confirm_by = Some(Instant::now() + within);
            log::warn!("detaching in {} s unless `xlb confirm` comes", within.as_secs());
        }
        self.announce().await;
        // A frame may be lost, and a port that has just come up may not forward yet.
        self.announce_at = Some(Instant::now() + SECOND_ANNOUNCEMENT);
        Ok(())
    }

    async fn attach_one(&mut self, interface: &str) -> Result<(), Error> {
        let link = link::link_by_name(&self.netlink, interface)
            .await
            .map_err(|source| Error::Syscall {
                call: "netlink",
                source: std::io::Error::other(source.to_string()),
            })?
            .ok_or_else(|| Error::NoInterface(interface.into()))?;
        let gateways = self.gateways_that_answer(&link).await;
        if let Some([a, b, c, d, e, f]) = link.mac {
            let pair = |a, b| u16::from_ne_bytes([a, b]);
            let own = Interface {
                mac: [pair(a, b), pair(c, d), pair(e, f)],
                reserved: 0,
            };
            self.dataplane.maps.interfaces.insert(link.ifindex, own, 0)?;
        }
        let target = Target {
            interface,
            ifindex: link.ifindex,
            present: link.xdp.map(|xdp| (xdp.program_id, xdp.mode != XdpMode::Generic)),
        };
        let fresh = !self.pins.link(interface).exists();
        let done = attach::attach(
            &mut self.ebpf,
            PROGRAM,
            &self.pins,
            target,
            self.config.agent.xdp_mode,
        )?;
        log::info!(
            "{} {interface} in {} mode (program {})",
            if fresh {
                "attached to"
            } else {
                "program replaced on"
            },
            if done.native { "native" } else { "generic" },
            done.program_id
        );
        self.attachments.insert(interface.into(), done);
        if fresh {
            self.watches.retain(|watch| watch.interface != interface);
            self.watches.push(Watch {
                interface: interface.into(),
                until: Instant::now() + WATCH,
                had_carrier: link.carrier,
                gateways,
                lost_since: None,
            });
        }
        Ok(())
    }

    async fn gateways_that_answer(&self, link: &Link) -> Vec<IpAddr> {
        let mut answering = Vec::new();
        for (gateway, ifindex) in route::default_gateways(&self.netlink).await.unwrap_or_default() {
            if ifindex == link.ifindex && self.neighbor_usable(gateway, ifindex).await == Some(true) {
                answering.push(gateway);
            }
        }
        answering
    }

    /// Loads the program anew with the constants that the configuration needs now, for the next attach.
    pub(super) fn respecialise(&mut self) -> anyhow::Result<bool> {
        let wanted = features(&self.config, self.features.trace_drops);
        if wanted == self.features {
            return Ok(false);
        }
        let mut ebpf = load::load(wanted, &self.key, self.sizes, Some(&self.pins))?;
        attach::verify(&mut ebpf, PROGRAM)?;
        if self.trace.is_some() {
            self.trace = Some(trace::start(&mut ebpf, self.options.trace_drops.unwrap_or(0))?);
        }
        self.ebpf = ebpf;
        self.features = wanted;
        Ok(true)
    }

    /// `announce = "l2"`: tells the neighbourhood whose the service addresses are.
    pub(super) async fn announce(&self) {
        if self.config.agent.announce != Announce::L2 {
            return;
        }
        let addresses: Vec<IpAddr> = self.dataplane.addresses().into_iter().collect();
        for interface in self.attachments.keys() {
            let Ok(Some(link)) = link::link_by_name(&self.netlink, interface).await else {
                continue;
            };
            let Some(mac) = link.mac else { continue };
            for address in &addresses {
                if let IpAddr::V6(address) = address
                    && let Err(error) = announce::join_solicited_node(interface, *address)
                {
                    log::warn!(
                        "interface {interface}: neighbour solicitations for {address} may not arrive: {error}"
                    );
                }
            }
            if let Err(error) = announce::announce(interface, mac, &addresses) {
                log::warn!("interface {interface}: announcing the service addresses: {error}");
            }
        }
    }

    /// Undoes what [`Agent::announce`] left in the kernel.
    pub(super) fn forget_addresses(&self) {
        if self.config.agent.announce != Announce::L2 {
            return;
        }
        for interface in self.attachments.keys() {
            for address in self.dataplane.addresses() {
                if let IpAddr::V6(address) = address
                    && let Err(error) = announce::leave_solicited_node(interface, address)
                {
                    log::warn!("interface {interface}: leaving the multicast group of {address}: {error}");
                }
            }
        }
    }

    /// Whether a neighbour can be sent to; `None` where nothing is known of it.
    async fn neighbor_usable(&self, address: IpAddr, ifindex: u32) -> Option<bool> {
        let neighbor = neighbor::neighbor_state(&self.netlink, address, ifindex)
            .await
            .ok()??;
        Some(neighbor.usable_mac().is_some())
    }

    /// An interface came, went or changed.
    pub(super) async fn link_changed(&mut self, event: &LinkEvent) {
        let LinkEvent { change, link } = event;
        if *change == LinkChange::Gone {
            self.dataplane.forget_interface(link.ifindex);
        }
        let starting = self.round.as_ref().is_some_and(|round| round.reload.is_none());
        let name = &link.name;
        if starting || self.detached || !self.config.agent.interfaces.contains(name) {
            return;
        }
        match change {
            LinkChange::Gone => {
                if self.attachments.remove(name).is_some() {
                    log::warn!("interface {name} is gone; it is attached to again when it returns");
                    self.watches.retain(|watch| watch.interface != *name);
                }
            }
            LinkChange::Appeared | LinkChange::Up => {
                if self
                    .attachments
                    .get(name)
                    .is_some_and(|attached| attached.ifindex == link.ifindex)
                {
                    return;
                }
                match self.attach_one(name).await {
                    Ok(()) => self.announce().await,
                    Err(error) => log::error!("interface {name} is back, but attaching failed: {error}"),
                }
            }
            LinkChange::Down => log::warn!("interface {name} carries no packets"),
            LinkChange::Other => {}
        }
    }

    /// Looks after what was attached: pins that were removed by hand, a lost carrier or gateway, a
    /// confirmation that did not come.
    pub(super) async fn look_after(&mut self, now: Instant) {
        let missing: BTreeSet<String> = self
            .attachments
            .keys()
            .filter(|name| !self.pins.link(name).exists())
            .cloned()
            .collect();
        for interface in missing {
            log::error!(
                "interface {interface}: its pin was removed, nothing is forwarded there any longer; restart the agent to attach again"
            );
            self.attachments.remove(&interface);
            self.watches.retain(|watch| watch.interface != interface);
            self.detached = true;
        }
        if self.confirm_by.is_some_and(|deadline| now >= deadline) {
            self.confirm_by = None;
            log::error!("no confirmation came: detaching");
            for interface in self.attachments.keys().cloned().collect::<Vec<_>>() {
                self.give_up(&interface);
            }
        }
        for mut watch in std::mem::take(&mut self.watches) {
            if now >= watch.until && watch.lost_since.is_none() {
                continue;
            }
            match self.lost(&watch).await {
                None => watch.lost_since = None,
                Some(what) => {
                    let since = *watch.lost_since.get_or_insert(now);
                    if now.saturating_duration_since(since) >= GRACE {
                        log::error!(
                            "interface {}: {what} since the program was attached: detaching",
                            watch.interface
                        );
                        self.give_up(&watch.interface);
                        continue;
                    }
                }
            }
            self.watches.push(watch);
        }
    }

    /// What a watch misses, if anything.
    async fn lost(&self, watch: &Watch) -> Option<String> {
        let link = link::link_by_name(&self.netlink, &watch.interface)
            .await
            .ok()
            .flatten()?;
        if watch.had_carrier && !link.carrier {
            return Some("its carrier is gone".into());
        }
        for gateway in &watch.gateways {
            if self.neighbor_usable(*gateway, link.ifindex).await == Some(false) {
                return Some(format!(
                    "the default gateway {gateway} does not answer any longer"
                ));
            }
        }
        None
    }

    fn give_up(&mut self, interface: &str) {
        if let Err(error) = attach::detach(&self.pins, interface) {
            log::error!("interface {interface}: {error}");
        }
        self.attachments.remove(interface);
        self.detached = true;
    }
}

impl Watch {
    pub(super) fn is_of(&self, interface: &str) -> bool {
        self.interface == interface
    }
}
