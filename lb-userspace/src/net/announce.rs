//! Telling the neighbourhood of the service addresses.

use std::io;
use std::net::{IpAddr, Ipv6Addr};

/// Joins the solicited-node group of an address.
///
/// # Errors
/// Always, until it is written.
pub fn join_solicited_node(_: &str, _: Ipv6Addr) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Leaves it.
///
/// # Errors
/// Always, until it is written.
pub fn leave_solicited_node(_: &str, _: Ipv6Addr) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Sends gratuitous announcements.
///
/// # Errors
/// Always, until it is written.
pub fn announce(_: &str, _: [u8; 6], _: &[IpAddr]) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
