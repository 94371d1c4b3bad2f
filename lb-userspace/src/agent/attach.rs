//! On and off the interfaces: attaching after the first round, the watch over what attaching did, interfaces
//! that come back, and pins that somebody removed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use lb_common::layout::Interface;

use super::startup::{PROGRAM, features};
use super::{Agent, Unconfirmed, trace};
use crate::config::Announce;
use crate::datapath::attach::{self, Target};
use crate::datapath::{Error, load, losses, parts};
use crate::net::announce::{self, frames};
use crate::net::link::{self, Link, LinkChange, LinkEvent, XdpMode};
use crate::net::{neighbor, route};
use crate::observe::Kind;

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
    /// Attaches to every interface of the configuration, or replaces our program there, but for those that
    /// it was taken off. Gives back the interfaces that were not attached to before.
    pub(super) async fn attach_all(&mut self) -> anyhow::Result<Vec<String>> {
        let program_id = attach::program_id(&mut self.ebpf, PROGRAM)?;
        let mut interfaces = self.config.agent.interfaces.clone();
        interfaces.retain(|interface| {
            let attached = self.attachments.get(interface);
            !self.given_up.contains(interface) && attached.is_none_or(|a| a.program_id != program_id)
        });
        if interfaces.is_empty() {
            return Ok(Vec::new());
        }
        // What the program jumps to has to be held before the program is anywhere.
        parts::pin(&self.ebpf, &self.pins)?;
        if let Err(why) = losses::attach(&self.pins) {
            log::warn!(
                "what the kernel loses after the program's verdict is not counted by its tracepoints: {why}"
            );
        }
        let mut fresh = Vec::new();
        for interface in interfaces {
            let before = self.pins.link(&interface).exists();
            match self.attach_one(&interface).await {
                Ok(()) if !before => fresh.push(interface),
                Ok(()) => {}
                Err(error) => {
                    // All or nothing: what was attached just now comes off again.
                    for interface in fresh {
                        self.take_off(&interface, "attaching to another interface failed")?;
                    }
                    return Err(error.into());
                }
            }
        }
        attach::pin_program(&mut self.ebpf, PROGRAM, &self.pins)?;
        parts::unpin_others(&self.ebpf, &self.pins)?;
        match self.options.attach_confirm.take() {
            Some(_) if fresh.is_empty() => {
                log::info!("the program was attached before: there is nothing to confirm");
            }
            Some(within) => {
                self.unconfirmed = Some(Unconfirmed {
                    interfaces: fresh.clone(),
                    deadline: Instant::now() + within,
                });
                log::warn!("detaching in {} s unless `xlb confirm` comes", within.as_secs());
            }
            None => {}
        }
        self.announce().await;
        // A frame may be lost, and a port that has just come up may not forward yet.
        self.announce_at = Some(Instant::now() + SECOND_ANNOUNCEMENT);
        Ok(fresh)
    }

    /// Takes the program off one interface.
    pub(super) fn take_off(&mut self, interface: &str, why: &str) -> Result<(), Error> {
        attach::detach(&self.pins, interface)?;
        self.forget_attachment(interface);
        let interface = interface.into();
        self.emit(Kind::Detached { interface }.because(why));
        Ok(())
    }

    /// Forgets an interface that the program is no longer on.
    pub(super) fn forget_attachment(&mut self, interface: &str) {
        self.watches.retain(|watch| watch.interface != interface);
        if let Some(attached) = self.attachments.remove(interface) {
            self.dataplane.drop_egress(attached.ifindex);
            // There is room for few interfaces, and one that is made again has another index.
            if let Err(error) = self.dataplane.maps.interfaces.remove(&attached.ifindex) {
                log::debug!("interface {interface} was not among those that are answered on: {error}");
            }
        }
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
        self.dataplane.add_egress(link.ifindex)?;
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
        self.emit(Kind::Attached {
            interface: interface.into(),
            mode: if done.native { "native" } else { "generic" }.into(),
            program_id: done.program_id,
        });
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
    pub(super) async fn announce(&mut self) {
        self.sync_groups();
        if self.config.agent.announce != Announce::L2 {
            return;
        }
        let addresses: Vec<IpAddr> = self.dataplane.addresses().into_iter().collect();
        for interface in self.attachments.keys() {
            let Ok(Some(link)) = link::link_by_name(&self.netlink, interface).await else {
                continue;
            };
            let Some(mac) = link.mac else { continue };
            if let Err(error) = announce::announce(interface, mac, &addresses) {
                log::warn!("interface {interface}: announcing the service addresses: {error}");
            }
        }
    }

    /// The multicast groups that solicitations for the service addresses come in, each with one of the
    /// addresses it stands for: several can share a group.
    pub(super) fn groups_wanted(&self, interface: &str) -> BTreeMap<(String, Ipv6Addr), Ipv6Addr> {
        if self.config.agent.announce != Announce::L2 {
            return BTreeMap::new();
        }
        let group = |address| (interface.to_owned(), frames::solicited_node_group(address));
        self.dataplane
            .addresses()
            .into_iter()
            .filter_map(|address| match address {
                IpAddr::V6(address) => Some((group(address), address)),
                IpAddr::V4(_) => None,
            })
            .collect()
    }

    /// Joins the groups that are wanted where the program is attached, and leaves all others.
    pub(super) fn sync_groups(&mut self) {
        let wanted: BTreeMap<_, _> = self
            .attachments
            .keys()
            .flat_map(|interface| self.groups_wanted(interface))
            .collect();
        // Also those that were joined before: an interface that was made again is in none.
        for ((interface, _), address) in &wanted {
            if let Err(error) = announce::join_solicited_node(interface, *address) {
                log::warn!(
                    "interface {interface}: neighbour solicitations for {address} may not arrive: {error}"
                );
            }
        }
        let wanted: BTreeSet<_> = wanted.into_keys().collect();
        self.leave_groups(&wanted);
        self.groups = wanted;
    }

    /// Leaves all groups but these.
    pub(super) fn leave_groups(&mut self, wanted: &BTreeSet<(String, Ipv6Addr)>) {
        for (interface, group) in self.groups.difference(wanted) {
            // A group's own group is itself.
            if let Err(error) = announce::leave_solicited_node(interface, *group) {
                log::debug!("interface {interface}: leaving the multicast group {group}: {error}");
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
        let name = &link.name;
        if self.starting() || self.given_up.contains(name) || !self.config.agent.interfaces.contains(name) {
            return;
        }
        match change {
            LinkChange::Gone => {
                if self.attachments.contains_key(name) {
                    log::warn!("interface {name} is gone; it is attached to again when it returns");
                    self.forget_attachment(name);
                    let interface = name.clone();
                    self.emit(Kind::InterfaceLost { interface }.because("it is gone"));
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
            LinkChange::Down => {
                log::warn!("interface {name} carries no packets");
                let interface = name.clone();
                self.emit(Kind::InterfaceLost { interface }.because("it is down, or its carrier is gone"));
            }
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
            self.give_up(&interface, "its pin was removed");
        }
        if let Some(Unconfirmed { interfaces, .. }) = self
            .unconfirmed
            .take_if(|unconfirmed| now >= unconfirmed.deadline)
        {
            log::error!("no confirmation came: detaching from {}", interfaces.join(", "));
            for interface in interfaces {
                self.give_up(&interface, "no confirmation came");
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
                        self.give_up(&watch.interface, &what);
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

    fn give_up(&mut self, interface: &str, why: &str) {
        if let Err(error) = self.take_off(interface, why) {
            log::error!("interface {interface}: {error}");
        }
        self.given_up.insert(interface.into());
        self.sync_groups();
    }
}
