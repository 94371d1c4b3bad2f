//! The live screen: everything on one page, and keys to do harm.
//!
//! A thread of its own draws and reads keys, another asks the agent how it sees things; the caller's does what the keys
//! ask for, which may take seconds, and takes everything away in the end.

mod digits;
mod draw;
mod view;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use self::view::View;
use super::action::{Action, Fates};
use super::connections::tracked;
use crate::api::client::Client;
use crate::api::types::Status;
use crate::lab::cleanup::Cleanup;
use crate::lab::flows::Viewer;
use crate::lab::ledger::{Judgement, Ledger};
use crate::lab::measure::Watch;
use crate::lab::stage::Stage;
use crate::model::Protocol;

/// From one picture to the next.
const FRAME: Duration = Duration::from_millis(200);
/// From one question to the agent to the next.
const ASK: Duration = Duration::from_millis(300);

/// What was seen until the user had enough.
#[derive(Clone, Copy, Debug)]
pub(super) struct Summary {
    pub broken: usize,
    pub lost: usize,
    pub maglev: usize,
    pub tracked: bool,
}

/// What goes on in the background tells.
enum News {
    /// What is being done.
    Begun(String),
    Done(anyhow::Result<String>, Vec<(String, IpAddr)>),
    Status(Option<Box<Status>>),
}

/// Shows the stage until the user quits, and takes it away.
pub(super) fn run(stage: Stage) -> anyhow::Result<Summary> {
    let watch = Watch::start(&stage)?;
    let mut screen = Screen {
        flows: stage.flows()?.viewer(),
        protocols: stage
            .flows()?
            .targets()
            .iter()
            .map(|target| target.key.protocol)
            .collect(),
        ledger: stage.shared_ledger(),
        watch,
        members: names(&stage),
        view: View {
            tracked: tracked(&stage),
            agent: true,
            ..View::default()
        },
        begun: Instant::now(),
        rates: Rates::default(),
    };
    let (news, hear) = channel();
    let (order, orders) = channel();
    let client = Client::new(stage.agent.socket());
    thread::Builder::new().name("status".into()).spawn({
        let news = news.clone();
        move || ask(&client, &news)
    })?;
    let screen = thread::Builder::new().name("screen".into()).spawn(move || {
        // Also where a signal ends us.
        let restored = Cleanup::new(ratatui::restore);
        let shown = screen.show(&mut ratatui::init(), &order, &hear);
        drop(restored);
        println!("taking it all away again ...");
        shown.map(|()| screen.view)
    })?;
    let taken_away = work(stage, &orders, &news);
    let view = screen
        .join()
        .map_err(|_| anyhow::anyhow!("the screen panicked"))??;
    taken_away?;
    let View {
        broken,
        lost,
        maglev,
        tracked,
        ..
    } = view;
    Ok(Summary {
        broken,
        lost,
        maglev,
        tracked,
    })
}

/// Does what it is told, one after the other. What it starts ends with this thread.
fn work(mut stage: Stage, orders: &Receiver<Action>, news: &Sender<News>) -> anyhow::Result<()> {
    let mut fates = Fates::default();
    while let Ok(action) = orders.recv() {
        let _ = news.send(News::Begun(format!("{action:?}").to_lowercase()));
        let done = action.perform(&mut stage, &mut fates);
        let _ = news.send(News::Done(done, names(&stage)));
    }
    stage.take_down()
}

/// The backends in the configuration; their places here are those that actions take.
fn names(stage: &Stage) -> Vec<(String, IpAddr)> {
    let hosts = stage
        .members()
        .into_iter()
        .map(|member| &stage.lab.backends[member]);
    hosts.map(|host| (host.name.clone(), host.v4.into())).collect()
}

/// Asks the agent until nobody wants to know.
fn ask(client: &Client, news: &Sender<News>) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return;
    };
    loop {
        let status = runtime.block_on(client.status()).ok().map(Box::new);
        if news.send(News::Status(status)).is_err() {
            return;
        }
        thread::sleep(ASK);
    }
}

struct Screen {
    flows: Viewer,
    /// By service.
    protocols: Vec<Protocol>,
    ledger: Arc<Mutex<Ledger>>,
    watch: Watch,
    members: Vec<(String, IpAddr)>,
    view: View,
    begun: Instant,
    rates: Rates,
}

