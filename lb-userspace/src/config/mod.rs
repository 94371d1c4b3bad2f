//! The configuration: one TOML file, read whole or refused whole.
//!
//! ```text
//! text -> toml (syntax) -> Walk over the tables -> readers of values -> rules between them -> Config
//!                               |                        |                     |
//!                               +------ Report: every fault, with line and column ---> Faults
//! ```
//!
//! `keys` lists every key once; the walk, the bounds of values and the JSON schema all come from that
//! list. Nothing here asks the machine anything: what a configuration has to know about it is handed
//! in as a [`Machine`].

mod access;
mod agent_check;
mod backend;
mod check;
mod example;
mod fault;
mod keys;
mod limit;
mod machine;
mod nearest;
mod outer;
mod parse;
mod pool;
mod pools;
mod quic;
mod schema;
mod service;
mod shape;
mod snat;
mod types;
mod value;
mod walk;
mod warnings;

#[cfg(test)]
mod tests;

pub use access::MAX_PREFIXES;
pub use example::example;
pub use fault::{Fault, Faults, FaultsInFile, LoadError, MAX_FAULTS};
pub use machine::Machine;
pub use parse::MAX_CONFIG_BYTES;
pub use quic::MAX_IDS as MAX_QUIC_IDS;
pub use schema::schema;

pub use types::{
    Access, AccessList, Agent, AgentCheck, Announce, Backend, BackupMode, Check, CheckKind, Config, DnsCheck,
    EntryRates, ExecCheck, GrpcCheck, HashKey, Header, HttpCheck, HttpMethod, Limits, OnAllDown, OnDown,
    OnStop, Pattern, PoolRules, Probe, QueryType, QuicId, Rcode, Require, Role, Service, Snat, StatusRange,
    StatusSet, TlsCheck, UdpCheck, Via, Witness, XdpMode, describe_access_change,
};
