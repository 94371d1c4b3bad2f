//! The stage of the consistency benchmark and of the demo: backends with echo servers, thousands of clients that
//! stay, and what can happen to them.
//!
//! A service can stand there in several *arms*: under one address as it is meant to be, under another with
//! `tracking = "none"`. The same backends serve them all, so every event happens to all arms at the same moment, and
//! what the second loses is the proof that there was something to lose.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::agent::Agent;
use super::cleanup::Folder;
use super::config::{Backend, Config, Service};
use super::flows::{Flows, Population, Target};
use super::ledger::{Death, Ledger};
use super::network::{Host, Lab, LabOptions, VIPS_V4};
use super::observe::Observer;
use super::server::Server;
use super::wire::Name;
use crate::model::{Forward, Protocol, ServiceKey};

/// The port of all services.
pub const PORT: u16 = 7000;

/// What is on the stage.
#[derive(Clone, Debug)]
pub struct StageOptions {
    /// Backends that serve from the start.
    pub backends: u8,
    /// Backends that can be added.
    pub spare: u8,
    pub arms: Vec<Arm>,
    /// Clients of each arm.
    pub tcp: Population,
    pub udp: Population,
    /// `tcp_idle_timeout`, where there is such a key. Clients that rest do so for half to
    /// [`REST_MOST`] of it.
    pub window: Duration,
    /// Further lines of `[agent]`.
    pub agent: String,
}

/// A way to remember flows, tried beside others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arm {
    pub name: &'static str,
    /// Lines of `[[service]]`.
    pub lines: String,
}

impl Arm {
    /// The arm with this `tracking`, where the configuration knows the key. `none` is what there is without it.
    #[must_use]
    pub fn tracking(name: &'static str) -> Option<Self> {
        let lines = match (has_key("tracking"), name) {
            (true, _) => format!("tracking = \"{name}\"\n"),
            (false, "none") => String::new(),
            (false, _) => return None,
        };
        Some(Self { name, lines })
    }
}

/// Whether a service's configuration has a key.
#[must_use]
pub fn has_key(name: &str) -> bool {
    let schema = crate::config::schema();
    schema["$defs"]["service"]["properties"].get(name).is_some()
}

/// The part of the window that clients rest at most.
pub const REST_MOST: f64 = 0.8;

/// UDP flows of the stage talk every second at least, and are forgotten after this.
const UDP_WINDOW: Duration = Duration::from_secs(10);

/// How long clients may take to come; a busy machine is slow to let them in.
const ARRIVAL: Duration = Duration::from_secs(180);

/// Checks that find out within half a second. Not more often than needed: there are hundreds of backends to check.
const CHECK: &str = "type = \"tcp\"\ninterval = \"500ms\"\ntimeout = \"300ms\"\nfast_interval = \"50ms\"\n\
                     fast_timeout = \"100ms\"\n";

/// Dropped from the top: the clients go first, the network last.
#[derive(Debug)]
pub struct Stage {
    flows: Option<Flows>,
    pub agent: Agent,
    servers: Vec<Option<Server>>,
    pub lab: Lab,
    folder: Arc<Folder>,
    config: Config,
    arms: Vec<Arm>,
    /// The backends in the configuration, by their place in the lab, with their weights.
    members: Vec<(usize, u16)>,
    ledger: Arc<Mutex<Ledger>>,
}

impl Stage {
    /// The network, the servers and the agent; no clients yet.
    ///
    /// # Errors
    /// Where something does not come up.
    pub fn set_up(options: &StageOptions) -> anyhow::Result<Self> {
        let StageOptions {
            backends,
            spare,
            arms,
            tcp: _,
            udp: _,
            window,
            agent: lines,
        } = options;
        ensure!(arms.len() <= VIPS_V4.len(), "an address for each arm");
        let lab = Lab::new(LabOptions {
            backends: backends + spare,
            ..LabOptions::default()
        })?;
        let folder = Arc::new(Folder::new("stage")?);
        let servers = lab.backends.iter().map(|host| Ok(Some(serve(host, &folder)?)));
        let servers = servers.collect::<anyhow::Result<_>>()?;
        let config = Config {
            agent: lines.clone(),
            check: CHECK.into(),
            services: services(arms, *window),
            ..Config::default()
        };
        let agent = Agent::new(&lab.lb.netns)?;
        let mut stage = Self {
            flows: None,
            agent,
            servers,
            lab,
            folder,
            config,
            arms: arms.clone(),
            members: (0..usize::from(*backends)).map(|n| (n, 1)).collect(),
            ledger: Arc::default(),
        };
        stage.configure()?;
        stage.agent.start()?;
        stage.wait_serving()?;
        Ok(stage)
    }

