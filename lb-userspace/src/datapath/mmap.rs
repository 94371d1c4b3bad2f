//! BPF arrays mapped into the agent's memory (`BPF_F_MMAPABLE`, Linux 5.5): a whole table is written without
//! a system call, and one aligned store switches to it.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// A BPF array of 64-bit words. Each word is read and written whole; the program reads them while we write.
#[derive(Debug)]
pub struct Words {
    start: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the memory belongs to the mapping, which lives as long as this value, and every access is atomic.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Words {
    /// Maps an array map of `words` 64-bit words (entries times words a value).
    ///
    /// # Errors
    /// What `mmap(2)` returns; `EINVAL` where the map is not mappable or smaller.
    pub fn map(fd: impl AsFd, words: usize) -> io::Result<Self> {
        let Some(len) = NonZeroUsize::new(words * 8) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh mapping at an address the kernel chooses.
        let start = unsafe { mmap(None, len, protection, MapFlags::MAP_SHARED, fd, 0)? };
        Ok(Self {
            start: start.cast(),
            words,
        })
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.words
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words == 0
    }

    /// # Panics
    /// Where `index` is outside the array.
    #[must_use]
    pub fn get(&self, index: usize) -> u64 {
        self.word(index).load(Ordering::Acquire)
    }

    /// Stores a word; what was stored before is visible to whoever sees this one.
    ///
    /// # Panics
    /// Where `index` is outside the array.
    pub fn set(&self, index: usize, value: u64) {
        self.word(index).store(value, Ordering::Release);
    }

    /// Stores `new` where `old` still stands; `false` where something else does.
    ///
    /// # Panics
    /// Where `index` is outside the array.
    pub fn exchange(&self, index: usize, old: u64, new: u64) -> bool {
        let word = self.word(index);
        word.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// Counts up a word that others count in at the same time.
    ///
    /// # Panics
    /// Where `index` is outside the array.
    pub fn count(&self, index: usize) {
        self.word(index).fetch_add(1, Ordering::AcqRel);
    }

    /// Takes from a word that others count in at the same time.
    ///
    /// # Panics
    /// Where `index` is outside the array.
    pub fn subtract(&self, index: usize, value: u64) {
        self.word(index).fetch_sub(value, Ordering::AcqRel);
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.words, "word {index} of {}", self.words);
        // SAFETY: inside the mapping, aligned to 8 because mappings start at pages.
        unsafe { self.start.add(index).as_ref() }
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `map`; no reference to it is left.
        if let Err(error) = unsafe { munmap(self.start.cast(), self.words * 8) } {
            log::error!("unmapping a BPF array: {error}");
        }
    }
}
