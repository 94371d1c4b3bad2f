//! `control`: what a change of the tables takes, starting, adopting, idling and probing.

mod agent;
mod probes;
mod scan;
mod swap;
mod tables;
mod together;

use std::time::Duration;

use clap::Args;
use xlb::config::Via;

use self::probes::Load;
use super::result::{Better, Fact, PartResult, Row};

/// How much of it.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// How often each is measured.
    #[arg(long, value_name = "N")]
    runs: Option<usize>,
    /// Only these.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PIECE")]
    only: Vec<Piece>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Piece {
    /// Tables: computed, written, switched.
    Tables,
    /// The agent: starting, adopting, idling, a change of many services.
    Agent,
    /// How long packets take while tables are switched.
    Swap,
    /// The prober.
    Probes,
    /// The prober, while a hundred services change at one instant.
    Together,
    /// The sweep of a full flow table.
    Scan,
}

/// Measures.
///
/// # Errors
/// Where something cannot be measured.
pub fn run(quick: bool, options: &Options) -> anyhow::Result<PartResult> {
    let runs = options.runs.unwrap_or(if quick { 3 } else { 11 });
    let wants = |piece| options.only.is_empty() || options.only.contains(&piece);
    let mut table = Table::default();
    if wants(Piece::Tables) {
        println!("  tables");
        tables::measure(runs, if quick { 20 } else { 200 }, &mut table)?;
        let of_one = "a table of 65,521 slots, 1,000 backends";
        table.promise(of_one, "computed", 3.0);
        table.promise(of_one, "written", 1.0);
        table.promise("the stores that switch", "1 table switched", 1.0);
        table.promise("the stores that switch", "100 tables switched", 1.0);
        table.promise_no_more(
            "services that change at one instant",
            "100 services, each",
            "3 services, each",
        );
        table.promise_p99(of_one, "one backend DOWN or UP, all of it", 30.0);
    }
    if wants(Piece::Agent) {
        println!("  the agent");
        agent::measure(runs, quick, &mut table)?;
    }
    if wants(Piece::Swap) {
        println!("  packets while tables are switched");
        swap::measure(if quick { 10_000 } else { 100_000 }, runs, &mut table)?;
    }
    if wants(Piece::Probes) {
        println!("  the prober");
        let ms = Duration::from_millis;
        let loads = [
            (1000, 200, 2000, Via::Forward, 0),
            (1000, 200, 2000, Via::Direct, 0),
            (1000, 200, 2000, Via::Forward, 50),
            (10_000, 2000, 4000, Via::Forward, 0),
            (10_000, 2000, 4000, Via::Direct, 0),
        ];
        for (backends, interval, window, via, misbehaving) in if quick { &loads[..3] } else { &loads[..] } {
            let load = Load {
                backends: *backends,
                interval: ms(*interval),
                window: ms(*window),
                via: *via,
                misbehaving: *misbehaving,
            };
            probes::measure(load, runs, &mut table)?;
        }
    }
    if wants(Piece::Together) {
        println!("  the prober, while tables are switched");
        let backends = if quick { 100 } else { 600 };
        together::measure(together::load(quick), backends, runs, &mut table)?;
    }
    if wants(Piece::Scan) {
        println!("  a scan of the flow table");
        scan::measure(runs, &mut table)?;
        table.promise(scan::GROUP, "scanned, with the pauses between batches", 500.0);
    }
    Ok(table.result(runs))
}

/// What was measured, and what was not kept.
#[derive(Debug, Default)]
struct Table {
    rows: Vec<Row>,
    faults: Vec<String>,
}

impl Table {
    fn note(&mut self, group: &str, name: &str, unit: &str, sample: f64) {
        let known = self
            .rows
            .iter_mut()
            .find(|row| row.group == group && row.name == name);
        if let Some(row) = known {
            row.samples.push(sample);
            return;
        }
        self.rows.push(Row {
            group: group.into(),
            name: name.into(),
            unit: unit.into(),
            better: Better::Lower,
            samples: vec![sample],
        });
    }

    fn ms(&mut self, group: &str, name: &str, sample: Duration) {
        self.note(group, name, "ms", sample.as_secs_f64() * 1000.0);
    }

    fn fault(&mut self, fault: String) {
        self.faults.push(fault);
    }

    /// The median is to be no more than `most`.
    fn promise(&mut self, group: &str, name: &str, most: f64) {
        self.keep(group, name, most, "in the middle", |row| {
            row.spread().map(|spread| spread.median)
        });
    }

    /// 99 of 100 are to be no more than `most`.
    fn promise_p99(&mut self, group: &str, name: &str, most: f64) {
        self.keep(group, name, most, "at the 99th percentile", |row| {
            let mut sorted = row.samples.clone();
            sorted.sort_by(f64::total_cmp);
            let rank = (sorted.len() * 99).div_ceil(100);
            sorted.get(rank.saturating_sub(1)).copied()
        });
    }

    /// The median is to be no more than that of another row.
    fn promise_no_more(&mut self, group: &str, name: &str, than: &str) {
        let of = |name: &str| {
            let row = self
                .rows
                .iter()
                .find(|row| row.group == group && row.name == name)?;
            Some(row.spread()?.median)
        };
        if let (Some(value), Some(other)) = (of(name), of(than))
            && value > other
        {
            self.faults
                .push(format!("{group}: {name} {value:.3}, {than} {other:.3}"));
        }
    }

    fn keep(&mut self, group: &str, name: &str, most: f64, which: &str, of: impl Fn(&Row) -> Option<f64>) {
        let row = self
            .rows
            .iter()
            .find(|row| row.group == group && row.name == name);
        let Some((row, value)) = row.and_then(|row| Some((row, of(row)?))) else {
            return;
        };
        if value > most {
            let fault = format!(
                "{group}, {name}: {value:.2} {} {which}, at most {most} were promised",
                row.unit
            );
            self.faults.push(fault);
        }
    }

    fn result(self, runs: usize) -> PartResult {
        let fact = |name: &str, value: String| Fact {
            name: name.into(),
            value,
        };
        PartResult {
            part: "control".into(),
            setting: vec![
                fact("runs", runs.to_string()),
                fact(
                    "all of it",
                    "from the states of the backends to the table in force: what is wanted, computed, compared, written, switched"
                        .into(),
                ),
            ],
            rows: self.rows,
            faults: self.faults,
            ..PartResult::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_longer_than_promised_is_said() {
        let mut table = Table::default();
        for ms in 1..=100 {
            table.ms("tables", "computed", Duration::from_millis(ms));
        }
        table.promise("tables", "computed", 51.0);
        table.promise_p99("tables", "computed", 99.0);
        assert!(table.faults.is_empty(), "{:?}", table.faults);
        table.promise("tables", "computed", 50.0);
        table.promise_p99("tables", "computed", 98.0);
        assert_eq!(table.faults.len(), 2);
    }
}
