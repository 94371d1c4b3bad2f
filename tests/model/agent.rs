//! The agent: the step, its writes one by one in their order, and the sweep.

use std::collections::{BTreeSet, VecDeque};

use lb_common::hash;
use lb_common::layout::{FlowEntry, FlowSeen, Slot};
use lb_common::rule::{Standing, State};
use xlb::control::step::{self, Before, GRACE_NS, Generation, Scan, Step, Tables};
use xlb::datapath::sweep::{self, Case, Verdict};
use xlb::model::Tracking;

use crate::kernel::{BACKENDS, KEYS, Kernel, Record};
use crate::mutants::Mutant;
use crate::random::mix;

pub const SECOND: u64 = 1_000_000_000;

/// What operators and checks say of a backend.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    pub exists: bool,
    pub up: bool,
    /// DOWN, but its old flows stay.
    pub keep: bool,
    /// DOWN: its old flows are reset.
    pub resets: bool,
    pub admin: Admin,
    pub weight: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admin {
    Ready,
    Drain,
    Maint,
}

/// What the tables and records are to be.
#[derive(Clone, Debug)]
pub struct Desired {
    pub candidates: BTreeSet<u32>,
    pub standing: [Standing; BACKENDS + 1],
    pub wishes: [Wish; BACKENDS + 1],
    pub size: usize,
}

/// From what is known of the backends to what is desired.
pub fn desired(wishes: &[Wish; BACKENDS + 1], size: usize, tcp: bool) -> Desired {
    let indices = 1..=BACKENDS as u32;
    let ready = |b: &u32| {
        let wish = &wishes[*b as usize];
        wish.exists && wish.admin == Admin::Ready && wish.weight > 0
    };
    let mut candidates: BTreeSet<u32> = indices
        .clone()
        .filter(|b| ready(b) && wishes[*b as usize].up)
        .collect();
    if candidates.is_empty() {
        // All are DOWN: whoever could serve, does.
        candidates = indices.clone().filter(ready).collect();
    }
    let mut standing = [Standing::Gone; BACKENDS + 1];
    for b in indices {
        let wish = &wishes[b as usize];
        standing[b as usize] = match wish {
            Wish { exists: false, .. }
            | Wish {
                admin: Admin::Maint, ..
            } => Standing::Gone,
            Wish { up: true, .. } | Wish { keep: true, .. } => Standing::Serves,
            _ if candidates.contains(&b) => Standing::Serves,
            Wish { resets: true, .. } if tcp => Standing::Resets,
            _ => Standing::Gone,
        };
    }
    Desired {
        candidates,
        standing,
        wishes: *wishes,
        size,
    }
}

/// Who is to have each slot: the highest of weighted hashes.
fn owners(desired: &Desired, size: usize) -> Vec<u32> {
    (0..size)
        .map(|slot| {
            let score = |b: &u32| {
                let wish = &desired.wishes[*b as usize];
                let hash = mix((slot as u64) << 32 | (size as u64) << 16 | u64::from(*b));
                // ln of a number in (0, 1), over the weight.
                -((hash >> 11) as f64 / (1_u64 << 53) as f64).ln() / wish.weight as f64
            };
            let best = desired
                .candidates
                .iter()
                .min_by(|a, b| score(a).total_cmp(&score(b)));
            best.copied().unwrap_or(0)
        })
        .collect()
}

/// One write to the kernel, or what the agent does between two.
#[derive(Clone, Debug)]
pub enum Op {
    /// The record of a backend that serves, or serves again.
    Relax(u32),
    Advance,
    Before,
    Table,
    ForgetBefore,
    Publish,
    Tighten(u32),
}

/// The sweep under way.
struct Sweep {
    begun_ns: u64,
    next: usize,
    slots: BTreeSet<u32>,
    batch: VecDeque<(usize, FlowEntry)>,
    /// What the agent knew when the batch was read, and when that was.
    tables: Tables,
    standing: [Standing; BACKENDS + 1],
    made_ns: u64,
}

pub struct Agent {
    pub tables: Tables,
    pub scan: Option<Scan>,
    pub ops: VecDeque<Op>,
    pub desired: Option<Desired>,
    next: Tables,
    step_ns: u64,
    sweep: Option<Sweep>,
    pub window_ns: u64,
    pub room: usize,
    pub open: usize,
    pub waiting: usize,
    mutant: Option<Mutant>,
}

impl Agent {
    /// The next agent: the kernel's tables are the truth.
    pub fn adopt(kernel: &Kernel, window_ns: u64, now_ns: u64, mutant: Option<Mutant>) -> Self {
        let record = &kernel.record;
        let since_ns = if mutant == Some(Mutant::RestartForgets) {
            0
        } else {
            now_ns
        };
        Self {
            tables: Tables {
                now: Generation::found(record.now.clone(), since_ns),
                before: record
                    .before
                    .clone()
                    .filter(|_| record.resizing)
                    .map(|slots| Before { slots, since_ns }),
                held_since_ns: record.held.then_some(now_ns),
            },
            scan: None,
            ops: VecDeque::new(),
            desired: None,
            next: Tables::default(),
            step_ns: 0,
            sweep: None,
            window_ns,
            room: usize::MAX,
            open: 0,
            waiting: 0,
            mutant,
        }
    }

