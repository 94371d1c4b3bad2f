//! What is kept in `state_dir` and what comes back from it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use super::{Agent, Observed};
use crate::api::command::{Refusal, Reply};
use crate::api::types::Done;
use crate::config::{CheckKind, Config};
use crate::control::BackendStatus;
use crate::control::flap::Flaps;
use crate::datapath::apply::Remembered;
use crate::health::Steering;
use crate::model::{BackendId, OperState};
use crate::observe::Timestamp;
use crate::state::{Checkpoint, KeptBackend};

/// How long an answer to an order waits for the disk.
const DISK_PATIENCE: Duration = Duration::from_secs(2);

/// What is known before the first check.
#[derive(Debug, Default)]
pub(super) struct Restored {
    pub statuses: BTreeMap<BackendId, BackendStatus>,
    pub observed: BTreeMap<BackendId, Observed>,
    pub flaps: BTreeMap<BackendId, Flaps>,
    /// What agents of backends said.
    pub said: BTreeMap<BackendId, Steering>,
}

/// Counts of an earlier run go on where it ended no longer ago than this; else they begin anew.
const COUNTS_LAST: Duration = Duration::from_secs(30);

/// States as the last agent left them: the pins say, else the checkpoint. Backends without a check are UP.
///
/// A verdict from the checkpoint is hearsay, from before a reboot: it holds until the first result, which decides.
pub(super) fn restore(
    config: &Config,
    pinned: &BTreeMap<BackendId, Remembered>,
    kept: Option<&Checkpoint>,
) -> Restored {
    let now = Instant::now();
    let age = kept.map_or(Duration::ZERO, |checkpoint| {
        let written = checkpoint.written.system();
        SystemTime::now().duration_since(written).unwrap_or_default()
    });
    let kept: BTreeMap<BackendId, &KeptBackend> = kept
        .into_iter()
        .flat_map(|checkpoint| checkpoint.backends.iter().map(|backend| (backend.id(), backend)))
        .collect();
    let mut restored = Restored::default();
    for service in &config.services {
        for backend in &service.backends {
            let id = backend.id(service.key);
            let kept = kept.get(&id).copied();
            let mut status = match (pinned.get(&id), kept) {
                (Some(pinned), _) => of_pins(pinned),
                (None, Some(kept)) => of_checkpoint(kept),
                (None, None) => BackendStatus::default(),
            };
            if backend.check.kind == CheckKind::None {
                status.state = OperState::Up;
                status.ever_up = true;
            }
            if let Some(flaps) = kept.and_then(|kept| kept.flaps.as_ref()) {
                restored.flaps.insert(id, Flaps::restored(flaps, age, now));
            }
            if let Some(said) = kept.and_then(|kept| kept.agent.clone()) {
                restored.said.insert(id, said);
            }
            if let Some(kept) = kept.filter(|kept| kept.state == status.state) {
                let changed = kept.changed.map(Timestamp::system);
                if status.state == OperState::Down {
                    let since = changed.and_then(|changed| SystemTime::now().duration_since(changed).ok());
                    status.down_since = since.and_then(|since| Instant::now().checked_sub(since));
                }
                let observed = Observed {
                    check: kept.check.clone(),
                    changed,
                    hearsay: !pinned.contains_key(&id),
                    counts: if age <= COUNTS_LAST {
                        (kept.passes, kept.failures)
                    } else {
                        (0, 0)
                    },
                    ..Observed::default()
                };
                restored.observed.insert(id, observed);
            }
            restored.statuses.insert(id, status);
        }
    }
    restored
}

fn of_pins(pinned: &Remembered) -> BackendStatus {
    let Remembered {
        state,
        admin,
        runtime_weight,
        ever_up,
    } = *pinned;
    BackendStatus {
        state,
        admin,
        runtime_weight,
        ever_up,
        ..BackendStatus::UNSEEN
    }
}

