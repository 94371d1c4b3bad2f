//! The maps as typed values, opened from a loaded object or from their pins.

use std::os::fd::AsFd;
use std::sync::Arc;

use aya::maps::{Array, ArrayOfMaps, DevMapHash, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues};
use aya::{Ebpf, Pod};
use aya_obj::generated::bpf_map_type;
use lb_common::cache::Chooser;
use lb_common::hash::HashKey;
use lb_common::layout::{
    AgentMeta, BackendMeta, Counters, FlowCounters, FlowKey, Interface, SLAB_SLOTS, ServiceMeta,
    ServiceRecord, Slot, TableWord, Tags,
};
use lb_common::quic::QuicCounters;
use lb_common::reason::Reason;

use super::Error;
use super::backends::Backends;
use super::clients::Clients;
use super::flow_cache::FlowCache;
use super::flows::{self, FlowControls, Flows};
use super::guards::Guards;
use super::load::Sizes;
use super::mmap::Words;
use super::nat::NatMaps;
use super::pins::{self, PinDir, Pinned};
use super::quic::QuicMaps;
use super::ranges::Ranges;
use super::services::Services;
use super::signs::Signs;
use super::slab_map;

/// Every map that the agent, `status` and `simulate` use.
pub struct Maps {
    /// The secret of the program's hash, where it is known: some slots are found by the client's address alone.
    pub hash_key: Option<HashKey>,
    pub services: Services,
    pub ranges: Ranges,
    pub records: Records,
    pub slabs: Slabs,
    pub backends: Backends,
    pub tags: Array<MapData, Tags>,
    pub counters: PerCpuArray<MapData, Counters>,
    pub reasons: PerCpuArray<MapData, u64>,
    pub flows: Flows,
    pub flow_control: FlowControls,
    pub flow_cache: FlowCache,
    pub signs: Signs,
    pub guards: Guards,
    pub clients: Clients,
    pub nat: NatMaps,
    pub quic: QuicMaps,
    flow_counters: PerCpuArray<MapData, FlowCounters>,
    pub egress: DevMapHash<MapData>,
    pub interfaces: HashMap<MapData, u32, Interface>,
    pub service_meta: Array<MapData, ServiceMeta>,
    pub backend_meta: Array<MapData, BackendMeta>,
    pub agent_meta: Array<MapData, AgentMeta>,
}

impl Maps {
    /// The maps of a program that was just loaded. With `pins` the maps that only user space has are pinned
    /// beside the others.
    ///
    /// # Errors
    /// [`Error::MissingMap`], [`Error::Map`], [`Error::Pin`].
    pub fn of(ebpf: &mut Ebpf, sizes: Sizes, pins: Option<&PinDir>) -> Result<Self, Error> {
        if let Some(dir) = pins {
            let room = |pin: &Pinned| map_from_pin(dir, pin).map(|map| data_of(&map).map_or(0, max_entries));
            let (services, backends) = (room(&pins::RECORDS)?, room(&pins::BACKENDS)?);
            pin_array::<ServiceMeta>(dir, &pins::SERVICE_META, services)?;
            pin_array::<BackendMeta>(dir, &pins::BACKEND_META, backends)?;
            pin_array::<AgentMeta>(dir, &pins::AGENT_META, 1)?;
            return Self::open(dir);
        }
        let mut take = |pin: &Pinned| match pin.map {
            "" => Ok(Map::Array(match pin.pin {
                "service_meta" => array::<ServiceMeta>(sizes.services)?,
                "backend_meta" => array::<BackendMeta>(sizes.backends + 1)?,
                _ => array::<AgentMeta>(1)?,
            })),
            name => ebpf.take_map(name).ok_or(Error::MissingMap(name)),
        };
        Self::build(&mut take, None)
    }

    /// The pinned maps.
    ///
    /// # Errors
    /// [`Error::LayoutMismatch`], [`Error::Map`].
    pub fn open(dir: &PinDir) -> Result<Self, Error> {
        dir.verify()?;
        Self::build(&mut |pin| map_from_pin(dir, pin), Some(dir.clone()))
    }

