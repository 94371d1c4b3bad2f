//! What the pinned maps say when no agent runs: forwarding goes on with the states that the last one left.
//!
//! Nothing here writes: the tables belong to the next agent.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use lb_common::layout::{AgentMeta, Backend, BackendMeta, Counters, ServiceMeta, kind};
use lb_common::reason::Reason;

use super::types::{
    AgentStatus, BackendStats, BackendStatus, CheckStatus, DriverStats, InterfaceStatus, LostStats,
    MemoryStatus, QuicStats, ReasonStats, RefusedStats, ServiceStats, ServiceStatus, Stats, Status,
};
use crate::config::Role;
use crate::datapath::apply::{self, Remembered};
use crate::datapath::maps::{Maps, add};
use crate::datapath::pins::PinDir;
use crate::datapath::{self, attach, identity, losses, memory};
use crate::model::{AdminState, CheckCode, Forward, OperState, Scheduler, Tracking};
use crate::net::netlink::Netlink;
use crate::net::{driver_counts, ethtool, link};

/// Why the pins say nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("nothing is attached: there is nothing pinned in {}", path.display())]
    NothingPinned { path: PathBuf },
    #[error("no permission to look into {}; what is attached only root sees", path.display())]
    NoPermission { path: PathBuf },
    #[error(
        "an agent holds {}, but listens at another socket: name its api_socket with --socket",
        path.display()
    )]
    Held { path: PathBuf },
    #[error(transparent)]
    Datapath(#[from] datapath::Error),
}

impl From<aya::maps::MapError> for Error {
    fn from(error: aya::maps::MapError) -> Self {
        Self::Datapath(error.into())
    }
}

/// `Status` as the pinned maps have it, with `agent.running` false.
///
/// # Errors
/// [`Error`].
pub async fn status(pin_dir: &Path) -> Result<Status, Error> {
    let (pins, maps) = open(pin_dir)?;
    let agent = agent_status(&maps.agent_meta.get(&0, 0)?);
    let interfaces = interfaces(&pins).await?;
    let services = services(&maps)?.iter().map(service_status).collect();
    Ok(Status {
        agent,
        interfaces,
        services,
        migrations: Vec::new(),
        flow_table: None,
        flow_cache: None,
        nat: None,
        memory: memory::of_maps(pin_dir).ok().map(|maps_bytes| MemoryStatus {
            agent_bytes: 0,
            maps_bytes,
        }),
    })
}

/// `Stats` as the pinned maps have it, and the agent that made them.
///
/// # Errors
/// [`Error`].
pub async fn stats(pin_dir: &Path) -> Result<(AgentStatus, Stats), Error> {
    let (pins, maps) = open(pin_dir)?;
    // Interfaces of another network namespace are others, whatever their names.
    let here = interfaces(&pins).await?.into_iter();
    let here: Vec<String> = here.filter(|i| i.mtu.is_some()).map(|i| i.name).collect();
    let senders = match here.is_empty() {
        true => Vec::new(),
        false => senders(here, maps.egress.keys().filter_map(Result::ok)),
    };
    let services = services(&maps)?;
    let sent = services
        .iter()
        .fold(Counters::default(), |sum, service| add(&sum, &service.total()));
    let at = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let stats = Stats {
        at_ms: u64::try_from(at.as_millis()).unwrap_or(u64::MAX),
        services: services.iter().map(service_stats).collect(),
        reasons: reason_stats(maps.reason_counts()?, &sent),
        drivers: driver_stats(&senders, pin_dir),
    };
    Ok((agent_status(&maps.agent_meta.get(&0, 0)?), stats))
}

/// The addresses of all services.
///
/// # Errors
/// [`Error::Datapath`].
pub fn addresses(pins: &PinDir) -> Result<BTreeSet<IpAddr>, Error> {
    let services = services(&Maps::open(pins)?)?;
    Ok(services.iter().map(|service| service.key.address).collect())
}

