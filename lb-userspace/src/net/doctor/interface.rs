//! Findings about the interface that the program is attached to.

use super::{Device, Finding};
use crate::datapath::FRAGS_KERNEL;
use crate::net::link::{Link, XdpMode};
use crate::net::xdp_features::XdpFeatures;

/// What a native program has in front of a packet, behind it, and for its Ethernet header with two
/// VLAN tags, in the page that the packet lies in (`XDP_PACKET_HEADROOM`, `skb_shared_info`).
const PAGE_OVERHEAD_BYTES: u32 = 256 + 320 + 22;

pub(super) fn missing(name: &str, links: &[Link]) -> Finding {
    let names: Vec<_> = links
        .iter()
        .filter(|link| link.mac.is_some())
        .map(|link| link.name.as_str())
        .collect();
    Finding::fail(
        "interface",
        format!("there is no interface {name}"),
        format!("choose one of: {}", names.join(", ")),
    )
}

pub(super) fn judge(
    device: &Device,
    links: &[Link],
    own_programs: Option<&[u32]>,
    kernel: (u32, u32),
    cpus: usize,
) -> Vec<Finding> {
    let native = device.native(kernel);
    let mut found = vec![
        state(&device.link),
        mode(device, native),
        mtu(device, native, kernel, page_bytes()),
        queues(device, cpus),
        lro(device),
    ];
    if !native {
        found.push(gro(device));
    }
    found.push(vlan(device, links));
    found.extend(membership(&device.link, links));
    found.push(program(&device.link, own_programs));
    if device.is_veth() {
        found.push(veth_peer(device));
    }
    found
}

fn state(link: &Link) -> Finding {
    const TOPIC: &str = "link";
    let name = &link.name;
    match (link.up, link.carrier) {
        (true, true) => Finding::ok(TOPIC, format!("{name} is up")),
        (true, false) => Finding::fail(TOPIC, format!("{name} has no carrier"), "check cable and peer"),
        (false, _) => Finding::fail(TOPIC, format!("{name} is down"), format!("ip link set {name} up")),
    }
}

fn mode(device: &Device, native: bool) -> Finding {
    const TOPIC: &str = "XDP mode";
    let driver = device.driver_name();
    if native {
        Finding::ok(TOPIC, format!("native ({driver})"))
    } else {
        Finding::warn(
            TOPIC,
            format!(
                "generic: the driver ({driver}) does not run XDP programs; it works, several times slower"
            ),
            "for full speed use an interface whose driver does",
        )
    }
}

fn page_bytes() -> u32 {
    // SAFETY: `sysconf` takes no pointers.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u32::try_from(bytes).unwrap_or(4096)
}

fn mtu(device: &Device, native: bool, kernel: (u32, u32), page_bytes: u32) -> Finding {
    const TOPIC: &str = "MTU";
    let (name, mtu) = (device.name(), device.link.mtu);
    let limit = page_bytes - PAGE_OVERHEAD_BYTES;
    // Where the kernel does not say what the driver takes, attaching will.
    let several = kernel >= FRAGS_KERNEL && device.xdp.is_none_or(XdpFeatures::fragments);
    if !native || mtu <= limit || several {
        return Finding::ok(TOPIC, format!("{mtu}"));
    }
    Finding::warn(
        TOPIC,
        format!(
            "{mtu}: a packet has to fit one page of memory, about {limit} bytes: neither does this driver (or this kernel) \
             give XDP programs frames of several buffers, nor do most attach a program with this MTU"
        ),
        format!("ip link set {name} mtu {limit}   # or smaller; or xdp_mode = \"generic\""),
    )
}

fn queues(device: &Device, cpus: usize) -> Finding {
    const TOPIC: &str = "queues";
    let name = device.name();
    let (rx, more) = match device.channels {
        Some(channels) if channels.rx + channels.combined > 0 => (
            channels.rx + channels.combined,
            channels.max_combined.max(channels.max_rx),
        ),
        _ => (device.link.num_rx_queues, 0),
    };
    let cpus = u32::try_from(cpus).unwrap_or(u32::MAX);
    if rx > 1 || cpus == 1 {
        return Finding::ok(TOPIC, format!("{rx} to receive with, on {cpus} CPUs"));
    }
    let kind = match device.channels {
        Some(channels) if channels.max_combined > 0 => "combined",
        _ => "rx",
    };
    let fix = if more > 1 {
        format!("ethtool -L {name} {kind} {}", more.min(cpus))
    } else if device.is_veth() {
        "create the pair with `numrxqueues` and `numtxqueues`".to_owned()
    } else {
        "use an interface with several queues where one CPU is not enough".to_owned()
    };
    Finding::warn(
        TOPIC,
        format!("only 1 to receive with: one of {cpus} CPUs does all the work"),
        fix,
    )
}

