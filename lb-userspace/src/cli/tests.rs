use std::time::{Duration, SystemTime};

use clap::CommandFactory;
use clap::error::ErrorKind;

use super::*;
use crate::api::types::{
    AgentStatus, BackendStatus, CheckStatus, Failure, InterfaceStatus, ServiceStatus, Status,
};
use crate::config::Role;
use crate::control::{OldFlows, Why};
use crate::model::{AdminState, CheckCode, Forward, OperState, Protocol, Scheduler};

pub(super) fn screen(width: Option<u16>) -> Screen {
    Screen {
        width,
        colour: false,
        // 2025-01-01T03:12:00Z
        now: SystemTime::UNIX_EPOCH + Duration::from_secs(1_735_701_120),
    }
}

pub(super) fn example_backend(address: &str) -> BackendStatus {
    BackendStatus {
        address: address.parse().unwrap(),
        port: 80,
        weight: 10,
        effective_weight: 10,
        role: Role::Primary,
        slow_start_percent: None,
        held_until: None,
        old_flows: Some(OldFlows::Keep),
        host_answers: None,
        state: OperState::Up,
        admin: AdminState::Ready,
        serving: true,
        doubted: false,
        unresolved: None,
        check: CheckStatus {
            code: CheckCode::L7ok,
            latency_ms: Some(1.21),
            detail: "200 OK".into(),
        },
        agent_check: None,
        share_percent: 33.333,
        packets: 12_345,
        bytes: 1_234_567,
        new_flows: 1204,
        remembered_flows: Some(0),
        unseen_flows_until: None,
        packet_mtu: Some(1480),
        path_mtu_until: None,
        changed: Some("2025-01-01T00:00:01Z".into()),
    }
}

fn example_service(
    name: &str,
    address: &str,
    protocol: Protocol,
    backends: Vec<BackendStatus>,
) -> ServiceStatus {
    ServiceStatus {
        name: name.into(),
        address: address.parse().unwrap(),
        port: 80,
        last_port: None,
        protocol,
        forward: Forward::DsrIpip,
        scheduler: Scheduler::Maglev,
        tracking: "none".into(),
        idle_timeout_ms: Some(900_000),
        persistence: None,
        table_size: 4093,
        generation: 7,
        all_down: false,
        pool: None,
        selection: Some(Why::Serving),
        backups_in_use: false,
        packets: 24_690,
        bytes: 2_469_134,
        new_flows: 2408,
        backends,
    }
}

pub(super) fn example_status() -> Status {
    let mut dead = example_backend("10.0.1.12");
    dead.state = OperState::Down;
    dead.serving = false;
    dead.share_percent = 0.0;
    dead.check = CheckStatus {
        code: CheckCode::L4con,
        latency_ms: Some(0.1),
        detail: "connection refused".into(),
    };
    let mut out = example_backend("10.0.1.13");
    out.admin = AdminState::Maint;
    out.state = OperState::Unknown;
    out.serving = false;
    out.share_percent = 0.0;
    out.check = CheckStatus::default();
    out.effective_weight = 5;
    let mut lost = example_backend("2001:db8::1:12");
    lost.serving = false;
    lost.unresolved = Some("no route to 2001:db8::1:12".into());
    Status {
        agent: AgentStatus {
            running: true,
            version: "0.1.0".into(),
            since: "2025-01-01T00:00:00Z".into(),
            pid: 4711,
            detached: false,
            confirm_within_s: None,
            isolated_since: None,
            config: "/etc/xlb/xlb.toml".into(),
            warnings: Vec::new(),
        },
        interfaces: vec![InterfaceStatus {
            name: "eth0".into(),
            mode: "native".into(),
            driver: Some("virtio_net".into()),
            program_id: Some(42),
            mtu: Some(1500),
        }],
        services: vec![
            example_service(
                "web",
                "192.0.2.10",
                Protocol::Tcp,
                vec![example_backend("10.0.1.11"), dead, out],
            ),
            example_service(
                "dns",
                "2001:db8::10",
                Protocol::Udp,
                vec![example_backend("2001:db8::1:11"), lost],
            ),
        ],
        migrations: Vec::new(),
        flow_table: None,
        flow_cache: None,
        nat: None,
        memory: None,
    }
}

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn options_work_before_and_after_the_verb() {
    for line in [
        "xlb -o json --socket /s -v backend drain web 10.0.1.11:80",
        "xlb backend -o json drain --socket /s web -v 10.0.1.11:80",
        "xlb backend drain web 10.0.1.11:80 --output=json --socket=/s --verbose",
    ] {
        let global = parse(line)
            .unwrap_or_else(|error| panic!("{line}: {error}"))
            .global;
        assert_eq!(
            (global.output, global.socket.to_str(), global.verbose),
            (Format::Json, Some("/s"), 1),
            "{line}"
        );
    }
}

#[test]
fn every_verb_takes_its_options_and_those_of_all() {
    for line in [
        "xlb agent --config /c --trace-drops 10 --attach-confirm 60s",
        "xlb plan",
        "xlb plan new.toml",
        "xlb reload",
        "xlb confirm",
        "xlb detach --pin-dir /p",
        "xlb status --check --pin-dir /p",
        "xlb service list --pin-dir /p",
        "xlb backend list web --pin-dir /p",
        "xlb backend drain web 10.0.1.11:80 --force",
        "xlb backend maint --host 10.0.1.11",
        "xlb backend ready web [2001:db8::1]:80",
        "xlb backend set-weight web 2001:db8::1 50%",
        "xlb backend set-weight --host 2001:db8::1 50%",
        "xlb backend set-weight --force --host 10.0.1.11 0",
        "xlb stats --rate --reasons --pin-dir /p",
        "xlb stats --rate 5",
        "xlb config check /c --anywhere",
        "xlb config check --config /c",
        "xlb config example",
        "xlb config schema",
        "xlb completions bash",
        "xlb doctor --interface eth0 --config /c",
        "xlb decap attach --interface eth0 --from 10.0.0.2 2001:db8::/64 --mode generic",
        "xlb decap detach --interface eth0",
        "xlb decap status --interface eth0",
        "xlb simulate --config /c --in /i --out /o --neighbor 10.0.1.11=02:00:00:00:00:0b --source 10.0.0.2 --source 2001:db8::2 --repeat 10",
    ] {
        let line = format!("{line} -o json --socket /s -v");
        let global = parse(&line)
            .unwrap_or_else(|error| panic!("{line}: {error}"))
            .global;
        assert_eq!((global.output, global.verbose), (Format::Json, 1), "{line}");
    }
}

