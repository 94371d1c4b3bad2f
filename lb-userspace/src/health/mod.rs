//! Health checks: who is UP.
//!
//! ```text
//!  set_targets ──► prober ──► probe ──► tcp, http ──► the backend
//!                    │  ▲
//!           result   ▼  │  state, time of the next probe
//!                  machine
//!                    │
//!                    └──► Report
//! ```
//!
//! [`prober`] gives each target a task that sleeps until its next probe; [`probe`] is one probe, made by
//! [`tcp`] or [`http`]; [`machine`] decides, without I/O and without a clock, what a result means and when
//! the next probe is due.

pub mod http;
pub mod machine;
pub mod probe;
pub mod prober;
mod spec;
pub mod tcp;

pub use http::{HttpCheck, InvalidHttpCheck};
pub use machine::{Machine, Policy};
pub use probe::{ProbeResult, Subject};
pub use prober::{Prober, Report};
pub use spec::{CheckKind, CheckSpec, Target};
