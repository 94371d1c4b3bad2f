//! Requests and answers of `/v1`, shared by the agent and the command line. Field names are stable: scripts
//! read them; more may join, none of these changes its name.

use std::net::IpAddr;

use lb_common::layout::{Counters, Guard, GuardCounters};
use lb_common::quic::QuicCounters;
use lb_common::reason::Reason;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::Role;
use crate::control::{OldFlows, Why};
use crate::model::{AdminState, CheckCode, Forward, OperState, Protocol, Scheduler, ServiceKey};

/// `GET /v1/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    pub agent: AgentStatus,
    pub interfaces: Vec<InterfaceStatus>,
    pub services: Vec<ServiceStatus>,
    /// Slots on the move, by service.
    #[serde(default)]
    pub migrations: Vec<MigrationStatus>,
    /// `null` where no agent runs.
    #[serde(default)]
    pub flow_table: Option<FlowTableStatus>,
    /// `null` where no service remembers every flow, or no agent runs.
    #[serde(default)]
    pub flow_cache: Option<FlowCacheStatus>,
    /// Translated flows; `null` without a service of `nat` or `full-nat`, and where no agent runs.
    #[serde(default)]
    pub nat: Option<NatStatus>,
    /// What it takes. `null` where that cannot be told.
    #[serde(default)]
    pub memory: Option<MemoryStatus>,
}

/// Memory that is in use now. That of tables and flows is taken as they come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MemoryStatus {
    /// Of the agent, with the maps that it has mapped; 0 where it does not run.
    pub agent_bytes: u64,
    /// Of all maps, in the kernel.
    pub maps_bytes: u64,
}

/// The cache of flows of services with `tracking = "full"`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FlowCacheStatus {
    /// Flows there is room for.
    pub capacity: u64,
    /// Flows there are, by the last walk through it.
    pub flows: u64,
    pub memory_bytes: u64,
    /// Flows that lost their place to another. This and all that follow: since the maps were made.
    pub evicted: u64,
    /// Connections that the hash chose for instead of the scheduler, because too many were being opened.
    pub crowded: u64,
}

/// How a service keeps its clients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PersistenceStatus {
    /// How long an idle client is remembered.
    pub timeout_s: f64,
    /// So many bits of an address make a client.
    pub prefix: u8,
    /// Clients of this service that are remembered, by the last walk through them.
    pub clients: u64,
    /// Clients that there is room for, of all services together.
    pub room: u64,
    /// Clients that were remembered. This and all that follow: since the service was added.
    pub remembered: u64,
    /// New flows that were led to the backend of their client.
    pub kept: u64,
    /// New flows whose client's backend takes none any longer.
    pub moved: u64,
    /// Clients that found no room.
    pub refused: u64,
}

/// The slots of one service that are on their way to other owners. Their established flows stay where they are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MigrationStatus {
    /// Name of the service.
    pub service: String,
    /// What made the first of them move.
    pub cause: String,
    /// RFC 3339, UTC.
    pub since: String,
    /// The most slots that were on the move at one time.
    pub slots: usize,
    /// Slots whose flows may live with two backends.
    pub open: usize,
    /// Slots that are through, but for flows that the flow table has to remember as long as they live.
    pub settled: usize,
    /// Slots whose move waits for room in the flow table.
    pub waiting: usize,
    pub progress_percent: f64,
    /// When the last open slot is through unless an entry is refused until then; RFC 3339, UTC. `null`: no slot is
    /// open.
    pub until: Option<String>,
    /// How often that was put off because entries were refused.
    pub extensions: u32,
    /// Put off three times and more.
    pub stalled: bool,
    /// The table is being resized: every slot is open.
    pub resizing: bool,
}

