//! `xlb confirm`.

use clap::Args;

use super::outcome::{Context, Outcome};
use super::{block_on, done};

/// Keep the program attached that `xlb agent --attach-confirm` would detach again.
#[derive(Debug, Args)]
pub(super) struct Arguments {}

pub(super) fn run(_: &Arguments, context: &Context) -> anyhow::Result<Outcome> {
    let answer = block_on(async { Ok(context.client.confirm().await?) })?;
    done::show(&answer, context)
}
