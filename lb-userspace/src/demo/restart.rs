//! The agent is killed under load and started again: nothing fails.

use std::thread::sleep;
use std::time::Duration;

use serde::Serialize;

use super::narrate::Narrator;
use super::scene::{Scene, wait_begun};

/// Connections over all, at least.
const CONNECTIONS: u64 = 2400;
const MIN_ATTEMPTED: usize = 2000;
const LEAD: u64 = 600;
const WITHOUT_AGENT: Duration = Duration::from_millis(1500);

#[derive(Debug, Serialize)]
pub(super) struct Restart {
    pub attempted: usize,
    pub failed: usize,
    /// Whether the agent that came after took over tables and counters as they were.
    pub adopted: bool,
    pub kept: bool,
}

pub(super) fn run(scene: &mut Scene, say: &mut Narrator) -> anyhow::Result<Restart> {
    say.step("under load, the agent: SIGKILL, and a new one 1.5 s later");
    let load = scene.load()?;
    wait_begun(&load, LEAD)?;
    let before = scene.agent.status()?;
    scene.agent.kill()?;
    let status = scene.agent.order(&["status"])?;
    say.done(&format!(
        "xlb status: {}",
        status.lines().next().unwrap_or_default()
    ));
    sleep(WITHOUT_AGENT);
    scene.agent.start()?;
    wait_begun(&load, CONNECTIONS.max(load.begun() + LEAD))?;
    let attempts = load.finish()?;
    let after = scene.agent.status()?;
    let adopted = before.services.iter().all(|was| {
        let is = after.services.iter().find(|service| service.name == was.name);
        is.is_some_and(|is| is.generation == was.generation && is.packets >= was.packets)
    });
    say.done(&format!(
        "{} attempted, {} failed; tables and counters {}",
        attempts.attempted(),
        attempts.failed(),
        if adopted {
            "were taken over as they were"
        } else {
            "CHANGED"
        }
    ));
    for (error, count) in attempts.errors() {
        say.done(&format!("  {count} x {error}"));
    }
    Ok(Restart {
        attempted: attempts.attempted(),
        failed: attempts.failed(),
        adopted,
        kept: attempts.failed() == 0 && attempts.attempted() >= MIN_ATTEMPTED && adopted,
    })
}
