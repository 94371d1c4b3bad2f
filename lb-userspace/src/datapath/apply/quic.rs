//! Server ids of QUIC, by difference. An id that changes its backend is written over; one that names a backend which is
//! not known, as after an agent that died, goes before an index can be somebody else's.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::quic::{Lengths, ServerKey};

use super::Dataplane;
use crate::config::QuicId;
use crate::control::Desired;
use crate::datapath::Error;
use crate::model::{BackendId, ServiceKey};

/// Each id of a service, and whose it is.
fn ids(desired: &Desired) -> impl Iterator<Item = (&ServiceKey, QuicId, &BackendId)> {
    desired.services.iter().flat_map(|(key, service)| {
        service.backends.iter().flat_map(move |(id, backend)| {
            let ids = backend.quic_ids.iter();
            ids.map(move |quic| (key, *quic, id))
        })
    })
}

impl Dataplane {
    fn quic_key(&self, service: &ServiceKey, id: QuicId) -> Option<ServerKey> {
        let index = self.services.get(service)?.index;
        Some(ServerKey::new(index, id.config, id.length, id.server))
    }

    /// Takes away what names nobody, before anything else is changed.
    pub(super) fn drop_quic_ids(&mut self, desired: &Desired) -> Result<(), Error> {
        if self.maps.quic.servers().is_empty() {
            return Ok(());
        }
        let wanted: BTreeSet<ServerKey> = ids(desired)
            .filter_map(|(service, id, _)| self.quic_key(service, id))
            .collect();
        let known: BTreeSet<u32> = self.backends.values().copied().collect();
        let servers = self.maps.quic.servers().iter();
        let strange = servers.filter(|(key, backend)| !wanted.contains(key) || !known.contains(backend));
        let strange: Vec<ServerKey> = strange.map(|(key, _)| *key).collect();
        for key in strange {
            self.remove_quic_id(&key)?;
        }
        Ok(())
    }

    /// Writes what is missing, once all backends are there.
    pub(super) fn put_quic_ids(&mut self, desired: &Desired) -> Result<(), Error> {
        let mut lengths: BTreeMap<u32, Lengths> = self
            .services
            .values()
            .map(|installed| (installed.index, Lengths::default()))
            .collect();
        let wanted: Vec<(ServerKey, u32)> = ids(desired)
            .filter_map(|(service, id, backend)| {
                let key = self.quic_key(service, id)?;
                let lengths = lengths.entry(key.service).or_default();
                *lengths = lengths.with(id.config, id.length);
                Some((key, *self.backends.get(backend)?))
            })
            .collect();
        for (key, backend) in wanted {
            if self.maps.quic.servers().get(&key) != Some(&backend) {
                self.put_quic_id(key, backend)?;
            }
        }
        for (service, lengths) in lengths {
            if self.maps.quic.lengths(service) != lengths {
                self.put_quic_lengths(service, lengths)?;
            }
        }
        Ok(())
    }
}
