//! What the kernel holds, and the program's way of a packet through it. A packet may be taken apart: it has read the
//! maps, and writes a moment later, while other packets pass and the agent goes on.

use lb_common::hash;
use lb_common::layout::{FlowControl, FlowEntry, FlowOwner, FlowSeen, Slot};
use lb_common::rule::{self, Decision, Entry, Packet, Place, Standing, State, Write};
use lb_tests::KEY;

use crate::mutants::Mutant;

/// Backends have the indices 1 to this.
pub const BACKENDS: usize = 8;
/// Addresses and ports of clients.
pub const KEYS: usize = 320;

/// The port of the service.
pub const PORT: u16 = 80;

/// Address (198.18.0.0/24) and port of a client.
pub fn client(key: usize) -> ([u8; 4], u16) {
    ([198, 18, 0, (key % 200) as u8], 1024 + (key / 200) as u16)
}

/// The hash of a client's flow.
pub fn hash_of(key: usize) -> u32 {
    let (address, port) = client(key);
    let ([a, b], [c, d]) = (port.to_be_bytes(), PORT.to_be_bytes());
    hash::flow_v4(
        &KEY,
        u32::from_le_bytes(address),
        u32::from_le_bytes([a, b, c, d]),
    )
}

/// The tables of the service as its record names them.
#[derive(Clone, Default)]
pub struct Record {
    pub now: Vec<Slot>,
    pub before: Option<Vec<Slot>>,
    pub resizing: bool,
    pub held: bool,
}

impl Record {
    /// Where a flow stands, as one packet reads it.
    pub fn place(&self, hash: u32) -> Place {
        let slot = |slots: &[Slot]| slots[hash::slot(hash, slots.len() as u32) as usize];
        let now = slot(&self.now);
        let slot = match &self.before {
            Some(before) if self.resizing => Slot::resizing(now, slot(before)),
            _ => now,
        };
        Place {
            slot,
            resizing: self.resizing,
            held: self.held,
        }
    }
}

pub struct Kernel {
    pub record: Record,
    pub standing: [Standing; BACKENDS + 1],
    pub flows: Vec<Option<FlowEntry>>,
    pub used: usize,
    pub capacity: usize,
    pub control: FlowControl,
    pub hashes: Vec<u32>,
    /// How often an element was made for each key.
    elements: Vec<u64>,
    pub mutant: Option<Mutant>,
}

/// A packet between reading and writing.
#[derive(Clone, Copy, Debug)]
pub struct Passing {
    pub key: usize,
    pub packet: Packet,
    pub place: Place,
    /// Which element of the map was found.
    element: u64,
    decision: Decision,
}

impl Passing {
    /// Whether it is to write in place of the entry that was found.
    pub fn takes_over(&self) -> bool {
        matches!(self.decision.write, Write::Replace(_) | Write::Bury(_))
    }
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passed {
    pub backend: u32,
    pub refused: bool,
    /// It was a SYN that follows an established entry.
    pub followed: bool,
}

pub fn entry_of(entry: &FlowEntry) -> Entry {
    Entry {
        backend: entry.owner.backend(),
        state: entry.seen.state(),
        isn: entry.isn,
        before: entry.before,
    }
}

impl Kernel {
    pub fn new(owners: &[u32], capacity: usize, mutant: Option<Mutant>) -> Self {
        Self {
            record: Record {
                now: owners.iter().map(|owner| Slot::stable(*owner)).collect(),
                ..Record::default()
            },
            standing: [Standing::Gone; BACKENDS + 1],
            flows: vec![None; KEYS],
            used: 0,
            capacity,
            control: FlowControl::default(),
            elements: vec![0; KEYS],
            hashes: (0..KEYS).map(hash_of).collect(),
            mutant,
        }
    }

    pub fn entry(&self, key: usize) -> Option<Entry> {
        self.flows[key].as_ref().map(entry_of)
    }

    fn decide(&self, place: Place, key: usize, packet: Packet) -> (Option<Entry>, Decision) {
        let entry = self.entry(key);
        let standing = |backend: u32| self.standing[backend as usize];
        let decision = match self.mutant {
            None => rule::decide(place, entry, packet, standing),
            Some(mutant) => mutant.decide(place, entry, packet, standing),
        };
        (entry, decision)
    }

    /// The packet reads.
    pub fn enter(&self, key: usize, packet: Packet) -> Passing {
        let place = self.record.place(self.hashes[key]);
        if !place.slot.consult() && !place.resizing {
            let decision = Decision {
                backend: place.slot.current(),
                write: Write::Nothing,
                otherwise: place.slot.current(),
            };
            return Passing {
                key,
                packet,
                place,
                element: 0,
                decision,
            };
        }
        let (_, decision) = self.decide(place, key, packet);
        Passing {
            key,
            packet,
            place,
            element: self.elements[key],
            decision,
        }
    }

