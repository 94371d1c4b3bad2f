//! Who can die: one backend, or many at once.
//!
//! ```text
//!   client ─┐          ┌─ b1                  serves on, in both pools
//!           ├─ switch ─┼─ b2                  the backend of the pool `one` that dies
//!   lb ─────┘          └─ b3, many addresses  the backends of the pool `many` that die at once
//! ```

use std::net::Ipv4Addr;
use std::sync::Arc;

use anyhow::Context;
use xlb::lab::flood::mac_of;

use crate::cleanup::Folder;
use crate::lab::{DEVICE, Host, Lab, LabOptions};
use crate::server::Server;

pub const PORT: u16 = 80;

/// Which backends die.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pool {
    One,
    Many,
}

impl Pool {
    pub const ALL: [Self; 2] = [Self::One, Self::Many];

    pub fn name(self) -> &'static str {
        match self {
            Self::One => "one",
            Self::Many => "many",
        }
    }
}

/// How they die.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// The process is killed: connections are refused.
    Refused,
    /// The cable is pulled: nobody answers.
    Silent,
}

impl Death {
    pub const ALL: [Self; 2] = [Self::Refused, Self::Silent];

    pub fn text(self) -> &'static str {
        match self {
            Self::Refused => "process killed",
            Self::Silent => "host gone",
        }
    }
}

/// Dropped from the top.
#[derive(Debug)]
pub struct Arena {
    servers: [Option<Server>; 3],
    pub lab: Lab,
    pub folder: Arc<Folder>,
    /// Backends of [`Pool::Many`] that die.
    pub many: u16,
}

const SURVIVOR: usize = 0;

impl Arena {
    /// # Errors
    /// Where the network cannot be made.
    pub fn set_up(many: u16) -> anyhow::Result<Self> {
        let lab = Lab::new(LabOptions::default())?;
        let farm = &lab.backends[host(Pool::Many)];
        farm.netns.ip(&format!("route add local {FARM}/16 dev lo\n"))?;
        let mac = farm.netns.enter(|| mac_of(DEVICE))?;
        let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
        // More neighbours than the kernel keeps by itself.
        let neighbours: String = (0..many)
            .map(|n| {
                format!(
                    "neigh add {} lladdr {mac} dev {DEVICE} nud permanent\n",
                    farmed(n)
                )
            })
            .collect();
        lab.lb
            .netns
            .ip(&format!("route add {FARM}/16 dev {DEVICE}\n{neighbours}"))
            .context("the neighbours of the load balancer")?;
        let folder = Arc::new(Folder::new("failover")?);
        let serve = |n: usize| Server::http(&lab.backends[n], PORT, &folder).map(Some);
        Ok(Self {
            servers: [serve(0)?, serve(1)?, serve(2)?],
            lab,
            folder,
            many,
        })
    }

    /// The backends of a pool: the first lives on.
    pub fn backends(&self, pool: Pool) -> Vec<Ipv4Addr> {
        let mut backends = vec![self.lab.backends[SURVIVOR].v4];
        match pool {
            Pool::One => backends.push(self.lab.backends[host(pool)].v4),
            Pool::Many => backends.extend((0..self.many).map(farmed)),
        }
        backends
    }

    /// How many of a pool die.
    pub fn victims(&self, pool: Pool) -> usize {
        match pool {
            Pool::One => 1,
            Pool::Many => usize::from(self.many),
        }
    }

    /// # Errors
    /// Where it cannot be done.
    pub fn die(&mut self, pool: Pool, death: Death) -> anyhow::Result<()> {
        match death {
            Death::Refused => self.servers[host(pool)].take().context("a server")?.kill(),
            Death::Silent => self.lab.cut(&self.victim(pool).name),
        }
    }

    /// # Errors
    /// Where it cannot be done.
    pub fn revive(&mut self, pool: Pool, death: Death) -> anyhow::Result<()> {
        match death {
            Death::Refused => {
                let server = Server::http(self.victim(pool), PORT, &self.folder)?;
                self.servers[host(pool)] = Some(server);
                Ok(())
            }
            Death::Silent => self.lab.mend(&self.victim(pool).name),
        }
    }

    fn victim(&self, pool: Pool) -> &Host {
        &self.lab.backends[host(pool)]
    }
}

fn host(pool: Pool) -> usize {
    match pool {
        Pool::One => 1,
        Pool::Many => 2,
    }
}

/// All addresses of this network are those of one host.
const FARM: Ipv4Addr = Ipv4Addr::new(10, 80, 0, 0);

fn farmed(n: u16) -> Ipv4Addr {
    let [high, low] = n.to_be_bytes();
    Ipv4Addr::new(10, 80, high, low)
}