    fn build(
        take: &mut dyn FnMut(&Pinned) -> Result<Map, Error>,
        pins: Option<PinDir>,
    ) -> Result<Self, Error> {
        let records = take(&pins::RECORDS)?;
        let flow_control = take(&pins::FLOW_CONTROL)?;
        let control = data_of(&flow_control)?;
        let hash_key = pins.as_ref().map(pinned_hash_key).transpose()?.flatten();
        Ok(Self {
            hash_key,
            services: Services::open(take(&pins::SERVICES)?, &take(&pins::BUCKETS)?)?,
            ranges: Ranges::open(take(&pins::RANGES)?)?,
            records: Records::map(&records)?,
            slabs: Slabs::open(take(&pins::SLABS)?, pins)?,
            backends: Backends::map(&take(&pins::BACKENDS)?)?,
            tags: take(&pins::TAGS)?.try_into()?,
            counters: take(&pins::COUNTERS)?.try_into()?,
            reasons: take(&pins::REASONS)?.try_into()?,
            flows: Flows::with_hints(take(&pins::FLOWS)?, &take(&pins::HINTS)?)?,
            flow_control: FlowControls::map(control.fd(), max_entries(control))?,
            flow_counters: take(&pins::FLOW_COUNTERS)?.try_into()?,
            nat: NatMaps::open(take)?,
            quic: QuicMaps::open(
                take(&pins::QUIC_SERVERS)?,
                &take(&pins::QUIC_LENGTHS)?,
                take(&pins::QUIC_COUNTERS)?,
            )?,
            flow_cache: FlowCache::new(&take(&pins::CACHE)?, &take(&pins::NURSERY)?, &take(&pins::LOADS)?)?,
            guards: Guards::open(
                &take(&pins::GUARDS)?,
                &take(&pins::LISTS)?,
                take(&pins::GUARD_COUNTERS)?,
            )?,
            signs: Signs::new(take(&pins::SYNS)?, &take(&pins::SIGNS)?)?,
            clients: Clients::new(
                &take(&pins::CLIENTS)?,
                &take(&pins::PERSISTENCE)?,
                take(&pins::CLIENT_COUNTERS)?,
            )?,
            egress: take(&pins::EGRESS)?.try_into()?,
            interfaces: take(&pins::INTERFACES)?.try_into()?,
            service_meta: take(&pins::SERVICE_META)?.try_into()?,
            backend_meta: take(&pins::BACKEND_META)?.try_into()?,
            agent_meta: take(&pins::AGENT_META)?.try_into()?,
        })
    }

    /// The slots of a table; none where there is no such table.
    #[must_use]
    pub fn slots(&self, table: TableWord) -> Vec<Slot> {
        self.slabs.slots(table)
    }

    /// The owners of a table's slots, as indices of backends; none where there is no such table.
    #[must_use]
    pub fn owners(&self, table: TableWord) -> Vec<u32> {
        self.slots(table).into_iter().map(Slot::current).collect()
    }

    /// What all CPUs together counted about the flow table, for a service.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn flow_counters(&self, service: u32) -> Result<FlowCounters, Error> {
        let values: PerCpuValues<FlowCounters> = self.flow_counters.get(&service, 0)?;
        Ok(values
            .iter()
            .fold(FlowCounters::default(), |sum, cpu| flows::add_counters(&sum, cpu)))
    }

    /// Begins the counts of a service anew: its index was another one's.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn clear_flow_counters(&mut self, service: u32) -> Result<(), Error> {
        Ok(self.flow_counters.set(service, zeros()?, 0)?)
    }

    /// The tables of today, for another thread that reads them as packets do.
    #[must_use]
    pub fn reader(&self) -> TableReader {
        TableReader {
            records: Arc::clone(&self.records.0),
            slabs: self.slabs.mapped.clone(),
            key: self.hash_key,
        }
    }

    /// What all CPUs together counted for a backend.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn backend_counters(&self, index: u32) -> Result<Counters, Error> {
        let values: PerCpuValues<Counters> = self.counters.get(&index, 0)?;
        Ok(values.iter().fold(Counters::default(), |sum, cpu| add(&sum, cpu)))
    }

    /// What connection ids said, all CPUs together, of a service whose datagrams are QUIC.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn quic_counters(&self, service: u32) -> Result<Option<QuicCounters>, Error> {
        if !self.records.table(service).is_quic() {
            return Ok(None);
        }
        self.quic.counters(service).map(Some)
    }

    /// Packets by reason, all CPUs together, in the order of [`Reason::ALL`]. Forwarded packets are not among
    /// them: they are counted by backend.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn reason_counts(&self) -> Result<Vec<(Reason, u64)>, Error> {
        Reason::ALL
            .iter()
            .map(|reason| Ok((*reason, self.reasons.get(&(*reason as u32), 0)?.iter().sum())))
            .collect()
    }
}

/// Counts of all CPUs that begin anew.
pub(super) fn zeros<T: Pod + Default>() -> Result<PerCpuValues<T>, Error> {
    let cpus = aya::util::nr_cpus().map_err(|(path, source)| Error::io(path)(source))?;
    PerCpuValues::try_from(vec![T::default(); cpus]).map_err(|source| Error::Syscall {
        call: "per-CPU counters",
        source,
    })
}

