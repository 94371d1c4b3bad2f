//! How often a suspicion may bring a probe forward.
//!
//! Anybody can send SYNs that nothing follows. So a suspicion does not add probes without end: the first is followed
//! up at once, each further one after twice the pause, up to the interval of the checks. At worst, under a flood that
//! never ends, a target is probed twice as often as it is anyway; what was quiet for a few intervals is fresh again.

use std::time::{Duration, Instant};

use super::machine::Policy;

/// A target was quiet when nothing was suspected for so many intervals.
const QUIET_INTERVALS: u32 = 4;

/// When the next suspicion of one target is followed up.
#[derive(Clone, Copy, Debug, Default)]
pub struct Suspicion {
    /// When the last one was, and the pause after it.
    last: Option<(Instant, Duration)>,
}

impl Suspicion {
    /// Whether a suspicion that comes at `now` is to be followed up.
    pub fn follow_up(&mut self, now: Instant, policy: &Policy) -> bool {
        let quiet = policy.interval * QUIET_INTERVALS;
        let shortest = policy.fast_interval.min(policy.interval);
        let pause = match self.last {
            Some((last, pause)) => {
                let since = now.saturating_duration_since(last);
                if since < pause {
                    return false;
                }
                if since < quiet {
                    (pause * 2).min(policy.interval)
                } else {
                    shortest
                }
            }
            None => shortest,
        };
        self.last = Some((now, pause));
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy(interval_ms: u64, fast_ms: u64) -> Policy {
        Policy {
            interval: Duration::from_millis(interval_ms),
            timeout: Duration::from_secs(1),
            fast_interval: Duration::from_millis(fast_ms),
            fast_timeout: Duration::from_millis(300),
            down_interval: None,
            rise: 2,
            fall: 3,
            jitter_percent: 0,
        }
    }

    fn followed(policy: &Policy, every_ms: u64, for_ms: u64) -> Vec<u64> {
        let begun = Instant::now();
        let mut suspicion = Suspicion::default();
        (0..for_ms)
            .step_by(every_ms as usize)
            .filter(|at| suspicion.follow_up(begun + Duration::from_millis(*at), policy))
            .collect()
    }

    #[test]
    fn pauses_double_up_to_the_interval() {
        let times = followed(&policy(2000, 200), 50, 10_000);
        assert_eq!(times, [0, 200, 600, 1400, 3000, 5000, 7000, 9000]);
    }

    #[test]
    fn what_was_quiet_is_fresh_again() {
        let policy = policy(2000, 200);
        let begun = Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        let mut suspicion = Suspicion::default();
        let said: Vec<bool> = [0, 100, 300, 9000, 9100, 9200]
            .map(|ms| suspicion.follow_up(at(ms), &policy))
            .into();
        assert_eq!(said, [true, false, true, true, false, true]);
    }

    proptest! {
        #[test]
        fn no_flood_brings_more_than_one_probe_an_interval_in_the_long_run(
            interval_ms in 1..20_000_u64,
            fast_ms in 1..5000_u64,
            every_ms in 1..500_u64,
        ) {
            let long = interval_ms * 20;
            let times = followed(&policy(interval_ms, fast_ms), every_ms, long);
            // The pauses that are shorter: they double.
            let short = (interval_ms / fast_ms.min(interval_ms)).ilog2() as usize + 2;
            prop_assert!(times.len() <= 20 + 1 + short, "{} in {long} ms", times.len());
        }
    }
}
