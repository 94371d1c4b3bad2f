//! One page that needs nothing else: no script, no font, no picture from anywhere.

use std::fmt::Write;

use super::result::{Fact, PartResult, Report, Row};
use super::table::number;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}\
table{border-collapse:collapse}td,th{padding:.2em .8em;border-bottom:1px solid #ddd;text-align:right}\
td:first-child,th:first-child,td:nth-child(2){text-align:left}.fault{color:#b00020;font-weight:bold}\
pre{overflow-x:auto;font-size:12px;line-height:1.3}svg text{font:12px system-ui,sans-serif}";

pub fn page(report: &Report) -> String {
    let Report { at, machine, parts } = report;
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>xlb bench, {at}</title>\
         <style>{STYLE}</style></head><body>\n<h1>xlb bench</h1>\n<p>{}</p>\n{}",
        escape(at),
        facts(machine)
    );
    for part in parts {
        out += &section(part);
    }
    out + "</body></html>\n"
}

fn section(result: &PartResult) -> String {
    let PartResult {
        part,
        setting,
        rows,
        faults,
        text,
        details: _,
    } = result;
    let mut out = format!("<h2>{}</h2>\n{}", escape(part), facts(setting));
    for fault in faults {
        let _ = writeln!(out, "<p class=\"fault\">not kept: {}</p>", escape(fault));
    }
    for group in groups(rows) {
        out += &plot(&group);
    }
    if !text.is_empty() {
        let _ = writeln!(out, "<pre>{}</pre>", escape(text));
    }
    out += "<table><tr><th>what</th><th>unit</th><th>min</th><th>median</th><th>max</th><th>runs</th></tr>\n";
    for row in rows {
        let Some(spread) = row.spread() else { continue };
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(&row.title()),
            escape(&row.unit),
            number(spread.min),
            number(spread.median),
            number(spread.max),
            row.samples.len()
        );
    }
    out + "</table>\n"
}

/// Rows of one group and unit, in the order of their first.
fn groups(rows: &[Row]) -> Vec<Vec<&Row>> {
    let mut groups: Vec<Vec<&Row>> = Vec::new();
    for row in rows.iter().filter(|row| !row.samples.is_empty()) {
        let same = |group: &&mut Vec<&Row>| group[0].group == row.group && group[0].unit == row.unit;
        match groups.iter_mut().find(same) {
            Some(group) => group.push(row),
            None => groups.push(vec![row]),
        }
    }
    groups
}

/// A bar for each row up to its median, and a line from least to greatest.
fn plot(rows: &[&Row]) -> String {
    const LABEL: f64 = 300.0;
    const WIDTH: f64 = 460.0;
    const LINE: f64 = 22.0;
    let spreads: Vec<_> = rows.iter().filter_map(|row| Some((row, row.spread()?))).collect();
    let most = spreads.iter().map(|(_, spread)| spread.max).fold(0.0, f64::max);
    if most <= 0.0 {
        return String::new();
    }
    let height = LINE * (spreads.len() as f64 + 1.0);
    let mut out = format!(
        "<svg width=\"{}\" height=\"{height}\" role=\"img\"><text x=\"0\" y=\"14\" font-weight=\"bold\">{} {}</text>\n",
        LABEL + WIDTH + 80.0,
        escape(&rows[0].group),
        escape(&rows[0].unit)
    );
    for (line, (row, spread)) in spreads.iter().enumerate() {
        let top = LINE * (line as f64 + 1.0);
        let x = |value: f64| LABEL + value.max(0.0) / most * WIDTH;
        let _ = writeln!(
            out,
            "<text x=\"0\" y=\"{:.1}\">{}</text><rect x=\"{LABEL}\" y=\"{:.1}\" width=\"{:.1}\" height=\"14\" \
             fill=\"#7aa6d8\"/><line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#222\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            top + 15.0,
            escape(&row.name),
            top + 4.0,
            x(spread.median) - LABEL,
            x(spread.min),
            x(spread.max),
            x(spread.max) + 6.0,
            top + 15.0,
            number(spread.median),
            y = top + 11.0,
        );
    }
    out + "</svg>\n"
}

fn facts(facts: &[Fact]) -> String {
    let lines: String = facts
        .iter()
        .map(|fact| format!("<li>{}: {}</li>\n", escape(&fact.name), escape(&fact.value)))
        .collect();
    format!("<ul>\n{lines}</ul>\n")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_holds_every_row_and_asks_nobody_for_anything() {
        let row = |name: &str, median: f64| Row {
            group: "established".into(),
            name: name.into(),
            unit: "ns".into(),
            samples: vec![median, median + 1.0, median - 1.0],
            ..Row::default()
        };
        let report = Report {
            at: "2025-01-01T00:00:00Z".into(),
            machine: vec![Fact {
                name: "kernel".into(),
                value: "<6.18>".into(),
            }],
            parts: vec![PartResult {
                part: "packet".into(),
                rows: vec![row("floor", 48.0), row("xlb & co", 85.0)],
                faults: vec!["slow".into()],
                ..PartResult::default()
            }],
        };
        let page = page(&report);
        for expected in ["&lt;6.18&gt;", "xlb &amp; co", "not kept: slow", "<svg", "<rect"] {
            assert!(page.contains(expected), "{expected} in {page}");
        }
        for foreign in ["http:", "https:", "<script", "@import", "url("] {
            assert!(!page.contains(foreign), "{foreign} in {page}");
        }
    }
}
