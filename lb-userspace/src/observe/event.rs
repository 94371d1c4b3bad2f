//! One thing that happened, as JSON that scripts can rely on.
//!
//! ```json
//! {"seq":7,"time":"2026-01-01T00:00:00.000Z","kind":"backend_state","service":"web","backend":"10.0.1.11:80",
//!  "cause":"L4CON connection refused","detail":{"from":"UP","to":"DOWN","code":"L4CON"}}
//! ```
//!
//! `seq`, `time` and `kind` are always there; `service`, `backend`, `cause` and `detail` where they apply. Kinds
//! and fields are only ever added.

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::trail::Probe;
use crate::model::{AdminState, CheckCode, OperState};

/// A moment of the wall clock, in milliseconds since 1970; RFC 3339 with milliseconds, UTC, as text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, JsonSchema)]
#[schemars(with = "String")]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The moment, in whole milliseconds; those before 1970 and beyond the year 9999 are cut off.
    #[must_use]
    pub fn of(time: SystemTime) -> Self {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since.as_millis()).map_or(Self::LAST, |ms| ms.min(Self::LAST)))
    }

    /// 9999-12-31T23:59:59.999Z: later ones have no form in RFC 3339.
    const LAST: u64 = 253_402_300_799_999;

    #[must_use]
    pub fn system(self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(self.0.min(Self::LAST))
    }

    /// How long after `earlier` it was; none where it was before.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_rfc3339_millis(self.system()).fmt(f)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time = humantime::parse_rfc3339(&text).map_err(serde::de::Error::custom)?;
        Ok(Self::of(time))
    }
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// One more than that of the event before.
    pub seq: u64,
    pub time: Timestamp,
    /// Name of the service it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Address and port of the backend it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub backend: Option<SocketAddr>,
    /// Why, in a line for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    #[serde(flatten)]
    pub kind: Kind,
}

/// The course of an incident, from the last probe that passed to packets that flow elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Timeline {
    /// When the last probe that passed began; none where no agent of this boot saw one.
    pub last_good: Option<Timestamp>,
    /// When clients seemed to get no answer, and it was asked for that; none where it was not.
    #[serde(default)]
    pub suspected: Option<Timestamp>,
    /// When the first probe that failed began.
    pub first_bad: Option<Timestamp>,
    pub verdict: Timestamp,
    /// When the table without it was in force; none where it had no slots, or they stayed.
    pub table_switched: Option<Timestamp>,
    pub moved_slots: u64,
    /// When a packet was first seen at one of the backends that took over; none where no packet came for a while.
    pub first_packet: Option<Timestamp>,
    /// So much earlier that packet may have been: the counters are read from time to time.
    pub resolution_ms: Option<f64>,
}

/// How much an event matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Info,
    Warning,
    Error,
}

