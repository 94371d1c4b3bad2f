//! `cargo xtask demo`: builds in release and becomes `xlb demo`.

use std::{os::unix::process::CommandExt, process::Command};

use anyhow::{Context, Result};

use crate::{
    run,
    setup::{self, Scope},
};

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Install what is missing without asking.
    #[arg(long)]
    yes: bool,
    /// Passed to the demo.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub fn run(options: &Options) -> Result<()> {
    setup::require_root("demo")?;
    setup::ensure(Scope::Demo, options.yes, "demo")?;
    run::succeed(run::cargo().args(["build", "--release", "-p", "lb-userspace", "--bins"]))?;

    // In our place, not below us: signals reach the demo, which cleans up after itself, directly.
    let program = run::target_folder()?.join("release/xlb");
    let error = Command::new(&program).arg("demo").args(&options.args).exec();
    Err(error).with_context(|| format!("cannot run {}", program.display()))
}
