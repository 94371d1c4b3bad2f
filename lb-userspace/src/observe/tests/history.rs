use super::*;

const PLACE: &str = "10.0.1.11:80";

/// Events numbered one after the other, at seconds.
#[derive(Default)]
struct Story {
    history: History,
    seq: u64,
}

impl Story {
    fn at(&mut self, second: u64, kind: Kind) -> &mut Self {
        self.seq += 1;
        let draft = kind.service("web").backend(PLACE.parse().unwrap());
        let event = draft.at(self.seq, Timestamp(second * 1000));
        self.history.take(&event);
        self.history.take(&event);
        self
    }

    fn state(&mut self, second: u64, from: OperState, to: OperState) -> &mut Self {
        let code = CheckCode::L4con;
        let (latency_ms, results) = (1.0, Vec::new());
        self.at(
            second,
            Kind::BackendState {
                from,
                to,
                code,
                latency_ms,
                results,
            },
        )
    }

    fn start(&mut self, second: u64, observed_until: Option<u64>) -> &mut Self {
        let observed_until = observed_until.map(|second| Timestamp(second * 1000));
        let (version, warm) = ("1".into(), true);
        self.at(
            second,
            Kind::AgentStarted {
                version,
                warm,
                observed_until,
            },
        )
    }

    fn after(&self, second: u64) -> BackendHistory {
        let now = Timestamp(second * 1000);
        let mut answer = self.history.answer(&Selection::default(), usize::MAX, now);
        answer.backends.pop().unwrap()
    }
}

const UP: OperState = OperState::Up;
const DOWN: OperState = OperState::Down;
const UNKNOWN: OperState = OperState::Unknown;

#[test]
fn times_add_up_to_mtbf_mttr_and_availability() {
    let mut story = Story::default();
    story
        .state(0, UNKNOWN, UP)
        .state(100, UP, DOWN)
        .state(110, DOWN, UP);
    story.state(210, UP, DOWN).state(240, DOWN, UP);
    let past = story.after(300);
    assert_eq!((past.failures, past.up_s, past.down_s), (2, 260.0, 40.0));
    let (mtbf, mttr) = (past.mtbf_s.unwrap(), past.mttr_s.unwrap());
    assert_eq!((mtbf, mttr), (130.0, 20.0));
    assert!((past.availability.unwrap() - mtbf / (mtbf + mttr)).abs() < 1e-12);
    assert_eq!((past.state, past.since), (UP, Timestamp(240_000)));
    assert_eq!(past.verdicts.len(), 5);
}

#[test]
fn an_outage_that_goes_on_counts_and_one_without_failures_has_no_means() {
    let mut story = Story::default();
    story.state(0, UNKNOWN, UP);
    let calm = story.after(50);
    assert_eq!(
        (calm.mtbf_s, calm.mttr_s, calm.availability),
        (None, None, Some(1.0))
    );
    story.state(60, UP, DOWN);
    let past = story.after(80);
    assert_eq!((past.mtbf_s, past.mttr_s), (Some(60.0), Some(20.0)));
    // Asking changes nothing.
    assert_eq!(story.after(80), past);
}

#[test]
fn time_without_an_agent_and_in_maintenance_does_not_count() {
    let mut story = Story::default();
    story.state(0, UNKNOWN, UP);
    // Killed somewhen after 40, back at 1000: found UP still, then DOWN.
    story.start(1000, Some(40)).state(1010, UP, DOWN);
    let past = story.after(1015);
    assert_eq!((past.up_s, past.down_s, past.failures), (50.0, 5.0, 1));
    // Nothing is known of the life before.
    story.start(2000, None);
    let past = story.after(2003);
    assert_eq!((past.up_s, past.down_s, past.failures), (50.0, 3.0, 1));

    let mut story = Story::default();
    story.state(0, UNKNOWN, UP);
    let (from, to) = (AdminState::Ready, AdminState::Maint);
    story.at(10, Kind::BackendAdmin { from, to });
    assert_eq!(story.after(500).up_s, 10.0);
    let (from, to) = (to, from);
    story
        .at(500, Kind::BackendAdmin { from, to })
        .state(501, UNKNOWN, UP);
    let past = story.after(511);
    assert_eq!((past.up_s, past.failures), (20.0, 0));
    story.at(520, Kind::BackendRemoved);
    let past = story.after(600);
    assert_eq!((past.up_s, past.removed), (29.0, true));
}

#[test]
fn a_clock_set_back_takes_nothing_away() {
    let mut story = Story::default();
    story
        .state(100, UNKNOWN, UP)
        .state(50, UP, DOWN)
        .state(90, DOWN, UP);
    let past = story.after(120);
    assert_eq!((past.up_s, past.down_s), (20.0, 0.0));
}

#[test]
fn a_timeline_goes_to_the_verdict_it_is_of() {
    let mut story = Story::default();
    story
        .state(0, UNKNOWN, UP)
        .state(10, UP, DOWN)
        .state(11, DOWN, UP);
    let timeline = Timeline {
        moved_slots: 7,
        ..Timeline::default()
    };
    story.at(12, Kind::Rerouted(timeline.clone()));
    let past = story.after(13);
    let timelines: Vec<_> = past
        .verdicts
        .iter()
        .map(|verdict| verdict.timeline.clone())
        .collect();
    assert_eq!(timelines, [None, Some(timeline), None]);
}

#[test]
fn a_timeline_that_is_told_late_goes_to_the_verdict_it_is_of() {
    let mut story = Story::default();
    story.state(10, UP, DOWN).state(11, DOWN, UP).state(14, UP, DOWN);
    let of = |second: u64| Timeline {
        verdict: Timestamp(second * 1000),
        ..Timeline::default()
    };
    story.at(20, Kind::Rerouted(of(10)));
    story.at(24, Kind::Rerouted(of(14)));
    let past = story.after(30);
    let timelines: Vec<_> = past
        .verdicts
        .iter()
        .map(|verdict| verdict.timeline.clone())
        .collect();
    assert_eq!(timelines, [Some(of(10)), None, Some(of(14))]);
}

#[test]
fn what_is_kept_is_bounded() {
    let mut story = Story::default();
    for n in 0..200 {
        story.state(2 * n, DOWN, UP).state(2 * n + 1, UP, DOWN);
    }
    let past = story.after(400);
    assert_eq!((past.verdicts.len(), past.failures), (VERDICTS, 200));
    assert_eq!((past.up_s, past.down_s), (200.0, 200.0));
}

#[test]
fn backends_without_events_are_known_from_the_agent() {
    let mut history = History::default();
    let place = PLACE.parse().unwrap();
    history.know("web", place, UP, Timestamp(1000));
    history.know("web", place, DOWN, Timestamp(2000));
    let past = history.answer(&Selection::default(), 1, Timestamp(5000)).backends;
    assert_eq!((past[0].state, past[0].up_s), (UP, 4.0));
    let selected = |service: &str, port| {
        let selection = Selection {
            service: Some(service.into()),
            address: None,
            port,
        };
        history.answer(&selection, 1, Timestamp(0)).backends.len()
    };
    assert_eq!(
        (
            selected("web", Some(80)),
            selected("web", Some(81)),
            selected("x", None)
        ),
        (1, 0, 0)
    );
}
