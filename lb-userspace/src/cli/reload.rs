//! `xlb reload`.

use clap::Args;

use super::outcome::{Context, Outcome};
use super::{block_on, done};

/// Make the agent read its configuration again, and say what changed.
///
/// Waits until new backends were checked and the tables are in force. A bad configuration is refused whole, with every
/// fault; the running one goes on.
#[derive(Debug, Args)]
pub(super) struct Arguments {}

pub(super) fn run(_: &Arguments, context: &Context) -> anyhow::Result<Outcome> {
    let answer = block_on(async { Ok(context.client.reload().await?) })?;
    done::show_with_slots(&answer, context)
}
