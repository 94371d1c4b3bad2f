//! Sweeping the flow table: what is over is taken out, and what is found is told to the step between generations.
//!
//! An entry goes when it has expired, when its backend is gone, or when it says what its slot says anyway. The program
//! changes the table meanwhile, so an entry is taken out in one step that gives it back, and put back, where none has
//! taken its place, if it is not the one that was judged.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lb_common::layout::{FlowEntry, Slot};
use lb_common::rule::State;

use super::Error;
use super::clock::Clock;
use super::flows::{Cursor, Flows};
use super::maps::TableReader;
use crate::control::step::{GRACE_NS, Scan};

/// How long an entry lives that a SYN made and no later segment confirmed: a client that gets no answer sends its SYN
/// again after 1, 3, 7, 15, 31 and 63 s (RFC 6298, and six times in Linux).
pub const UNCONFIRMED_NS: u64 = 64_000_000_000;
/// The same where the backend takes no new flows any longer: most likely it did not answer because it was dead already,
/// and a client that uses the port again is to meet another one.
pub const UNANSWERED_NS: u64 = 2_000_000_000;
/// How long an entry lives after the FIN or RST of the client: a minute, as TIME-WAIT in Linux.
pub const CLOSING_NS: u64 = 60_000_000_000;

/// What a sweep must know beside the tables.
#[derive(Debug)]
pub struct View {
    /// When it was made, `CLOCK_MONOTONIC`. Of entries that were seen later it knows nothing.
    pub made_ns: u64,
    /// By index; services that are not there are gone.
    pub services: BTreeMap<u32, ServiceView>,
    /// By index; backends that are not there are gone.
    pub backends: BTreeMap<u32, BackendView>,
    pub tables: TableReader,
}

/// One service as a sweep sees it.
#[derive(Clone, Copy, Debug)]
pub struct ServiceView {
    /// How long its flows may be idle.
    pub idle_ns: u64,
    /// `false`: it has no use for entries (`tracking = "none"`).
    pub tracked: bool,
}

/// One backend as a sweep sees it.
#[derive(Clone, Copy, Debug)]
pub struct BackendView {
    /// Entries that were seen before this are not flows of it any longer.
    pub dead_before_ns: u64,
    /// It takes no new flows.
    pub closed: bool,
}

/// What is to become of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Keep,
    /// Nothing came for as long as its state allows.
    Expired,
    /// Its backend or service is gone, or was when the entry was last seen.
    Dead,
    /// A flow without an entry would go the same way.
    Redundant,
}

/// What is known of the flow of an entry. Times are `CLOCK_MONOTONIC`.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub entry: FlowEntry,
    pub now_ns: u64,
    pub idle_ns: u64,
    /// What was seen before this is no flow of its backend any longer.
    pub dead_before_ns: u64,
    /// The same of its other backend; `None`: there is none.
    pub other_dead_before_ns: Option<u64>,
    /// Its backend takes no new flows.
    pub closed: bool,
    /// `None`: not known, or the table is being resized, when entries say more than their slot.
    pub slot: Option<Slot>,
}

/// The decision.
#[must_use]
pub fn judge(case: &Case) -> Verdict {
    let Case {
        entry,
        now_ns,
        idle_ns,
        dead_before_ns,
        other_dead_before_ns,
        closed,
        slot,
    } = *case;
    let (seen_ns, owner) = (entry.seen.at_ns(), entry.owner.backend());
    let life_ns = match entry.seen.state() {
        // Not where the connection that had closed before the SYN may have closed its half only.
        State::Unconfirmed if closed && entry.before == 0 => UNANSWERED_NS.min(idle_ns),
        State::Unconfirmed => UNCONFIRMED_NS.min(idle_ns),
        State::Established | State::Contested => idle_ns,
        State::Closing => CLOSING_NS.min(idle_ns),
    };
    let alone = other_dead_before_ns.is_none() || entry.before == owner;
    let settled = |slot: Slot| slot.current() == slot.previous() && slot.current() == owner && alone;
    let other_lives = other_dead_before_ns.is_some_and(|dead_before_ns| seen_ns >= dead_before_ns);
    if seen_ns < dead_before_ns && !other_lives {
        Verdict::Dead
    } else if now_ns.saturating_sub(seen_ns) > life_ns.saturating_add(GRACE_NS) {
        // A packet that has found the entry in time may not have written to it yet.
        Verdict::Expired
    } else if slot.is_some_and(settled) {
        Verdict::Redundant
    } else {
        Verdict::Keep
    }
}