/// The table of translated flows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NatStatus {
    /// Flows there is room for.
    pub capacity: u64,
    /// Flows there are, by the last scan.
    pub flows: u64,
    /// Of those: idle for ten seconds at least, and waiting for an answer, closing or closed.
    pub fading: u64,
    /// When that scan ended, in milliseconds ago; `null`: there was none yet.
    pub scanned_ms_ago: Option<u64>,
    /// How long that scan took, in milliseconds.
    pub scan_ms: u64,
    /// Ports in use, by address that sources are rewritten to.
    pub ports: Vec<SnatStatus>,
    /// Flows that were translated. This and all that follow: since the maps were made, for services there are.
    pub opened: u64,
    /// Packets of backends that were sent on to clients.
    pub replies: u64,
    pub reply_bytes: u64,
    /// New flows refused because the table was full.
    pub refused_full: u64,
    /// New flows refused because no port was free.
    pub refused_ports: u64,
    /// ICMP errors that were translated.
    pub errors: u64,
}

/// One address that sources are rewritten to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SnatStatus {
    pub address: IpAddr,
    /// Ports in use, over all backends.
    pub in_use: u64,
    /// Ports there are, towards each backend.
    pub ports: u32,
}

/// The flow table, which remembers flows of slots on the move.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FlowTableStatus {
    /// Entries there is room for.
    pub capacity: u64,
    /// Entries there are, by the last scan.
    pub entries: u64,
    pub unconfirmed: u64,
    pub established: u64,
    pub closing: u64,
    /// Unconfirmed ones whose addresses and ports another connection uses too.
    pub contested: u64,
    /// When that scan ended, in milliseconds ago; `null`: there was none yet.
    pub scanned_ms_ago: Option<u64>,
    /// How long it took.
    pub scan_ms: u64,
    /// Packets that found an entry. This and all that follow: since the maps were made.
    pub hits: u64,
    pub inserted_syn: u64,
    pub inserted_data: u64,
    pub inserted_udp: u64,
    /// Entries refused because they came faster than is allowed.
    pub refused_allowance: u64,
    /// Entries refused because the table was full.
    pub refused_full: u64,
    /// Entries refused because another connection's unconfirmed one is in the way.
    pub refused_occupied: u64,
    /// Resets sent in the name of backends that are DOWN.
    pub resets: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AgentStatus {
    /// `false` where the answer comes from the pinned maps.
    pub running: bool,
    pub version: String,
    /// When it started, or when it was last alive where it does not run; RFC 3339, UTC.
    pub since: String,
    pub pid: u32,
    /// The pins are gone although the agent runs: somebody detached by hand.
    pub detached: bool,
    /// `--attach-confirm` waits for `xlb confirm`, for so many seconds more.
    pub confirm_within_s: Option<u64>,
    /// Since when nothing answers, not even the witness, so that the fault may be ours and tables stay; RFC 3339, UTC.
    pub isolated_since: Option<String>,
    /// Path of the configuration file.
    pub config: String,
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InterfaceStatus {
    pub name: String,
    /// `native`, `generic` or `detached`.
    pub mode: String,
    pub driver: Option<String>,
    pub program_id: Option<u32>,
    pub mtu: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceStatus {
    pub name: String,
    #[schemars(with = "String")]
    pub address: IpAddr,
    pub port: u16,
    /// It takes the ports from `port` to this one; `null`: that one alone, or with 0 every port.
    #[serde(default)]
    pub last_port: Option<u16>,
    pub protocol: Protocol,
    pub forward: Forward,
    pub scheduler: Scheduler,
    /// Which flows are remembered: `none`, `moved`, `full`.
    pub tracking: String,
    /// How long its flows may be idle before they are forgotten, in milliseconds; `null` where no agent runs.
    #[serde(default)]
    pub idle_timeout_ms: Option<u64>,
    /// `null` where it does not keep its clients, or no agent runs.
    #[serde(default)]
    pub persistence: Option<PersistenceStatus>,
    /// Slots of the lookup table; 0: nobody serves, packets are dropped.
    pub table_size: u32,
    pub generation: u64,
    /// All backends are DOWN; the table is the one of before.
    pub all_down: bool,
    /// The pool that its backends are from, where services share it.
    pub pool: Option<String>,
    /// Why just those take new flows that do: `serving` (by verdict), `panic`, `last`, `sorry`, `nobody`; `null`
    /// where no agent runs.
    pub selection: Option<Why>,
    /// Its backups are in use.
    pub backups_in_use: bool,
    pub packets: u64,
    pub bytes: u64,
    pub new_flows: u64,
    pub backends: Vec<BackendStatus>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BackendStatus {
    #[schemars(with = "String")]
    pub address: IpAddr,
    pub port: u16,
    /// From the configuration.
    pub weight: u16,
    /// In force: the one set at runtime, else the configuration's.
    pub effective_weight: u16,
    /// `primary`, `backup` or `sorry`.
    pub role: Role,
    /// How much of its weight it has while it starts slowly, in per cent; `null`: all of it.
    pub slow_start_percent: Option<u32>,
    /// It flapped and is held DOWN until this time, whatever its checks say; RFC 3339, UTC.
    pub held_until: Option<String>,
    /// What becomes of the flows it has: `keep`, `move` or `reset`; `null` where no agent runs.
    pub old_flows: Option<OldFlows>,
    /// While DOWN: whether its host answers at all.
    pub host_answers: Option<bool>,
    pub state: OperState,
    pub admin: AdminState,
    /// Whether it takes new flows, being UP, READY and reachable. Who takes them for want of others (`selection`) has a
    /// `share_percent` and is not serving.
    pub serving: bool,
    /// It is silent, or its next hop is lost, and that is not believed because nothing else answered since.
    pub doubted: bool,
    /// Why packets cannot be sent to it, where they cannot.
    pub unresolved: Option<String>,
    pub check: CheckStatus,
    /// What its agent said; `null`: it has none, or none was heard yet.
    pub agent_check: Option<AgentCheckStatus>,
    /// Its share of the slots, in per cent.
    pub share_percent: f64,
    pub packets: u64,
    pub bytes: u64,
    pub new_flows: u64,
    /// Flows that are remembered as its own: those of slots on the move, by the last scan of the flow table; with
    /// `tracking = "full"` all that have not ended; where addresses are translated all that there are. `null` where no
    /// agent runs.
    #[serde(default)]
    pub remembered_flows: Option<u64>,
    /// Until when flows may be idle on it that nobody has seen, in slots that it does not own any longer; RFC 3339,
    /// UTC. `null`: there are no such slots.
    #[serde(default)]
    pub unseen_flows_until: Option<String>,
    /// Longest packet of a client that fits the way to it, in bytes.
    pub packet_mtu: Option<u32>,
    /// Until when that is so because a router on the way said it; RFC 3339, UTC.
    #[serde(default)]
    pub path_mtu_until: Option<String>,
    /// RFC 3339, UTC; when its operational state last changed under this agent.
    pub changed: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CheckStatus {
    pub code: CheckCode,
    pub latency_ms: Option<f64>,
    pub detail: String,
}

/// What the agent of a backend said, in the words of HAProxy's agent-check; `null`: it never spoke of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AgentCheckStatus {
    /// `up`, `down`, `stopped` or `fail`.
    pub health: Option<String>,
    pub description: Option<String>,
    /// In force where the operator's is READY.
    pub admin: Option<AdminState>,
    /// Of the configuration's weight; in force where no weight was set at runtime.
    pub weight_percent: Option<u16>,
    /// How many connections it takes; kept to in services with `tracking = "full"`.
    pub max_connections: Option<u32>,
    /// It has as many: it gets no new ones.
    #[serde(default)]
    pub full: bool,
    /// Why its last line, or a part of it, did not count.
    pub problem: Option<String>,
}

/// `GET /v1/stats`: counts since the maps were made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Stats {
    /// When the counts were read, in milliseconds since 1970.
    pub at_ms: u64,
    pub services: Vec<ServiceStats>,
    pub reasons: Vec<ReasonStats>,
    /// What drivers lost after the program had given packets to them.
    #[serde(default)]
    pub drivers: Vec<DriverStats>,
}

/// What the driver of one interface lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DriverStats {
    pub interface: String,
    /// None where its driver counts no such packets.
    pub lost: Vec<LostStats>,
}

/// Packets that a driver could not send, counted by itself since the interface is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LostStats {
    /// As the driver calls it (`ethtool -S`), with `N` for the numbers of queues, which are added up.
    pub counter: String,
    pub packets: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceStats {
    pub name: String,
    #[schemars(with = "String")]
    pub address: IpAddr,
    pub port: u16,
    /// As in the status.
    #[serde(default)]
    pub last_port: Option<u16>,
    pub protocol: Protocol,
    pub packets: u64,
    pub bytes: u64,
    pub new_flows: u64,
    /// Its part of what was refused to clients, by reason.
    #[serde(default)]
    pub refused: RefusedStats,
    /// Of a service whose datagrams are QUIC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quic: Option<QuicStats>,
    pub backends: Vec<BackendStats>,
}

/// Packets of a service of QUIC whose backends have `quic_ids`, by what their connection id says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct QuicStats {
    /// They went to the backend that it names.
    pub by_id: u64,
    /// It names nobody: they went by addresses and ports.
    pub unroutable: u64,
    /// It names a backend that takes nothing (DOWN, in maintenance): they did too.
    pub gone: u64,
}

