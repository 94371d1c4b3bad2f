use proptest::prelude::*;

use super::*;

const UP: Member = Member {
    role: Role::Primary,
    may_serve: true,
    healthy: true,
    ever_up: true,
    down_since: None,
};
const DOWN: Member = Member { healthy: false, ..UP };
const TAKEN_OUT: Member = Member {
    may_serve: false,
    ..UP
};
const SORRY: Member = Member {
    role: Role::Sorry,
    ..UP
};

const IN_USE: Before = Before {
    had_table: true,
    backups: false,
};

fn backup(member: Member) -> Member {
    Member {
        role: Role::Backup,
        ..member
    }
}

fn down_since(down_since: Instant) -> Member {
    Member {
        down_since: Some(down_since),
        ..DOWN
    }
}

/// Who takes flows, as a string of 0 and 1, and why.
fn chosen(members: &[Member], rules: &PoolRules, before: Before) -> (String, Why) {
    let choice = choose(members, rules, before);
    let takes = choice.takes.iter().map(|takes| if *takes { '1' } else { '0' });
    (takes.collect(), choice.why)
}

fn takes(members: &[Member], rules: &PoolRules) -> String {
    chosen(members, rules, IN_USE).0
}

#[test]
fn backups_join_below_the_quorum() {
    let rules = PoolRules {
        quorum: 2,
        ..PoolRules::default()
    };
    let spare = [backup(UP), backup(UP)];
    assert_eq!(takes(&[&[UP, UP, UP][..], &spare].concat(), &rules), "11100");
    assert_eq!(takes(&[&[UP, UP, DOWN][..], &spare].concat(), &rules), "11000");
    assert_eq!(
        takes(&[&[UP, DOWN, TAKEN_OUT][..], &spare].concat(), &rules),
        "10011"
    );
    assert_eq!(
        takes(&[&[DOWN, DOWN, DOWN][..], &spare].concat(), &rules),
        "00011"
    );
}

#[test]
fn the_first_backup_is_the_first_that_serves() {
    let rules = PoolRules {
        backup_mode: BackupMode::First,
        ..PoolRules::default()
    };
    assert_eq!(takes(&[backup(UP), DOWN, backup(UP)], &rules), "100");
    assert_eq!(takes(&[backup(DOWN), DOWN, backup(UP)], &rules), "001");
    assert_eq!(takes(&[backup(TAKEN_OUT), DOWN, backup(UP)], &rules), "001");
}

#[test]
fn backups_are_left_with_hysteresis() {
    let rules = PoolRules {
        quorum: 1,
        quorum_hysteresis: 1,
        ..PoolRules::default()
    };
    let with = |members: &[Member], backups| {
        let choice = choose(
            members,
            &rules,
            Before {
                had_table: true,
                backups,
            },
        );
        choice.backups
    };
    let spare = backup(UP);
    assert!(
        !with(&[UP, DOWN, DOWN, spare], false),
        "one is enough not to begin"
    );
    assert!(with(&[DOWN, DOWN, DOWN, spare], false));
    assert!(with(&[UP, DOWN, DOWN, spare], true), "one is not enough to end");
    assert!(!with(&[UP, UP, DOWN, spare], true));
    assert!(!with(&[UP, spare], true), "there are no more than one");
}

#[test]
fn when_nobody_serves_the_file_says_who_does() {
    let members = [DOWN, DOWN, SORRY];
    let with = |on_all_down, members: &[Member], had_table| {
        let rules = PoolRules {
            on_all_down,
            ..PoolRules::default()
        };
        chosen(
            members,
            &rules,
            Before {
                had_table,
                backups: false,
            },
        )
    };
    assert_eq!(with(OnAllDown::Last, &members, true), ("110".into(), Why::Last));
    assert_eq!(with(OnAllDown::Last, &members, false), ("001".into(), Why::Sorry));
    assert_eq!(
        with(OnAllDown::Last, &members[..2], false),
        ("00".into(), Why::Nobody)
    );
    assert_eq!(with(OnAllDown::Drop, &members, true), ("000".into(), Why::Nobody));
    assert_eq!(with(OnAllDown::Sorry, &members, true), ("001".into(), Why::Sorry));
    let gone = [
        DOWN,
        Member {
            may_serve: false,
            ..SORRY
        },
    ];
    assert_eq!(with(OnAllDown::Sorry, &gone, true), ("00".into(), Why::Nobody));
    assert_eq!(
        with(OnAllDown::Sorry, &[UP, DOWN, SORRY], true),
        ("100".into(), Why::Serving)
    );
}

#[test]
fn the_table_of_before_has_those_that_served_before_the_failures() {
    let start = Instant::now();
    let at = |seconds| down_since(start + Duration::from_secs(seconds));
    let rules = PoolRules::default();
    // DOWN for an hour, then all others one after the other.
    assert_eq!(takes(&[at(0), at(3600), at(3610), at(3635)], &rules), "0111");
    // Two events.
    assert_eq!(takes(&[at(0), at(3600), at(3640)], &rules), "001");
    // DOWN since before this agent.
    assert_eq!(takes(&[DOWN, at(3600)], &rules), "01");
    assert_eq!(takes(&[DOWN, DOWN], &rules), "11");
    // UP by its checks, but its next hop is lost.
    let unreachable = Member {
        healthy: false,
        down_since: None,
        ..UP
    };
    assert_eq!(takes(&[unreachable, unreachable], &rules), "11");
    // Those of the cluster were taken out by an operator.
    let maintained = Member {
        may_serve: false,
        ..at(3600)
    };
    assert_eq!(takes(&[at(0), maintained], &rules), "10");
    // Never UP: no server at all, as far as anybody knows.
    let never = Member {
        ever_up: false,
        ..at(3600)
    };
    assert_eq!(takes(&[at(3600), never], &rules), "10");
}

