//! The heart of user space: a pure function from configuration, states and next hops to what the maps must
//! hold. The agent's loop, `simulate` and the tests all call [`desired`].

mod desired;
pub mod eligible;
pub mod flap;
pub mod indices;
mod old_flows;
pub mod room;
pub mod since;
pub mod slow_start;
mod steer;
pub mod step;
mod verdict;

pub use desired::{
    BackendStatus, Desired, DesiredBackend, DesiredService, Earlier, HopView, Inputs, desired, owners,
};
pub use eligible::Why;
pub use old_flows::{OldFlows, keeps_old_flows};
pub use steer::{Steer, is_full};
