//! A hundred services that change at one instant, again and again, while backends are probed: how late that makes probes.
//!
//! The prober runs on a thread of its own, as in [`super::probes`]; another thread has a backend of all services die and
//! come back, and brings the tables up to date as the agent does, on all processors.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow};
use xlb::config::Via;

use super::Table;
use super::probes::{self, LATEST, Load};
use super::tables::World;

const SERVICES: usize = 100;
/// Between two changes.
const PAUSE: Duration = Duration::from_millis(100);

/// `backends`: of each service.
///
/// # Errors
/// Where a probe fails, or the maps cannot be made.
pub fn measure(load: Load, backends: usize, runs: usize, table: &mut Table) -> anyhow::Result<()> {
    let group = format!(
        "{} backends probed every {} ms, beside {SERVICES} services of {backends} backends",
        load.backends,
        load.interval.as_millis()
    );
    for window in probes::windows(load, runs)? {
        table.ms(&group, "latest probe, tables stay", window.latest);
    }
    let done = &AtomicBool::new(false);
    let (ready, is_ready) = mpsc::channel();
    let (changes, windows) = thread::scope(|scope| -> anyhow::Result<_> {
        let changing = scope.spawn(move || change(backends, done, &ready));
        let windows = match is_ready.recv() {
            Ok(()) => probes::windows(load, runs),
            // The other thread says why.
            Err(_) => Ok(Vec::new()),
        };
        done.store(true, Ordering::Release);
        let changes = changing.join().map_err(|_| anyhow!("a thread panicked"))??;
        Ok((changes, windows?))
    })?;
    for took in &changes {
        table.ms(&group, "a change of all services", *took);
    }
    for window in windows {
        table.ms(&group, "latest probe, all services change", window.latest);
        if window.latest > LATEST {
            let late = window.latest.as_millis();
            table.fault(format!("{group}: a probe was {late} ms late as all changed"));
        }
    }
    Ok(())
}

/// How long each change took, until it is enough.
fn change(backends: usize, done: &AtomicBool, ready: &mpsc::Sender<()>) -> anyhow::Result<Vec<Duration>> {
    let mut world = World::new(SERVICES, backends, None)?;
    world.apply(&BTreeSet::new())?;
    ready.send(()).context("somebody waits for it")?;
    let mut changes = Vec::new();
    for number in 0.. {
        if done.load(Ordering::Acquire) {
            break;
        }
        let dead: BTreeSet<usize> = (number % 2 == 0)
            .then_some(number % backends)
            .into_iter()
            .collect();
        changes.push(world.apply(&dead)?);
        thread::sleep(PAUSE);
    }
    Ok(changes)
}

/// The load that is promised to be on time.
pub fn load(quick: bool) -> Load {
    Load {
        backends: 1000,
        interval: Duration::from_millis(200),
        window: Duration::from_millis(if quick { 1000 } else { 4000 }),
        via: Via::Forward,
        misbehaving: 0,
    }
}
