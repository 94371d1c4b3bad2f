//! The network of the demo: three backends, a service of every way to forward, the agent.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;

use super::narrate::Narrator;
use crate::lab::agent::Agent;
use crate::lab::cleanup::Folder;
use crate::lab::config::{Config, every_way};
use crate::lab::load::{Load, LoadOptions};
use crate::lab::network::{Lab, LabOptions};
use crate::lab::server::Server;
use crate::lab::wait::wait_until;

/// Dropped from the top: the agent goes before its network.
#[derive(Debug)]
pub(super) struct Scene {
    pub agent: Agent,
    servers: Vec<Option<Server>>,
    pub lab: Lab,
    folder: Arc<Folder>,
    pub config: Config,
}

impl Scene {
    pub fn set_up(say: &mut Narrator) -> anyhow::Result<Self> {
        say.step(
            "building a network of namespaces: client, load balancer, 3 backends, one switch; IPv4 and IPv6",
        );
        let lab = Lab::new(LabOptions {
            decap: true,
            ..LabOptions::default()
        })?;
        say.step("starting an HTTP server on each backend");
        let folder = Arc::new(Folder::new("demo")?);
        let servers = lab
            .backends
            .iter()
            .map(|backend| Ok(Some(Server::http(backend, 80, &folder)?)));
        let servers = servers.collect::<anyhow::Result<_>>()?;
        say.step("starting the agent on the load balancer: first round of checks, then attach");
        let config = Config {
            services: every_way(&lab.backends),
            ..Config::default()
        };
        let agent = Agent::running(&lab.lb.netns, &config)?;
        agent.wait_serving(|_| true)?;
        let status = agent.status()?;
        for interface in &status.interfaces {
            say.done(&format!(
                "attached to {} in {} mode",
                interface.name, interface.mode
            ));
        }
        Ok(Self {
            agent,
            servers,
            lab,
            folder,
            config,
        })
    }

    /// Where clients connect to: the services named, or all.
    pub fn targets(&self, service: Option<&str>) -> Vec<SocketAddr> {
        let services = self.config.services.iter();
        let services = services.filter(|s| service.is_none_or(|name| s.name == name));
        services.map(|s| SocketAddr::new(s.address, s.port)).collect()
    }

    /// Connections to all services in turn.
    pub fn load(&self) -> anyhow::Result<Load> {
        Load::start(&self.lab.client.netns, LoadOptions::new(self.targets(None)))
    }

    /// Kills the server of a backend.
    pub fn kill_server(&mut self, backend: usize) -> anyhow::Result<()> {
        self.servers[backend].take().context("it runs")?.kill()
    }

    /// Starts it again and waits until all backends serve.
    pub fn revive_server(&mut self, backend: usize) -> anyhow::Result<()> {
        self.servers[backend] = Some(Server::http(&self.lab.backends[backend], 80, &self.folder)?);
        self.agent.wait_serving(|_| true)
    }

    /// Takes everything away, in order.
    pub fn take_down(self) -> anyhow::Result<()> {
        let Self {
            mut agent,
            servers,
            lab,
            folder,
            config: _,
        } = self;
        agent.order(&["detach"])?;
        let status = agent.wait_end()?;
        anyhow::ensure!(
            status.success(),
            "the agent ended with {status}:\n{}",
            agent.log()
        );
        anyhow::ensure!(
            !agent.pin_dir().exists(),
            "detach left pins in {}",
            agent.pin_dir().display()
        );
        drop((agent, servers, lab, folder));
        Ok(())
    }
}

/// Waits until a load has begun so many connections.
pub(super) fn wait_begun(load: &Load, count: u64) -> anyhow::Result<()> {
    wait_until("the load to run", || Ok(load.begun() >= count))
}
