//! What an order did, for people.

use std::fmt::Write;

use super::outcome::{Context, Outcome, Screen};
use crate::api::types::Done;

/// The changes on standard output, the warnings on standard error.
pub(super) fn show(done: &Done, context: &Context) -> anyhow::Result<Outcome> {
    for warning in &done.warnings {
        log::warn!("{warning}");
    }
    context.show(done, text)
}

fn text(done: &Done, _: &Screen) -> String {
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
    use std::time::SystemTime;

    use super::*;

    const SCREEN: Screen = Screen {
        width: None,
        colour: false,
        now: SystemTime::UNIX_EPOCH,
    };

    #[test]
    fn an_order_without_effect_says_so() {
        assert_eq!(text(&Done::default(), &SCREEN), "nothing to change\n");
    }

    #[test]
    fn changes_are_a_line_each() {
        let done = Done {
            changed: true,
            changes: vec![
                "backend 10.0.1.11:80 of web: READY -> DRAIN".into(),
                "service web: 1365 of 4093 slots moved".into(),
            ],
            ..Done::default()
        };
        assert_eq!(
            text(&done, &SCREEN),
            "backend 10.0.1.11:80 of web: READY -> DRAIN\nservice web: 1365 of 4093 slots moved\n"
        );
    }
}
