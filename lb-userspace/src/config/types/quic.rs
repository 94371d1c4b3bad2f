//! What connection ids of QUIC say of a backend.

use std::fmt;

use lb_common::quic::{CONFIGS, MAX_SERVER_ID};

/// A server id of one configuration (draft-ietf-quic-load-balancers).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QuicId {
    /// Below [`CONFIGS`].
    pub config: u8,
    /// In bytes, from 1 to [`MAX_SERVER_ID`].
    pub length: u8,
    /// The bytes, the first one lowest.
    pub server: u64,
}

impl QuicId {
    /// `None` where there is no such configuration, or the id is too short or too long.
    #[must_use]
    pub fn new(config: u8, id: &[u8]) -> Option<Self> {
        if usize::from(config) >= CONFIGS || id.is_empty() || id.len() > MAX_SERVER_ID {
            return None;
        }
        let mut bytes = [0; MAX_SERVER_ID];
        bytes[..id.len()].copy_from_slice(id);
        Some(Self {
            config,
            length: id.len() as u8,
            server: u64::from_le_bytes(bytes),
        })
    }
}

impl fmt::Display for QuicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.config)?;
        let bytes = self.server.to_le_bytes();
        bytes[..usize::from(self.length)]
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
