//! A lab with a web server on every backend.

use std::sync::Arc;

use anyhow::Context;
use lb_tests::cleanup::Folder;
use lb_tests::lab::{Lab, LabOptions};
use lb_tests::server::Server;

use super::{FAST, addresses, curl, service};

/// The address of the service [`World::web`].
pub const VIP: &str = "192.0.2.10";

pub struct World {
    pub lab: Lab,
    pub servers: Vec<Option<Server>>,
    pub folder: Arc<Folder>,
}

impl World {
    pub fn new(options: LabOptions) -> anyhow::Result<Self> {
        let lab = Lab::new(options)?;
        let folder = Arc::new(Folder::new("servers")?);
        let servers = lab
            .backends
            .iter()
            .map(|b| Server::http(b, 80, &folder).map(Some));
        let servers = servers.collect::<anyhow::Result<_>>()?;
        Ok(Self { lab, servers, folder })
    }

    /// The usual lab with so many backends.
    pub fn of(backends: u8) -> anyhow::Result<Self> {
        Self::new(LabOptions {
            backends,
            ..LabOptions::default()
        })
    }

    /// A service with these keys, and all backends.
    pub fn web(&self, keys: &str) -> String {
        let all = addresses(&self.lab, false);
        service("web", VIP, 80, "tcp", "dsr-l2", FAST, &all).replace(
            "forward = \"dsr-l2\"\n",
            &format!("forward = \"dsr-l2\"\n{keys}\n"),
        )
    }

    /// SIGKILL to a server.
    pub fn kill(&mut self, server: usize) -> anyhow::Result<()> {
        self.servers[server].take().context("it runs")?.kill()
    }

    /// Starts it again.
    pub fn revive(&mut self, server: usize) -> anyhow::Result<()> {
        self.servers[server] = Some(Server::http(&self.lab.backends[server], 80, &self.folder)?);
        Ok(())
    }

    /// Which backends answer `count` requests.
    pub fn served(&self, count: usize) -> anyhow::Result<Vec<String>> {
        let names = (0..count).map(|_| Ok(curl(&self.lab, VIP, 80, "/")?.trim().to_owned()));
        let mut names = names.collect::<anyhow::Result<Vec<_>>>()?;
        names.sort();
        names.dedup();
        Ok(names)
    }
}
