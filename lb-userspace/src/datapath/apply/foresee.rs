//! What a change would do, with nothing written: the steps of [`Dataplane::apply`] on what it would start from.

use std::collections::{BTreeMap, HashSet};

use lb_common::rule::Standing;

use super::members::standing;
use super::tables::Owners;
use super::{BUILT_TOGETHER, Change, ChangeKind, Dataplane, name_of};
use crate::control::indices::Indices;
use crate::control::{Desired, DesiredService};
use crate::datapath::Error;
use crate::datapath::clock::Clock;
use crate::model::{BackendId, ServiceKey};

/// What [`Dataplane::apply`] would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Foreseen {
    /// As [`Dataplane::apply`] would tell them.
    pub changes: Vec<Change>,
    /// By the index of a service whose table keeps its size: for each slot, whether it would have another owner.
    pub moving: BTreeMap<u32, Vec<bool>>,
    /// Slots of each table that there would be.
    pub sizes: BTreeMap<ServiceKey, u32>,
    /// Slabs of tables that there are, and that there must be while tables of before and after are there.
    pub slabs: (u32, u32),
}

impl Dataplane {
    /// What [`Dataplane::apply`] would do with `desired` now.
    ///
    /// # Errors
    /// [`Error::Full`] and [`Error::NoSlabs`] where that would fail, [`Error::Map`].
    pub fn foresee(&self, desired: &Desired, clock: Clock<'_>) -> Result<Foreseen, Error> {
        self.check_room(desired)?;
        let now_ns = clock();
        let mut indices = self.backend_indices.clone();
        let mut allocator = self.allocator.clone();
        let mut foreseen = Foreseen {
            slabs: (allocator.slabs(), 0),
            ..Foreseen::default()
        };
        let services: Vec<_> = desired.services.iter().collect();
        for some in services.chunks(BUILT_TOGETHER) {
            let mut built = self.build_all(some);
            for (key, service) in some {
                let fresh = self.foresee_service(
                    key,
                    service,
                    (&mut indices, built.remove(*key)),
                    now_ns,
                    &mut foreseen,
                )?;
                if let Some(size) = fresh.filter(|size| *size > 0) {
                    let place = allocator.allocate(size, now_ns, self.grace.ended());
                    place.ok_or(Error::NoSlabs { size })?;
                }
            }
        }
        foreseen.slabs.1 = allocator.slabs();
        for (key, installed) in &self.services {
            if !desired.services.contains_key(key) {
                foreseen.changes.push(Change {
                    name: installed.meta.as_ref().map(name_of).unwrap_or_default(),
                    key: *key,
                    kind: ChangeKind::Removed,
                });
            }
        }
        Ok(foreseen)
    }

    /// Gives back the size of a table that would have to be written.
    fn foresee_service(
        &self,
        key: &ServiceKey,
        service: &DesiredService,
        (indices, built): (&mut Indices<BackendId>, Option<Owners>),
        now_ns: u64,
        foreseen: &mut Foreseen,
    ) -> Result<Option<u32>, Error> {
        let change = |kind| Change {
            name: service.name.clone(),
            key: *key,
            kind,
        };
        let Some(installed) = self.services.get(key) else {
            let slots = if service.candidates.is_empty() {
                0
            } else {
                service.size
            };
            foreseen.changes.push(change(ChangeKind::Added { slots }));
            foreseen.sizes.insert(*key, slots);
            return Ok(Some(slots));
        };
        let (standings, places) = self.standings(service, indices);
        let index_of = |id: &BackendId| places.get(id).copied();
        let stepped = self.stepped(key, service, &standings, &index_of, built, now_ns)?;
        let before = &installed.in_force.tables.now.slots;
        let Some(stepped) = stepped else {
            foreseen.sizes.insert(*key, before.len() as u32);
            return Ok(None);
        };
        let (after, moved) = (&stepped.advanced.tables.now.slots, stepped.advanced.moved);
        let slots = after.len() as u32;
        foreseen.sizes.insert(*key, slots);
        if moved > 0 {
            foreseen.changes.push(change(ChangeKind::Table {
                moved,
                slots,
                generation: installed.generation + 1,
            }));
            if before.len() == after.len() {
                let pairs = before.iter().zip(after);
                let moving = pairs.map(|(before, after)| before.current() != after.current());
                foreseen.moving.insert(installed.index, moving.collect());
            }
        }
        Ok((before != after).then_some(slots))
    }

    /// What the backends of a service would take, by index, and their indices: new ones get those that they would get.
    fn standings(
        &self,
        service: &DesiredService,
        free: &mut Indices<BackendId>,
    ) -> (BTreeMap<u32, Standing>, BTreeMap<BackendId, u32>) {
        let taking: HashSet<_> = service.candidates.iter().map(|c| (c.address, c.port)).collect();
        let mut standings = BTreeMap::new();
        let mut places = BTreeMap::new();
        for (id, backend) in &service.backends {
            let known = self.backends.get(id).copied();
            // There is room for all of them.
            let Some(index) = known.or_else(|| free.take(id).map(|taken| taken.index)) else {
                continue;
            };
            let takes_new = taking.contains(&(id.address, id.port));
            standings.insert(index, standing(takes_new, backend));
            places.insert(*id, index);
        }
        (standings, places)
    }
}
