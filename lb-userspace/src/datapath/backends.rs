//! The records of backends: how packets reach them.
//!
//! A record is one cache line of eight words, in a memory-mapped array. A word is stored whole, so what lies in one word
//! changes for packets at one moment: what a backend still takes, the MTU and the interface are the first word, the MAC
//! address to send to is in the second. A change of several words (another interface, another forward mode) is not one
//! moment: a packet that reads the record in those nanoseconds may be sent with words of both, and is lost then. It does
//! not reach another backend, since a record never changes the address of its own; its index rests before another gets it.

use aya::maps::Map;
use lb_common::layout::Backend;

use super::Error;
use super::maps::data_of;
use super::mmap::Words;

const WORDS: usize = Backend::WORDS;

/// Records by the index of the backend; 0 is nobody.
#[derive(Debug)]
pub struct Backends(Words);

impl Backends {
    pub(super) fn map(map: &Map) -> Result<Self, Error> {
        let data = data_of(map)?;
        let records = data.info()?.max_entries() as usize;
        let words = Words::map(data.fd(), records * WORDS).map_err(|source| Error::Syscall {
            call: "mmap of the records of backends",
            source,
        })?;
        Ok(Self(words))
    }

    /// How many indices there are, that of nobody included.
    #[must_use]
    pub fn room(&self) -> u32 {
        (self.0.len() / WORDS) as u32
    }

    /// # Panics
    /// Where there is no such index.
    #[must_use]
    pub fn get(&self, index: u32) -> Backend {
        let start = index as usize * WORDS;
        Backend::from_words(std::array::from_fn(|word| self.0.get(start + word)))
    }

    /// Writes what changed. The first word comes last: it says that the backend can be reached, and how.
    ///
    /// # Panics
    /// Where there is no such index.
    pub fn set(&self, index: u32, record: &Backend) {
        let start = index as usize * WORDS;
        for (word, value) in record.words().into_iter().enumerate().rev() {
            if self.0.get(start + word) != value {
                self.0.set(start + word, value);
            }
        }
    }
}
