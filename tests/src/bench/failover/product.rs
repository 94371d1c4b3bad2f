//! What the products under test have in common.

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use super::arena::{Arena, Pool};

/// How backends are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// As each product does it where its configuration says nothing.
    Defaults,
    /// A probe each 200 ms, each 50 ms once one failed; 100 ms for an answer; three failures in a row.
    Fast,
}

impl Setting {
    /// Between two probes of ours at rest.
    pub fn interval(self) -> Duration {
        match self {
            Self::Defaults => Duration::from_secs(2),
            Self::Fast => Duration::from_millis(200),
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Defaults => "defaults",
            Self::Fast => "fast",
        })
    }
}

/// How a product saw the death of all victims of a pool.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// When the last of them was out.
    pub last_out: SystemTime,
    /// From the start of a backend's first failing probe to its being out, the longest of all backends; `None` where the
    /// product does not tell.
    pub first_bad_to_out: Option<Duration>,
    /// From the same to the first packet at another backend.
    pub first_bad_to_packet: Option<Duration>,
}

/// A running product: stopped when dropped.
pub trait Product {
    fn name(&self) -> &'static str;

    /// Where clients reach a pool.
    fn target(&self, pool: Pool) -> SocketAddr;

    /// Whether all backends of all pools serve.
    ///
    /// # Errors
    /// Where the product ended, or cannot be asked.
    fn all_up(&mut self, arena: &Arena) -> anyhow::Result<bool>;

    /// Forgets what was seen: something dies next.
    ///
    /// # Errors
    /// Where the product cannot be asked.
    fn begin(&mut self) -> anyhow::Result<()>;

    /// How it saw the deaths in a pool, once all are out.
    ///
    /// # Errors
    /// Where the product ended, or cannot be asked.
    fn seen(&mut self, arena: &Arena, pool: Pool) -> anyhow::Result<Option<Seen>>;
}
