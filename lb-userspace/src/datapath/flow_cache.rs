//! The cache of `tracking = "full"` from user space: memory-mapped, so that all of it is read without a system call.

use std::os::fd::AsFd;

use aya::maps::Map;
use lb_common::cache::{CLOSING_NS, FlowWord, Line, Load, NURSERY_NS, Opening, Way};

use super::Error;
use super::maps;
use super::mmap::Words;

pub(super) const WORDS_A_WAY: usize = size_of::<Way>() / 8;
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
        ways(&self.ways)
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

    /// The same for the next part of the cache, with the idle time of each backend's flows.
    pub fn expire_next(&self, walk: &mut Walk, now_ns: u64, idle_ns: &[u64]) {
        let gone = |way: &Way| {
            let allowed_ns = idle_ns.get(way.word.backend() as usize).copied().unwrap_or(0);
            let allowed_ns = if way.word.is_live() {
                allowed_ns
            } else {
                CLOSING_NS
            };
            now_ns.saturating_sub(way.seen_ns) > allowed_ns
        };
        walk.go_on(&self.ways, gone, |way| {
            if way.word.is_live() {
                self.loads.subtract(self.load_of(way.word.backend()), 1);
            }
        });
        self.clear(&self.places, WORDS_A_PLACE, |way| {
            now_ns.saturating_sub(way.seen_ns) > NURSERY_NS
        });
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

/// How many ways are looked at in one go: 4 MiB of them, a few milliseconds.
const PART: usize = 262_144;

/// A walk through a cache in parts, again and again, so that a large one holds up nothing else.
#[derive(Debug, Default)]
pub struct Walk {
    /// The way that is next.
    next: usize,
    /// What was found since the first way, by the index of the backend.
    found: Vec<u64>,
    /// The same of the last whole walk.
    last: Vec<u64>,
}

impl Walk {
    /// Looks at the next part, clears what is `gone`, and tells of it.
    pub(super) fn go_on(&mut self, words: &Words, gone: impl Fn(&Way) -> bool, cleared: impl Fn(&Way)) {
        let all = words.len() / WORDS_A_WAY;
        let end = all.min(self.next + PART);
        for index in self.next..end {
            let place = index * WORDS_A_WAY;
            let way = way_at(words, place);
            if way.word.is_free() {
                continue;
            }
            if gone(&way) && words.exchange(place, way.word.0, FlowWord::FREE.0) {
                cleared(&way);
                continue;
            }
            let backend = way.word.backend() as usize;
            if backend >= self.found.len() {
                self.found.resize(backend + 1, 0);
            }
            self.found[backend] += 1;
        }
        self.next = end;
        if end == all {
            self.next = 0;
            self.last = std::mem::take(&mut self.found);
        }
    }

    /// How many ways there were.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.last.iter().sum()
    }

    /// How many of them a backend had.
    #[must_use]
    pub fn of(&self, backend: u32) -> u64 {
        self.last.get(backend as usize).copied().unwrap_or(0)
    }
}

/// Maps an array of values of so many words.
pub(super) fn map(map: &Map, words: usize) -> Result<Words, Error> {
    let data = maps::data_of(map)?;
    let words = data.info()?.max_entries() as usize * words;
    Words::map(data.fd().as_fd(), words).map_err(|source| Error::Syscall {
        call: "mmap of a cache",
        source,
    })
}

/// Every way that is taken.
pub(super) fn ways(words: &Words) -> impl Iterator<Item = Way> + '_ {
    (0..words.len()).step_by(WORDS_A_WAY).filter_map(|place| {
        let way = way_at(words, place);
        (!way.word.is_free()).then_some(way)
    })
}

/// Ways of the cache and places of the nursery begin alike.
pub(super) fn way_at(words: &Words, place: usize) -> Way {
    Way {
        word: FlowWord(words.get(place)),
        seen_ns: words.get(place + 1),
    }
}