#[test]
fn panic_believes_nobody_but_the_operator() {
    let rules = PoolRules {
        panic_threshold_percent: 50,
        ..PoolRules::default()
    };
    assert_eq!(
        chosen(&[UP, UP, DOWN, DOWN], &rules, IN_USE),
        ("1100".into(), Why::Serving)
    );
    assert_eq!(
        chosen(&[UP, DOWN, DOWN, TAKEN_OUT], &rules, IN_USE),
        ("1110".into(), Why::Panic)
    );
    let never = Member {
        ever_up: false,
        ..DOWN
    };
    assert_eq!(
        chosen(&[UP, DOWN, DOWN, never], &rules, IN_USE),
        ("1110".into(), Why::Panic)
    );
    assert_eq!(
        chosen(&[UP, DOWN, DOWN, DOWN], &PoolRules::default(), IN_USE),
        ("1000".into(), Why::Serving)
    );
}

#[test]
fn no_more_are_taken_out_than_the_limit() {
    let rules = PoolRules {
        max_ejection_percent: 50,
        ..PoolRules::default()
    };
    let start = Instant::now();
    let at = |seconds| down_since(start + Duration::from_secs(seconds));
    assert_eq!(takes(&[UP, at(1), UP, at(2)], &rules), "1010");
    assert_eq!(
        takes(&[UP, at(3), at(1), at(2)], &rules),
        "1100",
        "the latest stays"
    );
    assert_eq!(takes(&[UP, DOWN, at(1), at(2)], &rules), "1001");
    let never = PoolRules {
        max_ejection_percent: 0,
        ..PoolRules::default()
    };
    assert_eq!(takes(&[UP, at(1), TAKEN_OUT], &never), "110");
}

fn any_member() -> impl Strategy<Value = Member> {
    let role = prop_oneof![4 => Just(Role::Primary), 2 => Just(Role::Backup), 1 => Just(Role::Sorry)];
    (
        role,
        prop::bool::weighted(0.8),
        any::<bool>(),
        any::<bool>(),
        prop::option::of(0..200_u64),
    )
        .prop_map(|(role, may_serve, healthy, ever_up, seconds)| Member {
            role,
            may_serve,
            healthy,
            ever_up: ever_up || healthy,
            down_since: seconds
                .filter(|_| !healthy)
                .map(|seconds| *START + Duration::from_secs(seconds)),
        })
}

static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);

fn any_rules() -> impl Strategy<Value = PoolRules> {
    (
        1..5_u32,
        0..3_u32,
        prop_oneof![Just(BackupMode::All), Just(BackupMode::First)],
        prop_oneof![
            Just(OnAllDown::Last),
            Just(OnAllDown::Drop),
            Just(OnAllDown::Sorry)
        ],
        prop_oneof![Just(0), 0..=100_u8],
        prop_oneof![Just(100), 0..=100_u8],
    )
        .prop_map(
            |(
                quorum,
                quorum_hysteresis,
                backup_mode,
                on_all_down,
                panic_threshold_percent,
                max_ejection_percent,
            )| PoolRules {
                on_all_down,
                quorum,
                quorum_hysteresis,
                backup_mode,
                panic_threshold_percent,
                max_ejection_percent,
                ..PoolRules::default()
            },
        )
}

proptest! {
    #[test]
    fn whoever_is_chosen_may_serve_and_somebody_is_where_somebody_can(
        members in proptest::collection::vec(any_member(), 1..9),
        rules in any_rules(),
        had_table: bool,
        backups: bool,
    ) {
        let choice = choose(&members, &rules, Before { had_table, backups });
        prop_assert_eq!(choice.takes.len(), members.len());
        let taking = || members.iter().zip(&choice.takes).filter(|(_, takes)| **takes).map(|(member, _)| member);
        let verdicts_count = choice.why == Why::Serving && choice.spared == 0;
        for member in taking() {
            prop_assert!(member.may_serve, "an operator took it out");
            prop_assert!(member.ever_up);
            prop_assert!(member.healthy || !verdicts_count);
            prop_assert_eq!(member.role == Role::Sorry, choice.why == Why::Sorry);
            if member.role == Role::Backup && choice.why != Why::Last {
                prop_assert!(choice.backups);
            }
        }
        let serving_primaries = members.iter().filter(|m| m.role == Role::Primary && m.serves()).count();
        // Every primary that serves takes flows, whatever else is decided.
        let taking_primaries = taking().filter(|m| m.role == Role::Primary && m.serves()).count();
        prop_assert_eq!(serving_primaries, taking_primaries);
        if serving_primaries >= (rules.quorum + rules.quorum_hysteresis) as usize {
            prop_assert!(!choice.backups);
        }
        if serving_primaries < rules.quorum as usize {
            prop_assert!(choice.backups);
        }
        let someone = members.iter().any(|m| m.serves() && m.role != Role::Sorry);
        if someone {
            prop_assert!(taking().count() > 0);
            prop_assert!(matches!(choice.why, Why::Serving | Why::Panic));
        } else {
            prop_assert!(!matches!(choice.why, Why::Serving | Why::Panic));
        }
        prop_assert_eq!(choice.why == Why::Nobody, taking().count() == 0);
        prop_assert!(choice.why != Why::Last || had_table);
    }

    #[test]
    fn a_choice_is_settled(
        members in proptest::collection::vec(any_member(), 1..9),
        rules in any_rules(),
        backups: bool,
    ) {
        let once = choose(&members, &rules, Before { had_table: true, backups });
        let again = choose(&members, &rules, Before { had_table: true, backups: once.backups });
        prop_assert_eq!(once, again, "the same members again change nothing");
    }
}
