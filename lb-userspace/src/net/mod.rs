//! What xlb asks of the kernel's network configuration, and what it watches there.
//!
//! [`resolver`] answers the question of the data path: for each backend, which interface and which
//! MAC addresses does a packet leave with ([`NextHop`]), and it keeps that answer true while routes,
//! links and neighbours change. The other modules answer the questions of the agent and of
//! `xlb doctor`: which interfaces are there and how are they doing ([`link`]), and so on.
//!
//! Everything here happens in the network namespace of the calling thread; the sockets stay in the
//! namespace they were opened in. The worker threads of a runtime inherit the namespace of the
//! thread that started it. Apart from neighbour entries, which the kernel makes and forgets by
//! itself, nothing is changed unless a function says so.

pub mod address;
pub mod announce;
pub mod doctor;
pub mod driver_counts;
pub mod ethtool;
mod ioctl;
pub mod link;
pub mod neighbor;
pub mod netlink;
pub mod nexthop;
pub mod pairs;
pub mod path_mtu;
pub mod reached;
pub mod resolver;
pub mod route;
pub mod sysctl;
#[cfg(test)]
pub(crate) mod testing;
pub mod xdp_features;

pub use nexthop::{NextHop, NextHops, Unresolved};
pub use resolver::Resolver;

use std::fmt;

/// An Ethernet address, in the order it has on the wire.
pub type MacAddress = [u8; 6];

/// Writes an Ethernet address the way `ip link` does.
pub(crate) struct DisplayMac(pub MacAddress);

impl fmt::Display for DisplayMac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}
