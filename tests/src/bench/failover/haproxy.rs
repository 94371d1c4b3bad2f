//! HAProxy in TCP mode, and what its log says of its checks.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use anyhow::ensure;
use nix::sys::socket::{setsockopt, sockopt};

use super::arena::{Arena, PORT, Pool};
use super::product::{Product, Seen, Setting};
use crate::process::Process;

/// All but the services.
pub const CONFIGURATION: &str = include_str!("../alternatives/haproxy.cfg");

pub struct Haproxy {
    process: Process,
    address: std::net::Ipv4Addr,
    log: Log,
}

impl Haproxy {
    /// # Errors
    /// Where it does not start.
    pub fn start(arena: &Arena, setting: Setting) -> anyhow::Result<Self> {
        let lb = &arena.lab.lb;
        let log = Log::listen(arena)?;
        let mut text = CONFIGURATION.to_owned();
        for pool in Pool::ALL {
            let checks = match setting {
                Setting::Defaults => ("", "check"),
                Setting::Fast => (
                    "    timeout connect 100ms\n    timeout check 100ms\n",
                    "check inter 200ms fastinter 50ms fall 3 rise 2",
                ),
            };
            write!(
                text,
                "\nlisten {}\n    bind {}:{}\n    option log-health-checks\n{}",
                pool.name(),
                lb.v4,
                port(pool),
                checks.0
            )?;
            for (n, backend) in arena.backends(pool).iter().enumerate() {
                writeln!(text, "    server s{n} {backend}:{PORT} {}", checks.1)?;
            }
        }
        let file = arena.folder.file("haproxy.cfg");
        fs::write(&file, text)?;
        let mut command = lb.netns.command("haproxy");
        command.arg("-db").arg("-f").arg(&file);
        Ok(Self {
            process: Process::spawn("haproxy", &mut command, &arena.folder)?,
            address: lb.v4,
            log,
        })
    }
}

impl Product for Haproxy {
    fn name(&self) -> &'static str {
        "HAProxy"
    }

    fn target(&self, pool: Pool) -> SocketAddr {
        SocketAddr::new(self.address.into(), port(pool))
    }

    fn all_up(&mut self, arena: &Arena) -> anyhow::Result<bool> {
        ensure!(
            self.process.ended()?.is_none(),
            "haproxy ended:\n{}",
            self.process.log()
        );
        let checked: usize = Pool::ALL.iter().map(|pool| arena.backends(*pool).len()).sum();
        let servers = self.log.servers();
        Ok(servers.len() == checked && servers.values().all(|server| !server.down))
    }

    fn begin(&mut self) -> anyhow::Result<()> {
        for server in self.log.servers().values_mut() {
            (server.first_bad, server.out) = (None, None);
        }
        Ok(())
    }

    fn seen(&mut self, arena: &Arena, pool: Pool) -> anyhow::Result<Option<Seen>> {
        ensure!(
            self.process.ended()?.is_none(),
            "haproxy ended:\n{}",
            self.process.log()
        );
        let servers = self.log.servers();
        let ours = servers.iter().filter(|((name, _), _)| name == pool.name());
        let out: Vec<(SystemTime, SystemTime)> = ours
            .filter_map(|(_, server)| Some((server.first_bad?, server.out?)))
            .collect();
        if out.len() < arena.victims(pool) {
            return Ok(None);
        }
        let longest = out
            .iter()
            .map(|(bad, out)| out.duration_since(*bad).unwrap_or_default())
            .max();
        let Some(last_out) = out.iter().map(|(_, out)| *out).max() else {
            return Ok(None);
        };
        Ok(Some(Seen {
            last_out,
            first_bad_to_out: longest,
            first_bad_to_packet: None,
        }))
    }
}

fn port(pool: Pool) -> u16 {
    match pool {
        Pool::One => 8001,
        Pool::Many => 8002,
    }
}

/// What the log said of a server.
#[derive(Clone, Copy, Debug, Default)]
struct Server {
    down: bool,
    /// When the first of the checks began that failed in a row.
    first_bad: Option<SystemTime>,
    out: Option<SystemTime>,
}

