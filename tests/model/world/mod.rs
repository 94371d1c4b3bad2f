//! Clients, backends and operators around a load balancer: one random history.
//!
//! Clients and the backends' kernels are ideal TCP endpoints: a connection belongs to the backend whose answer to its
//! SYN arrived first. A flow is *broken* when a packet of it goes, or would go, to another backend while its own lives
//! and is allowed to serve, and the flow was not idle for longer than promised. That a backend lives and that it is UP
//! are two things here: verdicts are wrong at times.

mod check;
mod clients;
mod events;
mod packets;
mod steer;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fmt;

use lb_common::rule::Packet;

use crate::agent::{Admin, Agent, HOSTS, SECOND, Wish};
use crate::kernel::{KEYS, Kernel, Passed, Passing};
use crate::mutants::Mutant;
use crate::random::Random;

const MILLISECOND: u64 = 1_000_000;
const SIZES: [usize; 4] = [61, 97, 127, 251];
/// How long a half-closed connection may be idle.
const HALF_CLOSED_NS: u64 = 60 * SECOND;

/// Why a flow may break: what the documentation says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Limit {
    /// SYNs of one connection went to two backends; the first answer came after the last of them.
    TwoAnswers,
    /// The answer to its SYN came late, from a backend that took no new flows meanwhile: its entry may be gone.
    LateAnswer,
    /// A late copy of its SYN came after the connection had opened.
    LateCopy,
    /// Its SYN followed the entry of an earlier connection, which expires before the next segment comes.
    OldEntry,
    /// A datagram of it was refused an entry.
    RefusedDatagram,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Opening,
    Open,
    HalfClosed,
}

#[derive(Clone, Debug)]
struct Conn {
    serial: u64,
    isn: u32,
    sequence: u32,
    phase: Phase,
    owner: u32,
    /// Backends that SYNs of it went to.
    sent_to: Vec<u32>,
    last_ns: u64,
    limit: Option<Limit>,
    /// It says nothing until shortly before it would be forgotten.
    quiet: bool,
    /// Of QUIC: a packet of its handshake arrived after the answer.
    shaken: bool,
    /// Its packets that have not left the load balancer.
    passing: u32,
}

/// Whose packet it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cause {
    Syn,
    Data,
    Fin,
    Reset,
    Forged,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    SynTry {
        key: usize,
        serial: u64,
        n: u32,
    },
    Answer {
        key: usize,
        serial: u64,
        backend: u32,
    },
    /// The answer to a forged SYN with this number.
    Stray {
        key: usize,
        isn: u32,
        backend: u32,
    },
    LateCopy {
        key: usize,
        serial: u64,
        isn: u32,
    },
    Leave {
        slot: usize,
    },
    /// The client takes the port of a connection that has just ended for the next one.
    Again {
        key: usize,
    },
    Wake {
        key: usize,
        serial: u64,
    },
}

/// What is told of a history.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    pub steps: u64,
    pub packets: u64,
    pub opened: u64,
    pub lost: u64,
    pub known: BTreeMap<Limit, u64>,
    pub moved_live: u64,
    /// How often an index was given to another host.
    pub reused: u64,
    pub ended_ns: Vec<u64>,
}

/// A broken flow, or a migration that does not end.
#[derive(Clone, Debug)]
pub struct Failure {
    pub step: u64,
    pub what: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {}: {}", self.step, self.what)
    }
}

/// What is seen of the packets, for a replay elsewhere.
pub trait Observer {
    /// Just before a packet passes in one piece.
    fn packet(&mut self, kernel: &Kernel, key: usize, packet: Packet, now_ns: u64);
    /// Just after it passed.
    fn passed(&mut self, kernel: &Kernel, key: usize, passed: Passed);
}

pub struct World<'a> {
    random: Random,
    tcp: bool,
    /// Datagrams are QUIC.
    quic: bool,
    now_ns: u64,
    window_ns: u64,
    size: usize,
    limited: bool,
    /// SYNs and their answers that are lost, in a thousand.
    loss: u64,
    pub kernel: Kernel,
    agent: Agent,
    wishes: [Wish; HOSTS + 1],
    /// The service is to be there.
    service: bool,
    alive: [bool; HOSTS + 1],
    /// It answers no SYN: its accept queue is full.
    deaf: [bool; HOSTS + 1],
    lost: [bool; HOSTS + 1],
    /// When a sweep last saw it take no new flows.
    closed_ns: [u64; HOSTS + 1],
    conns: Vec<Option<Conn>>,
    /// Connections that a backend's kernel still has, though the client has forgotten them.
    stale: Vec<[bool; HOSTS + 1]>,
    serial: u64,
    due: BinaryHeap<Reverse<(u64, u64, Event)>>,
    passing: Vec<Option<(Passing, Cause, u64)>>,
    next_tick_ns: u64,
    opened_ns: Option<u64>,
    pub summary: Summary,
    failure: Option<Failure>,
    mutant: Option<Mutant>,
    observer: Option<&'a mut dyn Observer>,
    /// Packets pass in one piece.
    whole: bool,
    trace: bool,
}

