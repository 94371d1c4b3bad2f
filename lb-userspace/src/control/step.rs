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
//!        ▲        settled)            └──────────────┘                        └─────────────────┘
//!        └── a full scan, begun after that, finds no entry that points elsewhere ─────┘
//! ```
//!
//! A window lasts as long as a flow may be idle: then whatever still lives on `previous` has been seen, and has an
//! entry. It starts when the slot opens, or at the last refused entry of the service, whichever is later. A second
//! move before it ended does not restart it: a slot under steady change would stay open for ever.
//!
//! A move that can wait (the owner so far takes new flows as well as ever: a backend was added, came back, or has
//! another weight) opens only as many slots as the flow table has room for; the others are *waiting*. One that
//! cannot (the owner so far is drained or DOWN) is made at once.
//!
//! **Resizing** keeps the old table beside the new one for a window: where a flow without an entry belongs is
//! `previous` of its slot in the old table, `current` is that of its slot in the new one ([`Slot::resizing`]). A
//! flow is known to have been seen only while both stayed as they are, so the window starts anew with every change of
//! either; moves that can wait do, and so does another resize.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::layout::Slot;
use lb_common::rule::Standing;

use crate::model::Tracking;

/// A packet that read a slot before it was replaced has left the program after this time, in nanoseconds: its entry
/// is in the flow table by then.
pub const GRACE_NS: u64 = 1_000_000_000;

/// A lookup table, and since when its slots are as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Generation {
    pub slots: Vec<Slot>,
    /// Of slots with `consult`: when they opened (`current != previous`) or settled, `CLOCK_MONOTONIC`.
    pub since_ns: BTreeMap<u32, u64>,
}

impl Generation {
    /// A table in which no slot has moved.
    #[must_use]
    pub fn stable(owners: &[u32]) -> Self {
        Self {
            slots: owners.iter().map(|owner| Slot::stable(*owner)).collect(),
            since_ns: BTreeMap::new(),
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
}

/// The tables of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    pub now: Generation,
    /// While a resize is under way.
    pub before: Option<Before>,
}

/// The table before a resize. Only `previous` and `consult` of its slots count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Before {
    pub slots: Vec<Slot>,
    /// When the resize began, or an owner in either table changed last, `CLOCK_MONOTONIC`.
    pub since_ns: u64,
}

/// A full scan of the flow table.
#[derive(Clone, Debug, Default)]
pub struct Scan {
    /// When it began, `CLOCK_MONOTONIC`.
    pub begun_ns: u64,
    /// Slots, of the table in force, of flows whose entry names another backend than `current`.
    pub foreign: BTreeSet<u32>,
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
    /// How many slots may be opened for moves that can wait.
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
    /// Slots that are settled, but may have entries that point elsewhere.
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
    if next.before.is_some() {
        resize(&mut next, &mut advanced, step);
    } else {
        move_slots(&mut next.now, &mut advanced, step);
    }
    advanced.tables = next;
    advanced
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
        before: None,
    };
    Advanced {
        tables,
        moved,
        ..Advanced::default()
    }
}

fn move_slots(table: &mut Generation, advanced: &mut Advanced, step: &Step<'_>) {
    let mut room = step.room;
    for (i, (slot, want)) in (0_u32..).zip(table.slots.iter_mut().zip(step.want)) {
        let (mut current, mut previous) = (slot.current(), slot.previous());
        // The usual slot.
        if current == *want && previous == *want && !slot.consult() {
            continue;
        }
        let mut since_ns = table.since_ns.get(&i).copied().unwrap_or(step.now_ns);
        let was_open = current != previous;
        if was_open && step.now_ns >= window_end(since_ns, step) {
            previous = current;
        }
        previous = heir(previous, current, *want, step);
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
        if was_open && !open {
            since_ns = step.now_ns;
        }
        let clean = !open && !was_open && slot.consult() && is_clean(i, since_ns, step);
        let consult = open || (slot.consult() && !clean);
        *slot = Slot::new(current, previous, consult);
        if !consult {
            table.since_ns.remove(&i);
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

/// While a resize is under way: the new table's owners follow the scheduler where they must, the old one's
/// `previous` follows deaths.
fn resize(tables: &mut Tables, advanced: &mut Advanced, step: &Step<'_>) {
    let Some(before) = &mut tables.before else { return };
    let size = tables.now.slots.len();
    let mut changed = false;
    if step.want.len() == size {
        for (i, (slot, want)) in (0_u32..).zip(tables.now.slots.iter_mut().zip(step.want)) {
            let current = slot.current();
            if current == *want {
                continue;
            }
            if current != 0 && (step.takes_new)(current) {
                advanced.waiting += 1;
                continue;
            }
            *slot = Slot::new(*want, *want, true);
            tables.now.since_ns.insert(i, step.now_ns);
            advanced.moved += 1;
            changed = true;
        }
    }
    let serves = |backend: u32| backend != 0 && (step.standing)(backend) != Standing::Gone;
    for (i, slot) in before.slots.iter_mut().enumerate() {
        let previous = slot.previous();
        if previous == 0 || serves(previous) {
            continue;
        }
        // Any backend that serves will do, as long as it stays the same.
        let wanted = step.want.get(i % step.want.len().max(1)).copied().unwrap_or(0);
        let heir = if serves(slot.current()) {
            slot.current()
        } else {
            wanted
        };
        changed |= heir != previous;
        *slot = Slot::new(slot.current(), heir, slot.consult());
    }
    if changed {
        before.since_ns = step.now_ns;
    }
    let end = window_end(before.since_ns, step);
    if step.now_ns < end {
        advanced.open = size;
        advanced.until_ns = Some(end);
        return;
    }
    tables.before = None;
    for (i, slot) in (0_u32..).zip(&mut tables.now.slots) {
        *slot = Slot::new(slot.current(), slot.current(), true);
        tables.now.since_ns.insert(i, step.now_ns);
    }
    advanced.settled = size;
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
    step.scan.is_some_and(|scan| {
        scan.begun_ns >= since_ns.saturating_add(GRACE_NS) && !scan.foreign.contains(&slot)
    })
}

#[cfg(test)]
mod tests;
