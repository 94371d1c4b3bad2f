use super::super::event::{Draft, Kind, Timestamp};
use super::*;

fn event(seq: u64) -> Event {
    Draft::from(Kind::Isolated).at(seq, Timestamp(seq))
}

fn seqs(events: &[Event]) -> Vec<u64> {
    events.iter().map(|event| event.seq).collect()
}

#[test]
fn events_come_back_and_numbers_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let (events, mut recorder) = open(folder.path());
    assert!(events.is_empty());
    let bus = Bus::with(events);
    bus.emit(Kind::Isolated);
    assert_eq!(recorder.catch_up(&bus), Duration::ZERO);
    bus.emit(Kind::IsolationOver);
    recorder.catch_up(&bus);
    recorder.catch_up(&bus);
    let (events, mut recorder) = open(folder.path());
    assert_eq!(events, bus.since(0, 10).events);
    let bus = Bus::with(events);
    assert_eq!(bus.emit(Kind::Isolated), 3);
    recorder.catch_up(&bus);
    assert_eq!(seqs(&open(folder.path()).0), [1, 2, 3]);
}

#[test]
fn half_a_line_is_cut_off_and_the_rest_goes_on_behind_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    let whole = serde_json::to_string(&event(1)).unwrap() + "\n";
    for torn in ["{", "{\"seq\":2,\"time\":\"19", "\0\0\0"] {
        fs::write(&path, whole.clone() + torn).unwrap();
        let (events, mut recorder) = open(folder.path());
        assert_eq!(seqs(&events), [1]);
        assert_eq!(fs::read_to_string(&path).unwrap(), whole);
        let bus = Bus::with(events);
        bus.emit(Kind::IsolationOver);
        recorder.catch_up(&bus);
        assert_eq!(seqs(&open(folder.path()).0), [1, 2]);
    }
}

#[test]
fn lines_that_cannot_be_read_are_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let line = |seq| serde_json::to_string(&event(seq)).unwrap();
    let later = line(2).replace("isolated", "abducted");
    let text = format!("{}\n{later}\n\0\0\0\n\n{}\n", line(1), line(3));
    fs::write(folder.path().join(FILE), text).unwrap();
    assert_eq!(seqs(&open(folder.path()).0), [1, 3]);
}

#[test]
fn what_was_written_twice_counts_once_and_what_began_anew_is_numbered_on() {
    let again = Draft::from(Kind::IsolationOver).at(1, Timestamp(9));
    let events = vec![event(1), event(2), event(1), event(2), again, event(4)];
    let ordered = in_order(events);
    assert_eq!(seqs(&ordered), [1, 2, 3, 4]);
    assert_eq!(ordered[2].kind, Kind::IsolationOver);
}

#[test]
fn a_file_that_has_grown_makes_room_for_another() {
    let folder = tempfile::tempdir().unwrap();
    let (_, mut recorder) = open(folder.path());
    let bus = Bus::with([]);
    let long = "x".repeat(1 << 20);
    for _ in 0..10 {
        bus.emit(Kind::Isolated.because(long.as_str()));
        recorder.catch_up(&bus);
    }
    let length = |name: &str| fs::metadata(folder.path().join(name)).unwrap().len();
    assert!(length(FILE) <= 5 << 20 && length(BEFORE) <= 5 << 20);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    let kept = seqs(&open(folder.path()).0);
    assert_eq!(kept.last(), Some(&10));
    assert!(
        kept.len() >= 4 && kept.windows(2).all(|pair| pair[1] == pair[0] + 1),
        "{kept:?}"
    );
}

#[test]
fn what_cannot_be_written_is_written_later() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    fs::write(&state, "a file where the folder should be").unwrap();
    let (events, mut recorder) = open(&state);
    let bus = Bus::with(events);
    bus.emit(Kind::Isolated);
    assert_eq!(recorder.catch_up(&bus), AGAIN);
    bus.emit(Kind::IsolationOver);
    fs::remove_file(&state).unwrap();
    assert_eq!(recorder.catch_up(&bus), Duration::ZERO);
    assert_eq!(seqs(&open(&state).0), [1, 2]);
}
