//! Clients that stay: connections and UDP flows by the thousand, which say something from time to time and check
//! each answer (see [`super::wire`]). They never connect again by themselves: a flow that ends against its will is
//! written down, with who served it and what it saw; another client takes its place.
//!
//! One thread in the client's namespace runs them all, a task each; a flow has one timer.

mod registry;
mod tcp;
mod udp;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::ensure;
use rand::Rng;
use tokio::time::{MissedTickBehavior, interval};

use self::registry::Registry;
pub use self::registry::{Live, Open};
use super::ledger::End;
use super::netns::Netns;
use crate::model::{Protocol, ServiceKey};

/// How many clients a service has. Of a UDP service only `talking` and `resting` count.
#[derive(Clone, Copy, Debug, Default)]
pub struct Population {
    /// Those that say something every 100 ms to 1 s.
    pub talking: usize,
    /// Those that are idle for long times.
    pub resting: usize,
    /// New ones a second beside them, which talk and leave after 1 to 5 s.
    pub visits_per_s: u32,
}

impl Population {
    /// Those that are there at any time, but for the visitors.
    #[must_use]
    pub fn residents(&self) -> usize {
        self.talking + self.resting
    }
}

/// A service and its clients.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    pub key: ServiceKey,
    pub population: Population,
    /// How long those that rest are idle: from, to.
    pub rest: (Duration, Duration),
}

/// How a client behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Habit {
    Talks,
    Rests,
    Visits,
}

/// All clients; they go when it is dropped.
#[derive(Debug)]
pub struct Flows {
    registry: Arc<Registry>,
    targets: Vec<Target>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

/// From one look at who is missing to the next.
const TICK: Duration = Duration::from_millis(20);
/// Residents that come in one of them, for each service and habit: 500 a second.
const ARRIVALS: usize = 10;

impl Flows {
    /// Starts them in a namespace. The services' indices in all that is told later are those of `targets`.
    ///
    /// # Errors
    /// Where the thread cannot be made, or so many sockets are not allowed.
    pub fn start(client: &Netns, targets: Vec<Target>) -> anyhow::Result<Self> {
        let sockets: usize = targets.iter().map(|target| target.population.residents()).sum();
        allow_files(sockets as u64 * 2 + 4096)?;
        let registry = Arc::new(Registry::default());
        let (shared, served, netns) = (Arc::clone(&registry), targets.clone(), client.clone());
        let thread = thread::Builder::new().name("flows".into()).spawn(move || {
            netns.move_in()?;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let keepers: Vec<_> = served
                    .iter()
                    .enumerate()
                    .map(|(service, target)| tokio::spawn(keep(Arc::clone(&shared), service, *target)))
                    .collect();
                for keeper in keepers {
                    let _ = keeper.await;
                }
            });
            Ok(())
        })?;
        Ok(Self {
            registry,
            targets,
            thread: Some(thread),
        })
    }

    /// The services as they were given.
    #[must_use]
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// A way to see the live flows from another thread.
    #[must_use]
    pub fn viewer(&self) -> Viewer {
        Viewer(Arc::clone(&self.registry))
    }

    /// The flows that were answered and go on.
    #[must_use]
    pub fn live(&self) -> Vec<(u64, Live)> {
        self.registry.live()
    }

    /// Takes what ended against its will since the last call.
    #[must_use]
    pub fn take_ends(&self) -> Vec<End> {
        self.registry.take_ends()
    }

    /// Takes the attempts since the last call.
    #[must_use]
    pub fn take_opens(&self) -> Vec<Open> {
        self.registry.take_opens()
    }

    /// Right answers so far.
    #[must_use]
    pub fn answers(&self) -> u64 {
        self.registry.answers()
    }

    /// Whether nearly all residents are there and were answered. Never quite all are, when some come and go.
    #[must_use]
    pub fn full(&self) -> bool {
        let live = self.live();
        self.targets.iter().enumerate().all(|(service, target)| {
            let count = live.iter().filter(|(_, flow)| flow.service == service).count();
            count * 100 >= target.population.residents() * 99
        })
    }
}

/// See [`Flows::viewer`].
#[derive(Clone, Debug)]
pub struct Viewer(Arc<Registry>);

impl Viewer {
    /// As [`Flows::live`].
    #[must_use]
    pub fn live(&self) -> Vec<(u64, Live)> {
        self.0.live()
    }

    /// As [`Flows::take_ends`].
    #[must_use]
    pub fn take_ends(&self) -> Vec<End> {
        self.0.take_ends()
    }

    /// As [`Flows::take_opens`].
    #[must_use]
    pub fn take_opens(&self) -> Vec<Open> {
        self.0.take_opens()
    }

    /// As [`Flows::answers`].
    #[must_use]
    pub fn answers(&self) -> u64 {
        self.0.answers()
    }
}

impl Drop for Flows {
    fn drop(&mut self) {
        self.registry.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Keeps the clients of one service at their number.
async fn keep(registry: Arc<Registry>, service: usize, target: Target) {
    let Target { population, .. } = target;
    let counts: [Arc<AtomicUsize>; 2] = Default::default();
    let wanted = [
        (Habit::Talks, population.talking),
        (Habit::Rests, population.resting),
    ];
    let mut clock = interval(TICK);
    clock.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let (begun, mut visits) = (Instant::now(), 0);
    while !registry.stopped() {
        clock.tick().await;
        for ((habit, wanted), count) in wanted.into_iter().zip(&counts) {
            let missing = wanted.saturating_sub(count.load(Ordering::Relaxed));
            for _ in 0..missing.min(ARRIVALS) {
                let resident = Resident::new(count);
                let client = client(Arc::clone(&registry), service, target, habit);
                tokio::spawn(async move {
                    client.await;
                    drop(resident);
                });
            }
        }
        let due = (begun.elapsed().as_secs_f64() * f64::from(population.visits_per_s)) as u64;
        // After a stall they do not come all at once.
        visits = visits.max(due.saturating_sub(ARRIVALS as u64));
        for _ in visits..due {
            tokio::spawn(client(Arc::clone(&registry), service, target, Habit::Visits));
        }
        visits = due;
    }
}

async fn client(registry: Arc<Registry>, service: usize, target: Target, habit: Habit) {
    match target.key.protocol {
        Protocol::Tcp => tcp::client(&registry, service, &target, habit).await,
        Protocol::Udp => udp::client(&registry, service, &target, habit).await,
    }
}

/// A resident counts from the moment it sets out.
struct Resident(Arc<AtomicUsize>);

impl Resident {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Target {
    /// How long until the next message.
    fn pause(&self, habit: Habit) -> Duration {
        const TALK: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
        let (from, to) = match habit {
            Habit::Talks | Habit::Visits => TALK,
            Habit::Rests => self.rest,
        };
        rand::rng().random_range(from..=to)
    }
}

/// When a client leaves by itself.
fn leaves(habit: Habit) -> Option<Instant> {
    const STAY_MS: std::ops::Range<u64> = 1000..5000;
    (habit == Habit::Visits)
        .then(|| Instant::now() + Duration::from_millis(rand::rng().random_range(STAY_MS)))
}

/// Raises the limit of open files where it is lower.
fn allow_files(count: u64) -> anyhow::Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < count {
        ensure!(
            setrlimit(Resource::RLIMIT_NOFILE, count, hard.max(count)).is_ok(),
            "{count} open files are needed, {soft} are allowed (ulimit -n)"
        );
    }
    Ok(())
}
