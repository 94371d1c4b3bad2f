//! Coming up: configuration, kernel, pins, program, first round of checks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};
use tokio::sync::mpsc;

use super::doubt::{Doubts, HeardReceiver};
use super::keep::{self, Restored};
use super::measure::Scrape;
use super::members::Members;
use super::path_mtu::PathMtus;
use super::pool::Sharing;
use super::steering::Agents;
use super::{
    Agent, AgentOptions, HopsReceiver, LinkReceiver, ReportSender, Round, descriptors, hashkey, trace,
};
use crate::api::command::Command;
use crate::api::server::{self, Socket};
use crate::config::{Announce, Config, EntryRates, Machine};
use crate::datapath::apply::Dataplane;
use crate::datapath::apply::allow::Rates;
use crate::datapath::clock::monotonic_ns;
use crate::datapath::counters::CounterMaps;
use crate::datapath::load::{self, Features, Sizes};
use crate::datapath::maps::Maps;
use crate::datapath::pins::{AGENT_META, PinDir};
use crate::datapath::{self, attach};
use crate::health::prober::Network;
use crate::health::{CheckSpec, Forwarder, Previous, Prober, Target};
use crate::model::{BackendId, Forward, OperState};
use crate::net::netlink::Netlink;
use crate::net::{Resolver, link, pairs};
use crate::observe::incident::Follower;
use crate::observe::metrics::{self, Meter};
use crate::observe::notify::Notifier;
use crate::observe::{Archive, Timestamp};
use crate::state::{Checkpoint, Keeper};

/// Beyond the longest timeout, how long a round waits for results at most.
const ROUND_MARGIN: Duration = Duration::from_secs(2);

/// The name of the program in its object.
pub(super) const PROGRAM: &str = "lb";

impl Agent {
    /// Everything up to the first probe. Nothing is attached yet.
    pub(super) async fn start(
        options: AgentOptions,
        reports: ReportSender,
        commands: mpsc::Sender<Command>,
    ) -> anyhow::Result<(Self, HopsReceiver, LinkReceiver, HeardReceiver, Socket)> {
        datapath::check_system()?;
        let config = read_config(&options.config)?;
        for warning in config.warnings() {
            log::warn!("{}: {warning}", options.config.display());
        }
        descriptors::raise_limit();
        let pins = PinDir::create(&config.agent.pin_dir)?;
        let lock = pins.lock()?;
        let fresh = !pins.path(AGENT_META.pin).exists();
        let result = async {
            let (agent, hops, links, heard) =
                Self::bring_up(options, config, pins.clone(), lock, reports).await?;
            if let Some(address) = agent.config.agent.metrics {
                let scrape = Scrape {
                    commands: commands.clone(),
                    counters: Arc::new(CounterMaps::open(&agent.pins)?),
                    pin_dir: agent.pins.root().to_owned(),
                };
                tokio::spawn(metrics::server::serve(address, scrape));
            }
            let path = &agent.config.agent.api_socket;
            let socket = server::serve(path, commands, agent.archive.clone(), &agent.config.agent.pin_dir)
                .with_context(|| format!("API socket {}", path.display()))?;
            Ok((agent, hops, links, heard, socket))
        }
        .await;
        if result.is_err()
            && fresh
            && let Err(error) = pins.remove()
        {
            log::warn!("cleaning up: {error}");
        }
        result
    }