/// What happened; `kind` in JSON is the name in snake case, `detail` the fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", content = "detail", rename_all = "snake_case")]
pub enum Kind {
    /// The agent came up. `warm`: it adopted a pinned data plane.
    AgentStarted {
        version: String,
        warm: bool,
        /// The last sign of life of the agent before: between the two nobody watched.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        observed_until: Option<Timestamp>,
    },
    /// Its first round of checks is over, it forwards.
    AgentReady,
    /// The agent ends. `forwarding`: packets go on without it.
    AgentStopped {
        forwarding: bool,
    },
    /// The checks changed their verdict of a backend.
    BackendState {
        from: OperState,
        to: OperState,
        /// The result that decided.
        code: CheckCode,
        latency_ms: f64,
        /// The last results before it, that one included, the oldest first.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        results: Vec<Probe>,
    },
    /// What followed after a backend was found DOWN; told when it is over.
    Rerouted(Timeline),
    /// An operator, or an agent check, changed the admin state.
    BackendAdmin {
        from: AdminState,
        to: AdminState,
    },
    /// The weight in force changed; `file` is the configuration's.
    BackendWeight {
        from: u16,
        to: u16,
        file: u16,
    },
    /// The way to a backend's address was lost or found. The event names the address in `address`, since services
    /// share it.
    NextHop {
        #[schemars(with = "String")]
        address: std::net::IpAddr,
        resolved: bool,
    },
    BackendAdded {
        weight: u16,
    },
    BackendRemoved,
    ServiceAdded {
        slots: u32,
    },
    ServiceRemoved,
    /// A new lookup table is in force.
    TableSwitched {
        generation: u64,
        moved_slots: u64,
        slots: u64,
    },
    /// The program was put on an interface.
    Attached {
        interface: String,
        /// `native` or `generic`.
        mode: String,
        program_id: u32,
    },
    /// The program is off an interface.
    Detached {
        interface: String,
    },
    /// An interface lost its carrier, or is gone.
    InterfaceLost {
        interface: String,
    },
    /// A configuration took effect.
    Reloaded {
        changes: Vec<String>,
    },
    /// A configuration was refused; the one of before goes on.
    ReloadRefused,
    /// Every probe fell silent at one moment: the load balancer doubts itself, tables stay.
    Isolated,
    IsolationOver,
    /// No backend of a service may take new flows. `kept`: the table of before stays, else packets are dropped.
    AllDown {
        kept: bool,
    },
    /// After that, a backend serves again.
    AllDownOver,
    /// Which backends of a pool serve changed: `primaries`, `backups`, `sorry`, `panic`, ...
    PoolMode {
        from: String,
        to: String,
    },
    /// A backend flapped and is held DOWN.
    FlapHeld {
        flaps: u32,
        until: Timestamp,
    },
    FlapReleased,
    /// Slots of a service are on their way to other owners; established flows stay meanwhile.
    MigrationBegun {
        slots: u64,
        /// When it ends at the earliest.
        until: Timestamp,
    },
    MigrationEnded {
        slots: u64,
        duration_ms: u64,
    },
    /// It was extended `extensions` times and has not ended.
    MigrationStalled {
        slots: u64,
        until: Timestamp,
        extensions: u32,
    },
    /// The flow table is so full that it refuses entries, or was and is not any longer (`refused` 0).
    FlowTablePressure {
        entries: u64,
        room: u64,
        refused: u64,
    },
    /// What must outlive the agent cannot be written to `state_dir` (`cause` says why), or can again.
    StateDir {
        writable: bool,
    },
    /// `notify` programs were too slow: so many events were not told to this one.
    NotifyDropped {
        program: String,
        events: u64,
    },
}

impl Kind {
    /// How much it matters.
    #[must_use]
    pub fn level(&self) -> Level {
        match self {
            Self::AgentStarted { .. }
            | Self::AgentReady
            | Self::Rerouted(_)
            | Self::BackendAdmin { .. }
            | Self::BackendWeight { .. }
            | Self::BackendAdded { .. }
            | Self::BackendRemoved
            | Self::ServiceAdded { .. }
            | Self::ServiceRemoved
            | Self::TableSwitched { .. }
            | Self::Attached { .. }
            | Self::Reloaded { .. }
            | Self::IsolationOver
            | Self::AllDownOver
            | Self::PoolMode { .. }
            | Self::FlapReleased
            | Self::MigrationBegun { .. }
            | Self::MigrationEnded { .. } => Level::Info,
            Self::AgentStopped { forwarding } => at_worst(*forwarding, Level::Warning),
            Self::BackendState { to, .. } => at_worst(*to != OperState::Down, Level::Warning),
            Self::NextHop { resolved, .. } => at_worst(*resolved, Level::Warning),
            Self::FlowTablePressure { refused, .. } => at_worst(*refused == 0, Level::Warning),
            Self::StateDir { writable } => at_worst(*writable, Level::Error),
            Self::Detached { .. }
            | Self::InterfaceLost { .. }
            | Self::FlapHeld { .. }
            | Self::NotifyDropped { .. } => Level::Warning,
            Self::ReloadRefused | Self::Isolated | Self::AllDown { .. } | Self::MigrationStalled { .. } => {
                Level::Error
            }
        }
    }