/// The sum of two counts.
#[must_use]
pub fn add(a: &Counters, b: &Counters) -> Counters {
    let Counters {
        packets,
        bytes,
        new_flows,
        redirected,
    } = *a;
    Counters {
        packets: packets + b.packets,
        bytes: bytes + b.bytes,
        new_flows: new_flows + b.new_flows,
        redirected: redirected + b.redirected,
    }
}

/// The records of all services, memory-mapped.
#[derive(Debug)]
pub struct Records(Arc<Words>);

const WORDS_A_RECORD: usize = size_of::<ServiceRecord>() / 8;

impl Records {
    fn map(map: &Map) -> Result<Self, Error> {
        let data = data_of(map)?;
        let words = max_entries(data) as usize * WORDS_A_RECORD;
        let words = Words::map(data.fd(), words).map_err(|source| Error::Syscall {
            call: "mmap of the service records",
            source,
        })?;
        Ok(Self(Arc::new(words)))
    }

    /// How many services there is room for.
    #[must_use]
    pub fn room(&self) -> u32 {
        (self.0.len() / WORDS_A_RECORD) as u32
    }

    #[must_use]
    pub fn table(&self, service: u32) -> TableWord {
        TableWord(self.0.get(service as usize * WORDS_A_RECORD))
    }

    /// Switches a service to another table, for all packets at once.
    pub fn set_table(&self, service: u32, table: TableWord) {
        self.0.set(service as usize * WORDS_A_RECORD, table.0);
    }

    /// The table before the one in force, while a resize is under way.
    #[must_use]
    pub fn before(&self, service: u32) -> TableWord {
        TableWord(self.0.get(service as usize * WORDS_A_RECORD + 1))
    }

    /// To be written before [`TableWord::RESIZING`] is set, and cleared after that is.
    pub fn set_before(&self, service: u32, before: TableWord) {
        self.0.set(service as usize * WORDS_A_RECORD + 1, before.0);
    }
}

/// The slabs that lookup tables lie in, memory-mapped.
pub struct Slabs {
    outer: ArrayOfMaps<MapData, Array<MapData, Slot>>,
    mapped: Vec<Arc<Words>>,
    pins: Option<PinDir>,
    /// Without pins somebody has to hold the maps.
    _held: Vec<Array<MapData, Slot>>,
}

impl Slabs {
    fn open(outer: Map, pins: Option<PinDir>) -> Result<Self, Error> {
        let mut slabs = Self {
            outer: outer.try_into()?,
            mapped: Vec::new(),
            pins,
            _held: Vec::new(),
        };
        while let Some(dir) = &slabs.pins {
            let path = dir.slab(slabs.mapped.len() as u32);
            if !path.exists() {
                break;
            }
            let data = MapData::from_pin(&path)?;
            slabs.mapped.push(Arc::new(map_slab(data.fd())?));
        }
        Ok(slabs)
    }

    /// Whether a word names a table that can be: none at all, or one inside a slab that exists.
    #[must_use]
    pub fn hold(&self, table: TableWord) -> bool {
        table == TableWord::NONE
            || (table.slab() as usize) < self.mapped.len() && table.offset() + table.size() <= SLAB_SLOTS
    }

    /// Makes slabs until there are `count`.
    ///
    /// # Errors
    /// [`Error::Map`], [`Error::Pin`].
    pub fn grow(&mut self, count: u32) -> Result<(), Error> {
        while self.mapped.len() < count as usize {
            let index = self.mapped.len() as u32;
            let slab = slab_map::create()?;
            let words = map_slab(&slab)?;
            let again = slab.try_clone().map_err(|source| Error::Syscall {
                call: "duplicating a descriptor",
                source,
            })?;
            let inner: Array<MapData, Slot> = Map::Array(MapData::from_fd(again)?).try_into()?;
            // A pinned slab counts as there: it is pinned only once packets can reach it.
            self.outer.set(index, &inner, 0)?;
            if let Some(dir) = &self.pins {
                MapData::from_fd(slab)?.pin(dir.slab(index))?;
            }
            self.mapped.push(Arc::new(words));
            self._held.push(inner);
        }
        Ok(())
    }

    /// Fills a table that no record names yet.
    pub fn write(&self, table: TableWord, slots: impl IntoIterator<Item = Slot>) {
        let slab = &self.mapped[table.slab() as usize];
        let start = table.offset() as usize;
        for (index, slot) in slots.into_iter().take(table.size() as usize).enumerate() {
            slab.set(start + index, slot.0);
        }
    }

    /// The slots of a table; none where there is no such table.
    #[must_use]
    pub fn slots(&self, table: TableWord) -> Vec<Slot> {
        if table.size() == 0 || !self.hold(table) {
            return Vec::new();
        }
        let slab = &self.mapped[table.slab() as usize];
        let start = table.offset() as usize;
        (start..start + table.size() as usize)
            .map(|index| Slot(slab.get(index)))
            .collect()
    }
}

