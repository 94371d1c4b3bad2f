//! Runs the checks of all targets: a task each, which sleeps until its next probe is due.
//!
//! A task costs a few hundred bytes, so thousands of targets need no threads of their own. Bounded is what
//! costs descriptors, the number of probes under way at one moment; as long as the bound is not reached, it
//! delays nothing. The runtime must not be blocked: a probe that cannot read its answer in time
//! counts it as late.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit};
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::time::{Instant as TokioInstant, sleep_until};

use super::doubt::{Answers, Run, Sign};
use super::machine::{Change, Machine, Policy, Previous};
use super::probe::{self, NO_CHECK, ProbeResult, Subject};
use super::suspicion::Suspicion;
use super::{Forwarder, Target};
use crate::model::{BackendId, CheckCode, OperState};

/// Probes under way at one moment, where the limit on open files allows it.
const MAX_PROBES: usize = 16_384;

/// The first probes of targets added together are this far apart, ...
const FIRST_PROBES_APART: Duration = Duration::from_micros(100);

/// ... and all of them start within this time.
const FIRST_PROBES_WITHIN: Duration = Duration::from_millis(100);

/// What one probe said, and what follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub id: BackendId,
    pub started: Instant,
    pub ended: Instant,
    pub result: ProbeResult,
    /// The state after this result.
    pub state: OperState,
    /// From and to, when this result changed the state.
    pub changed: Option<(OperState, OperState)>,
    /// Results in a row that passed, and how many of them a DOWN target needs.
    pub passes: u32,
    pub rise: u32,
    /// Results in a row that failed, and how many of them an UP target needs.
    pub failures: u32,
    pub fall: u32,
    /// What the result says of the host.
    pub sign: Sign,
    /// It failed often enough to be DOWN, and is not believed.
    pub doubted: bool,
    /// When the first of the failures in a row began.
    pub first_miss: Option<Instant>,
    /// How long it takes from the first miss of a silent target to the verdict.
    pub patience: Duration,
}

/// Makes probes. Tests put their own in place of the network.
pub trait Checker: Send + Sync + 'static {
    /// Probes `subject` once, in at most `timeout`.
    fn check(&self, subject: &Subject, timeout: Duration) -> impl Future<Output = ProbeResult> + Send;
}

/// Probes over the network, see [`probe::probe`].
#[derive(Clone, Debug, Default)]
pub struct Network {
    /// What sends probes through the forward path; `None`: they cannot be sent.
    pub forwarder: Option<Arc<Forwarder>>,
}

impl Checker for Network {
    async fn check(&self, subject: &Subject, timeout: Duration) -> ProbeResult {
        probe::probe_with(subject, timeout, self.forwarder.as_deref()).await
    }
}

/// The checks of all targets. Dropping it ends them.
#[derive(Debug)]
pub struct Prober<C: Checker = Network> {
    runtime: Handle,
    shared: Arc<Shared<C>>,
    running: HashMap<BackendId, Running>,
}

#[derive(Debug)]
struct Shared<C> {
    checker: C,
    under_way: Semaphore,
    reports: mpsc::Sender<Report>,
    answers: Mutex<Answers>,
}

impl<C> Shared<C> {
    fn answers(&self) -> MutexGuard<'_, Answers> {
        // Nothing panics while it is held.
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The ways to reach the task of one target. The task ends when they are dropped.
#[derive(Debug)]
struct Running {
    spec: watch::Sender<Spec>,
    probe_now: Arc<Notify>,
    /// To be probed at once, as it would be in transition, unless that is so already.
    suspected: Arc<Notify>,
    /// Suspicions are followed up.
    passive: bool,
    suspicion: Suspicion,
}

/// What of a target may change while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Spec {
    subject: Arc<Subject>,
    policy: Policy,
}

impl Prober {
    /// A prober without targets, that sends what it finds to `reports`. When that channel is full, probing
    /// waits.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime. The runtime needs timers and I/O.
    #[must_use]
    pub fn new(reports: mpsc::Sender<Report>) -> Self {
        Self::with_network(Network::default(), reports)
    }

    /// As [`Prober::new`], over this network.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn with_network(network: Network, reports: mpsc::Sender<Report>) -> Self {
        Self::with_checker(network, probe_limit(), reports)
    }
}

