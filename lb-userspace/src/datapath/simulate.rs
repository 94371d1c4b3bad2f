//! `xlb simulate`: the real program with a given configuration, in private maps and attached to nothing, run
//! on packets that we choose. The debugger of operators, the harness of the packet tests and the ruler for
//! our speed.
//!
//! What a network would tell is made up. Every backend is UP and on the same layer 2. It is reached by the
//! interface that the packet came in by (the loopback interface, see [`testrun`]), so that what is forwarded
//! is `tx`, and it has the MAC address that [`Options`] name for it, else `02:00` and the last four bytes of
//! its address: 10.0.1.11 is at `02:00:0a:00:01:0b`. The load balancer itself is at [`OWN_MAC`], and outer
//! headers come from [`SOURCE_V4`] and [`SOURCE_V6`] unless the options say otherwise.

mod capture;
mod run;

pub use run::{PacketReport, Report, Task, run};

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Instant;

use aya::Ebpf;
use aya::maps::Map;
use aya::programs::Xdp;
use lb_common::hash::HashKey;
use lb_common::layout::{Decision, Interface};
use lb_common::reason::{Reason, Verdict};

use super::apply::Dataplane;
use super::clock::monotonic_ns;
use super::load::{self, Features, Sizes};
use super::maps::Maps;
use super::mmap::Words;
use super::testrun::{self, Action, INGRESS_IFINDEX};
use super::{attach, check_system, has_frags, measure};
use crate::config::{Announce, Config};
use crate::control::{self, BackendStatus, HopView, Inputs};
use crate::model::{AdminState, Forward, OperState, ServiceKey};
use crate::net::NextHop;

/// The MAC address of the simulated load balancer.
pub const OWN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Where outer IPv4 headers come from (TEST-NET-2 of RFC 5737).
pub const SOURCE_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// Where outer IPv6 headers come from (documentation prefix of RFC 3849).
pub const SOURCE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1);
/// The MTU towards the backends, in bytes of IP packet.
pub const MTU: u32 = 1500;

/// The key of the hash where neither the configuration nor a running agent has one: the digits of pi, so that
/// the same capture gives the same answer everywhere.
const STAND_IN_KEY: HashKey = HashKey([
    0x243F_6A88_85A3_08D3,
    0x1319_8A2E_0370_7344,
    0xA409_3822_299F_31D0,
    0x082E_FA98_EC4E_6C89,
    0x4528_21E6_38D0_1377,
    0xBE54_66CF_34E9_0C6C,
    0xC0AC_29B7_C97C_50DD,
    0x3F84_D5B5_B547_0917,
]);

/// Entries of the flow table.
const FLOWS: u32 = 65_536;

const PROGRAM: &str = "lb";

/// What the simulation cannot know from the configuration.
#[derive(Clone, Debug)]
pub struct Options {
    /// MAC addresses of backends.
    pub neighbors: BTreeMap<IpAddr, [u8; 6]>,
    /// Backends that another interface leads to, by its index: their packets are redirected.
    pub egress: BTreeMap<IpAddr, u32>,
    pub source_v4: Ipv4Addr,
    pub source_v6: Ipv6Addr,
    /// Longest IP packet on the way to the backends, in bytes.
    pub mtu: u32,
    /// `None`: that of the configuration, else a fixed one.
    pub hash_key: Option<HashKey>,
    /// ICMP errors that may be sent a second; 0: any number, because a capture is run faster than it was recorded.
    pub icmp_error_rate: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            neighbors: BTreeMap::new(),
            egress: BTreeMap::new(),
            source_v4: SOURCE_V4,
            source_v6: SOURCE_V6,
            mtu: MTU,
            hash_key: None,
            icmp_error_rate: 0,
        }
    }
}

impl Options {
    /// Sets where outer headers of the family of `source` come from.
    pub fn set_source(&mut self, source: IpAddr) {
        match source {
            IpAddr::V4(source) => self.source_v4 = source,
            IpAddr::V6(source) => self.source_v6 = source,
        }
    }

    fn hop(&self, backend: IpAddr) -> NextHop {
        let stand_in = || {
            let [.., a, b, c, d] = match backend {
                IpAddr::V4(v4) => v4.to_ipv6_compatible().octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            [2, 0, a, b, c, d]
        };
        NextHop {
            ifindex: self.egress.get(&backend).copied().unwrap_or(INGRESS_IFINDEX),
            interface: "simulated".into(),
            below: None,
            destination_mac: self.neighbors.get(&backend).copied().unwrap_or_else(stand_in),
            source_mac: OWN_MAC,
            source: match backend {
                IpAddr::V4(_) => self.source_v4.into(),
                IpAddr::V6(_) => self.source_v6.into(),
            },
            gateway: None,
            mtu: self.mtu,
        }
    }
}

/// `IP=MAC` of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbor {
    pub address: IpAddr,
    pub mac: [u8; 6],
}