impl Screen {
    fn show(
        &mut self,
        terminal: &mut ratatui::DefaultTerminal,
        order: &Sender<Action>,
        news: &Receiver<News>,
    ) -> anyhow::Result<()> {
        loop {
            self.look(news);
            terminal.draw(|frame| draw::draw(frame, &self.view))?;
            if !event::poll(FRAME)? {
                continue;
            }
            if let Event::Key(key) = event::read()? {
                match self.pressed(key) {
                    Some(Pressed::Quit) => return Ok(()),
                    Some(Pressed::Order(action)) => order.send(action)?,
                    None => {}
                }
            }
        }
    }

    /// Everything that is new.
    fn look(&mut self, news: &Receiver<News>) {
        self.view.elapsed = self.begun.elapsed();
        for news in news.try_iter() {
            match news {
                News::Begun(what) => self.view.busy = Some(what),
                News::Done(done, members) => {
                    self.view.busy = None;
                    self.members = members;
                    self.view
                        .happened(done.unwrap_or_else(|error| format!("failed: {error:#}")));
                }
                News::Status(status) => self.view.agent_says(status.as_deref(), &self.members),
            }
        }
        let (live, opens) = (self.flows.live(), self.flows.take_opens().len());
        let mut by_backend = BTreeMap::new();
        for (_, flow) in &live {
            *by_backend.entry(flow.backend).or_default() += 1;
        }
        let of = |protocol| {
            live.iter()
                .filter(|(_, flow)| self.protocols[flow.service] == protocol)
                .count()
        };
        self.view.connections = of(Protocol::Tcp);
        self.view.datagrams = of(Protocol::Udp);
        let services = || (0..self.protocols.len()).map(|service| self.watch.of(service));
        self.view.maglev = services().map(|moved| moved.misplaced()).sum();
        self.view.unstable = services().map(|moved| moved.unstable_now).sum();
        self.view.entries = services().map(|moved| moved.entries_now).sum();
        let shares = self
            .watch
            .tables()
            .map(|tables| tables.shares(0))
            .unwrap_or_default();
        self.view.count(&by_backend, &shares);
        (self.view.opens_per_s, self.view.answers_per_s) = self.rates.of(opens, self.flows.answers());
        let ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        for end in self.flows.take_ends() {
            match ledger.judge(&end) {
                Judgement::Broken => self.view.broken += 1,
                Judgement::Lost => self.view.lost += 1,
            }
        }
    }

    fn pressed(&mut self, key: KeyEvent) -> Option<Pressed> {
        if key.kind == KeyEventKind::Release {
            return None;
        }
        let selected = self.view.selected;
        let last = self.view.backends.len().saturating_sub(1);
        let action = match key.code {
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => {
                return Some(Pressed::Quit);
            }
            KeyCode::Char('q') => return Some(Pressed::Quit),
            KeyCode::Up => {
                self.view.selected = selected.saturating_sub(1);
                return None;
            }
            KeyCode::Down => {
                self.view.selected = (selected + 1).min(last);
                return None;
            }
            KeyCode::Char('k') => Action::Kill(selected),
            KeyCode::Char('s') => Action::Silence(selected),
            KeyCode::Char('d') => Action::Drain(selected),
            KeyCode::Char('r') => Action::Ready(selected),
            KeyCode::Char('w') => Action::Weight(selected),
            KeyCode::Char('a') => Action::Add,
            KeyCode::Char('x') => Action::KillAgent,
            _ => return None,
        };
        Some(Pressed::Order(action))
    }
}

enum Pressed {
    Quit,
    Order(Action),
}

/// Rates over about a second.
#[derive(Debug, Default)]
struct Rates {
    since: Option<(Instant, u64)>,
    opens: usize,
    last: (f64, f64),
}

impl Rates {
    fn of(&mut self, opens: usize, answers: u64) -> (f64, f64) {
        self.opens += opens;
        let now = Instant::now();
        let (since, before) = *self.since.get_or_insert((now, answers));
        let passed = (now - since).as_secs_f64();
        if passed >= 1.0 {
            self.last = (self.opens as f64 / passed, (answers - before) as f64 / passed);
            (self.since, self.opens) = (Some((now, answers)), 0);
        }
        self.last
    }
}
