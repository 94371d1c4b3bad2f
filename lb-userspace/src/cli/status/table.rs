//! `xlb status` as text: the agent first, then what is wrong at a glance, then everything by service.

use std::fmt::Write;

use super::{counted, is_missing, movement, nat, remember};
use crate::api::types::{
    AgentCheckStatus, AgentStatus, BackendStatus, CheckStatus, InterfaceStatus, ServiceStatus, Status,
};
use crate::cli::grid::{Cell, Column, Grid, Tone};
use crate::cli::human;
use crate::cli::outcome::Screen;
use crate::cli::source::frozen_line;
use crate::config::Role;
use crate::control::{OldFlows, Why};
use crate::model::{AdminState, CheckCode, OperState, Protocol};

pub(super) fn render(status: &Status, screen: &Screen) -> String {
    let Status {
        agent,
        interfaces,
        services,
        migrations,
        flow_table,
        flow_cache,
        nat,
        memory,
    } = status;
    let attached = interfaces.iter().any(|interface| interface.mode != "detached");
    let mut text = agent_lines(agent, attached, screen);
    if interfaces.is_empty() {
        text += "attached to nothing\n";
    } else {
        text += "\n";
        text += &interface_grid(interfaces).render(screen, "");
    }
    for service in services {
        text += "\n";
        text += &service_lines(service);
        let mut grid = backend_grid();
        for backend in &service.backends {
            let (cells, notes) = backend_row(backend, service.protocol, screen);
            grid.row(cells, notes);
        }
        text += &grid.render(screen, "  ");
    }
    text += &movement::lines(migrations, flow_table.as_ref(), screen);
    text += &flow_cache
        .as_ref()
        .map_or_else(String::new, remember::cache_lines);
    if let Some(nat) = nat {
        text += &nat::lines(nat);
    }
    if let Some(memory) = memory {
        text += &remember::memory_line(memory);
    }
    text
}

fn agent_lines(agent: &AgentStatus, attached: bool, screen: &Screen) -> String {
    let AgentStatus {
        running,
        version,
        since,
        pid,
        detached,
        confirm_within_s,
        isolated_since,
        config,
        warnings,
    } = agent;
    let mut text = String::new();
    if *running {
        let age = human::ago(since, screen.now)
            .map(|age| format!(" ({age})"))
            .unwrap_or_default();
        let _ = writeln!(text, "agent {version} running since {since}{age}, process {pid}");
        let _ = writeln!(text, "configuration {}", human::printable(config));
    } else {
        text += &frozen_line(agent);
        let what = match attached {
            true => "packets are forwarded on, but no backend is checked",
            false => "nothing is forwarded",
        };
        let _ = writeln!(text, "it was version {version}, process {pid}; {what}");
    }
    if *detached {
        text += "DETACHED: the program was taken off; restart the agent to attach again\n";
    }
    if let Some(since) = isolated_since {
        let _ = writeln!(
            text,
            "ISOLATED since {since}: nothing answers, the fault may be ours; tables stay as they are"
        );
    }
    if let Some(seconds) = confirm_within_s {
        let _ = writeln!(
            text,
            "NOT CONFIRMED: detaching in {seconds} s unless `xlb confirm` comes"
        );
    }
    for warning in warnings {
        let _ = writeln!(text, "warning: {}", human::printable(warning));
    }
    text
}

fn interface_grid(interfaces: &[InterfaceStatus]) -> Grid {
    let mut grid = Grid::new(&[
        Column::left("INTERFACE"),
        Column::left("MODE"),
        Column::left("DRIVER"),
        Column::right("MTU"),
        Column::right("PROGRAM"),
    ]);
    for interface in interfaces {
        let InterfaceStatus {
            name,
            mode,
            driver,
            program_id,
            mtu,
        } = interface;
        let number = |number: &Option<u32>| number.map_or("-".to_owned(), |number| number.to_string());
        let mode = match mode.as_str() {
            "detached" => Cell::toned(&"DETACHED", Tone::Bad),
            "generic" => Cell::toned(mode, Tone::Warning),
            _ => mode.into(),
        };
        let driver = driver.as_deref().unwrap_or("-");
        grid.row(
            [
                name.into(),
                mode,
                driver.into(),
                number(mtu).into(),
                number(program_id).into(),
            ],
            vec![],
        );
    }
    grid
}

