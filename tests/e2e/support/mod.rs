//! What the end-to-end tests share: configurations written by hand, and what the command line says as JSON.

#![allow(dead_code, unused_imports, reason = "each test target uses a part")]

pub mod bulk;
mod world;

use std::fs;
use std::path::PathBuf;
use std::process::Output;
use std::sync::Arc;

use anyhow::{Context, ensure};
use lb_tests::agent::Agent;
use lb_tests::cleanup::Folder;
use lb_tests::lab::Lab;
use lb_tests::process::Process;
use serde_json::Value;

pub use world::{VIP, World};

/// A configuration's services; `[agent]` is written by [`Xlb`].
pub fn service(
    name: &str,
    address: &str,
    port: u16,
    protocol: &str,
    forward: &str,
    check: &str,
    backends: &[String],
) -> String {
    let backends: String = backends
        .iter()
        .map(|b| format!("[[service.backend]]\naddress = \"{b}\"\n"))
        .collect();
    format!(
        "[[service]]\nname = \"{name}\"\naddress = \"{address}\"\nport = {port}\nprotocol = \"{protocol}\"\n\
         forward = \"{forward}\"\n[service.check]\n{check}\n{backends}"
    )
}

/// Checks that find out fast.
pub const FAST: &str =
    "interval = \"200ms\"\nfast_interval = \"50ms\"\ntimeout = \"100ms\"\nfast_timeout = \"100ms\"";

/// The agent of a lab with a configuration written by hand.
#[derive(Debug)]
pub struct Xlb {
    agent: Agent,
    pub folder: Arc<Folder>,
    pub pins: PathBuf,
    pub config: PathBuf,
    pub socket: PathBuf,
    arguments: Vec<String>,
}

impl Xlb {
    /// Writes the configuration; nothing runs yet. `agent` are further lines of `[agent]`.
    pub fn new(lab: &Lab, agent: &str, services: &str) -> anyhow::Result<Self> {
        let guard = Agent::new(&lab.lb.netns)?;
        let xlb = Self {
            folder: Arc::clone(guard.folder()),
            pins: guard.pin_dir().to_owned(),
            config: guard.config_file(),
            socket: guard.socket(),
            arguments: Vec::new(),
            agent: guard,
        };
        xlb.configure(agent, services)?;
        Ok(xlb)
    }

    /// As [`Xlb::new`], and starts the agent.
    pub fn started(lab: &Lab, agent: &str, services: &str) -> anyhow::Result<Self> {
        let mut xlb = Self::new(lab, agent, services)?;
        xlb.start()?;
        Ok(xlb)
    }

    pub fn with_arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments = arguments.iter().map(|a| (*a).to_owned()).collect();
        self
    }

    pub fn configure(&self, agent: &str, services: &str) -> anyhow::Result<()> {
        let interfaces = if agent.contains("interfaces") {
            ""
        } else {
            "interfaces = [\"eth0\"]\n"
        };
        let text = format!(
            "schema = 1\n[agent]\n{interfaces}api_socket = \"{}\"\nstate_dir = \"{}\"\npin_dir = \"{}\"\n{agent}\n{services}",
            self.socket.display(),
            self.folder.file("state").display(),
            self.pins.display()
        );
        Ok(fs::write(&self.config, text)?)
    }

    /// Starts the agent and waits until it is attached.
    pub fn start(&mut self) -> anyhow::Result<()> {
        self.spawn()?;
        self.agent.wait_attached()
    }

    /// Starts the agent, again where one ended, and leaves it to itself.
    pub fn spawn(&mut self) -> anyhow::Result<()> {
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        self.agent.launch(&arguments).map(drop)
    }

    pub fn process(&self) -> anyhow::Result<&Process> {
        self.agent.process()
    }

    pub fn log(&self) -> String {
        self.agent.log()
    }

    /// Runs a verb.
    pub fn run(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        self.agent.run(arguments)
    }

    /// Runs a verb that must succeed, and gives back what it printed.
    pub fn verb(&self, line: &str) -> anyhow::Result<String> {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        let output = self.run(&arguments)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "xlb {line}: {}\n{text}{}\nthe agent wrote:\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr),
            self.log()
        );
        Ok(text)
    }

    pub fn status(&self) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.verb("status -o json")?)?)
    }

    /// One backend of one service in `status`.
    pub fn backend(&self, service: &str, address: &str) -> anyhow::Result<Value> {
        let status = self.status()?;
        let services = status["services"].as_array().context("no services")?;
        let service = services
            .iter()
            .find(|s| s["name"] == service)
            .context("no such service")?;
        let backends = service["backends"].as_array().context("no backends")?;
        backends
            .iter()
            .find(|b| b["address"] == address)
            .cloned()
            .context("no such backend")
    }

    /// The whole of one service in `status`.
    pub fn service(&self, name: &str) -> anyhow::Result<Value> {
        let status = self.status()?;
        let services = status["services"].as_array().context("no services")?;
        services
            .iter()
            .find(|s| s["name"] == name)
            .cloned()
            .context("no such service")
    }

    /// Packets counted for a reason.
    pub fn reason(&self, name: &str) -> anyhow::Result<u64> {
        let stats: Value = serde_json::from_str(&self.verb("stats --reasons -o json")?)?;
        let reasons = stats["reasons"].as_array().context("no reasons")?;
        let reason = reasons
            .iter()
            .find(|r| r["reason"] == name)
            .context("no such reason")?;
        reason["packets"].as_u64().context("no number")
    }
}

/// The lab's backends' addresses of the family of a service address.
pub fn addresses(lab: &Lab, v6: bool) -> Vec<String> {
    lab.backends
        .iter()
        .map(|b| if v6 { b.v6.to_string() } else { b.v4.to_string() })
        .collect()
}

/// A service address in a URL.
pub fn url(address: &str, port: u16, path: &str) -> String {
    if address.contains(':') {
        format!("http://[{address}]:{port}{path}")
    } else {
        format!("http://{address}:{port}{path}")
    }
}

/// What curl gets from a service, as the client.
pub fn curl(lab: &Lab, address: &str, port: u16, path: &str) -> anyhow::Result<String> {
    let url = url(address, port, path);
    lab.client
        .netns
        .run(&format!("curl --silent --show-error --fail --max-time 5 {url}"))
}

/// The hops that `traceroute` shows of the client's way to a service, which answers with TCP or UDP, whatever it says.
pub fn hops(lab: &Lab, address: &str, port: u16, udp: bool) -> anyhow::Result<Vec<String>> {
    // The kernel answers few datagrams that nobody takes.
    for host in &lab.backends {
        host.netns.sysctl("net/ipv4/icmp_ratelimit", "0")?;
        host.netns.sysctl("net/ipv6/icmp/ratelimit", "0")?;
    }
    let kind = if udp { "-U" } else { "-T" };
    let line = format!("traceroute -n -N 1 -q 1 -m 5 -w 3 {kind} -p {port} {address}");
    let text = lab.client.netns.run(&line)?;
    // The first line is a heading; each of the others has number, address and time.
    let hops = text.lines().skip(1).map(|line| {
        let mut words = line.split_whitespace().skip(1);
        words.next().map(str::to_owned).with_context(|| text.clone())
    });
    hops.collect()
}