fn of_checkpoint(kept: &KeptBackend) -> BackendStatus {
    BackendStatus {
        state: kept.state,
        admin: kept.admin,
        runtime_weight: kept.runtime_weight,
        ever_up: kept.ever_up,
        ..BackendStatus::UNSEEN
    }
}

impl Agent {
    /// Everything that is kept.
    pub(super) fn checkpoint(&self) -> Checkpoint {
        let now = Instant::now();
        let services = self.config.services.iter();
        let ids = services.flat_map(|s| s.backends.iter().map(|b| b.id(s.key)));
        let backends = ids.map(|id| {
            let BackendStatus {
                state,
                admin,
                runtime_weight,
                ever_up,
                ..
            } = self.statuses.get(&id).copied().unwrap_or_default();
            let observed = self.observed.get(&id).cloned().unwrap_or_default();
            KeptBackend {
                service: id.service,
                address: id.address,
                port: id.port,
                state,
                admin,
                runtime_weight,
                ever_up,
                changed: observed.changed.map(Timestamp::of),
                check: observed.check,
                passes: observed.counts.0,
                failures: observed.counts.1,
                flaps: self.flaps.get(&id).map(|flaps| flaps.kept(now)),
                agent: self.agents.said(&self.sharing.probed(&id)).cloned(),
            }
        });
        Checkpoint {
            seq: 0,
            written: Timestamp::of(SystemTime::now()),
            backends: backends.collect(),
        }
    }

    /// Writes what has to be written by now.
    pub(super) fn keep(&mut self, now: Instant) {
        // Before the first round is over less is known than what was kept.
        if !self.starting() && self.keeper.due(now) {
            let checkpoint = self.checkpoint();
            self.keeper.write(checkpoint, now);
        }
    }

