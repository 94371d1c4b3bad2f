//! What changed since an earlier run.

use super::result::{Better, Report, Row};
use super::table::{align, empty, number};

/// Rows of both runs side by side. A change counts where the spreads of the two do not overlap.
pub fn table(before: &Report, after: &Report) -> String {
    let mut table = empty(&["what", "unit", "before", "after", "change", ""]);
    for part in &after.parts {
        for row in &part.rows {
            let old = before
                .parts
                .iter()
                .filter(|old| old.part == part.part)
                .flat_map(|old| &old.rows)
                .find(|old| old.title() == row.title() && old.unit == row.unit);
            let Some(change) = old.and_then(|old| Change::of(old, row)) else {
                continue;
            };
            table.add_row([
                format!("{}: {}", part.part, row.title()),
                row.unit.clone(),
                number(change.before),
                number(change.after),
                change
                    .percent
                    .map_or("-".into(), |percent| format!("{percent:+.1} %")),
                change.verdict.into(),
            ]);
        }
    }
    align(&mut table, 2..5);
    format!("since {}\n{table}", before.at)
}

#[derive(Debug, PartialEq)]
struct Change {
    before: f64,
    after: f64,
    /// `None` where there was nothing before.
    percent: Option<f64>,
    verdict: &'static str,
}

impl Change {
    /// From median to median.
    fn of(old: &Row, new: &Row) -> Option<Self> {
        let (was, is) = (old.spread()?, new.spread()?);
        let verdict = match new.better {
            _ if is.min <= was.max && was.min <= is.max => "",
            Better::Neither => "",
            Better::Lower if is.median < was.median => "better",
            Better::Higher if is.median > was.median => "better",
            Better::Lower | Better::Higher => "WORSE",
        };
        Some(Self {
            before: was.median,
            after: is.median,
            percent: (was.median != 0.0).then(|| (is.median / was.median - 1.0) * 100.0),
            verdict,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_spreads_that_do_not_overlap_are_a_change() {
        let row = |samples: &[f64], better| Row {
            samples: samples.to_vec(),
            better,
            ..Row::default()
        };
        let verdict = |old: &[f64], new: &[f64], better| {
            Change::of(&row(old, better), &row(new, better)).unwrap().verdict
        };
        assert_eq!(verdict(&[10.0, 12.0], &[12.0, 14.0], Better::Lower), "");
        assert_eq!(verdict(&[10.0, 12.0], &[13.0, 14.0], Better::Lower), "WORSE");
        assert_eq!(verdict(&[10.0, 12.0], &[13.0, 14.0], Better::Higher), "better");
        assert_eq!(verdict(&[10.0, 12.0], &[8.0, 9.0], Better::Lower), "better");
        assert_eq!(verdict(&[10.0, 12.0], &[8.0, 9.0], Better::Neither), "");
        let change = Change::of(&row(&[0.0], Better::Lower), &row(&[3.0], Better::Lower)).unwrap();
        assert_eq!((change.percent, change.verdict), (None, "WORSE"));
    }
}
