//! One look at a target: asks it once, in one way or in several at the same time, and says what came of it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::time::Instant;

use super::spec::Forwarded;
use super::way::Way;
use super::{CheckKind, Forwarder, dns, exec, grpc, http, icmp, tcp, udp};
use crate::config::Require;
use crate::model::CheckCode;

/// What is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// None: the target is not checked.
    pub probes: Vec<Probe>,
    /// How many of them have to pass.
    pub require: Require,
}

impl Subject {
    /// The host that answers, if it is asked over the network.
    #[must_use]
    pub fn host(&self) -> Option<IpAddr> {
        let asked = |probe: &&Probe| !matches!(probe.kind, CheckKind::Exec(_));
        let hosts = self.probes.iter().filter(asked).map(|probe| probe.address.ip());
        hosts.into_iter().find(|host| !host.is_loopback())
    }
}

/// One probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    pub kind: CheckKind,
    /// The port means nothing to `icmp`.
    pub address: SocketAddr,
    /// Where the probe comes from; `None`: whatever address the kernel chooses.
    pub source: Option<IpAddr>,
}

/// What came of one look.
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

/// Looks at `subject` once, which takes at most `timeout` as a whole. Never fails: what goes wrong on our side is
/// a result too (`SOCKERR`).
///
/// Dropping the future ends the probe.
pub async fn probe(subject: &Subject, timeout: Duration) -> ProbeResult {
    probe_with(subject, timeout, None).await
}

/// As [`probe`], with what sends probes through the forward path; without it those are `SOCKERR`.
pub async fn probe_with(subject: &Subject, timeout: Duration, forwarder: Option<&Forwarder>) -> ProbeResult {
    let started = Instant::now();
    let limit = Limit {
        deadline: started + timeout,
        timeout,
    };
    let Outcome { code, detail } = match subject.probes.as_slice() {
        [] => Outcome::new(CheckCode::Unk, NO_CHECK),
        [probe] => one(probe, limit, forwarder).await,
        several => Box::pin(all_or_any(several, subject.require, limit, forwarder)).await,
    };
    ProbeResult {
        code,
        latency: started.elapsed(),
        detail,
    }
}

/// The detail of a target without a check.
pub(super) const NO_CHECK: &str = "no check";

/// One probe. All but the most frequent kind are boxed: the tasks of thousands of targets have the size of the
/// largest of them.
async fn one(probe: &Probe, limit: Limit, forwarder: Option<&Forwarder>) -> Outcome {
    let (kind, way) = match (&probe.kind, forwarder) {
        (CheckKind::Forwarded(forwarded), Some(forwarder)) => {
            let Forwarded {
                service,
                forward,
                kind,
            } = &**forwarded;
            let way = Way::Forward {
                forwarder,
                service: *service,
                forward: *forward,
            };
            (kind, way)
        }
        (CheckKind::Forwarded(_), None) => {
            return Outcome::new(CheckCode::Sockerr, "no forward path here");
        }
        (kind, _) => (kind, Way::Direct),
    };
    match kind {
        CheckKind::Tcp => match way {
            Way::Direct => tcp::check(probe, limit).await,
            Way::Forward {
                forwarder,
                service,
                forward,
            } => Box::pin(forwarder.check(service, forward, probe, limit)).await,
        },
        CheckKind::Forwarded(_) => Outcome::new(CheckCode::Sockerr, "a way cannot be taken twice"),
        CheckKind::Http(check) => Box::pin(http::check(check, way, probe, limit)).await,
        CheckKind::Https(check, tls) => Box::pin(http::check_over_tls(check, tls, way, probe, limit)).await,
        CheckKind::Udp(check) => Box::pin(udp::check(check, way, probe, limit)).await,
        CheckKind::Dns(check) => Box::pin(dns::check(check, way, probe, limit)).await,
        CheckKind::Icmp => Box::pin(icmp::check(probe, limit)).await,
        CheckKind::Grpc(check) => Box::pin(grpc::check(check, way, probe, limit)).await,
        CheckKind::Exec(check) => Box::pin(exec::check(check, probe, limit)).await,
    }
}

/// Probes at the same time; over as soon as one of them decides it, so that several take no longer to find a fault
/// than one does. One that could not be sent decides nothing, and leaves nothing decided where it would have
/// mattered.
async fn all_or_any(
    probes: &[Probe],
    require: Require,
    limit: Limit,
    forwarder: Option<&Forwarder>,
) -> Outcome {
    let mut under_way: FuturesUnordered<_> = probes
        .iter()
        .map(|probe| async move { (probe, one(probe, limit, forwarder).await) })
        .collect();
    let deciding = Some(require == Require::Any);
    let mut undecided = None;
    let mut last = None;
    while let Some((probe, outcome)) = under_way.next().await {
        let passed = outcome.code.passed();
        let outcome = Outcome::new(outcome.code, format!("{}: {}", probe.kind.name(), outcome.detail));
        if passed == deciding {
            return outcome;
        }
        if passed.is_none() {
            undecided = Some(outcome);
        } else {
            last = Some(outcome);
        }
    }
    let count = probes.len();
    undecided.unwrap_or_else(|| {
        let Outcome { code, detail } = last.unwrap_or_else(|| Outcome::new(CheckCode::Unk, NO_CHECK));
        let all = match require {
            Require::All => "passed",
            Require::Any => "failed",
        };
        Outcome::new(code, format!("all {count} {all}, the last {detail}"))
    })
}

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
            .map_err(|_| self.late(code, missing))
    }

    /// The outcome of waiting for what did not come.
    pub fn late(self, code: CheckCode, missing: &str) -> Outcome {
        Outcome::new(code, format!("{missing} within {:?}", self.timeout))
    }
}

#[cfg(test)]
#[path = "tests/probe.rs"]
pub(super) mod tests;
