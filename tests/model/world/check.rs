//! What must hold.

use lb_common::rule::Packet;

use super::{Failure, Phase, World, promise};
use crate::agent::SECOND;
use crate::kernel::KEYS;

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
    pub(super) fn come_to_rest(&mut self) {
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
