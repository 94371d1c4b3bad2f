//! What the kernel holds, and the program's way of a packet through it. A packet may be taken apart: it has read the
//! maps, and writes a moment later, while other packets pass and the agent goes on.

use lb_common::hash;
use lb_common::hint;
use lb_common::layout::{FlowControl, FlowEntry, FlowOwner, FlowSeen, Slot};
use lb_common::rule::{self, Decision, Entry, Packet, Place, Standing, State, Write};
use lb_tests::KEY;

use crate::mutants::Mutant;

/// Backends have the indices 1 to this.
pub const BACKENDS: usize = 8;
/// The service has one of so many indices.
pub const SERVICES: usize = 3;
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

/// What the metadata of an index say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Who had it last, also the one that packets are sent to; 0: nobody ever.
    pub host: u32,
    pub in_use: bool,
}

/// Lines of hints: so few that flows share them.
const LINES: usize = 64;

/// What a hint is made of and holds by: whatever else is mixed into it is the flow's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    era: u64,
    sequence: u64,
    epoch: u64,
}

/// Where a flow with an entry goes.
#[derive(Clone, Copy, Debug)]
struct Hint {
    backend: u32,
    stamp: Stamp,
}

pub struct Kernel {
    /// The tables of the service that there is; of others there are none.
    pub record: Record,
    /// Its index.
    pub service: usize,
    /// Packets find it.
    pub published: bool,
    pub standing: [Standing; BACKENDS + 1],
    pub backends: [Meta; BACKENDS + 1],
    pub services: [Meta; SERVICES],
    /// By [`Kernel::at`].
    pub flows: Vec<Option<FlowEntry>>,
    pub used: usize,
    pub capacity: usize,
    pub control: FlowControl,
    /// By [`Kernel::at`]: each flow has a place of its own, so there are more of them than in the program.
    hints: Vec<Option<Hint>>,
    sequences: [u64; LINES],
    era: u64,
    pub hashes: Vec<u32>,
    /// How often an element was made at each place.
    elements: Vec<u64>,
    pub mutant: Option<Mutant>,
}

/// A packet between reading and writing.
#[derive(Clone, Copy, Debug)]
pub struct Passing {
    pub key: usize,
    /// Where its entry is.
    at: usize,
    pub packet: Packet,
    pub place: Place,
    /// Which element of the map was found.
    element: u64,
    /// What was found: it may be another one, or none, when the packet leaves.
    found: Option<Entry>,
    decision: Decision,
    /// Of a hint of what was found; `None`: the flow table was not asked.
    stamp: Option<Stamp>,
}