    /// Answers an order once what it changed outlives a reboot, or else with a warning.
    pub(super) fn answer_when_kept(&mut self, reply: Reply<Done>, result: Result<Done, Refusal>) {
        let mut done = match result {
            Ok(done) if done.changed => done,
            result => return drop(reply.send(result)),
        };
        let kept = self.keeper.mark_order();
        self.keep(Instant::now());
        tokio::spawn(async move {
            let why = match tokio::time::timeout(DISK_PATIENCE, kept).await {
                Ok(Ok(Ok(()))) => None,
                Ok(Ok(Err(why))) => Some(why),
                Ok(Err(_)) => Some("the agent is stopping".to_owned()),
                Err(_) => Some(format!(
                    "the disk takes longer than {} s",
                    DISK_PATIENCE.as_secs()
                )),
            };
            if let Some(why) = why {
                done.warnings
                    .push(format!("in force, but a reboot may undo it: {why}"));
            }
            // Who went away does not need the answer.
            let _ = reply.send(Ok(done));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::CheckStatus;
    use crate::control::flap::FlapRules;
    use crate::model::{AdminState, CheckCode};

    fn config() -> Config {
        let text = r#"
            schema = 1
            [agent]
            interfaces = ["eth0"]
            [[service]]
            name = "web"
            address = "192.0.2.10"
            port = 80
            protocol = "tcp"
            forward = "dsr-l2"
            [[service.backend]]
            address = "10.0.1.11"
            [[service.backend]]
            address = "10.0.1.12"
            [[service.backend]]
            address = "10.0.1.13"
            [service.backend.check]
            type = "none"
        "#;
        Config::parse(text).unwrap()
    }

    fn ids(config: &Config) -> Vec<BackendId> {
        let service = &config.services[0];
        service.backends.iter().map(|b| b.id(service.key)).collect()
    }

    fn kept(id: BackendId, state: OperState, admin: AdminState) -> KeptBackend {
        KeptBackend {
            service: id.service,
            address: id.address,
            port: id.port,
            state,
            admin,
            runtime_weight: Some(9),
            ever_up: true,
            changed: Some(Timestamp(1000)),
            check: CheckStatus {
                code: CheckCode::L4ok,
                ..CheckStatus::default()
            },
            passes: 0,
            failures: 2,
            flaps: None,
            agent: None,
        }
    }

    #[test]
    fn after_a_reboot_everything_comes_from_the_checkpoint() {
        let config = config();
        let ids = ids(&config);
        let checkpoint = Checkpoint {
            backends: vec![
                kept(ids[0], OperState::Down, AdminState::Drain),
                kept(ids[2], OperState::Down, AdminState::Maint),
            ],
            ..Checkpoint::default()
        };
        let restored = restore(&config, &BTreeMap::new(), Some(&checkpoint));
        let first = restored.statuses[&ids[0]];
        assert_eq!((first.state, first.admin), (OperState::Down, AdminState::Drain));
        assert_eq!((first.runtime_weight, first.ever_up), (Some(9), true));
        let observed = &restored.observed[&ids[0]];
        assert!(observed.hearsay && observed.changed.is_some());
        assert_eq!(observed.check.code, CheckCode::L4ok);
        assert_eq!(restored.statuses[&ids[1]], BackendStatus::default());
        // Not checked any longer: what checks once said does not count.
        let unchecked = restored.statuses[&ids[2]];
        assert_eq!(
            (unchecked.state, unchecked.admin),
            (OperState::Up, AdminState::Maint)
        );
        assert!(!restored.observed.contains_key(&ids[2]));
    }

    #[test]
    fn counts_flaps_and_what_agents_said_go_on_for_as_long_as_they_mean_something() {
        let config = config();
        let ids = ids(&config);
        let mut backend = kept(ids[0], OperState::Up, AdminState::Ready);
        let said = Steering {
            weight_percent: Some(50),
            ..Steering::default()
        };
        let mut flaps = Flaps::default();
        let rules = FlapRules {
            limit: 1,
            ..FlapRules::default()
        };
        let now = Instant::now();
        for _ in 0..2 {
            flaps.went_down(rules, now);
        }
        (backend.agent, backend.flaps) = (Some(said.clone()), Some(flaps.kept(now)));
        let of = |ago: Duration| {
            let checkpoint = Checkpoint {
                written: Timestamp::of(SystemTime::now() - ago),
                backends: vec![backend.clone()],
                ..Checkpoint::default()
            };
            restore(&config, &BTreeMap::new(), Some(&checkpoint))
        };
        let fresh = of(Duration::from_secs(1));
        assert_eq!(fresh.observed[&ids[0]].counts, (0, 2));
        assert_eq!(fresh.said[&ids[0]], said);
        assert!(fresh.flaps[&ids[0]].held_until(Instant::now()).is_some());
        let old = of(Duration::from_secs(3600));
        assert_eq!(old.observed[&ids[0]].counts, (0, 0));
        assert_eq!(old.said[&ids[0]], said);
        let held = old
            .flaps
            .get(&ids[0])
            .and_then(|flaps| flaps.held_until(Instant::now()));
        assert_eq!(held, None);
    }

    #[test]
    fn pins_win_and_the_checkpoint_adds_what_they_do_not_hold() {
        let config = config();
        let ids = ids(&config);
        let pinned = Remembered {
            state: OperState::Up,
            admin: AdminState::Ready,
            runtime_weight: None,
            ever_up: true,
        };
        let checkpoint = Checkpoint {
            backends: vec![
                kept(ids[0], OperState::Up, AdminState::Drain),
                kept(ids[1], OperState::Up, AdminState::Drain),
            ],
            ..Checkpoint::default()
        };
        let restored = restore(&config, &[(ids[0], pinned)].into(), Some(&checkpoint));
        let status = restored.statuses[&ids[0]];
        assert_eq!((status.admin, status.runtime_weight), (AdminState::Ready, None));
        let observed = &restored.observed[&ids[0]];
        assert!(!observed.hearsay && observed.changed.is_some());
        // The last agent died before it had written this one's.
        assert_eq!(restored.statuses[&ids[1]].admin, AdminState::Drain);
    }
}
