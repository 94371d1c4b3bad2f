//! What becomes of the flows that a backend has, when it takes no new ones.
//!
//! A DOWN backend's host may still answer: it refuses connections, or its health page says 503. Then its own
//! kernel knows best which of its flows still live, and they stay. A host that is silent leaves them hanging for
//! minutes: they move to the owner of their slot, whose reset ends them at once.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::BackendStatus;
use crate::config::OnDown;
use crate::model::{AdminState, OperState, Protocol};

/// What happens to the flows a backend has.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum OldFlows {
    /// They stay with it.
    #[default]
    Keep,
    /// They go to the owner of their slot.
    Move,
    /// They are reset in the service's name.
    Reset,
}

/// What happens to the flows of a backend in this state. One that was removed from the configuration has no
/// status: its flows move.
///
/// UDP knows no reset, and nothing of its flows tells the client that they are dead: unless the file says
/// `keep`, those of a DOWN backend always move.
#[must_use]
pub fn keeps_old_flows(status: &BackendStatus, on_down: OnDown, protocol: Protocol) -> OldFlows {
    match (status.admin_in_force(), status.state_in_force()) {
        (AdminState::Maint, _) => return OldFlows::Move,
        (AdminState::Ready | AdminState::Drain, OperState::Up | OperState::Unknown) => {
            return OldFlows::Keep;
        }
        (AdminState::Ready | AdminState::Drain, OperState::Down) => {}
    }
    match (on_down, protocol) {
        (OnDown::Keep, _) => OldFlows::Keep,
        (OnDown::Rehash, _) | (OnDown::Auto | OnDown::Reset, Protocol::Udp) => OldFlows::Move,
        (OnDown::Reset, Protocol::Tcp) => OldFlows::Reset,
        (OnDown::Auto, Protocol::Tcp) if status.host_silent => OldFlows::Move,
        (OnDown::Auto, Protocol::Tcp) => OldFlows::Keep,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every admin state, state, sign of the host, order and protocol.
    #[test]
    fn every_case() {
        use AdminState::{Drain, Maint, Ready};
        use OperState::{Down, Unknown, Up};
        for admin in [Ready, Drain, Maint] {
            for state in [Up, Unknown, Down] {
                for host_silent in [false, true] {
                    for on_down in [OnDown::Auto, OnDown::Rehash, OnDown::Keep, OnDown::Reset] {
                        for protocol in [Protocol::Tcp, Protocol::Udp] {
                            let status = BackendStatus {
                                state,
                                admin,
                                host_silent,
                                ..BackendStatus::default()
                            };
                            let udp = protocol == Protocol::Udp;
                            let expected = match (admin, state, on_down) {
                                (Maint, _, _) => OldFlows::Move,
                                (_, Up | Unknown, _) | (_, Down, OnDown::Keep) => OldFlows::Keep,
                                (_, Down, OnDown::Rehash) => OldFlows::Move,
                                (_, Down, _) if udp => OldFlows::Move,
                                (_, Down, OnDown::Reset) => OldFlows::Reset,
                                (_, Down, OnDown::Auto) if host_silent => OldFlows::Move,
                                (_, Down, OnDown::Auto) => OldFlows::Keep,
                            };
                            assert_eq!(
                                keeps_old_flows(&status, on_down, protocol),
                                expected,
                                "{status:?} {on_down:?} {protocol}"
                            );
                        }
                    }
                }
            }
        }
    }
}