type Servers = HashMap<(String, String), Server>;

/// Reads the log on a thread of its own.
struct Log {
    servers: Arc<Mutex<Servers>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// A burst of lines of a thousand servers fits in.
const BUFFER: usize = 16 << 20;

impl Log {
    fn listen(arena: &Arena) -> anyhow::Result<Self> {
        let socket = arena.lab.lb.netns.enter(|| UdpSocket::bind("127.0.0.1:5514"))?;
        setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let servers = Arc::new(Mutex::new(Servers::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (written, until) = (Arc::clone(&servers), Arc::clone(&stop));
        let thread = thread::Builder::new().name("log".into()).spawn(move || {
            let mut buffer = [0; 2048];
            while !until.load(Ordering::Relaxed) {
                let Ok(len) = socket.recv(&mut buffer) else {
                    continue;
                };
                let now = SystemTime::now();
                if let Some(line) = std::str::from_utf8(&buffer[..len]).ok().and_then(parse) {
                    take(&mut lock(&written), &line, now);
                }
            }
        })?;
        Ok(Self {
            servers,
            stop,
            thread: Some(thread),
        })
    }

    fn servers(&self) -> MutexGuard<'_, Servers> {
        lock(&self.servers)
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(servers: &Mutex<Servers>) -> MutexGuard<'_, Servers> {
    servers.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, PartialEq)]
enum Said {
    Passed,
    /// It took so long.
    Failed(Duration),
    Down,
    Up,
}

#[derive(Debug, PartialEq)]
struct Line<'a> {
    pool: &'a str,
    server: &'a str,
    said: Said,
}

/// `Health check for server P/S failed, reason: .., check duration: 0ms, status: 2/3 UP.`, `Server P/S is DOWN, ..`
fn parse(text: &str) -> Option<Line<'_>> {
    let (_, rest) = text
        .split_once("Health check for server ")
        .or_else(|| text.split_once("Server "))?;
    let (name, rest) = rest.split_once(' ')?;
    let (pool, server) = name.split_once('/')?;
    let said = match rest {
        rest if rest.starts_with("is DOWN") => Said::Down,
        rest if rest.starts_with("is UP") => Said::Up,
        rest if rest.starts_with("failed") => {
            let (_, took) = rest.split_once("check duration: ")?;
            Said::Failed(Duration::from_millis(took.split_once("ms")?.0.parse().ok()?))
        }
        rest if rest.starts_with("succeeded") => Said::Passed,
        _ => return None,
    };
    Some(Line { pool, server, said })
}

fn take(servers: &mut Servers, line: &Line<'_>, now: SystemTime) {
    let server = servers
        .entry((line.pool.to_owned(), line.server.to_owned()))
        .or_default();
    match line.said {
        Said::Passed if !server.down => server.first_bad = None,
        Said::Passed => {}
        Said::Failed(took) => {
            server.first_bad = server.first_bad.or(now.checked_sub(took));
        }
        Said::Down => (server.down, server.out) = (true, Some(now)),
        Said::Up => server.down = false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_log_are_understood() {
        let line = |server, said| {
            Some(Line {
                pool: "many",
                server,
                said,
            })
        };
        for (text, expected) in [
            (
                "<129>Nov 21 11:22:33 haproxy[7]: Health check for server many/s17 failed, reason: Layer4 timeout, \
                 check duration: 100ms, status: 2/3 UP.",
                line("s17", Said::Failed(Duration::from_millis(100))),
            ),
            (
                "<129>Nov 21 11:22:33 haproxy[7]: Server many/s17 is DOWN, reason: Layer4 timeout, check duration: 100ms.",
                line("s17", Said::Down),
            ),
            (
                "Server many/s1 is UP, reason: Layer4 check passed",
                line("s1", Said::Up),
            ),
            (
                "Health check for server many/s1 succeeded, reason: Layer4 check passed, check duration: 0ms",
                line("s1", Said::Passed),
            ),
            ("Proxy many started.", None),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
    }
}
