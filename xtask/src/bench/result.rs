//! What a part of the benchmark hands over: written as JSON by the program that measures, read by
//! `cargo xtask bench`. This file is compiled into both.

use serde::{Deserialize, Serialize};

/// Everything that one call of `cargo xtask bench` measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// RFC 3339, UTC.
    pub at: String,
    pub machine: Vec<Fact>,
    pub parts: Vec<PartResult>,
}

/// One line of the machine's description.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    pub name: String,
    pub value: String,
}

/// One part.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PartResult {
    /// Its name on the command line.
    pub part: String,
    /// How it was measured: what a reader has to know to judge the numbers.
    pub setting: Vec<Fact>,
    pub rows: Vec<Row>,
    /// Promises that were not kept; none: all were.
    pub faults: Vec<String>,
    /// A table of the part's own, for people, where rows do not say it all.
    #[serde(default)]
    pub text: String,
    /// Everything else there is to know, for programs.
    #[serde(default)]
    pub details: serde_json::Value,
}

/// One quantity.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Rows of one group are plotted together.
    #[serde(default)]
    pub group: String,
    pub name: String,
    /// `ns`, `packets/s`, `connections`, ...; ratios have none.
    pub unit: String,
    pub better: Better,
    /// One value a run.
    pub samples: Vec<f64>,
}

/// Which way is good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    #[default]
    Lower,
    Higher,
    /// It only describes the run.
    Neither,
}

/// Least, middle and greatest of a row's samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub min: f64,
    pub median: f64,
    pub max: f64,
}

impl Row {
    /// `None` without samples.
    #[must_use]
    pub fn spread(&self) -> Option<Spread> {
        let mut sorted = self.samples.clone();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let half = sorted.len() / 2;
        let median = if sorted.len().is_multiple_of(2) {
            f64::midpoint(sorted[half - 1], sorted[half])
        } else {
            sorted[half]
        };
        Some(Spread { min, median, max })
    }

    /// Group and name: what tells rows of a part apart.
    #[must_use]
    pub fn title(&self) -> String {
        match self.group.as_str() {
            "" => self.name.clone(),
            group => format!("{group}: {}", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_two_in_the_middle() {
        let row = |samples: &[f64]| Row {
            samples: samples.to_vec(),
            ..Row::default()
        };
        assert_eq!(row(&[]).spread(), None);
        let spread = row(&[4.0, 1.0, 9.0, 2.0]).spread().unwrap();
        assert_eq!((spread.min, spread.median, spread.max), (1.0, 3.0, 9.0));
        assert_eq!(row(&[3.0, 1.0, 2.0]).spread().unwrap().median, 2.0);
    }
}
