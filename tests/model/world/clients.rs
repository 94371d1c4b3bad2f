//! What clients do, and who forges their packets.

use lb_common::rule::Packet;

use super::{Cause, Conn, Event, Limit, Phase, World, promise};
use crate::agent::SECOND;
use crate::kernel::KEYS;

impl World<'_> {
    pub(super) fn open_some(&mut self) {
        let key = self.random.index(KEYS);
        self.open(key);
    }

    pub(super) fn open(&mut self, key: usize) {
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
            shaken: false,
            passing: 0,
        });
        if self.tcp || self.quic {
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
        let backend = self.kernel.host(passed.backend);
        let alive = self.alive[backend as usize];
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

    pub(super) fn open_flows(&self) -> usize {
        let open = |conn: &&Conn| conn.phase != Phase::Opening;
        self.conns.iter().flatten().filter(open).count()
    }

    /// A key whose flow is open.
    pub(super) fn some_flow(&mut self) -> Option<usize> {
        let from = self.random.index(KEYS);
        let open = |key: &usize| {
            let conn = self.conns[*key].as_ref();
            conn.is_some_and(|conn| conn.phase != Phase::Opening && !conn.quiet)
        };
        (from..KEYS).chain(0..from).find(open)
    }

    pub(super) fn talk(&mut self) {
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

    pub(super) fn end(&mut self) {
        let Some(key) = self.some_flow() else { return };
        if self.random.chance(300) {
            self.say_something(key, 0);
        }
        let Some(conn) = &mut self.conns[key] else { return };
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
        if self.random.chance(300) {
            let after = self.random.below(SECOND / 4);
            self.later(after, Event::Again { key });
        }
    }

    /// A sequence number that fits nothing.
    pub(super) fn forged_number(&mut self, key: usize) -> u32 {
        let near = self.conns[key].as_ref().map_or(0, |conn| conn.sequence);
        near.wrapping_add(1 << 31).wrapping_add(self.random.word() >> 3)
    }

    pub(super) fn forge(&mut self) {
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
}
