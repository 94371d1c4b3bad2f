//! The servers on the backends.

use std::net::TcpStream;
use std::sync::Arc;

use anyhow::ensure;

use crate::cleanup::Folder;
use crate::lab::Host;
use crate::process::{Process, binary};
use crate::wait::wait_for;

/// The HTTP server of a backend, on every address of its host.
#[derive(Debug)]
pub struct Server {
    process: Process,
}

impl Server {
    /// Starts it and waits until it answers.
    ///
    /// # Errors
    /// Where it does not.
    pub fn http(host: &Host, port: u16, folder: &Arc<Folder>) -> anyhow::Result<Self> {
        let server = Self::start("http", host, port, folder)?;
        wait_for("the HTTP server", || {
            ensure!(
                server.process.ended()?.is_none(),
                "it ended:\n{}",
                server.process.log()
            );
            Ok(host.netns.enter(|| TcpStream::connect((host.v4, port)))?)
        })?;
        Ok(server)
    }

    /// A server that sends datagrams back.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn udp(host: &Host, port: u16, folder: &Arc<Folder>) -> anyhow::Result<Self> {
        Self::start("udp", host, port, folder)
    }

    fn start(kind: &str, host: &Host, port: u16, folder: &Arc<Folder>) -> anyhow::Result<Self> {
        let mut command = host.netns.command(binary("xlb-lab")?);
        command.args([kind, &host.name, &format!("[::]:{port}")]);
        let process = Process::spawn(&format!("{}-{kind}-{port}", host.name), &mut command, folder)?;
        Ok(Self { process })
    }

    /// SIGKILL: from then on connections are refused.
    ///
    /// # Errors
    /// Where it ended before.
    pub fn kill(self) -> anyhow::Result<()> {
        self.process.kill()
    }

    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }
}
