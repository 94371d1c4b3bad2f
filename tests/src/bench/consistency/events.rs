//! What happens, in an order in which most events prepare the next.

use std::thread;
use std::time::Duration;

use anyhow::anyhow;
use clap::ValueEnum;
use serde::Serialize;
use xlb::lab::flood::Flood;
use xlb::lab::stage::{PORT, Stage};

use crate::lab::VIPS_V4;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    Drained,
    Ready,
    Killed,
    BackUp,
    Cut,
    Mended,
    Flapping,
    Weight,
    Reloaded,
    Added,
    Replaced,
    Deaf,
    AgentKilled,
    Upgraded,
    Flood,
    Resized,
    TableFull,
}

/// How often the flapping backend dies, and the agent is killed.
const FLAPS: u32 = 20;
const AGENT_KILLS: u32 = 50;
/// How many SYNs a flood has, and how many a second.
const FLOOD: u32 = 1_000_000;
const FLOOD_PER_S: u32 = 150_000;

impl Event {
    pub const ALL: [Self; 17] = [
        Self::Drained,
        Self::Ready,
        Self::Killed,
        Self::BackUp,
        Self::Cut,
        Self::Mended,
        Self::Flapping,
        Self::Weight,
        Self::Reloaded,
        Self::Added,
        Self::Replaced,
        Self::Deaf,
        Self::AgentKilled,
        Self::Upgraded,
        Self::Flood,
        Self::Resized,
        Self::TableFull,
    ];

    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Drained => "backend drained",
            Self::Ready => "backend READY again",
            Self::Killed => "backend killed (RST)",
            Self::BackUp => "backend back UP",
            Self::Cut => "backend silent",
            Self::Mended => "silent backend back UP",
            Self::Flapping => "backend flaps 20 times",
            Self::Weight => "weight changed by order",
            Self::Reloaded => "configuration reloaded, a weight changed",
            Self::Added => "backend added",
            Self::Replaced => "10 % of the backends replaced",
            Self::Deaf => "accept queue of a live backend full",
            Self::AgentKilled => "agent killed 50 times, weights changing",
            Self::Upgraded => "program replaced during a change",
            Self::Flood => "1,000,000 spoofed SYNs during a drain",
            Self::Resized => "table resized",
            Self::TableFull => "flow table full (by a flood) during a drain",
        }
    }

    /// Backends by their place: each event has its own, so that none meets what another left. The first stage has at
    /// least four.
    pub(super) fn happen(self, stage: &mut Stage, window: Duration) -> anyhow::Result<()> {
        let members = stage.members();
        let nth = |n: usize| members[n % members.len()];
        match self {
            Self::Drained => stage.order("drain", nth(0)),
            Self::Ready => stage.order("ready", nth(0)),
            Self::Killed => {
                stage.kill(nth(1))?;
                stage.wait_verdict(nth(1), false)
            }
            Self::BackUp => {
                stage.revive(nth(1))?;
                stage.wait_verdict(nth(1), true)
            }
            Self::Cut => {
                stage.cut(nth(2))?;
                stage.wait_verdict(nth(2), false)
            }
            Self::Mended => {
                stage.mend(nth(2))?;
                stage.wait_verdict(nth(2), true)
            }
            Self::Flapping => {
                for _ in 0..FLAPS {
                    stage.kill(nth(3))?;
                    stage.wait_verdict(nth(3), false)?;
                    stage.revive(nth(3))?;
                    stage.wait_verdict(nth(3), true)?;
                }
                Ok(())
            }
            Self::Weight => stage.set_weight(nth(4), "3"),
            Self::Reloaded => stage.configure_weight(nth(5), 3),
            Self::Added => stage.add(spare(stage)?),
            Self::Replaced => {
                let count = members.len().div_ceil(10);
                let olds: Vec<usize> = members
                    .iter()
                    .copied()
                    .filter(|n| ![nth(0), nth(1)].contains(n))
                    .collect();
                for old in olds.into_iter().rev().take(count) {
                    let new = spare(stage)?;
                    stage.kill(old)?;
                    stage.replace(old, new)?;
                    thread::sleep(window / 4);
                    // It can take another's place later.
                    stage.revive(old)?;
                }
                Ok(())
            }
            Self::Deaf => {
                stage.deafen(nth(6))?;
                stage.wait_verdict(nth(6), false)
            }
            Self::AgentKilled => {
                for kill in 0..AGENT_KILLS {
                    stage.set_weight(nth(7), if kill % 2 == 0 { "2" } else { "default" })?;
                    stage.kill_agent()?;
                    stage.start_agent()?;
                }
                Ok(())
            }
            Self::Upgraded => {
                stage.set_weight(nth(8), "2")?;
                stage.other_program(true)
            }
            Self::Flood => flooded(stage, nth(9)),
            Self::Resized => stage.resize(8191),
            Self::TableFull => flooded(stage, nth(0)),
        }
    }

    /// Puts back what no later event does.
    pub(super) fn undo(self, stage: &mut Stage) -> anyhow::Result<()> {
        match self {
            Self::Deaf => {
                for backend in stage.members() {
                    stage.undeafen(backend)?;
                }
                Ok(())
            }
            Self::Upgraded => stage.other_program(false),
            Self::Flood => stage.order("ready", stage.members()[9 % stage.members().len()]),
            _ => Ok(()),
        }
    }

    /// Whether some backend serves no longer afterwards, on purpose.
    pub(super) fn leaves_some_out(self) -> bool {
        matches!(self, Self::Drained | Self::Killed | Self::Cut | Self::TableFull)
    }
}

fn spare(stage: &Stage) -> anyhow::Result<usize> {
    let members = stage.members();
    (0..stage.lab.backends.len())
        .find(|backend| !members.contains(backend))
        .ok_or_else(|| anyhow!("no spare backend is left"))
}

/// A drain in the middle of the flood, which goes to the first arm.
fn flooded(stage: &Stage, drained: usize) -> anyhow::Result<()> {
    let flood = Flood {
        to: (VIPS_V4[0], PORT),
        packets: FLOOD,
        packets_per_s: FLOOD_PER_S,
    };
    thread::scope(|scope| {
        let sender = scope.spawn(|| flood.send(&stage.lab.client.netns, &stage.lab.lb.netns));
        thread::sleep(Duration::from_secs_f64(f64::from(FLOOD / FLOOD_PER_S) / 3.0));
        let ordered = stage.order("drain", drained);
        sender.join().map_err(|_| anyhow!("the flood panicked"))??;
        ordered
    })
}

/// Lines of `[agent]` that make the flow table too small for what the events of the second stage need.
const TINY: &str = "flow_table_size = 1024\n";

/// The events by what the agent has to be started with; events that nothing can be said about yet are left out.
pub(super) fn stages(events: &[Event]) -> Vec<(&'static str, Vec<Event>)> {
    let (full, others): (Vec<Event>, Vec<Event>) =
        events.iter().partition(|event| **event == Event::TableFull);
    let sized = xlb::config::schema()["$defs"]["agent"]["properties"]
        .get("flow_table_size")
        .is_some();
    let mut stages = vec![("", others)];
    if sized {
        stages.push((TINY, full));
    } else if !full.is_empty() {
        println!("left out: {}: there is no flow table", Event::TableFull.text());
    }
    stages.retain(|(_, events)| !events.is_empty());
    stages
}
