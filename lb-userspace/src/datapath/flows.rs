//! The flow table from user space: single entries, reading all of it in batches, and what agent and program tell
//! each other about it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aya::Pod;
use aya::maps::{HashMap, Map, MapData, MapError};
use lb_common::hint::{LINES, Line};
use lb_common::layout::{FlowControl, FlowCounters, FlowEntry, FlowKey};

use super::Error;
use super::maps;
use super::mmap::Words;
use super::sys;

/// How many entries a batch has room for at first. A bucket of the kernel's table that holds more than fit asks for
/// more room.
const BATCH: usize = 4096;

const BPF_NOEXIST: u64 = 1;

/// The flow table.
pub type Flows = Table<FlowKey, FlowEntry>;

/// A hash map of flows. The program changes it at any moment.
pub struct Table<K, V> {
    map: HashMap<MapData, K, V>,
    /// The same map, for what the typed one cannot do.
    fd: OwnedFd,
    capacity: u32,
    hints: Option<Hints>,
    /// The kernel is older than 5.14 and cannot take an entry out in one step.
    in_two_steps: AtomicBool,
}

impl<K: Pod + Default, V: Pod + Default> Table<K, V> {
    pub(in crate::datapath) fn new(map: Map) -> Result<Self, Error> {
        let data = maps::data_of(&map)?;
        let capacity = data.info()?.max_entries();
        let fd = duplicate(data.fd())?;
        Ok(Self {
            map: map.try_into()?,
            fd,
            capacity,
            hints: None,
            in_two_steps: AtomicBool::new(false),
        })
    }

    /// The same table for another thread, which may read it meanwhile.
    ///
    /// # Errors
    /// [`Error::Syscall`] where there are no more descriptors, [`Error::Map`].
    pub fn try_clone(&self) -> Result<Self, Error> {
        Ok(Self {
            hints: self.hints.clone(),
            ..Self::new(Map::HashMap(MapData::from_fd(duplicate(&self.fd)?)?))?
        })
    }

    /// The program looks up every entry anew: one was written or taken out, or a backend stands otherwise than when it was
    /// looked up.
    pub fn renew(&self) {
        if let Some(Hints(words)) = &self.hints {
            words.count(ERA);
        }
    }

    /// How many entries there is room for.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// # Errors
    /// [`Error::Map`].
    pub fn get(&self, key: &K) -> Result<Option<V>, Error> {
        absent_is_none(self.map.get(key, 0))
    }

    /// Writes an entry, in place of one that is there.
    ///
    /// # Errors
    /// [`Error::Map`], also where the table is full.
    pub fn set(&mut self, key: &K, entry: V) -> Result<(), Error> {
        self.map.insert(key, entry, 0)?;
        self.renew();
        Ok(())
    }

    /// Writes an entry where there is none; `false` where there is one.
    ///
    /// # Errors
    /// [`Error::Map`], also where the table is full.
    pub fn add(&mut self, key: &K, entry: V) -> Result<bool, Error> {
        match self.map.insert(key, entry, BPF_NOEXIST) {
            Err(error) if errno(&error) == Some(libc::EEXIST) => Ok(false),
            result => {
                result?;
                self.renew();
                Ok(true)
            }
        }
    }

    /// Takes an entry out and gives it back as it was at that moment: what the program wrote to it until then is
    /// not lost. Before Linux 5.14 these are two steps ([`Flows::takes_in_two_steps`]), and what it writes between
    /// them is lost.
    ///
    /// # Errors
    /// [`Error::Map`], [`Error::Syscall`].
    pub fn take(&mut self, key: &K) -> Result<Option<V>, Error> {
        if !self.takes_in_two_steps() {
            let mut entry = V::default();
            match sys::lookup_and_delete(self.fd.as_fd(), key, &mut entry) {
                Ok(()) => {
                    self.renew();
                    return Ok(Some(entry));
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
                Err(error) if is_unsupported(&error) => self.in_two_steps.store(true, Ordering::Relaxed),
                Err(source) => {
                    return Err(Error::Syscall {
                        call: "taking an entry out of the flow table",
                        source,
                    });
                }
            }
        }
        let entry = self.get(key)?;
        self.remove(key)?;
        Ok(entry)
    }

    /// Whether [`Flows::take`] found that this kernel cannot do it in one step.
    #[must_use]
    pub fn takes_in_two_steps(&self) -> bool {
        self.in_two_steps.load(Ordering::Relaxed)
    }

    /// Deletes an entry; `false` where there is none.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn remove(&mut self, key: &K) -> Result<bool, Error> {
        let removed = absent_is_none(self.map.remove(key))?.is_some();
        self.renew();
        Ok(removed)
    }

