//! From what came in (results of checks, next hops) to the maps.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use super::{Agent, incident};
use crate::api::types::CheckStatus;
use crate::config::Config;
use crate::control::{self, BackendStatus, Desired, HopView, Inputs};
use crate::datapath::apply::{Change, ChangeKind};
use crate::datapath::clock::monotonic_ns;
use crate::health::Report;
use crate::health::doubt::Sign;
use crate::model::{BackendId, OperState};
use crate::net::NextHops;
use crate::observe::Kind;

/// How often is said that there is no room.
const TELL_AGAIN: Duration = Duration::from_secs(60);

impl Agent {
    pub(super) fn take_report(&mut self, report: &Report) {
        if !self.checks(&report.id) {
            // Sent before its checks were stopped.
            return;
        }
        self.question(report);
        for id in self.sharing.with(&report.id) {
            self.take_result(Report { id, ..report.clone() });
        }
    }

    /// Takes in what a probe said of a backend.
    fn take_result(&mut self, report: Report) {
        if !self.checks(&report.id) {
            // The configuration that shares it is not in force, or it is in maintenance.
            return;
        }
        self.inherit(&report.id);
        let probe = incident::probe(&report);
        let Report {
            id,
            result,
            ended,
            state: said,
            changed,
            sign,
            passes,
            failures,
            rise,
            fall,
            ..
        } = report;
        let state = self.damped(&id, said, changed, ended);
        let starting = self.starting();
        let latency_us = u32::try_from(result.latency.as_micros()).unwrap_or(u32::MAX);
        let observed = self.observed.entry(id).or_default();
        if (observed.hearsay || observed.check.code != result.code)
            && let Err(error) = self.dataplane.note_check(&id, result.code as u8, latency_us)
        {
            log::warn!("keeping the check result of {}: {error}", self.describe(&id));
        }
        let status = self.statuses.entry(id).or_default();
        let before = *status;
        let observed = self.observed.entry(id).or_default();
        // A probe that could not be sent takes nothing back from what was known before a reboot.
        if state != OperState::Unknown || !observed.hearsay {
            status.found(state, ended, starting);
            observed.hearsay = false;
        }
        // An answer says so at once; silence is looked into.
        if matches!(sign, Sign::Passed | Sign::Refused) {
            status.host_silent = false;
        }
        let after = *status;
        let check = CheckStatus {
            code: result.code,
            latency_ms: Some(f64::from(latency_us) / 1000.0),
            detail: result.detail,
        };
        let cause = format!("{} {}", check.code, check.detail);
        observed.check = check;
        // More than a verdict needs means nothing.
        let counts = (passes.min(rise), failures.min(fall));
        let against = |(passes, failures)| match after.state {
            OperState::Up => failures,
            _ => passes,
        };
        if against(counts) != against(observed.counts) {
            self.keeper.mark();
        }
        observed.counts = counts;
        observed.trail.note(probe);
        self.meter.result(&id, result.code, result.latency);
        if after != before {
            self.behind = true;
            self.keeper.mark();
        }
        if after.state != before.state {
            observed.changed = Some(SystemTime::now());
            let (from, to) = (before.state, after.state);
            self.meter.verdict(&id, to);
            let kind = Kind::BackendState {
                from,
                to,
                code: result.code,
                latency_ms: f64::from(latency_us) / 1000.0,
                results: observed.trail.recent(),
            };
            log::info!("backend {}: {from} -> {to} ({cause})", self.describe(&id));
            self.moves_for = format!("backend {} {to}", std::net::SocketAddr::new(id.address, id.port));
            self.emit(self.about(&id, kind).because(cause));
            self.open_incident(id, from, to);
        }
        // A probe that could not be sent is no verdict: the round waits for another, up to its deadline. A
        // backend that is not checked is UP without a result.
        if state != OperState::Unknown
            && let Some(round) = &mut self.round
        {
            round.awaiting.remove(&id);
        }
    }

    pub(super) fn take_hops(&mut self, fresh: &NextHops) {
        self.behind = true;
        for (address, hop) in fresh {
            let last = self
                .hops
                .get(address)
                .and_then(|view| view.hop.clone().ok().or_else(|| view.last.clone()));
            match (self.hops.get(address).map(|view| view.hop.is_ok()), hop) {
                (Some(true), Err(why)) => {
                    log::warn!("next hop of {address} lost: {why}");
                    let kind = Kind::NextHop {
                        address: *address,
                        resolved: false,
                    };
                    self.emit(kind.because(why.to_string()));
                }
                (Some(false), Ok(hop)) => {
                    log::info!("next hop of {address} is {hop}");
                    let kind = Kind::NextHop {
                        address: *address,
                        resolved: true,
                    };
                    self.emit(kind.because(hop.to_string()));
                }
                _ => {}
            }
            let before = self.hops.get(address);
            let doubted = match (before.map(|view| (view.hop.is_ok(), view.doubted)), hop) {
                (Some((true, _)), Err(why)) => why.may_be_our_fault(),
                (Some((false, doubted)), Err(_)) => doubted,
                (_, Ok(_)) | (None, Err(_)) => false,
            };
            let lost = doubted && before.is_some_and(|view| view.hop.is_ok());
            let view = HopView {
                hop: hop.clone(),
                last,
                doubted,
            };
            self.hops.insert(*address, view);
            if lost {
                self.lose_hop(*address);
            } else if !doubted {
                self.find_hop(*address);
            }
        }
    }

