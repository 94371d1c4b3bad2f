//! The checkpoint: what the agent knows of its backends, in one file.
//!
//! ```text
//! xlb checkpoint 1 6b2c4f0a9d1e7733          what it is, its version, SipHash of what follows
//! {"seq":12,"written":"...","backends":[...]}
//! ```
//!
//! Fields are only ever added; what an older agent does not know it leaves out of account. A change that it
//! would misread gets another version, which it does not touch.

use std::fs;
use std::hash::Hasher;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;

use super::durable;
use crate::api::types::CheckStatus;
use crate::control::flap::KeptFlaps;
use crate::health::Steering;
use crate::model::{AdminState, BackendId, OperState, ServiceKey};
use crate::observe::Timestamp;

/// The version of the format that this agent reads and writes.
const VERSION: u32 = 1;
const TITLE: &str = "xlb checkpoint";
/// The file, and the one that it replaced.
pub const FILE: &str = "checkpoint";
pub const BEFORE: &str = "checkpoint.before";

/// Everything that is kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// One more than that of the checkpoint before. The entries of a journal that goes on from a checkpoint can
    /// name it.
    pub seq: u64,
    pub written: Timestamp,
    pub backends: Vec<KeptBackend>,
}

/// One backend of one service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeptBackend {
    pub service: ServiceKey,
    pub address: IpAddr,
    pub port: u16,
    pub state: OperState,
    pub admin: AdminState,
    /// Set at runtime; wins over the file.
    pub runtime_weight: Option<u16>,
    /// It was UP at some time.
    #[serde(default)]
    pub ever_up: bool,
    /// When the operational state last changed.
    #[serde(default)]
    pub changed: Option<Timestamp>,
    /// The last result.
    #[serde(default)]
    pub check: CheckStatus,
    /// Results in a row that passed, or failed.
    #[serde(default)]
    pub passes: u32,
    #[serde(default)]
    pub failures: u32,
    /// How often it went DOWN lately.
    #[serde(default)]
    pub flaps: Option<KeptFlaps>,
    /// What its agent said.
    #[serde(default)]
    pub agent: Option<Steering>,
}

impl KeptBackend {
    #[must_use]
    pub fn id(&self) -> BackendId {
        BackendId {
            service: self.service,
            address: self.address,
            port: self.port,
        }
    }
}

/// Why a file says nothing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("it is no checkpoint")]
    Foreign,
    #[error("it has version {0}, this agent reads version {VERSION}")]
    Version(u32),
    #[error("it is torn or damaged: its checksum does not hold")]
    Damaged,
    #[error("its checksum holds, its content cannot be read: {0}")]
    Content(String),
}

impl Checkpoint {
    /// The file's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let body = serde_json::to_vec(self).expect("a checkpoint has only string keys");
        let mut bytes = format!("{TITLE} {VERSION} {:016x}\n", checksum(&body)).into_bytes();
        bytes.extend(body);
        bytes
    }

    /// What a file holds. Backends that cannot be read (of states that this agent does not know) are left out, and
    /// counted.
    ///
    /// # Errors
    /// [`Unreadable`].
    pub fn decode(bytes: &[u8]) -> Result<(Self, usize), Unreadable> {
        #[derive(Deserialize)]
        struct Loose {
            seq: u64,
            written: Timestamp,
            backends: Vec<serde_json::Value>,
        }
        let (head, body) = split(bytes)?;
        if checksum(body) != head {
            return Err(Unreadable::Damaged);
        }
        let Loose {
            seq,
            written,
            backends,
        } = serde_json::from_slice(body).map_err(|error| Unreadable::Content(error.to_string()))?;
        let all = backends.len();
        let backends: Vec<KeptBackend> = backends
            .into_iter()
            .filter_map(|backend| serde_json::from_value(backend).ok())
            .collect();
        let unknown = all - backends.len();
        let checkpoint = Self {
            seq,
            written,
            backends,
        };
        Ok((checkpoint, unknown))
    }

    /// Writes it in place of the one before, which stays beside it.
    ///
    /// # Errors
    /// Where the file system refuses; the one before is then there still.
    pub fn store(&self, folder: &Path) -> io::Result<()> {
        let (file, before) = (folder.join(FILE), folder.join(BEFORE));
        // The second copy is a help against damage, not needed for safety: without it all the same.
        let _ = fs::remove_file(&before);
        let _ = fs::hard_link(&file, &before);
        durable::replace(folder, FILE, &self.encode())
    }

    /// What was kept: the checkpoint, or where that one cannot be read the one before it. What cannot be read is
    /// moved aside and logged; an agent can always start.
    #[must_use]
    pub fn load(folder: &Path) -> Option<Self> {
        durable::sweep(folder, FILE);
        let mut found = None;
        for name in [FILE, BEFORE] {
            let path = folder.join(name);
            match read(&path) {
                Ok(Some(checkpoint)) => {
                    if name == BEFORE {
                        log::warn!(
                            "{}: taken instead; it is from {}",
                            path.display(),
                            checkpoint.written
                        );
                    }
                    found = Some(checkpoint);
                    break;
                }
                Ok(None) => {}
                Err(why) => log::error!("{}: {why}", path.display()),
            }
        }
        found
    }
}

/// `Ok(None)`: there is none.
fn read(path: &Path) -> Result<Option<Checkpoint>, String> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{error}; admin states and weights in it are not used")),
    };
    match Checkpoint::decode(&bytes) {
        Ok((checkpoint, 0)) => Ok(Some(checkpoint)),
        Ok((checkpoint, unknown)) => {
            log::warn!(
                "{}: {unknown} backends in it cannot be read, as a later version may have written them; they begin anew",
                path.display()
            );
            Ok(Some(checkpoint))
        }
        Err(why) => {
            let aside = aside(path, &why);
            let moved = match fs::rename(path, &aside) {
                Ok(()) => format!("moved to {}", aside.display()),
                Err(error) => format!("moving it to {}: {error}", aside.display()),
            };
            Err(format!("{why}; {moved}"))
        }
    }
}

/// Where a file that cannot be read goes: one of another version beside a later one of ours, a damaged one in
/// place of the damaged one before.
fn aside(path: &Path, why: &Unreadable) -> PathBuf {
    path.with_file_name(match why {
        Unreadable::Version(version) => format!("{FILE}.version-{version}"),
        _ => format!("{FILE}.damaged"),
    })
}

/// The checksum in the first line, and what follows it.
fn split(bytes: &[u8]) -> Result<(u64, &[u8]), Unreadable> {
    let end = bytes.iter().position(|byte| *byte == b'\n');
    let (line, body) = match end {
        Some(end) => (&bytes[..end], &bytes[end + 1..]),
        None => (bytes, &[][..]),
    };
    let line = str::from_utf8(line).map_err(|_| Unreadable::Foreign)?;
    let rest = line.strip_prefix(TITLE).ok_or(Unreadable::Foreign)?;
    let mut words = rest.split_ascii_whitespace();
    let version: u32 = words
        .next()
        .and_then(|word| word.parse().ok())
        .ok_or(Unreadable::Damaged)?;
    if version != VERSION {
        return Err(Unreadable::Version(version));
    }
    let sum = words.next().and_then(|word| u64::from_str_radix(word, 16).ok());
    Ok((sum.ok_or(Unreadable::Damaged)?, body))
}

/// Against accidents, not against forgers: the file is root's.
pub(super) fn checksum(bytes: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(bytes);
    hasher.finish()
}

#[cfg(test)]
#[path = "tests/checkpoint.rs"]
mod tests;
