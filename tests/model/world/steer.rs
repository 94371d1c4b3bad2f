//! The agent's turns, its deaths, and the deaths of backends.

use lb_common::layout::FlowControl;

use super::{Conn, Phase, World};
use crate::agent::{Agent, HOSTS, Op, SECOND, desired};
use crate::kernel::KEYS;

impl World<'_> {
    pub(super) fn agent_turn(&mut self) {
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
            let steps = self.random.below(60);
            self.sweep(steps, batch);
        }
    }

    /// The sweep goes on by so many steps, or to its end.
    pub(super) fn sweep(&mut self, steps: u64, batch: usize) {
        for host in 1..=HOSTS {
            if self.agent.is_closed(host as u32) {
                self.closed_ns[host] = self.now_ns;
            }
        }
        for _ in 0..steps {
            if self.agent.sweep(&mut self.kernel, self.now_ns, batch) {
                break;
            }
        }
    }

    pub(super) fn tick(&mut self) {
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
        let desired = desired(self.service, &self.wishes, self.size, self.tcp);
        self.agent.tick(desired, self.now_ns);
    }

    /// The next write that changes something; `false` where there is none.
    pub(super) fn agent_op(&mut self) -> bool {
        while let Some(op) = self.agent.ops.pop_front() {
            if !self.agent.matters(&op, &self.kernel) {
                continue;
            }
            let before = self.agent.unsettled();
            let held = self.kernel.backends;
            let lost = self.agent.write(&op, &mut self.kernel, self.now_ns);
            self.say(|| format!("agent {op:?}, lost {lost:?}"));
            if matches!(op, Op::Advance) {
                self.lost = [false; HOSTS + 1];
            }
            for backend in lost {
                self.lose(backend);
            }
            for (index, before) in (0_u32..).zip(held) {
                if ![0, self.kernel.host(index)].contains(&before.host) {
                    self.index_is_free(index);
                }
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

    pub(super) fn restart(&mut self) {
        self.say(|| "restart".into());
        self.agent = Agent::adopt(&self.kernel, self.window_ns, self.now_ns, self.mutant);
        self.next_tick_ns = self.now_ns + self.random.below(30 * SECOND);
    }

    /// The flows of a backend are lost with it, whatever the load balancer does.
    pub(super) fn lose(&mut self, backend: u32) {
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
}
