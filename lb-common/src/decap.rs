//! What `xlb decap` and its program share.

/// How many prefixes of load balancers there can be, for each address family.
pub const MAX_PREFIXES: u32 = 1024;

/// What became of a packet; also the index of its counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Outcome {
    /// The outer header was taken off (IP-in-IP, or GUE).
    Decapsulated = 0,
    /// Neither IP-in-IP nor GUE: left alone.
    NotTunneled = 1,
    /// Either of them from an address that is not named: left alone.
    NotFromUs = 2,
    /// Either of them from a load balancer, but fragmented, cut short or contradictory: left alone.
    Malformed = 3,
    /// The outer header came off, but the frame is unusable: dropped.
    Failed = 4,
    /// A router marked the outer header for congestion, which the inner packet cannot bear: dropped, see
    /// [`crate::ecn::decapsulated`].
    Congestion = 5,
}

/// How many counters there are.
pub const OUTCOMES: u32 = 6;

impl Outcome {
    pub const ALL: [Self; OUTCOMES as usize] = [
        Self::Decapsulated,
        Self::NotTunneled,
        Self::NotFromUs,
        Self::Malformed,
        Self::Failed,
        Self::Congestion,
    ];

    /// The word that operators see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Decapsulated => "decapsulated",
            Self::NotTunneled => "not_tunneled",
            Self::NotFromUs => "not_from_us",
            Self::Malformed => "malformed",
            Self::Failed => "failed",
            Self::Congestion => "congestion",
        }
    }
}