    /// Begins to write what is desired.
    pub fn tick(&mut self, desired: Desired) {
        let all = 1..=BACKENDS as u32;
        let mut ops: Vec<Op> = Vec::new();
        let tables = [Op::Advance, Op::Before, Op::Table, Op::ForgetBefore, Op::Publish];
        match self.mutant {
            Some(Mutant::StandingFirst) => {
                ops.extend(all.clone().map(Op::Tighten));
                ops.extend(tables);
                ops.extend(all.map(Op::Relax));
            }
            Some(Mutant::TablesSwapped) => {
                ops.extend(all.clone().map(Op::Relax));
                ops.extend([Op::Advance, Op::Table, Op::Before, Op::ForgetBefore, Op::Publish]);
                ops.extend(all.map(Op::Tighten));
            }
            _ => {
                ops.extend(all.clone().map(Op::Relax));
                ops.extend(tables);
                ops.extend(all.map(Op::Tighten));
            }
        }
        self.ops = ops.into();
        self.desired = Some(desired);
    }

    /// Whether an operation would change anything that packets see.
    pub fn matters(&self, op: &Op, kernel: &Kernel) -> bool {
        let Some(desired) = &self.desired else {
            return false;
        };
        let standing = |b: &u32| (kernel.standing[*b as usize], desired.standing[*b as usize]);
        match op {
            Op::Relax(b) => {
                let (now, wanted) = standing(b);
                wanted == Standing::Serves && now != wanted
            }
            Op::Tighten(b) => {
                let (now, wanted) = standing(b);
                wanted != Standing::Serves && now != wanted
            }
            Op::Advance | Op::Publish => true,
            Op::Before => self.next.before.as_ref().map(|b| &b.slots) != kernel.record.before.as_ref(),
            Op::Table => {
                self.next.now.slots != kernel.record.now
                    || self.next.before.is_some() != kernel.record.resizing
                    || self.next.held_since_ns.is_some() != kernel.record.held
            }
            Op::ForgetBefore => self.next.before.is_none() && kernel.record.before.is_some(),
        }
    }

    /// One operation; gives back the backends whose old flows are lost by it.
    pub fn write(&mut self, op: &Op, kernel: &mut Kernel, now_ns: u64) -> Vec<u32> {
        let Some(desired) = self.desired.clone() else {
            return Vec::new();
        };
        match op {
            Op::Relax(b) => kernel.standing[*b as usize] = desired.standing[*b as usize],
            Op::Tighten(b) => {
                kernel.standing[*b as usize] = desired.standing[*b as usize];
                return vec![*b];
            }
            Op::Advance => {
                self.advance(&desired, kernel, now_ns);
                let lost =
                    (1..=BACKENDS as u32).filter(|b| desired.standing[*b as usize] != Standing::Serves);
                return lost.collect();
            }
            Op::Before => {
                if let Some(before) = &self.next.before {
                    kernel.record.before = Some(before.slots.clone());
                }
            }
            Op::Table => {
                kernel.record = Record {
                    now: self.next.now.slots.clone(),
                    before: kernel.record.before.take(),
                    resizing: self.next.before.is_some(),
                    held: self.next.held_since_ns.is_some(),
                }
            }
            Op::ForgetBefore => {
                if self.next.before.is_none() {
                    kernel.record.before = None;
                }
            }
            Op::Publish => {
                self.tables = std::mem::take(&mut self.next);
                date(&mut self.tables, self.step_ns, now_ns);
            }
        }
        Vec::new()
    }

    fn advance(&mut self, desired: &Desired, kernel: &Kernel, now_ns: u64) {
        let resizing = self.tables.before.is_some();
        let in_force = self.tables.now.slots.len();
        let size = if resizing || desired.candidates.is_empty() {
            in_force
        } else {
            desired.size
        };
        let want = owners(desired, size);
        let mut tables = self.tables.clone();
        let mut scan = self.scan.clone();
        match self.mutant {
            Some(Mutant::NoHold) => tables.held_since_ns = Some(0),
            Some(Mutant::NoScan) => {
                scan = Some(Scan {
                    begun_ns: u64::MAX,
                    slots: BTreeSet::new(),
                });
            }
            Some(Mutant::ScanTooEarly) => {
                if let Some(scan) = &mut scan {
                    scan.begun_ns = u64::MAX;
                }
            }
            _ => {}
        }
        let keeps = self.mutant == Some(Mutant::DeathKeepsPrevious);
        let advanced = step::advance(
            &tables,
            &Step {
                tracking: Tracking::Moved,
                want: &want,
                standing: &|b| {
                    if keeps {
                        Standing::Serves
                    } else {
                        desired.standing[b as usize]
                    }
                },
                takes_new: &|b| desired.candidates.contains(&b),
                now_ns,
                window_ns: if self.mutant == Some(Mutant::NoWindow) {
                    0
                } else {
                    self.window_ns
                },
                refused_ns: if self.mutant == Some(Mutant::RefusalForgotten) {
                    0
                } else {
                    kernel.control.refused_ns
                },
                room: self.room,
                scan: scan.as_ref(),
            },
        );
        self.open = advanced.open;
        self.waiting = advanced.waiting;
        self.next = advanced.tables;
        self.step_ns = now_ns;
        if self.mutant == Some(Mutant::DeathForgetsEntries)
            && tables.now.slots.len() == self.next.now.slots.len()
        {
            for (old, new) in tables.now.slots.iter().zip(&mut self.next.now.slots) {
                if !old.consult() && new.current() == new.previous() {
                    *new = Slot::stable(new.current());
                }
            }
        }
    }

