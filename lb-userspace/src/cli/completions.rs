//! `xlb completions`.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Cli;
use super::outcome::Outcome;

/// Print a completion script for a shell.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  xlb completions bash > /etc/bash_completion.d/xlb
  xlb completions zsh > /usr/local/share/zsh/site-functions/_xlb
  xlb completions fish > /etc/fish/completions/xlb.fish")]
pub(super) struct Arguments {
    /// The shell.
    shell: Shell,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<Outcome> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "xlb", &mut script);
    Ok(Outcome::done(String::from_utf8(script)?))
}
