//! The lookup tables as the kernel has them, read from the pinned maps beside the agent: which backend each live
//! flow's slot names, which slots moved under flows, and which are not stable yet.
//!
//! `current` of a slot is what Maglev alone would choose. A flow whose backend lives while its slot names another
//! one is what Maglev alone would have broken: those are counted, each once.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, ensure};
use lb_common::hash::{self, HashKey};
use lb_common::layout::{Slot, TableWord};

use super::flows::{Live, Target};
use super::ledger::Ledger;
use super::wire::Name;
use crate::datapath::identity;
use crate::datapath::maps::{Maps, pinned_hash_key};
use crate::datapath::pins::PinDir;

/// Reads the tables of some services.
pub struct Observer {
    maps: Maps,
    key: HashKey,
    pins: PinDir,
    client: Ipv4Addr,
    targets: Vec<Target>,
    names: HashMap<IpAddr, Name>,
}

impl std::fmt::Debug for Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Observer")
            .field("pins", &self.pins)
            .finish_non_exhaustive()
    }
}

/// The table of one service.
#[derive(Clone, Debug, Default)]
pub struct Table {
    slots: Vec<Slot>,
    /// Backends by their index.
    owners: BTreeMap<u32, Name>,
    /// The table of another size that came before it still counts.
    pub resizing: bool,
}

/// The tables at one moment, in the order of the targets.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    pub at: Option<Instant>,
    pub services: Vec<Table>,
    hashes: Option<Hashes>,
}

#[derive(Clone, Copy, Debug)]
struct Hashes {
    key: HashKey,
    client: Ipv4Addr,
}

impl Observer {
    /// Opens what an agent pinned. `names` are the backends by address, `client` is where flows come from.
    ///
    /// # Errors
    /// Where nothing is pinned there, or the layout is another.
    pub fn open(
        pins: &Path,
        client: Ipv4Addr,
        targets: &[Target],
        names: HashMap<IpAddr, Name>,
    ) -> anyhow::Result<Self> {
        let pins = PinDir::open(pins)?;
        Ok(Self {
            maps: Maps::open(&pins)?,
            key: pinned_hash_key(&pins)?.context("no hash key is pinned")?,
            pins,
            client,
            targets: targets.to_vec(),
            names,
        })
    }

    /// Reads all tables.
    ///
    /// # Errors
    /// Where a map cannot be read.
    pub fn read(&mut self) -> anyhow::Result<Tables> {
        let services = (0..self.targets.len()).map(|index| self.table(index));
        Ok(Tables {
            services: services.collect::<anyhow::Result<_>>()?,
            at: Some(Instant::now()),
            hashes: Some(Hashes {
                key: self.key,
                client: self.client,
            }),
        })
    }

    /// What is remembered of flows, for each target: entries of the flow table. Of services with `tracking = "full"` the
    /// ways of the cache, which do not tell whose they are: all of them count for the first of these services.
    ///
    /// # Errors
    /// Where the table cannot be read.
    pub fn entries(&self) -> anyhow::Result<Vec<usize>> {
        let mut counts = HashMap::<u32, usize>::new();
        for (key, _) in self.maps.flows.all()? {
            *counts.entry(key.service).or_default() += 1;
        }
        let services = self.targets.iter();
        let indices = services.map(|target| self.maps.services.get(&identity::service_key(&target.key)).ok());
        let indices: Vec<Option<u32>> = indices.collect();
        let remembers_all = |index: &u32| self.maps.records.table(*index).is_full();
        if let Some(index) = indices.iter().flatten().copied().find(remembers_all) {
            *counts.entry(index).or_default() += self.maps.flow_cache.all().count();
        }
        let of = |index: &Option<u32>| index.and_then(|index| counts.get(&index)).copied().unwrap_or(0);
        Ok(indices.iter().map(of).collect())
    }

