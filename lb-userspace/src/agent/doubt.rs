//! Doubting ourselves: whom to ask when something falls silent, and what follows from the answers.
//!
//! ```text
//!  first miss of a run ─┬─▶ is its host there at all?    ──▶ host_silent: what becomes of its flows
//!  a next hop is lost ──┼─▶ the witness  ──┐
//!                       └─▶ other backends ┴─ anybody answers ──▶ the doubted are asked once more
//!                                          └─ nobody does     ──▶ ISOLATED: tables stay
//! ```
//!
//! What is believed is decided elsewhere ([`crate::health::doubt`]); here questions are asked in time. Nothing of it
//! blocks the loop: each question is a task whose answer comes back as [`Heard`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{Semaphore, mpsc};

use super::{Agent, witness};
use crate::config::Witness;
use crate::health::doubt::Sign;
use crate::health::{Report, presence};
use crate::model::{BackendId, OperState};
use crate::net::netlink::Netlink;
use crate::observe::Kind;

/// Others are not asked more often than this, however many fall silent.
const ASK_PAUSE: Duration = Duration::from_millis(100);

/// How many others are asked at once. They are probed in their turn as well.
const ASK_OTHERS: usize = 8;

/// Hosts that are looked at at once.
const LOOKS_AT_ONCE: usize = 64;

/// A next hop that comes back within this time was hardly gone: nothing is said of it.
const LOST_FOR: Duration = Duration::from_secs(1);

/// A lost next hop is given up when it did not come back for so long, while others answered: when our link returns,
/// neighbours do so one after the other, and are solicited once a second.
const HOP_GRACE: Duration = Duration::from_millis(1500);

/// An answer to a question that was asked in a task of its own.
#[derive(Clone, Copy, Debug)]
pub(super) enum Heard {
    /// Whom the witness is; `None`: there is nobody to ask.
    Witness(Option<IpAddr>),
    /// The witness answered a question asked at this moment.
    Answered(IpAddr, Instant),
    /// Whether a host answers at all.
    Host(IpAddr, bool),
}

/// A backend is silent, and not believed.
#[derive(Clone, Copy, Debug)]
struct Silence {
    /// When the first of its misses began.
    since: Instant,
    /// It is asked once more since its last report.
    asked: bool,
}

/// A next hop is lost, and not believed to be.
#[derive(Clone, Copy, Debug)]
struct Lost {
    since: Instant,
    /// When somebody had answered since.
    witnessed: Option<Instant>,
}

pub(super) type HeardReceiver = mpsc::Receiver<Heard>;

/// What is doubted, and the ways to ask.
pub(super) struct Doubts {
    /// Backends that are silent and not believed, with the beginning of their silence.
    silent: BTreeMap<BackendId, Silence>,
    /// Next hops that are lost and not believed to be, since when.
    lost: BTreeMap<IpAddr, Lost>,
    /// Hosts that are looked at, and what the last look at each that is DOWN said.
    looking: BTreeSet<IpAddr>,
    /// Since when nothing answers.
    isolated: Option<SystemTime>,
    asked: Option<Instant>,
    heard: mpsc::Sender<Heard>,
    looks: Arc<Semaphore>,
    witness: witness::Asker,
}

impl Doubts {
    pub fn new(witness: Witness) -> (Self, HeardReceiver) {
        let (heard, receiver) = mpsc::channel(1024);
        let doubts = Self {
            silent: BTreeMap::new(),
            lost: BTreeMap::new(),
            looking: BTreeSet::new(),
            isolated: None,
            asked: None,
            witness: witness::Asker::spawn(witness, heard.clone()),
            heard,
            looks: Arc::new(Semaphore::new(LOOKS_AT_ONCE)),
        };
        (doubts, receiver)
    }

    /// Since when nothing answers.
    pub fn isolated_since(&self) -> Option<SystemTime> {
        self.isolated
    }

    fn doubts(&self, probed: &BackendId) -> bool {
        self.silent.contains_key(probed)
    }
}

impl Agent {
    /// Whether a backend is silent and not believed.
    pub(super) fn doubted(&self, id: &BackendId) -> bool {
        self.doubts.doubts(&self.sharing.probed(id))
    }

    /// What a report asks for besides the state it says.
    pub(super) fn question(&mut self, report: &Report) {
        let id = report.id;
        if report.doubted
            && let Some(first_miss) = report.first_miss
        {
            let silence = Silence {
                since: first_miss,
                asked: false,
            };
            self.doubts.silent.insert(id, silence);
        } else {
            self.doubts.silent.remove(&id);
        }
        if report.sign != Sign::Silent {
            return;
        }
        // The first of a run, and while it is DOWN each.
        if report.failures == 1 || report.state == OperState::Down {
            self.look_at(id.address, report.patience);
        }
        if report.failures == 1 && report.state == OperState::Up {
            self.ask_others();
        }
    }

