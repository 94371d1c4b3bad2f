//! The step from one generation of a lookup table to the next: a pure function of the table in force, the owners
//! that the scheduler wants, what the backends still take, the scan of the flow table, and time.
//!
//! Together with the packet rule ([`lb_common::rule`]) it keeps the invariant
//!
//! > A flow with no entry in the flow table belongs to `previous` of its slot. Every flow that belongs elsewhere
//! > has an entry.
//!
//! ```text
//!             another owner is wanted                  window over, or moved back
//!   ┌────────┐ ─────────────────────▶ ┌──────────────┐ ─────────────────────▶ ┌─────────────────┐
//!   │ stable │                        │ open         │                        │ settled         │
//!   │ c = p  │ ◀───────────────────── │ c ≠ p        │ ◀───────────────────── │ c = p           │
//!   └────────┘   (only by way of      │ consult      │  another is wanted     │ consult         │
//!     ▲    │     settled)             └──────────────┘                        └─────────────────┘
//!     │    └──────── its owner is gone: entries that name it would come back to life with it ▲│
//!     └── a full scan, begun after that, finds no entry of the slot ──────────────────────────┘
//! ```
//!
//! A window lasts as long as a flow may be idle: then whatever still lives on `previous` has been seen, and has an
//! entry. It starts when the slot opens, or at the last refused entry of the service, whichever is later. A second
//! move before it ended does not restart it: a slot under steady change would stay open for ever.
//!
//! A SYN may be refused an entry, and go to `previous`, at the very moment when the window ends. So windows end in
//! two steps: the service is *held* for [`GRACE_NS`], in which such a SYN is dropped, and its windows end if nothing
//! was refused until then.
//!
//! A slot becomes stable when it has no entries at all: the program does not look at those of stable slots, so one
//! that stayed would tell of a flow that ended long ago when the slot opens again, and of its state.
//!
//! A move that can wait (the owner so far takes new flows as well as ever: a backend was added, came back, or has
//! another weight) opens only as many slots as the flow table has room for; the others are *waiting*. One that
//! cannot (the owner so far is drained or DOWN) is made at once.
//!
//! **Resizing** keeps the old table beside the new one for a window: where a flow without an entry belongs is
//! `previous` of its slot in the old table, `current` is that of its slot in the new one ([`Slot::resizing`]).
//! Every flow that is seen meanwhile gets an entry, so the new table follows the scheduler without another window.

use std::collections::BTreeSet;

use lb_common::hint::EPOCH_BITS;
use lb_common::layout::Slot;
use lb_common::rule::Standing;

use super::since::Since;
use crate::model::Tracking;

/// A packet that read a slot before it was replaced has left the program after this time, in nanoseconds: its entry
/// is in the flow table by then.
pub const GRACE_NS: u64 = 1_000_000_000;

// Entries lag by a hint's life, and by the tick of the kernel, which is 10 ms at most.
const _: () = assert!((1 << EPOCH_BITS) + 10_000_000 < GRACE_NS);

/// A lookup table, and since when its slots are as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Generation {
    pub slots: Vec<Slot>,
    /// Of slots with `consult`: when they opened (`current != previous`) or settled, `CLOCK_MONOTONIC`.
    pub since_ns: Since,
}

impl Generation {
    /// A table in which no slot has moved.
    #[must_use]
    pub fn stable(owners: &[u32]) -> Self {
        Self {
            slots: owners.iter().map(|owner| Slot::stable(*owner)).collect(),
            since_ns: Since::default(),
        }
    }

    /// A table that was found in the kernel, after a restart: the tables are the truth, and every window stays open
    /// for one more.
    #[must_use]
    pub fn found(slots: Vec<Slot>, now_ns: u64) -> Self {
        let since_ns = (0..)
            .zip(&slots)
            .filter(|(_, slot)| slot.consult())
            .map(|(i, _)| (i, now_ns))
            .collect();
        Self { slots, since_ns }
    }

    /// Has the flow table asked for every slot until it is known to have no entry.
    pub fn doubt(&mut self, now_ns: u64) {
        for (index, slot) in (0..).zip(&mut self.slots) {
            if !slot.consult() {
                *slot = Slot::new(slot.current(), slot.previous(), true);
                self.since_ns.insert(index, now_ns);
            }
        }
    }
}