    /// Its name and its fields, as JSON has them.
    #[must_use]
    pub fn parts(&self) -> (String, serde_json::Map<String, serde_json::Value>) {
        let value = serde_json::to_value(self).expect("kinds have only string keys");
        let name = value["kind"].as_str().unwrap_or_default().to_owned();
        let detail = value["detail"].as_object().cloned().unwrap_or_default();
        (name, detail)
    }
}

/// What happened, in words for people.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AgentStarted {
                version, warm: true, ..
            } => write!(f, "agent {version} started, the pinned data plane adopted"),
            Self::AgentStarted { version, .. } => write!(f, "agent {version} started"),
            Self::AgentReady => f.write_str("agent ready"),
            Self::Rerouted(Timeline {
                first_bad,
                verdict,
                table_switched,
                first_packet,
                ..
            }) => {
                let first_bad = first_bad.unwrap_or(*verdict);
                match first_packet.or(*table_switched) {
                    Some(end) => write!(
                        f,
                        "routed around {} ms after the first failing probe began",
                        end.since(first_bad).as_millis()
                    ),
                    None => f.write_str("DOWN, but no slot of it went elsewhere"),
                }
            }
            Self::AgentStopped { forwarding: true } => f.write_str("agent stopped, forwarding goes on"),
            Self::AgentStopped { forwarding: false } => f.write_str("agent stopped, nothing is forwarded"),
            Self::BackendState { from, to, .. } => write!(f, "{from} -> {to}"),
            Self::BackendAdmin { from, to } => write!(f, "{from} -> {to}"),
            Self::BackendWeight { from, to, file } => write!(f, "weight {from} -> {to} (file {file})"),
            Self::NextHop {
                address,
                resolved: true,
            } => write!(f, "next hop of {address} found"),
            Self::NextHop {
                address,
                resolved: false,
            } => write!(f, "next hop of {address} lost"),
            Self::BackendAdded { weight } => write!(f, "added, weight {weight}"),
            Self::BackendRemoved => f.write_str("removed"),
            Self::ServiceAdded { slots } => write!(f, "added, {slots} slots"),
            Self::ServiceRemoved => f.write_str("removed"),
            Self::TableSwitched {
                generation,
                moved_slots,
                slots,
            } => write!(
                f,
                "{moved_slots} of {slots} slots moved (generation {generation})"
            ),
            Self::Attached {
                interface,
                mode,
                program_id,
            } => write!(f, "attached to {interface} in {mode} mode (program {program_id})"),
            Self::Detached { interface } => write!(f, "detached from {interface}"),
            Self::InterfaceLost { interface } => write!(f, "interface {interface} carries no packets"),
            Self::Reloaded { changes } if changes.is_empty() => f.write_str("reloaded, nothing to change"),
            Self::Reloaded { changes } => write!(f, "reloaded: {}", changes.join("; ")),
            Self::ReloadRefused => f.write_str("reload refused, the configuration of before goes on"),
            Self::Isolated => f.write_str("ISOLATED: nothing answers, tables stay"),
            Self::IsolationOver => f.write_str("isolation is over"),
            Self::AllDown { kept: true } => {
                f.write_str("no backend may take new flows, the table of before stays")
            }
            Self::AllDown { kept: false } => f.write_str("no backend may take flows, packets are dropped"),
            Self::AllDownOver => f.write_str("a backend serves again"),
            Self::PoolMode { from, to } => write!(f, "served by {to}, before by {from}"),
            Self::FlapHeld { flaps, until } => write!(f, "flapped {flaps} times, held DOWN until {until}"),
            Self::FlapReleased => f.write_str("not held DOWN any longer"),
            Self::MigrationBegun { slots, until } => {
                write!(f, "migration of {slots} slots, until {until} at the earliest")
            }
            Self::MigrationEnded { slots, duration_ms } => {
                let time = Duration::from_millis(*duration_ms);
                write!(
                    f,
                    "migration of {slots} slots ended after {}",
                    humantime::format_duration(time)
                )
            }
            Self::MigrationStalled {
                slots,
                until,
                extensions,
            } => write!(
                f,
                "MIGRATION STALLED: {slots} slots, extended {extensions} times, until {until}"
            ),
            Self::FlowTablePressure {
                entries,
                room,
                refused: 0,
            } => write!(f, "flow table takes entries again ({entries} of {room})"),
            Self::FlowTablePressure {
                entries,
                room,
                refused,
            } => write!(f, "flow table refused {refused} entries ({entries} of {room})"),
            Self::StateDir { writable: true } => f.write_str("the state folder can be written again"),
            Self::StateDir { writable: false } => f.write_str("the state folder cannot be written"),
            Self::NotifyDropped { program, events } => {
                write!(f, "{events} events were not told to {program}")
            }
        }
    }
}

