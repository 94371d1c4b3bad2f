//! The lookup tables of a service: from the owners that are wanted to the generation in force.
//!
//! What the next generation is says [`step::advance`]. It is written whole into a free region of a slab and switched
//! to by one store. While a resize is under way the record names two tables: the one before is named before
//! [`TableWord::RESIZING`] is set, and forgotten after that is cleared.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::layout::{Slot, TableWord};
use lb_common::rule::Standing;

use super::{Dataplane, meta};
use crate::control::step::{self, Advanced, Before, Generation, Step, Tables};
use crate::control::{self, DesiredService};
use crate::datapath::Error;
use crate::datapath::clock::Clock;
use crate::datapath::maps::Maps;
use crate::maglev::Candidate;
use crate::model::{BackendId, Forward, Scheduler, ServiceKey, Tracking};

/// The tables of a service, and what they came from.
#[derive(Debug, Default)]
pub(super) struct InForce {
    /// The record's words.
    pub word: TableWord,
    pub before: TableWord,
    pub tables: Tables,
    pub tracking: Tracking,
    /// How long a flow may be idle.
    pub window_ns: u64,
    pub progress: Progress,
    /// It was there before this agent: its index may have entries.
    found: bool,
    /// What `want` was built from; unknown for tables that were found pinned.
    built_from: Option<Origin>,
    want: Vec<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin {
    forward: Forward,
    scheduler: Scheduler,
    size: u32,
    candidates: Vec<Candidate>,
}

impl Origin {
    /// What the next table of a service comes from.
    fn of(in_force: Option<&InForce>, service: &DesiredService) -> Self {
        let size = match in_force {
            None => service.size,
            Some(in_force) if in_force.size() == 0 => service.size,
            // Nobody takes new flows: the flows there are stay where they are.
            Some(in_force) if service.candidates.is_empty() => in_force.size(),
            // One resize at a time.
            Some(in_force) if in_force.tables.before.is_some() => in_force.size(),
            Some(_) => service.size,
        };
        Self {
            forward: service.forward,
            scheduler: service.scheduler,
            size,
            candidates: service.candidates.clone(),
        }
    }
}

/// For each slot the place of its owner among the candidates.
pub(super) type Owners = Vec<Option<u32>>;

/// The next tables of a service, and what they come from.
pub(super) struct Stepped {
    origin: Origin,
    want: Vec<u32>,
    pub advanced: Advanced,
}

/// How far the moves of a service's slots have come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Slots whose flows may live with two backends: each packet asks the flow table.
    pub open: usize,
    /// Slots whose window is over, while entries may still name another backend.
    pub settled: usize,
    /// Slots whose move waits for room in the flow table.
    pub waiting: usize,
    /// When the last open window ends unless an entry is refused until then, `CLOCK_MONOTONIC`.
    pub until_ns: Option<u64>,
    /// The table is being resized.
    pub resizing: bool,
}

impl Progress {
    /// Slots that are not as they are to stay.
    #[must_use]
    pub fn unsettled(&self) -> usize {
        self.open + self.settled + self.waiting
    }
}

impl InForce {
    /// The tables as the maps have them, after a restart. A word that names no table, in damaged pins, counts as none.
    pub fn found(maps: &Maps, index: u32, tracking: Tracking, now_ns: u64) -> Self {
        let held = |word: TableWord| maps.slabs.hold(word.place()) && word.size() != 0;
        let mut word = maps.records.table(index);
        let mut before = maps.records.before(index);
        if !held(word) {
            word = TableWord::NONE;
        }
        if !word.is_resizing() || !held(before) {
            before = TableWord::NONE;
        }
        let tables = Tables {
            now: Generation::found(maps.slots(word.place()), now_ns),
            before: (before != TableWord::NONE).then(|| Before {
                slots: maps.slots(before),
                since_ns: now_ns,
            }),
            held_since_ns: word.is_held().then_some(now_ns),
        };
        let consulted = tables.now.since_ns.len();
        let resizing = tables.before.is_some();
        Self {
            word,
            before,
            progress: Progress {
                // Which of them are open the first step tells.
                settled: consulted,
                resizing,
                ..Progress::default()
            },
            tables,
            tracking,
            // Until the configuration says: nothing expires, no window ends.
            window_ns: u64::MAX,
            found: true,
            ..Self::default()
        }
    }

