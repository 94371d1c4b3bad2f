//! Flap damping: a backend that goes DOWN again and again is held there for a while, and longer each time.
//!
//! ```text
//!   changes to DOWN within the window:  1, 2, ... limit   ▶ nothing
//!                                       limit + 1         ▶ held for `hold`
//!   and again, while held or soon after                   ▶ held for twice as long, at most [`LONGEST_HOLD`]
//! ```
//!
//! Off unless a limit is configured.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// The longest time a backend is held.
pub const LONGEST_HOLD: Duration = Duration::from_secs(15 * 60);

/// When a backend flaps, and what is done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlapRules {
    /// So many changes to DOWN within the window are tolerated; 0: any number.
    pub limit: u32,
    pub window: Duration,
    /// For how long it is held the first time.
    pub hold: Duration,
}

impl Default for FlapRules {
    fn default() -> Self {
        Self {
            limit: 0,
            window: Duration::from_secs(60),
            hold: Duration::from_secs(10),
        }
    }
}

/// What one backend did lately.
#[derive(Clone, Debug, Default)]
pub struct Flaps {
    downs: VecDeque<Instant>,
    hold: Option<Hold>,
}

/// [`Flaps`] as they are written down.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptFlaps {
    /// How long ago it went DOWN.
    pub downs: Vec<Duration>,
    pub hold: Option<KeptHold>,
}

/// A hold as it is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptHold {
    /// How long it still lasts; 0: it is over.
    pub left: Duration,
    pub over_for: Duration,
    /// As a whole.
    pub lasts: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Hold {
    until: Instant,
    lasts: Duration,
    /// It was told to be over.
    released: bool,
}

impl Flaps {
    /// The backend went DOWN at `now`. `Some`: it is held from here on, so many changes and until when.
    pub fn went_down(&mut self, rules: FlapRules, now: Instant) -> Option<(u32, Instant)> {
        if rules.limit == 0 {
            *self = Self::default();
            return None;
        }
        self.downs.push_back(now);
        let window = rules.window;
        self.downs
            .retain(|down| now.saturating_duration_since(*down) <= window);
        let flaps = u32::try_from(self.downs.len()).unwrap_or(u32::MAX);
        if flaps <= rules.limit {
            return None;
        }
        // It is calm again when it was for as long as it was held, and for a window at least.
        let before = self
            .hold
            .filter(|hold| now.saturating_duration_since(hold.until) <= hold.lasts.max(window));
        let lasts = before.map_or(rules.hold, |hold| hold.lasts * 2).min(LONGEST_HOLD);
        let until = now + lasts;
        self.hold = Some(Hold {
            until,
            lasts,
            released: false,
        });
        self.downs.clear();
        Some((flaps, until))
    }

    /// What is to be kept at `now`, as ages and times to come.
    #[must_use]
    pub fn kept(&self, now: Instant) -> KeptFlaps {
        KeptFlaps {
            downs: self
                .downs
                .iter()
                .map(|down| now.saturating_duration_since(*down))
                .collect(),
            hold: self.hold.map(|hold| KeptHold {
                left: hold.until.saturating_duration_since(now),
                over_for: now.saturating_duration_since(hold.until),
                lasts: hold.lasts,
            }),
        }
    }

    /// What was kept, `age` before `now`. What lies further back than the clock can say is forgotten.
    #[must_use]
    pub fn restored(kept: &KeptFlaps, age: Duration, now: Instant) -> Self {
        let ago = |past: Duration| now.checked_sub(past + age);
        let hold = kept.hold.and_then(|hold| {
            let until = match hold.left.checked_sub(age) {
                Some(left) => now + left,
                None => ago(hold.over_for)?.checked_add(hold.left)?,
            };
            Some(Hold {
                until,
                lasts: hold.lasts.min(LONGEST_HOLD),
                released: hold.left.is_zero(),
            })
        });
        Self {
            downs: kept.downs.iter().filter_map(|down| ago(*down)).collect(),
            hold,
        }
    }

    /// Until when it is held.
    #[must_use]
    pub fn held_until(&self, now: Instant) -> Option<Instant> {
        self.hold.map(|hold| hold.until).filter(|until| now < *until)
    }

