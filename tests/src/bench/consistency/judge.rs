//! From what was seen to a table and to promises that were kept or not.

use std::fmt::Write;

use comfy_table::{CellAlignment, Table, presets};
use xlb::lab::measure::Effect;
use xlb::lab::stage::REST_MOST;

use super::{Outcome, Plan, Run};
use crate::bench::result::{Better, Fact, PartResult, Row};

/// # Errors
/// Never in practice: only where the numbers cannot be written as JSON.
pub fn result(plan: &Plan, run: &Run) -> anyhow::Result<PartResult> {
    Ok(PartResult {
        part: "consistency".into(),
        setting: setting(plan),
        rows: rows(run),
        faults: faults(run),
        text: table(run),
        details: serde_json::to_value(run)?,
    })
}

fn setting(plan: &Plan) -> Vec<Fact> {
    let stage = &plan.stage;
    let arms: Vec<&str> = stage.arms.iter().map(|arm| arm.name).collect();
    let fact = |name: &str, value: String| Fact {
        name: name.into(),
        value,
    };
    vec![
        fact("tracking", arms.join(", ")),
        fact(
            "backends",
            format!("{} (and {} spare)", stage.backends, stage.spare),
        ),
        fact(
            "clients of each arm",
            format!(
                "{} TCP connections that talk every 0.1 to 1 s, {} that are idle for {:.0} to {:.0} s, {} new ones a \
                 second that stay 1 to 5 s; {} UDP flows",
                stage.tcp.talking,
                stage.tcp.resting,
                stage.window.as_secs_f64() / 2.0,
                stage.window.as_secs_f64() * REST_MOST,
                stage.tcp.visits_per_s,
                stage.udp.residents()
            ),
        ),
        fact("tcp_idle_timeout", format!("{} s", stage.window.as_secs())),
    ]
}

/// What was promised and not kept.
pub fn faults(run: &Run) -> Vec<String> {
    let mut faults = Vec::new();
    for Outcome { event, effects, .. } in &run.outcomes {
        for effect in effects {
            let Effect { arm, broken, .. } = effect;
            let what = event.text();
            if arm != CONTROL && *broken > 0 {
                faults.push(format!(
                    "{what}: {broken} flows of {arm} broken though their backend lived"
                ));
            }
            if effect.moved_slots == 0 {
                faults.push(format!(
                    "{what}: no slot of {arm} moved under a flow, so it shows nothing"
                ));
            }
            if effect.unstable_left > 0 {
                let left = effect.unstable_left;
                faults.push(format!(
                    "{what}: the migration of {arm} did not end, {left} slots are left"
                ));
            }
        }
    }
    let all = || run.outcomes.iter().flat_map(|outcome| &outcome.effects);
    if broken(run, CONTROL) == 0 {
        faults.push("the control broke nothing, so nothing is shown".into());
    }
    if all().all(|effect| effect.arm == CONTROL) {
        faults.push("only tracking = \"none\" was there to be measured".into());
    }
    for settled in run.settled.iter().filter(|settled| settled.left > 0) {
        faults.push(format!(
            "{} slots were not stable after all flows had ended",
            settled.left
        ));
    }
    if run.network_faults > 0 {
        faults.push(format!(
            "{} packets were damaged by the network",
            run.network_faults
        ));
    }
    faults
}

/// Flows of an arm that were broken by all events together.
#[must_use]
pub fn broken(run: &Run, arm: &str) -> usize {
    let effects = run.outcomes.iter().flat_map(|outcome| &outcome.effects);
    effects
        .filter(|effect| effect.arm == arm)
        .map(|effect| effect.broken)
        .sum()
}

/// The arm that must lose flows.
pub const CONTROL: &str = "none";

fn rows(run: &Run) -> Vec<Row> {
    let mut rows = Vec::new();
    for Outcome { event, effects, .. } in &run.outcomes {
        for effect in effects {
            let better = if effect.arm == CONTROL {
                Better::Neither
            } else {
                Better::Lower
            };
            let mut row = |name: &str, unit: &str, better, value: f64| {
                rows.push(Row {
                    group: format!("{}, {name}", effect.arm),
                    name: event.text().into(),
                    unit: unit.into(),
                    better,
                    samples: vec![value],
                });
            };
            row("broken", "flows", better, effect.broken as f64);
            row(
                "lost with their backend",
                "flows",
                Better::Neither,
                effect.lost as f64,
            );
            row(
                "slots moved under flows",
                "slots",
                Better::Neither,
                effect.moved_slots as f64,
            );
            if let Some(ms) = effect.old_way_ms {
                row("last flow the old way", "ms", better, ms as f64);
            }
            if let Some(s) = effect.migration_s {
                row("window", "s", better, s);
            }
        }
    }
    rows
}

fn table(run: &Run) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header([
        "event",
        "tracking",
        "alive",
        "broken",
        "lost with\nbackend",
        "slots moved\nunder flows",
        "flows Maglev\nwould break",
        "entries\nat most",
        "slots asked\nat the end",
        "last the\nold way",
        "window",
    ]);
    for Outcome { event, effects, .. } in &run.outcomes {
        for (n, effect) in effects.iter().enumerate() {
            table.add_row([
                if n == 0 { event.text() } else { "" }.to_owned(),
                effect.arm.clone(),
                effect.alive.to_string(),
                effect.broken.to_string(),
                effect.lost.to_string(),
                effect.moved_slots.to_string(),
                effect.misplaced.to_string(),
                effect.entries_most.to_string(),
                effect.consulted_left.to_string(),
                effect.old_way_ms.map_or("-".into(), |ms| format!("{ms} ms")),
                effect.migration_s.map_or("-".into(), |s| format!("{s:.1} s")),
            ]);
        }
    }
    for column in 2..11 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut text = table.to_string();
    for settled in &run.settled {
        let _ = write!(
            text,
            "\nthe last slot was stable {:.0} s after the clients had left",
            settled.after_s
        );
    }
    let _ = write!(
        text,
        "\n{} right answers; {} packets found no room in the load balancer's device",
        run.answers, run.no_room
    );
    for arm in arms(run) {
        let _ = write!(text, "\nbroken with tracking = \"{arm}\": {}", broken(run, arm));
    }
    text
}

fn arms(run: &Run) -> Vec<&str> {
    run.outcomes
        .first()
        .map(|outcome| outcome.effects.iter().map(|effect| effect.arm.as_str()).collect())
        .unwrap_or_default()
}
