//! Network interfaces: what they are, how they are doing, and what changes.

use std::collections::BTreeMap;
use std::fmt;

use futures::{FutureExt, StreamExt};
use lb_common::layout::{SERVICE_TAG_TYPE, TAG_TYPE};
use netlink_packet_route::link::{
    InfoData, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp,
    VlanProtocol, XdpAttached as Attached,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkPayload;
use tokio::sync::mpsc;

use super::MacAddress;
use super::netlink::{self, Events, Netlink, NetlinkError};

/// How an XDP program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver.
    Native,
    /// In the kernel's stack, after a socket buffer was made: works everywhere, slower.
    Generic,
    /// On the network card.
    Offload,
    /// Several programs in different modes.
    Multi,
}

impl fmt::Display for XdpMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Offload => "offload",
            Self::Multi => "multi",
        })
    }
}

/// An attached XDP program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpAttached {
    pub mode: XdpMode,
    /// The kernel's id of the program, as `bpftool prog show id` takes it. With [`XdpMode::Multi`]:
    /// of the one that sees packets first.
    pub program_id: u32,
}

/// The VLAN of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Type of its tag: 802.1Q or 802.1ad.
    pub kind: u16,
    pub vlan: u16,
}

/// One interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub ifindex: u32,
    pub name: String,
    /// The Ethernet address; `None` where the interface is not Ethernet.
    pub mac: Option<MacAddress>,
    pub mtu: u32,
    /// Somebody has set it up (`ip link set up`).
    pub up: bool,
    /// The link itself is there (a cable, a running peer).
    pub carrier: bool,
    /// What kind of virtual interface it is (`veth`, `bond`, `bridge`, `vlan`, ...); `None` for
    /// physical ones.
    pub kind: Option<String>,
    /// The bond or bridge it is a member of.
    pub master: Option<u32>,
    /// The interface it is made on (`vlan`, `macvlan`), or its peer if that is in the same namespace
    /// (`veth`).
    pub parent: Option<u32>,
    /// The VLAN that it is.
    pub vlan: Option<Tag>,
    pub xdp: Option<XdpAttached>,
    pub num_rx_queues: u32,
    pub num_tx_queues: u32,
}

/// Every interface of this namespace, by index.
///
/// # Errors
/// Where the kernel cannot be asked.
pub async fn links(netlink: &Netlink) -> Result<Vec<Link>, NetlinkError> {
    let messages = netlink::collect("list its interfaces", netlink.handle().link().get().execute()).await?;
    let mut links: Vec<_> = messages.iter().filter_map(parse).collect();
    links.sort_unstable_by_key(|link| link.ifindex);
    Ok(links)
}

/// The interface of that name, if there is one.
///
/// # Errors
/// Where the kernel cannot be asked.
pub async fn link_by_name(netlink: &Netlink, name: &str) -> Result<Option<Link>, NetlinkError> {
    let answers = netlink
        .handle()
        .link()
        .get()
        .match_name(name.to_owned())
        .execute();
    match netlink::first("show an interface", answers).await {
        Ok(message) => Ok(parse(&message)),
        // A name that no interface can have is refused as invalid or out of range.
        Err(NetlinkError::Refused {
            errno: libc::ENODEV | libc::EINVAL | libc::ERANGE,
            ..
        }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What happened to an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkChange {
    /// It is new, or has come back under its name.
    Appeared,
    /// It is gone, or has another name.
    Gone,
    /// It can carry packets again.
    Up,
    /// It cannot carry packets any more: set down, or carrier lost.
    Down,
    /// Something else changed: MTU, address, XDP program, membership.
    Other,
}

/// A change, as [`watch_links`] reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkEvent {
    pub change: LinkChange,
    /// The interface after the change; before it if it is gone.
    pub link: Link,
}

/// Reports every change of an interface from the moment of the call on, in order.
///
/// The task behind it ends when the receiver is dropped; it closes the channel only then, and after
/// lost events it compares the whole list.
///
/// # Errors
/// Where no socket can be opened, or the first list cannot be had.
pub async fn watch_links() -> Result<mpsc::UnboundedReceiver<LinkEvent>, NetlinkError> {
    let (events, known) = subscribe().await?;
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        tokio::select! {
            () = sender.closed() => {}
            () = report(events, known, &sender) => {}
        }
    });
    Ok(receiver)
}

