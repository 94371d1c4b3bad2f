//! What a valid configuration says.

mod access;
mod check;
mod limits;
mod quic;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use lb_common::cache::Chooser;
use lb_common::client::Persistence;
use lb_common::layout::Tags;

use crate::control::flap::FlapRules;
use crate::model::{BackendId, Forward, Protocol, Scheduler, ServiceKey, Tracking};

pub use super::snat::Snat;
pub use access::{Access, AccessList, describe_change as describe_access_change};
pub use check::{
    AgentCheck, Check, CheckKind, DnsCheck, ExecCheck, GrpcCheck, Header, HttpCheck, HttpMethod, Pattern,
    Probe, QueryType, Rcode, Require, StatusRange, StatusSet, TlsCheck, UdpCheck, Via,
};
pub use limits::Limits;
pub use quic::QuicId;

/// A whole configuration; only [`Config::parse`] and its relatives make sure that it is valid.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub agent: Agent,
    /// In the order of the file.
    pub services: Vec<Service>,
}

/// The agent of one machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Agent {
    /// The interfaces to attach to: at least one, none twice.
    pub interfaces: Vec<String>,
    pub xdp_mode: XdpMode,
    pub announce: Announce,
    pub on_stop: OnStop,
    /// Who is asked, besides the backends, whether we are still connected.
    pub witness: Witness,
    /// Echo requests to service addresses are answered.
    pub icmp_echo: bool,
    /// Frames with VLAN tags are looked into.
    pub vlans: bool,
    /// The interface that the kernel cuts IPv4 in pieces for.
    pub fragment_by: Option<String>,
    pub api_socket: PathBuf,
    pub state_dir: PathBuf,
    pub pin_dir: PathBuf,
    /// `None`: the agent makes one and keeps it.
    pub hash_key: Option<HashKey>,
    pub max_services: u32,
    /// Over all services.
    pub max_backends: u32,
    /// Where metrics are served.
    pub metrics: Option<SocketAddr>,
    /// Programs that are told of changes of state, none twice.
    pub notify: Vec<PathBuf>,
    /// Entries of the flow table, over all services.
    pub flow_table_size: u32,
    /// Flows that services with `tracking = "full"` remember, all together.
    pub flow_cache_size: u32,
    /// Clients that services with a `persistence_timeout` remember, all together.
    pub client_table_size: u32,
    /// Entries of the flow table that packets of each service may make in a second.
    pub entry_rates: EntryRates,
    /// What `full-nat` rewrites sources to.
    pub snat: Snat,
    /// Flows of `nat` and `full-nat`.
    pub nat_table_size: u32,
}

/// Entries of the flow table that packets of a service may make in a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryRates {
    pub by_syn: u32,
    /// By TCP segments that are no SYNs.
    pub by_data: u32,
    pub by_udp: u32,
}

/// How XDP is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// Native where the driver can, else generic.
    Auto,
    Native,
    Generic,
}

/// Whether the agent makes the service addresses known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Announce {
    None,
    /// ARP and neighbour solicitations are answered, gratuitous ones sent.
    L2,
}

/// Who is asked, besides the backends, whether we are still connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Witness {
    /// The router of the default route.
    Gateway,
    None,
    /// By ARP, neighbour solicitation or ICMP echo.
    Host(IpAddr),
    /// By TCP.
    Port(SocketAddr),
}

/// What a stop of the agent does to forwarding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnStop {
    Keep,
    Detach,
}

/// The secret key of the flow hash. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct HashKey(pub [u8; Self::BYTES]);

impl HashKey {
    pub const BYTES: usize = 64;
}

impl fmt::Debug for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashKey(secret)")
    }
}

/// A service and its backends.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Unique among the services.
    pub name: String,
    /// Unique among the services.
    pub key: ServiceKey,
    /// It takes the ports from that of its key to this one; `None`: that one, or every port.
    pub last_port: Option<u16>,
    pub forward: Forward,
    /// Prefixes that outer headers come from, at most one of each family; where there is none, from this machine's
    /// own address.
    pub outer_sources: Vec<IpNet>,
    /// Its datagrams are QUIC.
    pub quic: bool,
    pub scheduler: Scheduler,
    /// One of [`SIZES`](crate::maglev::SIZES); `None`: chosen when the service is first seen.
    pub table_size: Option<u32>,
    pub rules: PoolRules,
    /// Which clients it takes packets from; `None`: all.
    pub access: Option<AccessList>,
    /// How much it takes.
    pub limits: Option<Limits>,
    /// The name of the pool that its backends are from, where services share it.
    pub pool: Option<String>,
    /// At least one that is no sorry backend, none twice, in the order of the file.
    pub backends: Vec<Backend>,
}

