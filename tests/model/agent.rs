//! The agent: the step, its writes one by one in their order, and the sweep.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use lb_common::hash;
use lb_common::layout::{FlowEntry, FlowSeen, Slot};
use lb_common::rule::{Standing, State};
use xlb::control::indices::Indices;
use xlb::control::step::{self, Before, GRACE_NS, Generation, Scan, Step, Tables};
use xlb::datapath::sweep::{self, Case, Verdict};
use xlb::model::Tracking;

use crate::kernel::{BACKENDS, KEYS, Kernel, Meta, Record, SERVICES};
use crate::mutants::Mutant;
use crate::random::mix;

pub const SECOND: u64 = 1_000_000_000;
/// Backends are the hosts 1 to this. There are more than indices: one that is gone leaves its own to others.
pub const HOSTS: usize = 10;

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
    /// The service is there.
    pub service: bool,
    pub candidates: BTreeSet<u32>,
    pub standing: [Standing; HOSTS + 1],
    pub wishes: [Wish; HOSTS + 1],
    pub size: usize,
    pub tcp: bool,
}

/// From what is known of the backends to what is desired.
pub fn desired(service: bool, wishes: &[Wish; HOSTS + 1], size: usize, tcp: bool) -> Desired {
    let hosts = 1..=HOSTS as u32;
    let ready = |b: &u32| {
        let wish = &wishes[*b as usize];
        wish.exists && wish.admin == Admin::Ready && wish.weight > 0
    };
    let mut candidates: BTreeSet<u32> = hosts
        .clone()
        .filter(|b| ready(b) && wishes[*b as usize].up)
        .collect();
    if candidates.is_empty() {
        // All are DOWN: whoever could serve, does.
        candidates = hosts.clone().filter(ready).collect();
    }
    let mut standing = [Standing::Gone; HOSTS + 1];
    for b in hosts {
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
        service,
        candidates,
        standing,
        wishes: *wishes,
        size,
        tcp,
    }
}

/// The host that is to have each slot: the highest of weighted hashes.
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
    /// An index for the service.
    AddService,
    /// An index for a backend, and its record.
    Take(u32),
    /// The record of a backend that serves, or serves again.
    Relax(u32),
    Advance,
    Before,
    Table,
    ForgetBefore,
    Publish,
    /// Packets find the service.
    AddKey,
    Tighten(u32),
    /// A backend that is gone leaves its index.
    Drop(u32),
    /// Packets do not find the service any longer.
    RemoveKey,
    RemoveTables,
    DropService,
}

/// The sweep under way.
struct Sweep {
    begun_ns: u64,
    next: usize,
    slots: BTreeSet<u32>,
    /// Indices of backends that some entry names, and of services that have one.
    named: BTreeSet<u32>,
    services: BTreeSet<u32>,
    batch: VecDeque<(usize, FlowEntry)>,
    /// What the agent knew when the batch was read, and when that was.
    service: Option<usize>,
    tables: Tables,
    standing: [Standing; BACKENDS + 1],
    closed: [bool; BACKENDS + 1],
    made_ns: u64,
}

/// What a full scan found beside slots.
#[derive(Clone, Debug, Default)]
struct Found {
    begun_ns: u64,
    named: BTreeSet<u32>,
    services: BTreeSet<u32>,
}

