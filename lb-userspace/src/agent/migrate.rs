//! Slots on the move: what time alone changes in the tables, and what people are told of it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lb_common::layout::FlowCounters;

use super::Agent;
use super::sweeper::{self, Sweeper};
use crate::api::types::{FlowTableStatus, MigrationStatus};
use crate::datapath::apply::{Pressure, Progress};
use crate::datapath::clock::monotonic_ns;
use crate::model::{BackendId, ServiceKey};
use crate::observe::{Kind, Timestamp};

/// So many times its end was put off by refused entries until a migration counts as stalled.
const EXTENSIONS_TO_STALL: u32 = 3;

/// The slots of one service that are not as they are to stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Migration {
    /// What made the first of them move.
    pub cause: String,
    pub began_ns: u64,
    /// The most slots that were on the move at one time.
    pub slots: usize,
    pub progress: Progress,
    /// How often its end was put off by refused entries.
    pub extensions: u32,
    pub stalled: bool,
}

/// What is to be told of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    Begun,
    Stalled,
    Ended,
}

impl Migration {
    fn begin(cause: &str, progress: Progress, now_ns: u64) -> Self {
        Self {
            cause: cause.to_owned(),
            began_ns: now_ns,
            slots: progress.unsettled(),
            progress,
            extensions: 0,
            stalled: false,
        }
    }

    /// Takes in how far it has come.
    fn go_on(&mut self, progress: Progress, now_ns: u64) -> Option<News> {
        let (before, after) = (self.progress.until_ns, progress.until_ns);
        // Its time was over, and it is not: entries were refused meanwhile.
        let put_off = before.is_some_and(|before| now_ns >= before) && after > before;
        self.extensions += u32::from(put_off && progress.open > 0);
        self.slots = self.slots.max(progress.unsettled());
        self.progress = progress;
        if progress.unsettled() == 0 {
            return Some(News::Ended);
        }
        if self.extensions >= EXTENSIONS_TO_STALL && !self.stalled {
            self.stalled = true;
            return Some(News::Stalled);
        }
        None
    }

    /// How much of it is done, in per cent: a slot that is open counts by the time of its window that is over.
    #[must_use]
    pub fn percent(&self, now_ns: u64) -> f64 {
        let Progress {
            open,
            settled,
            waiting,
            until_ns,
            ..
        } = self.progress;
        let all = self.slots.max(open + settled + waiting).max(1) as f64;
        let stable = all - (open + settled + waiting) as f64;
        let passed = until_ns.map_or(0.0, |until_ns| {
            let whole = until_ns.saturating_sub(self.began_ns).max(1) as f64;
            (now_ns.saturating_sub(self.began_ns) as f64 / whole).min(1.0)
        });
        100.0 * (stable + settled as f64 + open as f64 * passed) / all
    }
}

/// Follows the migrations of all services. Gives back what is to be told, with those that ended.
pub(super) fn follow(
    migrations: &mut BTreeMap<ServiceKey, Migration>,
    progress: &BTreeMap<ServiceKey, Progress>,
    cause: &str,
    now_ns: u64,
) -> Vec<(ServiceKey, News, Migration)> {
    let mut news = Vec::new();
    for (key, progress) in progress {
        match migrations.get_mut(key) {
            None if progress.unsettled() > 0 => {
                let migration = Migration::begin(cause, *progress, now_ns);
                news.push((*key, News::Begun, migration.clone()));
                migrations.insert(*key, migration);
            }
            None => {}
            Some(migration) => {
                if let Some(what) = migration.go_on(*progress, now_ns) {
                    news.push((*key, what, migration.clone()));
                    if what == News::Ended {
                        migrations.remove(key);
                    }
                }
            }
        }
    }
    // Those of services that are gone ended with them.
    migrations.retain(|key, _| progress.contains_key(key));
    news
}

impl Agent {
    /// Starts sweeping the flow table, once the tables are by what is known now.
    pub(super) fn start_sweeping(&mut self) -> anyhow::Result<()> {
        let flows = self.dataplane.maps.flows.try_clone()?;
        let sweeper = Sweeper::spawn(flows, self.dataplane.view(&monotonic_ns))?;
        sweeper.due(Instant::now());
        self.sweeper = Some(sweeper);
        Ok(())
    }