    /// Finds out whether a host answers at all.
    fn look_at(&mut self, address: IpAddr, patience: Duration) {
        if !self.doubts.looking.insert(address) {
            return;
        }
        let netlink: Netlink = self.netlink.clone();
        let (heard, looks) = (self.doubts.heard.clone(), Arc::clone(&self.doubts.looks));
        tokio::spawn(async move {
            let Ok(_permit) = looks.acquire().await else {
                return;
            };
            let answers = presence::answers(&netlink, address, patience).await;
            // Else the agent is at its end.
            let _ = heard.send(Heard::Host(address, answers)).await;
        });
    }

    /// Asks the witness and some other backends, so that somebody has answered by the time of the verdict.
    fn ask_others(&mut self) {
        let now = Instant::now();
        if self.doubts.asked.is_some_and(|asked| now < asked + ASK_PAUSE) {
            return;
        }
        self.doubts.asked = Some(now);
        self.doubts.witness.hurry();
        let mut hosts = BTreeSet::new();
        for (id, status) in &self.statuses {
            if hosts.len() == ASK_OTHERS {
                break;
            }
            if status.state == OperState::Up
                && !self.doubts.silent.contains_key(id)
                && hosts.insert(id.address)
            {
                self.prober.probe_now(id);
            }
        }
    }

    /// Takes in an answer.
    pub(super) fn hear(&mut self, heard: Heard) {
        match heard {
            Heard::Witness(witness) => self.prober.answers().set_witness(witness),
            Heard::Answered(witness, asked) => self.prober.answers().answered(witness, asked),
            Heard::Host(address, answers) => {
                self.doubts.looking.remove(&address);
                for (id, status) in &mut self.statuses {
                    // Those that are UP may be on their way DOWN.
                    if id.address == address && status.host_silent == answers {
                        status.host_silent = !answers;
                        self.behind |= status.state == OperState::Down;
                    }
                }
            }
        }
    }

    /// Another witness from here on.
    pub(super) fn change_witness(&mut self, witness: Witness) {
        self.prober.answers().set_witness(None);
        self.doubts.witness = witness::Asker::spawn(witness, self.doubts.heard.clone());
    }

    /// A next hop was lost that was known.
    pub(super) fn lose_hop(&mut self, address: IpAddr) {
        let lost = Lost {
            since: Instant::now(),
            witnessed: None,
        };
        self.doubts.lost.entry(address).or_insert(lost);
        self.ask_others();
    }

    /// A next hop is there again, or not wanted any longer.
    pub(super) fn find_hop(&mut self, address: IpAddr) {
        self.doubts.lost.remove(&address);
    }

    /// Draws the conclusions from who answered: the doubted are asked again, lost next hops are given up.
    pub(super) fn conclude(&mut self) {
        let Self {
            doubts, prober, hops, ..
        } = self;
        if doubts.silent.is_empty() && doubts.lost.is_empty() {
            return;
        }
        let mut given_up = Vec::new();
        {
            let answers = prober.answers();
            for (id, silence) in &mut doubts.silent {
                if !silence.asked && answers.others_since(id.address, silence.since) {
                    silence.asked = prober.probe_now(id);
                }
            }
            let now = Instant::now();
            for (address, lost) in &mut doubts.lost {
                match lost.witnessed {
                    None if answers.others_since(*address, lost.since) => lost.witnessed = Some(now),
                    Some(witnessed)
                        if now >= witnessed + HOP_GRACE && answers.others_since(*address, witnessed) =>
                    {
                        given_up.push(*address);
                    }
                    _ => {}
                }
            }
        }
        for address in given_up {
            doubts.lost.remove(&address);
            if let Some(view) = hops.get_mut(&address) {
                view.doubted = false;
                self.behind = true;
            }
        }
    }

    /// Says when nothing answers, and when that is over.
    pub(super) fn judge_isolation(&mut self) {
        let ids: BTreeSet<IpAddr> = self.statuses.keys().map(|id| id.address).collect();
        self.doubts.silent.retain(|id, _| self.statuses.contains_key(id));
        self.doubts.lost.retain(|address, _| ids.contains(address));
        self.conclude();
        let now = Instant::now();
        let answers = self.prober.answers();
        let silent = self
            .doubts
            .silent
            .iter()
            .any(|(id, silence)| !answers.others_since(id.address, silence.since));
        let lost = self
            .doubts
            .lost
            .values()
            .any(|lost| lost.witnessed.is_none() && now.duration_since(lost.since) > LOST_FOR);
        drop(answers);
        match (silent || lost, self.doubts.isolated) {
            (true, None) => {
                self.doubts.isolated = Some(SystemTime::now());
                log::error!(
                    "ISOLATED: {} backends fell silent and nothing else answers, nor does the witness: the fault \
                     may be ours, the tables stay as they are",
                    self.doubts.silent.len().max(self.doubts.lost.len())
                );
                self.emit(Kind::Isolated);
            }
            (false, Some(since)) => {
                self.doubts.isolated = None;
                let lasted = SystemTime::now().duration_since(since).unwrap_or_default();
                log::info!("isolation is over after {:.1} s", lasted.as_secs_f64());
                self.emit(Kind::IsolationOver);
            }
            _ => {}
        }
        if self.doubts.isolated.is_some() || !self.doubts.lost.is_empty() {
            self.doubts.witness.hurry();
        }
    }
}
