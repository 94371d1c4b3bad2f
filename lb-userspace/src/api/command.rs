//! What the API asks of the agent's loop.

use std::collections::BTreeMap;

use tokio::sync::oneshot;

use crate::api::types::{BackendOrder, Done, Plan, PlanOrder, Stats, Status};
use crate::observe::metrics::Measured;

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such service or backend.
    NotFound(String),
    /// It would leave a service without a serving backend, or does not go together with something else.
    Conflict(String),
    /// The configuration is bad; one fault a line.
    BadConfig { summary: String, faults: Vec<String> },
    /// The kernel or the file system refused.
    Failed(String),
}

/// Where an answer goes.
pub type Reply<T> = oneshot::Sender<Result<T, Refusal>>;

/// One request.
#[derive(Debug)]
pub enum Command {
    Status(Reply<Status>),
    Stats(Reply<Stats>),
    /// For a scrape of the metrics.
    Measure(Reply<Measured>),
    Reload(Reply<Done>),
    Plan(PlanOrder, Reply<Planned>),
    Confirm(Reply<Done>),
    /// Takes everything away and ends the agent.
    Detach(Reply<Done>),
    Backend(BackendOrder, Reply<Done>),
}

/// A plan, as far as the loop can make it.
#[derive(Debug)]
pub struct Planned {
    pub plan: Plan,
    /// For services whose flows are known by slot, by name: the index, and for each slot whether it would move.
    pub moving: BTreeMap<String, (u32, Vec<bool>)>,
}