    /// Every 200 ms.
    pub(super) fn renew_allowances(&mut self) {
        if self.dataplane.moving()
            && let Err(error) = self.dataplane.renew_allowances(monotonic_ns())
        {
            log::error!("renewing the allowances of the flow table: {error}");
        }
    }

    /// Every second: windows end, and slots that waited find room.
    pub(super) fn go_on_moving(&mut self) {
        if self.starting() {
            return;
        }
        if let Some(report) = self.sweeper.as_ref().and_then(Sweeper::report)
            && let Err(error) = self.dataplane.take_scan(report)
        {
            log::error!("reading the counters of the flow table: {error}");
        }
        if self.dataplane.moving() {
            self.reconcile_or_log();
        }
        if let Some(sweeper) = &self.sweeper {
            let pause = sweeper::pause(self.dataplane.wants_scan(), self.dataplane.last_scan());
            let ended_ns = self.dataplane.last_scan().ended_ns;
            let since = Duration::from_nanos(monotonic_ns().saturating_sub(ended_ns));
            sweeper.due(Instant::now() + pause.saturating_sub(since));
        }
    }

    /// After the maps were written: sweeps must know, and people.
    pub(super) fn follow_migrations(&mut self, cause: &str) {
        if let Some(sweeper) = &self.sweeper {
            sweeper.show(self.dataplane.view(&monotonic_ns));
        }
        let now_ns = monotonic_ns();
        let keys = self.dataplane.earlier().into_keys();
        let progress = keys.filter_map(|key| Some((key, self.dataplane.progress(&key)?)));
        let news = follow(&mut self.migrations, &progress.collect(), cause, now_ns);
        for (key, what, migration) in news {
            let slots = migration.slots as u64;
            let until = wall_clock(migration.progress.until_ns.unwrap_or(now_ns), now_ns);
            let kind = match what {
                News::Begun => Kind::MigrationBegun { slots, until },
                News::Stalled => Kind::MigrationStalled {
                    slots,
                    until,
                    extensions: migration.extensions,
                },
                News::Ended => Kind::MigrationEnded {
                    slots,
                    duration_ms: (now_ns - migration.began_ns) / 1_000_000,
                },
            };
            let name = self.config.services.iter().find(|service| service.key == key);
            let name = name.map_or_else(|| key.to_string(), |service| service.name.clone());
            log::log!(level(what), "service {name}: {kind} ({})", migration.cause);
            self.emit(kind.service(name).because(migration.cause));
        }
    }
}

impl Agent {
    pub(super) fn migration_status(&self) -> Vec<MigrationStatus> {
        let now_ns = monotonic_ns();
        let mut all = Vec::new();
        for service in &self.config.services {
            let Some(migration) = self.migrations.get(&service.key) else {
                continue;
            };
            let Progress {
                open,
                settled,
                waiting,
                until_ns,
                resizing,
            } = migration.progress;
            all.push(MigrationStatus {
                service: service.name.clone(),
                cause: migration.cause.clone(),
                since: wall_clock(migration.began_ns, now_ns).to_string(),
                slots: migration.slots,
                open,
                settled,
                waiting,
                progress_percent: migration.percent(now_ns),
                until: until_ns.map(|until_ns| wall_clock(until_ns, now_ns).to_string()),
                extensions: migration.extensions,
                stalled: migration.stalled,
                resizing,
            });
        }
        all
    }

