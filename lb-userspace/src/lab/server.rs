//! The servers on the backends.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use anyhow::ensure;
use nix::sys::signal::Signal;

use super::cleanup::Folder;
use super::network::Host;
use super::process::{Process, binary};
use super::wait::wait_for;

/// A server of a backend.
#[derive(Debug)]
pub struct Server {
    process: Process,
}

impl Server {
    /// An HTTP server on every address of a host; waits until it answers.
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

    /// An echo server (see [`super::wire`]) on every address of a host for TCP, and on the given ones for UDP.
    ///
    /// # Errors
    /// Where it does not answer.
    pub fn echo(host: &Host, port: u16, udp: &[SocketAddr], folder: &Arc<Folder>) -> anyhow::Result<Self> {
        let mut command = host.netns.command(binary("xlb")?);
        command.args(["lab-server", "echo", &host.name, &format!("[::]:{port}")]);
        command.args(udp.iter().map(ToString::to_string));
        let process = Process::spawn(&format!("{}-echo-{port}", host.name), &mut command, folder)?;
        wait_for("the echo server", || {
            ensure!(process.ended()?.is_none(), "it ended:\n{}", process.log());
            Ok(host.netns.enter(|| TcpStream::connect((host.v4, port)))?)
        })?;
        Ok(Self { process })
    }

    /// From then on an echo server accepts no connection and the kernel answers no SYN; those it has go on.
    /// `false` ends that.
    ///
    /// # Errors
    /// Where it ended before.
    pub fn deafen(&self, deaf: bool) -> anyhow::Result<()> {
        self.process
            .signal(if deaf { Signal::SIGUSR1 } else { Signal::SIGUSR2 })
    }

    /// SIGKILL: from then on connections are refused.
    ///
    /// # Errors
    /// Where it ended before.
    pub fn kill(self) -> anyhow::Result<()> {
        self.process.kill()
    }
}
