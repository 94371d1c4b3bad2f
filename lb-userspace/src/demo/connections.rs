//! Thousands of connections that stay, and what a series of events does to them.

use std::thread::sleep;
use std::time::Duration;

use serde::Serialize;

use super::action::{Action, Fates};
use super::narrate::Narrator;
use crate::lab::flows::Population;
use crate::lab::measure::{Effect, Watch};
use crate::lab::stage::{Arm, Stage, StageOptions};

/// What an event did to them.
#[derive(Debug, Serialize)]
pub(super) struct Connections {
    pub event: String,
    pub alive: usize,
    pub broken: usize,
    pub lost: usize,
    /// What Maglev alone would have broken.
    pub maglev: usize,
    /// Whether flows are remembered at all; else there is no promise.
    pub tracked: bool,
    pub kept: bool,
}

/// Backends that serve from the start.
pub(super) const BACKENDS: u8 = 8;
const SPARE: u8 = 3;
/// `tcp_idle_timeout`: short, so that one sees migrations end.
const WINDOW: Duration = Duration::from_secs(20);

/// 2,000 connections and 500 UDP flows, in one arm: as services are by default.
pub(super) fn options(connections: usize) -> StageOptions {
    let arm = Arm::tracking("moved").or_else(|| Arm::tracking("none"));
    StageOptions {
        backends: BACKENDS,
        spare: SPARE,
        arms: arm.into_iter().collect(),
        tcp: Population {
            talking: connections.div_ceil(2),
            resting: connections / 2,
            visits_per_s: u32::try_from(connections / 40).unwrap_or(u32::MAX),
        },
        udp: Population {
            talking: connections / 4,
            ..Population::default()
        },
        window: WINDOW,
        agent: String::new(),
    }
}

/// Whether the stage remembers flows.
pub(super) fn tracked(stage: &Stage) -> bool {
    stage.arms().iter().all(|arm| arm.name != "none")
}

/// What happens, what it is called, and how long one watches.
const SCRIPT: [(Action, &str); 9] = [
    (Action::Drain(0), "b1 drained"),
    (Action::Ready(0), "b1 READY again"),
    (Action::Kill(1), "b2 killed (RST)"),
    (Action::Ready(1), "b2 back UP"),
    (Action::Silence(2), "b3 silent"),
    (Action::Ready(2), "b3 back UP"),
    (Action::Add, "b9 added"),
    (Action::Weight(3), "b4: weight 3"),
    (Action::KillAgent, "agent: SIGKILL for 3 s"),
];
const LOOK: Duration = Duration::from_secs(4);

pub(super) fn run(connections: usize, say: &mut Narrator) -> anyhow::Result<Vec<Connections>> {
    let options = options(connections);
    say.step(&format!(
        "{} backends, {} TCP connections that stay (half of them idle for long times), {} UDP flows, new ones opening",
        options.backends,
        options.tcp.residents(),
        options.udp.residents()
    ));
    let mut stage = Stage::set_up(&options)?;
    stage.fill(&options)?;
    let watch = Watch::start(&stage)?;
    let (mut results, mut fates) = (Vec::new(), Fates::default());
    for (action, text) in SCRIPT {
        let mark = watch.mark(&stage)?;
        action.perform(&mut stage, &mut fates)?;
        sleep(LOOK);
        results.push(record(&stage, text, &watch.effects(&stage, &mark)?, say));
    }
    // Those that rest speak at last.
    let mark = watch.mark(&stage)?;
    sleep(WINDOW);
    let text = "nothing more, for 20 s";
    results.push(record(&stage, text, &watch.effects(&stage, &mark)?, say));
    drop(watch);
    stage.take_down()?;
    Ok(results)
}

fn record(stage: &Stage, event: &str, effects: &[Effect], say: &mut Narrator) -> Connections {
    let sum = |count: fn(&Effect) -> usize| effects.iter().map(count).sum::<usize>();
    let broken = sum(|effect| effect.broken);
    let tracked = tracked(stage);
    let result = Connections {
        event: event.into(),
        alive: sum(|effect| effect.alive),
        broken,
        lost: sum(|effect| effect.lost),
        maglev: sum(|effect| effect.misplaced),
        tracked,
        kept: broken == 0 || !tracked,
    };
    say.done(&format!(
        "{event:<24} {:>5} flows, broken {:>3}, lost with their backend {:>4}; Maglev alone would have broken {:>4}",
        result.alive, result.broken, result.lost, result.maglev
    ));
    result
}