/// Entries by their state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct States {
    pub unconfirmed: u64,
    pub established: u64,
    pub closing: u64,
    /// Unconfirmed ones whose addresses and ports another connection uses too.
    pub contested: u64,
}

impl States {
    #[must_use]
    pub fn total(&self) -> u64 {
        self.unconfirmed + self.established + self.closing + self.contested
    }

    fn count(&mut self, state: State) {
        match state {
            State::Unconfirmed => self.unconfirmed += 1,
            State::Established => self.established += 1,
            State::Closing => self.closing += 1,
            State::Contested => self.contested += 1,
        }
    }
}

/// What a full scan found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// `CLOCK_MONOTONIC`; 0: there was none yet.
    pub begun_ns: u64,
    pub ended_ns: u64,
    /// Entries that stayed.
    pub states: States,
    pub services: BTreeMap<u32, ServiceReport>,
    /// Entries that stayed, by the backend they name.
    pub backends: BTreeMap<u32, u64>,
    /// Entries that were taken out.
    pub removed: u64,
    /// Entries that changed while they were taken out, and were put back.
    pub put_back: u64,
    /// Such entries that found no room any longer: their flows may break.
    pub lost: u64,
    /// Every backend that some entry named, also one that was taken out.
    named: BTreeSet<u32>,
    /// Of a service without entries.
    nothing: Scan,
}

/// What was found of one service.
#[derive(Clone, Debug, Default)]
pub struct ServiceReport {
    pub states: States,
    pub scan: Scan,
    /// What becomes `scan.slots`.
    seen_slots: Bits,
}

/// A set of small numbers, cheap to add to.
#[derive(Clone, Debug, Default)]
struct Bits(Vec<u64>);

impl Bits {
    fn insert(&mut self, number: u32) {
        let word = number as usize / 64;
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (number % 64);
    }

    fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        let words = (0..).zip(&self.0);
        words.flat_map(|(word, bits)| {
            (0..64)
                .filter(move |n| bits & 1 << n != 0)
                .map(move |n| word * 64 + n)
        })
    }
}

impl Report {
    /// A scan that begins.
    #[must_use]
    pub fn begin(now_ns: u64) -> Self {
        Self {
            begun_ns: now_ns,
            nothing: Scan {
                begun_ns: now_ns,
                ..Scan::default()
            },
            ..Self::default()
        }
    }

    /// What the next step of a service's tables must know; `None` before the first scan.
    #[must_use]
    pub fn of(&self, service: u32) -> Option<&Scan> {
        let found = self
            .services
            .get(&service)
            .map_or(&self.nothing, |found| &found.scan);
        (self.begun_ns != 0).then_some(found)
    }

    /// Whether some entry named a backend.
    #[must_use]
    pub fn has_backend(&self, index: u32) -> bool {
        self.named.contains(&index)
    }

    /// Whether a service had an entry.
    #[must_use]
    pub fn has_service(&self, index: u32) -> bool {
        self.services.contains_key(&index)
    }

    /// How long it took, in nanoseconds.
    #[must_use]
    pub fn took_ns(&self) -> u64 {
        self.ended_ns.saturating_sub(self.begun_ns)
    }
}

