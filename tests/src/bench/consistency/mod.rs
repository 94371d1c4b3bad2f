//! `consistency`: what happens to thousands of live flows when something changes.
//!
//! Every event happens to three arms at once, served by the same backends: the service as it is meant to be, one with
//! `tracking = "full"`, and one with `tracking = "none"`, which must lose flows, or the event was none.

mod events;
mod judge;

use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use xlb::lab::flows::Population;
use xlb::lab::measure::{Effect, Watch};
use xlb::lab::stage::{Arm, REST_MOST, Stage, StageOptions};

use super::result::PartResult;
pub use events::Event;
pub use judge::{CONTROL, broken, faults};

/// How much of it.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Only these events.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "EVENT")]
    events: Vec<Event>,
    /// TCP connections of each arm, beside those that come and go.
    #[arg(long, value_name = "N")]
    connections: Option<usize>,
    /// Idle timeout of TCP flows, in seconds: how long a migration takes.
    #[arg(long, value_name = "SECONDS")]
    window: Option<u64>,
}

/// What one run is like.
#[derive(Clone, Debug)]
pub struct Plan {
    pub events: Vec<Event>,
    pub stage: StageOptions,
    /// Whether to wait, after the clients of the first stage left, until every slot is stable.
    pub to_the_end: bool,
}

impl Plan {
    /// The whole benchmark.
    #[must_use]
    pub fn full() -> Self {
        Self::new(Event::ALL.to_vec(), 20, 2000, Duration::from_secs(24))
    }

    /// The short form that tests run.
    #[must_use]
    pub fn short() -> Self {
        let events = vec![
            Event::Drained,
            Event::Ready,
            Event::Killed,
            Event::BackUp,
            Event::Upgraded,
        ];
        Self {
            to_the_end: false,
            ..Self::new(events, 6, 300, Duration::from_secs(6))
        }
    }

    fn new(events: Vec<Event>, backends: u8, connections: usize, window: Duration) -> Self {
        Self {
            events,
            to_the_end: true,
            stage: StageOptions {
                backends,
                spare: 3,
                arms: ["moved", "full", CONTROL]
                    .into_iter()
                    .filter_map(Arm::tracking)
                    .collect(),
                tcp: Population {
                    talking: connections.div_ceil(2),
                    resting: connections / 2,
                    visits_per_s: u32::try_from(connections / 40).unwrap_or(u32::MAX),
                },
                udp: Population {
                    talking: connections / 4,
                    ..Population::default()
                },
                window,
                agent: String::new(),
            },
        }
    }
}

/// What an event did to each arm.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    pub event: Event,
    pub effects: Vec<Effect>,
    pub took_s: f64,
}

/// Everything that was seen in a run.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    pub outcomes: Vec<Outcome>,
    /// Packets that arrived with a wrong checksum: a fault of the network.
    pub network_faults: u64,
    /// Packets that the program sent and the device of the load balancer had no room for: a flood is faster than the
    /// machine. TCP sends them again.
    pub no_room: u64,
    /// Right answers.
    pub answers: u64,
    /// What came after the clients of the first stage had left.
    pub settled: Vec<Settled>,
}

/// How the last migrations ended.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Settled {
    /// From the clients' leaving to the last slot's being stable.
    pub after_s: f64,
    /// Slots that are not; 0 where all went well.
    pub left: usize,
}

/// # Errors
/// Where the stage cannot be set up, or an event cannot be made.
pub fn run(quick: bool, options: &Options) -> anyhow::Result<PartResult> {
    let mut plan = if quick { Plan::short() } else { Plan::full() };
    let connections = options.connections.unwrap_or(plan.stage.tcp.residents());
    let window = options.window.map_or(plan.stage.window, Duration::from_secs);
    if !options.events.is_empty() {
        plan.events.clone_from(&options.events);
    }
    plan = Plan {
        to_the_end: plan.to_the_end,
        ..Plan::new(plan.events, plan.stage.backends, connections, window)
    };
    let run = perform(&plan)?;
    judge::result(&plan, &run)
}

