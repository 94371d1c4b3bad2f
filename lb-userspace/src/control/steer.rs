//! What a backend says of itself, through its agent check: kept apart from what checks found and operators ordered, and
//! joined with them here.

use super::BackendStatus;
use crate::model::{AdminState, OperState};

/// What an agent has said of its backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Steer {
    /// It is DOWN, whatever the checks say.
    pub down: bool,
    /// In force where the operator's is READY.
    pub admin: AdminState,
    /// Of the configured weight; in force where no operator set one.
    pub weight_percent: Option<u16>,
    /// It has as many connections as it says it takes: no new ones.
    pub full: bool,
}

impl Steer {
    /// Of a backend whose agent said nothing, or that has none.
    pub const NONE: Self = Self {
        down: false,
        admin: AdminState::Ready,
        weight_percent: None,
        full: false,
    };

    /// The same, but for how many connections there are.
    #[must_use]
    pub fn said(self) -> Self {
        Self { full: false, ..self }
    }
}

/// Whether a backend with so many connections is full, where it takes `limit` of them and `was` full or not. One that was
/// full takes new ones again when a tenth of them has ended.
#[must_use]
pub fn is_full(active: u64, limit: u32, was: bool) -> bool {
    let limit = u64::from(limit);
    let until = if was { limit - limit.div_ceil(10) } else { limit };
    active >= until.max(1) || limit == 0
}

impl BackendStatus {
    /// The operator's admin state where it is not READY, else the agent's.
    #[must_use]
    pub fn admin_in_force(&self) -> AdminState {
        match self.admin {
            AdminState::Ready => self.steer.admin,
            AdminState::Drain | AdminState::Maint => self.admin,
        }
    }

    /// The verdict of the checks, unless the agent says down.
    #[must_use]
    pub fn state_in_force(&self) -> OperState {
        match self.state {
            OperState::Up if self.steer.down => OperState::Down,
            state => state,
        }
    }

    /// The weight that an operator set, else the agent's share of the file's, rounded up so that a share of something is
    /// something, else the file's.
    #[must_use]
    pub fn weight_in_force(&self, file: u16) -> u16 {
        match (self.runtime_weight, self.steer.weight_percent) {
            (Some(weight), _) => weight,
            (None, Some(percent)) => {
                let weight = (u32::from(file) * u32::from(percent)).div_ceil(100);
                u16::try_from(weight).unwrap_or(u16::MAX)
            }
            (None, None) => file,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(admin: AdminState, steer: Steer) -> BackendStatus {
        BackendStatus {
            state: OperState::Up,
            admin,
            steer,
            ..BackendStatus::UNSEEN
        }
    }

    #[test]
    fn the_operator_wins() {
        use AdminState::{Drain, Maint, Ready};
        for agent in [Ready, Drain, Maint] {
            for operator in [Ready, Drain, Maint] {
                let steer = Steer {
                    admin: agent,
                    ..Steer::NONE
                };
                let expected = if operator == Ready { agent } else { operator };
                assert_eq!(status(operator, steer).admin_in_force(), expected);
            }
        }
    }

    #[test]
    fn a_full_backend_takes_new_connections_again_when_a_tenth_has_ended() {
        for (active, limit, was, full) in [
            (29, 30, false, false),
            (30, 30, false, true),
            (29, 30, true, true),
            (27, 30, true, true),
            (26, 30, true, false),
            (1, 1, false, true),
            (0, 1, true, false),
            (0, 0, false, true),
            (5, 0, true, true),
        ] {
            assert_eq!(is_full(active, limit, was), full, "{active} of {limit}, {was}");
        }
    }

    #[test]
    fn an_agent_takes_down_and_never_up() {
        for state in [OperState::Unknown, OperState::Down, OperState::Up] {
            for down in [false, true] {
                let status = BackendStatus {
                    state,
                    steer: Steer { down, ..Steer::NONE },
                    ..BackendStatus::UNSEEN
                };
                let expected = match (state, down) {
                    (OperState::Up, true) => OperState::Down,
                    (state, _) => state,
                };
                assert_eq!(status.state_in_force(), expected);
            }
        }
    }

    #[test]
    fn a_percentage_is_of_the_files_weight_unless_an_operator_set_one() {
        for (file, percent, set, weight) in [
            (10, None, None, 10),
            (10, Some(75), None, 8),
            (10, Some(0), None, 0),
            (1, Some(1), None, 1),
            (0, Some(100), None, 0),
            (60_000, Some(200), None, u16::MAX),
            (10, Some(75), Some(3), 3),
        ] {
            let status = BackendStatus {
                runtime_weight: set,
                steer: Steer {
                    weight_percent: percent,
                    ..Steer::NONE
                },
                ..BackendStatus::UNSEEN
            };
            assert_eq!(status.weight_in_force(file), weight, "{file} {percent:?} {set:?}");
        }
    }
}