    /// The backends that some slot names.
    pub fn named(&self) -> BTreeSet<u32> {
        let before = self.tables.before.iter().flat_map(|before| &before.slots);
        let slots = self.tables.now.slots.iter().chain(before);
        slots.flat_map(|slot| [slot.current(), slot.previous()]).collect()
    }

    pub fn size(&self) -> u32 {
        self.word.size()
    }

    pub fn busy(&self) -> bool {
        self.progress.unsettled() > 0 || self.progress.resizing
    }
}

/// What a switch to other tables did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Switched {
    /// Slots that have another owner.
    pub moved: usize,
    pub generation: u64,
}

impl Dataplane {
    /// Builds the tables of all services whose backends changed, on all processors where there are several: they are the
    /// larger part of a change, and services that change together are switched together.
    pub(super) fn build_all(
        &self,
        services: &[(&ServiceKey, &DesiredService)],
    ) -> BTreeMap<ServiceKey, Owners> {
        let fresh: Vec<(&ServiceKey, &DesiredService, u32)> = services
            .iter()
            .filter(|(_, service)| !service.candidates.is_empty())
            .filter_map(|(key, service)| {
                let in_force = self.services.get(*key).map(|installed| &installed.in_force);
                let origin = Origin::of(in_force, service);
                let size = origin.size;
                let known = in_force.is_some_and(|in_force| in_force.built_from.as_ref() == Some(&origin));
                (!known).then_some((*key, *service, size))
            })
            .collect();
        let build = |services: &[(&ServiceKey, &DesiredService, u32)]| -> Vec<(ServiceKey, Owners)> {
            let built = services
                .iter()
                .map(|(key, service, size)| (**key, control::owners(service, *size)));
            built.collect()
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        if fresh.len() < 2 || threads < 2 {
            return build(&fresh).into_iter().collect();
        }
        std::thread::scope(|scope| {
            let parts = fresh.chunks(fresh.len().div_ceil(threads));
            let builders: Vec<_> = parts.map(|part| scope.spawn(|| build(part))).collect();
            builders
                .into_iter()
                .flat_map(|builder| builder.join().expect("a table that can be built"))
                .collect()
        })
    }

    /// Brings the tables of a service one step on. `standing`: what its backends still take, those that are to be
    /// removed left out; `built`: what [`build_all`](Self::build_all) made for it.
    pub(super) fn step_tables(
        &mut self,
        key: &ServiceKey,
        service: &DesiredService,
        standing: &BTreeMap<u32, Standing>,
        built: Option<Owners>,
        clock: Clock<'_>,
    ) -> Result<Option<Switched>, Error> {
        let index_of = |id: &BackendId| self.backends.get(id).copied();
        let now_ns = clock();
        let Some(stepped) = self.stepped(key, service, standing, &index_of, built, now_ns)? else {
            return Ok(None);
        };
        let Stepped {
            origin,
            want,
            advanced,
        } = stepped;
        let index = self.services[key].index;
        let window_ns = nanoseconds(service.idle_timeout);
        let mut next = advanced.tables;
        let switch = self.switch(key, &next, service, clock)?;
        if switch != Switch::Nothing {
            date(&mut next, now_ns, clock());
        }
        let changed = switch == Switch::Slots;
        let installed = self.services.get_mut(key).expect("installed by the caller");
        let in_force = &mut installed.in_force;
        in_force.progress = Progress {
            open: advanced.open,
            settled: advanced.settled,
            waiting: advanced.waiting,
            until_ns: advanced.until_ns,
            resizing: next.before.is_some(),
        };
        in_force.tables = next;
        in_force.tracking = service.tracking;
        in_force.window_ns = window_ns;
        in_force.built_from = Some(origin);
        in_force.want = want;
        installed.generation += u64::from(changed);
        let generation = installed.generation;
        if let Some(mut meta) = installed.meta {
            meta.generation = generation;
            meta.tracking = meta::tracking_code(service.tracking);
            if installed.meta != Some(meta) {
                self.put_service_meta(index, meta)?;
                self.services.get_mut(key).expect("installed").meta = Some(meta);
            }
        }
        let moved = advanced.moved;
        Ok(changed.then_some(Switched { moved, generation }))
    }

    /// The next tables of a service, which nothing is written of; `None`: those in force are to stay. `index_of`: the
    /// indices of its backends.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub(super) fn stepped(
        &self,
        key: &ServiceKey,
        service: &DesiredService,
        standing: &BTreeMap<u32, Standing>,
        index_of: &dyn Fn(&BackendId) -> Option<u32>,
        built: Option<Owners>,
        now_ns: u64,
    ) -> Result<Option<Stepped>, Error> {
        let installed = &self.services[key];
        let in_force = &installed.in_force;
        let origin = Origin::of(Some(in_force), service);
        let fresh = in_force.built_from.as_ref() != Some(&origin);
        let retracked = in_force.tracking != service.tracking;
        // A flag of the word alone.
        let reflagged = in_force.word != TableWord::NONE && in_force.word.is_quic() != service.quic;
        if !fresh && !retracked && !reflagged && !in_force.busy() {
            return Ok(None);
        }
        let (takers, want) = wanted(key, in_force, service, &origin, fresh, index_of, built);
        // Asked for once a slot.
        let standing = ByIndex::new(standing.iter().map(|(index, standing)| (*index, *standing)));
        let mut doubted;
        let tables = if retracked && service.tracking == Tracking::Moved {
            // What was in the flow table before is not known to belong to the flows of today.
            doubted = in_force.tables.clone();
            doubted.now.doubt(now_ns);
            &doubted
        } else {
            &in_force.tables
        };
        let mut advanced = step::advance(
            tables,
            &Step {
                tracking: service.tracking,
                want: &want,
                standing: &|backend| standing.get(backend).unwrap_or(Standing::Gone),
                takes_new: &|backend| takers.get(backend).is_some(),
                now_ns,
                window_ns: nanoseconds(service.idle_timeout),
                refused_ns: self.maps.flow_control.get(installed.index).refused_ns,
                room: self.room(key)?,
                scan: self.scan.of(installed.index),
            },
        );
        if in_force.found && in_force.tables.now.slots.is_empty() && service.tracking == Tracking::Moved {
            // The last agent died while it took the service away, or its table was lost: entries are left.
            advanced.tables.now.doubt(now_ns);
            advanced.settled = advanced.tables.now.slots.len();
        }
        Ok(Some(Stepped {
            origin,
            want,
            advanced,
        }))
    }

