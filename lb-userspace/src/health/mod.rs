//! Health checks: who is UP.
//!
//! ```text
//!  set_targets ──► prober ──► probe ──► tcp, forward, http, udp, dns, icmp, grpc, exec ──► the backend
//!                    │  ▲
//!           result   ▼  │  state, time of the next probe
//!                  machine
//!                    │
//!                    └──► Report
//! ```
//!
//! [`prober`] gives each target a task that sleeps until its next probe; [`probe`] is one look, by one or several
//! of the checkers, a file each; [`machine`] decides, without I/O and without a clock, what a result means and when
//! the next probe is due.
//!
//! [`doubt`] says whether silence is believed.
//!
//! A checker never fails: what goes wrong is a result. It takes at most its time limit, reads at most a bounded part
//! of what it is answered, and gives the runtime back whenever it waits, so that no target delays the check of
//! another one.

pub mod agent_check;
mod dns;
pub mod doubt;
mod exec;
mod forward;
mod grpc;
pub mod http;
mod icmp;
pub mod machine;
pub mod presence;
pub mod probe;
pub mod prober;
pub(crate) mod socket;
mod spec;
pub mod suspicion;
mod tcp;
mod tls;
mod udp;
mod way;

pub use agent_check::{AgentProber, AgentReport, AgentTarget, Steering};
pub use forward::Forwarder;
pub use http::{HttpCheck, InvalidHttpCheck};
pub use machine::{Machine, Policy, Previous};
pub use probe::{Probe, ProbeResult, Subject};
pub use prober::{Prober, Report};
pub use spec::{CheckKind, CheckSpec, ProbeSpec, Target};