impl<'a> World<'a> {
    pub fn new(seed: u64, mutant: Option<Mutant>, observer: Option<&'a mut dyn Observer>) -> Self {
        let mut random = Random::new(seed);
        let tcp = !random.chance(200);
        let quic = !tcp && random.chance(600);
        let window_ns = random.pick(&[90, 150, 300]) * SECOND;
        let capacity = random.pick(&[KEYS, KEYS, KEYS, 60, 20, 5, 1, 0]);
        let now_ns = 1_000_000 * SECOND;
        let size = random.pick(&SIZES);
        let wish = Wish {
            exists: false,
            up: true,
            keep: random.chance(500),
            resets: random.chance(300),
            admin: Admin::Ready,
            weight: 1,
        };
        let mut wishes = [wish; HOSTS + 1];
        for wish in &mut wishes[1..=5] {
            wish.exists = true;
        }
        let mut kernel = Kernel::new(&vec![0; size], capacity, mutant);
        let whole = observer.is_some();
        if whole {
            // The real table's size is not changed for each history.
            kernel.capacity = KEYS;
        }
        let mut world = Self {
            tcp,
            quic,
            now_ns,
            window_ns,
            size,
            limited: random.chance(300),
            loss: random.pick(&[80, 80, 80, 700]),
            agent: Agent::adopt(&kernel, window_ns, now_ns, mutant),
            kernel,
            random,
            wishes,
            service: true,
            alive: [true; HOSTS + 1],
            deaf: [false; HOSTS + 1],
            lost: [false; HOSTS + 1],
            closed_ns: [0; HOSTS + 1],
            conns: vec![None; KEYS],
            stale: vec![[false; HOSTS + 1]; KEYS],
            serial: 0,
            due: BinaryHeap::new(),
            passing: Vec::new(),
            next_tick_ns: 0,
            opened_ns: None,
            summary: Summary::default(),
            failure: None,
            mutant,
            observer,
            whole,
            trace: std::env::var_os("XLB_CONSISTENCY_TRACE").is_some(),
        };
        world.tick();
        while world.agent_op() {}
        world
    }

    pub fn is_tcp(&self) -> bool {
        self.tcp
    }

    fn say(&self, what: impl FnOnce() -> String) {
        if self.trace {
            println!(
                "{:>6} {:>10.3} {}",
                self.summary.steps,
                (self.now_ns - 1_000_000 * SECOND) as f64 / 1e9,
                what()
            );
        }
    }

    /// Runs it for so many steps, then without further events until all migrations must have ended.
    pub fn run(mut self, steps: u64) -> (Summary, Option<Failure>) {
        for _ in 0..steps {
            self.step();
            if self.failure.is_some() {
                return (self.summary, self.failure);
            }
        }
        if self.kernel.capacity == KEYS && !self.limited {
            self.come_to_rest();
        }
        (self.summary, self.failure)
    }

    fn step(&mut self) {
        self.summary.steps += 1;
        let pause = match self.random.below(100) {
            0..45 => 0,
            45..60 => self.random.below(MILLISECOND),
            60..80 => self.random.below(100 * MILLISECOND),
            80..94 => self.random.below(SECOND),
            94..98 => self.random.below(5 * SECOND),
            98 => self.random.below(20 * SECOND),
            _ if self.random.chance(200) => self.random.below(90 * SECOND),
            _ => 0,
        };
        self.pass_time(pause);
        match self.random.below(1000) {
            0..330 => self.agent_turn(),
            330..450 => self.open_some(),
            450..900 => self.talk(),
            900..950 => self.end(),
            950..975 => self.forge(),
            _ => self.event(),
        }
        self.audit();
    }

    fn pass_time(&mut self, pause_ns: u64) {
        let until = self.now_ns + pause_ns;
        while let Some(Reverse((at, ..))) = self.due.peek()
            && *at <= until
        {
            let Some(Reverse((at, _, event))) = self.due.pop() else {
                break;
            };
            self.now_ns = self.now_ns.max(at);
            self.happen(event);
        }
        self.now_ns = until;
    }

    fn later(&mut self, after_ns: u64, event: Event) {
        self.serial += 1;
        self.due
            .push(Reverse((self.now_ns + after_ns, self.serial, event)));
    }
}

fn promise(conn: &Conn, window_ns: u64) -> u64 {
    if conn.phase == Phase::HalfClosed {
        HALF_CLOSED_NS
    } else {
        window_ns
    }
}
