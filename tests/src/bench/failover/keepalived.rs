//! keepalived with IPVS, where the kernel has it. What it decided is read from the kernel's table, which is what
//! packets go by.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use anyhow::ensure;

use super::arena::{Arena, PORT, Pool};
use super::product::{Product, Seen, Setting};
use crate::lab::VIPS_V4;
use crate::process::Process;

/// All but the services.
pub const CONFIGURATION: &str = include_str!("../alternatives/keepalived.conf");

/// Why keepalived cannot be measured here; `None`: it can.
pub fn missing() -> Option<String> {
    let _ = Command::new("modprobe").args(["-q", "ip_vs"]).status();
    (!Path::new("/proc/net/ip_vs").exists()).then(|| {
        "not measured: this kernel has no IPVS (/proc/net/ip_vs), without which keepalived checks no real server".into()
    })
}

pub struct Keepalived {
    process: Process,
    table: Table,
}

impl Keepalived {
    /// # Errors
    /// Where it does not start.
    pub fn start(arena: &Arena, setting: Setting) -> anyhow::Result<Self> {
        let lb = &arena.lab.lb.netns;
        let mut text = CONFIGURATION.to_owned();
        for pool in Pool::ALL {
            let vip = address(pool);
            // Packets for IPVS have to come in as our own.
            lb.ip(&format!("addr replace {vip}/32 dev lo\n"))?;
            for backend in &arena.lab.backends {
                backend.netns.ip(&format!("addr replace {vip}/32 dev lo\n"))?;
            }
            let (pace, check) = match setting {
                Setting::Defaults => ("", ""),
                Setting::Fast => (
                    "    delay_loop 0.2\n",
                    "connect_timeout 0.1 retry 2 delay_before_retry 0.05",
                ),
            };
            let check = check
                .replace(" retry", "\n            retry")
                .replace(" delay", "\n            delay");
            write!(
                text,
                "\nvirtual_server {vip} {PORT} {{\n{pace}    lb_algo rr\n    lb_kind DR\n    protocol TCP\n"
            )?;
            for backend in arena.backends(pool) {
                write!(
                    text,
                    "    real_server {backend} {PORT} {{\n        weight 1\n        TCP_CHECK {{\n            {check}\n        }}\n    }}\n"
                )?;
            }
            text += "}\n";
        }
        let file = arena.folder.file("keepalived.conf");
        fs::write(&file, text)?;
        let mut command = lb.command("keepalived");
        command
            .args(["--dont-fork", "--log-console", "--check", "--use-file"])
            .arg(&file);
        for (option, name) in [("--pid", "keepalived.pid"), ("--checkers_pid", "checkers.pid")] {
            command.arg(option).arg(arena.folder.file(name));
        }
        Ok(Self {
            process: Process::spawn("keepalived", &mut command, &arena.folder)?,
            table: Table::watch(arena)?,
        })
    }

    fn runs(&self) -> anyhow::Result<()> {
        ensure!(
            self.process.ended()?.is_none(),
            "keepalived ended:\n{}",
            self.process.log()
        );
        Ok(())
    }
}

impl Drop for Keepalived {
    fn drop(&mut self) {
        // Its children end with it only where it is asked.
        let _ = self.process.stop();
    }
}

impl Product for Keepalived {
    fn name(&self) -> &'static str {
        "keepalived"
    }

    fn target(&self, pool: Pool) -> SocketAddr {
        SocketAddr::new(address(pool).into(), PORT)
    }

    fn all_up(&mut self, arena: &Arena) -> anyhow::Result<bool> {
        self.runs()?;
        let up = |pool: &Pool| self.table.last(*pool).0 == arena.backends(*pool).len();
        Ok(Pool::ALL.iter().all(up))
    }

    fn begin(&mut self) -> anyhow::Result<()> {
        Ok(())
    }

    fn seen(&mut self, _: &Arena, pool: Pool) -> anyhow::Result<Option<Seen>> {
        self.runs()?;
        let (left, since) = self.table.last(pool);
        Ok((left == 1).then_some(Seen {
            last_out: since,
            first_bad_to_out: None,
            first_bad_to_packet: None,
        }))
    }
}

fn address(pool: Pool) -> Ipv4Addr {
    match pool {
        Pool::One => VIPS_V4[2],
        Pool::Many => Ipv4Addr::new(192, 0, 2, 40),
    }
}

/// Real servers of each virtual one, and since when there are so many.
type Counts = HashMap<Pool, (usize, SystemTime)>;

/// Reads the kernel's table again and again.
struct Table {
    counts: Arc<Mutex<Counts>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Table {
    fn watch(arena: &Arena) -> anyhow::Result<Self> {
        let counts = Arc::new(Mutex::new(Counts::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (written, until) = (Arc::clone(&counts), Arc::clone(&stop));
        let lb = arena.lab.lb.netns.clone();
        let thread = thread::Builder::new().name("ip_vs".into()).spawn(move || {
            if lb.move_in().is_err() {
                return;
            }
            while !until.load(Ordering::Relaxed) {
                let text = fs::read_to_string("/proc/thread-self/net/ip_vs").unwrap_or_default();
                let now = SystemTime::now();
                let mut counts = written.lock().unwrap_or_else(PoisonError::into_inner);
                for pool in Pool::ALL {
                    let count = real_servers(&text, address(pool));
                    let entry = counts.entry(pool).or_insert((count, now));
                    if entry.0 != count {
                        *entry = (count, now);
                    }
                }
                drop(counts);
                thread::sleep(Duration::from_millis(5));
            }
        })?;
        Ok(Self {
            counts,
            stop,
            thread: Some(thread),
        })
    }

    fn last(&self, pool: Pool) -> (usize, SystemTime) {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.get(&pool).copied().unwrap_or((0, SystemTime::UNIX_EPOCH))
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Lines with an arrow below that of the virtual server, of those with a weight.
fn real_servers(text: &str, vip: Ipv4Addr) -> usize {
    let virtual_server = format!("TCP  {:08X}:{PORT:04X} ", vip.to_bits());
    text.lines()
        .skip_while(|line| !line.starts_with(&virtual_server))
        .skip(1)
        .take_while(|line| line.starts_with("  ->"))
        .filter(|line| line.split_whitespace().nth(3) != Some("0"))
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn real_servers_are_counted_by_virtual_server() {
        let text = "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n  \
                    -> RemoteAddress:Port Forward Weight ActiveConn InActConn\nTCP  C000021E:0050 rr \n  \
                    -> 0A4D000B:0050      Route   1      0          0         \n  \
                    -> 0A4D000C:0050      Route   0      0          0         \nTCP  C0000228:0050 rr \n  \
                    -> 0A4D000B:0050      Route   1      0          0         \n";
        assert_eq!(real_servers(text, address(Pool::One)), 1);
        assert_eq!(real_servers(text, address(Pool::Many)), 1);
        assert_eq!(real_servers(text, Ipv4Addr::LOCALHOST), 0);
    }
}