    fn table(&mut self, target: usize) -> anyhow::Result<Table> {
        let key = identity::service_key(&self.targets[target].key);
        let Ok(service) = self.maps.services.get(&key) else {
            return Ok(Table::default());
        };
        let mut word = self.maps.records.table(service);
        let slots = loop {
            if word == TableWord::NONE {
                return Ok(Table::default());
            }
            if !self.maps.slabs.hold(word) {
                // The agent made another slab since these were opened.
                self.maps = Maps::open(&self.pins)?;
            }
            ensure!(
                self.maps.slabs.hold(word),
                "the table of {} lies in no slab",
                self.targets[target].key
            );
            let slots = self.maps.slots(word);
            // What was switched away from may be written again soon.
            let now = self.maps.records.table(service);
            if now == word {
                break slots;
            }
            word = now;
        };
        let indices: HashSet<u32> = slots
            .iter()
            .flat_map(|slot| [slot.current(), slot.previous()])
            .filter(|index| *index != 0)
            .collect();
        let mut owners = BTreeMap::new();
        for index in indices {
            let meta = self.maps.backend_meta.get(&index, 0)?;
            let address = identity::address(meta.address, meta.family);
            if let Some(name) = address.and_then(|address| self.names.get(&address)) {
                owners.insert(index, *name);
            }
        }
        Ok(Table {
            slots,
            owners,
            resizing: word.is_resizing(),
        })
    }
}

impl Tables {
    /// The slot of a flow: its index and what it holds; `None` where its service has no table.
    #[must_use]
    pub fn slot(&self, service: usize, port: u16, to: u16) -> Option<(usize, Slot)> {
        let Hashes { key, client } = self.hashes.as_ref()?;
        let slots = &self.services.get(service)?.slots;
        let [a, b] = port.to_be_bytes();
        let [c, d] = to.to_be_bytes();
        let hash = hash::flow_v4(
            key,
            u32::from_le_bytes(client.octets()),
            u32::from_le_bytes([a, b, c, d]),
        );
        let index = hash::slot(hash, u32::try_from(slots.len()).ok()?) as usize;
        Some((index, *slots.get(index)?))
    }

    /// Who gets new flows from a port.
    #[must_use]
    pub fn owner(&self, service: usize, port: u16, to: u16) -> Option<Name> {
        let (_, slot) = self.slot(service, port, to)?;
        self.services[service].owners.get(&slot.current()).copied()
    }

    /// Slots of a service whose window is open: flows without an entry belong to another backend than new ones.
    #[must_use]
    pub fn unstable(&self, service: usize) -> usize {
        let Some(table) = self.services.get(service) else {
            return 0;
        };
        let moving = |slot: &&Slot| slot.current() != slot.previous();
        let moving = table.slots.iter().filter(moving).count();
        // While the table before counts, all of it does.
        if table.resizing {
            table.slots.len().max(moving)
        } else {
            moving
        }
    }

    /// Slots of a service for which the flow table is asked: those whose window is open, and those in which flows live
    /// on that belong elsewhere.
    #[must_use]
    pub fn consulted(&self, service: usize) -> usize {
        let slots = self.services.get(service).map(|table| table.slots.as_slice());
        slots
            .unwrap_or_default()
            .iter()
            .filter(|slot| slot.consult())
            .count()
    }

    /// Slots of a service that each backend owns.
    #[must_use]
    pub fn shares(&self, service: usize) -> BTreeMap<Name, usize> {
        let mut shares = BTreeMap::new();
        let Some(table) = self.services.get(service) else {
            return shares;
        };
        for slot in &table.slots {
            if let Some(name) = table.owners.get(&slot.current()) {
                *shares.entry(*name).or_default() += 1;
            }
        }
        shares
    }
}

/// What moved under live flows since it was made.
#[derive(Debug, Default)]
pub struct Movement {
    last: Option<Tables>,
    services: Vec<Moved>,
    /// Flows that were misplaced before, by whatever event.
    misplaced: HashSet<u64>,
}

/// For one service.
#[derive(Clone, Debug, Default)]
pub struct Moved {
    slots: HashSet<usize>,
    misplaced: usize,
    /// When a slot was seen unstable first and last.
    pub unstable: Option<(Instant, Instant)>,
    /// Most unstable slots at once.
    pub unstable_most: usize,
    /// Unstable slots when it was looked last.
    pub unstable_now: usize,
    /// Most entries in the flow table at once.
    pub entries_most: usize,
    /// Entries when it was looked last.
    pub entries_now: usize,
    /// Slots for which the flow table is asked, when it was looked last.
    pub consulted_now: usize,
}

impl Moved {
    /// Slots that named another backend than before while a flow was in them.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Flows whose slot named another backend than their own, which lived; each counts once, when it was first seen.
    #[must_use]
    pub fn misplaced(&self) -> usize {
        self.misplaced
    }
}