    /// Brings the clients in and waits until they are there.
    ///
    /// # Errors
    /// Where they do not come.
    pub fn fill(&mut self, options: &StageOptions) -> anyhow::Result<()> {
        let rest = (options.window / 2, options.window.mul_f64(REST_MOST));
        let targets = self.config.services.iter().map(|service| Target {
            key: ServiceKey {
                address: service.address,
                port: service.port,
                protocol: service.protocol,
            },
            population: match service.protocol {
                Protocol::Tcp => options.tcp,
                Protocol::Udp => options.udp,
            },
            rest,
        });
        let targets = targets.collect();
        self.flows = Some(Flows::start(&self.lab.client.netns, targets)?);
        self.wait_full()
    }

    /// Sends the clients away.
    pub fn clear(&mut self) {
        self.flows = None;
    }

    /// Waits until the clients are all there.
    ///
    /// # Errors
    /// Where they do not come.
    pub fn wait_full(&self) -> anyhow::Result<()> {
        let flows = self.flows()?;
        let hopeless = Instant::now() + ARRIVAL;
        while !flows.full() {
            ensure!(
                Instant::now() < hopeless,
                "the clients do not come: {} are there",
                flows.live().len()
            );
            sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// # Errors
    /// Before [`Self::fill`].
    pub fn flows(&self) -> anyhow::Result<&Flows> {
        self.flows.as_ref().context("there are no clients yet")
    }

    #[must_use]
    pub fn arms(&self) -> &[Arm] {
        &self.arms
    }

    /// The arm of a service, by the index that flows have: an arm has one of each protocol.
    #[must_use]
    pub fn arm_of(&self, service: usize) -> usize {
        service / PROTOCOLS.len()
    }

    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same ledger for another thread.
    #[must_use]
    pub fn shared_ledger(&self) -> Arc<Mutex<Ledger>> {
        Arc::clone(&self.ledger)
    }

    /// Reads the tables beside the agent.
    ///
    /// # Errors
    /// Where nothing is pinned.
    pub fn observer(&self) -> anyhow::Result<Observer> {
        let hosts = self.lab.backends.iter();
        let names: HashMap<IpAddr, Name> = hosts.map(|host| (host.v4.into(), name(host))).collect();
        Observer::open(
            self.agent.pin_dir(),
            self.lab.client.v4,
            self.flows()?.targets(),
            names,
        )
    }

    /// The name of a backend, as its answers carry it.
    #[must_use]
    pub fn name(&self, backend: usize) -> Name {
        name(&self.lab.backends[backend])
    }

    fn address(&self, backend: usize) -> Ipv4Addr {
        self.lab.backends[backend].v4
    }

    /// The backends in the configuration, by their place in the lab.
    #[must_use]
    pub fn members(&self) -> Vec<usize> {
        self.members.iter().map(|(backend, _)| *backend).collect()
    }

    fn died(&self, backend: usize, death: Death) {
        self.ledger().died(self.name(backend), death, Instant::now());
    }

    fn returned(&self, backend: usize) {
        self.ledger().returned(self.name(backend), Instant::now());
    }

    /// SIGKILL to a server: connections to it are reset.
    ///
    /// # Errors
    /// Where it does not run.
    pub fn kill(&mut self, backend: usize) -> anyhow::Result<()> {
        self.died(backend, Death::Dead);
        self.servers[backend].take().context("it runs")?.kill()
    }

    /// Starts it again.
    ///
    /// # Errors
    /// Where it does not answer.
    pub fn revive(&mut self, backend: usize) -> anyhow::Result<()> {
        self.servers[backend] = Some(serve(&self.lab.backends[backend], &self.folder)?);
        self.returned(backend);
        Ok(())
    }

    /// Pulls the cable of a backend.
    ///
    /// # Errors
    /// Where `ip` fails.
    pub fn cut(&self, backend: usize) -> anyhow::Result<()> {
        self.died(backend, Death::Dead);
        self.lab.cut(&self.lab.backends[backend].name)
    }

    /// Plugs it in again.
    ///
    /// # Errors
    /// Where `ip` fails.
    pub fn mend(&self, backend: usize) -> anyhow::Result<()> {
        self.lab.mend(&self.lab.backends[backend].name)?;
        self.returned(backend);
        Ok(())
    }

    /// Fills the accept queue of a backend: no new connection, those it has go on.
    ///
    /// # Errors
    /// Where it does not run.
    pub fn deafen(&self, backend: usize) -> anyhow::Result<()> {
        self.died(backend, Death::Unheard);
        self.server(backend)?.deafen(true)
    }

    /// Ends that.
    ///
    /// # Errors
    /// Where it does not run.
    pub fn undeafen(&self, backend: usize) -> anyhow::Result<()> {
        self.server(backend)?.deafen(false)?;
        self.returned(backend);
        Ok(())
    }

    fn server(&self, backend: usize) -> anyhow::Result<&Server> {
        self.servers[backend].as_ref().context("the server does not run")
    }

    /// `xlb backend drain|ready|maint --host`.
    ///
    /// # Errors
    /// Where it is refused.
    pub fn order(&self, order: &str, backend: usize) -> anyhow::Result<()> {
        let address = self.address(backend).to_string();
        self.agent.order(&["backend", order, "--host", &address])?;
        Ok(())
    }

    /// Changes the weight of a backend in every service, by order.
    ///
    /// # Errors
    /// Where it is refused.
    pub fn set_weight(&self, backend: usize, weight: &str) -> anyhow::Result<()> {
        let address = self.address(backend).to_string();
        for service in &self.config.services {
            self.agent
                .order(&["backend", "set-weight", &service.name, &address, weight])?;
        }
        Ok(())
    }

    /// Puts a backend into the configuration and reloads it.
    ///
    /// # Errors
    /// Where that is refused.
    pub fn add(&mut self, backend: usize) -> anyhow::Result<()> {
        self.members.push((backend, 1));
        self.reload()
    }

    /// Takes a backend out of the configuration and reloads it: its flows are lost from then on.
    ///
    /// # Errors
    /// Where that is refused.
    pub fn remove(&mut self, backend: usize) -> anyhow::Result<()> {
        if self.ledger().lives(self.name(backend)) {
            self.died(backend, Death::Dead);
        }
        self.members.retain(|(member, _)| *member != backend);
        self.reload()
    }

    /// One backend takes the place of another in the configuration.
    ///
    /// # Errors
    /// Where that is refused.
    pub fn replace(&mut self, old: usize, new: usize) -> anyhow::Result<()> {
        self.members.push((new, 1));
        self.remove(old)
    }

    /// A backend that is no member and was removed alive can be a member again.
    pub fn forgive(&self, backend: usize) {
        self.returned(backend);
    }

    /// Changes the weight of a backend in the configuration, and reloads it.
    ///
    /// # Errors
    /// Where that is refused.
    pub fn configure_weight(&mut self, backend: usize, weight: u16) -> anyhow::Result<()> {
        for (member, at) in &mut self.members {
            if *member == backend {
                *at = weight;
            }
        }
        self.reload()
    }

    /// Changes the size of all tables.
    ///
    /// # Errors
    /// Where that is refused.
    pub fn resize(&mut self, slots: u32) -> anyhow::Result<()> {
        for service in &mut self.config.services {
            let kept = service
                .more
                .lines()
                .filter(|line| !line.starts_with("table_size"));
            service.more = kept.map(|line| format!("{line}\n")).collect::<String>();
            service.more += &format!("table_size = {slots}\n");
        }
        self.reload()
    }

    /// Adds a service of all ports, or takes it away: the program has to be another one for it.
    ///
    /// # Errors
    /// Where that is refused.
    pub fn other_program(&mut self, other: bool) -> anyhow::Result<()> {
        let before = self.programs()?;
        self.config.services.retain(|service| service.name != "all-ports");
        if other {
            let mut all = self.config.services[0].clone();
            all.name = "all-ports".into();
            all.address = IpAddr::V4(VIPS_V4[VIPS_V4.len() - 1]);
            all.port = 0;
            all.check = format!("port = {PORT}\n");
            self.config.services.push(all);
        }
        self.reload()?;
        let after = self.programs()?;
        ensure!(before != after, "the program is the same: {before:?}");
        Ok(())
    }

    /// The program on each interface.
    fn programs(&self) -> anyhow::Result<Vec<u32>> {
        let interfaces = self.agent.status()?.interfaces;
        let ids = interfaces
            .iter()
            .map(|interface| interface.program_id.context("a program"));
        ids.collect()
    }

    /// Writes the configuration as it should be and reloads it.
    ///
    /// # Errors
    /// Where it is refused.
    pub fn reload(&mut self) -> anyhow::Result<()> {
        self.configure()?;
        self.agent.order(&["reload"])?;
        Ok(())
    }

    fn configure(&mut self) -> anyhow::Result<()> {
        let backends: Vec<Backend> = self
            .members
            .iter()
            .map(|(member, weight)| Backend {
                address: self.address(*member).into(),
                weight: *weight,
            })
            .collect();
        for service in &mut self.config.services {
            service.backends.clone_from(&backends);
        }
        self.agent.configure(&self.config)
    }

    /// SIGKILL to the agent.
    ///
    /// # Errors
    /// Where it does not run.
    pub fn kill_agent(&mut self) -> anyhow::Result<()> {
        self.agent.kill()
    }

    /// Starts it again and waits until it is there.
    ///
    /// # Errors
    /// Where it does not come up.
    pub fn start_agent(&mut self) -> anyhow::Result<()> {
        self.agent.start()
    }

    /// Takes everything away, in order; the clients first.
    ///
    /// # Errors
    /// Where the agent does not detach, or leaves pins.
    pub fn take_down(mut self) -> anyhow::Result<()> {
        self.flows = None;
        self.agent.order(&["detach"])?;
        let status = self.agent.wait_end()?;
        ensure!(
            status.success(),
            "the agent ended with {status}:\n{}",
            self.agent.log()
        );
        let pins = self.agent.pin_dir();
        ensure!(!pins.exists(), "detach left pins in {}", pins.display());
        Ok(())
    }

    /// Waits until all members that are READY serve.
    ///
    /// # Errors
    /// Where that does not come.
    pub fn wait_serving(&self) -> anyhow::Result<()> {
        self.agent.wait_serving(|_| true)
    }

    /// Waits until a backend serves, or does not.
    ///
    /// # Errors
    /// Where that does not come.
    pub fn wait_verdict(&self, backend: usize, serves: bool) -> anyhow::Result<()> {
        let address = IpAddr::V4(self.address(backend));
        self.agent.wait_serving(|other| other != address || serves)
    }
}

const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

fn services(arms: &[Arm], window: Duration) -> Vec<Service> {
    let mut services = Vec::new();
    for (arm, address) in arms.iter().zip(VIPS_V4) {
        for protocol in PROTOCOLS {
            let idle = match protocol {
                Protocol::Tcp => ("tcp_idle_timeout", window),
                Protocol::Udp => ("udp_idle_timeout", UDP_WINDOW.min(window)),
            };
            let mut more = arm.lines.clone();
            if has_key(idle.0) {
                more += &format!("{} = \"{}ms\"\n", idle.0, idle.1.as_millis());
            }
            services.push(Service {
                name: format!("{}-{protocol}", arm.name),
                address: address.into(),
                port: PORT,
                protocol,
                forward: Forward::DsrL2,
                more,
                check: "type = \"tcp\"\n".into(),
                backends: Vec::new(),
            });
        }
    }
    services
}

fn serve(host: &Host, folder: &Arc<Folder>) -> anyhow::Result<Server> {
    let udp = VIPS_V4.map(|vip| SocketAddr::new(vip.into(), PORT));
    Server::echo(host, PORT, &udp, folder)
}

fn name(host: &Host) -> Name {
    Name::new(&host.name)
}