impl<C: Checker> Prober<C> {
    /// As [`Prober::new`], with at most `limit` probes under way at one moment, made by `checker`.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn with_checker(checker: C, limit: usize, reports: mpsc::Sender<Report>) -> Self {
        Self {
            runtime: Handle::current(),
            shared: Arc::new(Shared {
                checker,
                under_way: Semaphore::new(limit),
                reports,
                answers: Mutex::default(),
            }),
            running: HashMap::new(),
        }
    }

    /// Checks exactly these targets from here on.
    ///
    /// New ones are probed soon, all within 100 ms, and every target reports at least once for each time it
    /// was added. Targets that are running keep their state; with an unchanged check also their counts,
    /// their pace and a probe under way. Where what is probed changed, they are probed at once. Targets not
    /// named are no longer checked; a last report may still come.
    pub fn set_targets(&mut self, targets: Vec<Target>) {
        let targets: HashMap<BackendId, Target> =
            targets.into_iter().map(|target| (target.id, target)).collect();
        self.running.retain(|id, _| targets.contains_key(id));
        let hosts = targets.values().filter_map(|target| target.subject().host());
        self.shared.answers().set_hosts(hosts.collect());

        let added = targets.len() - self.running.len();
        let apart =
            FIRST_PROBES_APART.min(FIRST_PROBES_WITHIN / u32::try_from(added.max(1)).unwrap_or(u32::MAX));
        let mut first_probe = TokioInstant::now();
        for (id, target) in targets {
            let spec = Spec {
                subject: Arc::new(target.subject()),
                policy: target.check.policy,
            };
            let passive = target.check.passive;
            if let Some(running) = self.running.get_mut(&id) {
                running.passive = passive;
                running.spec.send_if_modified(|known| {
                    let changed = *known != spec;
                    *known = spec;
                    changed
                });
            } else {
                let previous = target.previous.unwrap_or_default();
                self.running
                    .insert(id, self.start(id, spec, previous, passive, first_probe));
                first_probe += apart;
            }
        }
    }

    /// Probes a target at once instead of when it is due; `false` if it is not checked. Where a probe is
    /// under way already, another follows it.
    pub fn probe_now(&self, id: &BackendId) -> bool {
        let running = self.running.get(id);
        if let Some(running) = running {
            running.probe_now.notify_one();
        }
        running.is_some()
    }

    /// Its clients seem to get no answer: probes a target that is UP at once and with less patience, unless that was done
    /// a moment ago or is not wanted. Says whether it is.
    pub fn suspect(&mut self, id: &BackendId, now: Instant) -> bool {
        let Some(running) = self.running.get_mut(id).filter(|running| running.passive) else {
            return false;
        };
        let follow_up = running.suspicion.follow_up(now, &running.spec.borrow().policy);
        if follow_up {
            running.suspected.notify_one();
        }
        follow_up
    }

    /// Who answered lately: what decides whether silence is believed.
    pub fn answers(&self) -> MutexGuard<'_, Answers> {
        self.shared.answers()
    }

    fn start(
        &self,
        id: BackendId,
        spec: Spec,
        previous: Previous,
        passive: bool,
        first_probe: TokioInstant,
    ) -> Running {
        let machine = Machine::resumed(spec.policy, previous);
        let (spec_sender, spec_changes) = watch::channel(spec.clone());
        let (probe_now, suspected) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let watched = Watched {
            id,
            machine,
            run: Run::default(),
            last: None,
            passed_in: None,
            due: first_probe,
            spec,
            spec_changes,
            probe_now: Arc::clone(&probe_now),
            suspected: Arc::clone(&suspected),
            shared: Arc::clone(&self.shared),
        };
        self.runtime.spawn(watched.run());
        Running {
            spec: spec_sender,
            probe_now,
            suspected,
            passive,
            suspicion: Suspicion::default(),
        }
    }
}

/// The other end of a channel is gone: nobody wants the reports, or the target was removed.
#[derive(Debug)]
struct Gone;

/// What a spec taken over differed in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Changed {
    Nothing,
    Policy,
    Subject,
}

#[derive(Clone, Copy)]
struct LastProbe {
    started: Instant,
    ended: Instant,
}

/// The runtime's clock, which tests can stop.
fn now() -> Instant {
    TokioInstant::now().into_std()
}

/// The life of one target.
struct Watched<C> {
    id: BackendId,
    machine: Machine,
    /// Its failures since it last passed.
    run: Run,
    /// The last probe of this subject.
    last: Option<LastProbe>,
    /// How long the last one took that passed.
    passed_in: Option<Duration>,
    /// When the next probe starts.
    due: TokioInstant,
    spec: Spec,
    spec_changes: watch::Receiver<Spec>,
    probe_now: Arc<Notify>,
    suspected: Arc<Notify>,
    shared: Arc<Shared<C>>,
}

impl<C: Checker> Watched<C> {
    async fn run(mut self) -> Result<(), Gone> {
        loop {
            if self.spec.subject.probes.is_empty() {
                self.report_unchecked().await?;
                tokio::select! {
                    changed = self.spec_changes.changed() => {
                        changed.map_err(|_| Gone)?;
                        self.take_changes();
                    }
                    () = self.probe_now.notified() => {}
                }
                continue;
            }
            tokio::select! {
                () = sleep_until(self.due) => self.probe(false).await?,
                () = self.probe_now.notified() => self.probe(false).await?,
                () = self.suspected.notified() => {
                    if self.machine.state() == OperState::Up && !self.machine.in_transition() {
                        self.probe(true).await?;
                    }
                }
                changed = self.spec_changes.changed() => {
                    changed.map_err(|_| Gone)?;
                    self.take_changes();
                }
            }
        }
    }

