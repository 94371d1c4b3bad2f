//! Results as the documentation has them: one table a group, least / median / most of each row.

use std::fmt::Write as _;

use super::result::{PartResult, Row};
use super::table::number;

/// The tables of a part. Rows whose names begin with that of the row before, and a comma, become columns beside it where
/// all rows of the group have them.
pub fn part(result: &PartResult) -> String {
    let mut out = format!("### {}\n", result.part);
    for fact in &result.setting {
        let _ = writeln!(out, "\n{}: {}", fact.name, fact.value);
    }
    let mut rest = &result.rows[..];
    while let Some(first) = rest.first() {
        let end = rest.iter().position(|row| row.group != first.group);
        let (group, others) = rest.split_at(end.unwrap_or(rest.len()));
        let _ = write!(out, "\n{}\n", table(group));
        rest = others;
    }
    for fault in &result.faults {
        let _ = writeln!(out, "\nNot kept: {fault}");
    }
    out
}

fn table(rows: &[Row]) -> String {
    let mut lines: Vec<(&Row, Vec<(&str, &Row)>)> = Vec::new();
    for row in rows {
        let more = lines
            .last()
            .and_then(|(head, _)| row.name.strip_prefix(&head.name)?.strip_prefix(", "));
        match (more, lines.last_mut()) {
            (Some(name), Some((_, columns))) => columns.push((name, row)),
            _ => lines.push((row, Vec::new())),
        }
    }
    let mut columns: Vec<&str> = Vec::new();
    for (name, _) in lines.iter().flat_map(|(_, more)| more) {
        if !columns.contains(name) {
            columns.push(name);
        }
    }
    let group = rows.first().map_or("", |row| row.group.as_str());
    let unit = rows.first().map_or("", |row| row.unit.as_str());
    let mut out = format!("| {group} | {unit} |");
    for column in &columns {
        let _ = write!(out, " {column} |");
    }
    let _ = write!(out, "\n|{}", "---|".repeat(columns.len() + 2));
    for (head, more) in &lines {
        let _ = write!(out, "\n| {} | {}", head.name, spread(head));
        if head.unit != unit {
            let _ = write!(out, " {}", head.unit);
        }
        out += " |";
        for column in &columns {
            let cell = more.iter().find(|(name, _)| name == column);
            let _ = write!(
                out,
                " {} |",
                cell.map_or_else(String::new, |(_, row)| spread(row))
            );
        }
    }
    out + "\n"
}

fn spread(row: &Row) -> String {
    row.spread().map_or_else(String::new, |spread| {
        let [min, median, max] = [spread.min, spread.median, spread.max].map(number);
        format!("{min} / {median} / {max}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_a_row_stands_beside_it() {
        let row = |name: &str, unit: &str, sample: f64| Row {
            group: "dsr-l2".into(),
            name: name.into(),
            unit: unit.into(),
            samples: vec![sample],
            ..Row::default()
        };
        let rows = [
            row("SYN, 1 flow", "ns", 21.0),
            row("SYN, 1 flow, its floor", "ns", 7.0),
            row("UDP", "ns", 20.0),
            row("UDP, its floor", "ns", 8.0),
            row("agent", "MB", 1.5),
        ];
        let expected = "| dsr-l2 | ns | its floor |\n|---|---|---|\n| SYN, 1 flow | 21 / 21 / 21 | 7 / 7 / 7 |\n\
                        | UDP | 20 / 20 / 20 | 8 / 8 / 8 |\n| agent | 1.50 / 1.50 / 1.50 MB |  |\n";
        assert_eq!(table(&rows), expected);
    }
}
