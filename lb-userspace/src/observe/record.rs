//! The events on disk: one JSON object a line, appended, two files of bounded size.
//!
//! A power cut may leave half a line: it is cut off. A line that cannot be read (of a later version, or where the
//! disk lost a page) is skipped. What cannot be written now is written later, from the bus.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::bus::Bus;
use super::event::Event;
use crate::state::durable;

pub const FILE: &str = "events.jsonl";
pub const BEFORE: &str = "events.before.jsonl";

/// When the file has grown to this, in bytes, another one is begun.
const ROOM: u64 = 4 << 20;

/// Events taken from the bus at a time.
const AT_ONCE: usize = 4096;

/// When a write that failed is tried again.
const AGAIN: Duration = Duration::from_secs(10);

/// Appends what happens to the file.
#[derive(Debug)]
pub struct Recorder {
    folder: PathBuf,
    /// Number of the last event on disk.
    last: u64,
    file: Option<File>,
    /// Length of the whole lines in it.
    length: u64,
    /// The last write failed: said once.
    failing: bool,
}

/// Reads what is kept, cuts off half a line at the end, and makes a recorder that goes on there.
#[must_use]
pub fn open(folder: &Path) -> (Vec<Event>, Recorder) {
    let mut events = Vec::new();
    for name in [BEFORE, FILE] {
        let path = folder.join(name);
        match read(&path) {
            Ok(more) => events.extend(more),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => log::error!("{}: {error}; its events are left out", path.display()),
        }
    }
    let events = in_order(events);
    let last = events.last().map_or(0, |event| event.seq);
    let recorder = Recorder {
        folder: folder.into(),
        last,
        file: None,
        length: 0,
        failing: false,
    };
    (events, recorder)
}

/// Numbers go up. A batch that was written twice counts once; where an agent could not read the file and began
/// anew at 1, its events are numbered on.
fn in_order(events: Vec<Event>) -> Vec<Event> {
    let mut ordered: Vec<Event> = Vec::with_capacity(events.len());
    for mut event in events {
        let last = ordered.last().map_or(0, |event| event.seq);
        if event.seq <= last {
            if ordered
                .iter()
                .rev()
                .take(2 * AT_ONCE)
                .any(|known| *known == event)
            {
                continue;
            }
            event.seq = last + 1;
        }
        ordered.push(event);
    }
    ordered
}

fn read(path: &Path) -> io::Result<Vec<Event>> {
    let bytes = fs::read(path)?;
    let whole = bytes
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |end| end + 1);
    if whole < bytes.len() {
        log::warn!(
            "{}: half a line at its end, as a power cut leaves it, is cut off",
            path.display()
        );
        let file = File::options().write(true).open(path)?;
        file.set_len(whole as u64)?;
        file.sync_all()?;
    }
    let mut unreadable = 0;
    let lines = bytes[..whole].split(|byte| *byte == b'\n');
    let events = lines
        .filter(|line| !line.is_empty())
        .filter_map(|line| {
            let event = serde_json::from_slice(line).ok();
            unreadable += usize::from(event.is_none());
            event
        })
        .collect();
    if unreadable > 0 {
        log::warn!(
            "{}: {unreadable} lines cannot be read and are left out",
            path.display()
        );
    }
    Ok(events)
}

impl Recorder {
    /// Number of the last event on disk.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Writes what the bus has beyond what is on disk. Blocks. Gives back how long to wait before the next call:
    /// longer where it failed, and only the first failure is logged.
    pub fn catch_up(&mut self, bus: &Bus) -> Duration {
        loop {
            let batch = bus.since(self.last, AT_ONCE);
            let result = match batch.events.is_empty() {
                true => return Duration::ZERO,
                false => self.append(&batch.events),
            };
            match result {
                Ok(()) => self.last = batch.last,
                Err(error) => {
                    self.file = None;
                    if !std::mem::replace(&mut self.failing, true) {
                        log::error!("{}: {error}", self.folder.join(FILE).display());
                    }
                    return AGAIN;
                }
            }
            if std::mem::replace(&mut self.failing, false) {
                log::info!("{}: events are kept again", self.folder.join(FILE).display());
            }
        }
    }

    fn append(&mut self, events: &[Event]) -> io::Result<()> {
        let mut lines = Vec::new();
        for event in events {
            serde_json::to_writer(&mut lines, event)?;
            lines.push(b'\n');
        }
        if self.file.is_some() && self.length >= ROOM {
            self.file = None;
            fs::rename(self.folder.join(FILE), self.folder.join(BEFORE))?;
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let (file, length) = open_at_end(&self.folder)?;
                self.length = length;
                self.file.insert(file)
            }
        };
        let written = file.write_all(&lines).and_then(|()| file.sync_data());
        if let Err(error) = written {
            // Half a batch would be written twice, half a line could not be read.
            let _ = file.set_len(self.length);
            return Err(error);
        }
        self.length += lines.len() as u64;
        Ok(())
    }
}

fn open_at_end(folder: &Path) -> io::Result<(File, u64)> {
    fs::create_dir_all(folder)?;
    let path = folder.join(FILE);
    let fresh = !path.exists();
    let file = File::options()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&path)?;
    if fresh {
        durable::sync(folder)?;
    }
    let length = file.metadata()?.len();
    Ok((file, length))
}

#[cfg(test)]
#[path = "tests/record.rs"]
mod tests;
