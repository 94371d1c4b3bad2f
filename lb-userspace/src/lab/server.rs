//! The servers on the backends.

use std::net::TcpStream;
use std::sync::Arc;

use anyhow::ensure;

use super::cleanup::Folder;
use super::network::Host;
use super::process::{Process, binary};
use super::wait::wait_for;

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
        let mut command = host.netns.command(binary("xlb")?);
        command.args(["lab-server", "http", &host.name, &format!("[::]:{port}")]);
        let process = Process::spawn(&format!("{}-http-{port}", host.name), &mut command, folder)?;
        wait_for("the HTTP server", || {
            ensure!(process.ended()?.is_none(), "it ended:\n{}", process.log());
            Ok(host.netns.enter(|| TcpStream::connect((host.v4, port)))?)
        })?;
        Ok(Self { process })
    }

    /// SIGKILL: from then on connections are refused.
    ///
    /// # Errors
    /// Where it ended before.
    pub fn kill(self) -> anyhow::Result<()> {
        self.process.kill()
    }
}