fn service_lines(service: &ServiceStatus) -> String {
    let ServiceStatus {
        name,
        address,
        port,
        last_port,
        protocol,
        forward,
        scheduler,
        tracking: _,
        idle_timeout_ms: _,
        persistence,
        table_size,
        generation,
        all_down: _,
        pool,
        selection,
        backups_in_use,
        packets,
        bytes,
        new_flows,
        backends: _,
    } = service;
    let mut text = String::new();
    let place = human::service_place(*address, *port, *last_port, *protocol);
    let _ = writeln!(
        text,
        "{name}  {place}  {forward} {scheduler}{}  {}",
        pool.as_ref()
            .map(|pool| format!("  pool {pool}"))
            .unwrap_or_default(),
        serving(service)
    );
    text += match (selection, table_size) {
        (Some(Why::Nobody), _) | (_, 0) => "  NOBODY SERVES: packets are dropped\n",
        (Some(Why::Last), _) => "  ALL DOWN: the table of before the failures goes on\n",
        (Some(Why::Sorry), _) => "  ALL DOWN: the sorry backend answers\n",
        (Some(Why::Panic), _) => {
            "  PANIC: fewer serve than panic_threshold; all that are READY and were UP before take flows\n"
        }
        (Some(Why::Serving) | None, _) => "",
    };
    if *backups_in_use {
        text += "  BACKUPS IN USE: fewer serve than the quorum\n";
    }
    let flows = match protocol {
        Protocol::Tcp => format!(", {} new flows", human::flows(*new_flows, *protocol)),
        Protocol::Udp => String::new(),
    };
    let _ = writeln!(
        text,
        "  {} packets, {}{flows}; {table_size} slots, generation {generation}",
        human::count(*packets),
        human::bytes(*bytes),
    );
    text += &persistence
        .as_ref()
        .map_or_else(String::new, remember::client_lines);
    text
}

/// `2 of 3 backends serve`; those that stand by are not counted.
pub(in crate::cli) fn serving(service: &ServiceStatus) -> String {
    let serving = service.backends.iter().filter(|backend| backend.serving).count();
    format!("{serving} of {} backends serve", counted(service).count())
}

const COLUMNS: usize = 11;

/// The columns that [`backend_row`] fills.
pub(in crate::cli) fn backend_grid() -> Grid {
    let columns: [Column; COLUMNS] = [
        Column::left("BACKEND"),
        Column::left("STATE"),
        Column::left("FOR").dispensable(5),
        Column::left("ADMIN"),
        Column::left("CHECK"),
        Column::left("WEIGHT").dispensable(1),
        Column::right("SHARE").dispensable(2),
        Column::right("MTU").dispensable(3),
        Column::right("NEW FLOWS").dispensable(4),
        Column::right("PACKETS").dispensable(6),
        Column::right("BYTES").dispensable(7),
    ];
    Grid::new(&columns)
}

