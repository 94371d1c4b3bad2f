//! What to check, and how.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::http::HttpCheck;
use super::machine::{Policy, Previous};
use super::probe::{Probe, Subject};
use crate::config::{self, DnsCheck, ExecCheck, GrpcCheck, Require, TlsCheck, UdpCheck, Via};
use crate::model::{BackendId, Forward};

/// A backend to check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub id: BackendId,
    /// Where probes go, unless the check names another address or port.
    pub address: IpAddr,
    pub port: u16,
    /// How packets reach it, and probes through that path.
    pub forward: Forward,
    pub check: CheckSpec,
    /// What an earlier run knew of it (a warm start). Only looked at when the target is added.
    pub previous: Option<Previous>,
}

/// How a backend is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckSpec {
    /// What is probed at each time; none: the backend is UP.
    pub probes: Vec<ProbeSpec>,
    /// How many of them have to pass.
    pub require: Require,
    pub policy: Policy,
    /// Probed at once when its clients seem to get no answer.
    pub passive: bool,
}

/// One thing that is probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeSpec {
    pub kind: CheckKind,
    /// Probe this address in place of the backend's.
    pub address: Option<IpAddr>,
    /// Probe this port in place of the backend's.
    pub port: Option<u16>,
    /// Where probes come from; `None`: whatever address the kernel chooses.
    pub source: Option<IpAddr>,
    pub via: Via,
}

/// What a probe does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckKind {
    /// A TCP connection can be made.
    Tcp,
    /// Asked through the path that traffic takes.
    Forwarded(Box<Forwarded>),
    /// An HTTP/1.1 request is answered as expected.
    Http(Arc<HttpCheck>),
    /// The same over TLS.
    Https(Arc<HttpCheck>, Arc<TlsCheck>),
    /// A datagram is answered as expected.
    Udp(Arc<UdpCheck>),
    /// A name server answers as expected.
    Dns(Arc<DnsCheck>),
    /// An echo comes back.
    Icmp,
    /// The health service of gRPC says that it serves.
    Grpc(Arc<GrpcCheck>),
    /// A program ends with the exit status 0.
    Exec(Arc<ExecCheck>),
}

/// A probe through the path that traffic takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forwarded {
    /// Who is asked.
    pub service: SocketAddr,
    /// How packets reach the backend.
    pub forward: Forward,
    /// What it is asked.
    pub kind: CheckKind,
}

impl CheckKind {
    /// The word of the configuration.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Forwarded(forwarded) => forwarded.kind.name(),
            Self::Http(_) => "http",
            Self::Https(..) => "https",
            Self::Udp(_) => "udp",
            Self::Dns(_) => "dns",
            Self::Icmp => "icmp",
            Self::Grpc(_) => "grpc",
            Self::Exec(_) => "exec",
        }
    }

    /// `None`: nothing is probed.
    fn of(kind: &config::CheckKind) -> Option<Self> {
        Some(match kind {
            config::CheckKind::None => return None,
            config::CheckKind::Tcp => Self::Tcp,
            config::CheckKind::Http(http) => Self::Http(Arc::new(HttpCheck::of(http))),
            config::CheckKind::Https(http, tls) => {
                Self::Https(Arc::new(HttpCheck::of(http)), Arc::new(tls.clone()))
            }
            config::CheckKind::Udp(udp) => Self::Udp(Arc::new(udp.clone())),
            config::CheckKind::Dns(dns) => Self::Dns(Arc::new(dns.clone())),
            config::CheckKind::Icmp => Self::Icmp,
            config::CheckKind::Grpc(grpc) => Self::Grpc(Arc::new(grpc.clone())),
            config::CheckKind::Exec(exec) => Self::Exec(Arc::new(exec.clone())),
        })
    }
}

impl CheckSpec {
    /// The check that a valid configuration describes.
    #[must_use]
    pub fn of(check: &config::Check) -> Self {
        let spec = |kind, address, port, source, via| {
            Some(ProbeSpec {
                kind: CheckKind::of(kind)?,
                address,
                port,
                source,
                via,
            })
        };
        let first = spec(&check.kind, check.address, check.port, check.source, check.via);
        let also = check
            .also
            .iter()
            .filter_map(|probe| spec(&probe.kind, probe.address, probe.port, probe.source, probe.via));
        Self {
            probes: first.into_iter().chain(also).collect(),
            require: check.require,
            policy: Policy {
                interval: check.interval,
                timeout: check.timeout,
                fast_interval: check.fast_interval,
                fast_timeout: check.fast_timeout,
                down_interval: check.down_interval,
                rise: check.rise,
                fall: check.fall,
                jitter_percent: check.jitter_percent,
            },
            passive: check.passive && check.kind != config::CheckKind::None,
        }
    }
}

impl Target {
    pub(super) fn subject(&self) -> Subject {
        let probe = |spec: &ProbeSpec| Probe {
            kind: match spec.via {
                Via::Direct | Via::Auto => spec.kind.clone(),
                Via::Forward => CheckKind::Forwarded(Box::new(Forwarded {
                    service: SocketAddr::new(self.id.service.address, self.id.service.port),
                    forward: self.forward,
                    kind: spec.kind.clone(),
                })),
            },
            address: SocketAddr::new(
                spec.address.unwrap_or(self.address),
                spec.port.unwrap_or(self.port),
            ),
            source: spec.source,
        };
        Subject {
            probes: self.check.probes.iter().map(probe).collect(),
            require: self.check.require,
        }
    }
}