#[test]
fn wrong_usage_is_refused_with_status_2() {
    for line in [
        "xlb",
        "xlb nothing",
        "xlb status -o yaml",
        "xlb backend drain web",
        "xlb backend drain",
        "xlb backend drain web 10.0.1",
        "xlb backend drain web 10.0.1.11 --host 10.0.1.11",
        "xlb backend set-weight web 10.0.1.11 heavy",
        "xlb stats --rate 0",
        "xlb agent --attach-confirm soon",
        "xlb config check /c --config /c",
        "xlb completions cmd",
    ] {
        let error = parse(line).expect_err(line);
        assert_eq!(error.exit_code(), 2, "{line}: {error}");
    }
    assert_eq!(parse("xlb --version").unwrap_err().exit_code(), 0);
    assert_eq!(
        parse("xlb status --help").unwrap_err().kind(),
        ErrorKind::DisplayHelp
    );
}

#[test]
fn every_verb_and_option_is_explained() {
    fn walk(command: &clap::Command, path: &str) {
        assert!(command.get_about().is_some(), "{path} has no help");
        for argument in command.get_arguments().filter(|a| !a.is_hide_set()) {
            let known = matches!(argument.get_id().as_str(), "help" | "version");
            assert!(
                known || argument.get_help().is_some(),
                "{path} {} has no help",
                argument.get_id()
            );
        }
        for verb in command.get_subcommands() {
            walk(verb, &format!("{path} {}", verb.get_name()));
        }
    }
    walk(&Cli::command(), "xlb");
}

#[test]
fn exit_statuses_follow_from_errors() {
    let none = io::ErrorKind::NotFound.into();
    let not_running = client::Error::NotRunning {
        socket: "/s".into(),
        source: none,
    };
    assert_eq!(status_of(&not_running.into()), 4);
    assert_eq!(
        status_of(&client::Error::NoPermission { socket: "/s".into() }.into()),
        4
    );
    let nothing = source::Unreachable::Nothing {
        socket: "/s".into(),
        pins: "/p".into(),
    };
    assert_eq!(status_of(&anyhow::Error::from(nothing).context("status")), 4);
    let failure = Failure {
        error: "no service web".into(),
        faults: vec!["x.toml:1:1: odd".into()],
    };
    let refused = anyhow::Error::from(client::Error::Refused {
        status: hyper::StatusCode::NOT_FOUND,
        failure,
    });
    assert_eq!(status_of(&refused), 1);
    assert_eq!(complaint(&refused), "x.toml:1:1: odd\nxlb: no service web");
    assert_eq!(status_of(&anyhow::anyhow!("anything else")), 1);
}

#[test]
fn a_cause_is_told_once() {
    let source = io::Error::other("disk full");
    let error = anyhow::Error::from(crate::datapath::Error::Io {
        path: "/p".into(),
        source,
    });
    assert_eq!(
        complaint(&error.context("detaching")),
        "xlb: detaching: /p: disk full"
    );
}

#[test]
fn the_faults_of_a_configuration_begin_their_lines() {
    let faults = crate::config::Config::parse("schema = 2").unwrap_err();
    let lines = faults.0.len();
    let path = "x.toml".into();
    let text = complaint(&LoadError::Invalid { path, faults }.into());
    assert_eq!(
        text.lines().filter(|line| line.starts_with("x.toml:1:")).count(),
        lines
    );
    assert!(
        text.ends_with("\nxlb: the configuration x.toml is refused"),
        "{text}"
    );
}

#[test]
fn an_agent_that_is_not_there_is_told_with_the_path() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("xlb.sock");
    let pins = folder.path().join("pins");
    let context = Context {
        client: client::Client::new(&socket),
        format: Format::Table,
        screen: screen(None),
    };
    for line in [
        "xlb reload",
        "xlb confirm",
        "xlb status --pin-dir PINS",
        "xlb stats --pin-dir PINS",
        "xlb backend drain web 10.0.1.11",
    ] {
        let cli = parse(&line.replace("PINS", pins.to_str().unwrap())).unwrap();
        let error = run(cli.verb, &context).expect_err(line);
        assert_eq!(status_of(&error), 4, "{line}: {error:#}");
        assert!(
            complaint(&error).contains(socket.to_str().unwrap()),
            "{line}: {error:#}"
        );
    }
    let cli = parse(&format!("xlb status --check --pin-dir {}", pins.display())).unwrap();
    let outcome = run(cli.verb, &context).unwrap();
    assert_eq!(
        (outcome.code, outcome.text.lines().count()),
        (3, 1),
        "{}",
        outcome.text
    );
    let cli = parse(&format!("xlb detach --pin-dir {}", pins.display())).unwrap();
    let outcome = run(cli.verb, &context).unwrap();
    assert_eq!((outcome.code, outcome.text.as_str()), (0, "nothing to change\n"));
}
