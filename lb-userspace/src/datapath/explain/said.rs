//! What is said about the packet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_common::cache::Chooser;
use lb_common::layout::{Backend, Decision, ServiceMeta, kind};
use lb_common::nat::{NatEntry, ifindex_of};
use lb_common::quic::ServerKey;
use lb_common::reason::{Reason, Verdict};
use lb_common::rule::{Standing, State};
use serde::Serialize;

use super::{Error, Maps, Place, Query, apply, backend_at, monotonic_ns, name_of, reason_of};
use crate::config::QuicId;
use crate::model::{AdminState, Forward, OperState, Protocol, Tracking};

/// The way of a packet. What there was no need to look at is absent.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    pub packet: PacketSaid,
    /// `tx`, `redirect`, `pass` or `drop`; for a packet that came in by the loopback interface, so that what leaves by
    /// the interface it comes in by is a `redirect` here.
    pub verdict: String,
    pub reason: String,
    pub service: Option<ServiceSaid>,
    pub table: Option<TableSaid>,
    pub slot: Option<SlotSaid>,
    /// Its entry in the flow table; `None` where it has none.
    pub entry: Option<EntrySaid>,
    pub backend: Option<BackendSaid>,
    pub sent: Option<Sent>,
    /// What is to be kept in mind, for people.
    pub notes: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PacketSaid {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub protocol: Protocol,
    pub syn: bool,
    /// Bytes of the IP packet.
    pub length: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceSaid {
    pub name: String,
    pub forward: Option<Forward>,
    pub tracking: Tracking,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TableSaid {
    pub slots: u32,
    pub generation: u64,
    /// It was resized less than a window ago: flows without an entry go by the table before.
    pub resizing: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SlotSaid {
    pub number: u32,
    /// Who takes new flows.
    pub new_flows: Option<SocketAddr>,
    /// Whom flows without an entry belong to.
    pub old_flows: Option<SocketAddr>,
    /// It has moved, or entries that point elsewhere may be left: the flow table is asked.
    pub moving: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EntrySaid {
    pub backend: Option<SocketAddr>,
    /// `unconfirmed`, `established`, `closing` or `contested`.
    pub state: String,
    pub idle_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BackendSaid {
    pub address: SocketAddr,
    pub state: OperState,
    pub admin: AdminState,
    /// What becomes of flows it has: `serves`, `resets` or `gone`.
    pub standing: String,
    /// Longest packet of a client that fits the way to it, in bytes.
    pub packet_mtu: Option<u32>,
}

/// The frame that is sent: to the backend, or a backend's answer to the client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Sent {
    /// `None`: the interface is gone.
    pub interface: Option<String>,
    pub destination_mac: String,
    pub source_mac: String,
    /// Numbers of its VLANs, the outer one first.
    pub vlans: Vec<u16>,
    pub outer: Option<Outer>,
    /// `nat`, `full-nat`: what addresses and ports became.
    pub rewritten: Option<Rewritten>,
    /// Bytes of the frame.
    pub bytes: usize,
}

/// Addresses and ports of a packet that was translated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rewritten {
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

/// The outer header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Outer {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// `dsr-gue`: source port of the UDP header.
    pub source_port: Option<u16>,
}

pub(super) fn explanation(
    live: &Maps,
    query: &Query,
    place: Option<&Place>,
    answered: Option<&NatEntry>,
    decision: Decision,
    out: &[u8],
) -> Result<Explanation, Error> {
    let reason = reason_of(decision)?;
    let answer = matches!(reason, Reason::NatReply | Reason::NatReplyRedirected);
    let forwarded = answer || matches!(reason, Reason::Transmitted | Reason::Redirected);
    let decided = decision.service.checked_sub(1);
    let named = place.filter(|place| decided == Some(place.service));
    let backend = (decision.backend != 0).then_some(decision.backend);
    let mut notes = notes(query, named);
    if let Some(place) = named {
        notes.extend(id_note(live, query, place)?);
    }
    if decided.is_some() && named.is_none() && !answer {
        notes.push("the tables changed while the packet was looked at: ask again".to_owned());
    }
    Ok(Explanation {
        packet: PacketSaid {
            source: query.source,
            destination: SocketAddr::new(query.service.address, query.service.port),
            protocol: query.service.protocol,
            syn: query.syn,
            length: query.length,
        },
        verdict: match reason.verdict() {
            Verdict::Tx => "tx",
            Verdict::Redirect => "redirect",
            Verdict::Pass => "pass",
            Verdict::Drop => "drop",
        }
        .to_owned(),
        reason: reason.name().to_owned(),
        service: decided.map(|index| service(live, index)).transpose()?,
        table: named.map(|place| table(live, place)).transpose()?,
        slot: named.map(|place| slot(live, place)).transpose()?.flatten(),
        entry: named.map(|place| entry(live, place)).transpose()?.flatten(),
        backend: backend.map(|index| said_of(live, index)).transpose()?.flatten(),
        sent: match backend.filter(|_| forwarded) {
            Some(index) => Some(sent(live, index, answered, out)?),
            None => None,
        },
        notes,
    })
}

fn notes(query: &Query, place: Option<&Place>) -> Vec<String> {
    let mut notes = Vec::new();
    let Some(place) = place else { return notes };
    let free = !matches!(place.table.chooser(), Chooser::Flow | Chooser::Source);
    if free && (query.syn || query.service.protocol == Protocol::Udp) {
        notes.push(
            "the scheduler chooses freely: a flow that is not remembered may get another backend".to_owned(),
        );
    }
    if query.service.protocol == Protocol::Tcp && !query.syn && place.entry.is_none() {
        notes
            .push("asked about a segment of a connection that exists; --syn asks about a new one".to_owned());
    }
    notes
}

/// What a connection id of QUIC says.
fn id_note(live: &Maps, query: &Query, place: &Place) -> Result<Option<String>, Error> {
    let Some([first, id @ ..]) = query.quic_dcid.as_deref() else {
        return Ok(None);
    };
    if !place.table.is_quic() {
        return Ok(Some(
            "the service has no `quic`: connection ids count for nothing".to_owned(),
        ));
    }
    let config = first >> 5;
    let length = live.quic.lengths(place.service).of(config);
    let server = id
        .get(..usize::from(length))
        .and_then(|server| QuicId::new(config, server));
    let key = server.map(|id| ServerKey::new(place.service, id.config, id.length, id.server));
    let named = key.and_then(|key| live.quic.servers().get(&key).copied());
    let Some(backend) = named.map(|index| backend_at(live, index)).transpose()?.flatten() else {
        return Ok(Some(
            "the connection id names nobody: addresses and ports count".to_owned(),
        ));
    };
    Ok(Some(format!("the connection id names {}", backend.ip())))
}

fn service(live: &Maps, index: u32) -> Result<ServiceSaid, Error> {
    let meta: ServiceMeta = live.service_meta.get(&index, 0)?;
    Ok(ServiceSaid {
        name: name_of(live, index)?,
        forward: apply::forward_of(&meta),
        tracking: apply::tracking_of(&meta),
    })
}

fn table(live: &Maps, place: &Place) -> Result<TableSaid, Error> {
    let ServiceMeta { generation, .. } = live.service_meta.get(&place.service, 0)?;
    Ok(TableSaid {
        slots: place.table.size(),
        generation,
        resizing: place.table.is_resizing(),
    })
}

fn slot(live: &Maps, place: &Place) -> Result<Option<SlotSaid>, Error> {
    let Some(slot) = place.slot else { return Ok(None) };
    Ok(Some(SlotSaid {
        number: place.number,
        new_flows: backend_at(live, slot.current())?,
        old_flows: backend_at(live, slot.previous())?,
        moving: slot.consult() || place.table.is_resizing(),
    }))
}

fn entry(live: &Maps, place: &Place) -> Result<Option<EntrySaid>, Error> {
    let Some(entry) = place.entry else { return Ok(None) };
    let idle_ns = monotonic_ns().saturating_sub(entry.seen.at_ns());
    Ok(Some(EntrySaid {
        backend: backend_at(live, entry.owner.backend())?,
        state: match entry.seen.state() {
            State::Unconfirmed => "unconfirmed",
            State::Established => "established",
            State::Closing => "closing",
            State::Contested => "contested",
        }
        .to_owned(),
        idle_ms: idle_ns / 1_000_000,
    }))
}

fn said_of(live: &Maps, index: u32) -> Result<Option<BackendSaid>, Error> {
    let Some(address) = backend_at(live, index)? else {
        return Ok(None);
    };
    let meta = live.backend_meta.get(&index, 0)?;
    let record = live.backends.get(index);
    let remembered = apply::remembered(&meta);
    let standing = match Standing::from_bits(record.standing) {
        Standing::Serves => "serves",
        Standing::Resets => "resets",
        Standing::Gone => "gone",
    };
    Ok(Some(BackendSaid {
        address,
        state: remembered.state,
        admin: remembered.admin,
        standing: standing.to_owned(),
        packet_mtu: forward_of(&record)
            .map(|forward| u32::from(record.mtu).saturating_sub(forward.overhead(address.ip()))),
    }))
}

/// How a record has packets sent.
fn forward_of(record: &Backend) -> Option<Forward> {
    match record.kind {
        kind::L2 => Some(Forward::DsrL2),
        kind::IPV4 | kind::IPV6 => Some(Forward::DsrIpip),
        kind::GUE_V4 | kind::GUE_V6 => Some(Forward::DsrGue),
        kind::NAT => Some(Forward::Nat),
        kind::FULL_NAT => Some(Forward::FullNat),
        _ => None,
    }
}

/// `answered`: the entry of a backend's answer, which says where it goes.
fn sent(live: &Maps, index: u32, answered: Option<&NatEntry>, out: &[u8]) -> Result<Sent, Error> {
    let record = live.backends.get(index);
    let (ifindex, tags) = match answered {
        Some(entry) => (ifindex_of(entry.way), entry.tags),
        None => (record.ifindex, live.tags.get(&index, 0)?),
    };
    let mac = |bytes: &[u8]| {
        let bytes: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        bytes.join(":")
    };
    let packet = out.get(14 + tags.bytes()..).unwrap_or_default();
    let translated = forward_of(&record).is_some_and(Forward::translates);
    Ok(Sent {
        interface: nix::net::if_::if_indextoname(ifindex)
            .ok()
            .and_then(|name| name.into_string().ok()),
        destination_mac: mac(out.get(..6).unwrap_or_default()),
        source_mac: mac(out.get(6..12).unwrap_or_default()),
        vlans: tags.vlans().into_iter().flatten().collect(),
        outer: outer(&record, packet),
        rewritten: translated.then(|| sockets(packet)).flatten(),
        bytes: out.len(),
    })
}

/// Source and destination of an IP packet without options, and where what it carries begins.
fn addresses(packet: &[u8]) -> Option<(IpAddr, IpAddr, usize)> {
    let v4 = |at: usize| Some(Ipv4Addr::from(*packet.get(at..)?.first_chunk::<4>()?).into());
    let v6 = |at: usize| Some(Ipv6Addr::from(*packet.get(at..)?.first_chunk::<16>()?).into());
    Some(if packet.first()? >> 4 == 4 {
        (v4(12)?, v4(16)?, 20)
    } else {
        (v6(8)?, v6(24)?, 40)
    })
}

/// The same with the ports of what it carries.
fn sockets(packet: &[u8]) -> Option<Rewritten> {
    let (source, destination, behind) = addresses(packet)?;
    let [a, b, c, d] = *packet.get(behind..)?.first_chunk::<4>()?;
    Some(Rewritten {
        source: SocketAddr::new(source, u16::from_be_bytes([a, b])),
        destination: SocketAddr::new(destination, u16::from_be_bytes([c, d])),
    })
}

/// The outer header of an IP packet that was encapsulated.
fn outer(record: &Backend, packet: &[u8]) -> Option<Outer> {
    let forward = forward_of(record).filter(|forward| forward.encapsulates())?;
    let (source, destination, udp) = addresses(packet)?;
    let port = packet.get(udp..)?.first_chunk::<2>()?;
    Some(Outer {
        source,
        destination,
        source_port: (forward == Forward::DsrGue).then(|| u16::from_be_bytes(*port)),
    })
}
