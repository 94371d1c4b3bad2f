//! Agent checks: programs on the backends that steer their weight and state, in each word of HAProxy's protocol.

use std::io::Write as _;
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use anyhow::Context;
use lb_tests::agent::Agent;
use lb_tests::cleanup::Folder;
use lb_tests::config::{Config, FAST_CHECK, Family, Service};
use lb_tests::lab::{Host, Lab, LabOptions, VIPS_V4};
use lb_tests::privileged;
use lb_tests::server::Server;
use lb_tests::wait::wait_until;
use xlb::api::types::BackendStatus;
use xlb::model::{AdminState, Forward, OperState};

const PORT: u16 = 9777;

/// Answers every connection with its line. The thread lives as long as the test's process.
struct Speaker(Arc<Mutex<Option<String>>>);

impl Speaker {
    fn start(host: &Host) -> anyhow::Result<Self> {
        let listener = host
            .netns
            .enter(|| TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT))))?;
        let line = Arc::new(Mutex::new(Some("up ready 100%".to_owned())));
        let says = Arc::clone(&line);
        thread::spawn(move || {
            for connection in listener.incoming() {
                let line = says.lock().expect("nobody panics").clone();
                if let (Ok(mut connection), Some(line)) = (connection, line) {
                    // Who asked may have gone.
                    let _ = connection.write_all(format!("{line}\n").as_bytes());
                }
            }
        });
        Ok(Self(line))
    }

    /// Says this from now on; `None`: closes without a word.
    fn say(&self, line: Option<&str>) {
        *self.0.lock().expect("nobody panics") = line.map(ToOwned::to_owned);
    }
}

struct Stage {
    agent: Agent,
    speaker: Speaker,
    _servers: [Server; 2],
    lab: Lab,
}

impl Stage {
    fn set_up(more: &str) -> anyhow::Result<Self> {
        let lab = Lab::new(LabOptions {
            backends: 2,
            ..LabOptions::default()
        })?;
        let folder = Arc::new(Folder::new("steer")?);
        let servers = [
            Server::http(&lab.backends[0], 80, &folder)?,
            Server::http(&lab.backends[1], 80, &folder)?,
        ];
        let speaker = Speaker::start(&lab.backends[0])?;
        // The other one's agent never says anything that matters.
        Speaker::start(&lab.backends[1])?;
        let mut web = Service::http(
            "web",
            VIPS_V4[0].into(),
            Forward::DsrL2,
            Family::V4,
            &lab.backends,
        );
        web.more = format!(
            "{more}\n[service.agent_check]\nport = {PORT}\ninterval = \"100ms\"\ntimeout = \"100ms\"\n"
        );
        web.backends[0].weight = 10;
        let config = Config {
            check: FAST_CHECK.into(),
            services: vec![web],
            ..Config::default()
        };
        let agent = Agent::running(&lab.lb.netns, &config)?;
        Ok(Self {
            agent,
            speaker,
            _servers: servers,
            lab,
        })
    }

    fn backend(&self) -> anyhow::Result<BackendStatus> {
        let mut status = self.agent.status()?;
        Ok(status.services.remove(0).backends.remove(0))
    }

    fn until(&self, what: &str, holds: impl Fn(&BackendStatus) -> bool) -> anyhow::Result<()> {
        wait_until(what, || Ok(holds(&self.backend()?)))
            .with_context(|| format!("{:?}\nthe agent's log:\n{}", self.backend(), self.agent.log()))
    }
}

