//! Results for people.

use comfy_table::{CellAlignment, Table, presets};

use super::result::PartResult;

/// The part's own table, or one of its rows, with what has to be known to judge it.
pub fn part(result: &PartResult) -> String {
    let PartResult {
        part,
        setting,
        rows: _,
        faults,
        text,
        details: _,
    } = result;
    let mut lines = vec![format!("== {part}")];
    lines.extend(
        setting
            .iter()
            .map(|fact| format!("{}: {}", fact.name, fact.value)),
    );
    lines.push(if text.is_empty() {
        rows(result)
    } else {
        text.clone()
    });
    lines.extend(faults.iter().map(|fault| format!("NOT KEPT: {fault}")));
    lines.join("\n")
}

fn rows(result: &PartResult) -> String {
    let mut table = empty(&["what", "unit", "min", "median", "max", "runs"]);
    for row in &result.rows {
        let Some(spread) = row.spread() else { continue };
        table.add_row([
            row.title(),
            row.unit.clone(),
            number(spread.min),
            number(spread.median),
            number(spread.max),
            row.samples.len().to_string(),
        ]);
    }
    align(&mut table, 2..6);
    table.to_string()
}

pub fn empty(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(header);
    table
}

/// Numbers stand to the right.
pub fn align(table: &mut Table, columns: std::ops::Range<usize>) {
    for column in columns {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

/// Three digits that count, and whole numbers whole.
pub fn number(value: f64) -> String {
    let decimals = match value.abs() {
        size if size >= 100.0 || value.fract() == 0.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::super::result::Row;
    use super::*;

    #[test]
    fn numbers_have_three_digits_that_count() {
        let shown = [0.0, 7.0, 0.12345, 1.77, 48.26, 261.4, 4_110_000.0].map(number);
        assert_eq!(shown, ["0", "7", "0.123", "1.77", "48.3", "261", "4110000"]);
    }

    #[test]
    fn a_part_shows_its_rows_and_its_faults() {
        let result = PartResult {
            part: "packet".into(),
            rows: vec![Row {
                group: "dsr-l2".into(),
                name: "established".into(),
                unit: "ns".into(),
                samples: vec![3.0, 1.0, 2.0],
                ..Row::default()
            }],
            faults: vec!["too slow".into()],
            ..PartResult::default()
        };
        let text = part(&result);
        for expected in ["== packet", "dsr-l2: established", "NOT KEPT: too slow"] {
            assert!(text.contains(expected), "{text}");
        }
    }
}
