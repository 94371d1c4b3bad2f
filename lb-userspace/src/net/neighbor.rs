//! Neighbour entries: the kernel's ARP and neighbour discovery tables.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use tokio::time::Instant;

use super::MacAddress;
use super::netlink::{self, Netlink, NetlinkError};

pub use netlink_packet_route::neighbour::NeighbourState as NeighborState;

/// How long the MAC address of an entry that went away, but did not fail to answer, is still used. The
/// kernel forgets entries under memory pressure and on `ip neigh flush`; asking again takes
/// milliseconds, and the host is most likely where it was.
pub const HOLD: Duration = Duration::from_secs(2);

/// What identifies a neighbour: the interface it is on and its address.
pub type NeighborKey = (u32, IpAddr);

/// One entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbor {
    pub state: NeighborState,
    /// The address the entry holds; the kernel keeps it in states in which it must not be used.
    pub mac: Option<MacAddress>,
}

impl Neighbor {
    /// The address to send to, where the state allows it. The kernel itself sends to an entry that
    /// is stale or being verified (RFC 4861 section 7.3.3), and so do we.
    #[must_use]
    pub fn usable_mac(&self) -> Option<MacAddress> {
        match self.state {
            NeighborState::Reachable
            | NeighborState::Stale
            | NeighborState::Delay
            | NeighborState::Probe
            | NeighborState::Noarp
            | NeighborState::Permanent => self.mac,
            _ => None,
        }
    }

    /// Whether the kernel would do something if asked to verify the entry, and may be asked.
    ///
    /// Never for permanent entries: since Linux 5.16, `NTF_USE` takes that state from them.
    fn wants_use(&self) -> bool {
        match self.state {
            NeighborState::None | NeighborState::Failed | NeighborState::Stale => true,
            NeighborState::Incomplete
            | NeighborState::Reachable
            | NeighborState::Delay
            | NeighborState::Probe
            | NeighborState::Noarp
            | NeighborState::Permanent => false,
            _ => false,
        }
    }
}