/// Records and slabs, read as packets do. A slab that was made later is not among them.
#[derive(Debug)]
pub struct TableReader {
    records: Arc<Words>,
    slabs: Vec<Arc<Words>>,
    key: Option<HashKey>,
}

impl TableReader {
    /// The number of a flow's slot in the table in force, by its hash, and the slot, unless the table is being resized.
    /// `None` where there is no table, or none that this reader knows.
    #[must_use]
    pub fn slot(&self, flow: &FlowKey, hash: u32) -> Option<(u32, Option<Slot>)> {
        let word = flow.service as usize * WORDS_A_RECORD;
        if word >= self.records.len() {
            return None;
        }
        let mut table = TableWord(self.records.get(word));
        loop {
            if table.size() == 0 || table.offset() + table.size() > SLAB_SLOTS {
                return None;
            }
            let slab = self.slabs.get(table.slab() as usize)?;
            let hash = match (table.chooser(), &self.key) {
                (Chooser::Source, Some(key)) => lb_common::client::hash(key, flow.source),
                _ => hash,
            };
            let index = lb_common::hash::slot(hash, table.size());
            let slot = Slot(slab.get((table.offset() + index) as usize));
            // Nobody waits for us before a region is written again, as for packets.
            let still = TableWord(self.records.get(word));
            if still == table {
                return Some((index, (!table.is_resizing()).then_some(slot)));
            }
            table = still;
        }
    }
}

fn map_slab(slab: impl AsFd) -> Result<Words, Error> {
    Words::map(slab, SLAB_SLOTS as usize).map_err(|source| Error::Syscall {
        call: "mmap of a slab of lookup tables",
        source,
    })
}

/// The secret of the hash, from its pin.
///
/// # Errors
/// [`Error::Map`]; `Ok(None)` where it is not pinned.
pub fn pinned_hash_key(dir: &PinDir) -> Result<Option<HashKey>, Error> {
    if !dir.path(pins::HASH_KEY.pin).exists() {
        return Ok(None);
    }
    let map: Array<MapData, HashKey> = map_from_pin(dir, &pins::HASH_KEY)?.try_into()?;
    Ok(Some(map.get(&0, 0)?))
}

/// Keeps the secret of the hash in a pin of its own.
///
/// # Errors
/// [`Error::Map`], [`Error::Pin`].
pub fn pin_hash_key(dir: &PinDir, key: &HashKey) -> Result<(), Error> {
    pin_array::<HashKey>(dir, &pins::HASH_KEY, 1)?;
    let mut map: Array<MapData, HashKey> = map_from_pin(dir, &pins::HASH_KEY)?.try_into()?;
    map.set(0, *key, 0)?;
    Ok(())
}

fn map_from_pin(dir: &PinDir, pin: &Pinned) -> Result<Map, Error> {
    Ok(Map::from_map_data(MapData::from_pin(dir.path(pin.pin))?)?)
}

fn pin_array<V: Pod>(dir: &PinDir, pin: &Pinned, entries: u32) -> Result<(), Error> {
    let path = dir.path(pin.pin);
    if !path.exists() {
        let data = create(
            bpf_map_type::BPF_MAP_TYPE_ARRAY,
            size_of::<V>() as u32,
            entries,
            0,
            pin.pin,
        )?;
        data.pin(&path)?;
    }
    Ok(())
}

fn array<V: Pod>(entries: u32) -> Result<MapData, Error> {
    create(
        bpf_map_type::BPF_MAP_TYPE_ARRAY,
        size_of::<V>() as u32,
        entries,
        0,
        "meta",
    )
}

fn create(kind: bpf_map_type, value: u32, entries: u32, flags: u32, name: &str) -> Result<MapData, Error> {
    let map = aya_obj::Map::new_from_params(kind as u32, size_of::<u32>() as u32, value, entries, flags);
    Ok(MapData::create(map, name, None)?)
}

fn max_entries(data: &MapData) -> u32 {
    data.info().map_or(0, |info| info.max_entries())
}

pub(super) fn data_of(map: &Map) -> Result<&MapData, MapError> {
    match map {
        Map::Array(data) | Map::HashMap(data) | Map::PerCpuArray(data) | Map::ArrayOfMaps(data) => Ok(data),
        other => Err(MapError::InvalidMapType {
            map_type: other.map_type_number(),
        }),
    }
}

/// The number of a map's type, for an error.
trait MapTypeNumber {
    fn map_type_number(&self) -> u32;
}

impl MapTypeNumber for Map {
    fn map_type_number(&self) -> u32 {
        match self {
            Self::ArrayOfMaps(_) => bpf_map_type::BPF_MAP_TYPE_ARRAY_OF_MAPS as u32,
            _ => bpf_map_type::BPF_MAP_TYPE_UNSPEC as u32,
        }
    }
}