    pub(super) fn flow_table_status(&self) -> Result<FlowTableStatus, crate::datapath::Error> {
        let Pressure { capacity, counters } = self.dataplane.pressure()?;
        let FlowCounters {
            hits,
            inserted_syn,
            inserted_data,
            inserted_udp,
            refused_allowance,
            refused_full,
            occupied,
            resets,
            // Of the cache of flows, which is another table.
            evicted: _,
            crowded: _,
        } = counters;
        let scan = self.dataplane.last_scan();
        let ago_ns = monotonic_ns().saturating_sub(scan.ended_ns);
        Ok(FlowTableStatus {
            capacity,
            entries: scan.states.total(),
            unconfirmed: scan.states.unconfirmed,
            established: scan.states.established,
            closing: scan.states.closing,
            contested: scan.states.contested,
            scanned_ms_ago: (scan.begun_ns != 0).then_some(ago_ns / 1_000_000),
            scan_ms: scan.took_ns() / 1_000_000,
            hits,
            inserted_syn,
            inserted_data,
            inserted_udp,
            refused_allowance,
            refused_full,
            refused_occupied: occupied,
            resets,
        })
    }

    /// Until when flows that nobody has seen may live on a backend that does not own their slots any longer.
    pub(super) fn unseen_flows_until(&self, id: &BackendId) -> Option<String> {
        let leaving = self.dataplane.leaving(id)?;
        Some(wall_clock(leaving.until_ns, monotonic_ns()).to_string())
    }
}

fn level(news: News) -> log::Level {
    match news {
        News::Begun | News::Ended => log::Level::Info,
        News::Stalled => log::Level::Error,
    }
}

/// A moment of `CLOCK_MONOTONIC` by the clock on the wall.
pub(super) fn wall_clock(at_ns: u64, now_ns: u64) -> Timestamp {
    let now = std::time::SystemTime::now();
    let at = match at_ns.checked_sub(now_ns) {
        Some(ahead_ns) => now + Duration::from_nanos(ahead_ns),
        None => now - Duration::from_nanos(now_ns - at_ns),
    };
    Timestamp::of(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;

    const KEY: ServiceKey = ServiceKey {
        address: std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
        port: 80,
        protocol: Protocol::Tcp,
    };
    const S: u64 = 1_000_000_000;

    fn progress(open: usize, settled: usize, until_s: Option<u64>) -> BTreeMap<ServiceKey, Progress> {
        let progress = Progress {
            open,
            settled,
            until_ns: until_s.map(|s| s * S),
            ..Progress::default()
        };
        BTreeMap::from([(KEY, progress)])
    }

    fn told(news: &[(ServiceKey, News, Migration)]) -> Vec<News> {
        news.iter().map(|(_, what, _)| *what).collect()
    }

    #[test]
    fn a_migration_is_told_of_once_when_it_begins_and_once_when_it_ends() {
        let mut migrations = BTreeMap::new();
        let mut step = |progress, now_s: u64| told(&follow(&mut migrations, &progress, "drained", now_s * S));
        assert_eq!(step(progress(0, 0, None), 1), []);
        assert_eq!(step(progress(10, 0, Some(900)), 2), [News::Begun]);
        assert_eq!(step(progress(12, 0, Some(950)), 60), []);
        assert_eq!(step(progress(0, 12, None), 950), []);
        assert_eq!(step(progress(0, 0, None), 960), [News::Ended]);
        assert_eq!(step(progress(0, 0, None), 961), []);
    }

    #[test]
    fn one_that_is_put_off_three_times_is_stalled() {
        let mut migrations = BTreeMap::new();
        let mut step = |progress, now_s: u64| told(&follow(&mut migrations, &progress, "added", now_s * S));
        step(progress(10, 0, Some(100)), 0);
        // More slots move: that is no refusal.
        assert_eq!(step(progress(20, 0, Some(150)), 50), []);
        assert_eq!(step(progress(20, 0, Some(250)), 150), []);
        assert_eq!(step(progress(20, 0, Some(350)), 250), []);
        assert_eq!(step(progress(20, 0, Some(450)), 350), [News::Stalled]);
        assert_eq!(step(progress(20, 0, Some(550)), 450), []);
    }

    #[test]
    fn progress_is_the_time_of_open_windows_and_the_slots_behind_them() {
        let mut migrations = BTreeMap::new();
        follow(&mut migrations, &progress(10, 0, Some(100)), "added", 0);
        assert_eq!(migrations[&KEY].percent(50 * S), 50.0);
        follow(&mut migrations, &progress(0, 5, None), "added", 100 * S);
        assert_eq!(migrations[&KEY].percent(100 * S), 100.0);
    }
}