    /// A little of a sweep: a batch is read, or one of its entries is judged. `true` when a scan ended.
    pub fn sweep(&mut self, kernel: &mut Kernel, now_ns: u64, batch: usize) -> bool {
        let mut sweep = self.sweep.take().unwrap_or_else(|| Sweep {
            begun_ns: now_ns,
            next: 0,
            slots: BTreeSet::new(),
            batch: VecDeque::new(),
            tables: self.tables.clone(),
            standing: kernel.standing,
            made_ns: now_ns,
        });
        if let Some((key, read)) = sweep.batch.pop_front() {
            self.take_in(&sweep, kernel, key, read, now_ns);
        } else if sweep.next < KEYS {
            sweep.tables = self.tables.clone();
            sweep.standing = kernel.standing;
            sweep.made_ns = now_ns;
            while sweep.next < KEYS && sweep.batch.len() < batch {
                let key = sweep.next;
                sweep.next += 1;
                let Some(entry) = kernel.flows[key] else { continue };
                let slot = hash::slot(kernel.hashes[key], sweep.tables.now.slots.len() as u32);
                let own = sweep.tables.now.slots[slot as usize].current() == entry.owner.backend();
                if !(own && self.mutant == Some(Mutant::OwnEntriesStay)) {
                    sweep.slots.insert(slot);
                }
                sweep.batch.push_back((key, entry));
            }
        } else {
            self.scan = Some(Scan {
                begun_ns: sweep.begun_ns,
                slots: sweep.slots,
            });
            return true;
        }
        self.sweep = Some(sweep);
        false
    }

    fn take_in(&self, sweep: &Sweep, kernel: &mut Kernel, key: usize, read: FlowEntry, now_ns: u64) {
        let stays = |entry: &FlowEntry| self.stays(sweep, kernel.hashes[key], entry, now_ns);
        if stays(&read)
            || kernel.flows[key].as_ref().is_some_and(stays) && self.mutant != Some(Mutant::NotPutBack)
        {
            return;
        }
        let taken = kernel.take(key);
        if let Some(entry) = taken
            && self.stays(sweep, kernel.hashes[key], &entry, now_ns)
            && self.mutant != Some(Mutant::NotPutBack)
        {
            kernel.put_back(key, entry);
        }
    }

    fn stays(&self, sweep: &Sweep, hash: u32, entry: &FlowEntry, now_ns: u64) -> bool {
        let mut entry = *entry;
        let dead_before_ns = |b: u32| match sweep.standing[b as usize] {
            // It may have come back since, and taken flows.
            Standing::Gone => sweep.made_ns,
            _ => 0,
        };
        let state = entry.seen.state();
        let mut other = state.is_pending() && entry.before != 0;
        match self.mutant {
            Some(Mutant::ContestedExpires) if state == State::Contested => {
                entry.seen = FlowSeen::new(State::Unconfirmed, entry.seen.at_ns());
            }
            Some(Mutant::SharedRedundant) => {
                other &= sweep.standing[entry.owner.backend() as usize] == Standing::Gone;
            }
            _ => {}
        }
        let slots = &sweep.tables.now.slots;
        let case = Case {
            entry,
            // A packet that has found the entry may not have written to it yet.
            now_ns: now_ns
                + if self.mutant == Some(Mutant::NoGrace) {
                    GRACE_NS
                } else {
                    0
                },
            idle_ns: self.window_ns,
            dead_before_ns: dead_before_ns(entry.owner.backend()),
            other_dead_before_ns: other.then(|| dead_before_ns(entry.before)),
            slot: sweep
                .tables
                .before
                .is_none()
                .then(|| slots[hash::slot(hash, slots.len() as u32) as usize]),
        };
        sweep::judge(&case) == Verdict::Keep
    }

    /// Slots that are not as they are to stay.
    pub fn unsettled(&self) -> usize {
        let open = |slot: &&Slot| slot.current() != slot.previous();
        let resizing = if self.tables.before.is_some() {
            self.tables.now.slots.len()
        } else {
            0
        };
        self.tables.now.slots.iter().filter(open).count() + resizing + self.waiting
    }
}

fn date(tables: &mut Tables, step_ns: u64, published_ns: u64) {
    let since = tables.now.since_ns.values_mut();
    let before = tables.before.iter_mut().map(|before| &mut before.since_ns);
    for since_ns in since.chain(before).chain(&mut tables.held_since_ns) {
        if *since_ns == step_ns {
            *since_ns = published_ns;
        }
    }
}
