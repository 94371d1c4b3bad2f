//! Metrics for Prometheus, as OpenMetrics text.
//!
//! A scrape asks the agent's loop for what it knows ([`Measured`]: a copy, no system calls), then reads the packet
//! counters from their maps and writes the text, both outside of the loop. Whoever has something to add pushes a
//! [`Family`] in `agent/measure.rs`:
//!
//! ```text
//! use xlb::observe::metrics::Family;
//! let mut entries = Family::gauge("flow_table_entries", "Entries of the flow table, by state.");
//! entries.row([("state", "established")], 1204);
//! ```

mod meter;
pub mod server;
mod traffic;

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

pub use meter::Meter;
pub use traffic::{Sender, lost, read};

/// What every name begins with.
const PREFIX: &str = "xlb";

/// What the loop gives for one scrape.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    pub families: Vec<Family>,
    /// Whose packet counters are to be read.
    pub senders: Vec<Sender>,
    /// Interfaces whose drivers are to be asked.
    pub interfaces: Vec<String>,
}

/// Metrics of one name.
#[derive(Clone, Debug)]
pub struct Family {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    kind: MetricType,
    rows: Vec<(Labels, Value)>,
}

type Labels = Vec<(&'static str, String)>;

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Whole(u64),
    Real(f64),
    Histogram(Histogram),
}

/// Counts by upper bound; each of them alone, not added up.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    pub sum: f64,
    /// Upper bound, and how many are at most that but above the bound before. The last bound is infinite
    /// (`f64::MAX` stands for it).
    pub buckets: Vec<(f64, u64)>,
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Whole(value)
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Self::Whole(value.into())
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Whole(value.into())
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Real(value)
    }
}

impl From<Histogram> for Value {
    fn from(value: Histogram) -> Self {
        Self::Histogram(value)
    }
}

impl Family {
    /// Something that only grows. Its name ends in `_total` by itself.
    #[must_use]
    pub fn counter(name: &'static str, help: &'static str) -> Self {
        Self::new(name, help, MetricType::Counter)
    }

    /// Something that goes up and down.
    #[must_use]
    pub fn gauge(name: &'static str, help: &'static str) -> Self {
        Self::new(name, help, MetricType::Gauge)
    }

    #[must_use]
    pub fn histogram(name: &'static str, help: &'static str) -> Self {
        Self::new(name, help, MetricType::Histogram)
    }

    /// In bytes; the name ends in `_bytes` by itself.
    #[must_use]
    pub fn bytes(mut self) -> Self {
        self.unit = Some(Unit::Bytes);
        self
    }

    /// In seconds; the name ends in `_seconds` by itself.
    #[must_use]
    pub fn seconds(mut self) -> Self {
        self.unit = Some(Unit::Seconds);
        self
    }

    /// Adds a value with its labels.
    pub fn row<const N: usize>(&mut self, labels: [(&'static str, &str); N], value: impl Into<Value>) {
        let labels = labels.map(|(name, value)| (name, escaped(value)));
        self.rows.push((labels.into(), value.into()));
    }

    fn new(name: &'static str, help: &'static str, kind: MetricType) -> Self {
        Self {
            name,
            help,
            unit: None,
            kind,
            rows: Vec::new(),
        }
    }
}

/// The encoder writes values of labels as they are.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

/// The text of one scrape.
#[must_use]
pub fn text(families: Vec<Family>) -> String {
    let mut registry = Registry::with_prefix(PREFIX);
    registry.register_collector(Box::new(Families(families)));
    let mut text = String::new();
    encode(&mut text, &registry).expect("writing to a string");
    text
}

#[derive(Debug)]
struct Families(Vec<Family>);

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for family in &self.0 {
            let unit = family.unit.as_ref();
            let mut metric = encoder.encode_descriptor(family.name, family.help, unit, family.kind)?;
            for (labels, value) in &family.rows {
                if labels.is_empty() {
                    write(&mut metric, family.kind, value)?;
                } else {
                    write(&mut metric.encode_family(labels)?, family.kind, value)?;
                }
            }
        }
        Ok(())
    }
}

fn write(metric: &mut MetricEncoder<'_>, kind: MetricType, value: &Value) -> fmt::Result {
    match (kind, value) {
        (MetricType::Counter, Value::Whole(value)) => {
            metric.encode_counter::<NoLabelSet, _, u64>(value, None)
        }
        (MetricType::Counter, Value::Real(value)) => metric.encode_counter::<NoLabelSet, _, u64>(value, None),
        (_, Value::Whole(value)) => metric.encode_gauge(value),
        (_, Value::Real(value)) => metric.encode_gauge(value),
        (_, Value::Histogram(Histogram { sum, buckets })) => {
            let count = buckets.iter().map(|(_, count)| count).sum();
            metric.encode_histogram::<NoLabelSet>(*sum, count, buckets, None)
        }
    }
}

#[cfg(test)]
mod tests;
