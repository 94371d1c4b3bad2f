use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;

/// A program in a folder of its own; `$here` in it is that folder.
fn program(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("program");
    let here = folder.path().display();
    fs::write(&path, format!("#!/bin/sh\nhere={here}\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    (folder, path)
}

/// Waits for what a program does.
async fn until(mut holds: impl FnMut() -> bool) {
    while !holds() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn lines(path: &Path) -> Vec<Event> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Runs it; a file that was just written may still be open in a child that another test is making.
async fn run_again(path: &Path, event: &Event, limit: Duration) -> io::Result<ExitStatus> {
    loop {
        match run(path, event, limit).await {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            result => return result,
        }
    }
}

fn event() -> Event {
    super::super::event::Draft::from(Kind::Isolated).at(1, super::super::event::Timestamp(0))
}

#[tokio::test]
async fn a_program_gets_each_change_of_state_in_order() {
    let (folder, path) = program("cat >> $here/told");
    run_again(&path, &event(), LIMIT).await.unwrap();
    let bus = Bus::with([]);
    bus.emit(Kind::Isolated);
    let mut notifier = Notifier::new(bus.clone());
    notifier.set(std::slice::from_ref(&path));
    for _ in 0..3 {
        bus.emit(Kind::IsolationOver);
        bus.emit(Kind::ServiceRemoved);
        bus.emit(Kind::Isolated.because("a \"quoted\"\nline"));
    }
    let told = folder.path().join("told");
    until(|| lines(&told).len() == 7).await;
    let seqs: Vec<u64> = lines(&told).iter().map(|event| event.seq).collect();
    // The first is this test's own run.
    assert_eq!(seqs, [1, 2, 4, 5, 7, 8, 10]);
    assert_eq!(lines(&told)[2].cause.as_deref(), Some("a \"quoted\"\nline"));
}

#[tokio::test]
async fn a_program_that_hangs_is_killed_with_its_children() {
    let (folder, path) = program("sleep 1000 & echo $! > $here/child; mv $here/child $here/pid; sleep 1000");
    let pid = folder.path().join("pid");
    // The limit is the test's patience with the program's first line, not a bound on anything.
    let error = run_again(&path, &event(), Duration::from_secs(2))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("killed"), "{error}");
    let child = fs::read_to_string(&pid).unwrap();
    let stat = PathBuf::from(format!("/proc/{}/stat", child.trim()));
    // Gone, or dead and not yet waited for by init.
    until(|| fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z "))).await;
}

#[tokio::test]
async fn how_a_program_ends_is_known_and_none_is_needed() {
    let (_folder, path) = program("exit 3");
    let status = run_again(&path, &event(), LIMIT).await.unwrap();
    assert_eq!(status.code(), Some(3));
    let missing = run(Path::new("/does/not/exist"), &event(), LIMIT)
        .await
        .unwrap_err();
    assert_eq!(missing.kind(), io::ErrorKind::NotFound);
}

#[tokio::test]
async fn one_that_is_too_slow_is_told_the_latest_and_the_loss_is_counted() {
    // It waits until it may go on.
    let (folder, path) = program("cat >> $here/told; until [ -e $here/go ]; do sleep 0.01; done");
    fs::write(folder.path().join("go"), "").unwrap();
    run_again(&path, &event(), LIMIT).await.unwrap();
    fs::remove_file(folder.path().join("go")).unwrap();
    let told = folder.path().join("told");
    fs::remove_file(&told).unwrap();
    let bus = Bus::with([]);
    let task = tokio::spawn(follow(path, bus.clone(), 0, Duration::from_secs(600)));
    bus.emit(Kind::Isolated);
    until(|| lines(&told).len() == 1).await;
    let surplus = 5;
    for _ in 0..ROOM + surplus {
        bus.emit(Kind::Isolated);
    }
    let last = bus.last();
    fs::write(folder.path().join("go"), "").unwrap();
    bus.beyond(last).await;
    let loss = bus.since(last, 1).events.pop().unwrap();
    assert!(
        matches!(loss.kind, Kind::NotifyDropped { events, .. } if events == surplus as u64),
        "{loss:?}"
    );
    until(|| lines(&told).len() >= 2).await;
    assert_eq!(lines(&told)[1].seq, 2 + surplus as u64);
    task.abort();
}

#[test]
fn a_program_that_always_fails_is_told_of_once_a_minute() {
    let (mut failures, begun) = (Failures::default(), Instant::now());
    let mut note =
        |why: Option<&str>, s: u64| failures.note(why.map(str::to_owned), begun + Duration::from_secs(s));
    assert_eq!(note(None, 0), None);
    assert_eq!(note(Some("exit status: 7"), 1).as_deref(), Some("exit status: 7"));
    assert_eq!(note(Some("exit status: 7"), 2), None);
    assert_eq!(note(Some("exit status: 7"), 3), None);
    assert_eq!(
        note(Some("killed"), 4).as_deref(),
        Some("killed (2 more runs failed before)")
    );
    assert_eq!(note(Some("killed"), 63), None);
    assert_eq!(
        note(Some("killed"), 64).as_deref(),
        Some("killed (1 more runs failed before)")
    );
    assert_eq!(note(Some("killed"), 65), None);
    assert_eq!(
        note(None, 66).as_deref(),
        Some("it works again, 1 more runs had failed")
    );
    assert_eq!(note(None, 67), None);
}
