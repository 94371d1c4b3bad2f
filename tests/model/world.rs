//! Clients, backends and operators around a load balancer: one random history.
//!
//! Clients and the backends' kernels are ideal TCP endpoints: a connection belongs to the backend whose answer to its
//! SYN arrived first. A flow is *broken* when a packet of it goes, or would go, to another backend while its own lives
//! and is allowed to serve, and the flow was not idle for longer than promised. That a backend lives and that it is UP
//! are two things here: verdicts are wrong at times.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fmt;

use lb_common::layout::FlowControl;
use lb_common::rule::Packet;

use crate::agent::{Admin, Agent, Op, SECOND, Wish, desired};
use crate::kernel::{BACKENDS, KEYS, Kernel, Passed, Passing};
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
    now_ns: u64,
    window_ns: u64,
    size: usize,
    limited: bool,
    /// SYNs and their answers that are lost, in a thousand.
    loss: u64,
    pub kernel: Kernel,
    agent: Agent,
    wishes: [Wish; BACKENDS + 1],
    alive: [bool; BACKENDS + 1],
    lost: [bool; BACKENDS + 1],
    conns: Vec<Option<Conn>>,
    /// Connections that a backend's kernel still has, though the client has forgotten them.
    stale: Vec<[bool; BACKENDS + 1]>,
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
        let mut wishes = [wish; BACKENDS + 1];
        for wish in &mut wishes[1..=5] {
            wish.exists = true;
        }
        let first = desired(&wishes, size, tcp);
        let mut kernel = Kernel::new(&vec![0; size], capacity, mutant);
        kernel.standing = first.standing;
        let whole = observer.is_some();
        if whole {
            // The real table's size is not changed for each history.
            kernel.capacity = KEYS;
        }
        let mut world = Self {
            tcp,
            now_ns,
            window_ns,
            size,
            limited: random.chance(300),
            loss: random.pick(&[80, 80, 80, 700]),
            agent: Agent::adopt(&kernel, window_ns, now_ns, mutant),
            kernel,
            random,
            wishes,
            alive: [true; BACKENDS + 1],
            lost: [false; BACKENDS + 1],
            conns: vec![None; KEYS],
            stale: vec![[false; BACKENDS + 1]; KEYS],
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
            330..450 => self.open(),
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

    // The agent.

    fn agent_turn(&mut self) {
        if !self.agent.ops.is_empty() {
            for _ in 0..=self.random.below(3) {
                if !self.agent_op() {
                    break;
                }
                if self.random.chance(10) {
                    self.restart();
                    return;
                }
            }
        } else if self.now_ns >= self.next_tick_ns {
            self.tick();
        } else {
            let batch = self.random.pick(&[4, 32, KEYS]);
            for _ in 0..self.random.below(60) {
                if self.agent.sweep(&mut self.kernel, self.now_ns, batch) {
                    break;
                }
            }
        }
    }

    fn tick(&mut self) {
        let late = match self.random.below(100) {
            0..80 => SECOND,
            80..95 => 5 * SECOND,
            95..99 => 30 * SECOND,
            _ => 200 * SECOND,
        };
        self.next_tick_ns = self.now_ns + self.random.below(late);
        let free = self.kernel.capacity - self.kernel.used.min(self.kernel.capacity);
        self.agent.room = if self.limited {
            free / 4 + usize::from(self.agent.open == 0)
        } else {
            usize::MAX
        };
        let left = match self.limited {
            true if self.random.chance(30) => self.random.below(2),
            true => 50,
            false => u64::MAX >> 1,
        };
        self.kernel.control = FlowControl {
            refused_ns: self.kernel.control.refused_ns,
            syn_left: left,
            data_left: left,
            udp_left: left,
        };
        let desired = desired(&self.wishes, self.size, self.tcp);
        self.agent.tick(desired);
    }

    /// The next write that changes something; `false` where there is none.
    fn agent_op(&mut self) -> bool {
        while let Some(op) = self.agent.ops.pop_front() {
            if !self.agent.matters(&op, &self.kernel) {
                continue;
            }
            let before = self.agent.unsettled();
            let lost = self.agent.write(&op, &mut self.kernel, self.now_ns);
            self.say(|| format!("agent {op:?}, lost {lost:?}"));
            if matches!(op, Op::Advance) {
                self.lost = [false; BACKENDS + 1];
            }
            for backend in lost {
                self.lose(backend);
            }
            if matches!(op, Op::Publish) {
                let after = self.agent.unsettled();
                if after > 0 && before == 0 {
                    self.opened_ns = Some(self.now_ns);
                } else if after == 0
                    && let Some(at) = self.opened_ns.take()
                {
                    self.summary.ended_ns.push(self.now_ns - at);
                }
            }
            return true;
        }
        false
    }

    fn restart(&mut self) {
        self.say(|| "restart".into());
        self.agent = Agent::adopt(&self.kernel, self.window_ns, self.now_ns, self.mutant);
        self.next_tick_ns = self.now_ns + self.random.below(30 * SECOND);
    }

    /// The flows of a backend are lost with it, whatever the load balancer does.
    fn lose(&mut self, backend: u32) {
        self.lost[backend as usize] = true;
        for conn in &mut self.conns {
            let its = |conn: &Conn| match conn.phase {
                Phase::Opening => conn.sent_to.contains(&backend),
                _ => conn.owner == backend,
            };
            if conn.as_ref().is_some_and(its) {
                *conn = None;
                self.summary.lost += 1;
            }
        }
    }

    // Packets.

    /// Sends a packet: it passes at once, or reads now and writes a little later.
    fn send(&mut self, key: usize, packet: Packet, cause: Cause) {
        self.summary.packets += 1;
        let serial = self.conns[key].as_ref().map_or(0, |conn| conn.serial);
        let passing = self.kernel.enter(key, packet);
        // A forged SYN that takes an entry over at the same moment as a real one is left out, see the documentation.
        let apart = cause != Cause::Forged || !passing.takes_over();
        if !self.whole && apart && self.random.chance(60) {
            self.say(|| format!("{key} {cause:?} {packet:?} reads {passing:?}"));
            let slot = self
                .passing
                .iter()
                .position(Option::is_none)
                .unwrap_or(self.passing.len());
            if slot == self.passing.len() {
                self.passing.push(None);
            }
            self.passing[slot] = Some((passing, cause, serial));
            let after = self.random.below(SECOND / 2);
            self.later(after, Event::Leave { slot });
            if let Some(conn) = &mut self.conns[key] {
                conn.passing += 1;
            }
            return;
        }
        if let Some(observer) = &mut self.observer {
            observer.packet(&self.kernel, key, packet, self.now_ns);
        }
        let passed = self.kernel.pass(key, packet, self.now_ns);
        if let Some(observer) = &mut self.observer {
            observer.passed(&self.kernel, key, passed);
        }
        self.deliver(key, packet, cause, serial, passed);
    }

    fn deliver(&mut self, key: usize, packet: Packet, cause: Cause, serial: u64, passed: Passed) {
        let backend = passed.backend;
        self.say(|| {
            let entry = self.kernel.entry(key);
            let place = self.kernel.record.place(self.kernel.hashes[key]).slot;
            let slot = (place.current(), place.previous(), place.consult());
            format!("{key} {cause:?} {packet:?} -> {passed:?}, slot {slot:?}, {entry:?}")
        });
        let alive = backend != 0 && self.alive[backend as usize];
        match cause {
            Cause::Forged => {
                if let (true, Packet::Syn(isn)) = (alive, packet) {
                    let after = self.random.below(SECOND);
                    self.later(after, Event::Stray { key, isn, backend });
                }
            }
            Cause::Reset => {
                if alive {
                    self.stale[key][backend as usize] = false;
                }
            }
            Cause::Syn => self.deliver_syn(key, serial, passed, alive),
            Cause::Data | Cause::Fin => self.deliver_data(key, serial, passed),
        }
    }

    fn deliver_syn(&mut self, key: usize, serial: u64, passed: Passed, alive: bool) {
        let backend = passed.backend;
        let stale = alive && self.stale[key][backend as usize];
        let Some(conn) = self.conns[key].as_mut().filter(|conn| conn.serial == serial) else {
            return;
        };
        if conn.phase != Phase::Opening {
            if backend != conn.owner {
                conn.limit = Some(Limit::LateCopy);
            }
            return;
        }
        if backend != 0 && !conn.sent_to.contains(&backend) {
            conn.sent_to.push(backend);
        }
        if !alive || self.random.chance(self.loss) {
            return;
        }
        if stale {
            // The backend's kernel asks, and the client's denies: the old connection ends.
            let sequence = conn.isn ^ 1 << 31;
            self.send(
                key,
                Packet::Last {
                    sequence,
                    reset: true,
                },
                Cause::Reset,
            );
            return;
        }
        if passed.followed {
            conn.limit = Some(Limit::OldEntry);
        }
        if !self.random.chance(self.loss) {
            let scale = self
                .random
                .pick(&[MILLISECOND, MILLISECOND, 50 * MILLISECOND, SECOND, 8 * SECOND]);
            let after = self.random.below(scale);
            self.later(after, Event::Answer { key, serial, backend });
        }
    }

    fn deliver_data(&mut self, key: usize, serial: u64, passed: Passed) {
        let Some(conn) = self.conns[key].as_mut().filter(|conn| conn.serial == serial) else {
            return;
        };
        if passed.backend == conn.owner {
            if self.tcp {
                if conn.limit == Some(Limit::OldEntry) {
                    conn.limit = None;
                }
            } else {
                conn.limit = passed.refused.then_some(Limit::RefusedDatagram);
            }
            return;
        }
        self.fail(key, passed.backend, "went");
    }

    /// A packet of a living flow goes to another backend than its own.
    fn fail(&mut self, key: usize, backend: u32, how: &str) {
        let Some(conn) = self.conns[key].take() else {
            return;
        };
        if let Some(limit) = conn.limit {
            *self.summary.known.entry(limit).or_default() += 1;
            return;
        }
        let place = self.kernel.record.place(self.kernel.hashes[key]);
        let what = format!(
            "a packet of flow {key} {how} to {backend}, its owner is {}: {conn:?}, {place:?}, entry {:?}",
            conn.owner,
            self.kernel.entry(key)
        );
        self.failure.get_or_insert(Failure {
            step: self.summary.steps,
            what,
        });
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Leave { slot } => {
                let Some((passing, cause, serial)) = self.passing[slot].take() else {
                    return;
                };
                let passed = self.kernel.leave(&passing, self.now_ns);
                let conn = self.conns[passing.key].as_mut();
                if let Some(conn) = conn.filter(|conn| conn.serial == serial) {
                    conn.passing -= 1;
                }
                self.deliver(passing.key, passing.packet, cause, serial, passed);
            }
            Event::SynTry { key, serial, n } => {
                let Some(conn) = &self.conns[key] else { return };
                if conn.serial != serial || conn.phase != Phase::Opening {
                    return;
                }
                if n == 7 {
                    self.conns[key] = None;
                    return;
                }
                let isn = conn.isn;
                self.later(
                    SECOND << n,
                    Event::SynTry {
                        key,
                        serial,
                        n: n + 1,
                    },
                );
                if self.random.chance(50) {
                    let after = self.random.below(20 * SECOND);
                    self.later(after, Event::LateCopy { key, serial, isn });
                }
                if !self.random.chance(self.loss) {
                    self.send(key, Packet::Syn(isn), Cause::Syn);
                }
            }
            Event::LateCopy { key, serial, isn } => {
                if self.conns[key].as_ref().is_some_and(|conn| conn.serial == serial) {
                    self.send(key, Packet::Syn(isn), Cause::Syn);
                }
            }
            Event::Wake { key, serial } => {
                if let Some(conn) = self.conns[key].as_mut().filter(|conn| conn.serial == serial) {
                    conn.quiet = false;
                    self.say_something(key, 100);
                }
            }
            Event::Answer { key, serial, backend } => self.answered(key, serial, backend),
            Event::Stray { key, isn, backend } => {
                if !self.alive[backend as usize] {
                    return;
                }
                match self.conns[key].as_ref().map(|conn| conn.phase) {
                    // A connection that is open answers with what it has (RFC 5961).
                    Some(Phase::Open | Phase::HalfClosed) => self.say_something(key, 0),
                    _ => {
                        let sequence = isn.wrapping_add(1);
                        self.send(
                            key,
                            Packet::Last {
                                sequence,
                                reset: true,
                            },
                            Cause::Reset,
                        );
                    }
                }
            }
        }
    }

    fn answered(&mut self, key: usize, serial: u64, backend: u32) {
        let Some(conn) = self.conns[key].as_mut() else {
            return;
        };
        if conn.serial != serial || conn.phase != Phase::Opening || !self.alive[backend as usize] {
            return;
        }
        if self.lost[backend as usize] {
            self.conns[key] = None;
            self.summary.lost += 1;
            return;
        }
        conn.phase = Phase::Open;
        conn.owner = backend;
        conn.sequence = conn.isn.wrapping_add(1);
        if conn.sent_to.len() > 1 {
            conn.limit = Some(Limit::TwoAnswers);
        }
        self.summary.opened += 1;
        self.say_something(key, 0);
    }

    /// The flow's next segment or datagram.
    fn say_something(&mut self, key: usize, bytes: u32) {
        let Some(conn) = self.conns[key].as_mut() else {
            return;
        };
        if self.now_ns - conn.last_ns > promise(conn, self.window_ns) {
            // It was idle for longer than promised.
            self.forget(key);
            return;
        }
        conn.last_ns = self.now_ns;
        let packet = if self.tcp {
            Packet::Data(conn.sequence)
        } else {
            Packet::Datagram
        };
        // The first segments must arrive before many more are sent.
        if conn.passing == 0 {
            conn.sequence = conn.sequence.wrapping_add(bytes);
        }
        self.send(key, packet, Cause::Data);
    }

    /// The client forgets a connection that its backend still has.
    fn forget(&mut self, key: usize) {
        if let Some(conn) = self.conns[key].take()
            && conn.phase != Phase::Opening
        {
            self.stale[key][conn.owner as usize] = true;
        }
    }

    // What clients do.

    fn open(&mut self) {
        let key = self.random.index(KEYS);
        if self.conns[key].is_some() {
            return;
        }
        self.serial += 1;
        let serial = self.serial;
        let isn = self.random.word();
        self.conns[key] = Some(Conn {
            serial,
            isn,
            sequence: isn,
            phase: Phase::Opening,
            owner: 0,
            sent_to: Vec::new(),
            last_ns: self.now_ns,
            limit: None,
            quiet: false,
            passing: 0,
        });
        if self.tcp {
            self.happen(Event::SynTry { key, serial, n: 0 });
            return;
        }
        let passed = {
            if let Some(observer) = &mut self.observer {
                observer.packet(&self.kernel, key, Packet::Datagram, self.now_ns);
            }
            let passed = self.kernel.pass(key, Packet::Datagram, self.now_ns);
            if let Some(observer) = &mut self.observer {
                observer.passed(&self.kernel, key, passed);
            }
            passed
        };
        let (backend, alive) = (passed.backend, self.alive[passed.backend as usize]);
        let conn = self.conns[key].as_mut().expect("made above");
        if backend == 0 || !alive || self.lost[backend as usize] {
            self.conns[key] = None;
            return;
        }
        conn.phase = Phase::Open;
        conn.owner = backend;
        conn.limit = passed.refused.then_some(Limit::RefusedDatagram);
        self.summary.opened += 1;
    }

    /// A key whose flow is open.
    fn some_flow(&mut self) -> Option<usize> {
        let from = self.random.index(KEYS);
        let open = |key: &usize| {
            let conn = self.conns[*key].as_ref();
            conn.is_some_and(|conn| conn.phase != Phase::Opening && !conn.quiet)
        };
        (from..KEYS).chain(0..from).find(open)
    }

    fn talk(&mut self) {
        let Some(key) = self.some_flow() else { return };
        let bytes = self.random.pick(&[0, 100, 1400, 30_000, 200_000]);
        self.say_something(key, bytes);
        if self.random.chance(40)
            && let Some(conn) = &mut self.conns[key]
        {
            conn.quiet = true;
            let serial = conn.serial;
            let after = promise(conn, self.window_ns) - self.random.below(SECOND);
            self.later(after, Event::Wake { key, serial });
        }
    }

    fn end(&mut self) {
        let Some(key) = self.some_flow() else { return };
        let conn = self.conns[key].as_mut().expect("found above");
        if !self.tcp {
            self.conns[key] = None;
            return;
        }
        if self.now_ns - conn.last_ns > promise(conn, self.window_ns) {
            self.forget(key);
            return;
        }
        let sequence = conn.sequence;
        match self.random.below(10) {
            0..4 if conn.phase == Phase::Open => {
                conn.phase = Phase::HalfClosed;
                conn.sequence = sequence.wrapping_add(1);
                conn.last_ns = self.now_ns;
                self.send(
                    key,
                    Packet::Last {
                        sequence,
                        reset: false,
                    },
                    Cause::Fin,
                );
            }
            0..7 => {
                conn.last_ns = self.now_ns;
                self.send(
                    key,
                    Packet::Last {
                        sequence,
                        reset: false,
                    },
                    Cause::Fin,
                );
                self.conns[key] = None;
            }
            7..9 => {
                self.send(
                    key,
                    Packet::Last {
                        sequence,
                        reset: true,
                    },
                    Cause::Fin,
                );
                self.conns[key] = None;
            }
            // Its host crashed.
            _ => self.forget(key),
        }
    }

    /// A sequence number that fits nothing.
    fn forged_number(&mut self, key: usize) -> u32 {
        let near = self.conns[key].as_ref().map_or(0, |conn| conn.sequence);
        near.wrapping_add(1 << 31).wrapping_add(self.random.word() >> 3)
    }

    fn forge(&mut self) {
        if !self.tcp {
            return;
        }
        let (from, count) = match self.random.below(20) {
            // One for each live flow.
            0 => (0, KEYS),
            // A flood.
            1 => (self.random.index(KEYS), 40),
            _ => (self.random.index(KEYS), 1),
        };
        for key in (from..from + count).map(|key| key % KEYS) {
            if count == KEYS && self.conns[key].is_none() {
                continue;
            }
            let isn = self.forged_number(key);
            self.send(key, Packet::Syn(isn), Cause::Forged);
        }
    }

    // What else happens.

    fn event(&mut self) {
        if self.random.chance(500) {
            return;
        }
        let b = 1 + self.random.index(BACKENDS);
        let kind = self.random.below(19);
        self.say(|| format!("event {kind} of {b}"));
        let wish = &mut self.wishes[b];
        match kind {
            0 | 1 => {
                wish.exists = true;
                wish.up = true;
                self.alive[b] = true;
            }
            2 => wish.exists = false,
            3 | 4 => wish.admin = Admin::Drain,
            5 | 6 => wish.admin = Admin::Ready,
            7 => wish.admin = Admin::Maint,
            8 => wish.weight = self.random.pick(&[0, 1, 2, 5]),
            // It dies; the checks find out later, or never.
            9 => {
                self.alive[b] = false;
                self.lose_alive(b);
            }
            // A verdict, right or wrong: its host answers, or is silent.
            10 | 11 => {
                wish.up = false;
                wish.keep = true;
            }
            12 => {
                wish.up = false;
                wish.keep = false;
            }
            13 | 14 => {
                wish.up = true;
                self.alive[b] = true;
            }
            // A blip of our own uplink: all of them at once.
            15 => {
                for wish in &mut self.wishes {
                    wish.up = false;
                    wish.keep = kind.is_multiple_of(2);
                }
            }
            16 => {
                for wish in &mut self.wishes {
                    wish.up = true;
                }
            }
            17 => {
                self.size = self.random.pick(&SIZES);
            }
            _ => self.restart(),
        }
    }

    fn lose_alive(&mut self, b: usize) {
        let before = self.lost[b];
        self.lose(b as u32);
        self.lost[b] = before;
        for stale in &mut self.stale {
            stale[b] = false;
        }
    }

    // What must hold.

    /// Each living flow's next packet would go to its owner.
    fn audit(&mut self) {
        for key in 0..KEYS {
            let Some(conn) = &self.conns[key] else { continue };
            if conn.phase == Phase::Opening
                || conn.limit.is_some()
                || self.now_ns - conn.last_ns > promise(conn, self.window_ns)
            {
                continue;
            }
            let packet = if self.tcp {
                Packet::Data(conn.sequence)
            } else {
                Packet::Datagram
            };
            let backend = self.kernel.lookup(key, packet);
            if backend != conn.owner {
                self.fail(key, backend, "would go");
                return;
            }
            let place = self.kernel.record.place(self.kernel.hashes[key]);
            self.summary.moved_live += u64::from(place.slot.current() != conn.owner);
        }
    }

    /// Without further events all windows end within two, while one new flow a second opens.
    fn come_to_rest(&mut self) {
        let until = self.now_ns + 2 * self.window_ns + 60 * SECOND;
        self.agent.ops.clear();
        self.next_tick_ns = 0;
        while self.now_ns < until {
            self.summary.steps += 1;
            self.pass_time(SECOND / 4);
            match self.random.below(4) {
                0 => self.open(),
                1 => self.talk(),
                _ => self.end(),
            }
            self.next_tick_ns = self.next_tick_ns.min(self.now_ns + 2 * SECOND);
            if self.now_ns >= self.next_tick_ns {
                self.tick();
                while self.agent_op() {}
            }
            for _ in 0..200 {
                if self.agent.sweep(&mut self.kernel, self.now_ns, 32) {
                    break;
                }
            }
            self.audit();
            if self.failure.is_some() {
                return;
            }
        }
        let unsettled = self.agent.unsettled();
        if unsettled > 0 {
            self.failure = Some(Failure {
                step: self.summary.steps,
                what: format!("{unsettled} slots are unsettled after two windows of rest"),
            });
        }
    }
}

fn promise(conn: &Conn, window_ns: u64) -> u64 {
    if conn.phase == Phase::HalfClosed {
        HALF_CLOSED_NS
    } else {
        window_ns
    }
}