impl Passing {
    /// Whether it goes to a backend, or is to write an entry that names it.
    pub fn names(&self, backend: u32) -> bool {
        let Decision {
            backend: to,
            write,
            otherwise,
        } = self.decision;
        let written = match write {
            Write::Insert(entry) | Write::Replace(entry) | Write::Bury(entry) => {
                [entry.backend, entry.before]
            }
            Write::Nothing | Write::Touch(_) => [0; 2],
        };
        [to, otherwise].contains(&backend) || written.contains(&backend)
    }

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

/// Neither opens a connection nor ends it.
fn goes_on(packet: Packet) -> bool {
    matches!(packet, Packet::Data(_) | Packet::Datagram)
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
            service: 0,
            published: true,
            standing: [Standing::Gone; BACKENDS + 1],
            backends: [Meta::default(); BACKENDS + 1],
            services: std::array::from_fn(|index| Meta {
                host: 0,
                in_use: index == 0,
            }),
            flows: vec![None; SERVICES * KEYS],
            used: 0,
            capacity,
            control: FlowControl::default(),
            hints: vec![None; SERVICES * KEYS],
            sequences: [0; LINES],
            era: 0,
            elements: vec![0; SERVICES * KEYS],
            hashes: (0..KEYS).map(hash_of).collect(),
            mutant,
        }
    }

    /// Where the entry of a flow of the service is.
    pub fn at(&self, key: usize) -> usize {
        self.service * KEYS + key
    }

    /// The hash of the flow whose entry would be there.
    pub fn hash_at(&self, at: usize) -> u32 {
        self.hashes[at % KEYS]
    }

    /// Who is reached by an index.
    pub fn host(&self, backend: u32) -> u32 {
        self.backends[backend as usize].host
    }

    /// Whether packets are led anywhere.
    pub fn serves(&self) -> bool {
        self.published && !self.record.now.is_empty()
    }

    pub fn entry(&self, key: usize) -> Option<Entry> {
        self.entry_at(self.at(key))
    }

    fn entry_at(&self, at: usize) -> Option<Entry> {
        self.flows[at].as_ref().map(entry_of)
    }

    fn decide(&self, place: Place, at: usize, packet: Packet) -> (Option<Entry>, Decision) {
        let entry = self.entry_at(at);
        let standing = |backend: u32| self.standing[backend as usize];
        let decision = match self.mutant {
            None => rule::decide(place, entry, packet, standing),
            Some(mutant) => mutant.decide(place, entry, packet, standing),
        };
        (entry, decision)
    }

    /// A backend stands otherwise, or user space has taken an entry out.
    pub fn renew(&mut self) {
        self.era += 1;
    }

    fn stamp(&self, at: usize, now_ns: u64) -> Stamp {
        Stamp {
            era: self.era,
            sequence: self.sequences[at % LINES],
            epoch: match self.mutant {
                Some(Mutant::HintsForever) => 0,
                _ => hint::epoch(now_ns),
            },
        }
    }

    /// Where a hint leads a packet that neither opens a connection nor ends it.
    fn hinted(&self, at: usize, packet: Packet, stamp: Stamp) -> Option<u32> {
        let hint = self.hints[at].filter(|hint| hint.stamp == stamp && goes_on(packet))?;
        (self.standing[hint.backend as usize] == Standing::Serves).then_some(hint.backend)
    }

    /// The packet reads.
    pub fn enter(&self, key: usize, packet: Packet, now_ns: u64) -> Passing {
        let at = self.at(key);
        let place = if self.serves() {
            self.record.place(self.hashes[key])
        } else {
            // It is passed on to the kernel's own stack, or dropped.
            Place {
                slot: Slot::stable(0),
                resizing: false,
                held: false,
            }
        };
        let stamp = self.stamp(at, now_ns);
        let straight = if place.slot.consult() && !place.resizing {
            self.hinted(at, packet, stamp)
        } else {
            (!place.slot.consult() && !place.resizing).then(|| place.slot.current())
        };
        if let Some(backend) = straight {
            let decision = Decision {
                backend,
                write: Write::Nothing,
                otherwise: backend,
            };
            return Passing {
                key,
                at,
                packet,
                place,
                element: 0,
                found: None,
                decision,
                stamp: None,
            };
        }
        let (found, decision) = self.decide(place, at, packet);
        Passing {
            key,
            at,
            packet,
            place,
            element: self.elements[at],
            found,
            decision,
            stamp: Some(stamp),
        }
    }

    /// Where a packet would go; nothing is written.
    pub fn lookup(&self, key: usize, packet: Packet, now_ns: u64) -> u32 {
        self.enter(key, packet, now_ns).decision.backend
    }

    /// The packet writes and leaves.
    pub fn leave(&mut self, passing: &Passing, now_ns: u64) -> Passed {
        let Passing {
            key: _,
            at,
            packet,
            place,
            mut element,
            found: mut entry,
            mut decision,
            stamp,
        } = *passing;
        // Of each flow, where the program does it from the second packet of an epoch on.
        if let (Some(stamp), Some(entry)) = (stamp, entry)
            && goes_on(packet)
            && entry.state == State::Established
            && self.standing[entry.backend as usize] == Standing::Serves
            && !place.resizing
        {
            let stamp = match self.mutant {
                Some(Mutant::HintsStampedLate) => self.stamp(at, now_ns),
                _ => stamp,
            };
            let backend = entry.backend;
            self.hints[at] = Some(Hint { backend, stamp });
        }
        let followed = |entry: Option<Entry>, write| {
            matches!(packet, Packet::Syn(_) | Packet::Initial(_))
                && write == Write::Nothing
                && entry.is_some_and(|entry| entry.state == State::Established)
        };
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
                    let undone = self.mutant == Some(Mutant::TouchedBack);
                    let older = |entry: &&mut FlowEntry| undone || !entry.seen.state().outlasts(state);
                    if self.elements[at] == element
                        && let Some(entry) = self.flows[at].as_mut().filter(older)
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
                    if self.flows[at].is_none() || overwrites {
                        if self.flows[at].is_none() && self.used >= self.capacity && !self.evict() {
                            return self.refuse(packet, &decision, now_ns);
                        }
                        self.put(at, &new, now_ns);
                        return went;
                    }
                }
                Write::Replace(new) => {
                    if self.flows[at].is_some() {
                        self.put(at, &new, now_ns);
                        return went;
                    }
                }
                Write::Bury(new) => {
                    if self.flows[at].is_none() && self.used >= self.capacity {
                        return self.refuse(packet, &decision, now_ns);
                    }
                    self.put(at, &new, now_ns);
                    return went;
                }
            }
            (entry, decision) = self.decide(place, at, packet);
            element = self.elements[at];
        }
        Passed {
            backend: 0,
            refused: true,
            followed: false,
        }
    }

    /// The packet passes at once.
    pub fn pass(&mut self, key: usize, packet: Packet, now_ns: u64) -> Passed {
        let passing = self.enter(key, packet, now_ns);
        self.leave(&passing, now_ns)
    }

    fn put(&mut self, at: usize, entry: &Entry, now_ns: u64) {
        let Entry {
            backend,
            state,
            isn,
            before,
        } = *entry;
        self.used += usize::from(self.flows[at].is_none());
        self.elements[at] += 1;
        if self.mutant != Some(Mutant::HintsOutliveEntries) {
            self.sequences[at % LINES] += 1;
        }
        self.flows[at] = Some(FlowEntry {
            owner: FlowOwner::new(self.hash_at(at), backend),
            seen: FlowSeen::new(state, now_ns),
            isn,
            before,
        });
    }

    fn take_allowance(&mut self, packet: Packet) -> bool {
        let left = match packet {
            Packet::Syn(_) => &mut self.control.syn_left,
            Packet::Initial(_) | Packet::Handshake | Packet::Datagram => &mut self.control.udp_left,
            _ => &mut self.control.data_left,
        };
        let taken = *left != 0;
        *left = left.saturating_sub(1);
        taken
    }

    fn refuse(&mut self, packet: Packet, decision: &Decision, now_ns: u64) -> Passed {
        let unnoted = matches!(packet, Packet::Handshake | Packet::Datagram | Packet::Error);
        let noted = decision.otherwise != 0 && !unnoted;
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
    pub fn take(&mut self, at: usize) -> Option<FlowEntry> {
        let entry = self.flows[at].take();
        self.renew();
        self.used -= usize::from(entry.is_some());
        entry
    }

    /// Puts an entry where there is none.
    pub fn put_back(&mut self, at: usize, entry: FlowEntry) {
        if self.flows[at].is_none() {
            self.flows[at] = Some(entry);
            self.elements[at] += 1;
            self.used += 1;
            self.renew();
        }
    }
}
