//! Findings about the ways to the backends: next hop, interface to leave through, room for
//! encapsulation.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{BackendToCheck, Device, Finding, interface};
use crate::model::Forward;
use crate::net::NextHop;
use crate::net::nexthop::NextHops;

/// The largest packet that clients on the Internet send.
const USUAL_MTU: u32 = 1500;

pub(super) fn judge(
    backends: &[BackendToCheck],
    hops: &NextHops,
    ours: &Device,
    egress: &BTreeMap<u32, Device>,
    kernel: (u32, u32),
) -> Vec<Finding> {
    let mut found = Vec::new();
    for (address, (forwards, services)) in by_address(backends) {
        let whose = format!(
            "{address} ({})",
            services.into_iter().collect::<Vec<_>>().join(", ")
        );
        let hop = match hops.get(&address) {
            Some(Ok(hop)) => hop,
            Some(Err(why)) => {
                found.push(Finding::fail(
                    "next hop",
                    format!("{whose}: {why}"),
                    format!("ip route get {address}   # where it would go"),
                ));
                continue;
            }
            None => continue,
        };
        for forward in forwards {
            found.push(next_hop(&whose, hop, forward));
            found.push(headroom(&whose, address, hop, forward, ours.link.mtu));
        }
    }
    let native = ours.native(kernel);
    found.extend(
        egress
            .values()
            .map(|device| redirect_target(device, native, kernel)),
    );
    found
}

/// Whether the answers of translated flows come by an interface that has the program.
pub(super) fn answers(backends: &[BackendToCheck], hops: &NextHops, interfaces: &[String]) -> Vec<Finding> {
    const TOPIC: &str = "answers";
    let translated = backends.iter().filter(|backend| backend.forward.translates());
    let judge = |backend: &BackendToCheck| {
        let hop = hops.get(&backend.address)?.as_ref().ok()?;
        let BackendToCheck { service, address, .. } = backend;
        // Of a VLAN interface it is the one below that has the program.
        if hop.below.is_some() {
            return None;
        }
        let by = &hop.interface;
        Some(if interfaces.contains(by) {
            Finding::ok(TOPIC, format!("{address} ({service}): they come by {by}"))
        } else {
            Finding::fail(
                TOPIC,
                format!(
                    "{address} ({service}): they come by {by}, which is not among `interfaces`, and would not be \
                     translated: it takes no flows"
                ),
                format!("interfaces = [.., \"{by}\"]"),
            )
        })
    };
    translated.filter_map(judge).collect()
}

/// How long packets of clients may be for each backend whose way is known, whatever its forward modes.
pub(super) fn room(backends: &[BackendToCheck], hops: &NextHops) -> BTreeMap<IpAddr, u32> {
    let mut room = BTreeMap::new();
    for BackendToCheck { address, forward, .. } in backends {
        if let Some(Ok(hop)) = hops.get(address) {
            let here = hop.mtu.saturating_sub(forward.overhead(*address));
            let least = room.entry(*address).or_insert(here);
            *least = here.min(*least);
        }
    }
    room
}

/// The backends of all services, each once, with how and for whom it is reached.
fn by_address(backends: &[BackendToCheck]) -> BTreeMap<IpAddr, (BTreeSet<Forward>, BTreeSet<&str>)> {
    let mut grouped: BTreeMap<IpAddr, (BTreeSet<Forward>, BTreeSet<&str>)> = BTreeMap::new();
    for backend in backends {
        let (forwards, services) = grouped.entry(backend.address).or_default();
        forwards.insert(backend.forward);
        services.insert(&backend.service);
    }
    grouped
}

fn next_hop(whose: &str, hop: &NextHop, forward: Forward) -> Finding {
    const TOPIC: &str = "next hop";
    match (forward, hop.gateway) {
        (Forward::DsrL2, Some(gateway)) => Finding::fail(
            TOPIC,
            format!("{whose} is behind the router {gateway}, but `dsr-l2` reaches only hosts on the link"),
            "use forward = \"dsr-ipip\" for its service",
        ),
        _ => Finding::ok(TOPIC, format!("{whose}: {hop}")),
    }
}

fn headroom(whose: &str, address: IpAddr, hop: &NextHop, forward: Forward, incoming_mtu: u32) -> Finding {
    const TOPIC: &str = "MTU headroom";
    let overhead = forward.overhead(address);
    let room = hop.mtu.saturating_sub(overhead);
    let wanted = incoming_mtu.min(USUAL_MTU);
    if room >= wanted {
        return Finding::ok(
            TOPIC,
            format!("{whose}: packets of up to {room} bytes ({forward})"),
        );
    }
    Finding::warn(
        TOPIC,
        format!(
            "{whose}: only packets of up to {room} bytes fit ({forward}, {} bytes on the way), clients send up to {wanted}",
            hop.mtu
        ),
        format!(
            "ip link set {} mtu {}   # and on all of the way; or keep clients below with advmss on the backend",
            hop.interface,
            wanted + overhead
        ),
    )
}

fn redirect_target(device: &Device, native: bool, kernel: (u32, u32)) -> Finding {
    const TOPIC: &str = "redirect target";
    let (name, driver) = (device.name(), device.driver_name());
    if !native {
        return Finding::ok(TOPIC, format!("{name}: generic programs can send to it"));
    }
    if device.is_veth() {
        return Finding {
            topic: TOPIC,
            ..interface::veth_peer(device)
        };
    }
    let attach = format!("interfaces = [.., \"{name}\"], so that it has a program");
    match device.xdp {
        Some(features) if features.transmit() => Finding::ok(
            TOPIC,
            format!("{name} ({driver}) can send what is redirected to it"),
        ),
        Some(_) if device.native(kernel) => Finding::fail(
            TOPIC,
            format!("{name} ({driver}) can send redirected packets only while a program is attached to it"),
            attach,
        ),
        None if device.native(kernel) => Finding::warn(
            TOPIC,
            format!("{name} ({driver}): this kernel does not say whether it can send redirected packets"),
            attach,
        ),
        Some(_) | None => Finding::fail(
            TOPIC,
            format!("{name} ({driver}) cannot send redirected packets"),
            "reach these backends through another interface, or use xdp_mode = \"generic\"",
        ),
    }
}
