//! What happened, kept and told: events, history, notifications, metrics.
//!
//! ```text
//!  every part of the agent ──emit──▶ bus ──┬─▶ GET /v1/events, `xlb events -w`
//!                                          ├─▶ notify: programs of the operator
//!                                          └─▶ archive ─▶ history: GET /v1/history, `xlb health history`
//!                                                      └▶ record: events.jsonl in state_dir
//!  verdict DOWN ─▶ table switched ─▶ incident: the first packet to those who took over ──emit──▶ bus
//!  scrape ─▶ metrics ─▶ the loop's knowledge, packet counters ─▶ OpenMetrics text
//! ```
//!
//! Nothing here can hold up a probe or a change of the tables: emitting is a push into a bounded ring, and
//! whoever follows too slowly is told how many events it missed.

pub mod archive;
pub mod bus;
pub mod event;
pub mod history;
pub mod incident;
pub mod metrics;
pub mod notify;
pub mod record;
pub mod trail;

pub use archive::Archive;
pub use bus::Bus;
pub use event::{Draft, Event, Kind, Timeline, Timestamp};
pub use trail::{Probe, Trail};