#[test]
fn each_word_of_an_agent_takes_effect() -> anyhow::Result<()> {
    privileged!("each_word_of_an_agent_takes_effect");
    let stage = Stage::set_up("")?;
    let serves = |backend: &BackendStatus| {
        (backend.state, backend.serving, backend.effective_weight) == (OperState::Up, true, 10)
    };
    stage.until("it to serve", serves)?;
    type Holds = fn(&BackendStatus) -> bool;
    let cases: [(&str, Holds); 10] = [
        ("down # no disk", |b| b.state == OperState::Down && !b.serving),
        ("stopped", |b| {
            b.state == OperState::Down && said(b).health.as_deref() == Some("stopped")
        }),
        ("fail", |b| {
            b.state == OperState::Down && said(b).health.as_deref() == Some("fail")
        }),
        ("up drain", |b| {
            b.state == OperState::Up && !b.serving && said(b).admin == Some(AdminState::Drain)
        }),
        ("MAINT", |b| b.state == OperState::Unknown && !b.serving),
        ("ready,75%", |b| {
            b.state == OperState::Up && b.serving && b.effective_weight == 8
        }),
        ("0%", |b| b.effective_weight == 0 && !b.serving),
        ("200%", |b| b.effective_weight == 20 && b.serving),
        ("maxconn:7", |b| {
            said(b).max_connections == Some(7) && !said(b).full && b.serving
        }),
        ("sideways", |b| {
            said(b)
                .problem
                .as_deref()
                .is_some_and(|why| why.contains("sideways"))
                && b.serving
        }),
    ];
    for (line, holds) in cases {
        stage.speaker.say(Some(line));
        stage.until(line, holds)?;
        stage.speaker.say(Some("up\tready 100%"));
        stage.until("it to serve again", serves)?;
    }
    // The operator wins, and what he ordered is over with his `ready`.
    stage
        .agent
        .order(&["backend", "drain", "web", &stage.lab.backends[0].v4.to_string()])?;
    stage.speaker.say(Some("ready"));
    stage.until("the drain", |backend| {
        backend.admin == AdminState::Drain && !backend.serving
    })?;
    stage
        .agent
        .order(&["backend", "ready", "web", &stage.lab.backends[0].v4.to_string()])?;
    stage.until("the end of it", serves)
}

fn said(backend: &BackendStatus) -> xlb::api::types::AgentCheckStatus {
    backend.agent_check.clone().unwrap_or_default()
}

/// An agent that falls silent takes nothing back, also when ours is killed meanwhile.
#[test]
fn what_an_agent_said_outlives_it_and_ours() -> anyhow::Result<()> {
    privileged!("what_an_agent_said_outlives_it_and_ours");
    let mut stage = Stage::set_up("")?;
    stage.speaker.say(Some("drain 50%"));
    let drained = |backend: &BackendStatus| {
        said(backend).admin == Some(AdminState::Drain) && !backend.serving && backend.effective_weight == 5
    };
    stage.until("the drain", drained)?;
    let checkpoint = stage.agent.folder().file("state").join("checkpoint");
    wait_until("it to be written down", || {
        Ok(std::fs::read_to_string(&checkpoint)?.contains("\"weight_percent\":50"))
    })?;
    stage.speaker.say(None);
    stage.agent.kill()?;
    stage.agent.start()?;
    stage.until("the drain to go on", |backend| {
        drained(backend) && said(backend).problem.is_some()
    })?;
    stage.speaker.say(Some("ready 100%"));
    stage.until("its end", |backend| {
        backend.serving && backend.effective_weight == 10
    })
}

/// Connections that stay open fill a backend; those that end make room.
#[test]
fn a_full_backend_gets_no_new_connections() -> anyhow::Result<()> {
    privileged!("a_full_backend_gets_no_new_connections");
    let stage = Stage::set_up("scheduler = \"rr\"")?;
    stage.until("it to serve", |backend| backend.serving)?;
    stage.speaker.say(Some("maxconn:5"));
    stage.until("the limit", |backend| said(backend).max_connections == Some(5))?;
    let connect = || {
        let to = SocketAddr::from((VIPS_V4[0], 80));
        stage.lab.client.netns.enter(|| TcpStream::connect(to))
    };
    let mut connections = Vec::new();
    wait_until("it to be full", || {
        // Half of them go to it.
        connections.push(connect()?);
        let backend = stage.backend()?;
        Ok(said(&backend).full && !backend.serving)
    })
    .with_context(|| format!("{:?}\nthe agent's log:\n{}", stage.backend(), stage.agent.log()))?;
    let before = stage.backend()?.new_flows;
    for _ in 0..20 {
        connections.push(connect()?);
    }
    assert_eq!(
        stage.backend()?.new_flows,
        before,
        "new connections to a full backend"
    );
    connections.clear();
    stage.until("room again", |backend| !said(backend).full && backend.serving)?;
    // Each processor goes round on its own, and the connections may come in on either: not necessarily the next of them.
    wait_until("a new connection to it", || {
        connections.push(connect()?);
        Ok(stage.backend()?.new_flows > before)
    })
}