    /// Reads on from where `cursor` stands; its entries are those of this batch alone. `false`: that was the last
    /// one. An entry that is made or deleted meanwhile may or may not be among them; one that stays is, once.
    ///
    /// # Errors
    /// [`Error::Syscall`].
    pub fn read_batch(&self, cursor: &mut Cursor<K, V>) -> Result<bool, Error> {
        loop {
            let Cursor {
                position,
                keys,
                entries,
                filled,
            } = cursor;
            let mut next = 0;
            let result = sys::lookup_batch(self.fd.as_fd(), position.as_ref(), &mut next, keys, entries);
            match result {
                Ok(sys::Batch { count, last }) => {
                    *filled = count;
                    *position = Some(next);
                    return Ok(!last);
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => cursor.enlarge(),
                Err(source) => {
                    return Err(Error::Syscall {
                        call: "reading the flow table",
                        source,
                    });
                }
            }
        }
    }

    /// Every entry, for tests and small tables.
    ///
    /// # Errors
    /// [`Error::Syscall`].
    pub fn all(&self) -> Result<Vec<(K, V)>, Error> {
        let mut cursor = Cursor::default();
        let mut all = Vec::new();
        loop {
            let more = self.read_batch(&mut cursor)?;
            all.extend(cursor.entries());
            if !more {
                return Ok(all);
            }
        }
    }
}

/// Hints of where flows with an entry go ([`lb_common::hint`]), of which user space writes the era.
#[derive(Clone, Debug)]
struct Hints(Arc<Words>);

const WORDS_A_LINE: usize = size_of::<Line>() / 8;
/// Where the era is.
const ERA: usize = LINES as usize * WORDS_A_LINE;

impl Flows {
    pub(in crate::datapath) fn with_hints(map: Map, hints: &Map) -> Result<Self, Error> {
        let words = Words::map(maps::data_of(hints)?.fd(), ERA + WORDS_A_LINE);
        let words = words.map_err(|source| Error::Syscall {
            call: "mmap of the hints",
            source,
        })?;
        Ok(Self {
            hints: Some(Hints(Arc::new(words))),
            ..Self::new(map)?
        })
    }
}

/// How far a reading of the flow table has come, and its last batch.
#[derive(Debug)]
pub struct Cursor<K = FlowKey, V = FlowEntry> {
    position: Option<u32>,
    keys: Vec<K>,
    entries: Vec<V>,
    filled: usize,
}

impl<K: Pod + Default, V: Pod + Default> Default for Cursor<K, V> {
    fn default() -> Self {
        Self::with_room(BATCH)
    }
}

impl<K: Pod + Default, V: Pod + Default> Cursor<K, V> {
    /// A cursor at the beginning, for batches of up to `room` entries, which may grow.
    #[must_use]
    pub fn with_room(room: usize) -> Self {
        let mut cursor = Self {
            position: None,
            keys: Vec::new(),
            entries: Vec::new(),
            filled: 0,
        };
        cursor.resize(room.max(1));
        cursor
    }

    /// The entries of the last batch, as they were when it was read.
    pub fn entries(&self) -> impl Iterator<Item = (K, V)> + '_ {
        let pairs = self.keys.iter().zip(&self.entries).take(self.filled);
        pairs.map(|(key, entry)| (*key, *entry))
    }

    fn enlarge(&mut self) {
        self.resize(self.keys.len() * 2);
    }

    fn resize(&mut self, room: usize) {
        self.keys.resize(room, K::default());
        self.entries.resize(room, V::default());
    }
}

/// Allowances and refusals of all services, memory-mapped.
#[derive(Debug)]
pub struct FlowControls(Words);

const WORDS: usize = size_of::<FlowControl>() / 8;

impl FlowControls {
    pub(super) fn map(fd: impl AsFd, services: u32) -> Result<Self, Error> {
        let words = Words::map(fd, services as usize * WORDS).map_err(|source| Error::Syscall {
            call: "mmap of the allowances",
            source,
        })?;
        Ok(Self(words))
    }

    /// # Panics
    /// Where there is no room for this service.
    #[must_use]
    pub fn get(&self, service: u32) -> FlowControl {
        let word = |n| self.0.get(service as usize * WORDS + n);
        FlowControl {
            refused_ns: word(0),
            syn_left: word(1),
            data_left: word(2),
            udp_left: word(3),
        }
    }

    /// Sets everything; for a service that is new.
    ///
    /// # Panics
    /// Where there is no room for this service.
    pub fn set(&self, service: u32, control: FlowControl) {
        let FlowControl { refused_ns, .. } = control;
        self.0.set(service as usize * WORDS, refused_ns);
        self.allow(service, control);
    }

    /// Sets the allowances and leaves alone what the program noted of refusals.
    ///
    /// # Panics
    /// Where there is no room for this service.
    pub fn allow(&self, service: u32, control: FlowControl) {
        let FlowControl {
            refused_ns: _,
            syn_left,
            data_left,
            udp_left,
        } = control;
        for (n, value) in [(1, syn_left), (2, data_left), (3, udp_left)] {
            self.0.set(service as usize * WORDS + n, value);
        }
    }
}

/// The sum of two counts.
#[must_use]
pub fn add_counters(a: &FlowCounters, b: &FlowCounters) -> FlowCounters {
    let FlowCounters {
        hits,
        inserted_syn,
        inserted_data,
        inserted_udp,
        refused_allowance,
        refused_full,
        occupied,
        resets,
        evicted,
        crowded,
    } = *a;
    FlowCounters {
        hits: hits + b.hits,
        inserted_syn: inserted_syn + b.inserted_syn,
        inserted_data: inserted_data + b.inserted_data,
        inserted_udp: inserted_udp + b.inserted_udp,
        refused_allowance: refused_allowance + b.refused_allowance,
        refused_full: refused_full + b.refused_full,
        occupied: occupied + b.occupied,
        resets: resets + b.resets,
        evicted: evicted + b.evicted,
        crowded: crowded + b.crowded,
    }
}

pub(super) fn duplicate(fd: impl AsFd) -> Result<OwnedFd, Error> {
    let again = fd.as_fd().try_clone_to_owned();
    again.map_err(|source| Error::Syscall {
        call: "duplicating a descriptor",
        source,
    })
}

fn absent_is_none<T>(result: Result<T, MapError>) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) if errno(&error) == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn errno(error: &MapError) -> Option<i32> {
    match error {
        MapError::SyscallError(error) => error.io_error.raw_os_error(),
        _ => None,
    }
}

/// Kernels differ in how they say that a map has no such operation; `ENOTSUPP` is their own.
fn is_unsupported(error: &std::io::Error) -> bool {
    const ENOTSUPP: i32 = 524;
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::EOPNOTSUPP | ENOTSUPP)
    )
}