    /// Probes once, unless something else is to be probed by then, and reports. `suspected`: because of a suspicion.
    async fn probe(&mut self, suspected: bool) -> Result<(), Gone> {
        let shared = Arc::clone(&self.shared);
        let permit = shared.under_way.acquire().await.map_err(|_| Gone)?;
        // Who was taken away while it waited is not probed any more.
        self.spec_changes.has_changed().map_err(|_| Gone)?;
        if self.take_changes() == Changed::Subject {
            return Ok(());
        }
        let started = now();
        let subject = Arc::clone(&self.spec.subject);
        let host = subject.host();
        let witnessed = host.is_none_or(|host| self.run.witnessed(&shared.answers(), host));
        let timeout = match self.passed_in {
            Some(latency) if suspected => self.machine.suspicious_timeout(latency),
            _ => self.machine.timeout(),
        };
        let probing = shared.checker.check(&subject, timeout);
        tokio::pin!(probing);
        let result = loop {
            tokio::select! {
                result = &mut probing => break result,
                changed = self.spec_changes.changed() => {
                    changed.map_err(|_| Gone)?;
                    if self.take_changes() == Changed::Subject {
                        return Ok(());
                    }
                }
            }
        };
        drop(permit);
        let last = LastProbe {
            started,
            ended: now(),
        };
        let sign = Sign::of(&result);
        if let (Some(host), Sign::Passed | Sign::Refused) = (host, sign) {
            shared.answers().answered(host, started);
        }
        if sign == Sign::Passed {
            self.passed_in = Some(result.latency);
        }
        let believed = self.run.observe(sign, started, witnessed);
        let changed = self.machine.observe(result.code.passed(), believed);
        self.last = Some(last);
        self.schedule();
        self.report(last, result, sign, changed).await
    }

    /// Sets the time of the next probe by the last one.
    fn schedule(&mut self) {
        if let Some(LastProbe { started, ended }) = self.last {
            self.due = self.machine.next_probe(started, ended, rand::random()).into();
        }
    }

    /// Takes over a changed spec. If something else is to be probed, what was found so far is forgotten,
    /// and the next probe is due at once.
    fn take_changes(&mut self) -> Changed {
        let spec = {
            let spec = self.spec_changes.borrow_and_update();
            if *spec == self.spec {
                return Changed::Nothing;
            }
            spec.clone()
        };
        let same_subject = spec.subject == self.spec.subject;
        self.machine.set_policy(spec.policy);
        self.spec = spec;
        if same_subject {
            self.schedule();
            return Changed::Policy;
        }
        self.machine.forget_results();
        self.run = Run::default();
        self.last = None;
        self.passed_in = None;
        self.due = TokioInstant::now();
        Changed::Subject
    }

    async fn report_unchecked(&mut self) -> Result<(), Gone> {
        let changed = self.machine.assume(OperState::Up);
        let result = ProbeResult {
            code: CheckCode::Unk,
            latency: Duration::ZERO,
            detail: NO_CHECK.to_owned(),
        };
        let last = LastProbe {
            started: now(),
            ended: now(),
        };
        self.report(last, result, Sign::NotSent, changed).await
    }

    async fn report(
        &self,
        LastProbe { started, ended }: LastProbe,
        result: ProbeResult,
        sign: Sign,
        changed: Option<Change>,
    ) -> Result<(), Gone> {
        let Policy { rise, fall, .. } = *self.machine.policy();
        log::trace!(
            "{}: {} ({}) in {:?}",
            self.id,
            result.code,
            result.detail,
            result.latency
        );
        let report = Report {
            id: self.id,
            started,
            ended,
            result,
            state: self.machine.state(),
            changed,
            passes: self.machine.passes(),
            rise,
            failures: self.machine.failures(),
            fall,
            sign,
            doubted: self.machine.doubted(),
            first_miss: self.run.first_miss,
            patience: self.machine.patience(),
        };
        self.shared.reports.send(report).await.map_err(|_| Gone)
    }
}

/// As many probes as half the open files we may have: an HTTP probe may still read out its connection when the
/// next one starts.
fn probe_limit() -> usize {
    let open_files = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _hard)| soft);
    usize::try_from(open_files / 2)
        .unwrap_or(usize::MAX)
        .clamp(1, MAX_PROBES)
}

#[cfg(test)]
#[path = "tests/prober.rs"]
mod tests;
