//! `cargo xtask fuzz`: random packets through the loaded program and its model, for as long as is wanted.

use anyhow::Result;

use crate::{
    run,
    setup::{self, Scope},
};

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// How long.
    #[arg(long, value_name = "N", default_value_t = 10)]
    minutes: u32,
    /// The first seed, in hexadecimal digits, to repeat a run; random when absent.
    #[arg(long, value_name = "SEED")]
    seed: Option<String>,
    /// Install what is missing without asking.
    #[arg(long)]
    yes: bool,
}

pub fn run(options: &Options) -> Result<()> {
    setup::require_root("fuzz")?;
    setup::ensure(Scope::Toolchain, options.yes, "fuzz")?;
    let mut cargo = run::cargo();
    cargo.args(["test", "-p", "lb-tests", "--test", "packets"]);
    cargo.args(["fuzz::longer", "--", "--ignored", "--nocapture"]);
    cargo.env("XLB_FUZZ_MINUTES", options.minutes.to_string());
    if let Some(seed) = &options.seed {
        cargo.env("XLB_FUZZ_SEED", seed);
    }
    run::succeed(&mut cargo)
}