fn lro(device: &Device) -> Finding {
    const TOPIC: &str = "LRO";
    match device.features.lro {
        Some(true) => Finding::warn(
            TOPIC,
            "the card merges packets: many drivers refuse XDP then, and merged packets are dropped as too big",
            format!("ethtool -K {} lro off", device.name()),
        ),
        Some(false) => Finding::ok(TOPIC, "off"),
        None => Finding::ok(TOPIC, "the driver has none"),
    }
}

/// Only for generic mode: native programs run before the kernel merges.
fn gro(device: &Device) -> Finding {
    const TOPIC: &str = "GRO";
    match device.features.gro {
        Some(true) => Finding::warn(
            TOPIC,
            "on: a generic program sees packets after the kernel merged them, and drops those as too big",
            format!("ethtool -K {} gro off", device.name()),
        ),
        Some(false) | None => Finding::ok(TOPIC, "off"),
    }
}

fn vlan(device: &Device, links: &[Link]) -> Finding {
    const TOPIC: &str = "VLAN stripping";
    let name = device.name();
    let vlans: Vec<_> = links
        .iter()
        .filter(|link| link.kind.as_deref() == Some("vlan") && link.parent == Some(device.link.ifindex))
        .map(|link| link.name.as_str())
        .collect();
    match (device.features.rx_vlan_strip, vlans.is_empty()) {
        (Some(false) | None, _) => Finding::ok(TOPIC, "off"),
        (Some(true), true) => Finding::ok(
            TOPIC,
            format!("on, and {name} has no VLANs; if tagged packets arrive, ethtool -K {name} rxvlan off"),
        ),
        (Some(true), false) => Finding::warn(
            TOPIC,
            format!(
                "on: the program cannot tell the packets of {} from untagged ones",
                vlans.join(", ")
            ),
            format!("ethtool -K {name} rxvlan off"),
        ),
    }
}

fn membership(link: &Link, links: &[Link]) -> Option<Finding> {
    const TOPIC: &str = "membership";
    let master = links.iter().find(|other| Some(other.ifindex) == link.master)?;
    let (name, above) = (&link.name, &master.name);
    Some(match master.kind.as_deref() {
        Some("bond" | "team") => Finding::fail(
            TOPIC,
            format!("{name} is a member of {above}: packets that arrive on its other members are not seen"),
            format!("attach to {above} instead: interfaces = [\"{above}\"]"),
        ),
        Some("bridge") => Finding::warn(
            TOPIC,
            format!(
                "{name} is a port of {above}: routes lead through {above}, to which a native program cannot send"
            ),
            format!(
                "take {name} out of the bridge and give it the address of {above}, or attach to {above} (generic)"
            ),
        ),
        _ => Finding::ok(TOPIC, format!("{name} belongs to {above}")),
    })
}

fn program(link: &Link, own_programs: Option<&[u32]>) -> Finding {
    const TOPIC: &str = "XDP program";
    let Some(xdp) = link.xdp else {
        return Finding::ok(TOPIC, format!("none on {} yet", link.name));
    };
    match own_programs {
        None => Finding::warn(
            TOPIC,
            format!(
                "id {}, {} mode; whose it is only root sees",
                xdp.program_id, xdp.mode
            ),
            "run as root",
        ),
        Some(own) if own.contains(&xdp.program_id) => {
            Finding::ok(TOPIC, format!("ours, id {}, {} mode", xdp.program_id, xdp.mode))
        }
        Some(_) => Finding::fail(
            TOPIC,
            format!(
                "another one holds {}: id {}, {} mode; it is not replaced",
                link.name, xdp.program_id, xdp.mode
            ),
            format!(
                "bpftool prog show id {}   # whose is it? Stop that, or: ip link set {} {} off",
                xdp.program_id,
                link.name,
                if xdp.mode == XdpMode::Generic {
                    "xdpgeneric"
                } else {
                    "xdpdrv"
                }
            ),
        ),
    }
}

/// What findings about the other end of a veth are called.
pub(super) const VETH_PEER: &str = "veth peer";

/// A veth hands packets over to its peer, which must be able to take them as XDP frames.
pub(super) fn veth_peer(device: &Device) -> Finding {
    const TOPIC: &str = VETH_PEER;
    const FIX: &str = "put an XDP program that passes everything on the peer, and ethtool -K PEER tx off";
    let name = device.name();
    match device.xdp {
        Some(features) if features.transmit() => Finding::ok(
            TOPIC,
            "takes part in XDP (if only through GRO, then redirects work, and XDP_TX does not)",
        ),
        Some(_) => Finding::fail(
            TOPIC,
            format!("the peer of {name} does not take part in XDP: what is sent through {name} is lost"),
            FIX,
        ),
        None => Finding::warn(
            TOPIC,
            format!(
                "this kernel does not say whether the peer of {name} takes part in XDP; if not, packets are lost"
            ),
            FIX,
        ),
    }
}
