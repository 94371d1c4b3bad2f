//! `xlb explain`: the way of one packet through the program, over the tables in force, without changing any.
//!
//! The program is loaded once more, beside the one that is attached. It shares the pinned maps that packets only read:
//! services, tables, backends. Of the maps that packets write (the flow table, allowances, the cache of flows, counters)
//! it has its own, into which what concerns the packet is copied first. So it decides as the attached one would, and
//! leaves no trace. Where a flow has no entry and its scheduler chooses freely (`rr`, `random`, `lc`, ...), the next
//! packet may be given another backend than this one.

mod frame;
mod said;

pub use frame::Query;
pub use said::{
    BackendSaid, EntrySaid, Explanation, Outer, PacketSaid, Rewritten, Sent, ServiceSaid, SlotSaid, TableSaid,
};

use std::net::SocketAddr;
use std::path::Path;

use aya::Ebpf;
use aya::maps::Map;
use lb_common::cache::Chooser;
use lb_common::hash::{self, HashKey};
use lb_common::layout::{Decision, FlowEntry, FlowKey, Slot, TableWord, kind};
use lb_common::nat::{NatEntry, NatKey, REPLY};
use lb_common::reason::Reason;

use super::clock::monotonic_ns;
use super::load::{self, Features, Sizes};
use super::maps::{self, Maps};
use super::mmap::Words;
use super::pins::{self, PinDir, Pinned};
use super::{Error, apply, attach, check_system, has_frags, identity, testrun};

const PROGRAM: &str = "lb";

/// The pinned maps that packets read and never write.
const SHARED: [Pinned; 14] = [
    pins::SERVICES,
    pins::BUCKETS,
    pins::RANGES,
    pins::RECORDS,
    pins::SLABS,
    pins::BACKENDS,
    pins::TAGS,
    pins::SNAT_POOLS,
    pins::QUIC_SERVERS,
    pins::QUIC_LENGTHS,
    pins::GUARDS,
    pins::LISTS,
    pins::EGRESS,
    pins::INTERFACES,
];

/// Entries of the flow table of its own: one is needed.
const FLOWS: u32 = 1024;

/// What the first word of the decision holds before the packet.
const UNDECIDED: u64 = u64::MAX;

/// Runs one packet through the program over the pinned maps of an agent, which need not run.
///
/// # Errors
/// [`Error::NothingPinned`], [`Error::LayoutMismatch`], and what loading and running may fail with.
pub fn explain(pin_dir: &Path, query: &Query) -> Result<Explanation, Error> {
    check_system()?;
    let pins = PinDir::open(pin_dir)?;
    let live = Maps::open(&pins)?;
    let key = maps::pinned_hash_key(&pins)?.ok_or(Error::MissingMap("hash_key"))?;
    let sizes = Sizes {
        services: live.records.room(),
        backends: live.backends.room().saturating_sub(1),
        flows: FLOWS,
        cached_flows: FLOWS,
        clients: FLOWS,
        nat_flows: FLOWS,
    };
    let translated = translated(&live, query)?;
    let mut features = features(&live)?;
    features.vlans |= translated.is_some_and(|(_, entry)| !entry.tags.is_none());
    let mut ebpf = load::load_beside(features, &key, sizes, &pins, &SHARED)?;
    attach::verify(&mut ebpf, PROGRAM)?;
    let mut own = Maps::of(&mut ebpf, sizes, None)?;
    let place = Place::of(&live, &key, query)?;
    copy(&live, &mut own, place.as_ref())?;
    if let Some((key, entry)) = translated {
        copy_translated(&live, &mut own, &key, entry)?;
    }
    let (decision, out) = run(
        &mut ebpf,
        &frame::build(query, place.as_ref().and_then(|place| place.entry)),
    )?;
    let answered = translated
        .map(|(_, entry)| entry)
        .filter(|entry| entry.direction == REPLY);
    said::explanation(&live, query, place.as_ref(), answered.as_ref(), decision, &out)
}

/// Where the flow stands, as the host reckons it.
struct Place {
    service: u32,
    table: TableWord,
    number: u32,
    slot: Option<Slot>,
    key: FlowKey,
    entry: Option<FlowEntry>,
}

impl Place {
    fn of(live: &Maps, key: &HashKey, query: &Query) -> Result<Option<Self>, Error> {
        let Some(service) = service_index(live, query)? else {
            return Ok(None);
        };
        let (source, _) = identity::words(query.source.ip());
        let ports = query.ports();
        let le = source.map(u32::from_le);
        let (flow_hash, source_hash) = if query.source.is_ipv4() {
            let of = |ports| hash::flow_v4(key, le[3], ports);
            (of(u32::from_le(ports)), of(0))
        } else {
            let of = |ports| hash::flow_v6(key, le, ports);
            (of(u32::from_le(ports)), of(0))
        };
        let table = live.records.table(service);
        let slot_hash = match table.chooser() {
            Chooser::Source => source_hash,
            _ => flow_hash,
        };
        let number = if table.size() == 0 {
            0
        } else {
            hash::slot(slot_hash, table.size())
        };
        let key = FlowKey {
            source,
            ports,
            service,
        };
        Ok(Some(Self {
            service,
            table,
            number,
            slot: live.slots(table).get(number as usize).copied(),
            key,
            entry: live.flows.get(&key)?,
        }))
    }
}

