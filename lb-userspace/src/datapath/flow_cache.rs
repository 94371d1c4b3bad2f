//! The cache of `tracking = "full"` from user space: memory-mapped, so that all of it is read without a system call.

use std::os::fd::AsFd;

use aya::maps::Map;
use lb_common::cache::{CLOSING_NS, FlowWord, Line, Load, NURSERY_NS, Opening, Way};

use super::Error;
use super::maps;
use super::mmap::Words;

const WORDS_A_WAY: usize = size_of::<Way>() / 8;
const WORDS_A_PLACE: usize = size_of::<Opening>() / 8;
const WORDS_A_LOAD: usize = size_of::<Load>() / 8;

/// Flows and loads. The program changes them at any moment, each word at once.
#[derive(Debug)]
pub struct FlowCache {
    ways: Words,
    /// Connections that are being opened.
    places: Words,
    loads: Words,
}

impl FlowCache {
    pub(super) fn new(cache: &Map, nursery: &Map, loads: &Map) -> Result<Self, Error> {
        let map = |map: &Map, words: usize| {
            let data = maps::data_of(map)?;
            let words = data.info()?.max_entries() as usize * words;
            Words::map(data.fd().as_fd(), words).map_err(|source| Error::Syscall {
                call: "mmap of the cache of flows",
                source,
            })
        };
        Ok(Self {
            ways: map(cache, size_of::<Line>() / 8)?,
            places: map(nursery, WORDS_A_PLACE)?,
            loads: map(loads, WORDS_A_LOAD)?,
        })
    }

    /// Takes over everything that another one holds, of which this has at least the size.
    pub(super) fn copy_from(&self, other: &Self) {
        let pairs = [
            (&self.ways, &other.ways),
            (&self.places, &other.places),
            (&self.loads, &other.loads),
        ];
        for (to, from) in pairs {
            for word in 0..from.len().min(to.len()) {
                to.set(word, from.get(word));
            }
        }
    }

    /// How many flows there is room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.ways.len() / WORDS_A_WAY
    }

    /// Every flow.
    pub fn all(&self) -> impl Iterator<Item = Way> + '_ {
        (0..self.capacity()).filter_map(|index| {
            let way = way_at(&self.ways, index * WORDS_A_WAY);
            (!way.word.is_free()).then_some(way)
        })
    }

    /// Forgets the flows of backends that are gone, before another backend is given their index.
    pub fn forget(&self, gone: impl Fn(u32) -> bool) -> usize {
        let gone = |way: &Way| gone(way.word.backend());
        self.clear(&self.ways, WORDS_A_WAY, gone) + self.clear(&self.places, WORDS_A_PLACE, gone)
    }

    /// Forgets what was idle for longer than `idle_ns`, or has ended a while ago, and SYNs that nothing followed.
    pub fn expire(&self, now_ns: u64, idle_ns: u64) -> usize {
        let idle = |way: &Way| now_ns.saturating_sub(way.seen_ns);
        let ways = self.clear(&self.ways, WORDS_A_WAY, |way| {
            idle(way) > if way.word.is_live() { idle_ns } else { CLOSING_NS }
        });
        ways + self.clear(&self.places, WORDS_A_PLACE, |way| idle(way) > NURSERY_NS)
    }

    /// Clears what `gone` says so of, and takes it off the load of its backend. What the program changes at this moment
    /// stays. Gives back how many went.
    fn clear(&self, words: &Words, size: usize, gone: impl Fn(&Way) -> bool) -> usize {
        let mut count = 0;
        for place in (0..words.len()).step_by(size) {
            let way = way_at(words, place);
            if way.word.is_free() || !gone(&way) || !words.exchange(place, way.word.0, FlowWord::FREE.0) {
                continue;
            }
            count += 1;
            if way.word.is_live() {
                self.loads.subtract(self.load_of(way.word.backend()), 1);
            }
        }
        count
    }

    /// How many flows a backend has that have not ended, as far as one direction tells.
    #[must_use]
    pub fn active(&self, backend: u32) -> u64 {
        self.loads.get(self.load_of(backend))
    }

    /// Sets the weight that schedulers compare by.
    pub fn set_weight(&self, backend: u32, weight: u16) {
        self.loads.set(self.load_of(backend) + 1, u64::from(weight));
    }

    /// A backend that is new.
    pub fn clear_load(&self, backend: u32) {
        self.loads.set(self.load_of(backend), 0);
    }

    fn load_of(&self, backend: u32) -> usize {
        // A damaged way may name anybody.
        (backend as usize * WORDS_A_LOAD).min(self.loads.len() - WORDS_A_LOAD)
    }
}

/// Ways of the cache and places of the nursery begin alike.
fn way_at(words: &Words, place: usize) -> Way {
    Way {
        word: FlowWord(words.get(place)),
        seen_ns: words.get(place + 1),
    }
}