/// Packets that the access list and the limits of one service refused. The fields have the names of reasons.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RefusedStats {
    pub denied: u64,
    pub flow_limit: u64,
    pub client_flow_limit: u64,
    pub client_packet_limit: u64,
    /// The limits only count at present: what is over one passes, and is not among the reasons.
    pub dry_run: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BackendStats {
    #[schemars(with = "String")]
    pub address: IpAddr,
    pub port: u16,
    pub packets: u64,
    pub bytes: u64,
    pub new_flows: u64,
}

impl ServiceStats {
    /// A service and everything it sent, to backends that it has no longer too.
    #[must_use]
    pub fn new(
        name: String,
        key: ServiceKey,
        last_port: Option<u16>,
        total: &Counters,
        refused: RefusedStats,
        backends: Vec<BackendStats>,
    ) -> Self {
        let ServiceKey {
            address,
            port,
            protocol,
        } = key;
        let Counters {
            packets,
            bytes,
            new_flows,
            redirected: _,
        } = *total;
        Self {
            name,
            address,
            port,
            last_port,
            protocol,
            packets,
            bytes,
            new_flows,
            refused,
            quic: None,
            backends,
        }
    }

    /// The same with what was counted of connection ids.
    #[must_use]
    pub fn with_quic(self, quic: Option<QuicStats>) -> Self {
        Self { quic, ..self }
    }
}