/// The row of a backend, and the notes under it: why it does not take traffic.
pub(in crate::cli) fn backend_row(
    backend: &BackendStatus,
    protocol: Protocol,
    screen: &Screen,
) -> ([Cell; COLUMNS], Vec<String>) {
    let BackendStatus {
        address,
        port,
        weight,
        effective_weight,
        role,
        slow_start_percent,
        held_until,
        old_flows,
        host_answers,
        state,
        admin,
        serving: _,
        doubted,
        unresolved,
        check,
        agent_check,
        share_percent,
        packets,
        bytes,
        new_flows,
        remembered_flows,
        unseen_flows_until,
        packet_mtu,
        path_mtu_until,
        changed,
    } = backend;
    let state_tone = match state {
        _ if is_missing(backend) => Tone::Bad,
        OperState::Up => Tone::Good,
        OperState::Down | OperState::Unknown => Tone::Warning,
    };
    let admin_tone = match admin {
        AdminState::Ready => Tone::Plain,
        AdminState::Drain | AdminState::Maint => Tone::Warning,
    };
    let weight = if weight == effective_weight {
        weight.to_string()
    } else {
        format!("{effective_weight} (file {weight})")
    };
    let age = changed
        .as_deref()
        .and_then(|changed| human::ago(changed, screen.now));
    let cells = [
        human::place(*address, *port).into(),
        Cell::toned(state, state_tone),
        age.unwrap_or_else(|| "-".into()).into(),
        Cell::toned(admin, admin_tone),
        check_text(check).into(),
        weight.into(),
        format!("{share_percent:.1}%").into(),
        mtu_cell(*packet_mtu),
        human::flows(*new_flows, protocol).into(),
        human::count(*packets).into(),
        human::bytes(*bytes).into(),
    ];
    let mut notes = Vec::new();
    match role {
        Role::Primary => {}
        Role::Backup => notes.push("backup".to_owned()),
        Role::Sorry => notes.push("sorry backend".to_owned()),
    }
    if let Some(percent) = slow_start_percent {
        notes.push(format!("SLOW START: at {percent}% of its weight"));
    }
    if let Some(until) = held_until {
        notes.push(format!(
            "HELD DOWN until {until}: it flapped (xlb backend ready ends it)"
        ));
    }
    if let (Some(answers), Some(old_flows)) = (host_answers, old_flows) {
        let host = if *answers { "answers" } else { "is silent" };
        let flows = match old_flows {
            OldFlows::Keep => "stay with it",
            OldFlows::Move => "go to others",
            OldFlows::Reset => "are reset",
        };
        notes.push(format!("its host {host}; flows it has {flows}"));
    }
    if *doubted {
        notes.push("DOUBTED: silent, but nothing else answered since; it keeps its slots".to_owned());
    }
    notes.extend(agent_check.as_ref().and_then(agent_note));
    if let Some(until) = unseen_flows_until {
        let seen = human::count(remembered_flows.unwrap_or(0));
        notes.push(format!(
            "{seen} old flows seen on it; idle ones may show until {until}"
        ));
    }
    if let (Some(mtu), Some(until)) = (packet_mtu, path_mtu_until) {
        notes.push(format!(
            "a router on the way takes packets of clients up to {mtu} bytes; believed until {until}"
        ));
    }
    if let Some(why) = unresolved {
        notes.push(format!("UNRESOLVED: {why}"));
    }
    let failed = matches!(check.code.passed(), Some(false)) || check.code == CheckCode::Sockerr;
    // The status alone stands beside the code.
    let told = check.code != CheckCode::L7rsp && split_status(&check.detail).is_some();
    if failed && !told && !check.detail.is_empty() {
        notes.push(format!("check: {}", check.detail));
    }
    (cells, notes)
}

/// What clients usually send at most.
const USUAL_MTU: u32 = 1500;

/// The longest packet of a client that fits the way, outer header included.
fn mtu_cell(packet_mtu: Option<u32>) -> Cell {
    match packet_mtu {
        None => "-".into(),
        Some(mtu) if mtu < USUAL_MTU => Cell::toned(&mtu, Tone::Warning),
        Some(mtu) => mtu.into(),
    }
}