    async fn bring_up(
        options: AgentOptions,
        config: Config,
        pins: PinDir,
        lock: File,
        reports: ReportSender,
    ) -> anyhow::Result<(Self, HopsReceiver, LinkReceiver, HeardReceiver)> {
        pins.verify()?;
        refuse_foreign_programs(&config, &pins).await?;
        let key = hashkey::settle(&config, &pins)?;
        let features = features(&config, options.trace_drops.is_some());
        let sizes = Sizes::of(&config.agent);
        let mut ebpf = load::load(features, &key, sizes, Some(&pins))?;
        attach::verify(&mut ebpf, PROGRAM)?;
        let maps = Maps::of(&mut ebpf, sizes, Some(&pins))?;
        let mut dataplane = Dataplane::adopt(maps, monotonic_ns())?;
        dataplane.set_rates(rates(&config));
        dataplane.maps.nat.set_pools(&config.agent.snat)?;
        let trace = options
            .trace_drops
            .map(|count| trace::start(&mut ebpf, count))
            .transpose()?;

        let warm = !dataplane.remembered().is_empty();
        let kept = Checkpoint::load(&config.agent.state_dir);
        let Restored {
            statuses,
            observed,
            flaps,
            said,
        } = keep::restore(&config, &dataplane.remembered(), kept.as_ref());
        let counters = Arc::new(CounterMaps::open(&pins)?);
        let archive = Archive::open(&config.agent.state_dir);
        let events = archive.bus().clone();
        tokio::spawn(archive.clone().follow());
        let mut notifier = Notifier::new(events.clone());
        notifier.set(&config.agent.notify);
        let follower = Follower::spawn(Arc::clone(&counters), events.clone());
        let seq = kept.as_ref().map_or(0, |checkpoint| checkpoint.seq);
        let keeper = Keeper::new(&config.agent.state_dir, seq, events.clone());
        let netlink = Netlink::open()?;
        let links = link::watch_links().await.context("watching the interfaces")?;
        let (resolver, hops) = Resolver::spawn();
        let network = Network {
            forwarder: Some(Arc::new(Forwarder::new(hops.clone()))),
        };
        let (doubts, heard) = Doubts::new(config.agent.witness);
        let mut agent = Self {
            prober: Prober::with_network(network, reports),
            agents: Agents::new(said),
            resolver,
            netlink,
            pins,
            _lock: lock,
            ebpf,
            features,
            sizes,
            key,
            dataplane,
            statuses,
            observed,
            hops: BTreeMap::new(),
            paths: PathMtus::listening(),
            round: None,
            attachments: BTreeMap::new(),
            watches: Vec::new(),
            unconfirmed: None,
            announce_at: None,
            given_up: BTreeSet::new(),
            groups: BTreeSet::new(),
            behind: true,
            no_room: None,
            started: SystemTime::now(),
            members: Members::default(),
            signs_known: Vec::new(),
            sharing: Sharing::default(),
            flaps,
            doubts,
            chosen: BTreeMap::new(),
            ramping: false,
            events,
            archive,
            incidents: Vec::new(),
            slots: BTreeMap::new(),
            notifier,
            meter: Meter::default(),
            follower,
            keeper,
            migrations: BTreeMap::new(),
            moves_for: "the agent was started".into(),
            sweeper: None,
            nat: None,
            trace,
            config,
            options,
        };
        agent.emit_start(warm, agent.last_life(kept.as_ref()));
        agent.beat()?;
        agent.adopted()?;
        let targets = agent.set_targets();
        agent.round = Some(Round {
            awaiting: targets.iter().map(|target| target.id).collect(),
            addresses: Self::backend_addresses(&agent.config),
            deadline: Instant::now() + round_limit(&targets),
            reload: None,
        });
        log::info!("first round of checks: {} backends", targets.len());
        Ok((agent, hops, links, heard))
    }

    /// The last sign of life of the agent before this one, as far as events do not have a later one.
    fn last_life(&self, kept: Option<&Checkpoint>) -> Option<Timestamp> {
        let beat = self
            .dataplane
            .maps
            .agent_meta
            .get(&0, 0)
            .map_or(0, |meta| meta.alive_s);
        let beat = Timestamp::of(SystemTime::UNIX_EPOCH + Duration::from_secs(beat.min(u64::from(u32::MAX))));
        let written = kept.map_or(Timestamp(0), |checkpoint| checkpoint.written);
        let last = beat.max(written).max(self.archive.history().last_time());
        (last > Timestamp(0)).then_some(last)
    }

    /// Says what was found in the pins, and takes over what the last agent left beside them.
    fn adopted(&mut self) -> anyhow::Result<()> {
        for interface in self.pins.links()? {
            self.groups.extend(self.groups_wanted(&interface).into_keys());
        }
        let remembered = self.dataplane.remembered();
        if !remembered.is_empty() {
            log::info!(
                "adopted the pinned data plane: {} services, {} backends; tables stay until every backend was checked",
                self.dataplane.earlier().len(),
                remembered.len()
            );
        }
        Ok(())
    }

    /// Has probed and resolved what the configuration in force names, and one that waits. Gives back the targets.
    pub(super) fn set_targets(&mut self) -> Vec<Target> {
        let waiting = self.round.as_ref().and_then(|round| round.reload.as_ref());
        let configs: Vec<&Config> = waiting
            .map(|reload| &reload.config)
            .into_iter()
            .chain([&self.config])
            .collect();
        let addresses = configs.iter().flat_map(|config| Self::backend_addresses(config));
        self.resolver.set_targets(addresses.collect());
        self.sharing = Sharing::of(&configs, &self.sharing);
        self.members = Members::of(&self.config, waiting.map(|reload| &reload.config));
        let targets = self.targets(&configs);
        let agents = self.agent_targets(&configs);
        descriptors::reserve(targets.iter().map(|target| target.check.probes.len()).sum());
        self.prober.set_targets(targets.clone());
        self.set_agents(agents);
        targets
    }

    /// What is to be probed for these configurations together; the first that names a backend says how.
    pub(super) fn targets(&self, configs: &[&Config]) -> Vec<Target> {
        let mut targets: BTreeMap<BackendId, Target> = BTreeMap::new();
        for config in configs {
            for service in &config.services {
                for backend in &service.backends {
                    let id = backend.id(service.key);
                    let status = self.statuses.get(&id).copied().unwrap_or_default();
                    if !status.is_probed() || self.sharing.probed(&id) != id {
                        continue;
                    }
                    targets.entry(id).or_insert_with(|| Target {
                        id,
                        address: backend.address,
                        port: backend.port,
                        forward: service.forward,
                        check: CheckSpec::of(&backend.check),
                        previous: self.previous(&id),
                    });
                }
            }
        }
        targets.into_values().collect()
    }

