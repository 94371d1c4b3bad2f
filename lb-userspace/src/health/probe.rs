//! One probe: asks a target once and says what came of it.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::{CheckKind, http, tcp};
use crate::model::CheckCode;

/// What a probe looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    pub kind: CheckKind,
    pub address: SocketAddr,
}

/// What came of one probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeResult {
    pub code: CheckCode,
    /// From the start of the probe to its result.
    pub latency: Duration,
    /// One line for people, such as `503 Service Unavailable` or `connection refused`. Holds no text that the
    /// target chose.
    pub detail: String,
}

/// Code and detail of a probe.
#[derive(Debug)]
pub(super) struct Outcome {
    pub code: CheckCode,
    pub detail: String,
}

impl Outcome {
    pub fn new(code: CheckCode, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
        }
    }
}

/// Probes `subject`, which takes at most `timeout` as a whole. Never fails: what goes wrong on our side is
/// a result too (`SOCKERR`).
///
/// Dropping the future ends the probe.
pub async fn probe(subject: &Subject, timeout: Duration) -> ProbeResult {
    let started = Instant::now();
    let limit = Limit {
        deadline: started + timeout,
        timeout,
    };
    let outcome = match &subject.kind {
        CheckKind::None => Outcome::new(CheckCode::Unk, NO_CHECK),
        CheckKind::Tcp => tcp::check(subject.address, limit).await,
        CheckKind::Http(check) => http::check(check, subject.address, limit).await,
    };
    let Outcome { code, detail } = outcome;
    ProbeResult {
        code,
        latency: started.elapsed(),
        detail,
    }
}

/// The detail of a target without a check.
pub(super) const NO_CHECK: &str = "no check";

/// How long a probe may take: until when, and for messages the whole time it had.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    pub deadline: Instant,
    pub timeout: Duration,
}

impl Limit {
    /// What `future` gives before the deadline, else `code` with a line that says what was missing.
    pub async fn run<T>(
        self,
        future: impl Future<Output = T>,
        code: CheckCode,
        missing: &str,
    ) -> Result<T, Outcome> {
        tokio::time::timeout_at(self.deadline, future)
            .await
            .map_err(|_| Outcome::new(code, format!("{missing} within {:?}", self.timeout)))
    }
}

#[cfg(test)]
#[path = "tests/probe.rs"]
pub(super) mod tests;
