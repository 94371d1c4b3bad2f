//! Who takes new flows: from what is known of the backends of one service to those that own slots.
//!
//! ```text
//!  primaries that serve ── fewer than the quorum ──▶ the backups that serve join them
//!            │                                                │
//!            └───────────────┬────────────────────────────────┘
//!                            ▼
//!        nobody? ── yes ──▶ on_all_down: last | drop | sorry
//!            │ no
//!            ▼
//!        a smaller part than `panic_threshold`? ── yes ──▶ verdicts are not believed: all that may serve
//!            │ no
//!            ▼
//!        `max_ejection_percent`: the latest to go DOWN stay, where too many are out
//! ```
//!
//! A backend *may* serve when no operator took it out (DRAIN, MAINT, weight 0) and packets can be sent to it.
//! Nothing here, no panic and no cluster of failures, gives flows to one that may not.

use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::{BackupMode, OnAllDown, PoolRules, Role};

/// Failures of one service that follow each other within this time are one event: a switch that died, a
/// deployment. What served before the first of them is "the table of before".
pub const CLUSTER_GAP: Duration = Duration::from_secs(30);

/// What is known of one backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    pub role: Role,
    /// READY, with a weight, and packets can be sent to it.
    pub may_serve: bool,
    /// Its checks say UP, and its next hop is there or not given up yet.
    pub healthy: bool,
    /// It was UP at some time: without that it is not known to be a server at all.
    pub ever_up: bool,
    /// When it went DOWN, where that is known and it is not UP.
    pub down_since: Option<Instant>,
}

impl Member {
    fn serves(&self) -> bool {
        self.may_serve && self.healthy
    }

    /// Whether it can be believed to serve against its verdict.
    fn may_be_trusted(&self) -> bool {
        self.may_serve && self.ever_up
    }
}

/// Why just these take new flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Why {
    /// Those that serve by verdict.
    #[default]
    Serving,
    /// Too few serve: verdicts are not believed.
    Panic,
    /// Nobody serves: those of before the failures go on.
    Last,
    /// Nobody serves: the sorry backend answers.
    Sorry,
    /// Nobody serves: packets are dropped.
    Nobody,
}

/// Who takes new flows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// For each member whether it owns slots.
    pub takes: Vec<bool>,
    pub why: Why,
    /// Backups are in use: an input of the next choice.
    pub backups: bool,
    /// Members that own slots only because no more may be taken out.
    pub spared: usize,
}

/// What is remembered of the choice before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Before {
    /// There was a table.
    pub had_table: bool,
    /// Backups were in use.
    pub backups: bool,
}

/// Chooses among `members`, the backends of a service in the order of the file.
#[must_use]
pub fn choose(members: &[Member], rules: &PoolRules, before: Before) -> Choice {
    let backups = wants_backups(members, rules, before.backups);
    let first_backup = members
        .iter()
        .position(|member| member.role == Role::Backup && member.serves());
    let active = |index: usize, member: &Member| match member.role {
        Role::Primary => true,
        Role::Backup => {
            backups
                && match rules.backup_mode {
                    BackupMode::All => true,
                    BackupMode::First => first_backup.is_none_or(|first| first == index),
                }
        }
        Role::Sorry => false,
    };
    let chosen = |takes: Vec<bool>, why| Choice {
        takes,
        why,
        backups,
        spared: 0,
    };
    let pick = |wanted: &dyn Fn(&Member) -> bool| -> Vec<bool> {
        members
            .iter()
            .enumerate()
            .map(|(index, member)| active(index, member) && wanted(member))
            .collect()
    };
    let serving = pick(&Member::serves);
    let count = |takes: &[bool]| takes.iter().filter(|takes| **takes).count();
    if count(&serving) == 0 {
        let (takes, why) = all_down(members, rules, before);
        return chosen(takes, why);
    }
    let trusted = pick(&|member| member.serves() || member.may_be_trusted());
    if count(&serving) * 100 < count(&trusted) * usize::from(rules.panic_threshold_percent) {
        return chosen(trusted, Why::Panic);
    }
    spare(members, &trusted, chosen(serving, Why::Serving), rules)
}

