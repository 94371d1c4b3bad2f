//! `cargo xtask setup`, and the set-up part of the other verbs.
//!
//! Look at the machine ([`machine`]), plan what is to be done ([`plan`]; pure), show it, ask, do it
//! ([`install`]), and look again: what is missing then is named with the command that would install it.

mod install;
mod machine;
mod plan;

use std::{
    env,
    io::{self, BufRead, IsTerminal, Write},
    path::PathBuf,
    time::Instant,
};

use anyhow::{Result, bail};

use crate::run;
use machine::Findings;
use plan::Plan;

/// How much of the set-up a verb needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The compiler and the linker for BPF.
    Toolchain,
    /// The toolchain, and a file system to pin programs and maps in.
    Demo,
    /// All of that, and the programs that the tests call.
    Everything,
}

#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Options {
    /// Install without asking.
    #[arg(long)]
    yes: bool,
}

pub fn run(options: Options) -> Result<()> {
    require_root("setup")?;
    let started = Instant::now();
    let found = ensure(Scope::Everything, options.yes, "setup")?;
    if found == Outcome::NothingToDo {
        println!(
            "everything is in place (checked in {} ms)",
            started.elapsed().as_millis()
        );
    } else {
        println!("everything is in place");
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    NothingToDo,
    Installed,
}

/// Sees to it that everything in `scope` is there. `verb` is what the user called, for the texts.
///
/// # Errors
/// When something is missing that cannot be installed, or that the user does not want installed.
pub fn ensure(scope: Scope, yes: bool, verb: &str) -> Result<Outcome> {
    provide(|| machine::look(scope), yes, verb)
}

/// Sees to it that machines can be emulated.
///
/// # Errors
/// As [`ensure`].
pub fn ensure_machines(yes: bool) -> Result<Outcome> {
    provide(|| Ok(machine::missing(&machine::MACHINES)), yes, "kernels")
}

/// Installs what `look` finds missing.
fn provide(look: impl Fn() -> Result<Findings>, yes: bool, verb: &str) -> Result<Outcome> {
    let plan = Plan::new(&look()?);
    if plan.is_empty() {
        return Ok(Outcome::NothingToDo);
    }
    eprint!("{plan}");
    if plan.needs_root() && !run::is_root() {
        bail!("installing this needs root: {}", as_root(verb));
    }
    if !plan.steps.is_empty() && !yes && !agreed()? {
        bail!("nothing installed; by hand:\n{}", plan.commands());
    }

    for step in &plan.steps {
        if let Err(error) = install::carry_out(step) {
            eprintln!("warning: {error:#}");
        }
        if install::interrupted() {
            bail!("interrupted");
        }
    }
    let rest = Plan::new(&look()?);
    if !rest.is_empty() {
        bail!(
            "still missing; these commands would install it:\n{}",
            rest.commands()
        );
    }
    Ok(Outcome::Installed)
}

/// Offers to install what benchmarks compare with. Without it they go on, and say what they leave out.
pub fn offer_alternatives(yes: bool) {
    let plan = Plan::new(&machine::missing(&machine::ALTERNATIVES));
    if plan.is_empty() {
        return;
    }
    eprint!("{plan}");
    let wanted = yes || agreed().unwrap_or(false);
    if plan.steps.is_empty() || !wanted {
        eprintln!("nothing installed: what is missing is left out of the comparison");
        return;
    }
    for step in &plan.steps {
        if let Err(error) = install::carry_out(step) {
            eprintln!("warning: {error:#}; what is missing is left out of the comparison");
        }
    }
}

/// # Errors
/// When we are not root; the text has the command that makes us root.
pub fn require_root(verb: &str) -> Result<()> {
    if run::is_root() {
        return Ok(());
    }
    let rest = match verb {
        "test" => "\nwithout root, only what needs none: cargo xtask test --unprivileged",
        _ => "",
    };
    bail!("this needs root: {}{rest}", as_root(verb))
}

/// How to call `verb` as root. Many a `sudo` searches only the system's folders, where rustup's cargo is not.
pub fn as_root(verb: &str) -> String {
    let cargo = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")))
        .map(|home| home.join("bin/cargo"))
        .filter(|cargo| cargo.exists());
    match cargo {
        Some(cargo) => format!(
            "sudo -E cargo xtask {verb}\n(where sudo does not find cargo: sudo -E {} xtask {verb})",
            cargo.display()
        ),
        None => format!("sudo -E cargo xtask {verb}"),
    }
}

/// Asks on a terminal. Where there is none, as in CI, nobody could answer: the answer is yes.
fn agreed() -> Result<bool> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return Ok(true);
    }
    eprint!("Go on? [Y/n] ");
    io::stderr().flush()?;
    let mut answer = String::new();
    // The end of input (ctrl-D) is no yes.
    let read_bytes = stdin.lock().read_line(&mut answer)?;
    Ok(read_bytes > 0 && is_yes(&answer))
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_ascii_lowercase().as_str(), "" | "y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enter_means_yes_and_a_word_not_known_means_no() {
        for yes in ["\n", "y\n", "Yes\n"] {
            assert!(is_yes(yes), "{yes:?}");
        }
        for no in ["n\n", "no\n", "what?\n"] {
            assert!(!is_yes(no), "{no:?}");
        }
    }
}
