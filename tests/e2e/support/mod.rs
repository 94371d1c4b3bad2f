//! What the end-to-end tests share: the agent in the load balancer's namespace, `decap` on the backends, and the
//! command line.

#![allow(dead_code, reason = "each test target uses a part")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, bail, ensure};
use lb_tests::cleanup::{Cleanup, Folder, unique};
use lb_tests::lab::{DEVICE, Host, Lab};
use lb_tests::netns::Netns;
use lb_tests::process::{Process, binary};
use lb_tests::wait::wait_for;
use serde_json::Value;

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

/// The agent of a lab: its files, its pins, and its process while one runs. All gone when dropped.
#[derive(Debug)]
pub struct Xlb {
    netns: Netns,
    pub folder: Arc<Folder>,
    pub pins: PathBuf,
    pub config: PathBuf,
    pub socket: PathBuf,
    pub process: Option<Process>,
    arguments: Vec<String>,
    _cleanup: Cleanup,
}

impl Xlb {
    /// Writes the configuration; nothing runs yet. `agent` are further lines of `[agent]`.
    pub fn new(lab: &Lab, agent: &str, services: &str) -> anyhow::Result<Self> {
        let folder = Arc::new(Folder::new("agent")?);
        let pins = Path::new("/sys/fs/bpf").join(unique("pins"));
        let gone = pins.clone();
        let cleanup = Cleanup::new(move || {
            let _ = fs::remove_dir_all(gone);
        });
        let xlb = Self {
            netns: lab.lb.netns.clone(),
            config: folder.file("xlb.toml"),
            socket: folder.file("xlb.sock"),
            pins,
            folder,
            process: None,
            arguments: Vec::new(),
            _cleanup: cleanup,
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
        wait_for("the agent", || {
            self.still_runs()?;
            let status = self.status()?;
            ensure!(status["agent"]["running"] == true, "it does not answer");
            let attached = status["interfaces"]
                .as_array()
                .is_some_and(|all| !all.is_empty() && all.iter().all(|i| i["mode"] != "detached"));
            ensure!(attached, "not attached: {}", status["interfaces"]);
            Ok(())
        })
    }

    /// Starts the agent and leaves it to itself.
    pub fn spawn(&mut self) -> anyhow::Result<()> {
        let mut command = self.netns.command(binary("xlb")?);
        command
            .arg("agent")
            .arg("--config")
            .arg(&self.config)
            .args(&self.arguments);
        self.process = Some(Process::spawn("xlb", &mut command, &self.folder)?);
        Ok(())
    }

    pub fn still_runs(&self) -> anyhow::Result<()> {
        let process = self.process()?;
        if let Some(status) = process.ended()? {
            bail!("the agent ended with {status}:\n{}", process.log());
        }
        Ok(())
    }

    pub fn process(&self) -> anyhow::Result<&Process> {
        self.process.as_ref().context("no agent was started")
    }

    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }

    /// Runs a verb.
    pub fn run(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let mut command = self.netns.command(binary("xlb")?);
        command
            .env("XLB_SOCKET", &self.socket)
            .env_remove("RUST_BACKTRACE")
            .args(arguments);
        Ok(command.output()?)
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
        let pins = self.pins.display().to_string();
        Ok(serde_json::from_str(
            &self.verb(&format!("status -o json --pin-dir {pins}"))?,
        )?)
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

/// `xlb decap` on a backend, for packets from the load balancer of the lab; off again when dropped.
#[derive(Debug)]
pub struct Decap {
    _cleanup: Cleanup,
}

impl Decap {
    pub fn attach(lab: &mut Lab) -> anyhow::Result<Vec<Self>> {
        let from = [lab.lb.v4.to_string(), lab.lb.v6.to_string()];
        lab.backends
            .iter_mut()
            .map(|host| Self::on(host, &from))
            .collect()
    }

    fn on(host: &mut Host, from: &[String; 2]) -> anyhow::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        host.make_room();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let root = Path::new("/sys/fs/bpf").join(unique(&format!("decap{number}")));
        let gone = root.clone();
        let cleanup = Cleanup::new(move || {
            let _ = fs::remove_dir_all(gone);
        });
        let mut command = host.netns.command(binary("xlb")?);
        command
            .args(["decap", "attach", "--interface", DEVICE, "--pin-dir"])
            .arg(&root)
            .arg("--from")
            .args(from);
        lb_tests::netns::run(&mut command)?;
        Ok(Self { _cleanup: cleanup })
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
