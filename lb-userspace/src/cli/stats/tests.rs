use super::*;
use crate::api::types::BackendStats;
use crate::cli::tests::screen;
use crate::model::Protocol;

fn stats(at_ms: u64, packets: u64) -> Stats {
    let backend = BackendStats {
        address: "10.0.1.11".parse().unwrap(),
        port: 80,
        packets,
        bytes: packets * 125,
        new_flows: packets / 10,
    };
    Stats {
        at_ms,
        services: vec![ServiceStats {
            name: "web".into(),
            address: "192.0.2.10".parse().unwrap(),
            port: 80,
            last_port: None,
            protocol: Protocol::Tcp,
            packets,
            bytes: packets * 125,
            new_flows: packets / 10,
            refused: RefusedStats {
                denied: packets / 2,
                client_flow_limit: 5,
                dry_run: true,
                ..RefusedStats::default()
            },
            quic: None,
            backends: vec![backend],
        }],
        reasons: vec![
            ReasonStats {
                reason: "not_service".into(),
                verdict: "pass".into(),
                packets,
                meaning: "No service's".into(),
            },
            ReasonStats {
                reason: "no_backend".into(),
                verdict: "drop".into(),
                packets: 0,
                meaning: "Nobody takes it".into(),
            },
        ],
        drivers: vec![
            DriverStats {
                interface: "eth0".into(),
                lost: vec![LostStats {
                    counter: "rx_queue_N_xdp_tx_errors".into(),
                    packets: packets / 4,
                }],
            },
            DriverStats {
                interface: "eth1".into(),
                lost: vec![LostStats {
                    counter: "xdp:xdp_devmap_xmit".into(),
                    packets: 7,
                }],
            },
        ],
    }
}

#[test]
fn counts_stand_by_service_and_backend() {
    assert_eq!(
        render(&stats(0, 12_340), true, &screen(None)),
        "\
SERVICE, BACKEND        PACKETS    BYTES  NEW FLOWS
web  192.0.2.10:80/tcp   12,340  1.54 MB     ~1,234
  refused: denied 6,170, client_flow_limit 5 (dry run)
  10.0.1.11:80           12,340  1.54 MB     ~1,234

REASON       VERDICT  PACKETS  MEANING
not_service  pass      12,340  No service's
no_backend   drop           0  Nobody takes it

LOST AFTER THE VERDICT  COUNTER                      PACKETS
eth0                    no tracepoints: see the log        -
eth0                    rx_queue_N_xdp_tx_errors       3,085
eth1                    its driver has none                -
eth1                    xdp:xdp_devmap_xmit                7
"
    );
    let narrow = render(&stats(0, 1), true, &screen(Some(40)));
    assert!(
        !narrow.contains("MEANING") && narrow.contains("not_service"),
        "{narrow}"
    );
}

#[test]
fn rates_are_per_second_of_the_time_that_passed() {
    let rates = rate::rates(&stats(1000, 100), &stats(3000, 2100));
    let web = &rates.services[0];
    assert_eq!(
        (
            web.rate.packets_per_s,
            web.rate.bits_per_s,
            web.rate.new_flows_per_s
        ),
        (1000.0, 1e6, 100.0)
    );
    assert_eq!(web.backends[0].rate, web.rate);
    assert_eq!((rates.interval_s, rates.reasons[0].packets_per_s), (2.0, 1000.0));
    assert_eq!(
        rate::render(&rates, true, &screen(None)),
        "\
SERVICE, BACKEND        PACKETS/S         RATE  NEW FLOWS/S
web  192.0.2.10:80/tcp      1.00k  1.00 Mbit/s         ~100
  10.0.1.11:80              1.00k  1.00 Mbit/s         ~100

REASON       VERDICT  PACKETS/S  MEANING
not_service  pass         1.00k  No service's
no_backend   drop             0  Nobody takes it

LOST AFTER THE VERDICT  COUNTER                   PACKETS/S
eth0                    rx_queue_N_xdp_tx_errors        250
eth1                    xdp:xdp_devmap_xmit               0
"
    );
}

#[test]
fn what_is_new_or_began_again_counts_from_nothing() {
    let mut nothing = stats(0, 0);
    nothing.services.clear();
    nothing.reasons.clear();
    assert_eq!(
        rate::rates(&nothing, &stats(1000, 50)).services[0]
            .rate
            .packets_per_s,
        50.0
    );
    assert_eq!(
        rate::rates(&stats(0, 9000), &stats(1000, 50)).services[0]
            .rate
            .packets_per_s,
        50.0
    );
    let at_once = rate::rates(&stats(5, 0), &stats(5, 1));
    assert!(at_once.services[0].rate.packets_per_s.is_finite());
}

#[test]
fn json_says_whose_counts_they_are() {
    let answer = Answer {
        agent: Source::from(&None),
        counts: stats(7, 1),
    };
    let json = serde_json::to_value(&answer).unwrap();
    assert_eq!(json["agent"]["running"], true);
    assert_eq!(json["at_ms"], 7);
    assert_eq!(json["services"][0]["backends"][0]["address"], "10.0.1.11");
    let rates = Answer {
        agent: Source::from(&None),
        counts: rate::rates(&stats(0, 0), &stats(1000, 8)),
    };
    let json = serde_json::to_value(&rates).unwrap();
    assert_eq!(json["services"][0]["packets_per_s"], 8.0);
    assert_eq!(json["services"][0]["backends"][0]["bits_per_s"], 8000.0);
}

#[test]
fn what_ids_of_quic_said_stands_below_the_service() {
    let mut stats = stats(0, 10);
    assert_eq!(quic_note(&Some(QuicStats::default())), None);
    stats.services[0].quic = Some(QuicStats {
        by_id: 12_345,
        unroutable: 6,
        gone: 0,
    });
    let text = render(&stats, false, &screen(None));
    assert!(
        text.contains("\n  QUIC: by_id 12,345, unroutable 6, gone 0\n"),
        "{text}"
    );
}
