use std::fs;

use super::super::checkpoint::FILE;
use super::*;

fn keeper(folder: &Path) -> Keeper {
    Keeper::new(folder, 4, Bus::with([]))
}

async fn settled(keeper: &Keeper) {
    while keeper.shared.busy.load(Ordering::Acquire) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn verdicts_are_written_together_and_orders_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut keeper = keeper(folder.path());
    let start = Instant::now();
    assert!(keeper.due(start));
    keeper.write(Checkpoint::default(), start);
    settled(&keeper).await;
    assert_eq!(Checkpoint::load(folder.path()).unwrap().seq, 5);

    let soon = start + APART / 2;
    assert!(!keeper.due(start + APART * 10), "nothing changed");
    keeper.mark();
    assert!(!keeper.due(soon) && keeper.due(start + APART));
    let kept = keeper.mark_order();
    assert!(keeper.due(soon));
    keeper.write(Checkpoint::default(), soon);
    assert_eq!(kept.await.unwrap(), Ok(()));
    assert_eq!(Checkpoint::load(folder.path()).unwrap().seq, 6);
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_is_said_once_and_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    fs::write(&state, "a file where the folder should be").unwrap();
    let bus = Bus::with([]);
    let mut keeper = Keeper::new(&state, 0, bus.clone());
    let start = Instant::now();
    for attempt in 0..2 {
        let kept = keeper.mark_order();
        keeper.write(Checkpoint::default(), start);
        let why = kept.await.unwrap().unwrap_err();
        assert!(why.contains("state_dir"), "{attempt}: {why}");
        settled(&keeper).await;
    }
    assert!(keeper.failed().is_some());
    assert!(!keeper.due(start + APART) && keeper.due(start + AGAIN));

    fs::remove_file(&state).unwrap();
    keeper.write(Checkpoint::default(), start + AGAIN);
    settled(&keeper).await;
    assert_eq!(keeper.failed(), None);
    assert!(state.join(FILE).exists());
    let events: Vec<_> = bus.since(0, 10).events.into_iter().map(|e| e.kind).collect();
    assert_eq!(
        events,
        [
            Kind::StateDir { writable: false },
            Kind::StateDir { writable: true }
        ]
    );
}

#[tokio::test]
async fn the_last_one_is_on_the_disk_when_the_agent_ends() {
    let folder = tempfile::tempdir().unwrap();
    let mut keeper = keeper(folder.path());
    keeper.write(Checkpoint::default(), Instant::now());
    let kept = keeper.mark_order();
    keeper.finish(Checkpoint::default());
    assert_eq!(Checkpoint::load(folder.path()).unwrap().seq, 6);
    assert_eq!(kept.await.unwrap(), Ok(()));
}
