//! What the XDP programs and user space share: the layout of every map, the hash that spreads flows,
//! the arithmetic of checksums, and the reasons a packet is counted by.
//!
//! Everything here is pure and tested on the host. Multi-byte fields that come from or go into packets
//! are kept in network byte order and hidden behind accessors; all others are in the machine's order.

#![cfg_attr(not(test), no_std)]

pub mod cache;
pub mod checksum;
pub mod client;
pub mod decap;
pub mod ecn;
pub mod hash;
pub mod hint;
pub mod layout;
pub mod limit;
pub mod losses;
pub mod mss;
pub mod nat;
pub mod quic;
pub mod reason;
pub mod reset;
pub mod rule;
pub mod suspect;
