//! What happened, kept and told: events, history, notifications, metrics.
//!
//! ```text
//!  every part of the agent ──emit──▶ bus ──┬─▶ GET /v1/events, `xlb events -w`
//!                                          └─▶ further followers
//! ```
//!
//! Nothing here can hold up a probe or a change of the tables: emitting is a push into a bounded ring, and
//! whoever follows too slowly is told how many events it missed.

pub mod bus;
pub mod event;

pub use bus::Bus;
pub use event::{Draft, Event, Kind, Timestamp};
