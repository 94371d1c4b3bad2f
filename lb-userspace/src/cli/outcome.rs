//! What verbs are given and what they give back.

use std::io::{self, IsTerminal};
use std::time::SystemTime;

use clap::ValueEnum;
use serde::Serialize;

use crate::api::client::Client;

/// How answers are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    #[default]
    Table,
    Json,
}

/// Who reads the answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Screen {
    /// Columns of the terminal; `None` where it is none.
    pub width: Option<u16>,
    pub colour: bool,
    /// What ages are reckoned from.
    pub now: SystemTime,
}

impl Screen {
    /// The screen of standard output; <https://no-color.org> is heeded.
    pub fn of_stdout() -> Self {
        let terminal = io::stdout().is_terminal();
        Self {
            width: comfy_table::Table::new().width(),
            colour: terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
            now: SystemTime::now(),
        }
    }
}

/// Everything a verb may want to know beside its own arguments.
#[derive(Debug)]
pub(super) struct Context {
    pub client: Client,
    pub format: Format,
    pub screen: Screen,
}

/// What a verb did.
#[derive(Debug)]
pub(super) struct Outcome {
    /// For standard output.
    pub text: String,
    /// Exit status.
    pub code: u8,
}

impl Outcome {
    pub fn done(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            code: 0,
        }
    }

    #[must_use]
    pub fn with_code(self, code: u8) -> Self {
        Self { code, ..self }
    }
}

impl Context {
    /// An answer in the format that was asked for.
    pub fn show<T: Serialize>(
        &self,
        answer: &T,
        table: impl FnOnce(&T, &Screen) -> String,
    ) -> anyhow::Result<Outcome> {
        Ok(Outcome::done(match self.format {
            Format::Table => table(answer, &self.screen),
            Format::Json => serde_json::to_string_pretty(answer)? + "\n",
        }))
    }
}