    /// Where a packet would go; nothing is written.
    pub fn lookup(&self, key: usize, packet: Packet) -> u32 {
        self.enter(key, packet).decision.backend
    }

    /// The packet writes and leaves.
    pub fn leave(&mut self, passing: &Passing, now_ns: u64) -> Passed {
        let Passing {
            key,
            packet,
            place,
            mut element,
            mut decision,
        } = *passing;
        let followed = |entry: Option<Entry>, write| {
            matches!(packet, Packet::Syn(_))
                && write == Write::Nothing
                && entry.is_some_and(|entry| entry.state == State::Established)
        };
        let mut entry = self.entry(key);
        for _ in 0..2 {
            let went = Passed {
                backend: decision.backend,
                refused: false,
                followed: followed(entry, decision.write),
            };
            match decision.write {
                Write::Nothing => return went,
                Write::Touch(state) => {
                    // The store hits the element that was found, not one that has taken its place.
                    let later = |entry: &FlowEntry| state.is_pending() && !entry.seen.state().is_pending();
                    let older =
                        |entry: &&mut FlowEntry| self.mutant == Some(Mutant::TouchedBack) || !later(entry);
                    if self.elements[key] == element
                        && let Some(entry) = self.flows[key].as_mut().filter(older)
                    {
                        entry.seen = FlowSeen::new(state, now_ns);
                    }
                    return went;
                }
                Write::Insert(new) => {
                    if !self.take_allowance(packet) {
                        return self.refuse(packet, &decision, now_ns);
                    }
                    let overwrites = self.mutant == Some(Mutant::InsertOverwrites);
                    if self.flows[key].is_none() || overwrites {
                        if self.flows[key].is_none() && self.used >= self.capacity && !self.evict() {
                            return self.refuse(packet, &decision, now_ns);
                        }
                        self.put(key, &new, now_ns);
                        return went;
                    }
                }
                Write::Replace(new) => {
                    if self.flows[key].is_some() {
                        self.put(key, &new, now_ns);
                        return went;
                    }
                }
                Write::Bury(new) => {
                    if self.flows[key].is_none() && self.used >= self.capacity {
                        return self.refuse(packet, &decision, now_ns);
                    }
                    self.put(key, &new, now_ns);
                    return went;
                }
            }
            (entry, decision) = self.decide(place, key, packet);
            element = self.elements[key];
        }
        Passed {
            backend: 0,
            refused: true,
            followed: false,
        }
    }

    /// The packet passes at once.
    pub fn pass(&mut self, key: usize, packet: Packet, now_ns: u64) -> Passed {
        let passing = self.enter(key, packet);
        self.leave(&passing, now_ns)
    }

    fn put(&mut self, key: usize, entry: &Entry, now_ns: u64) {
        let Entry {
            backend,
            state,
            isn,
            before,
        } = *entry;
        self.used += usize::from(self.flows[key].is_none());
        self.elements[key] += 1;
        self.flows[key] = Some(FlowEntry {
            owner: FlowOwner::new(self.hashes[key], backend),
            seen: FlowSeen::new(state, now_ns),
            isn,
            before,
        });
    }

    fn take_allowance(&mut self, packet: Packet) -> bool {
        let left = match packet {
            Packet::Syn(_) => &mut self.control.syn_left,
            Packet::Datagram => &mut self.control.udp_left,
            _ => &mut self.control.data_left,
        };
        let taken = *left != 0;
        *left = left.saturating_sub(1);
        taken
    }

    fn refuse(&mut self, packet: Packet, decision: &Decision, now_ns: u64) -> Passed {
        let noted = decision.otherwise != 0 && !matches!(packet, Packet::Datagram | Packet::Error);
        if noted && self.mutant != Some(Mutant::RefusalNotNoted) {
            self.control.refused_ns = now_ns;
        }
        Passed {
            backend: decision.otherwise,
            refused: true,
            followed: false,
        }
    }

    fn evict(&mut self) -> bool {
        if self.mutant != Some(Mutant::Evict) {
            return false;
        }
        let victim = self.flows.iter().position(Option::is_some);
        if let Some(victim) = victim {
            self.take(victim);
        }
        victim.is_some()
    }

    /// Takes an entry out and gives it back.
    pub fn take(&mut self, key: usize) -> Option<FlowEntry> {
        let entry = self.flows[key].take();
        self.used -= usize::from(entry.is_some());
        entry
    }

    /// Puts an entry where there is none.
    pub fn put_back(&mut self, key: usize, entry: FlowEntry) {
        if self.flows[key].is_none() {
            self.flows[key] = Some(entry);
            self.elements[key] += 1;
            self.used += 1;
        }
    }
}