/// The counts by reason. The program does not count forwarded packets by reason; they are in `sent`, the sum of
/// what all services ever sent.
#[must_use]
pub fn reason_stats(counts: Vec<(Reason, u64)>, sent: &Counters) -> Vec<ReasonStats> {
    counts
        .into_iter()
        .map(|(reason, packets)| ReasonStats {
            reason: reason.name().into(),
            verdict: reason.verdict().name().into(),
            packets: match reason {
                Reason::Transmitted => sent.packets.saturating_sub(sent.redirected),
                Reason::Redirected => sent.redirected,
                _ => packets,
            },
            meaning: reason.meaning().into(),
        })
        .collect()
}

/// The names of all interfaces that packets leave by: those `attached`, and those by their indices.
#[must_use]
pub fn senders(attached: Vec<String>, egress: impl Iterator<Item = u32>) -> Vec<String> {
    let named = egress.filter_map(|ifindex| nix::net::if_::if_indextoname(ifindex).ok());
    let all = attached
        .into_iter()
        .chain(named.filter_map(|name| name.into_string().ok()));
    all.collect::<BTreeSet<_>>().into_iter().collect()
}

/// What was lost after the verdict on these interfaces: as their drivers say at this moment, and as the tracepoints counted.
/// Asks the kernel, which may take a while.
#[must_use]
pub fn driver_stats(interfaces: &[String], pin_dir: &Path) -> Vec<DriverStats> {
    let of = |interface: &String| DriverStats {
        interface: interface.clone(),
        // Gone meanwhile, or without statistics: it counts nothing.
        lost: driver_counts::lost(interface)
            .unwrap_or_default()
            .into_iter()
            .chain(losses::lost(pin_dir, interface).unwrap_or_default())
            .map(|(counter, packets)| LostStats { counter, packets })
            .collect(),
    };
    interfaces.iter().map(of).collect()
}

/// Opens the pins for reading, unless an agent works with them.
fn open(pin_dir: &Path) -> Result<(PinDir, Maps), Error> {
    let path = || pin_dir.to_path_buf();
    let pins = match PinDir::open(pin_dir) {
        Ok(pins) => pins,
        Err(_) if forbidden(pin_dir) => return Err(Error::NoPermission { path: path() }),
        Err(datapath::Error::NothingPinned { .. }) => return Err(Error::NothingPinned { path: path() }),
        Err(error) => return Err(error.into()),
    };
    let held = fs::metadata(pin_dir)
        .and_then(|folder| Ok(is_locked(&fs::read_to_string("/proc/locks")?, &folder)))
        .unwrap_or(false);
    if held {
        return Err(Error::Held { path: path() });
    }
    let maps = Maps::open(&pins)?;
    Ok((pins, maps))
}

fn forbidden(pin_dir: &Path) -> bool {
    fs::read_dir(pin_dir).is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

/// Whether `/proc/locks` has an flock(2) of a file. Asking for the lock instead would make an agent that starts
/// at this moment believe in another one.
fn is_locked(locks: &str, file: &fs::Metadata) -> bool {
    let device = file.dev();
    let place = format!(
        "{:02x}:{:02x}:{}",
        libc::major(device),
        libc::minor(device),
        file.ino()
    );
    // `1: FLOCK  ADVISORY  WRITE 4711 00:2a:5 0 EOF`
    locks.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace();
        fields.nth(1) == Some("FLOCK") && fields.nth(3) == Some(place.as_str())
    })
}

/// The interfaces whose link is pinned.
async fn interfaces(pins: &PinDir) -> Result<Vec<InterfaceStatus>, Error> {
    // Without netlink mode and MTU are not known; everything else is.
    let netlink = Netlink::open().ok();
    let mut interfaces = Vec::new();
    for name in pins.links()? {
        let own = attach::own_link(pins, &name)?;
        let link = match &netlink {
            Some(netlink) => link::link_by_name(netlink, &name).await.ok().flatten(),
            None => None,
        };
        // Another interface has the name where ours was renamed or is in another network namespace.
        let link = link.filter(|link| {
            own.is_some_and(|own| link.xdp.is_some_and(|xdp| xdp.program_id == own.program_id))
        });
        interfaces.push(InterfaceStatus {
            mode: match (link.as_ref().and_then(|link| link.xdp), own) {
                (Some(xdp), Some(_)) => xdp.mode.to_string(),
                (None, Some(own)) if own.ifindex != 0 => "unknown".to_owned(),
                _ => "detached".to_owned(),
            },
            driver: link
                .as_ref()
                .and_then(|link| ethtool::driver(&link.name).ok())
                .map(|info| info.driver),
            program_id: own.map(|own| own.program_id),
            mtu: link.map(|link| link.mtu),
            name,
        });
    }
    Ok(interfaces)
}

