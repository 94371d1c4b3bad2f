//! The agent check: a backend steers its own weight and state, in the words of HAProxy's `agent-check`.
//!
//! A program on the backend accepts a connection and writes one line: words separated by spaces, tabs or commas, in any
//! order and case; of several words of one kind the last counts. What a line does not mention stays as it was.
//!
//! | word | what it does |
//! |---|---|
//! | `75%` | the weight: so much of the configured one |
//! | `maxconn:30` | how many connections it takes (kept to where all flows are remembered) |
//! | `ready`, `drain`, `maint` | its admin state, apart from the operator's, whose orders win |
//! | `up` | it is up, if the checks say so too |
//! | `down`, `stopped`, `fail` | it is DOWN at once, whatever the checks say; after `#` a description may follow |
//!
//! Only an agent takes back what it said: one that cannot be reached, or that sends no whole line, changes nothing.

mod watch;

use serde::{Deserialize, Serialize};

use crate::model::AdminState;

pub use watch::{AgentProber, AgentReport, AgentTarget};

/// The longest line that is read, and the longest description that is kept.
const MAX_LINE_BYTES: usize = 1024;
const MAX_DESCRIPTION_CHARACTERS: usize = 120;

/// What an agent has said so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Steering {
    /// `None`: it never spoke of it.
    pub health: Option<AgentHealth>,
    /// What it said with that.
    pub description: Option<String>,
    pub admin: Option<AdminState>,
    /// Of the configured weight.
    pub weight_percent: Option<u16>,
    pub max_connections: Option<u32>,
}

/// How an agent says its backend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AgentHealth {
    Up,
    Down,
    /// Somebody stopped it.
    Stopped,
    /// It runs and does not work.
    Fail,
}

impl AgentHealth {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Stopped => "stopped",
            Self::Fail => "fail",
        }
    }
}

impl Steering {
    /// Takes one line, without its end. Gives back the first word that is not understood; the others count.
    pub fn take(&mut self, line: &str) -> Option<String> {
        let (words, description) = split_description(line);
        let mut unknown = None;
        for word in words.split([' ', '\t', ',']).filter(|word| !word.is_empty()) {
            if !self.take_word(word) && unknown.is_none() {
                unknown = Some(printable(word));
            }
        }
        let spoke_of_health = words.split([' ', '\t', ',']).any(|word| health(word).is_some());
        if spoke_of_health {
            self.description = description.map(printable).filter(|text| !text.is_empty());
        }
        unknown
    }

    fn take_word(&mut self, word: &str) -> bool {
        if let Some(health) = health(word) {
            self.health = Some(health);
        } else if let Some(admin) = admin(word) {
            self.admin = Some(admin);
        } else if let Some(percent) = word.strip_suffix('%').and_then(number) {
            self.weight_percent = Some(percent);
        } else if let Some(limit) = strip_prefix_ignoring_case(word, "maxconn:").and_then(number) {
            self.max_connections = Some(limit);
        } else {
            return false;
        }
        true
    }
}

/// A word that begins with `#` begins the description.
fn split_description(line: &str) -> (&str, Option<&str>) {
    let begins_word =
        |(at, _): &(usize, &str)| line[..*at].is_empty() || line[..*at].ends_with([' ', '\t', ',']);
    match line.match_indices('#').find(begins_word) {
        Some((at, _)) => (&line[..at], Some(line[at + 1..].trim_start_matches([' ', '\t']))),
        None => (line, None),
    }
}

fn health(word: &str) -> Option<AgentHealth> {
    let all = [
        AgentHealth::Up,
        AgentHealth::Down,
        AgentHealth::Stopped,
        AgentHealth::Fail,
    ];
    all.into_iter()
        .find(|health| health.word().eq_ignore_ascii_case(word))
}

fn admin(word: &str) -> Option<AdminState> {
    let all = [
        ("ready", AdminState::Ready),
        ("drain", AdminState::Drain),
        ("maint", AdminState::Maint),
    ];
    let found = all.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(word));
    found.map(|(_, admin)| admin)
}

fn number<T: std::str::FromStr>(digits: &str) -> Option<T> {
    if digits.bytes().all(|digit| digit.is_ascii_digit()) {
        digits.parse().ok()
    } else {
        None
    }
}

fn strip_prefix_ignoring_case<'w>(word: &'w str, prefix: &str) -> Option<&'w str> {
    let (head, rest) = word.split_at_checked(prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then_some(rest)
}

/// What came over the network as it may stand in a log.
fn printable(text: &str) -> String {
    text.trim_end()
        .chars()
        .filter(|character| !character.is_control())
        .take(MAX_DESCRIPTION_CHARACTERS)
        .collect()
}

#[cfg(test)]
#[path = "tests/agent_check.rs"]
mod tests;