impl From<QuicCounters> for QuicStats {
    fn from(counters: QuicCounters) -> Self {
        let QuicCounters {
            by_id,
            unroutable,
            gone,
        } = counters;
        Self {
            by_id,
            unroutable,
            gone,
        }
    }
}

impl QuicStats {
    /// The counts with their names.
    #[must_use]
    pub fn by_way(&self) -> [(&'static str, u64); 3] {
        [
            ("by_id", self.by_id),
            ("unroutable", self.unroutable),
            ("gone", self.gone),
        ]
    }
}

impl RefusedStats {
    /// What was counted for a service that asks this of its clients ([`Guard::asks`]).
    #[must_use]
    pub fn new(counted: &GuardCounters, asks: u64) -> Self {
        let GuardCounters {
            denied,
            over_flows,
            over_client_flows,
            over_client_packets,
        } = *counted;
        Self {
            denied,
            flow_limit: over_flows,
            client_flow_limit: over_client_flows,
            client_packet_limit: over_client_packets,
            dry_run: asks & Guard::LIMITS != 0 && asks & Guard::DRY_RUN != 0,
        }
    }

    /// The counts with the names of their reasons.
    #[must_use]
    pub fn by_reason(&self) -> [(Reason, u64); 4] {
        [
            (Reason::Denied, self.denied),
            (Reason::FlowLimit, self.flow_limit),
            (Reason::ClientFlowLimit, self.client_flow_limit),
            (Reason::ClientPacketLimit, self.client_packet_limit),
        ]
    }
}

impl BackendStats {
    /// A backend and what it was sent.
    #[must_use]
    pub fn new(address: IpAddr, port: u16, counted: &Counters) -> Self {
        let Counters {
            packets,
            bytes,
            new_flows,
            redirected: _,
        } = *counted;
        Self {
            address,
            port,
            packets,
            bytes,
            new_flows,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReasonStats {
    pub reason: String,
    /// `tx`, `redirect`, `pass` or `drop`.
    pub verdict: String,
    pub packets: u64,
    /// What the reason stands for, in a line.
    #[serde(default)]
    pub meaning: String,
}

/// `POST /v1/backends`: an order about a backend of one service, or of every service that has its address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BackendOrder {
    /// Name of the service; `None`: every service with a backend of this address.
    pub service: Option<String>,
    #[schemars(with = "String")]
    pub address: IpAddr,
    /// `None`: whatever port, where the address is not there twice.
    pub port: Option<u16>,
    pub order: Order,
    /// Do it although a service is left without a serving backend.
    #[serde(default)]
    pub force: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    Ready,
    Drain,
    Maint,
    Weight(WeightOrder),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WeightOrder {
    Absolute(u16),
    /// Per cent of the configuration's weight.
    Percent(u16),
    Default,
}

/// What an order or a reload did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Done {
    /// Whether anything is different now.
    pub changed: bool,
    /// One line each, for people.
    pub changes: Vec<String>,
    pub services: Vec<ServiceChange>,
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceChange {
    pub name: String,
    /// `added`, `removed` or `table`.
    pub kind: String,
    pub moved_slots: usize,
    pub slots: u32,
}

/// `POST /v1/plan`: the configuration that is asked about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PlanOrder {
    /// Its text; the agent's own file when absent.
    #[serde(default)]
    pub config: Option<String>,
    /// What faults and warnings call it.
    #[serde(default)]
    pub name: Option<String>,
}

/// What a reload with a configuration would do. Nothing was changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Plan {
    /// Whether anything would be different.
    pub changed: bool,
    /// One line each, for people.
    pub changes: Vec<String>,
    pub services: Vec<ServicePlan>,
    pub warnings: Vec<String>,
    /// Backends that are not checked yet, and count as UP here.
    pub counted_as_up: Vec<String>,
    /// `null` where it is not known.
    pub memory: Option<PlanMemory>,
}

/// What would become of the table of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServicePlan {
    pub name: String,
    /// `added`, `removed` or `table`.
    pub kind: String,
    pub moved_slots: usize,
    pub slots: u32,
    /// Slots of its table so far; 0: it has none.
    pub slots_before: u32,
    /// Slots that a table for so many backends is given when it is made anew; 0: the service is removed.
    pub slots_by_rule: u32,
    /// Flows that the flow table knows in the slots that would move; they stay where they are. `null` where flows are not
    /// known by slot: services that translate or remember all flows, and tables that get another size.
    pub flows_in_moved_slots: Option<u64>,
}

/// Memory now, and at most while the tables of before and after are both there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PlanMemory {
    /// Of the agent, with the maps that it has mapped.
    pub agent_bytes: u64,
    /// Of all maps, in the kernel.
    pub maps_bytes: u64,
    pub maps_bytes_after: u64,
    /// Of the tables in force, which is part of that of the maps.
    pub tables_bytes: u64,
    pub tables_bytes_after: u64,
}

/// Any answer that is not 2xx.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Failure {
    /// What went wrong and what to do; several lines for a bad configuration.
    pub error: String,
    /// The configuration's faults, one a line, where it is bad.
    #[serde(default)]
    pub faults: Vec<String>,
}
