use super::*;
use crate::api::client::Client;
use crate::api::types::ServicePlan;
use crate::cli::outcome::Format;
use crate::cli::tests::screen;

fn context(format: Format) -> Context {
    Context {
        client: Client::new("/s"),
        format,
        screen: screen(None),
    }
}

fn plan() -> Plan {
    Plan {
        changed: true,
        changes: vec!["service web: 409 of 4093 slots would move".into()],
        services: vec![ServicePlan {
            name: "web".into(),
            kind: "table".into(),
            moved_slots: 409,
            slots: 4093,
            slots_before: 4093,
            slots_by_rule: 8191,
            flows_in_moved_slots: Some(1204),
        }],
        warnings: Vec::new(),
        counted_as_up: vec!["10.0.1.13:80 of web".into()],
        memory: Some(PlanMemory {
            agent_bytes: 27_000_000,
            maps_bytes: 13_100_000,
            maps_bytes_after: 14_100_000,
            tables_bytes: 32_744,
            tables_bytes_after: 32_744,
        }),
    }
}

#[test]
fn a_plan_without_changes_says_so() {
    let outcome = show(&Plan::default(), false, &context(Format::Table)).unwrap();
    assert_eq!((outcome.text.as_str(), outcome.code), ("nothing to change\n", 0));
}

#[test]
fn what_would_change_is_pending() {
    let outcome = show(&plan(), false, &context(Format::Table)).unwrap();
    assert_eq!(outcome.code, 3);
    let lines: Vec<&str> = outcome.text.lines().collect();
    assert_eq!(
        lines,
        [
            "service web: 409 of 4093 slots would move",
            "service web: 1,204 flows are remembered in the slots that would move; they stay",
            "service web: its table keeps 4093 slots, a new one would have 8191 (table_size = 8191 moves nearly every slot)",
            "counted as UP, since no check has seen them yet: 10.0.1.13:80 of web",
            memory_line(&plan().memory.unwrap()).trim_end(),
            "nothing was changed; put it in force with: xlb reload",
        ]
    );
    assert!(
        lines[4].starts_with("memory: agent ") && lines[4].contains(" at most; tables "),
        "{}",
        lines[4]
    );
    let another = show(&plan(), true, &context(Format::Table)).unwrap();
    assert!(
        another.text.contains("agent's configuration and"),
        "{}",
        another.text
    );
}

#[test]
fn programs_get_all_of_it() {
    let outcome = show(&plan(), false, &context(Format::Json)).unwrap();
    assert_eq!(outcome.code, 3);
    assert_eq!(serde_json::from_str::<Plan>(&outcome.text).unwrap(), plan());
}
