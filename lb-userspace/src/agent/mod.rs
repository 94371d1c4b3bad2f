//! The agent: one loop that owns the data plane and everything known about it.
//!
//! ```text
//!  prober ──reports──┐
//!  resolver ──hops───┤                                  control::desired      Dataplane::apply
//!  links ──events────┼─▶ Agent (this loop) ─▶ statuses ───────────────────▶ difference ─▶ maps
//!  API ──commands────┤        │
//!  signals, clock ───┘        └─▶ attach, watch, adopt, detach
//! ```
//!
//! Nothing is attached before the first full round of checks. Everything that must survive the agent is in the
//! pins: program, link, tables, and the states of the backends.

mod attach;
mod choice;
mod descriptors;
mod differences;
mod doubt;
mod hashkey;
mod incident;
mod keep;
mod limits;
mod measure;
mod members;
mod migrate;
mod nat;
mod orders;
mod path_mtu;
mod plan;
mod pool;
mod reconcile;
mod reload;
mod remember;
mod report;
mod startup;
mod steering;
mod suspects;
mod sweeper;
mod tell;
mod trace;
mod witness;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use aya::Ebpf;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::api::command::Reply;
use crate::api::types::{CheckStatus, Done};
use crate::config::{Config, OnStop};
use crate::control::flap::Flaps;
use crate::control::{BackendStatus, HopView};
use crate::datapath::apply::Dataplane;
use crate::datapath::attach::Attachment;
use crate::datapath::load::{Features, Sizes};
use crate::datapath::pins::PinDir;
use crate::health::{Prober, Report};
use crate::model::{BackendId, ServiceKey};
use crate::net::link::LinkEvent;
use crate::net::netlink::Netlink;
use crate::net::{NextHops, Resolver};
use crate::observe::incident::Follower;
use crate::observe::metrics::Meter;
use crate::observe::notify::Notifier;
use crate::observe::{Archive, Bus, Kind, Timestamp, Trail};
use crate::state::Keeper;
use lb_common::hash::HashKey;

/// What the command line says.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    pub config: PathBuf,
    /// Log so many dropped packets.
    pub trace_drops: Option<u64>,
    /// Detach unless a confirmation comes within this time after attaching.
    pub attach_confirm: Option<Duration>,
}

/// What is known of a backend beyond what the data plane depends on.
#[derive(Clone, Debug, Default)]
struct Observed {
    check: CheckStatus,
    changed: Option<std::time::SystemTime>,
    /// Its state is from before a reboot: the first result decides.
    hearsay: bool,
    /// Results in a row that passed, and that failed.
    counts: (u32, u32),
    /// Its last probes.
    trail: Trail,
    /// When it was last asked because its clients seemed to get no answer.
    suspected: Option<Timestamp>,
}

/// Waiting for checks: at start for all backends, at a reload for the new ones.
struct Round {
    awaiting: BTreeSet<BackendId>,
    /// Addresses whose next hops must have been looked up.
    addresses: BTreeSet<IpAddr>,
    deadline: Instant,
    /// `None`: the start.
    reload: Option<Reload>,
}

/// A configuration that takes effect at the end of its round.
struct Reload {
    config: Config,
    /// What the operator must know of it.
    warnings: Vec<String>,
    /// Who waits for it.
    replies: Vec<Reply<Done>>,
}

/// `--attach-confirm`: detached from these interfaces again unless a confirmation comes.
struct Unconfirmed {
    interfaces: Vec<String>,
    deadline: Instant,
}

struct Agent {
    options: AgentOptions,
    config: Config,
    pins: PinDir,
    /// Held until the end: refuses a second agent.
    _lock: File,
    ebpf: Ebpf,
    features: Features,
    sizes: Sizes,
    key: HashKey,
    dataplane: Dataplane,
    statuses: BTreeMap<BackendId, BackendStatus>,
    observed: BTreeMap<BackendId, Observed>,
    hops: BTreeMap<IpAddr, HopView>,
    /// What routers said of ways to backends.
    paths: path_mtu::PathMtus,
    prober: Prober,
    agents: steering::Agents,
    resolver: Resolver,
    netlink: Netlink,
    round: Option<Round>,
    attachments: BTreeMap<String, Attachment>,
    watches: Vec<attach::Watch>,
    unconfirmed: Option<Unconfirmed>,
    /// When the service addresses are announced again.
    announce_at: Option<Instant>,
    /// Interfaces of the configuration that somebody, or a watch, took the program off; it is not put back
    /// by itself.
    given_up: BTreeSet<String>,
    /// Multicast groups that were joined for solicitations of service addresses, by interface.
    groups: BTreeSet<(String, Ipv6Addr)>,
    /// The maps are behind what is known: something changed, or writing them failed.
    behind: bool,
    /// When it was said last that there is no room for some backends.
    no_room: Option<Instant>,
    started: std::time::SystemTime,
    /// What happened, for everybody who wants to know.
    events: Bus,
    /// Events in the history and on disk.
    archive: Archive,
    /// Backends found DOWN whose table was not switched yet.
    incidents: Vec<incident::Opened>,
    /// Slots of each backend, for `status`.
    slots: BTreeMap<ServiceKey, report::Slots>,
    /// Programs that are told of events.
    notifier: Notifier,
    /// Counts for the metrics.
    meter: Meter,
    /// Looks for the first packets after a switch.
    follower: Follower,
    /// Writes down what must outlive a reboot.
    keeper: Keeper,
    /// Who is a backend of what.
    members: members::Members,
    /// When the last sign came of each backend that was seen, by its index.
    signs_known: Vec<u64>,
    /// Which backends of different services are one.
    sharing: pool::Sharing,
    /// Backends that went DOWN lately.
    flaps: BTreeMap<BackendId, Flaps>,
    /// What is silent and not believed.
    doubts: doubt::Doubts,
    /// How the backends of each service were chosen last.
    chosen: BTreeMap<ServiceKey, choice::Chosen>,
    /// Backends are starting slowly: their weights grow with time alone.
    ramping: bool,
    /// Slots on the move, by service.
    migrations: BTreeMap<ServiceKey, migrate::Migration>,
    /// What the next slots that move, move for.
    moves_for: String,
    /// From the first tables on.
    sweeper: Option<sweeper::Sweeper>,
    /// Of the table of translated flows; from the first service on that needs it.
    nat: Option<nat::NatSweeper>,
    /// Held: the reader of the program's log ends with it.
    trace: Option<trace::Trace>,
}