/// Runs all events of a plan.
///
/// # Errors
/// Where the stage cannot be set up, or an event cannot be made.
pub fn perform(plan: &Plan) -> anyhow::Result<Run> {
    let mut run = Run {
        outcomes: Vec::new(),
        network_faults: 0,
        no_room: 0,
        answers: 0,
        settled: Vec::new(),
    };
    let begun = Instant::now();
    let stages = events::stages(&plan.events);
    let all: usize = stages.iter().map(|(_, events)| events.len()).sum();
    for (agent, events) in stages {
        let options = StageOptions {
            agent: agent.into(),
            ..plan.stage.clone()
        };
        println!(
            "{} backends and {} more, {} arms of {} connections and {} UDP flows",
            options.backends,
            options.spare,
            options.arms.len(),
            options.tcp.residents(),
            options.udp.residents()
        );
        let mut stage = Stage::set_up(&options)?;
        stage.fill(&options)?;
        let watch = Watch::start(&stage)?;
        for event in events {
            let (nth, s) = (run.outcomes.len() + 1, begun.elapsed().as_secs());
            println!("{s:>4} s: event {nth} of {all}: {}", event.text());
            let outcome = happen(event, &mut stage, &watch, options.window)?;
            print(&outcome);
            run.outcomes.push(outcome);
        }
        run.answers += stage.flows()?.answers();
        run.network_faults += stage.lab.checksum_errors()?;
        run.no_room += stage.lab.tx_errors()?;
        // It takes a minute, and once is enough.
        if plan.to_the_end && run.settled.is_empty() {
            run.settled.push(settle(&mut stage, &watch, options.window));
        }
    }
    Ok(run)
}

/// Sends the clients away and waits until no slot remembers anything: entries of closed flows live 60 s, others as long
/// as a window, and the sweep has to see them all gone.
fn settle(stage: &mut Stage, watch: &Watch, window: Duration) -> Settled {
    const CLOSING: Duration = Duration::from_secs(60);
    stage.clear();
    let begun = Instant::now();
    let hopeless = begun + 2 * window.max(CLOSING) + PATIENCE;
    let left = || {
        let (unstable, consulted) = watch.unsettled();
        unstable + consulted
    };
    while left() > 0 && Instant::now() < hopeless {
        std::thread::sleep(Duration::from_millis(100));
    }
    let settled = Settled {
        after_s: begun.elapsed().as_secs_f64(),
        left: left(),
    };
    println!(
        "the clients left; {:.1} s later {} slots were not stable",
        settled.after_s, settled.left
    );
    settled
}

/// Beyond this a migration is said not to end: two windows, and what it takes to notice.
const PATIENCE: Duration = Duration::from_secs(20);

fn happen(event: Event, stage: &mut Stage, watch: &Watch, window: Duration) -> anyhow::Result<Outcome> {
    stage.wait_full()?;
    let mark = watch.mark(stage)?;
    let begun = Instant::now();
    event.happen(stage, window)?;
    // All clients that rest speak at least once after the event, and a broken TCP connection is noticed then.
    let heard = Instant::now() + window.mul_f64(REST_MOST) + Duration::from_secs(3);
    let hopeless = Instant::now() + 2 * window + PATIENCE;
    while Instant::now() < heard || (watch.unsettled().0 > 0 && Instant::now() < hopeless) {
        std::thread::sleep(Duration::from_millis(100));
    }
    let effects = watch.effects(stage, &mark)?;
    event.undo(stage)?;
    if !event.leaves_some_out() {
        stage.wait_serving()?;
    }
    Ok(Outcome {
        event,
        effects,
        took_s: begun.elapsed().as_secs_f64(),
    })
}

fn print(outcome: &Outcome) {
    for effect in &outcome.effects {
        let causes: Vec<String> = effect
            .causes
            .iter()
            .map(|(cause, n)| format!("{n} {cause}"))
            .collect();
        println!(
            "        {:<6} {:>5} alive, {:>4} broken, {:>4} lost, {:>5} slots moved under flows, Maglev alone {:>4}, \
             window {}{}",
            effect.arm,
            effect.alive,
            effect.broken,
            effect.lost,
            effect.moved_slots,
            effect.misplaced,
            effect.migration_s.map_or("-".into(), |s| format!("{s:.1} s")),
            if causes.is_empty() {
                String::new()
            } else {
                format!(" ({})", causes.join(", "))
            }
        );
    }
}
