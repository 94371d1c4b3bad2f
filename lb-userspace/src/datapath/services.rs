//! The map of services and the front before it.
//!
//! The map is the truth. A packet asks the front first, an array with one cache line a bucket, and the map only where
//! the bucket says that it has no room for all of its keys.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use aya::maps::{HashMap, Map, MapData, MapError};
use lb_common::layout::{SERVICE_BUCKETS, ServiceBucket, ServiceDoor, ServiceKey};

use super::Error;
use super::maps::data_of;
use super::mmap::Words;
use super::slabs::QUARANTINE;

const WORDS_A_BUCKET: usize = size_of::<ServiceBucket>() / 8;
const WORDS_A_DOOR: usize = size_of::<ServiceDoor>() / 8;
const DOORS: usize = 2;
const OVERFLOW: usize = DOORS * WORDS_A_DOOR;

/// The indices of services by their keys.
#[derive(Debug)]
pub struct Services {
    map: HashMap<MapData, ServiceKey, u32>,
    buckets: Words,
    /// Doors (bucket, number) that packets may still be reading.
    resting: BTreeMap<(u32, usize), Instant>,
}

impl Services {
    pub(super) fn open(map: Map, buckets: &Map) -> Result<Self, Error> {
        let words = SERVICE_BUCKETS as usize * WORDS_A_BUCKET;
        let buckets = Words::map(data_of(buckets)?.fd(), words).map_err(|source| Error::Syscall {
            call: "mmap of the buckets of services",
            source,
        })?;
        Ok(Self {
            map: map.try_into()?,
            buckets,
            resting: BTreeMap::new(),
        })
    }

    /// The index of a service.
    ///
    /// # Errors
    /// [`MapError::KeyNotFound`] and what the kernel says.
    pub fn get(&self, key: &ServiceKey) -> Result<u32, MapError> {
        self.map.get(key, 0)
    }

    /// Every key.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn keys(&self) -> Result<Vec<ServiceKey>, MapError> {
        self.map.keys().collect()
    }

    /// Makes a service visible to packets.
    ///
    /// # Errors
    /// What the kernel says, a full map among it; nothing is changed then.
    pub fn insert(&mut self, key: ServiceKey, index: u32) -> Result<(), MapError> {
        self.note(key, index)?;
        self.show(&key, index);
        Ok(())
    }

    /// The first half of [`Self::insert`]: what is true; packets do not find it yet unless their bucket is full.
    pub(super) fn note(&mut self, key: ServiceKey, index: u32) -> Result<(), MapError> {
        self.map.insert(key, index, 0)
    }

    /// The second half.
    pub(super) fn show(&mut self, key: &ServiceKey, index: u32) {
        if is_service(key) {
            self.open_door(key, index);
        }
    }

    /// Hides a service from packets.
    ///
    /// # Errors
    /// What the kernel says; the service is hidden all the same unless it has no door of its own.
    pub fn remove(&mut self, key: &ServiceKey) -> Result<(), MapError> {
        self.shut(key);
        self.forget(key)
    }

    /// The first half of [`Self::remove`].
    pub(super) fn shut(&mut self, key: &ServiceKey) {
        if let Some(number) = self.door_of(key) {
            self.buckets
                .set(place(key.bucket(), number) + WORDS_A_DOOR - 1, 0);
            self.resting.insert((key.bucket(), number), Instant::now());
        }
    }

    /// The second half.
    pub(super) fn forget(&mut self, key: &ServiceKey) -> Result<(), MapError> {
        self.map.remove(key)
    }

    /// The door that a key has.
    fn door_of(&self, key: &ServiceKey) -> Option<usize> {
        (0..DOORS).find(|number| {
            let door = self.door(key.bucket(), *number);
            door.word as u32 == key.tail() && door.address == key.halves()
        })
    }

    fn door(&self, bucket: u32, number: usize) -> ServiceDoor {
        let at = place(bucket, number);
        ServiceDoor {
            address: [self.buckets.get(at), self.buckets.get(at + 1)],
            word: self.buckets.get(at + 2),
        }
    }

    fn open_door(&mut self, key: &ServiceKey, index: u32) {
        let bucket = key.bucket();
        let ServiceDoor { address, word } = ServiceDoor::new(key, index);
        if let Some(number) = self.door_of(key) {
            // The same service under another index: one store.
            self.buckets.set(place(bucket, number) + 2, word);
            return;
        }
        self.resting.retain(|_, since| since.elapsed() < QUARANTINE);
        let free = (0..DOORS).find(|number| {
            self.door(bucket, *number).word == 0 && !self.resting.contains_key(&(bucket, *number))
        });
        let Some(number) = free else {
            self.buckets.set(bucket as usize * WORDS_A_BUCKET + OVERFLOW, 1);
            return;
        };
        let at = place(bucket, number);
        self.buckets.set(at, address[0]);
        self.buckets.set(at + 1, address[1]);
        self.buckets.set(at + 2, word);
    }

    /// Makes the front say what the map says: what a killed agent left half done is finished.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn put_right(&mut self) -> Result<(), Error> {
        let mut known = BTreeMap::new();
        for entry in self.map.iter() {
            let (key, index) = entry?;
            if is_service(&key) {
                known.insert(key, index);
            }
        }
        let doors: BTreeSet<_> = known
            .iter()
            .map(|(key, index)| (key.bucket(), ServiceDoor::new(key, *index)))
            .map(|(bucket, door)| (bucket, door.address, door.word))
            .collect();
        for bucket in 0..SERVICE_BUCKETS {
            for number in 0..DOORS {
                let ServiceDoor { address, word } = self.door(bucket, number);
                if word != 0 && !doors.contains(&(bucket, address, word)) {
                    self.buckets.set(place(bucket, number) + 2, 0);
                    self.resting.insert((bucket, number), Instant::now());
                }
            }
        }
        for (key, index) in known {
            self.open_door(&key, index);
        }
        Ok(())
    }
}

/// Whether packets look for this key; the mark of an address is asked for on rare paths only.
fn is_service(key: &ServiceKey) -> bool {
    key.protocol != 0
}

/// The first word of a door.
fn place(bucket: u32, number: usize) -> usize {
    bucket as usize * WORDS_A_BUCKET + number * WORDS_A_DOOR
}