/// The tables of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    pub now: Generation,
    /// While a resize is under way.
    pub before: Option<Before>,
    /// Since when [`lb_common::layout::TableWord::HELD`] is set, `CLOCK_MONOTONIC`; after a restart that is now.
    pub held_since_ns: Option<u64>,
}

/// The table before a resize. Only `previous` and `consult` of its slots count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Before {
    pub slots: Vec<Slot>,
    /// When the resize began, `CLOCK_MONOTONIC`.
    pub since_ns: u64,
}

/// A full scan of the flow table.
#[derive(Clone, Debug, Default)]
pub struct Scan {
    /// When it began, `CLOCK_MONOTONIC`.
    pub begun_ns: u64,
    /// Slots, of the table in force, that any entry belongs to, also one that was then deleted.
    pub slots: BTreeSet<u32>,
}

/// What [`advance`] depends on besides the tables.
pub struct Step<'a> {
    pub tracking: Tracking,
    /// The owner that the scheduler gives each slot; 0: nobody takes new flows. Of another length than the table:
    /// a resize. While one is under way it must have the length of the table in force, else owners stay.
    pub want: &'a [u32],
    /// What a backend still takes. Backend 0 is never asked about.
    pub standing: &'a dyn Fn(u32) -> Standing,
    /// Whether a backend may go on taking new flows: moves away from it can wait.
    pub takes_new: &'a dyn Fn(u32) -> bool,
    /// `CLOCK_MONOTONIC`.
    pub now_ns: u64,
    /// How long a flow of the service may be idle.
    pub window_ns: u64,
    /// When an entry of the service was last refused; 0: never.
    pub refused_ns: u64,
    /// How many slots may be opened for moves that can wait. During a resize none does.
    pub room: usize,
    /// The last full scan of the flow table.
    pub scan: Option<&'a Scan>,
}

/// What a step did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Advanced {
    pub tables: Tables,
    /// Slots whose `current` changed.
    pub moved: usize,
    /// Slots that are open.
    pub open: usize,
    /// Slots that are settled, but may have entries.
    pub settled: usize,
    /// Slots whose move waits for room.
    pub waiting: usize,
    /// When the last of the open windows ends, if no entry is refused until then.
    pub until_ns: Option<u64>,
}

/// The step.
#[must_use]
pub fn advance(tables: &Tables, step: &Step<'_>) -> Advanced {
    let Step { want, now_ns, .. } = *step;
    if step.tracking != Tracking::Moved || tables.now.slots.is_empty() {
        return at_once(tables, step);
    }
    let mut next = tables.clone();
    let mut advanced = Advanced::default();
    if next.before.is_none() && want.len() != next.now.slots.len() {
        let slots = std::mem::replace(&mut next.now, Generation::stable(want)).slots;
        advanced.moved = want.len();
        next.before = Some(Before {
            slots,
            since_ns: now_ns,
        });
    }
    let mut closing = Closing {
        may: tables
            .held_since_ns
            .is_some_and(|since| now_ns >= since.saturating_add(GRACE_NS)),
        due: false,
    };
    if next.before.is_some() {
        resize(&mut next, &mut closing, &mut advanced, step);
    } else {
        move_slots(&mut next.now, &mut closing, &mut advanced, step);
    }
    next.held_since_ns = closing.due.then(|| tables.held_since_ns.unwrap_or(now_ns));
    advanced.tables = next;
    advanced
}

/// Windows that are over.
struct Closing {
    /// The service was held for long enough: they end.
    may: bool,
    /// Else: there are some.
    due: bool,
}

impl Closing {
    /// Whether a window ends that is over at `end_ns`.
    fn ends(&mut self, end_ns: u64, now_ns: u64) -> bool {
        let over = now_ns >= end_ns;
        self.due |= over && !self.may;
        over && self.may
    }
}

/// Without a flow table for moved slots a table is simply replaced.
fn at_once(tables: &Tables, step: &Step<'_>) -> Advanced {
    let moved = (0..step.want.len())
        .filter(|i| {
            tables
                .now
                .slots
                .get(*i)
                .is_none_or(|slot| slot.current() != step.want[*i])
        })
        .count();
    let tables = Tables {
        now: Generation::stable(step.want),
        ..Tables::default()
    };
    Advanced {
        tables,
        moved,
        ..Advanced::default()
    }
}

