//! What the rare paths find out about a packet that has no transport header of its own, or not all of it. They are
//! functions that are not inlined, so that neither their code nor their stack burdens the fast path; what they found
//! goes back to it through this.

use lb_common::reason::Reason;

use crate::packet::{Flow, Ip};

/// A packet's flow, or its place, found in another way than by reading its transport header.
#[repr(C)]
pub struct Seen {
    /// The client's address: that of the flow, not of the packet.
    pub source: [u32; 4],
    pub flow: Flow,
    /// Where no flow was found but a place: index of the backend and hash of the flow; else 0.
    pub index: u32,
    pub hash: u32,
    /// Not 0: the packet may not be answered by an ICMP error.
    pub quiet: u32,
    /// Not 0: the backend is to be kept for the fragments that follow.
    pub record: u32,
}

/// Whether a flow or a place was found, or why not.
#[derive(Clone, Copy)]
pub struct Found(u32);

impl Found {
    pub const YES: Self = Self(u32::MAX);

    /// What [`Found::YES`] or a reason is as a number.
    #[inline(always)]
    pub fn of_bits(bits: u32) -> Self {
        Self(bits)
    }

    #[inline(always)]
    pub fn settled(reason: Reason) -> Self {
        Self(reason as u32)
    }

    #[inline(always)]
    pub fn new(result: Result<(), Reason>) -> Self {
        match result {
            Ok(()) => Self::YES,
            Err(reason) => Self::settled(reason),
        }
    }

    #[inline(always)]
    pub const fn number(self) -> u32 {
        self.0
    }

    #[inline(always)]
    pub fn ok(self) -> Result<(), Reason> {
        if self.0 == Self::YES.0 {
            return Ok(());
        }
        Err(Reason::from_index(self.0).unwrap_or(Reason::Malformed))
    }
}

impl Seen {
    pub const NOTHING: Self = Self {
        source: [0; 4],
        flow: Flow {
            protocol: 0,
            ports: 0,
            opens: 0,
            transport: 0,
        },
        index: 0,
        hash: 0,
        quiet: 0,
        record: 0,
    };

    /// The packet as its flow has it.
    #[inline(always)]
    pub fn of(&self, ip: &Ip) -> Ip {
        Ip {
            source: self.source,
            quiet: self.quiet != 0,
            ..*ip
        }
    }
}