/// How the backends of a service are dealt with as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolRules {
    /// Which flows are remembered.
    pub tracking: Tracking,
    /// How long a flow may be idle.
    pub tcp_idle_timeout: Duration,
    pub udp_idle_timeout: Duration,
    /// What becomes of the flows of a backend that goes DOWN.
    pub on_down: OnDown,
    /// Who takes new flows when no backend serves.
    pub on_all_down: OnAllDown,
    /// Backups are used while fewer primaries serve; from 1.
    pub quorum: u32,
    /// So many more than the quorum must serve until backups are left again.
    pub quorum_hysteresis: u32,
    pub backup_mode: BackupMode,
    /// At most 100; 0: no panic.
    pub panic_threshold_percent: u8,
    /// At most 100, which is no limit.
    pub max_ejection_percent: u8,
    /// Over this time a backend that comes UP takes its weight.
    pub slow_start: Option<Duration>,
    /// When a backend that goes DOWN again and again is held there.
    pub flaps: FlapRules,
    /// How long a client is led where it was before; `None`: not at all.
    pub persistence_timeout: Option<Duration>,
    /// So many bits of its address make a client.
    pub persistence_prefix_v4: u8,
    pub persistence_prefix_v6: u8,
}

impl PoolRules {
    /// How long a flow of this protocol may be idle.
    #[must_use]
    pub fn idle_timeout(&self, protocol: Protocol) -> Duration {
        match protocol {
            Protocol::Tcp => self.tcp_idle_timeout,
            Protocol::Udp => self.udp_idle_timeout,
        }
    }
}

impl Default for PoolRules {
    fn default() -> Self {
        Self {
            tracking: Tracking::Moved,
            tcp_idle_timeout: Duration::from_secs(15 * 60),
            udp_idle_timeout: Duration::from_secs(60),
            on_down: OnDown::Auto,
            on_all_down: OnAllDown::Last,
            quorum: 1,
            quorum_hysteresis: 0,
            backup_mode: BackupMode::All,
            panic_threshold_percent: 0,
            max_ejection_percent: 100,
            slow_start: None,
            flaps: FlapRules::default(),
            persistence_timeout: None,
            persistence_prefix_v4: 32,
            persistence_prefix_v6: 128,
        }
    }
}

impl Service {
    /// The first and the last port that it takes.
    #[must_use]
    pub fn ports(&self) -> (u16, u16) {
        match (self.key.port, self.last_port) {
            (0, _) => (0, u16::MAX),
            (first, last) => (first, last.unwrap_or(first)),
        }
    }

    /// Where outer headers come from that would come from `own`.
    #[must_use]
    pub fn outer_source(&self, own: IpAddr) -> IpNet {
        let mut prefixes = self.outer_sources.iter().copied();
        prefixes
            .find(|prefix| prefix.addr().is_ipv4() == own.is_ipv4())
            .unwrap_or_else(|| own.into())
    }
}

impl Config {
    /// Whether the program has to answer for dead backends.
    #[must_use]
    pub fn answers_with_resets(&self) -> bool {
        self.services
            .iter()
            .any(|service| service.rules.on_down == OnDown::Reset)
    }

    /// Whether some service takes packets of some clients only.
    #[must_use]
    pub fn has_access_lists(&self) -> bool {
        self.services.iter().any(|service| service.access.is_some())
    }

    /// Whether some service takes only so much.
    #[must_use]
    pub fn has_limits(&self) -> bool {
        self.services.iter().any(|service| service.limits.is_some())
    }

    /// Whether packets are to be looked at for signs that a backend does not answer.
    #[must_use]
    pub fn has_suspects(&self) -> bool {
        // Of datagrams only those on their way back show anything.
        let shows =
            |service: &&Service| service.key.protocol == Protocol::Tcp || service.forward.translates();
        let mut backends = self
            .services
            .iter()
            .filter(shows)
            .flat_map(|service| &service.backends);
        backends.any(|backend| backend.check.passive && backend.check.kind != CheckKind::None)
    }