type Known = BTreeMap<u32, Link>;

async fn subscribe() -> Result<(Events, Known), NetlinkError> {
    let events = netlink::watch(&[MulticastGroup::Link])?;
    Ok((events, by_index(links(&Netlink::open()?).await?)))
}

fn by_index(links: Vec<Link>) -> Known {
    links.into_iter().map(|link| (link.ifindex, link)).collect()
}

async fn report(mut events: Events, mut known: Known, sender: &mpsc::UnboundedSender<LinkEvent>) {
    loop {
        let Some((message, _)) = events.next().await else {
            (events, known) = resubscribe(&known, sender).await;
            continue;
        };
        let changes = match message.payload {
            NetlinkPayload::InnerMessage(message) => match LinkUpdate::of(&message) {
                Some(update) => apply(&mut known, update),
                None => Vec::new(),
            },
            NetlinkPayload::Overrun(_) => {
                // What is queued is older than the list about to be read.
                while events.next().now_or_never().is_some() {}
                (events, known) = resubscribe(&known, sender).await;
                Vec::new()
            }
            _ => Vec::new(),
        };
        for change in changes {
            // A closed channel ends the task through `closed()`.
            let _ = sender.send(change);
        }
    }
}

/// Subscribes again, however long that takes, and reports what changed meanwhile.
async fn resubscribe(known: &Known, sender: &mpsc::UnboundedSender<LinkEvent>) -> (Events, Known) {
    loop {
        match subscribe().await {
            Ok((events, fresh)) => {
                for change in differences(known, &fresh) {
                    let _ = sender.send(change);
                }
                return (events, fresh);
            }
            Err(error) => {
                log::warn!("interfaces are not watched: {error}; trying again");
                tokio::time::sleep(netlink::RETRY_PAUSE).await;
            }
        }
    }
}

/// What one message says about an interface.
#[derive(Debug)]
pub(crate) enum LinkUpdate {
    Present(Link),
    Gone(u32),
}

impl LinkUpdate {
    /// Bridges send messages about their ports in the same group; these are not about the interface,
    /// and a port leaving its bridge looks there like an interface going away.
    pub(crate) fn of(message: &RouteNetlinkMessage) -> Option<Self> {
        match message {
            RouteNetlinkMessage::NewLink(link) => parse(link).map(Self::Present),
            RouteNetlinkMessage::DelLink(link) if is_about_the_interface(link) => {
                Some(Self::Gone(link.header.index))
            }
            _ => None,
        }
    }
}

fn apply(known: &mut Known, update: LinkUpdate) -> Vec<LinkEvent> {
    match update {
        LinkUpdate::Present(link) => {
            let before = known.insert(link.ifindex, link.clone());
            compare(before.as_ref(), Some(&link))
        }
        LinkUpdate::Gone(ifindex) => compare(known.remove(&ifindex).as_ref(), None),
    }
}

fn differences(before: &Known, after: &Known) -> Vec<LinkEvent> {
    let mut found = Vec::new();
    for (ifindex, link) in before {
        found.extend(compare(Some(link), after.get(ifindex)));
    }
    for (ifindex, link) in after {
        if !before.contains_key(ifindex) {
            found.extend(compare(None, Some(link)));
        }
    }
    found
}

fn compare(before: Option<&Link>, after: Option<&Link>) -> Vec<LinkEvent> {
    let event = |change, link: &Link| LinkEvent {
        change,
        link: link.clone(),
    };
    let runs = |link: &Link| link.up && link.carrier;
    match (before, after) {
        (None, None) => Vec::new(),
        (Some(gone), None) => vec![event(LinkChange::Gone, gone)],
        (None, Some(new)) => vec![event(LinkChange::Appeared, new)],
        (Some(old), Some(new)) if old.name != new.name => {
            vec![event(LinkChange::Gone, old), event(LinkChange::Appeared, new)]
        }
        (Some(old), Some(new)) if old == new => Vec::new(),
        (Some(old), Some(new)) => vec![event(
            match (runs(old), runs(new)) {
                (false, true) => LinkChange::Up,
                (true, false) => LinkChange::Down,
                _ => LinkChange::Other,
            },
            new,
        )],
    }
}

fn is_about_the_interface(message: &LinkMessage) -> bool {
    message.header.interface_family == AddressFamily::Unspec
}