fn move_slots(table: &mut Generation, closing: &mut Closing, advanced: &mut Advanced, step: &Step<'_>) {
    let mut room = step.room;
    let before = std::mem::take(&mut table.since_ns);
    let mut before = before.iter().peekable();
    for (i, (slot, want)) in (0_u32..).zip(table.slots.iter_mut().zip(step.want)) {
        let (mut current, mut previous) = (slot.current(), slot.previous());
        // The usual slot.
        if current == *want && previous == *want && !slot.consult() {
            continue;
        }
        while before.next_if(|(other, _)| *other < i).is_some() {}
        let known = before.next_if(|(other, _)| *other == i);
        let mut since_ns = known.map_or(step.now_ns, |(_, since_ns)| since_ns);
        let was_open = current != previous;
        let heir = heir(previous, current, *want, step);
        let died = heir != previous;
        previous = heir;
        if was_open && !died && closing.ends(window_end(since_ns, step), step.now_ns) {
            previous = current;
        }
        if *want != current {
            let can_wait = previous == current && current != 0 && (step.takes_new)(current);
            if can_wait && room == 0 {
                advanced.waiting += 1;
            } else {
                room -= usize::from(can_wait);
                if previous == current {
                    since_ns = step.now_ns;
                }
                current = *want;
                advanced.moved += 1;
                // Nobody had it: no flow lives there.
                if previous == 0 {
                    previous = current;
                }
            }
        }
        let open = current != previous;
        if (was_open && !open) || died {
            since_ns = step.now_ns;
        }
        let clean = !open && !was_open && !died && is_clean(i, since_ns, step);
        let consult = open || died || (slot.consult() && !clean);
        *slot = Slot::new(current, previous, consult);
        if !consult {
            continue;
        }
        table.since_ns.insert(i, since_ns);
        if open {
            advanced.open += 1;
            let end = window_end(since_ns, step);
            advanced.until_ns = Some(advanced.until_ns.map_or(end, |until| until.max(end)));
        } else {
            advanced.settled += 1;
        }
    }
}

/// While a resize is under way: the new table's owners follow the scheduler, the old one's `previous` follows deaths.
fn resize(tables: &mut Tables, closing: &mut Closing, advanced: &mut Advanced, step: &Step<'_>) {
    let Some(before) = &mut tables.before else { return };
    let now = &mut tables.now;
    if step.want.len() == now.slots.len() {
        for (slot, want) in now.slots.iter_mut().zip(step.want) {
            if slot.current() != *want {
                *slot = Slot::stable(*want);
                advanced.moved += 1;
            }
        }
    }
    for (i, slot) in before.slots.iter_mut().enumerate() {
        // The flows of an old slot are in many new ones: any backend that serves will do, as long as it stays the
        // same.
        let wanted = step.want.get(i % step.want.len().max(1)).copied().unwrap_or(0);
        let heir = match slot.previous() {
            0 => wanted,
            previous => heir(previous, slot.current(), wanted, step),
        };
        *slot = Slot::new(slot.current(), heir, slot.consult());
    }
    let end = window_end(before.since_ns, step);
    if !closing.ends(end, step.now_ns) {
        advanced.open = now.slots.len();
        advanced.until_ns = Some(end);
        return;
    }
    tables.before = None;
    for (i, slot) in (0_u32..).zip(&mut now.slots) {
        *slot = Slot::new(slot.current(), slot.current(), true);
        now.since_ns.insert(i, step.now_ns);
    }
    advanced.settled = now.slots.len();
}

/// When a window that began at `since_ns` ends. The table that opened it was published a moment after that.
fn window_end(since_ns: u64, step: &Step<'_>) -> u64 {
    since_ns
        .max(step.refused_ns)
        .saturating_add(step.window_ns)
        .saturating_add(GRACE_NS)
}

/// To whom flows without an entry belong once `previous` serves them no longer: to `current` so far, because a SYN
/// whose entry was refused went there.
fn heir(previous: u32, current: u32, want: u32, step: &Step<'_>) -> u32 {
    let serves = |backend| backend != 0 && (step.standing)(backend) != Standing::Gone;
    if previous == 0 || serves(previous) {
        previous
    } else if serves(current) {
        current
    } else {
        want
    }
}

fn is_clean(slot: u32, since_ns: u64, step: &Step<'_>) -> bool {
    step.scan
        .is_some_and(|scan| scan.begun_ns >= since_ns.saturating_add(GRACE_NS) && !scan.slots.contains(&slot))
}

#[cfg(test)]
mod tests;
