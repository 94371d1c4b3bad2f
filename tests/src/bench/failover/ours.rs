//! The agent and its events.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::runtime::Runtime;
use xlb::api::client::Client;
use xlb::model::{Forward, OperState, Protocol};
use xlb::observe::{Kind, Timeline};

use super::arena::{Arena, PORT, Pool};
use super::product::{Product, Seen, Setting};
use crate::agent::Agent;
use crate::config::{Backend, Config, FAST_CHECK, Service};
use crate::lab::VIPS_V4;

pub struct Ours {
    agent: Agent,
    client: Client,
    runtime: Runtime,
    last: u64,
    states: HashMap<(Pool, SocketAddr), OperState>,
    rerouted: HashMap<(Pool, SocketAddr), Timeline>,
}

impl Ours {
    /// # Errors
    /// Where the agent does not come up.
    pub fn start(arena: &Arena, setting: Setting) -> anyhow::Result<Self> {
        let services = Pool::ALL.map(|pool| Service {
            name: pool.name().into(),
            address: address(pool).ip(),
            port: PORT,
            protocol: Protocol::Tcp,
            forward: Forward::DsrL2,
            more: String::new(),
            check: String::new(),
            backends: arena
                .backends(pool)
                .into_iter()
                .map(|address| Backend {
                    address: address.into(),
                    weight: 1,
                })
                .collect(),
        });
        let config = Config {
            check: match setting {
                Setting::Defaults => String::new(),
                Setting::Fast => FAST_CHECK.into(),
            },
            services: services.into(),
            ..Config::default()
        };
        let agent = Agent::running(&arena.lab.lb.netns, &config)?;
        let states = agent
            .status()?
            .services
            .iter()
            .flat_map(|service| {
                let pool = named(&service.name);
                service.backends.iter().filter_map(move |backend| {
                    let address = SocketAddr::new(backend.address, PORT);
                    Some((
                        (pool?, address),
                        if backend.serving {
                            OperState::Up
                        } else {
                            OperState::Down
                        },
                    ))
                })
            })
            .collect();
        Ok(Self {
            client: Client::new(agent.socket()),
            agent,
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?,
            last: 0,
            states,
            rerouted: HashMap::new(),
        })
    }

    /// Reads the events since the last time.
    fn read(&mut self) -> anyhow::Result<()> {
        ensure!(
            self.agent.process()?.ended()?.is_none(),
            "the agent ended:\n{}",
            self.agent.log()
        );
        loop {
            let events = self.client.events(self.last, Duration::ZERO);
            let batch = self.runtime.block_on(events)?;
            ensure!(batch.missed == 0, "{} events were lost", batch.missed);
            self.last = batch.last;
            if batch.events.is_empty() {
                return Ok(());
            }
            for event in batch.events {
                let (Some(pool), Some(backend)) = (event.service.as_deref().and_then(named), event.backend)
                else {
                    continue;
                };
                match event.kind {
                    Kind::BackendState { to, .. } => {
                        self.states.insert((pool, backend), to);
                    }
                    Kind::Rerouted(timeline) => {
                        self.rerouted.insert((pool, backend), timeline);
                    }
                    _ => {}
                }
            }
        }
    }
}

impl Product for Ours {
    fn name(&self) -> &'static str {
        "xlb"
    }

    fn target(&self, pool: Pool) -> SocketAddr {
        address(pool)
    }

    fn all_up(&mut self, arena: &Arena) -> anyhow::Result<bool> {
        self.read()?;
        let expected: usize = Pool::ALL.iter().map(|pool| arena.backends(*pool).len()).sum();
        let up = self.states.values().filter(|state| **state == OperState::Up);
        Ok(up.count() == expected)
    }

    fn begin(&mut self) -> anyhow::Result<()> {
        self.read()?;
        self.rerouted.clear();
        Ok(())
    }

    fn seen(&mut self, arena: &Arena, pool: Pool) -> anyhow::Result<Option<Seen>> {
        self.read()?;
        let timelines: Vec<&Timeline> = self
            .rerouted
            .iter()
            .filter(|((other, _), _)| *other == pool)
            .map(|(_, timeline)| timeline)
            .collect();
        if timelines.len() < arena.victims(pool) {
            return Ok(None);
        }
        let mut lines = String::new();
        let (mut out, mut packet, mut last) = (Duration::ZERO, Duration::ZERO, None);
        for timeline in timelines {
            let (Some(first_bad), Some(switched), Some(first_packet)) =
                (timeline.first_bad, timeline.table_switched, timeline.first_packet)
            else {
                let _ = writeln!(lines, "{timeline:?}");
                continue;
            };
            out = out.max(switched.since(first_bad));
            packet = packet.max(first_packet.since(first_bad));
            last = last.max(Some(switched));
        }
        ensure!(lines.is_empty(), "incidents without a packet elsewhere:\n{lines}");
        Ok(Some(Seen {
            last_out: last.context("an incident")?.system(),
            first_bad_to_out: Some(out),
            first_bad_to_packet: Some(packet),
        }))
    }
}

fn address(pool: Pool) -> SocketAddr {
    let vip = match pool {
        Pool::One => VIPS_V4[0],
        Pool::Many => VIPS_V4[1],
    };
    SocketAddr::new(vip.into(), PORT)
}

fn named(service: &str) -> Option<Pool> {
    Pool::ALL.into_iter().find(|pool| pool.name() == service)
}