fn parse(message: &LinkMessage) -> Option<Link> {
    if !is_about_the_interface(message) {
        return None;
    }
    let header = &message.header;
    let mut name = None;
    let mut link = Link {
        ifindex: header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        up: header.flags.contains(LinkFlags::Up),
        carrier: header.flags.contains(LinkFlags::LowerUp),
        kind: None,
        master: None,
        parent: None,
        vlan: None,
        xdp: None,
        num_rx_queues: 1,
        num_tx_queues: 1,
    };
    let mut lies_elsewhere = false;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text.clone()),
            LinkAttribute::Address(bytes) if header.link_layer_type == LinkLayerType::Ether => {
                link.mac = bytes.as_slice().try_into().ok();
            }
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Controller(ifindex) => link.master = Some(*ifindex),
            LinkAttribute::Link(ifindex) => link.parent = Some(*ifindex).filter(|ifindex| *ifindex != 0),
            LinkAttribute::LinkNetNsId(_) => lies_elsewhere = true,
            LinkAttribute::NumRxQueues(count) => link.num_rx_queues = *count,
            LinkAttribute::NumTxQueues(count) => link.num_tx_queues = *count,
            LinkAttribute::Xdp(xdp) => link.xdp = parse_xdp(xdp),
            LinkAttribute::LinkInfo(info) => {
                link.kind = info.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
                link.vlan = info.iter().find_map(parse_vlan);
            }
            _ => {}
        }
    }
    if lies_elsewhere {
        link.parent = None;
    }
    link.name = name?;
    Some(link)
}

fn parse_vlan(info: &LinkInfo) -> Option<Tag> {
    let LinkInfo::Data(InfoData::Vlan(items)) = info else {
        return None;
    };
    let vlan = items.iter().find_map(|item| match item {
        InfoVlan::Id(vlan) => Some(*vlan),
        _ => None,
    })?;
    let service = items
        .iter()
        .any(|item| matches!(item, InfoVlan::Protocol(VlanProtocol::Ieee8021Ad)));
    let kind = if service { SERVICE_TAG_TYPE } else { TAG_TYPE };
    Some(Tag { kind, vlan })
}