    /// Whether the outer headers of some service have different sources.
    #[must_use]
    pub fn spreads(&self) -> bool {
        self.services
            .iter()
            .any(|service| !service.outer_sources.is_empty())
    }

    /// Whether some service takes a range of ports.
    #[must_use]
    pub fn has_ranges(&self) -> bool {
        self.services.iter().any(|service| service.last_port.is_some())
    }

    /// Whether some service has this forward mode.
    #[must_use]
    pub fn has(&self, forward: Forward) -> bool {
        self.services.iter().any(|service| service.forward == forward)
    }

    /// Whether frames may have VLAN tags.
    #[must_use]
    pub fn has_vlans(&self) -> bool {
        let tagged = |service: &Service| service.backends.iter().any(|backend| backend.tags.is_some());
        self.agent.vlans || self.services.iter().any(tagged)
    }

    /// Whether the program has to choose otherwise than by the hash of a flow, or to remember all flows.
    #[must_use]
    pub fn has_choosers(&self) -> bool {
        self.services.iter().any(|service| {
            service.scheduler.chooser() != Chooser::Flow
                || service.tracking() == Tracking::Full && !service.forward.translates()
        })
    }

    /// Whether the program has to translate addresses.
    #[must_use]
    pub fn translates(&self) -> bool {
        self.services.iter().any(|service| service.forward.translates())
    }

    /// Whether datagrams of some service are QUIC.
    #[must_use]
    pub fn has_quic(&self) -> bool {
        self.services.iter().any(|service| service.quic)
    }

    /// Whether some service keeps its clients.
    #[must_use]
    pub fn keeps_clients(&self) -> bool {
        self.services
            .iter()
            .any(|service| service.rules.persistence_timeout.is_some())
    }
}

impl Service {
    /// Which flows are remembered: all, where the choice for them cannot be found again.
    #[must_use]
    pub fn tracking(&self) -> Tracking {
        if self.scheduler.is_free() || self.rules.persistence_timeout.is_some() {
            Tracking::Full
        } else {
            self.rules.tracking
        }
    }

    /// How its clients are kept, for the program.
    #[must_use]
    pub fn persistence(&self) -> Persistence {
        let Some(timeout) = self.rules.persistence_timeout else {
            return Persistence::default();
        };
        let is_v4 = self.key.address.is_ipv4();
        let timeout_ns = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
        Persistence::new(timeout_ns, is_v4, self.persistence_prefix())
    }

    /// How many bits of an address make a client.
    #[must_use]
    pub fn persistence_prefix(&self) -> u8 {
        if self.key.address.is_ipv4() {
            self.rules.persistence_prefix_v4
        } else {
            self.rules.persistence_prefix_v6
        }
    }
}

/// What becomes of the flows of a backend that goes DOWN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnDown {
    /// They stay while its host answers.
    Auto,
    /// They go to the owner of their slot.
    Rehash,
    Keep,
    /// They are reset in the service's name.
    Reset,
}

/// Who takes new flows when no backend serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnAllDown {
    /// Those that served before the failures began.
    Last,
    Drop,
    Sorry,
}

/// Which backups are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackupMode {
    All,
    /// The first of the file that serves.
    First,
}

/// The part of a backend in its service.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    #[default]
    Primary,
    /// Used while fewer primaries serve than the quorum.
    Backup,
    /// Answers when nobody serves; not checked.
    Sorry,
}

/// A backend of a service.
#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    pub address: IpAddr,
    /// The service's, unless `nat` translates it.
    pub port: u16,
    pub weight: u16,
    pub role: Role,
    /// Of the VLAN that it is said to be in; `None`: that of its next hop counts.
    pub tags: Option<Tags>,
    /// What connection ids of QUIC say of it, where they say it.
    pub quic_ids: Vec<QuicId>,
    pub check: Check,
    /// `None`: it has no agent.
    pub agent_check: Option<AgentCheck>,
}

impl Backend {
    /// Whether it is one of the pool, where the service has one: a sorry backend is the service's own.
    #[must_use]
    pub fn in_pool(&self) -> bool {
        self.role != Role::Sorry
    }

    /// What identifies this backend of `service`.
    #[must_use]
    pub fn id(&self, service: ServiceKey) -> BackendId {
        BackendId {
            service,
            address: self.address,
            port: self.port,
        }
    }
}