impl FromStr for Neighbor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (address, mac) = text.split_once('=')?;
            let mut bytes = mac.split(':').map(|byte| match byte.len() {
                1..=2 => u8::from_str_radix(byte, 16).ok(),
                _ => None,
            });
            let mut next = || bytes.next().flatten();
            let mac = [next()?, next()?, next()?, next()?, next()?, next()?];
            let address = address.parse().ok()?;
            bytes.next().is_none().then_some(Self { address, mac })
        };
        parse().ok_or_else(|| format!("{text}: IP=MAC is expected, for example 10.0.1.11=02:00:00:00:00:0b"))
    }
}

/// What became of one packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub verdict: Verdict,
    pub reason: Reason,
    /// The service that it was for, by name.
    pub service: Option<String>,
    /// The backend that it was sent to, or would have been.
    pub backend: Option<SocketAddr>,
    /// The frame as the program left it, whatever the verdict.
    pub out: Vec<u8>,
}

/// What can go wrong in a simulation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Datapath(#[from] super::Error),
    #[error(transparent)]
    TestRun(#[from] testrun::Error),
    #[error("the program ended in {action:?}, but wrote down {reason:?}: this is a bug of ours")]
    Contradiction { action: Action, reason: Option<Reason> },
    #[error("{0}: this is a bug of ours")]
    Measurement(#[from] measure::Error),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{}: packet {index}: {source}", path.display())]
    Packet {
        path: PathBuf,
        index: usize,
        source: Box<Error>,
    },
    #[error("{}: {what}", path.display())]
    Capture { path: PathBuf, what: String },
    #[error(
        "{}: the link type is {found}; only Ethernet can be simulated (capture on an Ethernet interface, \
         not on \"any\")",
        path.display()
    )]
    LinkType { path: PathBuf, found: String },
}

/// The program with a configuration in maps of its own.
pub struct Simulator {
    /// Its maps, for whoever wants to look deeper or to break something.
    pub dataplane: Dataplane,
    ebpf: Ebpf,
    /// The map of the decision, two words long.
    decision: Words,
    names: BTreeMap<ServiceKey, String>,
}

impl Simulator {
    /// Loads the program and fills its maps. Needs the same rights as the agent.
    ///
    /// # Errors
    /// [`Error::Datapath`].
    pub fn new(config: &Config, options: &Options) -> Result<Self, Error> {
        Self::with(config, options, true)
    }

    /// The very program that the agent attaches: it tells no decisions, so only speed can be asked of it.
    ///
    /// # Errors
    /// [`Error::Datapath`].
    pub fn for_speed(config: &Config, options: &Options) -> Result<Self, Error> {
        Self::with(config, options, false)
    }

    fn with(config: &Config, options: &Options, explain: bool) -> Result<Self, Error> {
        check_system()?;
        let features = Features {
            wildcard: config.services.iter().any(|service| service.key.port == 0),
            ranged: config.has_ranges(),
            announce: config.agent.announce == Announce::L2,
            gue: config.has(Forward::DsrGue),
            spread: config.spreads(),
            frags: has_frags(),
            explain,
            trace_drops: false,
            // No packet can tell the difference unless a test marks a backend so.
            resets: explain || config.answers_with_resets(),
            icmp_echo: config.agent.icmp_echo,
            // Nothing is attached: there are no interfaces.
            fragment_by: [0; 2],
            icmp_error_rate: options.icmp_error_rate,
            choosers: config.has_choosers(),
            suspects: config.has_suspects(),
            guards: config.has_access_lists(),
            limits: config.has_limits(),
            vlans: config.has_vlans(),
            persistent: config.keeps_clients(),
            nat: config.translates(),
            // The routes of this machine are not those of the simulated one.
            nat_routes: false,
            quic: config.has_quic(),
        };
        let configured = config
            .agent
            .hash_key
            .as_ref()
            .map(|key| HashKey::from_bytes(&key.0));
        let key = options.hash_key.or(configured).unwrap_or(STAND_IN_KEY);
        let sizes = Sizes {
            flows: FLOWS,
            ..Sizes::of(&config.agent)
        };
        let mut ebpf = load::load(features, &key, sizes, None)?;
        attach::verify(&mut ebpf, PROGRAM)?;
        let mut maps = Maps::of(&mut ebpf, sizes, None)?;
        maps.hash_key = Some(key);
        let mut dataplane = Dataplane::adopt(maps, monotonic_ns())?;
        let own = Interface {
            mac: own_mac(),
            reserved: 0,
        };
        dataplane
            .maps
            .interfaces
            .insert(INGRESS_IFINDEX, own, 0)
            .map_err(super::Error::from)?;
        dataplane.maps.nat.set_pools(&config.agent.snat)?;
        let desired = desired(config, options, &dataplane);
        dataplane.apply(&desired, &monotonic_ns)?;
        let decision = ebpf
            .take_map("DECISION")
            .ok_or(super::Error::MissingMap("DECISION"))?;
        let Map::Array(decision) = &decision else {
            return Err(super::Error::MissingMap("DECISION").into());
        };
        let decision =
            Words::map(decision.fd(), size_of::<Decision>() / size_of::<u64>()).map_err(|source| {
                super::Error::Syscall {
                    call: "mmap of the decision",
                    source,
                }
            })?;
        let names = config
            .services
            .iter()
            .map(|service| (service.key, service.name.clone()))
            .collect();
        Ok(Self {
            dataplane,
            ebpf,
            decision,
            names,
        })
    }

