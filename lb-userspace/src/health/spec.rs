//! What to check, and how.

use std::net::{IpAddr, SocketAddr};

use super::http::HttpCheck;
use super::machine::Policy;
use super::probe::Subject;
use crate::model::{BackendId, OperState};

/// A backend to check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub id: BackendId,
    /// Where probes go, unless the check names another address or port.
    pub address: IpAddr,
    pub port: u16,
    pub check: CheckSpec,
    /// What an earlier run knew of it (a warm start). Only looked at when the target is added.
    pub previous: Option<OperState>,
}

/// How a backend is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckSpec {
    pub kind: CheckKind,
    /// Probe this address in place of the backend's.
    pub address: Option<IpAddr>,
    /// Probe this port in place of the backend's.
    pub port: Option<u16>,
    pub policy: Policy,
}

/// What a probe does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckKind {
    /// No probe: the target is UP, its code `UNK`.
    None,
    /// A TCP connection can be made.
    Tcp,
    /// An HTTP/1.1 request is answered with an expected status.
    Http(HttpCheck),
}

impl Target {
    pub(super) fn subject(&self) -> Subject {
        let address = self.check.address.unwrap_or(self.address);
        let port = self.check.port.unwrap_or(self.port);
        Subject {
            kind: self.check.kind.clone(),
            address: SocketAddr::new(address, port),
        }
    }
}
