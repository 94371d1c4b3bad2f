use super::*;
use crate::cli::tests::screen;
use crate::model::CheckCode;
use crate::observe::Probe;

fn answer() -> Answer {
    let at = |ms: u64| Timestamp(1_735_701_100_000 + ms);
    let verdict = Verdict {
        time: at(420),
        from: OperState::Up,
        to: OperState::Down,
        code: CheckCode::L4con,
        cause: "L4CON refused\x1b".into(),
        results: vec![Probe {
            time: at(410),
            code: CheckCode::L4con,
            latency_ms: 0.12,
            detail: "refused".into(),
        }],
        timeline: Some(Timeline {
            last_good: Some(at(0).min(Timestamp(1_735_701_099_000))),
            suspected: None,
            first_bad: Some(at(10)),
            verdict: at(420),
            table_switched: Some(at(423)),
            moved_slots: 2047,
            first_packet: Some(at(425)),
            resolution_ms: Some(2.04),
        }),
    };
    Answer {
        since: at(0),
        backends: vec![BackendHistory {
            service: "web".into(),
            backend: "10.0.1.11:80".parse().unwrap(),
            state: OperState::Down,
            since: at(420),
            removed: false,
            failures: 2,
            up_s: 7200.0,
            down_s: 3.0,
            mtbf_s: Some(3600.0),
            mttr_s: Some(1.5),
            availability: Some(7200.0 / 7203.0),
            verdicts: vec![verdict],
        }],
    }
}

#[test]
fn the_course_of_an_incident_is_told_from_its_first_failure() {
    let text = render(&answer(), true, &screen(None));
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines[2].split_whitespace().collect::<Vec<_>>(),
        [
            "web",
            "10.0.1.11:80",
            "DOWN",
            "19s",
            "2",
            "1h",
            "1.5s",
            "99.9583",
            "%"
        ]
    );
    let offsets = |what: &str| {
        let line = lines.iter().find(|line| line.contains(what)).unwrap();
        line.split("  ")
            .map(str::trim)
            .find(|part| part.ends_with(" ms") && part.len() < 9)
    };
    assert_eq!(offsets("last good probe"), Some("-1010 ms"));
    assert_eq!(offsets("verdict"), Some("+410 ms"));
    assert_eq!(offsets("table switched"), Some("+413 ms"));
    assert_eq!(offsets("took over"), Some("+415 ms"));
    assert!(
        text.contains("2,047 slots moved") && text.contains("up to 2.0 ms before"),
        "{text}"
    );
    assert!(
        text.contains("L4CON  0.12ms  refused") && !text.contains('\x1b'),
        "{text}"
    );
    assert!(!render(&answer(), false, &screen(None)).contains("verdict"));
}

#[test]
fn availability_is_never_rounded_up() {
    assert_eq!(percent(0.999_999_99), "99.9999 %");
    assert_eq!(percent(1.0), "100.0000 %");
    assert_eq!(precise(0.25), "0.2s");
    assert_eq!(precise(61.0), "1m1s");
}