    /// After anything changed: ends a round that is complete, else brings the maps up to date.
    pub(super) async fn after_change(&mut self) -> anyhow::Result<()> {
        let complete = self.round.as_ref().is_some_and(|round| {
            let known = round.awaiting.is_empty()
                && self.agents.all_heard()
                && round.addresses.iter().all(|a| self.hops.contains_key(a));
            known || Instant::now() >= round.deadline
        });
        if complete {
            return self.end_round().await;
        }
        self.conclude();
        // Before the first round is over the tables stay as they were found.
        if self.behind && !self.starting() {
            self.reconcile_or_log();
        }
        Ok(())
    }

    /// The first round of checks is not over.
    pub(super) fn starting(&self) -> bool {
        self.round.as_ref().is_some_and(|round| round.reload.is_none())
    }

    /// What the maps must hold by all that is known.
    pub(super) fn desired(&self) -> Desired {
        self.desired_with(&self.statuses)
    }

    /// What they would have to hold if the states were these.
    pub(super) fn desired_with(&self, statuses: &BTreeMap<BackendId, BackendStatus>) -> Desired {
        self.desired_of(&self.config, statuses, &self.hops)
    }

    /// What they would have to hold with this configuration, these states, and these next hops.
    pub(super) fn desired_of(
        &self,
        config: &Config,
        statuses: &BTreeMap<BackendId, BackendStatus>,
        hops: &BTreeMap<IpAddr, HopView>,
    ) -> Desired {
        let backups = self.chosen.iter().filter(|(_, chosen)| chosen.backups);
        let hops = self.paths.narrowed(hops);
        control::desired(&Inputs {
            services: &config.services,
            statuses,
            hops: &hops,
            earlier: &self.dataplane.earlier(),
            backups: &backups.map(|(key, _)| *key).collect(),
            vlans: config.has_vlans(),
            interfaces: Some(&config.agent.interfaces),
            now: Instant::now(),
        })
    }

    pub(super) fn reconcile(&mut self) -> Result<Vec<Change>, crate::datapath::Error> {
        let desired = self.desired();
        self.behind = true;
        let changes = self.dataplane.apply(&desired, &monotonic_ns)?;
        self.behind = false;
        self.follow(&changes, &desired);
        Ok(changes)
    }

    /// What follows from changes that were made.
    fn follow(&mut self, changes: &[Change], desired: &Desired) {
        for change in changes {
            log::info!("{}", describe_change(change, Tense::Did));
            self.emit_change(change);
            // Also where the same generation comes again, of a service that was taken away and added.
            self.slots.remove(&change.key);
            if let ChangeKind::Table { moved, .. } = change.kind {
                self.meter.switch(&change.key, moved as u64);
            }
        }
        self.follow_incidents(changes, desired);
        self.note_choices(desired);
        let cause = std::mem::take(&mut self.moves_for);
        self.follow_migrations(&cause);
    }

    /// For changes that nobody waits for: a failure is logged, and tried again when something comes in.
    pub(super) fn reconcile_or_log(&mut self) {
        if let Err(error) = self.reconcile_known() {
            log::error!("writing the maps: {error}");
        }
    }

    /// Like [`Agent::reconcile`]; where there is no room for some, which a restart with other backends than before can
    /// find, those who have a place go on, verdicts about them are followed, and the others are tried again later.
    pub(super) fn reconcile_known(&mut self) -> Result<(), crate::datapath::Error> {
        let error = match self.reconcile() {
            Ok(_) => return Ok(()),
            Err(error @ crate::datapath::Error::Full { .. }) => error,
            Err(error) => return Err(error),
        };
        let told = self.no_room.is_some_and(|told| told.elapsed() < TELL_AGAIN);
        if !told {
            self.no_room = Some(Instant::now());
            log::error!("{error}; some have to wait until others' flows have ended");
        }
        let desired = self.desired();
        let changes = self.dataplane.apply_known(&desired, &monotonic_ns)?;
        self.follow(&changes, &desired);
        Ok(())
    }

    /// Addresses whose next hop is needed: every backend's.
    pub(super) fn backend_addresses(config: &Config) -> BTreeSet<IpAddr> {
        config
            .services
            .iter()
            .flat_map(|s| s.backends.iter().map(|b| b.address))
            .collect()
    }
}

/// Whether something is told that happened, or that would.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tense {
    Did,
    Would,
}

/// One line about what happens to a service.
pub(super) fn describe_change(change: &Change, tense: Tense) -> String {
    let name = &change.name;
    match (change.kind, tense) {
        (ChangeKind::Added { slots }, _) => {
            format!("service {name}: added, {} with {slots} slots", change.key)
        }
        (ChangeKind::Removed, _) => format!("service {name}: removed ({})", change.key),
        (
            ChangeKind::Table {
                moved,
                slots,
                generation,
            },
            Tense::Did,
        ) => {
            format!("service {name}: {moved} of {slots} slots moved (generation {generation})")
        }
        (ChangeKind::Table { moved, slots, .. }, Tense::Would) => {
            format!("service {name}: {moved} of {slots} slots would move")
        }
    }
}
