//! The words of the protocol, and agents on loopback.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::*;
use crate::config::AgentCheck;
use crate::health::probe::tests::refusing;
use crate::model::{BackendId, Protocol, ServiceKey};

fn after(lines: &[&str]) -> Steering {
    let mut steering = Steering::default();
    for line in lines {
        assert_eq!(steering.take(line), None, "{line}");
    }
    steering
}

#[test]
fn each_word_means_what_haproxy_means_by_it() {
    let health = |health, description: Option<&str>| Steering {
        health: Some(health),
        description: description.map(str::to_owned),
        ..Steering::default()
    };
    let admin = |admin| Steering {
        admin: Some(admin),
        ..Steering::default()
    };
    let weight = |percent| Steering {
        weight_percent: Some(percent),
        ..Steering::default()
    };
    for (line, expected) in [
        ("", Steering::default()),
        ("up", health(AgentHealth::Up, None)),
        ("UP", health(AgentHealth::Up, None)),
        ("down", health(AgentHealth::Down, None)),
        ("stopped # by hand", health(AgentHealth::Stopped, Some("by hand"))),
        ("fail #disk full", health(AgentHealth::Fail, Some("disk full"))),
        ("down#x", Steering::default()),
        ("ready", admin(AdminState::Ready)),
        ("Drain", admin(AdminState::Drain)),
        ("maint", admin(AdminState::Maint)),
        ("75%", weight(75)),
        ("0%", weight(0)),
        ("150%", weight(150)),
        (
            "maxconn:30",
            Steering {
                max_connections: Some(30),
                ..Steering::default()
            },
        ),
        (
            "up,75%\tready  MAXCONN:7",
            Steering {
                health: Some(AgentHealth::Up),
                description: None,
                admin: Some(AdminState::Ready),
                weight_percent: Some(75),
                max_connections: Some(7),
            },
        ),
    ] {
        let mut steering = Steering::default();
        let unknown = steering.take(line);
        assert_eq!(steering, expected, "{line}");
        assert_eq!(unknown.is_some(), line == "down#x", "{line}");
    }
}

#[test]
fn of_one_kind_the_last_counts_and_what_is_not_said_stays() {
    let said = after(&["10% drain down # why 20%", "20%,30%"]);
    assert_eq!(said.weight_percent, Some(30));
    assert_eq!(said.admin, Some(AdminState::Drain));
    assert_eq!(said.health, Some(AgentHealth::Down));
    assert_eq!(said.description.as_deref(), Some("why 20%"));
    let said = after(&["drain down # why", "up ready down up"]);
    assert_eq!(said.health, Some(AgentHealth::Up));
    assert_eq!(said.admin, Some(AdminState::Ready));
    assert_eq!(said.description, None);
}

#[test]
fn the_first_word_that_is_not_understood_is_told_and_the_others_count() {
    for (line, word) in [
        ("75 up", "75"),
        ("-5% up", "-5%"),
        ("75%% up", "75%%"),
        ("up 99999999%", "99999999%"),
        ("up maxconn:", "maxconn:"),
        ("up maxconn:x yes", "maxconn:x"),
        ("okay\u{1b}[31m up", "okay[31m"),
        ("maxconnä up", "maxconnä"),
        ("% up", "%"),
    ] {
        let mut steering = Steering::default();
        assert_eq!(steering.take(line).as_deref(), Some(word), "{line}");
        assert_eq!(steering.health, Some(AgentHealth::Up), "{line}");
    }
}

fn target(address: std::net::SocketAddr, send: &[u8]) -> AgentTarget {
    AgentTarget {
        id: BackendId {
            service: ServiceKey {
                address: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10)),
                port: 80,
                protocol: Protocol::Tcp,
            },
            address: address.ip(),
            port: 80,
        },
        address,
        said: Steering::default(),
        check: AgentCheck {
            port: address.port(),
            address: None,
            interval: Duration::from_millis(5),
            timeout: Duration::from_secs(60),
            send: send.to_vec(),
            source: None,
        },
    }
}

/// What is reported of an agent that says these lines, one a connection, and then the last one for ever.
async fn heard(lines: &'static [&'static [u8]]) -> Vec<AgentReport> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, mut reports) = mpsc::channel(100);
    let mut prober = AgentProber::new(sender);
    prober.set_targets(vec![target(address, b"hello\n")]);
    let mut heard = Vec::new();
    for line in lines {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut asked = [0; 6];
        stream.read_exact(&mut asked).await.unwrap();
        assert_eq!(&asked, b"hello\n");
        // It may have read enough.
        let _ = stream.write_all(line).await;
        let _ = stream.shutdown().await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
        heard.push(reports.recv().await.unwrap());
    }
    heard
}

#[tokio::test]
async fn agents_are_asked_again_and_again() {
    let reports = heard(&[b"50%\n", b"drain\r\n", b"down # no disk\nup\n"]).await;
    let last = reports.last().unwrap();
    assert_eq!(reports[0].steering, after(&["50%"]));
    assert_eq!(last.steering, after(&["50% drain down # no disk"]));
    assert!(
        reports.iter().all(|report| report.problem.is_none()),
        "{reports:?}"
    );
}

#[tokio::test]
async fn what_is_no_whole_line_changes_nothing() {
    const ENDLESS: &[u8] = &[b'u'; 5000];
    let reports = heard(&[b"50%\n", b"drain", ENDLESS, b"", b"maint up okay\n"]).await;
    let problems: Vec<_> = reports.iter().map(|report| report.problem.as_deref()).collect();
    assert_eq!(problems[1], Some("L7RSP an incomplete line"));
    assert!(
        problems[3].is_some_and(|problem| problem.starts_with("L7RSP ")),
        "{problems:?}"
    );
    assert_eq!(problems[4], Some("does not understand \"okay\""));
    for report in &reports[..4] {
        assert_eq!(report.steering, after(&["50%"]));
    }
    assert_eq!(reports[4].steering, after(&["50% maint up"]));
}

#[tokio::test]
async fn an_agent_that_is_gone_is_told_once() {
    let (_socket, address) = refusing();
    let (sender, mut reports) = mpsc::channel(100);
    let mut prober = AgentProber::new(sender);
    prober.set_targets(vec![target(address, b"")]);
    let report = reports.recv().await.unwrap();
    assert_eq!(report.problem.as_deref(), Some("L4CON connection refused"));
    assert_eq!(report.steering, Steering::default());
    // It was asked again many times before another target's report came.
    let mut other = target(address, b"x");
    other.id.port = 81;
    other.check.interval = Duration::from_secs(60);
    tokio::time::sleep(Duration::from_millis(50)).await;
    prober.set_targets(vec![target(address, b""), other.clone()]);
    assert_eq!(reports.recv().await.unwrap().id, other.id);
    drop(prober);
    assert_eq!(reports.recv().await, None);
}