impl Movement {
    /// Looks at the tables again.
    pub fn see(&mut self, tables: Tables, targets: &[Target], live: &[(u64, Live)], ledger: &Ledger) {
        let now = tables.at.unwrap_or_else(Instant::now);
        self.services.resize_with(targets.len(), Moved::default);
        for (id, flow) in live {
            let to = targets[flow.service].key.port;
            let Some((index, _)) = tables.slot(flow.service, flow.port, to) else {
                continue;
            };
            let owner = tables.owner(flow.service, flow.port, to);
            let moved = &mut self.services[flow.service];
            let before = self
                .last
                .as_ref()
                .map(|last| last.owner(flow.service, flow.port, to));
            if before.is_some_and(|before| before != owner) {
                moved.slots.insert(index);
            }
            if owner != Some(flow.backend) && ledger.lives(flow.backend) && self.misplaced.insert(*id) {
                moved.misplaced += 1;
            }
        }
        for (service, moved) in self.services.iter_mut().enumerate() {
            moved.unstable_now = tables.unstable(service);
            moved.consulted_now = tables.consulted(service);
            moved.unstable_most = moved.unstable_most.max(moved.unstable_now);
            if moved.unstable_now > 0 {
                let first = moved.unstable.map_or(now, |(first, _)| first);
                moved.unstable = Some((first, now));
            }
        }
        self.last = Some(tables);
    }

    /// Notes how many entries the flow table has, for each target.
    pub fn count(&mut self, entries: &[usize]) {
        self.services.resize_with(entries.len(), Moved::default);
        for (moved, entries) in self.services.iter_mut().zip(entries) {
            moved.entries_now = *entries;
            moved.entries_most = moved.entries_most.max(*entries);
        }
    }

    /// Begins to count anew; what was misplaced before does not count again.
    pub fn begin(&mut self) {
        self.services.clear();
    }

    /// What was seen of a service.
    #[must_use]
    pub fn of(&self, service: usize) -> Moved {
        self.services.get(service).cloned().unwrap_or_default()
    }

    /// What was seen of all services.
    #[must_use]
    pub fn all(&self) -> &[Moved] {
        &self.services
    }

    /// The tables as they were seen last.
    #[must_use]
    pub fn last(&self) -> Option<&Tables> {
        self.last.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::flows::Population;
    use crate::lab::ledger::Death;
    use crate::model::{Protocol, ServiceKey};
    use std::time::Duration;

    fn tables(slots: Vec<Slot>) -> Tables {
        let owners = [(1, Name::new("b1")), (2, Name::new("b2"))].into();
        Tables {
            at: Some(Instant::now()),
            services: vec![Table {
                slots,
                owners,
                resizing: false,
            }],
            hashes: Some(Hashes {
                key: HashKey([7; 8]),
                client: Ipv4Addr::LOCALHOST,
            }),
        }
    }

    #[test]
    fn a_flow_is_misplaced_once_where_its_slot_names_another_and_its_own_backend_lives() {
        let targets = [Target {
            key: ServiceKey {
                address: Ipv4Addr::LOCALHOST.into(),
                port: 7,
                protocol: Protocol::Tcp,
            },
            population: Population::default(),
            rest: (Duration::ZERO, Duration::ZERO),
        }];
        let flow = |backend| Live {
            service: 0,
            port: 1000,
            backend: Name::new(backend),
        };
        let mut ledger = Ledger::default();
        let mut movement = Movement::default();
        let live = [(1, flow("b1")), (2, flow("b2"))];
        let mut see = |slot, ledger: &Ledger| {
            movement.see(tables(vec![slot; 251]), &targets, &live[..1], ledger);
            movement.of(0)
        };
        let moved = see(Slot::stable(1), &ledger);
        assert_eq!((moved.slots(), moved.misplaced(), moved.unstable_most), (0, 0, 0));
        for _ in 0..2 {
            let moved = see(Slot::new(2, 1, true), &ledger);
            assert_eq!(
                (moved.slots(), moved.misplaced(), moved.unstable_now),
                (1, 1, 251)
            );
        }
        ledger.died(Name::new("b1"), Death::Dead, Instant::now());
        let moved = see(Slot::stable(2), &ledger);
        assert_eq!(
            (moved.misplaced(), moved.unstable_now, moved.unstable_most),
            (1, 0, 251)
        );
        let mut movement = Movement::default();
        movement.see(tables(vec![Slot::stable(2); 251]), &targets, &live, &ledger);
        assert_eq!(movement.of(0).misplaced(), 0);
    }
}
