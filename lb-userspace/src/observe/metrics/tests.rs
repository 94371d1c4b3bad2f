use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::*;
use crate::model::{BackendId, CheckCode, OperState, Protocol, ServiceKey};

fn backend(last: u8) -> BackendId {
    BackendId {
        service: ServiceKey {
            address: [192, 0, 2, 10].into(),
            port: 80,
            protocol: Protocol::Tcp,
        },
        address: [10, 0, 1, last].into(),
        port: 80,
    }
}

fn metered(meter: &Meter) -> Vec<Family> {
    let id = backend(1);
    let services = [(id.service, "web")].into_iter();
    let backends = [(id, "web", "10.0.1.1:80".to_owned())].into_iter();
    meter.families(services, backends)
}

fn example() -> String {
    let mut meter = Meter::default();
    for (code, ms) in [
        (CheckCode::L7ok, 2),
        (CheckCode::L7ok, 3),
        (CheckCode::L4con, 2000),
    ] {
        meter.result(&backend(1), code, Duration::from_millis(ms));
    }
    meter.result(&backend(1), CheckCode::Sockerr, Duration::ZERO);
    meter.verdict(&backend(1), OperState::Down);
    meter.switch(&backend(1).service, 40);
    meter.reload(false);
    let mut families = metered(&meter);
    let mut bytes = Family::counter("service", "Bytes sent.").bytes();
    bytes.row([("service", "odd\"\\\n")], 7_u64);
    let mut up = Family::gauge("agent_start_time", "Since when.").seconds();
    up.row([], 1.5);
    families.extend([bytes, up]);
    text(families)
}

#[test]
fn the_text_is_open_metrics() {
    let text = example();
    for line in [
        "# TYPE xlb_service_bytes counter",
        "# UNIT xlb_service_bytes bytes",
        "# HELP xlb_service_bytes Bytes sent.",
        "xlb_service_bytes_total{service=\"odd\\\"\\\\\\n\"} 7",
        "xlb_agent_start_time_seconds 1.5",
        "xlb_check_results_total{service=\"web\",backend=\"10.0.1.1:80\",code=\"L7OK\"} 2",
        "xlb_check_results_total{service=\"web\",backend=\"10.0.1.1:80\",code=\"SOCKERR\"} 1",
        "xlb_backend_verdicts_total{service=\"web\",backend=\"10.0.1.1:80\",to=\"DOWN\"} 1",
        "xlb_check_latency_seconds_bucket{le=\"0.0025\",service=\"web\"} 1",
        "xlb_check_latency_seconds_bucket{le=\"1.0\",service=\"web\"} 2",
        "xlb_check_latency_seconds_bucket{le=\"+Inf\",service=\"web\"} 3",
        "xlb_check_latency_seconds_count{service=\"web\"} 3",
        "xlb_service_moved_slots_total{service=\"web\"} 40",
        "xlb_agent_reloads_total{result=\"refused\"} 1",
    ] {
        assert!(text.lines().any(|known| known == line), "{line} in:\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
    assert!(!text.contains("L4TOUT"), "codes that never came:\n{text}");
}

/// Prometheus' own judgement, where the machine has it.
#[test]
fn promtool_finds_nothing_wrong() {
    let promtool = std::env::var("PROMTOOL").unwrap_or_else(|_| "promtool".into());
    let spawned = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = spawned else {
        eprintln!("left out: promtool is not installed");
        return;
    };
    let mut input = child.stdin.take().unwrap();
    // It reads the older format: without units and an end, and counters have their ending in the headers too.
    let text = example();
    let counters: Vec<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"))
        .map(|name| format!(" {name} "))
        .collect();
    for line in text.lines() {
        let counter = counters
            .iter()
            .find(|name| line.starts_with("# ") && line.contains(*name));
        match counter {
            _ if line.starts_with("# UNIT") || line == "# EOF" => {}
            Some(name) => {
                let ended = format!(" {}_total ", name.trim());
                writeln!(input, "{}", line.replacen(name.as_str(), &ended, 1)).unwrap();
            }
            None => writeln!(input, "{line}").unwrap(),
        }
    }
    drop(input);
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success() && said.is_empty(), "{said}\n{text}");
}

#[test]
fn what_is_gone_is_forgotten() {
    let mut meter = Meter::default();
    meter.result(&backend(1), CheckCode::L4ok, Duration::ZERO);
    meter.result(&backend(2), CheckCode::L4ok, Duration::ZERO);
    meter.keep_only(&BTreeSet::from([backend(2)]));
    assert!(!text(metered(&meter)).contains("10.0.1.1:80"));
}