fn parse_xdp(attributes: &[LinkXdp]) -> Option<XdpAttached> {
    let mut mode = None;
    let mut program_id = None;
    let mut by_mode = None;
    for attribute in attributes {
        match attribute {
            LinkXdp::Attached(attached) => {
                mode = match attached {
                    Attached::Driver => Some(XdpMode::Native),
                    Attached::SocketBuffer => Some(XdpMode::Generic),
                    Attached::Hardware => Some(XdpMode::Offload),
                    Attached::Multiple => Some(XdpMode::Multi),
                    _ => None,
                };
            }
            LinkXdp::ProgId(id) => program_id = Some(*id),
            // Present with several programs, where the general one is absent; the kernel lists the
            // one in the stack first, and that runs last.
            LinkXdp::SkbProgId(id) | LinkXdp::DrvProgId(id) | LinkXdp::HwProgId(id) => by_mode = Some(*id),
            _ => {}
        }
    }
    Some(XdpAttached {
        mode: mode?,
        program_id: program_id.or(by_mode).unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing::{Namespace, run_ip};

    fn link(name: &str) -> Link {
        Link {
            ifindex: 7,
            name: name.to_owned(),
            mac: Some([2, 0, 0, 0, 0, 7]),
            mtu: 1500,
            up: true,
            carrier: true,
            kind: None,
            master: None,
            parent: None,
            vlan: None,
            xdp: None,
            num_rx_queues: 1,
            num_tx_queues: 1,
        }
    }

    fn changes(before: Option<&Link>, after: Option<&Link>) -> Vec<LinkChange> {
        compare(before, after)
            .into_iter()
            .map(|event| event.change)
            .collect()
    }

    #[test]
    fn each_change_has_its_name() {
        let eth0 = link("eth0");
        let down = Link {
            carrier: false,
            ..eth0.clone()
        };
        let larger = Link {
            mtu: 9000,
            ..eth0.clone()
        };
        assert_eq!(changes(None, Some(&eth0)), [LinkChange::Appeared]);
        assert_eq!(changes(Some(&eth0), None), [LinkChange::Gone]);
        assert_eq!(changes(Some(&eth0), Some(&eth0)), []);
        assert_eq!(changes(Some(&eth0), Some(&down)), [LinkChange::Down]);
        assert_eq!(changes(Some(&down), Some(&eth0)), [LinkChange::Up]);
        assert_eq!(changes(Some(&eth0), Some(&larger)), [LinkChange::Other]);
        assert_eq!(
            changes(Some(&eth0), Some(&link("lan0"))),
            [LinkChange::Gone, LinkChange::Appeared]
        );
    }

    #[test]
    fn lists_are_compared_by_index() {
        let old = link("eth0");
        let new = Link {
            ifindex: 8,
            ..link("eth0")
        };
        let found = differences(&by_index(vec![old.clone()]), &by_index(vec![new.clone()]));
        let expected = [
            LinkEvent {
                change: LinkChange::Gone,
                link: old,
            },
            LinkEvent {
                change: LinkChange::Appeared,
                link: new,
            },
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn the_mode_and_program_of_xdp_are_read() {
        let attached = |attributes: &[LinkXdp]| parse_xdp(attributes);
        assert_eq!(attached(&[LinkXdp::Attached(Attached::None)]), None);
        assert_eq!(
            attached(&[
                LinkXdp::Attached(Attached::Driver),
                LinkXdp::ProgId(42),
                LinkXdp::DrvProgId(42)
            ]),
            Some(XdpAttached {
                mode: XdpMode::Native,
                program_id: 42
            })
        );
        assert_eq!(
            attached(&[
                LinkXdp::Attached(Attached::Multiple),
                LinkXdp::SkbProgId(5),
                LinkXdp::DrvProgId(6)
            ]),
            Some(XdpAttached {
                mode: XdpMode::Multi,
                program_id: 6
            })
        );
    }

    #[test]
    fn interfaces_are_listed_and_watched() {
        let Some((namespace, peer)) = Namespace::pair_or_skip("interfaces_are_listed_and_watched") else {
            return;
        };
        namespace.run(move || async move {
            let netlink = Netlink::open().unwrap();
            let names: Vec<_> = links(&netlink)
                .await
                .unwrap()
                .into_iter()
                .map(|link| link.name)
                .collect();
            assert_eq!(names, ["lo", "eth0"]);
            let lo = link_by_name(&netlink, "lo").await.unwrap().unwrap();
            assert_eq!((lo.mac, lo.kind.as_deref()), (None, None));
            let eth0 = link_by_name(&netlink, "eth0").await.unwrap().unwrap();
            assert_eq!((eth0.up, eth0.carrier, eth0.mtu), (true, true, 1500));
            assert_eq!(eth0.kind.as_deref(), Some("veth"));
            // The peer is in another namespace: its index means nothing here.
            assert_eq!((eth0.parent, eth0.master, eth0.xdp), (None, None, None));
            assert_eq!(link_by_name(&netlink, "eth1").await.unwrap(), None);
            let impossible = "a-name-longer-than-any-interface-can-have";
            assert_eq!(link_by_name(&netlink, impossible).await.unwrap(), None);

            let mut events = watch_links().await.unwrap();
            let mut next = async |wanted: LinkChange, name: &str| {
                // The kernel reports more than one step of a change.
                loop {
                    let event = events.recv().await.unwrap();
                    if event.change == wanted && event.link.name == name {
                        return event.link;
                    }
                    assert_eq!(event.change, LinkChange::Other, "{event:?}");
                }
            };
            peer.ip("link set eth0 down");
            next(LinkChange::Down, "eth0").await;
            peer.ip("link set eth0 up");
            next(LinkChange::Up, "eth0").await;
            run_ip("link add br0 type bridge");
            next(LinkChange::Appeared, "br0").await;
            // Neither joining a bridge nor leaving it makes the interface go away.
            run_ip("link set eth0 master br0");
            let joined = next(LinkChange::Other, "eth0").await;
            assert!(joined.up && joined.carrier);
            run_ip("link set eth0 nomaster");
            run_ip("link del eth0");
            next(LinkChange::Down, "eth0").await;
            next(LinkChange::Gone, "eth0").await;
            run_ip("link add eth0 type veth peer name eth1");
            next(LinkChange::Appeared, "eth1").await;
            let again = next(LinkChange::Appeared, "eth0").await;
            assert_ne!(again.ifindex, eth0.ifindex);
        });
    }
}