    /// Where the checks of a backend go on, where its state is a verdict of this boot.
    fn previous(&self, id: &BackendId) -> Option<Previous> {
        let observed = self.observed.get(id);
        let state = self.statuses.get(id)?.state;
        if state == OperState::Unknown || observed.is_some_and(|observed| observed.hearsay) {
            return None;
        }
        let (passes, failures) = observed.map_or((0, 0), |observed| observed.counts);
        Some(Previous {
            state,
            passes,
            failures,
        })
    }

    /// Writes down that we live.
    pub(super) fn beat(&mut self) -> anyhow::Result<()> {
        let seconds = |time: SystemTime| {
            time.duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |d| d.as_secs())
        };
        let mut version = [0; 32];
        let text = env!("CARGO_PKG_VERSION").as_bytes();
        let len = text.len().min(version.len() - 1);
        version[..len].copy_from_slice(&text[..len]);
        let meta = lb_common::layout::AgentMeta {
            layout: lb_common::layout::LAYOUT_VERSION,
            pid: std::process::id(),
            started_s: seconds(self.started),
            alive_s: seconds(SystemTime::now()),
            version,
        };
        Ok(self.dataplane.maps.agent_meta.set(0, meta, 0)?)
    }
}

/// How long a round of checks may take.
pub(super) fn round_limit(targets: &[Target]) -> Duration {
    targets
        .iter()
        .map(|t| t.check.policy.timeout)
        .max()
        .unwrap_or_default()
        + ROUND_MARGIN
}

/// Reads and validates a configuration, against the machine too.
pub(super) fn read_config(path: &Path) -> anyhow::Result<Config> {
    let machine = Machine::read().context("asking the kernel for its interfaces and addresses")?;
    Ok(Config::load_for(path, &machine)?)
}

/// How many entries packets may make in the flow table.
pub(super) fn rates(config: &Config) -> Rates {
    let EntryRates {
        by_syn,
        by_data,
        by_udp,
    } = config.agent.entry_rates;
    Rates {
        syn_per_s: by_syn.into(),
        data_per_s: by_data.into(),
        udp_per_s: by_udp.into(),
    }
}

/// What the program is specialised by.
pub(super) fn features(config: &Config, trace_drops: bool) -> Features {
    Features {
        wildcard: config.services.iter().any(|service| service.key.port == 0),
        ranged: config.has_ranges(),
        announce: config.agent.announce == Announce::L2,
        gue: config.has(Forward::DsrGue),
        spread: config.spreads(),
        frags: datapath::has_frags(),
        explain: false,
        trace_drops,
        resets: config.answers_with_resets(),
        icmp_echo: config.agent.icmp_echo,
        fragment_by: fragment_by(config),
        icmp_error_rate: load::ICMP_ERROR_RATE,
        choosers: config.has_choosers(),
        suspects: config.has_suspects(),
        guards: config.has_access_lists(),
        limits: config.has_limits(),
        vlans: config.has_vlans(),
        persistent: config.keeps_clients(),
        nat: config.translates(),
        nat_routes: true,
        quic: config.has_quic(),
    }
}

/// The interface that the kernel cuts packets in pieces for, and the one that they come back by; zeros where there is none, or
/// where the pieces would not come back.
fn fragment_by(config: &Config) -> [u32; 2] {
    let Some(name) = &config.agent.fragment_by else {
        return [0; 2];
    };
    match pairs::pair(name) {
        Ok(pair) if config.agent.interfaces.contains(&pair.other) => pair.ifindexes,
        Ok(pair) => {
            log::warn!(
                "fragment_by is not used: {name} leads to {}, which is not among `interfaces`",
                pair.other
            );
            [0; 2]
        }
        Err(why) => {
            log::warn!("fragment_by is not used: {name}: {why}");
            [0; 2]
        }
    }
}

/// Fails before anything is touched where another program holds an interface.
async fn refuse_foreign_programs(config: &Config, pins: &PinDir) -> anyhow::Result<()> {
    let netlink = Netlink::open()?;
    for interface in &config.agent.interfaces {
        let Some(link) = link::link_by_name(&netlink, interface).await? else {
            bail!(datapath::Error::NoInterface(interface.clone()));
        };
        if let Some(xdp) = &link.xdp {
            attach::follow_rename(pins, interface, link.ifindex, xdp.program_id)?;
        }
        let ours = attach::own_link(pins, interface)?.is_some_and(|own| own.ifindex == link.ifindex);
        if let (Some(xdp), false) = (link.xdp, ours) {
            bail!(datapath::Error::ForeignProgram {
                interface: interface.clone(),
                program_id: xdp.program_id
            });
        }
    }
    Ok(())
}