fn agent_status(meta: &AgentMeta) -> AgentStatus {
    let length = meta
        .version
        .iter()
        .position(|b| *b == 0)
        .unwrap_or(meta.version.len());
    // A torn or foreign value must not be an overflow.
    let alive = SystemTime::UNIX_EPOCH
        .checked_add(Duration::from_secs(meta.alive_s.min(u64::from(u32::MAX))))
        .unwrap_or(SystemTime::UNIX_EPOCH);
    AgentStatus {
        running: false,
        version: String::from_utf8_lossy(&meta.version[..length]).into_owned(),
        since: humantime::format_rfc3339_seconds(alive).to_string(),
        pid: meta.pid,
        detached: false,
        confirm_within_s: None,
        isolated_since: None,
        config: String::new(),
        warnings: Vec::new(),
    }
}

/// A service as read from the maps.
struct Service {
    meta: ServiceMeta,
    key: crate::model::ServiceKey,
    last_port: Option<u16>,
    table_size: u32,
    refused: RefusedStats,
    quic: Option<QuicStats>,
    backends: Vec<Member>,
}

/// A backend as read from the maps.
struct Member {
    place: SocketAddr,
    meta: BackendMeta,
    record: Backend,
    counted: Counters,
    /// Slots it owns.
    slots: usize,
}

impl Service {
    /// Everything the service sent, also to backends that it has no longer.
    fn total(&self) -> Counters {
        self.backends
            .iter()
            .fold(self.meta.retired, |sum, backend| add(&sum, &backend.counted))
    }
}

/// The services in the order of their names, their backends in that of their addresses.
fn services(maps: &Maps) -> Result<Vec<Service>, Error> {
    let mut services: BTreeMap<u32, Service> = BTreeMap::new();
    let mut slots: BTreeMap<u32, usize> = BTreeMap::new();
    let last_ports = maps.ranges.last_ports();
    for index in 0..maps.service_meta.len().min(maps.records.room()) {
        let meta = maps.service_meta.get(&index, 0)?;
        let Some(key) = identity::service_of(&meta.key).filter(|_| meta.in_use != 0) else {
            continue;
        };
        let table = maps.records.table(index);
        for owner in maps.owners(table) {
            *slots.entry(owner).or_default() += 1;
        }
        services.insert(
            index,
            Service {
                meta,
                key,
                last_port: last_ports.get(&index).copied(),
                table_size: table.size(),
                refused: RefusedStats::new(&maps.guards.counters(index)?, maps.guards.asks(index)),
                quic: maps.quic_counters(index)?.map(QuicStats::from),
                backends: Vec::new(),
            },
        );
    }
    for index in 1..maps.backend_meta.len().min(maps.backends.room()) {
        let meta = maps.backend_meta.get(&index, 0)?;
        let address = identity::address(meta.address, meta.family).filter(|_| meta.in_use != 0);
        let (Some(address), Some(service)) = (address, services.get_mut(&meta.service)) else {
            continue;
        };
        service.backends.push(Member {
            place: SocketAddr::new(address, u16::from_be(meta.port)),
            meta,
            record: maps.backends.get(index),
            counted: maps.backend_counters(index)?,
            slots: slots.get(&index).copied().unwrap_or(0),
        });
    }
    let mut services: Vec<_> = services.into_values().collect();
    services.sort_by_cached_key(|service| (apply::name_of(&service.meta), service.key));
    for service in &mut services {
        service.backends.sort_by_key(|backend| backend.place);
    }
    Ok(services)
}

