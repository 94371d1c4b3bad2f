//! What an order did, for people.

use std::fmt::Write;

use super::outcome::{Context, Format, Outcome};
use crate::api::types::Done;

/// The changes on standard output, the warnings on standard error.
pub(super) fn show(done: &Done, context: &Context) -> anyhow::Result<Outcome> {
    for warning in &done.warnings {
        log::warn!("{warning}");
    }
    context.show(done, |done, _| text(done))
}

/// As [`show`], for what may move slots.
pub(super) fn show_with_slots(done: &Done, context: &Context) -> anyhow::Result<Outcome> {
    let mut outcome = show(done, context)?;
    if context.format == Format::Table && done.changed && done.services.is_empty() {
        outcome.text += "no slots moved\n";
    }
    Ok(outcome)
}

fn text(done: &Done) -> String {
    let mut text = String::new();
    for change in &done.changes {
        let _ = writeln!(text, "{}", super::human::printable(change));
    }
    if !done.changed {
        text += "nothing to change\n";
    } else if done.changes.is_empty() {
        text += "done\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::client::Client;
    use crate::api::types::ServiceChange;
    use crate::cli::tests::screen;

    fn context(format: Format) -> Context {
        Context {
            client: Client::new("/s"),
            format,
            screen: screen(None),
        }
    }

    #[test]
    fn an_order_without_effect_says_so() {
        let outcome = show_with_slots(&Done::default(), &context(Format::Table)).unwrap();
        assert_eq!((outcome.text.as_str(), outcome.code), ("nothing to change\n", 0));
    }

    #[test]
    fn changes_are_a_line_each() {
        let mut done = Done {
            changed: true,
            changes: vec!["backend 10.0.1.11:80 of web: READY -> DRAIN".into()],
            ..Done::default()
        };
        let said = |done: &Done| show_with_slots(done, &context(Format::Table)).unwrap().text;
        assert_eq!(
            said(&done),
            "backend 10.0.1.11:80 of web: READY -> DRAIN\nno slots moved\n"
        );
        done.services.push(ServiceChange {
            name: "web".into(),
            kind: "table".into(),
            moved_slots: 1365,
            slots: 4093,
        });
        done.changes.push("service web: 1365 of 4093 slots moved".into());
        assert!(said(&done).ends_with("\nservice web: 1365 of 4093 slots moved\n"));
        let json = show_with_slots(&done, &context(Format::Json)).unwrap().text;
        assert_eq!(serde_json::from_str::<Done>(&json).unwrap(), done);
    }
}
