//! The `exec` check with small programs of `/bin/sh`.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::health::probe::probe;
use crate::health::probe::tests::{PLENTY, SHORT, seen, subject};
use crate::health::{CheckKind, ProbeResult, Subject};

fn running(command: &[&str]) -> Subject {
    let check = ExecCheck {
        command: command.iter().map(ToString::to_string).collect(),
    };
    let address = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 7), 8080));
    subject(CheckKind::Exec(Arc::new(check)), address)
}

async fn script(text: &str) -> ProbeResult {
    probe(&running(&["/bin/sh", "-c", text]), PLENTY).await
}

#[tokio::test]
async fn the_exit_status_decides() {
    for (text, code, detail) in [
        ("exit 0", CheckCode::L7ok, "exit status 0"),
        ("exit 3", CheckCode::L7sts, "exit status 3"),
        ("kill -TERM $$", CheckCode::L7sts, "killed by signal 15"),
        (
            "echo; echo ' all is well '; echo more",
            CheckCode::L7ok,
            "exit status 0: all is well",
        ),
        ("echo no disk; exit 1", CheckCode::L7sts, "exit status 1: no disk"),
        ("echo bad >&2; exit 1", CheckCode::L7sts, "exit status 1"),
    ] {
        assert_eq!(seen(&script(text).await), (code, detail), "{text}");
    }
}

#[tokio::test]
async fn its_environment_is_what_the_documentation_says() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("environment");
    let result = script(&format!("/usr/bin/env >{}", file.display())).await;
    assert_eq!(result.code, CheckCode::L7ok, "{}", result.detail);
    let environment = fs::read_to_string(file).unwrap();
    let mut variables: Vec<_> = environment.lines().collect();
    // Made by the shell.
    variables.retain(|variable| {
        !["PWD=", "SHLVL=", "_="]
            .iter()
            .any(|name| variable.starts_with(name))
    });
    variables.sort_unstable();
    let path = format!("PATH={PATH}");
    assert_eq!(
        variables,
        [
            "LANG=C",
            &path,
            "XLB_ADDRESS=192.0.2.7",
            "XLB_PORT=8080",
            "XLB_TIMEOUT_MS=60000"
        ]
    );
}

#[tokio::test]
async fn no_shell_reads_the_arguments() {
    let result = probe(&running(&["/bin/echo", "$HOME; exit 1", "*"]), PLENTY).await;
    assert_eq!(seen(&result), (CheckCode::L7ok, "exit status 0: $HOME; exit 1 *"));
}

#[tokio::test]
async fn a_program_that_cannot_run_is_no_verdict() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let not_executable = file.path().to_str().unwrap();
    for (command, detail) in [
        (
            "/nonexistent/check",
            "cannot run the program: no such file or directory",
        ),
        (not_executable, "cannot run the program: permission denied"),
    ] {
        let result = probe(&running(&[command]), PLENTY).await;
        assert_eq!(seen(&result), (CheckCode::Sockerr, detail));
    }
}

#[tokio::test]
async fn endless_output_does_not_hold_it_up() {
    let result = script("/usr/bin/head -c 3000000 /dev/zero; echo; echo end").await;
    assert_eq!(result.code, CheckCode::L7ok);
    let result = probe(
        &running(&["/bin/sh", "-c", "while :; do echo still here; done"]),
        SHORT,
    )
    .await;
    assert_eq!(
        seen(&result),
        (CheckCode::L7tout, "the program did not end within 100ms")
    );
}

#[tokio::test]
async fn control_characters_are_left_out() {
    let result = script("printf 'a\\033[31mb\\tc\\n'").await;
    assert_eq!(result.detail, "exit status 0: a[31mbc");
}

/// Waits until the process whose number is in `file` is gone, or dead and not yet waited for.
async fn gone(file: &Path) {
    let number = loop {
        match fs::read_to_string(file) {
            Ok(text) if text.ends_with('\n') => break text.trim().to_owned(),
            _ => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    let stat = format!("/proc/{number}/stat");
    while fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A program that forks and hangs: all of it is killed when its time is over.
#[tokio::test]
async fn what_hangs_is_killed_with_its_children() {
    let folder = TempDir::new().unwrap();
    let (parent, child) = (folder.path().join("parent"), folder.path().join("child"));
    let text = format!(
        "echo $$ >{}; /bin/sleep 1000 & echo $! >{}; trap '' TERM; wait",
        parent.display(),
        child.display()
    );
    let subject = running(&["/bin/sh", "-c", &text]);
    // Until it had the time to get that far.
    let mut timeout = SHORT;
    while !child.exists() {
        let result = probe(&subject, timeout).await;
        assert_eq!(result.code, CheckCode::L7tout);
        timeout *= 2;
    }
    gone(&parent).await;
    gone(&child).await;
}

/// What a program leaves behind ends with it, and does not delay the result.
#[tokio::test]
async fn what_it_leaves_behind_ends_with_it() {
    let folder = TempDir::new().unwrap();
    let child = folder.path().join("child");
    let result = script(&format!("/bin/sleep 1000 & echo $! >{}; exit 0", child.display())).await;
    assert_eq!(result.code, CheckCode::L7ok);
    gone(&child).await;
}

#[tokio::test]
async fn a_check_that_is_no_longer_wanted_is_killed() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("number");
    let text = format!("echo $$ >{}; exec /bin/sleep 1000", file.display());
    let probing = tokio::spawn(async move { probe(&running(&["/bin/sh", "-c", &text]), PLENTY).await });
    while !fs::read_to_string(&file).is_ok_and(|text| text.ends_with('\n')) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    probing.abort();
    assert!(probing.await.unwrap_err().is_cancelled());
    gone(&file).await;
}
