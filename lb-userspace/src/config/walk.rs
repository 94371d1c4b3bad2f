//! One table of the file, held against the list of keys it may have.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::fault::{At, Report, Reported};
use super::keys::{Key, TABLES, Table};
use super::nearest;
use super::shape::Shape;
use super::value::{Reader, kind, quoted, wrong_kind};

/// A table of the file whose keys are all known.
#[derive(Debug)]
pub(super) struct Walk<'w, 't> {
    spec: &'static Table,
    table: &'w DeTable<'t>,
    /// Where the table begins.
    pub offset: usize,
    report: &'w Report<'t>,
}

impl<'w, 't> Walk<'w, 't> {
    /// Reports each key of `table` that `spec` does not have.
    pub fn new(spec: &'static Table, table: &'w DeTable<'t>, offset: usize, report: &'w Report<'t>) -> Self {
        for key in table.keys() {
            unknown_key(spec, key, report);
        }
        Self {
            spec,
            table,
            offset,
            report,
        }
    }

    /// The value of a key that has to be there.
    pub fn need<T>(&self, key: &Key, read: Reader<T>) -> Result<At<T>, Reported> {
        self.maybe(key, read)?.ok_or_else(|| self.missing(key))
    }

    /// The value of a key that may be absent.
    pub fn maybe<T>(&self, key: &Key, read: Reader<T>) -> Result<Option<At<T>>, Reported> {
        self.find(key)
            .map(|value| self.read(key, &key.shape, value, read))
            .transpose()
    }

    /// The value of a key, or else its default.
    pub fn or_default<T>(&self, key: &Key, read: Reader<T>) -> Result<T, Reported> {
        if let Some(at) = self.maybe(key, read)? {
            return Ok(at.value);
        }
        let default = key.default.and_then(|text| DeValue::parse(text).ok());
        default
            .and_then(|value| read(key, &key.shape, value.get_ref()).ok())
            .ok_or_else(|| self.missing(key))
    }

    /// The items of a list, which is not empty.
    pub fn list<T>(&self, key: &Key, read: Reader<T>) -> Result<Option<Vec<At<T>>>, Reported> {
        let Some(value) = self.find(key) else {
            return Ok(None);
        };
        let (Shape::List { item, .. }, DeValue::Array(items)) = (&key.shape, value.get_ref()) else {
            return Err(self.wrong(key, value, wrong_kind(key, value.get_ref())));
        };
        if items.is_empty() {
            return Err(self.wrong(key, value, format!("`{}` is empty", key.name)));
        }
        let items: Vec<_> = items
            .iter()
            .map(|value| self.read(key, item, value, read))
            .collect();
        items.into_iter().collect::<Result<_, _>>().map(Some)
    }

    /// A table in this one.
    pub fn table(&self, key: &Key) -> Result<Option<Walk<'w, 't>>, Reported> {
        let Some(value) = self.find(key) else {
            return Ok(None);
        };
        let (Shape::Table(spec), DeValue::Table(table)) = (&key.shape, value.get_ref()) else {
            return Err(self.wrong(key, value, wrong_kind(key, value.get_ref())));
        };
        Ok(Some(Walk::new(spec, table, value.span().start, self.report)))
    }

    /// A table in this one that has to be there.
    pub fn need_table(&self, key: &Key) -> Result<Walk<'w, 't>, Reported> {
        self.table(key)?.ok_or_else(|| self.missing(key))
    }

    /// The tables of an array of tables in this one, those that are tables.
    pub fn tables(&self, key: &Key) -> Result<Vec<Result<Walk<'w, 't>, Reported>>, Reported> {
        let Some(value) = self.find(key) else {
            return Ok(Vec::new());
        };
        let (Shape::Tables(spec), DeValue::Array(items)) = (&key.shape, value.get_ref()) else {
            return Err(self.wrong(key, value, wrong_kind(key, value.get_ref())));
        };
        let table = |item: &'w Spanned<DeValue<'t>>| match item.get_ref() {
            DeValue::Table(table) => Ok(Walk::new(spec, table, item.span().start, self.report)),
            other => Err(self.wrong(key, item, format!("an item of `{}` is {}", key.name, kind(other)))),
        };
        Ok(items.iter().map(table).collect())
    }

    /// Where the value of a key begins, if it is there.
    pub fn place(&self, key: &Key) -> Option<usize> {
        self.find(key).map(|value| value.span().start)
    }

    /// Reports that a key is not there.
    pub fn missing(&self, key: &Key) -> Reported {
        let what = match key.shape {
            Shape::Table(table) | Shape::Tables(table) => table.header.to_owned(),
            _ => format!("`{}`", key.name),
        };
        self.report.fault_with_rest(
            self.offset,
            format!("{what} is missing from {}", self.spec.header),
            key.shape.expected(),
        )
    }

    fn find(&self, key: &Key) -> Option<&'w Spanned<DeValue<'t>>> {
        debug_assert!(
            self.spec.keys.iter().any(|known| known.name == key.name),
            "`{}` is no key of {}",
            key.name,
            self.spec.header
        );
        self.table.get(key.name)
    }

    fn read<T>(
        &self,
        key: &Key,
        shape: &Shape,
        value: &Spanned<DeValue<'t>>,
        read: Reader<T>,
    ) -> Result<At<T>, Reported> {
        let offset = value.span().start;
        match read(key, shape, value.get_ref()) {
            Ok(value) => Ok(At { value, offset }),
            Err(message) => Err(self.report.fault(offset, message, shape.expected())),
        }
    }

    fn wrong(&self, key: &Key, value: &Spanned<DeValue<'t>>, message: String) -> Reported {
        self.report
            .fault(value.span().start, message, key.shape.expected())
    }
}

/// Reports `key` unless `spec` has it.
fn unknown_key(spec: &'static Table, key: &Spanned<toml::de::DeString<'_>>, report: &Report<'_>) {
    let (name, offset) = (key.get_ref().as_ref(), key.span().start);
    let mut known = spec.keys.iter().map(|key| key.name);
    if known.clone().any(|known| known == name) {
        return;
    }
    let expected = format!("one of {}", known.clone().collect::<Vec<_>>().join(", "));
    if TABLES.iter().any(|table| table.planned.contains(&name)) {
        report.fault(
            offset,
            format!("`{name}` of {} is not built yet", spec.header),
            expected,
        );
        return;
    }
    let name = quoted(name);
    let name = name.trim_matches('"');
    let unknown = format!("unknown key `{name}` in {}", spec.header);
    let home = TABLES
        .iter()
        .find(|table| table.keys.iter().any(|key| key.name == name));
    let message = match (nearest::nearest(name, &mut known), home) {
        (Some(near), _) => format!("{unknown}, did you mean `{near}`?"),
        (None, Some(home)) => format!("{unknown}, it belongs to {}", home.header),
        (None, None) => unknown,
    };
    report.fault(offset, message, expected);
}
