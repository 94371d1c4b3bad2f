//! The real agent, a process in the load balancer's namespace.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output};
use std::sync::Arc;

use crate::api::types::Status;
use anyhow::{Context, bail, ensure};

use super::cleanup::{BPFFS, Cleanup, Folder, unique};
use super::config::Config;
use super::netns::Netns;
use super::process::{Process, binary};
use super::wait::{wait_for, wait_until};

/// An agent with folders and pins of its own, which go with the guard.
#[derive(Debug)]
pub struct Agent {
    process: Option<Process>,
    netns: Netns,
    folder: Arc<Folder>,
    pins: PinFolder,
}

/// A folder for pins: what is pinned below it goes with the guard.
#[derive(Debug)]
pub struct PinFolder {
    path: PathBuf,
    _cleanup: Cleanup,
}

impl PinFolder {
    #[must_use]
    pub fn new(what: &str) -> Self {
        let path = Path::new(BPFFS).join(unique(what));
        let gone = path.clone();
        let cleanup = Cleanup::new(move || {
            let _ = fs::remove_dir_all(gone);
        });
        Self {
            path,
            _cleanup: cleanup,
        }
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Agent {
    /// An agent that does not run yet.
    ///
    /// # Errors
    /// Where its folder cannot be made.
    pub fn new(netns: &Netns) -> anyhow::Result<Self> {
        let folder = Arc::new(Folder::new("agent")?);
        Ok(Self {
            process: None,
            netns: netns.clone(),
            folder,
            pins: PinFolder::new("pins"),
        })
    }

    /// One that runs, and forwards.
    ///
    /// # Errors
    /// Where it does not come up; with its log.
    pub fn running(netns: &Netns, config: &Config) -> anyhow::Result<Self> {
        let mut agent = Self::new(netns)?;
        agent.configure(config)?;
        agent.start()?;
        Ok(agent)
    }

    #[must_use]
    pub fn pin_dir(&self) -> &Path {
        self.pins.path()
    }

    /// Its configuration file.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.folder.file("xlb.toml")
    }

    /// The socket of its API.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.file("xlb.sock")
    }

    /// Where it keeps what it writes.
    #[must_use]
    pub fn folder(&self) -> &Arc<Folder> {
        &self.folder
    }

    /// Writes its configuration.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn configure(&self, config: &Config) -> anyhow::Result<()> {
        let text = config.text(self.folder.path(), self.pin_dir());
        fs::write(self.config_file(), text).context("the configuration")
    }

    /// Starts it and waits until it is attached everywhere.
    ///
    /// # Errors
    /// Where it ends, or is not ready in time; with its log.
    pub fn start(&mut self) -> anyhow::Result<()> {
        self.launch(&[])?;
        self.wait_attached()
    }

    /// Starts it without waiting for anything.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn launch(&mut self, arguments: &[&str]) -> anyhow::Result<&Process> {
        if let Some(process) = &self.process {
            ensure!(process.ended()?.is_some(), "the agent runs already");
        }
        let mut command = self.netns.command(binary("xlb")?);
        command
            .args(["agent", "--config"])
            .arg(self.config_file())
            .args(arguments);
        self.process = Some(Process::spawn("agent", &mut command, &self.folder)?);
        self.process()
    }

    /// The process of one that runs.
    ///
    /// # Errors
    /// Where it was stopped.
    pub fn process(&self) -> anyhow::Result<&Process> {
        self.process.as_ref().context("the agent does not run")
    }

    /// Waits until it is attached to all its interfaces.
    ///
    /// # Errors
    /// Where it ends or takes too long; with its log.
    pub fn wait_attached(&self) -> anyhow::Result<()> {
        let process = self.process()?;
        let waited = wait_for("the agent to be attached", || {
            if let Some(status) = process.ended()? {
                return Ok(Err(status));
            }
            let status = self.status()?;
            ensure!(
                status.agent.running && !status.interfaces.is_empty(),
                "it does not run yet"
            );
            for interface in &status.interfaces {
                ensure!(
                    interface.mode != "detached",
                    "{} is not attached to",
                    interface.name
                );
            }
            Ok(Ok(()))
        });
        match waited {
            Ok(Ok(())) => Ok(()),
            Ok(Err(status)) => bail!("the agent ended ({status}):\n{}", self.log()),
            Err(error) => bail!("{error:#}; the agent's log:\n{}", self.log()),
        }
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// Where it does not run.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.process.take().context("the agent does not run")?.kill()
    }

    /// Waits for an end of its own.
    ///
    /// # Errors
    /// Where it does not end.
    pub fn wait_end(&mut self) -> anyhow::Result<ExitStatus> {
        self.process.take().context("the agent does not run")?.wait()
    }

    /// All that agents of this guard wrote.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.file("agent.log")).unwrap_or_default()
    }

    /// Calls the command line with this agent's socket, and its pins where the verb looks at them.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn run(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let mut command = self.netns.command(binary("xlb")?);
        command
            .env("XLB_SOCKET", self.socket())
            .env_remove("RUST_BACKTRACE")
            .args(arguments);
        if matches!(
            arguments,
            ["status" | "stats" | "detach", ..] | ["service" | "backend", "list", ..]
        ) && !arguments.contains(&"--pin-dir")
        {
            command.arg("--pin-dir").arg(self.pin_dir());
        }
        command.output().context("starting xlb")
    }

    /// Calls the command line and expects success.
    ///
    /// # Errors
    /// Where the exit status is not 0; with what it wrote.
    pub fn order(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.run(arguments)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "xlb {}: {}\n{text}{}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(text)
    }

    /// `xlb status`, from the agent or from its pins.
    ///
    /// # Errors
    /// Where there is none.
    pub fn status(&self) -> anyhow::Result<Status> {
        Ok(serde_json::from_str(&self.order(&["status", "-o", "json"])?)?)
    }

    /// Waits until the backends that serve are just those for which `expected` holds.
    ///
    /// # Errors
    /// Where that does not come; with the agent's log.
    pub fn wait_serving(&self, expected: impl Fn(IpAddr) -> bool) -> anyhow::Result<()> {
        let settled = wait_until("the backends to be as expected", || {
            let status = self.status()?;
            let mut backends = status.services.iter().flat_map(|service| &service.backends);
            Ok(backends.all(|backend| backend.serving == expected(backend.address)))
        });
        settled.with_context(|| format!("the agent's log:\n{}", self.log()))
    }
}