/// `its agent says: down # no disk, drain, 75%`; nothing where it said no more than that all is well.
fn agent_note(agent: &AgentCheckStatus) -> Option<String> {
    let AgentCheckStatus {
        health,
        description,
        admin,
        weight_percent,
        max_connections,
        full,
        problem,
    } = agent;
    let unhealthy = health.as_ref().filter(|health| *health != "up");
    let description = unhealthy
        .and(description.as_ref())
        .map(|text| format!("# {text}"));
    let health = unhealthy.map(|health| {
        [Some(health.clone()), description]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(" ")
    });
    let admin = admin.filter(|admin| *admin != AdminState::Ready);
    let said = [
        health,
        admin.map(|admin| admin.to_string().to_lowercase()),
        weight_percent.map(|percent| format!("{percent}%")),
        max_connections.map(|limit| match full {
            true => format!("maxconn:{limit} (reached: no new flows)"),
            false => format!("maxconn:{limit}"),
        }),
    ];
    let said = said.into_iter().flatten().collect::<Vec<_>>().join(", ");
    match (said.is_empty(), problem) {
        (true, None) => None,
        (false, None) => Some(format!("its agent says: {said}")),
        (true, Some(problem)) => Some(format!("its agent: {problem}")),
        (false, Some(problem)) => Some(format!("its agent said: {said}; {problem}")),
    }
}

/// `L7OK/200 in 1.2ms`.
fn check_text(check: &CheckStatus) -> String {
    let CheckStatus {
        code,
        latency_ms,
        detail,
    } = check;
    let mut text = code.to_string();
    if let Some(status) = split_status(detail) {
        let _ = write!(text, "/{status}");
    }
    if let Some(ms) = latency_ms
        && !matches!(code, CheckCode::Unk | CheckCode::Ini)
    {
        let _ = write!(text, " in {}", human::latency(*ms));
    }
    text
}