fn at_worst(good: bool, level: Level) -> Level {
    if good { Level::Info } else { level }
}

/// An event that has no number and no time yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Draft {
    pub kind: Kind,
    pub service: Option<String>,
    pub backend: Option<SocketAddr>,
    pub cause: Option<String>,
}

impl From<Kind> for Draft {
    fn from(kind: Kind) -> Self {
        Self {
            kind,
            service: None,
            backend: None,
            cause: None,
        }
    }
}

impl Kind {
    /// About a service, by its name.
    #[must_use]
    pub fn service(self, name: impl Into<String>) -> Draft {
        Draft::from(self).service(name)
    }

    /// With a line that says why.
    #[must_use]
    pub fn because(self, cause: impl Into<String>) -> Draft {
        Draft::from(self).because(cause)
    }
}

impl Draft {
    /// About a service, by its name.
    #[must_use]
    pub fn service(mut self, name: impl Into<String>) -> Self {
        self.service = Some(name.into());
        self
    }

    /// About a backend of that service.
    #[must_use]
    pub fn backend(mut self, place: SocketAddr) -> Self {
        self.backend = Some(place);
        self
    }

    /// With a line that says why.
    #[must_use]
    pub fn because(mut self, cause: impl Into<String>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// The event itself.
    #[must_use]
    pub fn at(self, seq: u64, time: Timestamp) -> Event {
        let Self {
            kind,
            service,
            backend,
            cause,
        } = self;
        Event {
            seq,
            time,
            service,
            backend,
            cause,
            kind,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_shape_is_the_documented_one() {
        let event = Kind::BackendState {
            from: OperState::Up,
            to: OperState::Down,
            code: CheckCode::L4con,
            latency_ms: 0.5,
            results: Vec::new(),
        }
        .service("web")
        .backend("[2001:db8::1]:80".parse().unwrap())
        .because("refused")
        .at(7, Timestamp(1_735_701_120_042));
        let text = json!({
            "seq": 7, "time": "2025-01-01T03:12:00.042Z", "kind": "backend_state", "service": "web",
            "backend": "[2001:db8::1]:80", "cause": "refused",
            "detail": {"from": "UP", "to": "DOWN", "code": "L4CON", "latency_ms": 0.5},
        });
        assert_eq!(serde_json::to_value(&event).unwrap(), text);
        assert_eq!(serde_json::from_value::<Event>(text).unwrap(), event);
    }

    #[test]
    fn what_does_not_apply_is_left_out() {
        let event = Draft::from(Kind::Isolated).at(1, Timestamp(0));
        let text = json!({"seq": 1, "time": "1970-01-01T00:00:00.000Z", "kind": "isolated"});
        assert_eq!(serde_json::to_value(&event).unwrap(), text);
        assert_eq!(serde_json::from_value::<Event>(text).unwrap(), event);
    }

    #[test]
    fn a_time_beyond_every_calendar_is_no_panic() {
        let far = Timestamp(u64::MAX);
        assert!(far.to_string().starts_with("9999-12-31T23:59:59"));
        assert_eq!(Timestamp::of(far.system()).0, Timestamp::LAST);
        assert_eq!(
            Timestamp::of(SystemTime::UNIX_EPOCH - Duration::from_secs(1)),
            Timestamp(0)
        );
    }
}