/// Whether backups are used: below the quorum, and from there until the quorum and its hysteresis are reached.
fn wants_backups(members: &[Member], rules: &PoolRules, in_use: bool) -> bool {
    let primaries = || members.iter().filter(|member| member.role == Role::Primary);
    let serving = primaries().filter(|member| member.serves()).count();
    let quorum = rules.quorum as usize;
    let wanted = if in_use {
        // More than there are could never be reached.
        (quorum + rules.quorum_hysteresis as usize).min(primaries().count().max(quorum))
    } else {
        quorum
    };
    serving < wanted
}

/// Keeps the latest to go DOWN where more would be out than `max_ejection_percent` of those that may serve.
fn spare(members: &[Member], trusted: &[bool], mut choice: Choice, rules: &PoolRules) -> Choice {
    let all = trusted.iter().filter(|trusted| **trusted).count();
    let most_out = all * usize::from(rules.max_ejection_percent) / 100;
    let mut out: Vec<usize> = (0..members.len())
        .filter(|&index| trusted[index] && !choice.takes[index])
        .collect();
    // One that went DOWN at an unknown time was DOWN before all others.
    out.sort_by_key(|&index| members[index].down_since);
    for &index in out.iter().skip(most_out) {
        choice.takes[index] = true;
        choice.spared += 1;
    }
    choice
}

/// Nobody serves by verdict.
fn all_down(members: &[Member], rules: &PoolRules, before: Before) -> (Vec<bool>, Why) {
    let nobody = vec![false; members.len()];
    let sorry: Vec<bool> = members
        .iter()
        .map(|member| member.role == Role::Sorry && member.serves())
        .collect();
    match rules.on_all_down {
        OnAllDown::Drop => (nobody, Why::Nobody),
        OnAllDown::Last => {
            let last = if before.had_table {
                last(members)
            } else {
                nobody.clone()
            };
            if last.contains(&true) {
                (last, Why::Last)
            } else if sorry.contains(&true) {
                (sorry, Why::Sorry)
            } else {
                (nobody, Why::Nobody)
            }
        }
        OnAllDown::Sorry if sorry.contains(&true) => (sorry, Why::Sorry),
        OnAllDown::Sorry => (nobody, Why::Nobody),
    }
}

/// Those that served before the latest cluster of failures began: a backend that is DOWN since yesterday is
/// not among them because all others follow it today.
fn last(members: &[Member]) -> Vec<bool> {
    let trusted = |member: &Member| member.role != Role::Sorry && member.may_be_trusted();
    // All of them, also the ones that an operator took out since: their failures belong to the cluster too.
    let mut failures: Vec<Instant> = members
        .iter()
        .filter(|member| !member.healthy)
        .filter_map(|member| member.down_since)
        .collect();
    failures.sort_unstable_by(|a, b| b.cmp(a));
    let begin = failures.first().map(|latest| {
        let mut begin = *latest;
        for failure in &failures {
            if begin.duration_since(*failure) > CLUSTER_GAP {
                break;
            }
            begin = *failure;
        }
        begin
    });
    let of_cluster = |member: &Member| match (begin, member.down_since) {
        (Some(begin), Some(down_since)) => down_since >= begin,
        // Not DOWN, but without a next hop: that is how it failed.
        (_, None) if member.healthy => true,
        // DOWN at an unknown time, before all failures whose time is known.
        (Some(_), None) => false,
        (None, _) => true,
    };
    let last: Vec<bool> = members
        .iter()
        .map(|member| trusted(member) && of_cluster(member))
        .collect();
    if last.contains(&true) {
        return last;
    }
    // An operator took out all that served then.
    members.iter().map(trusted).collect()
}

#[cfg(test)]
mod tests;
