//! The way that a probe takes: from a socket of the kernel to the backend's own address, or as clients' packets go.

use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncWrite};

use super::forward::Forwarder;
use super::probe::{Limit, Outcome, Probe};
use super::tcp;
use crate::model::Forward;

/// How a probe gets to its target.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way<'f> {
    /// To the address of the probe.
    Direct,
    /// To this service, at the backend with the address of the probe.
    Forward {
        forwarder: &'f Forwarder,
        service: SocketAddr,
        forward: Forward,
    },
}

/// A connection to talk over.
pub(super) trait Connection: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Connection for T {}

impl Way<'_> {
    /// Connects. The error is an outcome: `L4CON`, `L4TOUT` or `SOCKERR`.
    pub async fn connect(self, probe: &Probe, limit: Limit) -> Result<Box<dyn Connection>, Outcome> {
        match self {
            Self::Direct => Ok(Box::new(tcp::connect(probe, limit).await?)),
            Self::Forward {
                forwarder,
                service,
                forward,
            } => Ok(Box::new(forwarder.connect(service, forward, probe, limit).await?)),
        }
    }

    /// Who is asked, as the target sees it.
    pub fn address(self, probe: &Probe) -> SocketAddr {
        match self {
            Self::Direct => probe.address,
            Self::Forward { service, .. } => service,
        }
    }
}
