//! Persistence from user space: what each service keeps of its clients, and the clients themselves, memory-mapped.

use aya::maps::{Map, MapData, PerCpuArray, PerCpuValues};
use lb_common::cache::{FlowWord, Line, Way};
use lb_common::client::{ClientCounters, Persistence};

use super::Error;
use super::flow_cache::{self, WORDS_A_WAY, Walk};
use super::mmap::Words;

const WORDS_A_SERVICE: usize = size_of::<Persistence>() / 8;

/// Clients, and how services keep them. The program adds clients at any moment.
pub struct Clients {
    ways: Words,
    settings: Words,
    counters: PerCpuArray<MapData, ClientCounters>,
}

impl Clients {
    pub(super) fn new(clients: &Map, settings: &Map, counters: Map) -> Result<Self, Error> {
        Ok(Self {
            ways: flow_cache::map(clients, size_of::<Line>() / 8)?,
            settings: flow_cache::map(settings, WORDS_A_SERVICE)?,
            counters: counters.try_into()?,
        })
    }

    /// Takes over everything that another one holds, of which this has the size.
    pub(super) fn copy_from(&self, other: &Self) {
        for (to, from) in [(&self.ways, &other.ways), (&self.settings, &other.settings)] {
            for word in 0..from.len().min(to.len()) {
                to.set(word, from.get(word));
            }
        }
    }

    /// How many clients there is room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.ways.len() / WORDS_A_WAY
    }

    /// Every client, as a way that names its backend.
    pub fn all(&self) -> impl Iterator<Item = Way> + '_ {
        flow_cache::ways(&self.ways)
    }

    /// What a service keeps.
    #[must_use]
    pub fn settings(&self, service: u32) -> Persistence {
        let [timeout_ns, first, second] = [0, 1, 2].map(|n| self.settings.get(place(service) + n));
        Persistence {
            timeout_ns,
            mask: [
                first as u32,
                (first >> 32) as u32,
                second as u32,
                (second >> 32) as u32,
            ],
        }
    }

    /// Sets what a service keeps: another mask comes into force with its timeout.
    pub fn set(&self, service: u32, settings: Persistence) {
        let Persistence {
            timeout_ns,
            mask: [a, b, c, d],
        } = settings;
        let place = place(service);
        let word = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        if self.settings(service).mask != settings.mask {
            self.settings.set(place, 0);
        }
        self.settings.set(place + 1, word(a, b));
        self.settings.set(place + 2, word(c, d));
        self.settings.set(place, timeout_ns);
    }

    /// Forgets clients of backends that `gone` says so of. Gives back how many.
    pub fn forget(&self, gone: impl Fn(u32) -> bool) -> usize {
        let gone = (0..self.capacity()).filter(|index| {
            let place = index * WORDS_A_WAY;
            let way = flow_cache::way_at(&self.ways, place);
            let gone = !way.word.is_free() && gone(way.word.backend());
            gone && self.ways.exchange(place, way.word.0, FlowWord::FREE.0)
        });
        gone.count()
    }

    /// Goes on through the clients, and forgets those that were idle for longer than those of their backend may be.
    pub fn expire_next(&self, walk: &mut Walk, now_ns: u64, idle_ns: &[u64]) {
        let gone = |way: &Way| {
            let allowed_ns = idle_ns.get(way.word.backend() as usize).copied().unwrap_or(0);
            now_ns.saturating_sub(way.seen_ns) > allowed_ns
        };
        walk.go_on(&self.ways, gone, |_| ());
    }

    /// What all CPUs together counted of the clients of a service.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn counters(&self, service: u32) -> Result<ClientCounters, Error> {
        let values: PerCpuValues<ClientCounters> = self.counters.get(&service, 0)?;
        Ok(values.iter().fold(ClientCounters::default(), |sum, cpu| {
            let ClientCounters {
                remembered,
                kept,
                moved,
                refused,
            } = *cpu;
            ClientCounters {
                remembered: sum.remembered + remembered,
                kept: sum.kept + kept,
                moved: sum.moved + moved,
                refused: sum.refused + refused,
            }
        }))
    }

    /// Begins the counts of a service anew: its index was another one's.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn clear_counters(&mut self, service: u32) -> Result<(), Error> {
        let cpus = aya::util::nr_cpus().map_err(|(path, source)| Error::io(path)(source))?;
        let zeros = PerCpuValues::try_from(vec![ClientCounters::default(); cpus]);
        let zeros = zeros.map_err(|source| Error::Syscall {
            call: "per-CPU counters",
            source,
        })?;
        Ok(self.counters.set(service, zeros, 0)?)
    }
}

fn place(service: u32) -> usize {
    service as usize * WORDS_A_SERVICE
}
