//! `cargo xtask`: set-up, build, test, fuzzing, demo and benchmarks of xlb, one command each.
//!
//! A verb does all the set-up that it needs itself, so a fresh machine needs no other command first.

mod bench;
mod build;
mod demo;
mod fuzz;
mod kernels;
mod run;
mod setup;
mod test;
#[expect(dead_code, reason = "the build script of lb-userspace uses more of it")]
mod toolchain;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Set-up, build, test, demo and benchmarks of xlb, one command each.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Install what the other verbs need: a compiler and linker for BPF, the programs that the tests call.
    Setup(setup::Options),
    /// Build xlb, with the XDP programs in it.
    Build(build::Options),
    /// Run all tests.
    Test(test::Options),
    /// Show xlb at work in a small network of namespaces.
    Demo(demo::Options),
    /// Random packets through the loaded program and its model, for a time.
    Fuzz(fuzz::Options),
    /// Test on other kernels, each in an emulated machine.
    Kernels(kernels::Options),
    /// Measure, beside the floor and the alternatives where there are any.
    Bench(bench::Options),
}

fn main() -> ExitCode {
    let done = match Cli::parse().verb {
        Verb::Setup(options) => setup::run(options),
        Verb::Build(options) => build::run(options),
        Verb::Test(options) => test::run(&options),
        Verb::Demo(options) => demo::run(&options),
        Verb::Fuzz(options) => fuzz::run(&options),
        Verb::Kernels(options) => kernels::run(&options),
        Verb::Bench(options) => bench::run(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
