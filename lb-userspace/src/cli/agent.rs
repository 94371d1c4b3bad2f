//! `xlb agent`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::CONFIG;
use super::outcome::Outcome;
use crate::agent::{self, AgentOptions};

/// Enough: packets never come here, and probes mostly wait.
const WORKERS: usize = 2;

/// Run the agent: attach, check the backends, keep the kernel's tables right.
///
/// It validates the configuration, loads the program, runs a first full round of checks, attaches, and answers the
/// other verbs. When it stops or is killed, forwarding goes on (on_stop in the configuration says otherwise), and the
/// next agent takes over what it finds. SIGHUP reloads the configuration; so does `xlb reload`, which also tells
/// whether it was accepted. Needs root, or CAP_BPF, CAP_NET_ADMIN, CAP_NET_RAW and CAP_PERFMON.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  xlb agent                        with /etc/xlb/xlb.toml
  xlb agent --config lab.toml -v   say more
  xlb agent --attach-confirm 60s   over ssh: detach again unless `xlb confirm`
                                   comes within a minute
  xlb agent --trace-drops 100      log 100 dropped packets with their reasons")]
pub(super) struct Arguments {
    /// Configuration file; `xlb config example` prints one.
    #[arg(long, short, value_name = "FILE", default_value = CONFIG)]
    config: PathBuf,
    /// Log the next N dropped packets with their reasons.
    #[arg(long, value_name = "N")]
    trace_drops: Option<u64>,
    /// Detach again unless `xlb confirm` comes within this time after attaching, such as 60s.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    attach_confirm: Option<Duration>,
}

pub(super) fn run(arguments: Arguments) -> anyhow::Result<Outcome> {
    let Arguments {
        config,
        trace_drops,
        attach_confirm,
    } = arguments;
    let options = AgentOptions {
        config,
        trace_drops,
        attach_confirm,
    };
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()?
        .block_on(agent::run(options))?;
    Ok(Outcome::done(""))
}
