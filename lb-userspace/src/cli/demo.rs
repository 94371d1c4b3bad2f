//! `xlb demo`, and what it starts itself as.

use anyhow::bail;

use super::outcome::Outcome;
use crate::demo;
use crate::lab::serve;

pub(super) use crate::demo::Options as Arguments;
pub(super) use crate::lab::serve::Options as Server;

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<Outcome> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the demo makes network namespaces and loads XDP programs: run it as root");
    }
    let kept = demo::run(arguments)?;
    Ok(Outcome::done("").with_code(u8::from(!kept)))
}

/// Serves until it is killed.
pub(super) fn serve(arguments: &Server) -> anyhow::Result<Outcome> {
    super::block_on(serve::run(arguments))?;
    Ok(Outcome::done(""))
}
