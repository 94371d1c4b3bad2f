//! The prober with a network made up by the test and a clock that stands still until all wait for it, so that
//! every time is exact.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Mutex;

use tokio::sync::mpsc::Receiver;

use super::*;
use crate::config::{Require, Via};
use crate::health::{CheckKind, CheckSpec, ProbeSpec};
use crate::model::OperState::{Down, Unknown, Up};
use crate::model::{Forward, Protocol, ServiceKey};

const MS: Duration = Duration::from_millis(1);

/// What a target answers, and after how long; `None`: nothing.
type Answer = (Option<CheckCode>, Duration);

const OK: Answer = (Some(CheckCode::L4ok), Duration::ZERO);
const REFUSED: Answer = (Some(CheckCode::L4con), Duration::ZERO);
const SILENT: Answer = (None, Duration::ZERO);
const NOT_SENT: Answer = (Some(CheckCode::Sockerr), Duration::ZERO);

#[derive(Default)]
struct FakeNetwork {
    answers: Mutex<HashMap<SocketAddr, Answer>>,
    under_way: Mutex<(usize, usize)>,
    /// Probes that began, by address.
    begun: Mutex<HashMap<SocketAddr, usize>>,
}

impl FakeNetwork {
    fn begun(&self) -> HashMap<SocketAddr, usize> {
        self.begun.lock().unwrap().clone()
    }

    fn answer(&self, address: SocketAddr, answer: Answer) {
        self.answers.lock().unwrap().insert(address, answer);
    }
}

/// Counts a probe under way, also one that is dropped.
struct UnderWay<'a>(&'a Mutex<(usize, usize)>);

impl<'a> UnderWay<'a> {
    fn new(counts: &'a Mutex<(usize, usize)>) -> Self {
        let mut guard = counts.lock().unwrap();
        guard.0 += 1;
        guard.1 = guard.1.max(guard.0);
        Self(counts)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.lock().unwrap().0 -= 1;
    }
}

impl Checker for Arc<FakeNetwork> {
    async fn check(&self, subject: &Subject, timeout: Duration) -> ProbeResult {
        let _under_way = UnderWay::new(&self.under_way);
        *self
            .begun
            .lock()
            .unwrap()
            .entry(subject.probes[0].address)
            .or_default() += 1;
        let answer = self
            .answers
            .lock()
            .unwrap()
            .get(&subject.probes[0].address)
            .copied();
        let (code, latency) = match answer.expect("a known address") {
            (Some(code), latency) => (code, latency),
            (None, _) => (CheckCode::L4tout, timeout),
        };
        tokio::time::sleep(latency).await;
        ProbeResult {
            code,
            latency,
            detail: format!("{} may take {timeout:?}", subject.probes[0].address),
        }
    }
}

struct Lab {
    network: Arc<FakeNetwork>,
    prober: Prober<Arc<FakeNetwork>>,
    reports: Receiver<Report>,
    begin: Instant,
}

impl Lab {
    fn new() -> Self {
        Self::with_limit(1000)
    }

    fn with_limit(limit: usize) -> Self {
        let (sender, reports) = mpsc::channel(100_000);
        let network = Arc::new(FakeNetwork::default());
        let prober = Prober::with_checker(Arc::clone(&network), limit, sender);
        Self {
            network,
            prober,
            reports,
            begin: now(),
        }
    }

    async fn report(&mut self) -> Report {
        self.reports.recv().await.expect("the prober lives")
    }

    /// The next report: milliseconds since the beginning at its start and end, its code, the state after it.
    async fn line(&mut self) -> (u128, u128, CheckCode, OperState) {
        let report = self.report().await;
        let since = |time: Instant| (time - self.begin).as_millis();
        (
            since(report.started),
            since(report.ended),
            report.result.code,
            report.state,
        )
    }

    /// Lets `duration` pass, and tells how many reports came meanwhile.
    async fn pass(&mut self, duration: Duration) -> usize {
        tokio::time::sleep(duration).await;
        let mut count = 0;
        while self.reports.try_recv().is_ok() {
            count += 1;
        }
        count
    }
}

fn address(number: u32) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + number)), 80)
}

