//! The words every part of user space shares: services, backends and their states.
//!
//! The names (also as JSON and TOML strings) are the ones operators see; see `docs/glossary.md`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use lb_common::cache::Chooser;
use lb_common::layout::{OUTER_LEN, UDP_LEN};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A layer-4 protocol that a service can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// The protocol number of IPv4 and IPv6 (IANA).
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// What identifies a service: address, port (0: every port of the address) and protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceKey {
    pub address: IpAddr,
    pub port: u16,
    pub protocol: Protocol,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{}",
            SocketAddr::new(self.address, self.port),
            self.protocol
        )
    }
}

/// What identifies a backend: its service, its address and its port (0: the port of the packet).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BackendId {
    pub service: ServiceKey,
    pub address: IpAddr,
    pub port: u16,
}

impl fmt::Display for BackendId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {}",
            SocketAddr::new(self.address, self.port),
            self.service
        )
    }
}

/// How packets reach a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Forward {
    /// The destination MAC is rewritten; the backend is on the same layer 2 and holds the service address.
    #[serde(rename = "dsr-l2")]
    DsrL2,
    /// The packet is encapsulated: IPv4 in IPv4, IPv6 in IPv6 or IPv4 in IPv6 (RFC 2003, RFC 2473).
    #[serde(rename = "dsr-ipip")]
    DsrIpip,
    /// The same behind a UDP header (GUE, variant 1).
    #[serde(rename = "dsr-gue")]
    DsrGue,
    /// The destination becomes the backend; its answers come back by way of the load balancer.
    #[serde(rename = "nat")]
    Nat,
    /// The source becomes an address of the load balancer as well.
    #[serde(rename = "full-nat")]
    FullNat,
}

impl Forward {
    /// Whether packets get an outer header.
    #[must_use]
    pub fn encapsulates(self) -> bool {
        matches!(self, Self::DsrIpip | Self::DsrGue)
    }

    /// Bytes that outer headers add on the way to a backend of this address.
    #[must_use]
    pub fn overhead(self, backend: IpAddr) -> u32 {
        let ip = if backend.is_ipv4() { 20 } else { OUTER_LEN as u32 };
        match self {
            Self::DsrL2 | Self::Nat | Self::FullNat => 0,
            Self::DsrIpip => ip,
            Self::DsrGue => ip + UDP_LEN as u32,
        }
    }

    /// Whether addresses are translated, both ways, so that every flow has an entry.
    #[must_use]
    pub fn translates(self) -> bool {
        matches!(self, Self::Nat | Self::FullNat)
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DsrL2 => "dsr-l2",
            Self::DsrIpip => "dsr-ipip",
            Self::DsrGue => "dsr-gue",
            Self::Nat => "nat",
            Self::FullNat => "full-nat",
        })
    }
}

/// How a service chooses the backend of a flow.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Scheduler {
    /// The owner of the flow's slot in a Maglev table.
    #[default]
    Maglev,
    /// The same by the client's address alone.
    Sh,
    /// One after the other.
    Rr,
    /// One after the other, by weight.
    Wrr,
    /// At random, by weight.
    Random,
    /// The one with the fewest flows.
    Lc,
    /// The one with the fewest flows for its weight.
    Wlc,
    /// Of two at random the one with fewer flows for its weight.
    Twos,
}

impl Scheduler {
    /// How the program chooses.
    #[must_use]
    pub fn chooser(self) -> Chooser {
        match self {
            Self::Maglev => Chooser::Flow,
            Self::Sh => Chooser::Source,
            Self::Rr | Self::Wrr => Chooser::Walk,
            Self::Random => Chooser::Random,
            Self::Lc => Chooser::Least,
            Self::Wlc => Chooser::LeastWeighted,
            Self::Twos => Chooser::Two,
        }
    }

