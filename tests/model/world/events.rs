//! What else happens.

use super::{SIZES, World};
use crate::agent::Admin;
use crate::kernel::BACKENDS;

impl World<'_> {
    pub(super) fn event(&mut self) {
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

    pub(super) fn lose_alive(&mut self, b: usize) {
        let before = self.lost[b];
        self.lose(b as u32);
        self.lost[b] = before;
        for stale in &mut self.stale {
            stale[b] = false;
        }
    }
}
