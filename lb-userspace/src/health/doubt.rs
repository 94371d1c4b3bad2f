//! Whether silence is believed.
//!
//! A target that refuses, or answers wrongly, has spoken for itself. One that is silent may be dead, or we may be
//! cut off: judged one by one, all targets would be DOWN after one blip of our own uplink. So silence counts only
//! when something else answered meanwhile:
//!
//! ```text
//!  target   ──────x───────x───────────x          misses
//!                 └ first             └ believed: DOWN
//!  others   ─────────────────✓─────              a probe begun after the first miss, answered before the last began
//! ```
//!
//! The answer must be there *before* the last miss began. When our uplink comes back, others may answer a moment
//! before the target gets its chance to; only a miss that began after that tells anything.
//!
//! Where there is nobody else to ask, silence is believed as it is.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

use nix::errno::Errno;

use super::ProbeResult;
use crate::model::CheckCode;

/// Who can answer besides a target, and who did.
#[derive(Clone, Debug, Default)]
pub struct Answers {
    /// Hosts that are probed.
    hosts: BTreeSet<IpAddr>,
    /// A host that is asked for this alone.
    witness: Option<IpAddr>,
    /// The last two hosts that answered, the latest first, and when the probe began that they answered. Two,
    /// because a host cannot bear witness for itself.
    latest: [Option<(IpAddr, Instant)>; 2],
}

impl Answers {
    /// The hosts that are probed from here on.
    pub fn set_hosts(&mut self, hosts: BTreeSet<IpAddr>) {
        self.hosts = hosts;
    }

    /// The host that is asked besides, if there is one.
    pub fn set_witness(&mut self, witness: Option<IpAddr>) {
        self.witness = witness;
    }

    /// A host answered, whatever it said, a probe that began at `started`.
    pub fn answered(&mut self, host: IpAddr, started: Instant) {
        let known = self.latest.into_iter().flatten().find(|(of, _)| *of == host);
        let started = known.map_or(started, |(_, known)| known.max(started));
        let other = self.latest.into_iter().flatten().find(|(of, _)| *of != host);
        let mut latest = [Some((host, started)), other];
        latest.sort_by_key(|answer| std::cmp::Reverse(answer.map(|(_, started)| started)));
        self.latest = latest;
    }

    /// Whether another host than `host` answered a probe that began at `moment` or later, or there is no other.
    #[must_use]
    pub fn others_since(&self, host: IpAddr, moment: Instant) -> bool {
        let answered = self
            .latest
            .into_iter()
            .flatten()
            .any(|(of, started)| of != host && started >= moment);
        answered || self.nobody_else(host)
    }

    fn nobody_else(&self, host: IpAddr) -> bool {
        let others = self.hosts.iter().chain(&self.witness);
        others.into_iter().all(|other| *other == host)
    }
}

/// What one probe says of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// It passed.
    Passed,
    /// It failed, by an answer.
    Refused,
    /// It failed, and nothing came back.
    Silent,
    /// It was not sent.
    NotSent,
}

impl Sign {
    /// What a result says. Where the kernel gave up on finding the host, or a router did, nothing came from the
    /// host either.
    #[must_use]
    pub fn of(result: &ProbeResult) -> Self {
        let unreachable = [Errno::EHOSTUNREACH, Errno::ENETUNREACH, Errno::EHOSTDOWN]
            .iter()
            .any(|errno| result.detail.ends_with(&errno.desc().to_lowercase()));
        match result.code.passed() {
            Some(true) => Self::Passed,
            None => Self::NotSent,
            Some(false) if result.code.silent() || (result.code == CheckCode::L4con && unreachable) => {
                Self::Silent
            }
            Some(false) => Self::Refused,
        }
    }
}

/// The failures of one target since it last passed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Run {
    /// When the first of them began.
    pub first_miss: Option<Instant>,
    /// One of them was an answer.
    answered: bool,
}

impl Run {
    /// Asked when a probe begins: whether its silence will be believed.
    #[must_use]
    pub fn witnessed(&self, answers: &Answers, host: IpAddr) -> bool {
        self.first_miss.map_or_else(
            || answers.nobody_else(host),
            |first| answers.others_since(host, first),
        )
    }

    /// Takes in a result of a probe that began at `started`, of which [`Run::witnessed`] said `witnessed`. Gives
    /// back whether a verdict may follow from it.
    pub fn observe(&mut self, sign: Sign, started: Instant, witnessed: bool) -> bool {
        match sign {
            Sign::NotSent => return false,
            Sign::Passed => {
                *self = Self::default();
                return true;
            }
            Sign::Refused | Sign::Silent => {}
        }
        self.first_miss.get_or_insert(started);
        self.answered |= sign == Sign::Refused;
        self.answered || witnessed
    }
}

#[cfg(test)]
#[path = "tests/doubt.rs"]
mod tests;