/// Scans the whole table once. `view` is asked anew for every batch, and `go_on` after every batch: `false` ends the
/// scan early, which then says nothing.
///
/// # Errors
/// [`Error::Syscall`], [`Error::Map`].
pub fn sweep(
    flows: &mut Flows,
    view: &dyn Fn() -> Arc<View>,
    clock: Clock<'_>,
    go_on: &dyn Fn() -> bool,
) -> Result<Option<Report>, Error> {
    let mut report = Report::begin(clock());
    let mut cursor = Cursor::default();
    loop {
        let more = flows.read_batch(&mut cursor)?;
        let view = view();
        let now_ns = clock();
        for (key, entry) in cursor.entries() {
            report.take_in(flows, &view, key, entry, now_ns)?;
        }
        if !more {
            break;
        }
        if !go_on() {
            return Ok(None);
        }
    }
    for found in report.services.values_mut() {
        found.scan.slots = std::mem::take(&mut found.seen_slots).iter().collect();
    }
    report.ended_ns = clock();
    Ok(Some(report))
}

impl Report {
    fn take_in(
        &mut self,
        flows: &mut Flows,
        view: &View,
        key: lb_common::layout::FlowKey,
        entry: FlowEntry,
        now_ns: u64,
    ) -> Result<(), Error> {
        let place = view.tables.slot(&key, entry.owner.hash());
        let judge = |entry: FlowEntry, place: Option<(u32, Option<Slot>)>| {
            let slot = place.and_then(|(_, slot)| slot);
            judge(&view.case(key.service, entry, slot, now_ns))
        };
        // By its slot as it is now: what was redundant a moment ago is not once its table is being resized.
        let judge_again = |entry: FlowEntry| judge(entry, view.tables.slot(&key, entry.owner.hash()));
        let found = self.services.entry(key.service).or_default();
        found.scan.begun_ns = self.begun_ns;
        if let Some((index, _)) = place {
            found.seen_slots.insert(index);
        }
        self.named.extend(named(&entry));
        let mut stays = judge(entry, place) == Verdict::Keep;
        if !stays {
            // Judged a batch ago; a look costs less than putting back.
            match flows.get(&key)? {
                None => return Ok(()),
                Some(entry) if judge_again(entry) == Verdict::Keep => stays = true,
                Some(_) => match flows.take(&key)? {
                    None => return Ok(()),
                    Some(entry) if judge_again(entry) == Verdict::Keep => {
                        stays = true;
                        match flows.add(&key, entry) {
                            Ok(_) => self.put_back += 1,
                            Err(error) => {
                                self.lost += 1;
                                log::error!(
                                    "flow table: an entry that changed while it was taken out: {error}"
                                );
                            }
                        }
                    }
                    Some(_) => self.removed += 1,
                },
            }
        }
        if stays {
            found.states.count(entry.seen.state());
            self.states.count(entry.seen.state());
            for backend in named(&entry) {
                *self.backends.entry(backend).or_default() += 1;
            }
        }
        Ok(())
    }
}

/// The backends that an entry names.
fn named(entry: &FlowEntry) -> impl Iterator<Item = u32> {
    let other = entry.seen.state().is_pending() && entry.before != 0 && entry.before != entry.owner.backend();
    std::iter::once(entry.owner.backend()).chain(other.then_some(entry.before))
}

impl View {
    fn case(&self, service: u32, entry: FlowEntry, slot: Option<Slot>, now_ns: u64) -> Case {
        let (idle_ns, wanted) = match self.services.get(&service) {
            Some(service) => (service.idle_ns, service.tracked),
            None => (u64::MAX, false),
        };
        let gone = BackendView {
            dead_before_ns: self.made_ns,
            closed: false,
        };
        let of = |backend: u32| match self.backends.get(&backend) {
            Some(view) if wanted => *view,
            _ => gone,
        };
        let BackendView {
            dead_before_ns,
            closed,
        } = of(entry.owner.backend());
        let other = entry.seen.state().is_pending() && entry.before != 0;
        Case {
            entry,
            now_ns,
            idle_ns,
            dead_before_ns,
            other_dead_before_ns: other.then(|| of(entry.before).dead_before_ns),
            closed,
            slot,
        }
    }
}

#[cfg(test)]
mod tests;