/// The HTTP status that a detail begins with.
fn split_status(detail: &str) -> Option<&str> {
    let status = detail.split(' ').next()?;
    (status.len() == 3 && status.bytes().all(|byte| byte.is_ascii_digit())).then_some(status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::{example_status, screen};

    #[test]
    fn a_wide_screen_has_everything() {
        assert_eq!(render(&example_status(), &screen(None)), WIDE);
    }

    #[test]
    fn eighty_columns_keep_what_matters_first() {
        let text = render(&example_status(), &screen(Some(80)));
        assert_eq!(text, NARROW);
        assert!(text.lines().all(|line| line.chars().count() <= 80));
    }

    #[test]
    fn without_an_agent_the_first_line_says_so() {
        let mut status = example_status();
        status.agent.running = false;
        let text = render(&status, &screen(None));
        assert!(
            text.starts_with("AGENT NOT RUNNING since 2025-01-01T00:00:00Z, states frozen\n"),
            "{text}"
        );
    }

    #[test]
    fn without_an_agent_and_an_interface_nothing_is_forwarded() {
        let mut status = example_status();
        status.agent.running = false;
        assert!(render(&status, &screen(None)).contains("packets are forwarded on"));
        for interface in &mut status.interfaces {
            interface.mode = "detached".into();
        }
        let text = render(&status, &screen(None));
        assert!(text.contains("nothing is forwarded\n"), "{text}");
        assert!(!text.contains("forwarded on"), "{text}");
    }

    #[test]
    fn what_needs_attention_is_said_in_words() {
        let mut status = example_status();
        status.agent.detached = true;
        status.agent.confirm_within_s = Some(42);
        status.agent.isolated_since = Some("2025-01-01T00:00:01Z".into());
        status.services[0].backends[0].doubted = true;
        status.agent.warnings = vec!["odd".into()];
        status.interfaces[0].mode = "detached".into();
        status.services[0].selection = Some(Why::Last);
        status.services[1].table_size = 0;
        let text = render(&status, &screen(None));
        for words in [
            "DETACHED: ",
            "NOT CONFIRMED: detaching in 42 s",
            "ISOLATED since 2025-01-01T00:00:01Z",
            "DOUBTED: ",
            "warning: odd",
            "eth0       DETACHED",
            "ALL DOWN: ",
            "NOBODY SERVES: ",
        ] {
            assert!(text.contains(words), "{words} in:\n{text}");
        }
    }

    #[test]
    fn a_check_is_shown_as_haproxy_does() {
        let text = |code, latency_ms, detail: &str| {
            check_text(&CheckStatus {
                code,
                latency_ms,
                detail: detail.into(),
            })
        };
        assert_eq!(text(CheckCode::L7ok, Some(1.21), "200 OK"), "L7OK/200 in 1.2ms");
        assert_eq!(text(CheckCode::L7sts, Some(12.0), "503"), "L7STS/503 in 12.0ms");
        assert_eq!(
            text(CheckCode::L4con, Some(0.1), "connection refused"),
            "L4CON in 0.10ms"
        );
        assert_eq!(text(CheckCode::Ini, None, ""), "INI");
        assert_eq!(text(CheckCode::Unk, Some(0.0), "no check"), "UNK");
    }

    const WIDE: &str = "\
agent 0.1.0 running since 2025-01-01T00:00:00Z (3h12m), process 4711
configuration /etc/xlb/xlb.toml

INTERFACE  MODE    DRIVER       MTU  PROGRAM
eth0       native  virtio_net  1500       42

web  192.0.2.10:80/tcp  dsr-ipip maglev  1 of 3 backends serve
  24,690 packets, 2.47 MB, ~2,408 new flows; 4093 slots, generation 7
  BACKEND       STATE    FOR    ADMIN  CHECK              WEIGHT       SHARE   MTU  NEW FLOWS  PACKETS    BYTES
  10.0.1.11:80  UP       3h11m  READY  L7OK/200 in 1.2ms  10           33.3%  1480     ~1,204   12,345  1.23 MB
  10.0.1.12:80  DOWN     3h11m  READY  L4CON in 0.10ms    10            0.0%  1480     ~1,204   12,345  1.23 MB
    check: connection refused
  10.0.1.13:80  UNKNOWN  3h11m  MAINT  UNK                5 (file 10)   0.0%  1480     ~1,204   12,345  1.23 MB

dns  [2001:db8::10]:80/udp  dsr-ipip maglev  1 of 2 backends serve
  24,690 packets, 2.47 MB; 4093 slots, generation 7
  BACKEND              STATE  FOR    ADMIN  CHECK              WEIGHT  SHARE   MTU  NEW FLOWS  PACKETS    BYTES
  [2001:db8::1:11]:80  UP     3h11m  READY  L7OK/200 in 1.2ms  10      33.3%  1480          -   12,345  1.23 MB
  [2001:db8::1:12]:80  UP     3h11m  READY  L7OK/200 in 1.2ms  10      33.3%  1480          -   12,345  1.23 MB
    UNRESOLVED: no route to 2001:db8::1:12
";

    const NARROW: &str = "\
agent 0.1.0 running since 2025-01-01T00:00:00Z (3h12m), process 4711
configuration /etc/xlb/xlb.toml

INTERFACE  MODE    DRIVER       MTU  PROGRAM
eth0       native  virtio_net  1500       42

web  192.0.2.10:80/tcp  dsr-ipip maglev  1 of 3 backends serve
  24,690 packets, 2.47 MB, ~2,408 new flows; 4093 slots, generation 7
  BACKEND       STATE    ADMIN  CHECK              WEIGHT       SHARE   MTU
  10.0.1.11:80  UP       READY  L7OK/200 in 1.2ms  10           33.3%  1480
  10.0.1.12:80  DOWN     READY  L4CON in 0.10ms    10            0.0%  1480
    check: connection refused
  10.0.1.13:80  UNKNOWN  MAINT  UNK                5 (file 10)   0.0%  1480

dns  [2001:db8::10]:80/udp  dsr-ipip maglev  1 of 2 backends serve
  24,690 packets, 2.47 MB; 4093 slots, generation 7
  BACKEND              STATE  ADMIN  CHECK              WEIGHT  SHARE   MTU
  [2001:db8::1:11]:80  UP     READY  L7OK/200 in 1.2ms  10      33.3%  1480
  [2001:db8::1:12]:80  UP     READY  L7OK/200 in 1.2ms  10      33.3%  1480
    UNRESOLVED: no route to 2001:db8::1:12
";
}
