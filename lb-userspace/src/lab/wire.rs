//! What the clients and echo servers of the lab say to each other: a request of 16 bytes, an answer of 32.
//!
//! | | bytes 0..8 | 8..16 | 16..32 |
//! |---|---|---|---|
//! | request | sequence number | [`MAGIC`] | |
//! | answer | sequence number | [`MAGIC`] | the server's name |
//!
//! Over TCP the server counts by itself, one count a connection, so an answer shows that the same connection goes
//! on. Over UDP it answers with the number it was asked with.

use std::fmt;

pub const REQUEST_LEN: usize = 16;
pub const ANSWER_LEN: usize = 32;
const NAME_LEN: usize = 16;
const MAGIC: u64 = 0x786c_625f_6563_686f;

/// The name of a server, short enough to be copied everywhere.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name([u8; NAME_LEN]);

impl Name {
    /// # Panics
    /// Where the name is longer than 16 bytes: those of the lab are not.
    #[must_use]
    pub fn new(name: &str) -> Self {
        assert!(name.len() <= NAME_LEN, "{name} is too long a name");
        let mut bytes = [0; NAME_LEN];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        Self(bytes)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let len = self.0.iter().position(|byte| *byte == 0).unwrap_or(NAME_LEN);
        f.pad(&String::from_utf8_lossy(&self.0[..len]))
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[must_use]
pub fn request(sequence: u64) -> [u8; REQUEST_LEN] {
    let mut bytes = [0; REQUEST_LEN];
    bytes[..8].copy_from_slice(&sequence.to_le_bytes());
    bytes[8..].copy_from_slice(&MAGIC.to_le_bytes());
    bytes
}

/// The sequence number of a request; `None` where it is none.
#[must_use]
pub fn read_request(bytes: &[u8]) -> Option<u64> {
    let bytes: &[u8; REQUEST_LEN] = bytes.try_into().ok()?;
    (word(bytes, 8) == MAGIC).then(|| word(bytes, 0))
}

#[must_use]
pub fn answer(sequence: u64, name: Name) -> [u8; ANSWER_LEN] {
    let mut bytes = [0; ANSWER_LEN];
    bytes[..REQUEST_LEN].copy_from_slice(&request(sequence));
    bytes[REQUEST_LEN..].copy_from_slice(&name.0);
    bytes
}

/// Sequence number and name; `None` where it is no answer.
#[must_use]
pub fn read_answer(bytes: &[u8]) -> Option<(u64, Name)> {
    let bytes: &[u8; ANSWER_LEN] = bytes.try_into().ok()?;
    let mut name = [0; NAME_LEN];
    name.copy_from_slice(&bytes[REQUEST_LEN..]);
    (word(bytes, 8) == MAGIC).then(|| (word(bytes, 0), Name(name)))
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_is_understood_and_noise_is_not() {
        let name = Name::new("b17");
        assert_eq!(name.to_string(), "b17");
        assert_eq!(read_request(&request(7)), Some(7));
        assert_eq!(read_answer(&answer(7, name)), Some((7, name)));
        assert_eq!(read_request(&answer(7, name)), None);
        assert_eq!(read_answer(&[0; ANSWER_LEN]), None);
    }
}
