//! Where `status` and `stats` come from: the agent, or the pins of one that does not run.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{CONFIG, PIN_DIR};
use crate::api::client::{self, Client};
use crate::api::frozen;
use crate::api::types::{AgentStatus, Stats, Status};

/// The option of every verb that can do without an agent.
#[derive(Debug, Args)]
pub(super) struct Pins {
    /// Pin folder to look into where no agent runs (pin_dir in its configuration).
    #[arg(long, value_name = "PATH", default_value = PIN_DIR)]
    pub pin_dir: PathBuf,
}

/// There is neither an agent nor anything to read without one. Exit status 4.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreachable {
    #[error(
        "no agent runs, or its socket and pins are elsewhere: nobody answers at {}, nothing is pinned in {}; \
         start it with: xlb agent --config {CONFIG}, or name its api_socket with --socket and its pin_dir with --pin-dir",
        socket.display(), pins.display()
    )]
    Nothing { socket: PathBuf, pins: PathBuf },
    #[error("nobody answers at {}, and without an agent: {pins}", socket.display())]
    NoPins {
        socket: PathBuf,
        #[source]
        pins: frozen::Error,
    },
}

impl Unreachable {
    pub fn of(client: &Client, error: frozen::Error) -> Self {
        let socket = client.socket().to_path_buf();
        match error {
            frozen::Error::NothingPinned { path } => Self::Nothing { socket, pins: path },
            pins => Self::NoPins { socket, pins },
        }
    }
}

pub(super) async fn status(client: &Client, pin_dir: &Path) -> anyhow::Result<Status> {
    match client.status().await {
        Err(client::Error::NotRunning { .. }) => {
            let status = frozen::status(pin_dir).await;
            status.map_err(|error| Unreachable::of(client, error).into())
        }
        answer => Ok(answer?),
    }
}

/// The counts; with them the agent that is gone, where they come from its pins.
pub(super) async fn stats(client: &Client, pin_dir: &Path) -> anyhow::Result<(Option<AgentStatus>, Stats)> {
    match client.stats().await {
        Err(client::Error::NotRunning { .. }) => match frozen::stats(pin_dir).await {
            Ok((agent, stats)) => Ok((Some(agent), stats)),
            Err(error) => Err(Unreachable::of(client, error).into()),
        },
        answer => Ok((None, answer?)),
    }
}

/// The first line of every table that comes from pins.
pub(super) fn frozen_line(agent: &AgentStatus) -> String {
    format!("AGENT NOT RUNNING since {}, states frozen\n", agent.since)
}