/// The service that takes the packet: that of its port, else that of a range with it, else that of every port.
fn service_index(live: &Maps, query: &Query) -> Result<Option<u32>, Error> {
    let mut wide = None;
    for index in 0..live.service_meta.len().min(live.records.room()) {
        let meta = live.service_meta.get(&index, 0)?;
        let Some(key) = identity::service_of(&meta.key).filter(|_| meta.in_use != 0) else {
            continue;
        };
        if key.address == query.service.address && key.protocol == query.service.protocol {
            if key.port == query.service.port {
                return Ok(Some(index));
            }
            if key.port == 0 {
                wide = Some(index);
            }
        }
    }
    let key = identity::service_key(&query.service);
    Ok(live.ranges.find(&key).or(wide))
}

/// What the program must be able to do for the services there are.
fn features(live: &Maps) -> Result<Features, Error> {
    let mut features = Features {
        explain: true,
        resets: true,
        icmp_echo: true,
        fragment_by: [0; 2],
        ranged: !live.ranges.is_empty(),
        guards: true,
        frags: has_frags(),
        ..Features::default()
    };
    for index in 0..live.service_meta.len().min(live.records.room()) {
        let meta = live.service_meta.get(&index, 0)?;
        if meta.in_use != 0 {
            let table = live.records.table(index);
            features.wildcard |= meta.key.port == 0;
            features.persistent |= live.clients.settings(index).timeout_ns != 0;
            features.nat |= table.is_nat();
            features.quic |= table.is_quic();
            features.choosers |= table.is_full() || table.chooser() != Chooser::Flow;
        }
    }
    for index in 1..live.backends.room() {
        let record = live.backends.get(index);
        features.gue |= matches!(record.kind, kind::GUE_V4 | kind::GUE_V6);
        features.spread |= record.outer_mask() != 0;
        features.vlans |= !live.tags.get(&index, 0)?.is_none();
    }
    Ok(features)
}

/// Puts into the maps of its own what the program would find of this flow.
fn copy(live: &Maps, own: &mut Maps, place: Option<&Place>) -> Result<(), Error> {
    let Some(place) = place else { return Ok(()) };
    if let Some(entry) = place.entry {
        own.flows.set(&place.key, entry)?;
    }
    own.flow_control
        .set(place.service, live.flow_control.get(place.service));
    own.flow_cache.copy_from(&live.flow_cache);
    own.clients.copy_from(&live.clients);
    Ok(())
}

/// The entry of the packet, where its flow is one that is translated.
fn translated(live: &Maps, query: &Query) -> Result<Option<(NatKey, NatEntry)>, Error> {
    let (source, family) = identity::words(query.source.ip());
    let (destination, _) = identity::words(query.service.address);
    let key = NatKey {
        source,
        destination,
        ports: query.ports(),
        kind: NatKey::kind(family, query.service.protocol.number()),
    };
    Ok(live.nat.flows.get(&key)?.map(|entry| (key, entry)))
}

/// Copies it, and that of the other direction.
fn copy_translated(live: &Maps, own: &mut Maps, key: &NatKey, entry: NatEntry) -> Result<(), Error> {
    own.nat.flows.set(key, entry)?;
    let peer = entry.peer(key.kind);
    if let Some(other) = live.nat.flows.get(&peer)? {
        own.nat.flows.set(&peer, other)?;
    }
    Ok(())
}

/// The decision about a frame, and the frame as it left.
fn run(ebpf: &mut Ebpf, frame: &[u8]) -> Result<(Decision, Vec<u8>), Error> {
    let map = ebpf.take_map("DECISION").ok_or(Error::MissingMap("DECISION"))?;
    let Map::Array(data) = &map else {
        return Err(Error::MissingMap("DECISION"));
    };
    let words =
        Words::map(data.fd(), size_of::<Decision>() / size_of::<u64>()).map_err(|source| Error::Syscall {
            call: "mmap of the decision",
            source,
        })?;
    words.set(0, UNDECIDED);
    let program = ebpf.program(PROGRAM).ok_or(Error::MissingMap(PROGRAM))?;
    let done = testrun::run(program.try_into()?, frame).map_err(|error| Error::Syscall {
        call: "running the program on the packet",
        source: std::io::Error::other(error.to_string()),
    })?;
    let first = words.get(0);
    let decision = Decision {
        reason: first as u32,
        service: (first >> 32) as u32,
        backend: words.get(1) as u32,
        reserved: 0,
    };
    Ok((decision, done.packet))
}

/// The reason that the program wrote down.
fn reason_of(decision: Decision) -> Result<Reason, Error> {
    Reason::from_index(decision.reason).ok_or(Error::Syscall {
        call: "reading the decision",
        source: std::io::ErrorKind::InvalidData.into(),
    })
}

/// Address and port of a backend by its index.
fn backend_at(live: &Maps, index: u32) -> Result<Option<SocketAddr>, Error> {
    if index == 0 || index >= live.backend_meta.len() {
        return Ok(None);
    }
    let meta = live.backend_meta.get(&index, 0)?;
    let address = identity::address(meta.address, meta.family);
    Ok(address.map(|address| SocketAddr::new(address, u16::from_be(meta.port))))
}

/// The name of a service by its index.
fn name_of(live: &Maps, service: u32) -> Result<String, Error> {
    Ok(apply::name_of(&live.service_meta.get(&service, 0)?))
}
