//! Rows of a result, as their samples come in.

use super::result::{Better, Row};

#[derive(Debug, Default)]
pub struct Rows(Vec<Row>);

impl Rows {
    /// A further sample of a row, or the first of a new one.
    pub fn note(&mut self, group: &str, name: impl Into<String>, unit: &str, better: Better, sample: f64) {
        let name = name.into();
        let known = self
            .0
            .iter_mut()
            .find(|row| row.group == group && row.name == name);
        match known {
            Some(row) => row.samples.push(sample),
            None => self.0.push(Row {
                group: group.into(),
                name,
                unit: unit.into(),
                better,
                samples: vec![sample],
            }),
        }
    }

    #[must_use]
    pub fn finish(self) -> Vec<Row> {
        self.0
    }
}