    /// Runs the program on a frame.
    ///
    /// # Errors
    /// [`Error::TestRun`] for a frame that the kernel does not take, [`Error::Contradiction`] for a bug of
    /// ours, `XDP_ABORTED` among them.
    pub fn packet(&mut self, frame: &[u8]) -> Result<Outcome, Error> {
        self.decision.set(0, UNDECIDED);
        let run = testrun::run(self.program()?, frame)?;
        let decision = self.decided();
        let reason = decision.and_then(|d| Reason::from_index(d.reason));
        let contradiction = Error::Contradiction {
            action: run.action,
            reason,
        };
        let (Some(decision), Some(reason)) = (decision, reason) else {
            return Err(contradiction);
        };
        if run.action != action_of(reason.verdict()) {
            return Err(contradiction);
        }
        let service = decision.service.checked_sub(1);
        let service = service.and_then(|index| self.dataplane.service_at(index));
        let backend = (decision.backend != 0)
            .then(|| self.dataplane.backend_at(decision.backend))
            .flatten();
        Ok(Outcome {
            verdict: reason.verdict(),
            reason,
            service: service.and_then(|key| self.names.get(&key).cloned()),
            backend: backend.map(|id| SocketAddr::new(id.address, id.port)),
            out: run.packet,
        })
    }

    /// Runs the program on a frame without asking what it decided; several threads may do so at once.
    ///
    /// # Errors
    /// [`Error::TestRun`], [`Error::Datapath`].
    pub fn run(&self, frame: &[u8]) -> Result<testrun::Run, Error> {
        Ok(testrun::run(self.program()?, frame)?)
    }

    /// The loaded program.
    ///
    /// # Errors
    /// [`super::Error::MissingMap`] for an object without it.
    pub fn program(&self) -> Result<&Xdp, super::Error> {
        let program = self
            .ebpf
            .program(PROGRAM)
            .ok_or(super::Error::MissingMap(PROGRAM))?;
        Ok(program.try_into()?)
    }

    fn decided(&self) -> Option<Decision> {
        let first = self.decision.get(0);
        (first != UNDECIDED).then(|| Decision {
            reason: first as u32,
            service: (first >> 32) as u32,
            backend: self.decision.get(1) as u32,
            reserved: 0,
        })
    }
}

/// What the first word of the decision holds before a packet.
const UNDECIDED: u64 = u64::MAX;

/// [`OWN_MAC`] as the map holds it.
fn own_mac() -> [u16; 3] {
    let [a, b, c, d, e, f] = OWN_MAC;
    [[a, b], [c, d], [e, f]].map(u16::from_ne_bytes)
}

fn action_of(verdict: Verdict) -> Action {
    match verdict {
        Verdict::Tx => Action::Tx,
        Verdict::Redirect => Action::Redirect,
        Verdict::Pass => Action::Pass,
        Verdict::Drop => Action::Drop,
    }
}

/// The way to every backend of a configuration, as the simulation makes it up.
#[must_use]
pub fn hops(config: &Config, options: &Options) -> BTreeMap<IpAddr, HopView> {
    let backends = config.services.iter().flat_map(|service| &service.backends);
    let view = |address| HopView {
        hop: Ok(options.hop(address)),
        last: None,
        doubted: false,
    };
    backends
        .map(|backend| (backend.address, view(backend.address)))
        .collect()
}

/// What the maps must hold when every backend is UP and reachable.
#[must_use]
pub fn desired(config: &Config, options: &Options, dataplane: &Dataplane) -> control::Desired {
    let up = BackendStatus {
        state: OperState::Up,
        admin: AdminState::Ready,
        ever_up: true,
        ..BackendStatus::default()
    };
    let all = || {
        config
            .services
            .iter()
            .flat_map(|service| service.backends.iter().map(move |backend| (service, backend)))
    };
    let statuses = all()
        .map(|(service, backend)| (backend.id(service.key), up))
        .collect();
    control::desired(&Inputs {
        services: &config.services,
        statuses: &statuses,
        hops: &hops(config, options),
        earlier: &dataplane.earlier(),
        backups: &BTreeSet::new(),
        vlans: config.has_vlans(),
        interfaces: None,
        now: Instant::now(),
    })
}