/// How the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Stopped,
    Detached,
}

/// Runs the agent until it is told to stop.
///
/// # Errors
/// Whatever keeps it from starting; after that only what makes going on impossible.
pub async fn run(options: AgentOptions) -> anyhow::Result<()> {
    let (reports_in, mut reports) = mpsc::channel(4096);
    let (commands_in, mut commands) = mpsc::channel(64);
    let (mut agent, mut hops, mut links, mut heard, socket) =
        Agent::start(options, reports_in, commands_in).await?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut clock = tokio::time::interval(Duration::from_millis(200));
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut beats = 0_u32;
    let mut signs = tokio::time::interval(suspects::LOOK_EVERY);
    signs.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);

    let end = loop {
        tokio::select! {
            Some(report) = reports.recv() => {
                agent.take_report(&report);
                // What else came in meanwhile belongs to the same change of the tables.
                while let Ok(report) = reports.try_recv() {
                    agent.take_report(&report);
                }
                agent.after_change().await?;
            }
            Some(report) = agent.agents.next() => {
                agent.take_agent_report(report);
                agent.after_change().await?;
            }
            Ok(()) = hops.changed() => {
                let fresh = hops.borrow_and_update().clone();
                agent.take_hops(&fresh);
                agent.after_change().await?;
            }
            Some(answer) = heard.recv() => {
                agent.hear(answer);
                while let Ok(answer) = heard.try_recv() {
                    agent.hear(answer);
                }
                agent.after_change().await?;
            }
            notice = agent.paths.next() => {
                agent.take_notice(&notice);
                agent.after_change().await?;
            }
            Some(event) = links.recv() => agent.link_changed(&event).await,
            Some(command) = commands.recv() => {
                if let Some(end) = agent.obey(command).await {
                    break end;
                }
            }
            _ = hangup.recv() => agent.begin_reload(None).await,
            _ = terminate.recv() => break End::Stopped,
            _ = interrupt.recv() => break End::Stopped,
            _ = signs.tick(), if agent.features.suspects => agent.look_for_signs(),
            _ = clock.tick() => {
                beats += 1;
                agent.tick(beats.is_multiple_of(5)).await?;
            }
        }
    };
    let result = agent.stop(end);
    socket.close().await;
    result
}

type HopsReceiver = watch::Receiver<Arc<NextHops>>;
type LinkReceiver = mpsc::UnboundedReceiver<LinkEvent>;
type ReportSender = mpsc::Sender<Report>;

impl Agent {
    /// Leaves forwarding as the configuration says, or takes it away.
    fn stop(mut self, end: End) -> anyhow::Result<()> {
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        let checkpoint = (!self.starting()).then(|| self.checkpoint());
        let result = self.leave(end);
        let forwarding = !self.pins.links().unwrap_or_default().is_empty();
        self.emit(Kind::AgentStopped { forwarding });
        if let Some(checkpoint) = checkpoint {
            self.keeper.finish(checkpoint);
        }
        self.archive.finish();
        result
    }

    fn leave(&mut self, end: End) -> anyhow::Result<()> {
        if end == End::Detached {
            return Ok(());
        }
        if let Some(Unconfirmed { interfaces, .. }) = self.unconfirmed.take() {
            log::warn!(
                "stopped before a confirmation came: detaching from {}",
                interfaces.join(", ")
            );
            if self.attachments.keys().all(|name| interfaces.contains(name)) {
                return self.take_away().context("detaching");
            }
            for interface in &interfaces {
                self.take_off(interface, "stopped before a confirmation came")?;
            }
        }
        if self.config.agent.on_stop == OnStop::Detach {
            return self.take_away().context("detaching");
        }
        if self.attachments.is_empty() {
            log::info!("stopped with nothing attached");
        } else {
            log::info!(
                "stopped; {} forward on with the states as they are (on_stop = \"keep\"); take it away with: xlb detach",
                self.interface_names()
            );
        }
        Ok(())
    }

    /// Takes program, links, maps and addresses out of the kernel.
    fn take_away(&mut self) -> Result<(), crate::datapath::Error> {
        self.leave_groups(&BTreeSet::new());
        self.pins.remove()?;
        log::info!(
            "detached from {}: nothing is forwarded any longer",
            self.interface_names()
        );
        Ok(())
    }

    fn interface_names(&self) -> String {
        self.config.agent.interfaces.join(", ")
    }
}