    /// Puts other tables in force.
    fn switch(
        &mut self,
        key: &ServiceKey,
        next: &Tables,
        service: &DesiredService,
        clock: Clock<'_>,
    ) -> Result<Switch, Error> {
        let Installed {
            index,
            word,
            old_before,
            same_now,
            before,
        } = self.compare(key, next);
        let mut made = Vec::new();
        let result = self.place_both(next, &before, same_now.then(|| word.place()), &mut made, clock());
        let (place, before) = match result {
            Ok(places) => places,
            Err(error) => {
                for table in made {
                    self.allocator.release(table, clock(), self.grace.ask());
                }
                return Err(error);
            }
        };
        let mut next_word = place;
        if next_word != TableWord::NONE {
            next_word = next_word.chosen_by(service.scheduler.chooser());
            if service.forward.translates() {
                next_word = next_word.with(TableWord::NAT);
            }
            if service.quic {
                next_word = next_word.with(TableWord::QUIC);
            }
            if service.tracking == Tracking::Full {
                next_word = next_word.with(TableWord::FULL);
            }
        }
        if before != TableWord::NONE {
            next_word = next_word.with(TableWord::RESIZING);
        }
        if next.held_since_ns.is_some() {
            next_word = next_word.with(TableWord::HELD);
        }
        if (next_word, before) == (word, old_before) {
            return Ok(Switch::Nothing);
        }
        if before != old_before && before != TableWord::NONE {
            self.put_before(index, before)?;
        }
        if next_word != word {
            // Slots that open must not find the allowances of a service at rest.
            self.allow_at_once(index)?;
            self.put_table(index, next_word)?;
        }
        if before != old_before && before == TableWord::NONE {
            self.put_before(index, before)?;
        }
        let now_ns = clock();
        for old in [word.place(), old_before] {
            if old != place && old != before {
                self.allocator.release(old, now_ns, self.grace.ask());
            }
        }
        let in_force = &mut self.services.get_mut(key).expect("installed").in_force;
        (in_force.word, in_force.before) = (next_word, before);
        Ok(match (place, before) == (word.place(), old_before) {
            true => Switch::Flags,
            false => Switch::Slots,
        })
    }