pub struct Agent {
    /// The index of the service.
    service: Option<usize>,
    /// It was there before this agent.
    adopted: bool,
    /// The index of each host.
    backends: BTreeMap<u32, u32>,
    service_indices: Indices<()>,
    backend_indices: Indices<u32>,
    pub tables: Tables,
    pub scan: Option<Scan>,
    found: Found,
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
        let mut service_indices = Indices::default();
        for index in (0..SERVICES).filter(|index| !kernel.services[*index].in_use) {
            service_indices.rest(index as u32, now_ns, None);
        }
        let service = (0..SERVICES).find(|index| kernel.services[*index].in_use);
        let mut backend_indices = Indices::default();
        let mut backends = BTreeMap::new();
        for index in 1..=BACKENDS as u32 {
            let Meta { host, in_use } = kernel.backends[index as usize];
            if in_use && service.is_some() {
                backends.insert(host, index);
            } else if host == 0 {
                backend_indices.add(index);
            } else {
                backend_indices.rest(index, now_ns, None);
            }
        }
        let since_ns = if mutant == Some(Mutant::RestartForgets) {
            0
        } else {
            now_ns
        };
        Self {
            service,
            adopted: service.is_some(),
            backends,
            service_indices,
            backend_indices,
            found: Found::default(),
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

    /// Begins to write what is desired; whoever there is no index for has to wait.
    pub fn tick(&mut self, mut desired: Desired, now_ns: u64) {
        self.wake(now_ns);
        self.ops.clear();
        let all = 1..=HOSTS as u32;
        let mut gone: Vec<u32> = self.backends.keys().copied().collect();
        if !desired.service {
            if self.service.is_some() {
                self.ops.extend([Op::RemoveKey, Op::RemoveTables]);
                self.ops.extend(gone.into_iter().map(Op::Drop));
                self.ops.push_back(Op::DropService);
            }
            self.desired = Some(desired);
            return;
        }
        gone.retain(|host| !desired.wishes[*host as usize].exists);
        let mut fresh: Vec<u32> = all
            .clone()
            .filter(|host| desired.wishes[*host as usize].exists && !self.backends.contains_key(host))
            .collect();
        let needed = fresh.iter().filter(|host| !self.backend_indices.remembers(host));
        if self.service.is_none() && self.service_indices.free() == 0 {
            return;
        }
        if needed.count() > self.backend_indices.free() {
            // Those that have an index go on: else windows would never end, and no index ever be free.
            for host in fresh.drain(..) {
                desired.wishes[host as usize].exists = false;
            }
            let tcp = desired.tcp;
            desired = self::desired(true, &desired.wishes, desired.size, tcp);
        }
        let tables = [Op::Advance, Op::Before, Op::Table, Op::ForgetBefore, Op::Publish];
        if self.service.is_none() {
            self.ops.push_back(Op::AddService);
        }
        self.ops.extend(fresh.into_iter().map(Op::Take));
        match self.mutant {
            Some(Mutant::StandingFirst) => {
                self.ops.extend(all.clone().map(Op::Tighten));
                self.ops.extend(tables);
                self.ops.extend(all.map(Op::Relax));
            }
            Some(Mutant::TablesSwapped) => {
                self.ops.extend(all.clone().map(Op::Relax));
                self.ops
                    .extend([Op::Advance, Op::Table, Op::Before, Op::ForgetBefore, Op::Publish]);
                self.ops.extend(all.map(Op::Tighten));
            }
            _ => {
                self.ops.extend(all.clone().map(Op::Relax));
                self.ops.extend(tables);
                self.ops.push_back(Op::AddKey);
                self.ops.extend(all.map(Op::Tighten));
            }
        }
        if !matches!(self.ops.back(), Some(Op::AddKey)) {
            self.ops.push_back(Op::AddKey);
        }
        self.ops.extend(gone.into_iter().map(Op::Drop));
        self.desired = Some(desired);
    }

    /// Gives back the indices that nothing names any longer.
    fn wake(&mut self, now_ns: u64) {
        let Found {
            begun_ns,
            named,
            services,
        } = &self.found;
        let before = self.tables.before.iter().flat_map(|before| &before.slots);
        let slots = self.tables.now.slots.iter().chain(before);
        let in_slots: BTreeSet<u32> = slots.flat_map(|slot| [slot.current(), slot.previous()]).collect();
        match self.mutant {
            Some(Mutant::IndexUnscanned) => self
                .backend_indices
                .wake(now_ns, u64::MAX, |index| in_slots.contains(&index)),
            _ => self.backend_indices.wake(now_ns, *begun_ns, |index| {
                in_slots.contains(&index) || named.contains(&index)
            }),
        };
        match self.mutant {
            Some(Mutant::ServiceIndexUnscanned) => self.service_indices.wake(now_ns, u64::MAX, |_| false),
            _ => self
                .service_indices
                .wake(now_ns, *begun_ns, |index| services.contains(&index)),
        };
    }

    /// Whether an operation would change anything that packets see, or the next agent.
    pub fn matters(&self, op: &Op, kernel: &Kernel) -> bool {
        let Some(desired) = &self.desired else {
            return false;
        };
        let standing = |host: &u32| {
            let index = self.backends.get(host)?;
            Some((kernel.standing[*index as usize], desired.standing[*host as usize]))
        };
        match op {
            Op::Relax(host) => {
                standing(host).is_some_and(|(now, wanted)| wanted == Standing::Serves && now != wanted)
            }
            Op::Tighten(host) => {
                standing(host).is_some_and(|(now, wanted)| wanted != Standing::Serves && now != wanted)
            }
            Op::AddKey => !kernel.published,
            Op::Before => self.next.before.as_ref().map(|b| &b.slots) != kernel.record.before.as_ref(),
            Op::Table => {
                self.next.now.slots != kernel.record.now
                    || self.next.before.is_some() != kernel.record.resizing
                    || self.next.held_since_ns.is_some() != kernel.record.held
            }
            Op::ForgetBefore => self.next.before.is_none() && kernel.record.before.is_some(),
            Op::AddService
            | Op::Take(_)
            | Op::Advance
            | Op::Publish
            | Op::Drop(_)
            | Op::RemoveKey
            | Op::RemoveTables
            | Op::DropService => true,
        }
    }

    /// One operation; gives back the hosts whose old flows are lost by it.
    pub fn write(&mut self, op: &Op, kernel: &mut Kernel, now_ns: u64) -> Vec<u32> {
        let Some(desired) = self.desired.clone() else {
            return Vec::new();
        };
        let everybody = || (1..=HOSTS as u32).collect();
        match op {
            Op::AddService => {
                let index = self.service_indices.take(&()).expect("looked at before").index;
                self.service = Some(index as usize);
                self.adopted = false;
                self.tables = Tables::default();
                self.scan = None;
                kernel.service = index as usize;
                kernel.record = Record::default();
                kernel.control.refused_ns = 0;
                kernel.services[kernel.service].in_use = true;
            }
            Op::Take(host) => {
                let taken = self.backend_indices.take(host).expect("looked at before");
                self.backends.insert(*host, taken.index);
                kernel.standing[taken.index as usize] = Standing::Serves;
                kernel.renew();
                kernel.backends[taken.index as usize] = Meta {
                    host: *host,
                    in_use: true,
                };
            }
            Op::Relax(host) | Op::Tighten(host) => {
                let index = self.backends[host] as usize;
                kernel.standing[index] = desired.standing[*host as usize];
                kernel.renew();
                return match op {
                    Op::Tighten(_) => vec![*host],
                    _ => Vec::new(),
                };
            }
            Op::Advance => {
                self.advance(&desired, kernel, now_ns);
                let lost = (1..=HOSTS as u32).filter(|b| desired.standing[*b as usize] != Standing::Serves);
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
            Op::AddKey => kernel.published = true,
            Op::Drop(host) => {
                let Some(index) = self.backends.remove(host) else {
                    return Vec::new();
                };
                kernel.standing[index as usize] = Standing::Gone;
                kernel.renew();
                kernel.backends[index as usize].in_use = false;
                match self.mutant {
                    Some(Mutant::IndexAtOnce) => self.backend_indices.add(index),
                    _ => self.backend_indices.rest(index, now_ns, Some(*host)),
                }
                return vec![*host];
            }
            Op::RemoveKey => {
                kernel.published = false;
                return everybody();
            }
            Op::RemoveTables => {
                kernel.record = Record::default();
                self.tables = Tables::default();
                return everybody();
            }
            Op::DropService => {
                let index = self.service.take().expect("it was there");
                kernel.services[index].in_use = false;
                match self.mutant {
                    Some(Mutant::ServiceIndexAtOnce) => self.service_indices.add(index as u32),
                    _ => self.service_indices.rest(index as u32, now_ns, None),
                }
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
        let size = if in_force == 0 { desired.size } else { size };
        let index = |host: &u32| self.backends.get(host).copied().unwrap_or(0);
        let want: Vec<u32> = owners(desired, size).iter().map(index).collect();
        let hosts: BTreeMap<u32, u32> = self
            .backends
            .iter()
            .map(|(host, index)| (*index, *host))
            .collect();
        let host = |index: u32| hosts.get(&index).copied();
        let standing = |index| host(index).map_or(Standing::Gone, |host| desired.standing[host as usize]);
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
                    if keeps { Standing::Serves } else { standing(b) }
                },
                takes_new: &|b| host(b).is_some_and(|host| desired.candidates.contains(&host)),
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
        if self.adopted && in_force == 0 && self.mutant != Some(Mutant::FoundClean) {
            self.next.now.doubt(now_ns);
        }
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
            named: BTreeSet::new(),
            services: BTreeSet::new(),
            batch: VecDeque::new(),
            service: self.service,
            tables: self.tables.clone(),
            standing: kernel.standing,
            closed: [false; BACKENDS + 1],
            made_ns: now_ns,
        });
        if let Some((at, read)) = sweep.batch.pop_front() {
            self.take_in(&sweep, kernel, at, read, now_ns);
        } else if sweep.next < SERVICES * KEYS {
            sweep.service = self.service;
            sweep.tables = self.tables.clone();
            sweep.standing = kernel.standing;
            sweep.closed = [false; BACKENDS + 1];
            for (host, index) in &self.backends {
                sweep.closed[*index as usize] = self.is_closed(*host);
            }
            sweep.made_ns = now_ns;
            while sweep.next < SERVICES * KEYS && sweep.batch.len() < batch {
                let at = sweep.next;
                sweep.next += 1;
                let Some(entry) = kernel.flows[at] else { continue };
                sweep.named.insert(entry.owner.backend());
                if entry.seen.state().is_pending() {
                    sweep.named.insert(entry.before);
                }
                sweep.services.insert((at / KEYS) as u32);
                let slots = &sweep.tables.now.slots;
                if sweep.service == Some(at / KEYS) && !slots.is_empty() {
                    let slot = hash::slot(kernel.hash_at(at), slots.len() as u32);
                    let own = slots[slot as usize].current() == entry.owner.backend();
                    if !(own && self.mutant == Some(Mutant::OwnEntriesStay)) {
                        sweep.slots.insert(slot);
                    }
                }
                sweep.batch.push_back((at, entry));
            }
        } else {
            self.found = Found {
                begun_ns: sweep.begun_ns,
                named: sweep.named,
                services: sweep.services,
            };
            self.scan = Some(Scan {
                begun_ns: sweep.begun_ns,
                slots: sweep.slots,
            });
            return true;
        }
        self.sweep = Some(sweep);
        false
    }

    /// Whether a host takes no new flows.
    pub fn is_closed(&self, host: u32) -> bool {
        let desired = self.desired.as_ref();
        desired.is_some_and(|desired| !desired.candidates.contains(&host))
    }

    fn take_in(&self, sweep: &Sweep, kernel: &mut Kernel, at: usize, read: FlowEntry, now_ns: u64) {
        let stays = |entry: &FlowEntry| self.stays(sweep, kernel, at, entry, now_ns);
        if stays(&read)
            || kernel.flows[at].as_ref().is_some_and(stays) && self.mutant != Some(Mutant::NotPutBack)
        {
            return;
        }
        let taken = kernel.take(at);
        if let Some(entry) = taken
            && self.stays(sweep, kernel, at, &entry, now_ns)
            && self.mutant != Some(Mutant::NotPutBack)
        {
            kernel.put_back(at, entry);
        }
    }

    fn stays(&self, sweep: &Sweep, kernel: &Kernel, at: usize, entry: &FlowEntry, now_ns: u64) -> bool {
        let mut entry = *entry;
        let hash = kernel.hash_at(at);
        let its_service = sweep.service == Some(at / KEYS);
        let dead_before_ns = |b: u32| match sweep.standing[b as usize] {
            // Its service is gone.
            _ if !its_service => sweep.made_ns,
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
        // The tables are read as packets read them.
        let slots = &kernel.record.now;
        let case = Case {
            entry,
            // A packet that has found the entry may not have written to it yet.
            now_ns: now_ns
                + if self.mutant == Some(Mutant::NoGrace) {
                    GRACE_NS
                } else {
                    0
                },
            idle_ns: if its_service { self.window_ns } else { u64::MAX },
            dead_before_ns: dead_before_ns(entry.owner.backend()),
            other_dead_before_ns: other.then(|| dead_before_ns(entry.before)),
            closed: sweep.closed[entry.owner.backend() as usize],
            slot: (!kernel.record.resizing)
                .then(|| slots.get(hash::slot(hash, slots.len() as u32) as usize).copied())
                .flatten()
                .filter(|_| its_service && kernel.service == at / KEYS),
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
