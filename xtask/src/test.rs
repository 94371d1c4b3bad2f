//! `cargo xtask test`: the set-up, then every test of the workspace.
//!
//! The end-to-end tests (crate `lb-tests`) come last and in a run of their own: they start the built `xlb`, and
//! each of them fills a network of namespaces with traffic, so only a few run side by side.

use std::{env, process::Command};

use anyhow::{Result, bail};

use crate::{
    run,
    setup::{self, Scope},
};

/// Tells the tests to leave out what needs root; each such test prints what it left out.
const UNPRIVILEGED: &str = "XLB_TEST_UNPRIVILEGED";

const END_TO_END_THREADS: &str = "2";

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Install what is missing without asking.
    #[arg(long)]
    yes: bool,
    /// Run only what needs no root, and say what was left out.
    #[arg(long)]
    unprivileged: bool,
    /// Passed to `cargo test`: `-p lb-userspace`, a part of a test's name, `-- --nocapture`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub fn run(options: &Options) -> Result<()> {
    if options.unprivileged {
        setup::ensure(Scope::Toolchain, options.yes, "test --unprivileged")?;
    } else {
        setup::require_root("test")?;
        setup::ensure(Scope::Everything, options.yes, "test")?;
    }

    let mut failed = Vec::new();
    for round in rounds(&options.args) {
        if round.needs_binaries {
            run::succeed(run::cargo().args(["build", "-p", "lb-userspace", "--bins"]))?;
        }
        let mut cargo = run::cargo();
        cargo.args(&round.args);
        if options.unprivileged {
            // The runner hides what a passing test prints, and with it the reasons of those left out.
            let runner = ["--", "--show-output"];
            cargo.args(&runner[usize::from(round.args.iter().any(|arg| arg == "--"))..]);
            cargo.env(UNPRIVILEGED, "1");
        } else {
            cargo.env_remove(UNPRIVILEGED);
        }
        if round.needs_binaries {
            limit_threads(&mut cargo);
        }
        if let Err(error) = run::succeed(&mut cargo) {
            failed.push(error.to_string());
        }
    }

    if options.unprivileged {
        eprintln!(
            "left out (--unprivileged): the tests that load XDP programs or make network namespaces; each says so \
             in its output above.\nall tests: {}",
            setup::as_root("test")
        );
    }
    if !failed.is_empty() {
        bail!("{}", failed.join("; "));
    }
    Ok(())
}

/// One call of `cargo test`.
#[derive(Debug, PartialEq, Eq)]
struct Round {
    args: Vec<String>,
    /// It may hold end-to-end tests: they call the built `xlb`.
    needs_binaries: bool,
}

/// The calls that run everything, or what the user's `args` choose of it. Each runs to its end even when a test
/// fails, and so does the one after it.
fn rounds(args: &[String]) -> Vec<Round> {
    let round = |selection: &[&str], needs_binaries| {
        let mut all = vec!["test".to_owned(), "--no-fail-fast".to_owned()];
        all.extend(selection.iter().map(|&word| word.to_owned()));
        all.extend_from_slice(args);
        Round {
            args: all,
            needs_binaries,
        }
    };
    if chooses_packages(args) {
        return vec![round(&[], true)];
    }
    vec![
        round(&["--workspace", "--exclude", "lb-tests"], false),
        round(&["-p", "lb-tests"], true),
    ]
}

/// True where cargo itself is told which packages to test.
fn chooses_packages(args: &[String]) -> bool {
    args.iter().take_while(|arg| *arg != "--").any(|arg| {
        arg.starts_with("-p")
            || arg.starts_with("--package")
            || arg.starts_with("--manifest-path")
            || matches!(arg.as_str(), "--workspace" | "--all")
    })
}

/// An environment variable and no `--test-threads`, so that the user's own `-- --test-threads` still counts.
fn limit_threads(cargo: &mut Command) {
    const VARIABLE: &str = "RUST_TEST_THREADS";
    if env::var_os(VARIABLE).is_none() {
        cargo.env(VARIABLE, END_TO_END_THREADS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(args: &[&str]) -> Vec<(String, bool)> {
        let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        rounds(&args)
            .into_iter()
            .map(|round| (round.args.join(" "), round.needs_binaries))
            .collect()
    }

    #[test]
    fn without_arguments_every_package_is_tested_the_end_to_end_tests_last() {
        assert_eq!(
            lines(&[]),
            [
                (
                    "test --no-fail-fast --workspace --exclude lb-tests".to_owned(),
                    false
                ),
                ("test --no-fail-fast -p lb-tests".to_owned(), true),
            ]
        );
    }

    #[test]
    fn a_name_or_an_argument_of_the_runner_goes_to_both_runs() {
        let both = lines(&["maglev", "--", "-p", "--nocapture"]);
        assert_eq!(both.len(), 2);
        assert!(
            both.iter()
                .all(|(line, _)| line.ends_with(" maglev -- -p --nocapture"))
        );
    }

    #[test]
    fn chosen_packages_replace_the_choice_of_all() {
        for package in [
            &["-p", "lb-common"][..],
            &["-plb-common"],
            &["--package=lb-common"],
        ] {
            assert_eq!(
                lines(package),
                [(format!("test --no-fail-fast {}", package.join(" ")), true)]
            );
        }
    }
}