    fn compare(&self, key: &ServiceKey, next: &Tables) -> Installed {
        let installed = &self.services[key];
        let InForce {
            word, before, tables, ..
        } = &installed.in_force;
        let place = match (&next.before, &tables.before) {
            (None, _) => Place::At(TableWord::NONE),
            (Some(next), Some(now)) if next.slots == now.slots => Place::At(*before),
            // The table in force becomes the one before.
            (Some(next), None) if next.slots == tables.now.slots => Place::At(word.place()),
            (Some(_), _) => Place::Elsewhere,
        };
        Installed {
            index: installed.index,
            word: *word,
            old_before: *before,
            same_now: next.now.slots == tables.now.slots,
            before: place,
        }
    }

    /// Where both tables lie; what does not lie anywhere yet is written to a free region.
    fn place_both(
        &mut self,
        next: &Tables,
        before: &Place,
        now: Option<TableWord>,
        made: &mut Vec<TableWord>,
        now_ns: u64,
    ) -> Result<(TableWord, TableWord), Error> {
        let before = match (before, &next.before) {
            (Place::At(word), _) => *word,
            (Place::Elsewhere, Some(before)) => self.place(&before.slots, made, now_ns)?,
            (Place::Elsewhere, None) => TableWord::NONE,
        };
        let now = match now {
            Some(word) => word,
            None => self.place(&next.now.slots, made, now_ns)?,
        };
        Ok((now, before))
    }

    fn place(&mut self, slots: &[Slot], made: &mut Vec<TableWord>, now_ns: u64) -> Result<TableWord, Error> {
        if slots.is_empty() {
            return Ok(TableWord::NONE);
        }
        let size = slots.len() as u32;
        let table = self
            .allocator
            .allocate(size, now_ns, self.grace.ended())
            .ok_or(Error::NoSlabs { size })?;
        made.push(table);
        self.put_slots(table, slots)?;
        Ok(table)
    }
}

/// The backends that take new flows, and the owner that the scheduler gives each slot.
fn wanted(
    key: &ServiceKey,
    in_force: &InForce,
    service: &DesiredService,
    origin: &Origin,
    fresh: bool,
    index_of: &dyn Fn(&BackendId) -> Option<u32>,
    built: Option<Owners>,
) -> (ByIndex<()>, Vec<u32>) {
    let indices: Vec<u32> = service
        .candidates
        .iter()
        .map(|candidate| {
            let id = BackendId {
                service: *key,
                address: candidate.address,
                port: candidate.port,
            };
            index_of(&id).unwrap_or(0)
        })
        .collect();
    let want = if !fresh {
        in_force.want.clone()
    } else if indices.is_empty() {
        vec![0; in_force.size() as usize]
    } else {
        let owners = built.unwrap_or_else(|| control::owners(service, origin.size));
        owners
            .into_iter()
            .map(|o| o.map_or(0, |o| indices[o as usize]))
            .collect()
    };
    (ByIndex::new(indices.into_iter().map(|index| (index, ()))), want)
}

/// Something of some backends, by index. The backends of a service were mostly made together, so their indices lie close.
struct ByIndex<T> {
    first: u32,
    values: Vec<Option<T>>,
}

impl<T: Copy> ByIndex<T> {
    fn new(entries: impl Iterator<Item = (u32, T)>) -> Self {
        let entries: Vec<(u32, T)> = entries.collect();
        let indices = || entries.iter().map(|(index, _)| *index);
        let (Some(first), Some(last)) = (indices().min(), indices().max()) else {
            return Self {
                first: 0,
                values: Vec::new(),
            };
        };
        let mut values = vec![None; (last - first) as usize + 1];
        for (index, value) in entries {
            values[(index - first) as usize] = Some(value);
        }
        Self { first, values }
    }

    fn get(&self, index: u32) -> Option<T> {
        let place = index.checked_sub(self.first)?;
        self.values.get(place as usize).copied().flatten()
    }
}

/// What a switch changed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Switch {
    Nothing,
    /// Only what the record says of the same slots.
    Flags,
    Slots,
}

/// What a switch starts from.
struct Installed {
    index: u32,
    word: TableWord,
    old_before: TableWord,
    same_now: bool,
    before: Place,
}

enum Place {
    At(TableWord),
    Elsewhere,
}

/// What changed with this step changed for packets when it was published.
fn date(tables: &mut Tables, step_ns: u64, published_ns: u64) {
    let since = tables.now.since_ns.values_mut();
    let before = tables.before.iter_mut().map(|before| &mut before.since_ns);
    for since_ns in since.chain(before).chain(&mut tables.held_since_ns) {
        if *since_ns == step_ns {
            *since_ns = published_ns;
        }
    }
}

fn nanoseconds(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
