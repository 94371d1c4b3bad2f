//! What can be done to the stage, by a key or by the script.

use std::thread::sleep;
use std::time::Duration;

use crate::lab::stage::Stage;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Kill(usize),
    Silence(usize),
    Drain(usize),
    /// Undoes any of those above.
    Ready(usize),
    Add,
    /// Takes the next of [`WEIGHTS`].
    Weight(usize),
    KillAgent,
}

/// The weights that a key goes through; 1 is the configuration's.
pub(super) const WEIGHTS: [u16; 4] = [1, 3, 10, 0];
/// How long there is no agent: long enough to see that nothing needs it.
const WITHOUT_AGENT: Duration = Duration::from_secs(3);

/// What was done to the backends so far, beside what the agent knows.
#[derive(Clone, Debug, Default)]
pub(super) struct Fates {
    pub killed: Vec<usize>,
    pub silent: Vec<usize>,
    pub weights: Vec<(usize, u16)>,
}

impl Fates {
    pub fn weight(&self, backend: usize) -> u16 {
        let found = self.weights.iter().find(|(of, _)| *of == backend);
        found.map_or(WEIGHTS[0], |(_, weight)| *weight)
    }
}

impl Action {
    /// Does it, and says what was done.
    pub fn perform(self, stage: &mut Stage, fates: &mut Fates) -> anyhow::Result<String> {
        let name = |stage: &Stage, backend| stage.name(backend).to_string();
        Ok(match self {
            Self::Kill(backend) if fates.killed.contains(&backend) => {
                format!("{} is dead already", name(stage, backend))
            }
            Self::Kill(backend) => {
                fates.killed.push(backend);
                stage.kill(backend)?;
                format!(
                    "{}: server killed, connections to it are reset",
                    name(stage, backend)
                )
            }
            Self::Silence(backend) if fates.silent.contains(&backend) => {
                format!("{} is silent already", name(stage, backend))
            }
            Self::Silence(backend) => {
                fates.silent.push(backend);
                stage.cut(backend)?;
                format!("{}: cable pulled, nothing comes back", name(stage, backend))
            }
            Self::Drain(backend) => {
                stage.order("drain", backend)?;
                format!(
                    "{}: drained, keeps its flows and gets no new ones",
                    name(stage, backend)
                )
            }
            Self::Ready(backend) => {
                if take(&mut fates.killed, backend) {
                    stage.revive(backend)?;
                }
                if take(&mut fates.silent, backend) {
                    stage.mend(backend)?;
                }
                stage.order("ready", backend)?;
                format!("{}: READY", name(stage, backend))
            }
            Self::Add => {
                let members = stage.members();
                let spare = (0..stage.lab.backends.len()).find(|backend| !members.contains(backend));
                match spare {
                    Some(backend) => {
                        stage.add(backend)?;
                        format!("{}: added", name(stage, backend))
                    }
                    None => "no backend is left to add".into(),
                }
            }
            Self::Weight(backend) => {
                let at = WEIGHTS.iter().position(|weight| *weight == fates.weight(backend));
                let weight = WEIGHTS[(at.unwrap_or(0) + 1) % WEIGHTS.len()];
                stage.set_weight(backend, &weight.to_string())?;
                fates.weights.retain(|(of, _)| *of != backend);
                fates.weights.push((backend, weight));
                format!("{}: weight {weight}", name(stage, backend))
            }
            Self::KillAgent => {
                stage.kill_agent()?;
                sleep(WITHOUT_AGENT);
                stage.start_agent()?;
                format!(
                    "agent: SIGKILL, and started again {} s later; packets went on",
                    WITHOUT_AGENT.as_secs()
                )
            }
        })
    }
}

fn take(list: &mut Vec<usize>, backend: usize) -> bool {
    let before = list.len();
    list.retain(|other| *other != backend);
    list.len() < before
}