/// Reads an entry out of a message; `None` for what is no neighbour on an IP network (the forwarding
/// entries of bridges come in the same messages).
pub(crate) fn parse(message: &NeighbourMessage) -> Option<(NeighborKey, Neighbor)> {
    let header = &message.header;
    if !matches!(header.family, AddressFamily::Inet | AddressFamily::Inet6)
        || header.flags.contains(NeighbourFlags::Proxy)
    {
        return None;
    }
    let mut address = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(IpAddr::V6(*v6)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    let neighbor = Neighbor {
        state: header.state,
        mac,
    };
    Some(((header.ifindex, address?), neighbor))
}

/// A mirror of the kernel's entries, with the memory that [`HOLD`] needs. Time is an argument.
#[derive(Debug, Default)]
pub struct NeighborTable {
    entries: BTreeMap<NeighborKey, Neighbor>,
    /// Addresses of entries that vanished without having failed, and until when they serve.
    held: BTreeMap<NeighborKey, (MacAddress, Instant)>,
}

impl NeighborTable {
    /// Takes in an entry as the kernel reports it. Says whether that changed anything.
    pub fn observe(&mut self, key: NeighborKey, neighbor: Neighbor, now: Instant) -> bool {
        let before = self.entries.insert(key, neighbor);
        let vanished = match neighbor.state {
            NeighborState::None | NeighborState::Incomplete => true,
            // A host that fell silent was probed first. Who deletes an entry, or flushes them all,
            // makes the kernel report that it failed, too.
            NeighborState::Failed => before.is_some_and(|before| {
                matches!(
                    before.state,
                    NeighborState::Reachable | NeighborState::Stale | NeighborState::Delay
                )
            }),
            _ => false,
        };
        if vanished {
            self.hold(key, before, now);
        } else {
            self.held.remove(&key);
        }
        before != Some(neighbor)
    }

    /// Takes in that an entry is gone. Says whether that changed anything.
    pub fn forget(&mut self, key: NeighborKey, now: Instant) -> bool {
        let before = self.entries.remove(&key);
        self.hold(key, before, now);
        before.is_some()
    }

    /// Takes in the whole table.
    pub fn replace(&mut self, all: impl IntoIterator<Item = (NeighborKey, Neighbor)>, now: Instant) {
        let all: BTreeMap<_, _> = all.into_iter().collect();
        let gone: Vec<_> = self
            .entries
            .keys()
            .filter(|key| !all.contains_key(key))
            .copied()
            .collect();
        for key in gone {
            self.forget(key, now);
        }
        for (key, neighbor) in all {
            self.observe(key, neighbor, now);
        }
    }

    /// The address to send to, or the state that forbids it.
    ///
    /// # Errors
    /// The state of the entry; [`NeighborState::None`] also where there is none.
    pub fn usable_mac(&self, key: NeighborKey, now: Instant) -> Result<MacAddress, NeighborState> {
        let entry = self.entries.get(&key);
        if let Some(mac) = entry.and_then(Neighbor::usable_mac) {
            return Ok(mac);
        }
        match self.held.get(&key) {
            Some((mac, until)) if now < *until => Ok(*mac),
            _ => Err(entry.map_or(NeighborState::None, |neighbor| neighbor.state)),
        }
    }

    /// Whether the kernel should be asked to verify the entry.
    #[must_use]
    pub fn wants_use(&self, key: NeighborKey) -> bool {
        self.entries.get(&key).is_none_or(Neighbor::wants_use)
    }

    /// When the next held address stops to serve; those of the past are dropped.
    pub fn next_expiry(&mut self, now: Instant) -> Option<Instant> {
        self.held.retain(|_, (_, until)| now < *until);
        self.held.values().map(|(_, until)| *until).min()
    }

    fn hold(&mut self, key: NeighborKey, before: Option<Neighbor>, now: Instant) {
        if let Some(mac) = before.as_ref().and_then(Neighbor::usable_mac) {
            self.held.insert(key, (mac, now + HOLD));
        }
    }
}

/// All neighbours of this namespace.
///
/// # Errors
/// Where the kernel cannot be asked.
pub async fn neighbors(netlink: &Netlink) -> Result<Vec<(NeighborKey, Neighbor)>, NetlinkError> {
    let messages = netlink::collect(
        "list its neighbours",
        netlink.handle().neighbours().get().execute(),
    )
    .await?;
    Ok(messages.iter().filter_map(parse).collect())
}

/// The entry of one neighbour, if there is one.
///
/// # Errors
/// Where the kernel cannot be asked. Needs Linux 5.0.
pub async fn neighbor_state(
    netlink: &Netlink,
    address: IpAddr,
    ifindex: u32,
) -> Result<Option<Neighbor>, NetlinkError> {
    const REQUEST: &str = "show a neighbour";
    let mut message = NeighbourMessage::default();
    message.header.family = match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    message.header.ifindex = ifindex;
    message
        .attributes
        .push(NeighbourAttribute::Destination(address.into()));
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetNeighbour(message));
    request.header.flags = NLM_F_REQUEST;
    let answers = netlink
        .handle()
        .clone()
        .request(request)
        .map_err(|_| NetlinkError::Broken { request: REQUEST })?;
    let answers = futures::StreamExt::map(answers, |answer| match answer.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(message)) => Ok(message),
        NetlinkPayload::Error(error) => Err(rtnetlink::Error::NetlinkError(error)),
        _ => Err(rtnetlink::Error::RequestFailed),
    });
    match netlink::first(REQUEST, answers).await {
        Ok(message) => Ok(parse(&message).map(|(_, neighbor)| neighbor)),
        Err(NetlinkError::Refused {
            errno: libc::ENOENT, ..
        }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Asks the kernel to act as if it had a packet for this neighbour (`NTF_USE`): it resolves one that
/// is unknown or failed, and verifies one that is stale.
///
/// `NTF_EXT_MANAGED` would make the kernel do so for ever, also after the agent's death; we do not
/// want to leave that behind. An entry used this way ages like any other. For IPv6 the kernel solicits
/// from the link-local address of the interface, and does nothing while that is missing or tentative.
///
/// # Errors
/// Where the kernel refuses: no permission, or no such interface.
pub async fn use_neighbor(netlink: &Netlink, (ifindex, address): NeighborKey) -> Result<(), NetlinkError> {
    let request = netlink
        .handle()
        .neighbours()
        .add(ifindex, address)
        .state(NeighbourState::None)
        .flags(NeighbourFlags::Use)
        .replace();
    netlink::within_deadline("resolve a neighbour", request.execute()).await
}

/// Has the kernel ask a neighbour whose address it knows whether it is still there (`NUD_PROBE`): at once, and whatever
/// the entry's age. Until it answers the entry is used as before; without an answer it fails after three seconds.
///
/// # Errors
/// Where the kernel refuses: no permission, or no address is known.
pub async fn verify_neighbor(netlink: &Netlink, (ifindex, address): NeighborKey) -> Result<(), NetlinkError> {
    let request = netlink
        .handle()
        .neighbours()
        .add(ifindex, address)
        .state(NeighbourState::Probe)
        .replace();
    netlink::within_deadline("verify a neighbour", request.execute()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: NeighborKey = (2, IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1)));
    const MAC: MacAddress = [2, 0, 0, 0, 0, 1];

    fn neighbor(state: NeighborState) -> Neighbor {
        let mac = match state {
            NeighborState::None | NeighborState::Incomplete => None,
            _ => Some(MAC),
        };
        Neighbor { state, mac }
    }

    #[test]
    fn states_in_which_the_kernel_sends_are_usable() {
        use NeighborState::{
            Delay, Failed, Incomplete, Noarp, None, Other, Permanent, Probe, Reachable, Stale,
        };
        for state in [Reachable, Stale, Delay, Probe, Noarp, Permanent] {
            assert_eq!(neighbor(state).usable_mac(), Some(MAC), "{state}");
        }
        for state in [None, Incomplete, Failed, Other(0x41)] {
            assert_eq!(neighbor(state).usable_mac(), Option::None, "{state}");
        }
    }

    #[test]
    fn only_entries_that_would_act_are_used() {
        use NeighborState::{Delay, Failed, Incomplete, Noarp, None, Permanent, Probe, Reachable, Stale};
        for state in [None, Failed, Stale] {
            assert!(neighbor(state).wants_use(), "{state}");
        }
        for state in [Incomplete, Reachable, Delay, Probe, Noarp, Permanent] {
            assert!(!neighbor(state).wants_use(), "{state}");
        }
        assert!(NeighborTable::default().wants_use(KEY), "an unknown one is");
    }

    #[test]
    fn an_address_that_went_away_is_held_for_a_while() {
        let now = Instant::now();
        let mut table = NeighborTable::default();
        assert_eq!(table.usable_mac(KEY, now), Err(NeighborState::None));
        assert!(table.observe(KEY, neighbor(NeighborState::Reachable), now));
        assert!(!table.observe(KEY, neighbor(NeighborState::Reachable), now));
        assert!(table.forget(KEY, now));
        assert_eq!(table.usable_mac(KEY, now), Ok(MAC));
        // Being asked for again does not extend it.
        assert!(table.observe(KEY, neighbor(NeighborState::Incomplete), now + HOLD / 2));
        assert_eq!(table.next_expiry(now + HOLD / 2), Some(now + HOLD));
        assert_eq!(table.usable_mac(KEY, now + HOLD / 2), Ok(MAC));
        assert_eq!(table.usable_mac(KEY, now + HOLD), Err(NeighborState::Incomplete));
        assert_eq!(table.next_expiry(now + HOLD), None);
    }

    #[test]
    fn a_failed_neighbour_is_believed_at_once() {
        let now = Instant::now();
        let mut table = NeighborTable::default();
        table.observe(KEY, neighbor(NeighborState::Probe), now);
        table.observe(KEY, neighbor(NeighborState::Failed), now);
        assert_eq!(table.usable_mac(KEY, now), Err(NeighborState::Failed));
        // Trying again does not bring the old address back.
        table.observe(KEY, neighbor(NeighborState::Incomplete), now);
        assert_eq!(table.usable_mac(KEY, now), Err(NeighborState::Incomplete));
        table.forget(KEY, now);
        assert_eq!(table.usable_mac(KEY, now), Err(NeighborState::None));
    }

    #[test]
    fn a_deleted_neighbor_is_held_though_it_is_reported_as_failed() {
        let now = Instant::now();
        for state in [
            NeighborState::Reachable,
            NeighborState::Stale,
            NeighborState::Delay,
        ] {
            let mut table = NeighborTable::default();
            table.observe(KEY, neighbor(state), now);
            table.observe(KEY, neighbor(NeighborState::Failed), now);
            table.forget(KEY, now);
            assert_eq!(table.usable_mac(KEY, now), Ok(MAC), "{state}");
            assert_eq!(table.usable_mac(KEY, now + HOLD), Err(NeighborState::None));
        }
    }

    #[test]
    fn a_held_address_does_not_outlive_a_failure() {
        let now = Instant::now();
        let mut table = NeighborTable::default();
        table.observe(KEY, neighbor(NeighborState::Reachable), now);
        table.forget(KEY, now);
        table.observe(KEY, neighbor(NeighborState::Failed), now);
        assert_eq!(table.usable_mac(KEY, now), Err(NeighborState::Failed));
    }

    #[test]
    fn replacing_forgets_what_is_gone_and_keeps_the_rest() {
        let now = Instant::now();
        let other = (3, KEY.1);
        let mut table = NeighborTable::default();
        table.observe(KEY, neighbor(NeighborState::Reachable), now);
        table.observe(other, neighbor(NeighborState::Stale), now);
        table.replace([(other, neighbor(NeighborState::Delay))], now);
        assert_eq!(table.usable_mac(KEY, now + HOLD), Err(NeighborState::None));
        assert_eq!(table.usable_mac(other, now + HOLD), Ok(MAC));
    }
}