    /// Whether a hold is over since it was last asked.
    pub fn release(&mut self, now: Instant) -> bool {
        match &mut self.hold {
            Some(hold) if !hold.released && now >= hold.until => {
                hold.released = true;
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn what_is_kept_goes_on_after_a_restart() {
        // Far enough from the beginning of the clock.
        let begin = Instant::now() + 1000 * SECOND;
        let mut flaps = Flaps::default();
        for second in [0, 1, 2] {
            flaps.went_down(RULES, begin + second * SECOND);
        }
        let kept = flaps.kept(begin + 4 * SECOND);
        let again = Flaps::restored(&kept, 3 * SECOND, begin + 7 * SECOND);
        assert_eq!(again.held_until(begin + 7 * SECOND), Some(begin + 12 * SECOND));
        assert_eq!(again.kept(begin + 7 * SECOND), flaps.kept(begin + 7 * SECOND));
        // It ended meanwhile, and that is still to be told.
        let mut late = Flaps::restored(&kept, 9 * SECOND, begin + 13 * SECOND);
        assert_eq!(late.held_until(begin + 13 * SECOND), None);
        assert!(late.release(begin + 13 * SECOND));
        // Its next hold is twice as long.
        for second in [20, 21] {
            assert_eq!(late.went_down(RULES, begin + second * SECOND), None);
        }
        let held = late.went_down(RULES, begin + 22 * SECOND);
        assert_eq!(held, Some((3, begin + 42 * SECOND)));
    }
    const RULES: FlapRules = FlapRules {
        limit: 2,
        window: Duration::from_secs(60),
        hold: Duration::from_secs(10),
    };

    #[test]
    fn the_third_within_the_window_is_held() {
        let start = Instant::now();
        let mut flaps = Flaps::default();
        assert_eq!(flaps.went_down(RULES, start), None);
        assert_eq!(flaps.went_down(RULES, start + SECOND), None);
        let held = flaps.went_down(RULES, start + 2 * SECOND);
        assert_eq!(held, Some((3, start + 12 * SECOND)));
        assert_eq!(flaps.held_until(start + 11 * SECOND), Some(start + 12 * SECOND));
        assert!(!flaps.release(start + 11 * SECOND));
        assert_eq!(flaps.held_until(start + 12 * SECOND), None);
        assert!(flaps.release(start + 12 * SECOND));
        assert!(!flaps.release(start + 13 * SECOND), "told once");
    }

    #[test]
    fn those_outside_of_the_window_do_not_count() {
        let start = Instant::now();
        let mut flaps = Flaps::default();
        for n in 0..20 {
            assert_eq!(flaps.went_down(RULES, start + n * 31 * SECOND), None, "{n}");
        }
    }

    #[test]
    fn holds_grow_until_it_is_calm() {
        let mut now = Instant::now();
        let mut flaps = Flaps::default();
        let mut held = |pause: Duration| {
            now += pause;
            let holds: Vec<_> = (0..3).filter_map(|_| flaps.went_down(RULES, now)).collect();
            let [(_, until)] = holds[..] else {
                panic!("{holds:?}")
            };
            let lasts = until - now;
            now = until;
            lasts.as_secs()
        };
        let times = [0, 1, 1, 1, 1, 1, 1, 1, 1].map(|pause| held(pause * SECOND));
        assert_eq!(times, [10, 20, 40, 80, 160, 320, 640, 900, 900]);
        assert_eq!(held(901 * SECOND), 10, "calm for as long as it was held");
    }

    #[test]
    fn without_a_limit_nothing_is_held() {
        let now = Instant::now();
        let mut flaps = Flaps::default();
        for _ in 0..1000 {
            assert_eq!(flaps.went_down(FlapRules::default(), now), None);
        }
    }

    proptest! {
        /// However it flaps, tables change at most so often: `limit` + 1 times between two holds.
        #[test]
        fn changes_are_bounded(gaps_ms in proptest::collection::vec(0..5000_u64, 1..200)) {
            let start = Instant::now();
            let mut now = start;
            let mut flaps = Flaps::default();
            let mut seen = Vec::new();
            for gap in gaps_ms {
                now += Duration::from_millis(gap);
                // What is held does not come UP, so it does not go DOWN for anybody.
                if flaps.held_until(now).is_none() {
                    seen.push(now);
                    flaps.went_down(RULES, now);
                }
            }
            for window in seen.windows(RULES.limit as usize + 2) {
                prop_assert!(window[window.len() - 1] - window[0] >= RULES.hold);
            }
        }
    }
}
