//! Packets on their way, and what becomes of their connections.

use lb_common::rule::Packet;
use xlb::datapath::sweep::UNANSWERED_NS;

use super::{Cause, Conn, Event, Failure, Limit, MILLISECOND, Phase, World, promise};
use crate::agent::SECOND;
use crate::kernel::{Passed, Passing};

impl World<'_> {
    /// Sends a packet: it passes at once, or reads now and writes a little later.
    pub(super) fn send(&mut self, key: usize, packet: Packet, cause: Cause) {
        self.summary.packets += 1;
        let serial = self.conns[key].as_ref().map_or(0, |conn| conn.serial);
        let passing = self.kernel.enter(key, packet, self.now_ns);
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

    pub(super) fn deliver(&mut self, key: usize, packet: Packet, cause: Cause, serial: u64, passed: Passed) {
        let backend = self.kernel.host(passed.backend);
        self.say(|| {
            let (entry, place) = (
                self.kernel.entry(key),
                self.kernel.enter(key, packet, self.now_ns).place,
            );
            format!("{key} {cause:?} {packet:?} -> host {backend}, {passed:?}, {place:?}, {entry:?}")
        });
        let passed = Passed { backend, ..passed };
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
            Cause::Data | Cause::Fin => self.deliver_data(key, serial, passed, packet),
        }
    }

    pub(super) fn deliver_syn(&mut self, key: usize, serial: u64, passed: Passed, alive: bool) {
        let backend = passed.backend;
        let stale = alive && self.stale[key][backend as usize];
        let Some(conn) = self.conns[key].as_mut().filter(|conn| conn.serial == serial) else {
            return;
        };
        if conn.phase != Phase::Opening {
            // Of QUIC what follows shows which connection it is of.
            if backend != conn.owner && self.tcp {
                conn.limit = Some(Limit::LateCopy);
            }
            return;
        }
        if backend != 0 && !conn.sent_to.contains(&backend) {
            conn.sent_to.push(backend);
        }
        if !alive || self.deaf[backend as usize] || self.random.chance(self.loss) {
            return;
        }
        // A server of QUIC knows connections by their ids.
        if stale && self.tcp {
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

    pub(super) fn deliver_data(&mut self, key: usize, serial: u64, passed: Passed, packet: Packet) {
        let Some(conn) = self.conns[key].as_mut().filter(|conn| conn.serial == serial) else {
            return;
        };
        if passed.backend == conn.owner {
            conn.shaken |= packet == Packet::Handshake;
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
    pub(super) fn fail(&mut self, key: usize, backend: u32, how: &str) {
        let Some(conn) = self.conns[key].take() else {
            return;
        };
        if let Some(limit) = conn.limit {
            *self.summary.known.entry(limit).or_default() += 1;
            return;
        }
        let place = self.kernel.enter(key, Packet::Error, self.now_ns).place;
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

    pub(super) fn happen(&mut self, event: Event) {
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
                    self.send(key, self.first_packet(isn), Cause::Syn);
                }
            }
            Event::LateCopy { key, serial, isn } => {
                if self.conns[key].as_ref().is_some_and(|conn| conn.serial == serial) {
                    self.send(key, self.first_packet(isn), Cause::Syn);
                }
            }
            Event::Wake { key, serial } => {
                if let Some(conn) = self.conns[key].as_mut().filter(|conn| conn.serial == serial) {
                    conn.quiet = false;
                    self.say_something(key, 100);
                }
            }
            Event::Again { key } => {
                // Whose FIN is on its way still does not take the port again (TIME-WAIT).
                let ends =
                    |passing: &Passing| passing.key == key && matches!(passing.packet, Packet::Last { .. });
                if !self.passing.iter().flatten().any(|(passing, ..)| ends(passing)) {
                    self.open(key);
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

    pub(super) fn answered(&mut self, key: usize, serial: u64, backend: u32) {
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
        } else if self.now_ns - conn.last_ns > UNANSWERED_NS
            && self.closed_ns[backend as usize] > conn.last_ns
        {
            conn.limit = Some(Limit::LateAnswer);
        }
        self.summary.opened += 1;
        self.say_something(key, 0);
    }

    /// A flow's next segment or datagram.
    pub(super) fn next_packet(&self, conn: &Conn) -> Packet {
        self.next_of(conn.sequence, conn.shaken)
    }

    fn next_of(&self, sequence: u32, shaken: bool) -> Packet {
        if self.tcp {
            Packet::Data(sequence)
        } else if self.quic && !shaken {
            Packet::Handshake
        } else {
            Packet::Datagram
        }
    }

    /// What opens a connection.
    fn first_packet(&self, isn: u32) -> Packet {
        if self.quic {
            Packet::Initial(isn)
        } else {
            Packet::Syn(isn)
        }
    }

    /// The flow sends its next segment or datagram.
    pub(super) fn say_something(&mut self, key: usize, bytes: u32) {
        let Some(conn) = self.conns[key].as_mut() else {
            return;
        };
        if self.now_ns - conn.last_ns > promise(conn, self.window_ns) {
            // It was idle for longer than promised.
            self.forget(key);
            return;
        }
        conn.last_ns = self.now_ns;
        let (sequence, shaken) = (conn.sequence, conn.shaken);
        let packet = self.next_of(sequence, shaken);
        let conn = self.conns[key].as_mut().expect("there above");
        // The first segments must arrive before many more are sent.
        if conn.passing == 0 {
            conn.sequence = conn.sequence.wrapping_add(bytes);
        }
        self.send(key, packet, Cause::Data);
    }

    /// The client forgets a connection that its backend still has.
    pub(super) fn forget(&mut self, key: usize) {
        if let Some(conn) = self.conns[key].take()
            && conn.phase != Phase::Opening
        {
            self.stale[key][conn.owner as usize] = true;
        }
    }
}
