//! Slots on the move and the flow table, as `xlb status` shows them.

use std::fmt::Write;

use crate::api::types::{FlowTableStatus, MigrationStatus};
use crate::cli::grid::{Cell, Column, Grid, Tone};
use crate::cli::human;
use crate::cli::outcome::Screen;

/// Nothing where nothing moves and nothing is remembered.
pub(super) fn lines(
    migrations: &[MigrationStatus],
    flow_table: Option<&FlowTableStatus>,
    screen: &Screen,
) -> String {
    let mut text = String::new();
    if !migrations.is_empty() {
        text += "\n";
        text += &migration_grid(migrations, screen).render(screen, "");
    }
    if let Some(table) = flow_table {
        text += &table_lines(table);
    }
    text
}

fn migration_grid(migrations: &[MigrationStatus], screen: &Screen) -> Grid {
    let mut grid = Grid::new(&[
        Column::left("MIGRATION"),
        Column::right("SLOTS"),
        Column::right("OPEN"),
        Column::right("SETTLED"),
        Column::right("WAITING"),
        Column::right("DONE"),
        Column::left("ENDS IN"),
    ]);
    for migration in migrations {
        let MigrationStatus {
            service,
            cause,
            since: _,
            slots,
            open,
            settled,
            waiting,
            progress_percent,
            until,
            extensions,
            stalled,
            resizing,
        } = migration;
        let ends = until
            .as_deref()
            .and_then(|until| humantime::parse_rfc3339(until).ok())
            .and_then(|until| until.duration_since(screen.now).ok())
            .map_or("-".to_owned(), human::span);
        let mut notes = vec![format!("cause: {}", human::printable(cause))];
        if *resizing {
            notes.push("the table is being resized".into());
        }
        if *stalled {
            notes.push(format!(
                "MIGRATION STALLED: put off {extensions} times because entries were refused"
            ));
        }
        let name = match stalled {
            true => Cell::toned(service, Tone::Bad),
            false => service.into(),
        };
        grid.row(
            [
                name,
                slots.to_string().into(),
                open.to_string().into(),
                settled.to_string().into(),
                waiting.to_string().into(),
                format!("{progress_percent:.0}%").into(),
                ends.into(),
            ],
            notes,
        );
    }
    grid
}

fn table_lines(table: &FlowTableStatus) -> String {
    let FlowTableStatus {
        capacity,
        entries,
        unconfirmed,
        established,
        closing,
        contested,
        scanned_ms_ago: _,
        scan_ms: _,
        hits: _,
        inserted_syn,
        inserted_data,
        inserted_udp,
        refused_allowance,
        refused_full,
        refused_occupied,
        resets,
    } = table;
    let inserted = inserted_syn + inserted_data + inserted_udp;
    let refused = refused_allowance + refused_full + refused_occupied;
    let mut text = String::new();
    if entries + inserted + refused + resets == 0 {
        return text;
    }
    let _ = writeln!(
        text,
        "\nflow table {} of {} entries (unconfirmed {}, established {}, closing {}); {} made (SYN {}, other TCP {}, UDP {})",
        human::count(*entries),
        human::count(*capacity),
        human::count(unconfirmed + contested),
        human::count(*established),
        human::count(*closing),
        human::count(inserted),
        human::count(*inserted_syn),
        human::count(*inserted_data),
        human::count(*inserted_udp),
    );
    if refused > 0 {
        let _ = writeln!(
            text,
            "  {} refused (too fast {}, full {}, occupied {})",
            human::count(refused),
            human::count(*refused_allowance),
            human::count(*refused_full),
            human::count(*refused_occupied),
        );
    }
    if *resets > 0 {
        let _ = writeln!(
            text,
            "  {} resets sent for backends that are DOWN",
            human::count(*resets)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::screen;

    #[test]
    fn a_quiet_table_says_nothing() {
        assert_eq!(lines(&[], Some(&FlowTableStatus::default()), &screen(None)), "");
    }

    #[test]
    fn a_migration_and_a_full_table_are_shown() {
        let migration = MigrationStatus {
            service: "web".into(),
            cause: "backend 10.0.1.11:80 DOWN".into(),
            since: "2025-01-01T03:11:00.000Z".into(),
            slots: 400,
            open: 300,
            settled: 60,
            waiting: 0,
            progress_percent: 42.4,
            until: Some("2025-01-01T03:26:00.000Z".into()),
            extensions: 3,
            stalled: true,
            resizing: false,
        };
        let table = FlowTableStatus {
            capacity: 262_144,
            entries: 1200,
            established: 1200,
            inserted_data: 1300,
            refused_full: 7,
            ..FlowTableStatus::default()
        };
        let expected = "
MIGRATION  SLOTS  OPEN  SETTLED  WAITING  DONE  ENDS IN
web          400   300       60        0   42%  14m
  cause: backend 10.0.1.11:80 DOWN
  MIGRATION STALLED: put off 3 times because entries were refused

flow table 1,200 of 262,144 entries (unconfirmed 0, established 1,200, closing 0); 1,300 made (SYN 0, other TCP 1,300, UDP 0)
  7 refused (too fast 0, full 7, occupied 0)
";
        assert_eq!(lines(&[migration], Some(&table), &screen(None)), expected);
    }
}
