use super::*;
use crate::model::{CheckCode, Protocol};

fn example() -> Checkpoint {
    let service = ServiceKey {
        address: "192.0.2.10".parse().unwrap(),
        port: 80,
        protocol: Protocol::Tcp,
    };
    let backend = |address: &str, admin| KeptBackend {
        service,
        address: address.parse().unwrap(),
        port: 80,
        state: OperState::Down,
        admin,
        runtime_weight: Some(0),
        ever_up: true,
        changed: Some(Timestamp(1_735_701_120_042)),
        check: CheckStatus {
            code: CheckCode::L7sts,
            latency_ms: Some(1.5),
            detail: "503".into(),
        },
        passes: 0,
        failures: 4,
        flaps: Some(KeptFlaps {
            downs: vec![std::time::Duration::from_millis(1500)],
            hold: None,
        }),
        agent: Some(Steering {
            weight_percent: Some(75),
            admin: Some(AdminState::Drain),
            ..Steering::default()
        }),
    };
    Checkpoint {
        seq: 7,
        written: Timestamp(1_735_701_121_000),
        backends: vec![
            backend("10.0.1.11", AdminState::Drain),
            backend("2001:db8::1", AdminState::Maint),
        ],
    }
}

/// A folder with a checkpoint, and the one before it in which nothing was drained.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut before = example();
    before.backends[0].admin = AdminState::Ready;
    before.store(folder.path()).unwrap();
    example().store(folder.path()).unwrap();
    folder
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn it_comes_back_as_it_was() {
    let folder = folder();
    assert_eq!(Checkpoint::load(folder.path()), Some(example()));
    assert_eq!(names(folder.path()), [FILE, BEFORE]);
}

#[test]
fn a_missing_one_is_no_checkpoint_and_no_fault() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(Checkpoint::load(folder.path()), None);
    assert_eq!(Checkpoint::load(&folder.path().join("missing")), None);
}

#[test]
fn torn_anywhere_it_is_never_misread() {
    let whole = example().encode();
    for length in 0..whole.len() {
        assert!(Checkpoint::decode(&whole[..length]).is_err(), "{length} bytes");
    }
    for place in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[place] ^= 1;
        match Checkpoint::decode(&bytes) {
            Err(_) => {}
            // Another space between the words of the first line, or the case of a digit.
            Ok((read, _)) => assert_eq!(read, example(), "byte {place}"),
        }
    }
}

#[test]
fn a_torn_one_is_moved_aside_and_the_one_before_is_taken() {
    let folder = folder();
    let path = folder.path().join(FILE);
    let torn = &example().encode()[..90];
    fs::write(&path, torn).unwrap();
    let loaded = Checkpoint::load(folder.path()).unwrap();
    assert_eq!(loaded.backends[0].admin, AdminState::Ready);
    assert_eq!(loaded.backends[1].admin, AdminState::Maint);
    assert_eq!(fs::read(folder.path().join("checkpoint.damaged")).unwrap(), torn);
    // The next one is written as if nothing had been.
    example().store(folder.path()).unwrap();
    assert_eq!(Checkpoint::load(folder.path()), Some(example()));
}

#[test]
fn one_of_another_version_is_kept_for_the_agent_that_reads_it() {
    let folder = tempfile::tempdir().unwrap();
    let later = b"xlb checkpoint 2 whatever comes then\n\x00\x01";
    fs::write(folder.path().join(FILE), later).unwrap();
    assert_eq!(Checkpoint::load(folder.path()), None);
    example().store(folder.path()).unwrap();
    assert_eq!(
        fs::read(folder.path().join("checkpoint.version-2")).unwrap(),
        later
    );
}

#[test]
fn what_a_later_agent_added_does_not_matter_and_what_it_named_anew_is_left_out() {
    let mut body = serde_json::to_value(example()).unwrap();
    body["journal"] = 5.into();
    body["backends"][0]["moon"] = "full".into();
    body["backends"][1]["state"] = "SLEEPING".into();
    let body = serde_json::to_vec(&body).unwrap();
    let mut bytes = format!("{TITLE} {VERSION} {:016x}\n", checksum(&body)).into_bytes();
    bytes.extend(body);
    let (read, unknown) = Checkpoint::decode(&bytes).unwrap();
    assert_eq!((&read.backends[..], unknown), (&example().backends[..1], 1));
}

#[test]
fn an_unfinished_one_is_swept_and_a_folder_in_its_place_is_no_panic() {
    let folder = folder();
    fs::write(folder.path().join(".unfinished-checkpoint-x1"), "half").unwrap();
    assert_eq!(Checkpoint::load(folder.path()), Some(example()));
    assert_eq!(names(folder.path()), [FILE, BEFORE]);
    fs::remove_file(folder.path().join(FILE)).unwrap();
    fs::create_dir(folder.path().join(FILE)).unwrap();
    assert!(Checkpoint::load(folder.path()).is_some());
    assert!(example().store(folder.path()).is_err());
}