/// A target with the default check, without randomness.
fn target(number: u32) -> Target {
    let service = ServiceKey {
        address: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10)),
        port: 80,
        protocol: Protocol::Tcp,
    };
    let address = address(number);
    Target {
        id: BackendId {
            service,
            address: address.ip(),
            port: address.port(),
        },
        address: address.ip(),
        port: address.port(),
        forward: Forward::DsrL2,
        check: CheckSpec {
            passive: true,
            probes: vec![ProbeSpec {
                kind: CheckKind::Tcp,
                address: None,
                port: None,
                source: None,
                via: Via::Direct,
            }],
            require: Require::All,
            policy: Policy {
                interval: 2000 * MS,
                timeout: 1000 * MS,
                fast_interval: 200 * MS,
                fast_timeout: 300 * MS,
                down_interval: None,
                rise: 2,
                fall: 3,
                jitter_percent: 0,
            },
        },
        previous: None,
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusing_target_is_down_after_two_fast_intervals_and_back_after_one() {
    use CheckCode::{L4con, L4ok};
    let mut lab = Lab::new();
    lab.network.answer(address(1), OK);
    lab.prober.set_targets(vec![target(1)]);
    let first = lab.report().await;
    assert_eq!(first.changed, Some((Unknown, Up)));
    assert_eq!(
        (first.passes, first.rise, first.failures, first.fall),
        (1, 2, 0, 3)
    );
    assert_eq!(lab.line().await, (2000, 2000, L4ok, Up));

    lab.network.answer(address(1), REFUSED);
    assert_eq!(lab.line().await, (4000, 4000, L4con, Up));
    assert_eq!(lab.line().await, (4200, 4200, L4con, Up));
    let verdict = lab.report().await;
    assert_eq!(verdict.ended - lab.begin, 4400 * MS);
    assert_eq!(verdict.changed, Some((Up, Down)));
    assert_eq!((verdict.passes, verdict.failures), (0, 3));
    assert_eq!(lab.line().await, (6400, 6400, L4con, Down));

    lab.network.answer(address(1), OK);
    assert_eq!(lab.line().await, (8400, 8400, L4ok, Down));
    assert_eq!(lab.report().await.changed, Some((Down, Up)));
    assert_eq!(lab.line().await, (10_600, 10_600, L4ok, Up));
}

#[tokio::test(start_paused = true)]
async fn a_silent_target_is_given_its_timeout_once_and_the_fast_one_then() {
    let mut lab = Lab::new();
    lab.network.answer(address(1), OK);
    lab.prober.set_targets(vec![target(1)]);
    assert_eq!(lab.line().await.3, Up);
    lab.network.answer(address(1), SILENT);
    assert_eq!(lab.line().await, (2000, 3000, CheckCode::L4tout, Up));
    assert_eq!(lab.line().await, (3000, 3300, CheckCode::L4tout, Up));
    assert_eq!(lab.line().await, (3300, 3600, CheckCode::L4tout, Down));
    assert_eq!(lab.line().await, (5300, 6300, CheckCode::L4tout, Down));
}

#[tokio::test(start_paused = true)]
async fn a_warm_start_needs_a_full_verdict() {
    let mut lab = Lab::new();
    lab.network.answer(address(1), REFUSED);
    lab.prober.set_targets(vec![Target {
        previous: Some(Up.into()),
        ..target(1)
    }]);
    for (time, state) in [(0, Up), (200, Up), (400, Down)] {
        assert_eq!(lab.line().await, (time, time, CheckCode::L4con, state));
    }
}

#[tokio::test(start_paused = true)]
async fn a_warm_start_goes_on_counting() {
    let mut lab = Lab::new();
    lab.network.answer(address(1), REFUSED);
    lab.network.answer(address(2), OK);
    let resumed = |number, state, passes, failures| Target {
        previous: Some(Previous {
            state,
            passes,
            failures,
        }),
        ..target(number)
    };
    lab.prober.set_targets(vec![resumed(1, Up, 0, 2)]);
    assert_eq!(lab.line().await, (0, 0, CheckCode::L4con, Down));
    lab.prober.set_targets(vec![resumed(2, Down, 1, 0)]);
    assert_eq!(lab.line().await, (0, 0, CheckCode::L4ok, Up));
}

#[tokio::test(start_paused = true)]
async fn probes_that_could_not_be_sent_change_nothing() {
    let mut lab = Lab::new();
    lab.network.answer(address(1), NOT_SENT);
    lab.prober.set_targets(vec![target(1)]);
    assert_eq!(lab.line().await, (0, 0, CheckCode::Sockerr, Unknown));
    lab.network.answer(address(1), OK);
    assert_eq!(lab.line().await, (200, 200, CheckCode::L4ok, Up));
    lab.network.answer(address(1), NOT_SENT);
    for round in 1..=10 {
        let time = 200 + 2000 * round;
        assert_eq!(lab.line().await, (time, time, CheckCode::Sockerr, Up));
    }
}

#[tokio::test(start_paused = true)]
async fn no_check_is_up_and_reports_once() {
    let mut lab = Lab::new();
    let mut unchecked = target(1);
    unchecked.check.probes.clear();
    lab.prober.set_targets(vec![unchecked.clone()]);
    let report = lab.report().await;
    assert_eq!(
        (report.result.code, report.changed),
        (CheckCode::Unk, Some((Unknown, Up)))
    );
    assert_eq!(lab.pass(3600 * 1000 * MS).await, 0);

    assert!(lab.prober.probe_now(&unchecked.id));
    let report = lab.report().await;
    assert_eq!(
        (report.result.code, report.state, report.changed),
        (CheckCode::Unk, Up, None)
    );
}

#[tokio::test(start_paused = true)]
async fn a_check_that_is_switched_on_or_off_keeps_the_state() {
    let mut lab = Lab::new();
    lab.network.answer(address(1), REFUSED);
    let mut unchecked = target(1);
    unchecked.check.probes.clear();
    lab.prober.set_targets(vec![unchecked.clone()]);
    assert_eq!(lab.line().await, (0, 0, CheckCode::Unk, Up));

    tokio::time::sleep(500 * MS).await;
    lab.prober.set_targets(vec![target(1)]);
    for (time, state) in [(500, Up), (700, Up), (900, Down)] {
        assert_eq!(lab.line().await, (time, time, CheckCode::L4con, state));
    }
    lab.prober.set_targets(vec![unchecked]);
    assert_eq!(lab.line().await, (900, 900, CheckCode::Unk, Up));
}

#[tokio::test(start_paused = true)]
async fn an_unchanged_target_goes_on_as_if_nothing_were() {
    let mut lab = Lab::new();
    lab.network.answer(address(1), OK);
    lab.network.answer(address(2), OK);
    lab.prober.set_targets(vec![target(1)]);
    assert_eq!(lab.line().await.0, 0);
    lab.network.answer(address(1), SILENT);
    tokio::time::sleep(3100 * MS).await;
    // In the second failing probe, which began at 3000.
    lab.prober.set_targets(vec![
        target(2),
        Target {
            previous: Some(Down.into()),
            ..target(1)
        },
    ]);
    assert_eq!(lab.line().await, (2000, 3000, CheckCode::L4tout, Up));
    assert_eq!(lab.line().await, (3100, 3100, CheckCode::L4ok, Up));
    assert_eq!(lab.line().await, (3000, 3300, CheckCode::L4tout, Up));
    assert_eq!(lab.line().await, (3300, 3600, CheckCode::L4tout, Down));
}

#[tokio::test(start_paused = true)]
async fn another_pace_applies_to_the_wait_that_is_under_way() {
    let mut lab = Lab::new();
    lab.network.answer(address(1), OK);
    let mut lazy = target(1);
    lazy.check.policy.interval = 3600 * 1000 * MS;
    lab.prober.set_targets(vec![lazy]);
    assert_eq!(lab.line().await, (0, 0, CheckCode::L4ok, Up));
    tokio::time::sleep(500 * MS).await;
    lab.prober.set_targets(vec![target(1)]);
    assert_eq!(lab.line().await, (2000, 2000, CheckCode::L4ok, Up));
}

#[tokio::test(start_paused = true)]
async fn another_port_is_probed_at_once_and_the_old_probe_forgotten() {
    let mut lab = Lab::new();
    lab.network.answer(address(1), OK);
    lab.prober.set_targets(vec![target(1)]);
    assert_eq!(lab.line().await, (0, 0, CheckCode::L4ok, Up));
    lab.network.answer(address(1), SILENT);
    tokio::time::sleep(3100 * MS).await;
    assert_eq!(lab.line().await, (2000, 3000, CheckCode::L4tout, Up));

    let mut moved = target(1);
    moved.check.probes[0].port = Some(8080);
    let elsewhere = SocketAddr::new(address(1).ip(), 8080);
    lab.network.answer(elsewhere, REFUSED);
    lab.prober.set_targets(vec![moved]);
    // Three failures of its own, not one more after the two of the other port.
    for (time, state) in [(3100, Up), (3300, Up), (3500, Down)] {
        assert_eq!(lab.line().await, (time, time, CheckCode::L4con, state));
    }
}

#[tokio::test(start_paused = true)]
async fn another_address_is_probed_in_place_of_the_backends() {
    let mut lab = Lab::new();
    lab.network.answer(address(99), OK);
    let mut elsewhere = target(1);
    elsewhere.check.probes[0].address = Some(address(99).ip());
    lab.prober.set_targets(vec![elsewhere]);
    let report = lab.report().await;
    assert_eq!(report.id, target(1).id);
    assert_eq!(report.result.detail, "10.0.0.99:80 may take 1s");
}

#[tokio::test(start_paused = true)]
async fn a_target_left_out_is_no_longer_probed() {
    let mut lab = Lab::new();
    lab.network.answer(address(1), SILENT);
    lab.prober.set_targets(vec![target(1)]);
    tokio::time::sleep(100 * MS).await;
    lab.prober.set_targets(Vec::new());
    assert_eq!(lab.pass(60_000 * MS).await, 0, "also the probe under way");
    assert_eq!(lab.network.under_way.lock().unwrap().0, 0);
    assert!(!lab.prober.probe_now(&target(1).id));
}

#[tokio::test(start_paused = true)]
async fn dropping_the_prober_ends_all() {
    let Lab {
        network,
        mut prober,
        mut reports,
        ..
    } = Lab::new();
    network.answer(address(1), OK);
    prober.set_targets(vec![target(1)]);
    assert!(reports.recv().await.is_some());
    drop(prober);
    assert_eq!(reports.recv().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_probe_on_request_comes_at_once_and_restarts_the_interval() {
    let mut lab = Lab::new();
    lab.network.answer(address(1), OK);
    lab.prober.set_targets(vec![target(1)]);
    assert_eq!(lab.line().await.0, 0);
    tokio::time::sleep(700 * MS).await;
    assert!(lab.prober.probe_now(&target(1).id));
    assert_eq!(lab.line().await, (700, 700, CheckCode::L4ok, Up));
    assert_eq!(lab.line().await.0, 2700);
}

#[tokio::test(start_paused = true)]
async fn a_probe_on_request_follows_one_under_way() {
    let mut lab = Lab::new();
    lab.network.answer(address(1), (Some(CheckCode::L4ok), 250 * MS));
    lab.prober.set_targets(vec![target(1)]);
    tokio::time::sleep(100 * MS).await;
    assert!(lab.prober.probe_now(&target(1).id));
    assert_eq!(lab.line().await, (0, 250, CheckCode::L4ok, Up));
    assert_eq!(lab.line().await, (250, 500, CheckCode::L4ok, Up));
    assert_eq!(lab.line().await.0, 2250);
}

/// The first round of many targets is over within the spread and one timeout, also if all are silent.
#[tokio::test(start_paused = true)]
async fn thousands_of_targets_finish_their_first_round_soon() {
    const COUNT: u32 = 5000;
    let mut lab = Lab::with_limit(COUNT as usize);
    for number in 0..COUNT {
        lab.network.answer(address(number), SILENT);
    }
    lab.prober.set_targets((0..COUNT).map(target).collect());
    let mut seen = HashMap::new();
    for _ in 0..COUNT {
        let report = lab.report().await;
        assert!(
            report.ended - lab.begin <= FIRST_PROBES_WITHIN + 1001 * MS,
            "{:?}",
            report.ended - lab.begin
        );
        assert_eq!(report.changed, Some((Unknown, Down)));
        assert!(seen.insert(report.id, report.started).is_none());
    }
    let spread = seen
        .values()
        .max()
        .unwrap()
        .duration_since(*seen.values().min().unwrap());
    assert!(spread >= 50 * MS, "{spread:?}");
}

/// With jitter, targets that began together are spread over the interval by their second round.
#[tokio::test(start_paused = true)]
async fn later_rounds_are_spread() {
    const COUNT: u32 = 500;
    let mut lab = Lab::new();
    let targets = (0..COUNT).map(|number| {
        lab.network.answer(address(number), OK);
        let mut target = target(number);
        target.check.policy.jitter_percent = 10;
        target
    });
    let targets = targets.collect();
    lab.prober.set_targets(targets);
    for _ in 0..COUNT {
        lab.report().await;
    }
    let mut quarters = [0; 4];
    for _ in 0..COUNT {
        let report = lab.report().await;
        quarters[((report.started - lab.begin).as_millis() / 500).min(3) as usize] += 1;
    }
    assert!(quarters.iter().all(|&count| count > 20), "{quarters:?}");
}

#[tokio::test(start_paused = true)]
async fn probes_under_way_are_bounded() {
    let mut lab = Lab::with_limit(10);
    for number in 0..100 {
        lab.network.answer(address(number), SILENT);
    }
    lab.prober.set_targets((0..100).map(target).collect());
    for _ in 0..300 {
        lab.report().await;
    }
    assert_eq!(lab.network.under_way.lock().unwrap().1, 10);
}

/// The real network, in one: first a port that listens, then one that refuses.
#[tokio::test]
async fn over_the_network() {
    let listening = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (_refusing, refusing) = probe::tests::refusing();
    let at = |address: SocketAddr| {
        let mut target = target(1);
        let probe = &mut target.check.probes[0];
        (probe.address, probe.port) = (Some(address.ip()), Some(address.port()));
        target.check.policy.timeout = 60_000 * MS;
        target.check.policy.fast_timeout = 60_000 * MS;
        target
    };
    let (sender, mut reports) = mpsc::channel(10);
    let mut prober = Prober::new(sender);
    prober.set_targets(vec![at(listening.local_addr().unwrap())]);
    let report = reports.recv().await.unwrap();
    assert_eq!(
        (report.result.code, report.changed),
        (CheckCode::L4ok, Some((Unknown, Up)))
    );

    prober.set_targets(vec![at(refusing)]);
    for (failures, changed) in [(1, None), (2, None), (3, Some((Up, Down)))] {
        let report = reports.recv().await.unwrap();
        assert_eq!(
            (report.result.code, report.failures),
            (CheckCode::L4con, failures)
        );
        assert_eq!(report.changed, changed);
    }
}

#[test]
fn the_bound_on_probes_is_a_bound() {
    assert!((1..=MAX_PROBES).contains(&probe_limit()));
}

#[tokio::test(start_paused = true)]
async fn a_suspected_target_is_probed_at_once_and_with_less_patience() {
    let mut lab = Lab::new();
    lab.network.answer(address(1), OK);
    lab.prober.set_targets(vec![target(1)]);
    let id = target(1).id;
    assert_eq!(lab.line().await, (0, 0, CheckCode::L4ok, Up));
    lab.network.answer(address(1), SILENT);
    tokio::time::sleep(500 * MS).await;
    assert!(lab.prober.suspect(&id, now()));
    for (started, ended, state) in [(500, 800, Up), (800, 1100, Up), (1100, 1400, Down)] {
        assert_eq!(lab.line().await, (started, ended, CheckCode::L4tout, state));
        // In transition, and DOWN, a suspicion says nothing that is not known.
        lab.prober.suspect(&id, now() + 3600 * 1000 * MS);
    }
    assert_eq!(lab.line().await, (3100, 4100, CheckCode::L4tout, Down));
}

#[tokio::test(start_paused = true)]
async fn a_suspicion_alone_takes_no_target_out_and_puts_the_next_probe_off() {
    let mut lab = Lab::new();
    lab.network.answer(address(1), OK);
    lab.prober.set_targets(vec![target(1)]);
    let id = target(1).id;
    assert_eq!(lab.line().await.0, 0);
    tokio::time::sleep(500 * MS).await;
    assert!(lab.prober.suspect(&id, now()));
    assert!(!lab.prober.suspect(&id, now()), "it was a moment ago");
    assert_eq!(lab.line().await, (500, 500, CheckCode::L4ok, Up));
    assert_eq!(lab.line().await, (2500, 2500, CheckCode::L4ok, Up));
}

#[tokio::test(start_paused = true)]
async fn a_slow_target_is_given_its_time_when_it_is_suspected() {
    let mut lab = Lab::new();
    let slow = (Some(CheckCode::L7ok), 400 * MS);
    lab.network.answer(address(1), slow);
    lab.prober.set_targets(vec![target(1)]);
    assert_eq!(lab.line().await, (0, 400, CheckCode::L7ok, Up));
    assert!(lab.prober.suspect(&target(1).id, now()));
    let report = lab.report().await;
    assert!(report.result.detail.ends_with("1s"), "{report:?}");
}

#[tokio::test(start_paused = true)]
async fn who_does_not_want_suspicions_has_none() {
    let mut lab = Lab::new();
    lab.network.answer(address(1), OK);
    let mut target = target(1);
    target.check.passive = false;
    lab.prober.set_targets(vec![target.clone()]);
    assert_eq!(lab.line().await.0, 0);
    assert!(!lab.prober.suspect(&target.id, now()));
    target.check.passive = true;
    lab.prober.set_targets(vec![target.clone()]);
    assert!(lab.prober.suspect(&target.id, now()));
    assert_eq!(lab.line().await.0, 0);
}

/// What happens to three targets: for so many milliseconds these are probed (the others are in maintenance, or gone),
/// and answer in this way.
type Stretch = (u16, [bool; 3], [Option<bool>; 3]);

fn any_stretch() -> impl proptest::strategy::Strategy<Value = Stretch> {
    use proptest::prelude::*;
    let answer = || prop_oneof![Just(Some(true)), Just(Some(false)), Just(None)];
    (
        0..4000_u16,
        prop::array::uniform3(any::<bool>()),
        prop::array::uniform3(answer()),
    )
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(64))]

    /// Who is not among the targets is sent no probe from that moment on, whatever was under way, due, wanted at once or
    /// suspected; and who is has probes in time.
    #[test]
    fn who_is_no_target_is_sent_no_probe(
        stretches in proptest::collection::vec(any_stretch(), 1..12),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut lab = Lab::new();
            for (ms, probed, answers) in stretches {
                for (number, answer) in (1..).zip(answers) {
                    lab.network.answer(address(number), match answer {
                        Some(true) => OK,
                        Some(false) => REFUSED,
                        None => SILENT,
                    });
                }
                let targets = (1..).zip(probed).filter(|(_, probed)| *probed);
                lab.prober.set_targets(targets.map(|(number, _)| target(number)).collect());
                for number in 1..=3 {
                    let id = target(number).id;
                    let wanted = probed[number as usize - 1];
                    assert_eq!(lab.prober.probe_now(&id), wanted);
                    assert!(!lab.prober.suspect(&id, now()) || wanted);
                }
                let before = lab.network.begun();
                tokio::time::sleep(u32::from(ms) * MS).await;
                let after = lab.network.begun();
                for number in 1..=3 {
                    let count = |begun: &HashMap<SocketAddr, usize>| begun.get(&address(number)).copied().unwrap_or(0);
                    let sent = count(&after) - count(&before);
                    if !probed[number as usize - 1] {
                        assert_eq!(sent, 0, "target {number}");
                    } else {
                        // At rest every 2 s, and each takes 1 s at most.
                        assert!(sent >= usize::from(ms) / 3000, "target {number}: {sent} in {ms} ms");
                    }
                }
                while lab.reports.try_recv().is_ok() {}
            }
        });
    }
}
