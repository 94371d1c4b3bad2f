//! A drained backend gets no new connections.

use serde::Serialize;

use super::narrate::Narrator;
use super::scene::{Scene, wait_begun};

const CONNECTIONS: u64 = 600;
const DRAINED: usize = 1;

#[derive(Debug, Serialize)]
pub(super) struct Drain {
    pub backend: String,
    pub attempted: usize,
    pub failed: usize,
    /// New connections that the drained backend got.
    pub to_drained: usize,
    pub kept: bool,
}

pub(super) fn run(scene: &Scene, say: &mut Narrator) -> anyhow::Result<Drain> {
    let backend = &scene.lab.backends[DRAINED];
    say.step(&format!(
        "draining {}: xlb backend drain --host {} (and {})",
        backend.name, backend.v4, backend.v6
    ));
    let addresses = [backend.v4.to_string(), backend.v6.to_string()];
    for address in &addresses {
        scene.agent.order(&["backend", "drain", "--host", address])?;
    }
    let load = scene.load()?;
    wait_begun(&load, CONNECTIONS)?;
    let attempts = load.finish()?;
    for address in &addresses {
        scene.agent.order(&["backend", "ready", "--host", address])?;
    }
    let served = attempts.served();
    let to_drained = served.get(&backend.name).copied().unwrap_or(0);
    let shares: Vec<_> = served
        .iter()
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    say.done(&format!(
        "{} new connections, {} failed, {to_drained} to {}; served by: {}",
        attempts.attempted(),
        attempts.failed(),
        backend.name,
        shares.join(", ")
    ));
    Ok(Drain {
        backend: backend.name.clone(),
        attempted: attempts.attempted(),
        failed: attempts.failed(),
        to_drained,
        kept: to_drained == 0 && attempts.failed() == 0,
    })
}
