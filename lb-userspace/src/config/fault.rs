//! Faults: what is wrong with a configuration, where, and what is expected instead.
//!
//! A [`Report`] collects them while the file is read, so that an operator sees all of them at once.
//! Readers return [`Reported`] where they have no value to give: it can only be had by reporting, so
//! a configuration that is incomplete always comes with a reason.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// How many faults are told one by one.
pub const MAX_FAULTS: usize = 1000;

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Fault {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// What is expected instead.
    pub expected: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}: {}; expected {}",
            self.line, self.column, self.message, self.expected
        )
    }
}

/// Every fault of a configuration, in the order of their places; at least one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Faults(pub Vec<Fault>);

impl Faults {
    /// The faults as `FILE:LINE:COLUMN: what is wrong; expected what is right`, a line each.
    #[must_use]
    pub fn in_file<'a>(&'a self, file: &'a Path) -> FaultsInFile<'a> {
        FaultsInFile { faults: self, file }
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            let end_of_line = if index == 0 { "" } else { "\n" };
            write!(f, "{end_of_line}{fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// See [`Faults::in_file`].
#[derive(Clone, Copy, Debug)]
pub struct FaultsInFile<'a> {
    faults: &'a Faults,
    file: &'a Path,
}

impl fmt::Display for FaultsInFile<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.faults.0.iter().enumerate() {
            let end_of_line = if index == 0 { "" } else { "\n" };
            write!(f, "{end_of_line}{}:{fault}", self.file.display())?;
        }
        Ok(())
    }
}

/// Why a configuration file could not be loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}", faults.in_file(path))]
    Invalid { path: PathBuf, faults: Faults },
}

/// A value with its place in the text.
#[derive(Clone, Copy, Debug)]
pub(super) struct At<T> {
    pub value: T,
    /// In bytes from the beginning of the text.
    pub offset: usize,
}

/// The proof that a fault was reported.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reported(());

/// Whether what comes later in the file can make a fault untrue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// No: the value itself is wrong.
    Value,
    /// Yes: something is missing, or does not fit something else.
    Rest,
}

/// Collects the faults of one text.
#[derive(Debug)]
pub(super) struct Report<'t> {
    text: &'t str,
    /// Where each line begins.
    line_offsets: Vec<usize>,
    faults: RefCell<Collected>,
}

#[derive(Debug, Default)]
struct Collected {
    /// By offset and message, so that the same fault found on two ways is told once.
    faults: BTreeMap<(usize, String), (Scope, String)>,
    untold: usize,
}

impl<'t> Report<'t> {
    pub fn new(text: &'t str) -> Self {
        let after_line_ends = text.match_indices('\n').map(|(offset, _)| offset + 1);
        Self {
            text,
            line_offsets: std::iter::once(0).chain(after_line_ends).collect(),
            faults: RefCell::default(),
        }
    }

    /// Reports a value that is wrong whatever the rest of the file says.
    pub fn fault(&self, offset: usize, message: impl Into<String>, expected: impl Into<String>) -> Reported {
        self.add(Scope::Value, offset, message.into(), expected.into())
    }

    /// Reports what is wrong because of another part of the file, or because that is missing.
    pub fn fault_with_rest(
        &self,
        offset: usize,
        message: impl Into<String>,
        expected: impl Into<String>,
    ) -> Reported {
        self.add(Scope::Rest, offset, message.into(), expected.into())
    }

    fn add(&self, scope: Scope, offset: usize, message: String, expected: String) -> Reported {
        let mut collected = self.faults.borrow_mut();
        if collected.faults.len() < MAX_FAULTS {
            collected
                .faults
                .entry((offset, message))
                .or_insert((scope, expected));
        } else {
            collected.untold += 1;
        }
        Reported(())
    }

    /// The line, from 1, of a place in the text.
    pub fn line(&self, offset: usize) -> usize {
        self.line_offsets.partition_point(|&start| start <= offset).max(1)
    }

    /// Forgets what a syntax error at `offset` makes doubtful: every fault from its line on, and
    /// those before it that depend on the rest of the file.
    pub fn distrust_from(&self, offset: usize) {
        let line_offset = self.line_offsets[self.line(offset) - 1];
        self.faults
            .borrow_mut()
            .faults
            .retain(|(fault_offset, _), (scope, _)| *scope == Scope::Value && *fault_offset < line_offset);
    }

    /// `value`, unless a fault was reported.
    pub fn finish<T>(self, value: Result<T, Reported>) -> Result<T, Faults> {
        let Collected { faults, untold } = self.faults.take();
        match value {
            Ok(value) if faults.is_empty() => Ok(value),
            Ok(_) | Err(Reported(())) => Err(self.placed(faults, untold)),
        }
    }

    /// Turns offsets into lines and columns, in one pass however many faults share a line.
    fn placed(&self, faults: BTreeMap<(usize, String), (Scope, String)>, untold: usize) -> Faults {
        let mut placed: Vec<Fault> = Vec::with_capacity(faults.len() + 1);
        let (mut line, mut offset, mut column) = (0, 0, 1);
        for ((fault_offset, message), (_, expected)) in faults {
            let fault_offset = self.text.floor_char_boundary(fault_offset);
            let fault_line = self.line(fault_offset);
            if fault_line != line {
                (line, offset, column) = (fault_line, self.line_offsets[fault_line - 1], 1);
            }
            // Editors do not count a byte order mark.
            column += self.text[offset..fault_offset]
                .chars()
                .filter(|&character| character != '\u{feff}')
                .count();
            offset = fault_offset;
            placed.push(Fault {
                line,
                column,
                message,
                expected,
            });
        }
        if untold > 0 {
            placed.push(Fault {
                line: line.max(1),
                column,
                message: format!("there are {untold} more faults"),
                expected: "those above to be mended first".to_owned(),
            });
        }
        Faults(placed)
    }
}