    /// Whether its choice cannot be found again from a packet, so that every flow has to be remembered.
    #[must_use]
    pub fn is_free(self) -> bool {
        self.chooser().is_free()
    }
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Maglev => "maglev",
            Self::Sh => "sh",
            Self::Rr => "rr",
            Self::Wrr => "wrr",
            Self::Random => "random",
            Self::Lc => "lc",
            Self::Wlc => "wlc",
            Self::Twos => "twos",
        })
    }
}

/// What a service remembers of its flows.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Tracking {
    /// Nothing: a change of the table breaks the flows of the slots that move.
    None,
    /// The flows of slots that moved, while they may live elsewhere.
    #[default]
    Moved,
    /// Every flow.
    Full,
}

impl fmt::Display for Tracking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Moved => "moved",
            Self::Full => "full",
        })
    }
}

/// Operational state: what the checks say.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "UPPERCASE")]
pub enum OperState {
    #[default]
    Unknown,
    Down,
    Up,
}

impl fmt::Display for OperState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "UNKNOWN",
            Self::Down => "DOWN",
            Self::Up => "UP",
        })
    }
}

/// Admin state: what the operator says. Stored and shown apart from [`OperState`].
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "UPPERCASE")]
pub enum AdminState {
    /// Takes traffic when its checks say UP.
    #[default]
    Ready,
    /// Takes no new flows; checks go on.
    Drain,
    /// Takes no traffic at all; checks stop.
    Maint,
}

impl fmt::Display for AdminState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ready => "READY",
            Self::Drain => "DRAIN",
            Self::Maint => "MAINT",
        })
    }
}

/// The result of one check, by HAProxy's codes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum CheckCode {
    /// Not checked (no check configured, or checks stopped).
    #[default]
    Unk,
    /// No result yet.
    Ini,
    /// The probe could not be sent: no verdict about the backend.
    Sockerr,
    L4ok,
    L4tout,
    L4con,
    L6ok,
    L6tout,
    L6rsp,
    L7ok,
    L7tout,
    L7rsp,
    L7sts,
}

impl CheckCode {
    /// Every code, in the order of its index (`code as u8`).
    pub const ALL: [Self; 13] = [
        Self::Unk,
        Self::Ini,
        Self::Sockerr,
        Self::L4ok,
        Self::L4tout,
        Self::L4con,
        Self::L6ok,
        Self::L6tout,
        Self::L6rsp,
        Self::L7ok,
        Self::L7tout,
        Self::L7rsp,
        Self::L7sts,
    ];

    /// The code with this index, if there is one.
    #[must_use]
    pub fn from_index(index: u8) -> Option<Self> {
        Self::ALL.get(usize::from(index)).copied()
    }

    /// `Some(true)`: the backend passed, `Some(false)`: it failed, `None`: no verdict.
    #[must_use]
    pub fn passed(self) -> Option<bool> {
        match self {
            Self::L4ok | Self::L6ok | Self::L7ok => Some(true),
            Self::L4tout
            | Self::L4con
            | Self::L6tout
            | Self::L6rsp
            | Self::L7tout
            | Self::L7rsp
            | Self::L7sts => Some(false),
            Self::Unk | Self::Ini | Self::Sockerr => None,
        }
    }

    /// Whether nothing came back.
    #[must_use]
    pub fn silent(self) -> bool {
        matches!(self, Self::L4tout | Self::L6tout | Self::L7tout)
    }
}

impl fmt::Display for CheckCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unk => "UNK",
            Self::Ini => "INI",
            Self::Sockerr => "SOCKERR",
            Self::L4ok => "L4OK",
            Self::L4tout => "L4TOUT",
            Self::L4con => "L4CON",
            Self::L6ok => "L6OK",
            Self::L6tout => "L6TOUT",
            Self::L6rsp => "L6RSP",
            Self::L7ok => "L7OK",
            Self::L7tout => "L7TOUT",
            Self::L7rsp => "L7RSP",
            Self::L7sts => "L7STS",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_codes_come_back_from_their_index() {
        for code in CheckCode::ALL {
            assert_eq!(CheckCode::from_index(code as u8), Some(code));
        }
        assert_eq!(CheckCode::from_index(CheckCode::ALL.len() as u8), None);
    }
}
