//! A backend that comes UP takes its weight over a time, so that its caches fill before everybody comes.
//!
//! Each step is another table and moves slots, so there are few of them: [`STEPS`], each of the same length. The
//! first is taken at once.

use std::time::{Duration, Instant};

/// In how many steps a weight is taken.
pub const STEPS: u32 = 10;

/// How many [`STEPS`] of its weight a backend has, that came UP at `up_since`: from 1 to all of them.
#[must_use]
pub fn steps(up_since: Option<Instant>, slow_start: Option<Duration>, now: Instant) -> u32 {
    let (Some(up_since), Some(slow_start)) = (up_since, slow_start) else {
        return STEPS;
    };
    let up_for = now.saturating_duration_since(up_since);
    if up_for >= slow_start {
        return STEPS;
    }
    let done = up_for.as_nanos() * u128::from(STEPS) / slow_start.as_nanos().max(1);
    u32::try_from(done).unwrap_or(STEPS).saturating_add(1).min(STEPS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RAMP: Duration = Duration::from_secs(30);

    #[test]
    fn the_weight_comes_in_steps() {
        let up = Instant::now();
        let at = |ms| steps(Some(up), Some(RAMP), up + Duration::from_millis(ms));
        assert_eq!(
            [at(0), at(2999), at(3000), at(26_999), at(27_000)],
            [1, 1, 2, 9, 10]
        );
        assert_eq!([at(30_000), at(3_000_000)], [STEPS, STEPS]);
        assert_eq!(steps(None, Some(RAMP), up), STEPS, "not seen to come UP");
        assert_eq!(steps(Some(up), None, up), STEPS, "not wanted");
        assert_eq!(steps(Some(up + RAMP), Some(RAMP), up), 1, "a clock read late");
    }

    proptest! {
        #[test]
        fn it_never_goes_back(ramp_ms in 1..100_000_u64, times in proptest::collection::vec(0..200_000_u64, 2)) {
            let up = Instant::now();
            let at = |ms| steps(Some(up), Some(Duration::from_millis(ramp_ms)), up + Duration::from_millis(ms));
            let (earlier, later) = (times[0].min(times[1]), times[0].max(times[1]));
            prop_assert!(at(earlier) <= at(later));
            prop_assert!((1..=STEPS).contains(&at(earlier)));
            prop_assert!(later < ramp_ms || at(later) == STEPS);
        }
    }
}
