//! A small network of namespaces with real servers and clients in it, and the real `xlb` in the middle: what the
//! demo, the end-to-end tests and the benchmarks share.
//!
//! ```text
//!   client ─┐                 ┌─ b1 (service addresses on lo)
//!           ├── switch (br0) ─┼─ b2
//!   lb ─────┘                 └─ b3
//! ```
//!
//! Everything made here is a guard that takes away what it made: when it is dropped, when its owner panics, and on
//! SIGINT and SIGTERM ([`cleanup`]). What a killed process could not remove, the next one sweeps up.
//!
//! Nothing of the agent or the command line uses this, so errors are `anyhow`'s, as in tests.

pub mod agent;
pub mod cleanup;
pub mod config;
pub mod flood;
pub mod flows;
pub mod ledger;
pub mod load;
pub mod measure;
pub mod netns;
pub mod network;
pub mod observe;
pub mod pass;
pub mod process;
pub mod serve;
pub mod server;
pub mod stage;
pub mod wait;
pub mod wire;
