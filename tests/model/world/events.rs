//! What else happens.

use super::{SIZES, World};
use crate::agent::{Admin, HOSTS, SECOND};
use crate::kernel::BACKENDS;

/// Backends at once: there are indices for them, and for two that are gone.
const MOST: usize = BACKENDS - 2;

impl World<'_> {
    pub(super) fn event(&mut self) {
        if self.random.chance(500) {
            return;
        }
        if !self.service && self.random.chance(500) {
            self.say(|| "the service is to be there again".into());
            self.service = true;
            return;
        }
        let b = 1 + self.random.index(HOSTS);
        let kind = self.random.below(23);
        self.say(|| format!("event {kind} of {b}"));
        let there = self.wishes.iter().filter(|wish| wish.exists).count();
        let wish = &mut self.wishes[b];
        match kind {
            0 | 1 => {
                wish.exists |= there < MOST;
                wish.up = true;
                self.alive[b] = true;
                self.deaf[b] = false;
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
                self.deaf[b] = false;
            }
            // A blip of our own uplink: all of them at once.
            15 => {
                let keep = self.random.chance(500);
                for wish in &mut self.wishes {
                    wish.up = false;
                    wish.keep = keep;
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
            // Its accept queue is full, which checks take for death, or do not notice.
            18 => {
                self.deaf[b] = true;
                wish.up = self.random.chance(500);
                wish.keep = true;
            }
            // One takes the place of another.
            19 => {
                wish.exists = false;
                let other = &mut self.wishes[1 + b % HOSTS];
                other.exists |= there <= MOST;
                other.up = true;
                self.alive[1 + b % HOSTS] = true;
            }
            20 if self.random.chance(300) => self.service = false,
            21 if self.random.chance(200) => self.stand_still(),
            22 => self.restart(),
            _ => {}
        }
    }

    /// The machine stands still, and the clock goes on: no packet is on its way in the program meanwhile.
    fn stand_still(&mut self) {
        self.pass_time(SECOND);
        self.now_ns += self.random.below(2 * self.window_ns);
    }

    pub(super) fn lose_alive(&mut self, b: usize) {
        let before = self.lost[b];
        self.lose(b as u32);
        self.lost[b] = before;
        for stale in &mut self.stale {
            stale[b] = false;
        }
    }
}