fn service_status(service: &Service) -> ServiceStatus {
    let Counters {
        packets,
        bytes,
        new_flows,
        redirected: _,
    } = service.total();
    let backends: Vec<_> = service
        .backends
        .iter()
        .map(|backend| backend_status(backend, service.table_size))
        .collect();
    ServiceStatus {
        name: apply::name_of(&service.meta),
        address: service.key.address,
        port: service.key.port,
        last_port: service.last_port,
        protocol: service.key.protocol,
        forward: apply::forward_of(&service.meta).unwrap_or(Forward::DsrL2),
        scheduler: Scheduler::Maglev,
        tracking: match apply::forward_of(&service.meta) {
            // Not by its lookup table: every flow has its entries.
            Some(forward) if forward.translates() => Tracking::Full,
            _ => apply::tracking_of(&service.meta),
        }
        .to_string(),
        idle_timeout_ms: None,
        persistence: None,
        table_size: service.table_size,
        generation: service.meta.generation,
        all_down: !backends.iter().any(|backend| backend.serving),
        pool: None,
        selection: None,
        backups_in_use: false,
        packets,
        bytes,
        new_flows,
        backends,
    }
}

fn backend_status(backend: &Member, table_size: u32) -> BackendStatus {
    let Member {
        place,
        meta,
        record,
        counted,
        slots,
    } = backend;
    let Remembered {
        state,
        admin,
        runtime_weight,
        ever_up: _,
    } = apply::remembered(meta);
    let effective_weight = runtime_weight.unwrap_or(meta.weight);
    let resolved = record.kind != kind::UNRESOLVED;
    BackendStatus {
        address: place.ip(),
        port: place.port(),
        weight: meta.weight,
        effective_weight,
        // The maps do not say these.
        role: Role::Primary,
        slow_start_percent: None,
        held_until: None,
        old_flows: None,
        host_answers: None,
        state,
        admin,
        serving: state == OperState::Up && admin == AdminState::Ready && effective_weight > 0 && resolved,
        doubted: false,
        unresolved: (!resolved).then(|| "its next hop was not known when the agent stopped".into()),
        check: check_status(meta),
        agent_check: None,
        share_percent: match table_size {
            0 => 0.0,
            size => 100.0 * *slots as f64 / f64::from(size),
        },
        packets: counted.packets,
        bytes: counted.bytes,
        remembered_flows: None,
        unseen_flows_until: None,
        new_flows: counted.new_flows,
        packet_mtu: packet_mtu(record, place),
        path_mtu_until: None,
        changed: None,
    }
}

fn check_status(meta: &BackendMeta) -> CheckStatus {
    let code = CheckCode::from_index(meta.check_code).unwrap_or_default();
    CheckStatus {
        code,
        latency_ms: (!matches!(code, CheckCode::Unk | CheckCode::Ini))
            .then(|| f64::from(meta.latency_us) / 1000.0),
        detail: String::new(),
    }
}

/// The longest packet of a client that fits the way to the backend, in bytes.
fn packet_mtu(backend: &Backend, place: &SocketAddr) -> Option<u32> {
    let forward = match backend.kind {
        kind::L2 => Forward::DsrL2,
        kind::IPV4 | kind::IPV6 => Forward::DsrIpip,
        kind::GUE_V4 | kind::GUE_V6 => Forward::DsrGue,
        _ => return None,
    };
    Some(u32::from(backend.mtu).saturating_sub(forward.overhead(place.ip())))
}

fn service_stats(service: &Service) -> ServiceStats {
    let backends = service.backends.iter().map(|backend| {
        let Member { place, counted, .. } = backend;
        BackendStats::new(place.ip(), place.port(), counted)
    });
    let name = apply::name_of(&service.meta);
    ServiceStats::new(
        name,
        service.key,
        service.last_port,
        &service.total(),
        service.refused,
        backends.collect(),
    )
    .with_quic(service.quic)
}

#[cfg(test)]
mod tests;
