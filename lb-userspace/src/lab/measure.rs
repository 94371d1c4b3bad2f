//! What an event did to the flows of a stage.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::flows::{Flows, Live, Open};
use super::ledger::{Cause, End, Judgement, Ledger};
use super::observe::{Moved, Movement, Observer, Tables};
use super::stage::Stage;

/// What is said of one arm after one event.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Effect {
    pub arm: String,
    /// Flows that lived when the event began, and those that began meanwhile.
    pub alive: usize,
    pub opened: usize,
    /// Ended although their backend lived.
    pub broken: usize,
    /// Ended with their backend.
    pub lost: usize,
    /// What the clients of broken flows saw.
    pub causes: BTreeMap<Cause, usize>,
    /// First requests that nobody answered; those to a backend that is dead and not yet known to be are among them.
    pub unanswered: usize,
    /// Slots that named another backend than before while a live flow was in them.
    pub moved_slots: usize,
    /// Flows that Maglev alone would have broken.
    pub misplaced: usize,
    /// From the event to the start of the last new flow that went where the table of before sent it. `None`: none
    /// did.
    pub old_way_ms: Option<u64>,
    /// Most slots at once whose window was open.
    pub unstable_most: usize,
    /// How long there were such slots. `None`: there were none.
    pub migration_s: Option<f64>,
    /// Such slots at the end of the observation.
    pub unstable_left: usize,
    /// Most entries in the flow table at once.
    pub entries_most: usize,
    /// Slots for which the flow table is asked at the end: flows live on in them that belong elsewhere.
    pub consulted_left: usize,
}

/// Looks at the tables many times a second, on a thread of its own.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    movement: Arc<Mutex<Movement>>,
    thread: Option<JoinHandle<()>>,
}

/// From one look to the next.
const LOOK: Duration = Duration::from_millis(50);
/// The flow table is read every so many looks.
const LOOKS_A_COUNT: u32 = 20;

/// Where an event begins.
#[derive(Debug)]
pub struct Mark {
    at: Instant,
    alive: BTreeMap<usize, usize>,
    before: Option<Tables>,
}

