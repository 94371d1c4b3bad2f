//! What must hold.

use super::{Failure, Phase, World, promise};
use crate::agent::SECOND;
use crate::kernel::{KEYS, Record};

impl World<'_> {
    /// Each living flow's next packet would go to its owner.
    pub(super) fn audit(&mut self) {
        for key in 0..KEYS {
            let Some(conn) = &self.conns[key] else { continue };
            if conn.phase == Phase::Opening
                || conn.limit.is_some()
                || self.now_ns - conn.last_ns > promise(conn, self.window_ns)
            {
                continue;
            }
            let packet = self.next_packet(conn);
            let backend = self.kernel.host(self.kernel.lookup(key, packet, self.now_ns));
            if backend != conn.owner {
                self.fail(key, backend, "would go");
                return;
            }
            let place = self.kernel.record.place(self.kernel.hashes[key]);
            self.summary.moved_live += u64::from(self.kernel.host(place.slot.current()) != conn.owner);
        }
    }

    /// Nothing names an index that another host is given.
    pub(super) fn index_is_free(&mut self, index: u32) {
        let Record {
            now,
            before,
            resizing,
            held: _,
        } = &self.kernel.record;
        let before = before.iter().filter(|_| *resizing).flatten();
        let mut slots = now.iter().chain(before);
        let slot = slots.any(|slot| [slot.current(), slot.previous()].contains(&index));
        let entry = self.kernel.flows.iter().flatten().any(|entry| {
            entry.owner.backend() == index || entry.seen.state().is_pending() && entry.before == index
        });
        let mut passing = self.passing.iter().flatten();
        let packet = passing.any(|(passing, ..)| passing.names(index));
        self.summary.reused += 1;
        if slot || entry || packet {
            let what = format!(
                "index {index} is given to another host, and is named: by a slot {slot}, by an entry {entry}, by a \
                 packet on its way {packet}"
            );
            let step = self.summary.steps;
            self.failure.get_or_insert(Failure { step, what });
        }
    }

    /// Without further events all windows end within two, while three new flows a second open and last five seconds
    /// each, and the flow table has 320 entries: 1,000 a second with 100,000.
    pub(super) fn come_to_rest(&mut self) {
        self.service = true;
        let until = self.now_ns + 2 * self.window_ns + 60 * SECOND;
        self.agent.ops.clear();
        self.next_tick_ns = 0;
        while self.now_ns < until {
            self.summary.steps += 1;
            self.pass_time(SECOND / 4);
            for _ in 0..3 {
                match self.random.below(4) {
                    0 => self.open_some(),
                    1 => self.talk(),
                    _ if self.open_flows() > 15 => self.end(),
                    _ => {}
                }
            }
            self.next_tick_ns = self.next_tick_ns.min(self.now_ns + 2 * SECOND);
            if self.now_ns >= self.next_tick_ns {
                self.tick();
                while self.agent_op() {}
            }
            self.sweep(200, 32);
            self.audit();
            if self.failure.is_some() {
                return;
            }
        }
        let unsettled = self.agent.unsettled();
        if unsettled > 0 {
            self.failure = Some(Failure {
                step: self.summary.steps,
                what: format!(
                    "{unsettled} slots are unsettled after two windows of rest: {} open, {} waiting; the last refusal \
                     was {} s ago, the next write is {:?}",
                    self.agent.open,
                    self.agent.waiting,
                    (self.now_ns - self.kernel.control.refused_ns) / SECOND,
                    self.agent.ops.front()
                ),
            });
        }
    }
}
