//! A backend dies under load: its process is killed (connections are refused), or its cable is pulled (silence).

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::Serialize;

use super::narrate::Narrator;
use super::scene::{Scene, wait_begun};
use crate::lab::load::Attempts;

/// How backends are checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    name: &'static str,
    interval: Duration,
    timeout: Duration,
    fast_interval: Duration,
    fast_timeout: Duration,
}

const FALL: u32 = 3;
const SLACK: Duration = Duration::from_millis(50);

/// What a configuration has that says nothing.
pub(super) const DEFAULTS: Settings = Settings {
    name: "defaults",
    interval: Duration::from_secs(2),
    timeout: Duration::from_secs(1),
    fast_interval: Duration::from_millis(200),
    fast_timeout: Duration::from_millis(300),
};

pub(super) const FAST: Settings = Settings {
    name: "fast",
    interval: Duration::from_millis(200),
    timeout: Duration::from_millis(100),
    fast_interval: Duration::from_millis(50),
    fast_timeout: Duration::from_millis(100),
};

impl Settings {
    /// From the event to the last connection that may fail: the event can come right after a probe, so one whole
    /// interval comes on top of what the verdict takes from its first failing probe on.
    fn allowed(&self, event: Event) -> Duration {
        let Self {
            name: _,
            interval,
            timeout,
            fast_interval,
            fast_timeout,
        } = *self;
        let verdict = match event {
            Event::Killed => (FALL - 1) * fast_interval,
            Event::Cut => timeout + (FALL - 1) * fast_interval.max(fast_timeout),
        };
        verdict + SLACK + interval
    }

    fn lines(&self) -> String {
        let Self {
            name: _,
            interval,
            timeout,
            fast_interval,
            fast_timeout,
        } = self;
        let ms = Duration::as_millis;
        format!(
            "interval = \"{}ms\"\ntimeout = \"{}ms\"\nfast_interval = \"{}ms\"\nfast_timeout = \"{}ms\"\n",
            ms(interval),
            ms(timeout),
            ms(fast_interval),
            ms(fast_timeout)
        )
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Event {
    Killed,
    Cut,
}

impl Event {
    pub fn text(self) -> &'static str {
        match self {
            Self::Killed => "process killed (refused)",
            Self::Cut => "link down (silent)",
        }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Failover {
    pub settings: String,
    pub event: Event,
    pub connections_per_s: f64,
    pub attempted: usize,
    pub failed: usize,
    /// From the event to the start of the last connection that failed.
    pub last_failure_ms: Option<u64>,
    pub allowed_ms: u64,
    pub kept: bool,
}

/// The connections are only so many a second when the machine keeps up.
const MIN_CONNECTIONS_PER_S: f64 = 500.0;
/// Connections before the event.
const LEAD: u64 = 500;
/// How long connections go on after what is allowed, to see any that fail later.
const TAIL: Duration = Duration::from_secs(1);

pub(super) fn run(
    scene: &mut Scene,
    settings: Settings,
    say: &mut Narrator,
    results: &mut Vec<Failover>,
) -> anyhow::Result<()> {
    say.step(&format!(
        "checks with {}: interval {} ms, fast_interval {} ms, timeout {} ms, fast_timeout {} ms",
        settings.name,
        settings.interval.as_millis(),
        settings.fast_interval.as_millis(),
        settings.timeout.as_millis(),
        settings.fast_timeout.as_millis()
    ));
    scene.config.check = settings.lines();
    scene.agent.configure(&scene.config)?;
    scene.agent.order(&["reload"])?;
    scene.agent.wait_serving(|_| true)?;
    for event in [Event::Killed, Event::Cut] {
        results.push(one(scene, settings, event, say)?);
    }
    Ok(())
}

/// The backend that it happens to.
const VICTIM: usize = 0;

fn one(scene: &mut Scene, settings: Settings, event: Event, say: &mut Narrator) -> anyhow::Result<Failover> {
    let name = scene.lab.backends[VICTIM].name.clone();
    say.step(&format!("under load, {name}: {}", event.text()));
    let load = scene.load()?;
    wait_begun(&load, LEAD)?;
    let at = Instant::now();
    match event {
        Event::Killed => scene.kill_server(VICTIM)?,
        Event::Cut => scene.lab.cut(&name)?,
    }
    sleep(settings.allowed(event) + TAIL);
    let attempts = load.finish()?;
    let victim = &scene.lab.backends[VICTIM];
    let (v4, v6) = (victim.v4, victim.v6);
    scene
        .agent
        .wait_serving(|address| address != v4 && address != v6)
        .context("the verdict")?;
    match event {
        Event::Killed => scene.revive_server(VICTIM)?,
        Event::Cut => {
            scene.lab.mend(&name)?;
            scene.agent.wait_serving(|_| true)?;
        }
    }
    let result = judge(&attempts, at, settings, event);
    say.done(&format!(
        "{} attempted ({:.0} a second), {} failed, the last {} after the event; allowed: {} ms",
        result.attempted,
        result.connections_per_s,
        result.failed,
        result
            .last_failure_ms
            .map_or("none".into(), |ms| format!("{ms} ms")),
        result.allowed_ms
    ));
    for (error, count) in attempts.errors() {
        say.done(&format!("  {count} x {error}"));
    }
    Ok(result)
}

fn judge(attempts: &Attempts, at: Instant, settings: Settings, event: Event) -> Failover {
    let allowed = settings.allowed(event);
    let last = attempts.last_failure_after(at);
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let rate = attempts.rate_per_s();
    Failover {
        settings: settings.name.into(),
        event,
        connections_per_s: rate,
        attempted: attempts.attempted(),
        failed: attempts.failed(),
        last_failure_ms: last.map(ms),
        allowed_ms: ms(allowed),
        // Connections fail before the verdict, else the event was none.
        kept: last.is_some_and(|last| last <= allowed) && rate >= MIN_CONNECTIONS_PER_S,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::load::Attempt;

    #[test]
    fn what_is_allowed_follows_from_the_check_timings() {
        assert_eq!(
            DEFAULTS.allowed(Event::Killed),
            Duration::from_millis(2 * 200 + 50 + 2000)
        );
        assert_eq!(
            DEFAULTS.allowed(Event::Cut),
            Duration::from_millis(1000 + 2 * 300 + 50 + 2000)
        );
        assert_eq!(
            FAST.allowed(Event::Killed),
            Duration::from_millis(2 * 50 + 50 + 200)
        );
        assert_eq!(
            FAST.allowed(Event::Cut),
            Duration::from_millis(100 + 2 * 100 + 50 + 200)
        );
    }

    #[test]
    fn a_late_failure_a_slow_load_and_no_failure_at_all_break_the_promise() {
        let at = Instant::now();
        let attempts = |every_ms: u64, last_failure_ms: Option<u64>| {
            let each = (0..1000).map(|n| Attempt {
                target: "192.0.2.10:80".parse().unwrap(),
                started: at + Duration::from_millis(n * every_ms),
                ended: at + Duration::from_millis(n * every_ms),
                outcome: if Some(n * every_ms) == last_failure_ms {
                    Err("x".into())
                } else {
                    Ok("b1".into())
                },
            });
            Attempts(each.collect())
        };
        let kept = |attempts: &Attempts| judge(attempts, at, FAST, Event::Killed).kept;
        assert!(kept(&attempts(1, Some(350))));
        assert!(!kept(&attempts(1, Some(351))));
        assert!(!kept(&attempts(1, None)));
        assert!(!kept(&attempts(3, Some(300))));
    }
}