impl Watch {
    /// # Errors
    /// Where the tables cannot be read.
    pub fn start(stage: &Stage) -> anyhow::Result<Self> {
        let mut observer = stage.observer()?;
        let (targets, live) = (stage.flows()?.targets().to_vec(), stage.flows()?.viewer());
        let ledger = stage.shared_ledger();
        let (stop, movement) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(Mutex::new(Movement::default())),
        );
        let (until, seen) = (Arc::clone(&stop), Arc::clone(&movement));
        look(&mut observer, &seen, &targets, &live.live(), &ledger)?;
        let thread = thread::Builder::new().name("watch".into()).spawn(move || {
            for n in 0_u32.. {
                if until.load(Ordering::Relaxed) {
                    break;
                }
                // What cannot be read while the agent changes it can be the next time.
                let _ = look(&mut observer, &seen, &targets, &live.live(), &ledger);
                if n.is_multiple_of(LOOKS_A_COUNT)
                    && let Ok(entries) = observer.entries()
                {
                    lock(&seen).count(&entries);
                }
                thread::sleep(LOOK);
            }
        })?;
        Ok(Self {
            stop,
            movement,
            thread: Some(thread),
        })
    }

    /// Slots, of all services, whose window is open, and for which the flow table is asked.
    #[must_use]
    pub fn unsettled(&self) -> (usize, usize) {
        let movement = self.movement();
        let all = movement.all();
        (
            all.iter().map(|moved| moved.unstable_now).sum(),
            all.iter().map(|moved| moved.consulted_now).sum(),
        )
    }

    fn movement(&self) -> MutexGuard<'_, Movement> {
        lock(&self.movement)
    }

    /// What was seen of a service since the last [`Self::mark`].
    #[must_use]
    pub fn of(&self, service: usize) -> Moved {
        self.movement().of(service)
    }

    /// The tables as they were seen last.
    #[must_use]
    pub fn tables(&self) -> Option<Tables> {
        self.movement().last().cloned()
    }

    /// Forgets what was, and begins to count an event.
    ///
    /// # Errors
    /// Where there are no clients.
    pub fn mark(&self, stage: &Stage) -> anyhow::Result<Mark> {
        let flows = stage.flows()?;
        let (_, _) = (flows.take_ends(), flows.take_opens());
        let mut alive = BTreeMap::new();
        for (_, flow) in flows.live() {
            *alive.entry(stage.arm_of(flow.service)).or_default() += 1;
        }
        let mut movement = self.movement();
        movement.begin();
        Ok(Mark {
            at: Instant::now(),
            alive,
            before: movement.last().cloned(),
        })
    }

    /// What happened since the mark, for each arm.
    ///
    /// # Errors
    /// Where there are no clients.
    pub fn effects(&self, stage: &Stage, mark: &Mark) -> anyhow::Result<Vec<Effect>> {
        let flows = stage.flows()?;
        let (ends, opens) = (flows.take_ends(), flows.take_opens());
        // In the order in which the watch takes them.
        let ledger = stage.ledger();
        let movement = self.movement();
        let arms = stage.arms().iter().enumerate();
        Ok(arms
            .map(|(arm, name)| {
                let services: Vec<usize> = (0..flows.targets().len())
                    .filter(|service| stage.arm_of(*service) == arm)
                    .collect();
                let ends = ends.iter().filter(|end| services.contains(&end.service));
                let opens: Vec<&Open> = opens
                    .iter()
                    .filter(|open| services.contains(&open.service))
                    .collect();
                let mut effect = Effect {
                    arm: name.name.into(),
                    alive: mark.alive.get(&arm).copied().unwrap_or(0),
                    opened: opens.iter().filter(|open| open.backend.is_some()).count(),
                    unanswered: opens.iter().filter(|open| open.backend.is_none()).count(),
                    old_way_ms: old_way(mark, movement.last(), flows, &opens),
                    ..Effect::default()
                };
                effect.count(ends, &ledger);
                effect.movement(services.iter().map(|service| movement.of(*service)));
                effect
            })
            .collect())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Effect {
    fn count<'a>(&mut self, ends: impl Iterator<Item = &'a End>, ledger: &Ledger) {
        for end in ends {
            match ledger.judge(end) {
                Judgement::Lost => self.lost += 1,
                Judgement::Broken => {
                    self.broken += 1;
                    *self.causes.entry(end.cause).or_default() += 1;
                }
            }
        }
    }

    fn movement(&mut self, services: impl Iterator<Item = Moved>) {
        for moved in services {
            self.moved_slots += moved.slots();
            self.misplaced += moved.misplaced();
            self.unstable_most += moved.unstable_most;
            self.unstable_left += moved.unstable_now;
            self.entries_most += moved.entries_most;
            self.consulted_left += moved.consulted_now;
            let took = moved.unstable.map(|(first, last)| (last - first).as_secs_f64());
            self.migration_s = match (self.migration_s, took) {
                (Some(a), Some(b)) => Some(f64::max(a, b)),
                (a, b) => a.or(b),
            };
        }
    }
}

/// From the mark to the last new flow that went where the table of before sent it and that of after does not. One that
/// nobody answered went there where that backend was the only one it could have gone to.
fn old_way(mark: &Mark, after: Option<&Tables>, flows: &Flows, opens: &[&Open]) -> Option<u64> {
    let (before, after) = (mark.before.as_ref()?, after?);
    opens
        .iter()
        .filter(|open| {
            let to = flows.targets()[open.service].key.port;
            let was = before.owner(open.service, open.port, to);
            was != after.owner(open.service, open.port, to) && open.backend.is_none_or(|by| Some(by) == was)
        })
        .filter_map(|open| open.at.checked_duration_since(mark.at))
        .max()
        .map(|last| u64::try_from(last.as_millis()).unwrap_or(u64::MAX))
}

fn look(
    observer: &mut Observer,
    movement: &Mutex<Movement>,
    targets: &[super::flows::Target],
    live: &[(u64, Live)],
    ledger: &Mutex<Ledger>,
) -> anyhow::Result<()> {
    let tables = observer.read()?;
    let ledger = lock(ledger);
    lock(movement).see(tables, targets, live, &ledger);
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
