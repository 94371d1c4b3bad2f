//! What the result of a probe changes of what is known of a backend: its operational state, and nothing that an operator
//! or its agent said.

use std::time::Instant;

use super::BackendStatus;
use crate::model::{AdminState, OperState};

impl BackendStatus {
    /// Whether it is probed: in MAINT, an operator's or its agent's, it is not.
    #[must_use]
    pub fn is_probed(&self) -> bool {
        self.admin_in_force() != AdminState::Maint
    }

    /// Its checks say `state` at `now`. `starting`: the agent is, and what is UP then does not start with it.
    pub fn found(&mut self, state: OperState, now: Instant, starting: bool) {
        let before = std::mem::replace(&mut self.state, state);
        self.ever_up |= state == OperState::Up;
        match (before, state) {
            (OperState::Up | OperState::Unknown, OperState::Down) => {
                (self.down_since, self.up_since) = (Some(now), None);
            }
            (OperState::Down | OperState::Unknown, OperState::Up) => {
                self.down_since = None;
                self.up_since = (!starting).then_some(now);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::control::Steer;

    fn any_state() -> impl Strategy<Value = OperState> {
        prop_oneof![
            Just(OperState::Unknown),
            Just(OperState::Down),
            Just(OperState::Up)
        ]
    }

    fn any_admin() -> impl Strategy<Value = AdminState> {
        prop_oneof![
            Just(AdminState::Ready),
            Just(AdminState::Drain),
            Just(AdminState::Maint)
        ]
    }

    proptest! {
        /// Whatever probes say, a backend in DRAIN stays there, one in MAINT too, and weights are what was ordered.
        #[test]
        fn probes_change_no_order(
            admin in any_admin(),
            agent in any_admin(),
            weight in proptest::option::of(0..100_u16),
            percent in proptest::option::of(0..200_u16),
            results in proptest::collection::vec((any_state(), any::<bool>()), 0..40),
        ) {
            let steer = Steer {
                admin: agent,
                weight_percent: percent,
                ..Steer::NONE
            };
            let ordered = BackendStatus {
                admin,
                runtime_weight: weight,
                steer,
                ..BackendStatus::UNSEEN
            };
            let mut status = ordered;
            let mut ever_up = false;
            for (state, starting) in results {
                status.found(state, Instant::now(), starting);
                ever_up |= state == OperState::Up;
                prop_assert_eq!(status.admin_in_force(), ordered.admin_in_force());
                prop_assert_eq!(status.weight_in_force(10), ordered.weight_in_force(10));
                prop_assert_eq!((status.admin, status.steer), (admin, steer));
                prop_assert_eq!(status.is_probed(), ordered.is_probed());
                prop_assert_eq!((status.state, status.ever_up), (state, ever_up));
                prop_assert!(status.state != OperState::Down || status.up_since.is_none());
                prop_assert!(status.state != OperState::Up || status.down_since.is_none());
            }
        }

        #[test]
        fn nobody_in_maintenance_is_probed(operator in any_admin(), agent in any_admin(), state in any_state()) {
            let status = BackendStatus {
                state,
                admin: operator,
                steer: Steer { admin: agent, ..Steer::NONE },
                ..BackendStatus::UNSEEN
            };
            let maint = operator == AdminState::Maint
                || operator == AdminState::Ready && agent == AdminState::Maint;
            prop_assert_eq!(status.is_probed(), !maint);
        }
    }
}
