//! `cargo xtask build`: the toolchain's set-up, then `cargo build`.

use anyhow::Result;

use crate::{
    run,
    setup::{self, Scope},
};

#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Options {
    /// Build with optimisations.
    #[arg(long)]
    release: bool,
    /// Install what is missing without asking.
    #[arg(long)]
    yes: bool,
}

pub fn run(options: Options) -> Result<()> {
    setup::ensure(Scope::Toolchain, options.yes, "build")?;
    let mut cargo = run::cargo();
    cargo.arg("build");
    if options.release {
        cargo.arg("--release");
    }
    run::succeed(&mut cargo)
}
