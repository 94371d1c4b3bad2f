//! What user space keeps beside the program's maps: the identity behind each index, states, and what was counted.

use lb_common::layout::{BackendMeta, NAME_LEN, ServiceMeta};

use crate::control::DesiredBackend;
use crate::datapath::identity;
use crate::model::{AdminState, BackendId, Forward, OperState, Tracking};

/// What the pinned maps say of a backend: where the next agent goes on.
#[derive(Clone, Copy, Debug)]
pub struct Remembered {
    pub state: OperState,
    pub admin: AdminState,
    pub runtime_weight: Option<u16>,
    pub ever_up: bool,
}

const HAS_RUNTIME_WEIGHT: u8 = 1;
const EVER_UP: u8 = 2;

/// What a backend's metadata says of its states.
#[must_use]
pub fn remembered(meta: &BackendMeta) -> Remembered {
    Remembered {
        state: match meta.state {
            1 => OperState::Down,
            2 => OperState::Up,
            _ => OperState::Unknown,
        },
        admin: match meta.admin {
            1 => AdminState::Drain,
            2 => AdminState::Maint,
            _ => AdminState::Ready,
        },
        runtime_weight: (meta.flags & HAS_RUNTIME_WEIGHT != 0).then_some(meta.runtime_weight),
        ever_up: meta.flags & EVER_UP != 0,
    }
}

/// The metadata of a backend of the service with an index. `check`: code and latency in microseconds.
pub(super) fn of_backend(
    id: &BackendId,
    service: u32,
    backend: &DesiredBackend,
    (check_code, latency_us): (u8, u32),
) -> BackendMeta {
    let (address, family) = identity::words(id.address);
    let runtime = backend.status.runtime_weight;
    BackendMeta {
        address,
        service,
        port: id.port.to_be(),
        weight: backend.weight,
        family,
        in_use: 1,
        state: match backend.status.state {
            OperState::Unknown => 0,
            OperState::Down => 1,
            OperState::Up => 2,
        },
        admin: match backend.status.admin {
            AdminState::Ready => 0,
            AdminState::Drain => 1,
            AdminState::Maint => 2,
        },
        flags: u8::from(runtime.is_some()) * HAS_RUNTIME_WEIGHT + u8::from(backend.status.ever_up) * EVER_UP,
        check_code,
        runtime_weight: runtime.unwrap_or(0),
        latency_us,
    }
}

/// The name in a service's metadata.
#[must_use]
pub fn name_of(meta: &ServiceMeta) -> String {
    let len = meta.name.iter().position(|b| *b == 0).unwrap_or(NAME_LEN);
    String::from_utf8_lossy(&meta.name[..len]).into_owned()
}

/// A name as metadata holds it, cut where it is too long.
pub(super) fn name_bytes(name: &str) -> [u8; NAME_LEN] {
    let mut bytes = [0; NAME_LEN];
    let len = name.len().min(NAME_LEN - 1);
    bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
    bytes
}

/// The forward mode in a service's metadata.
#[must_use]
pub fn forward_of(meta: &ServiceMeta) -> Option<Forward> {
    match meta.forward {
        1 => Some(Forward::DsrL2),
        2 => Some(Forward::DsrIpip),
        5 => Some(Forward::DsrGue),
        3 => Some(Forward::Nat),
        4 => Some(Forward::FullNat),
        _ => None,
    }
}

pub(super) fn forward_code(forward: Forward) -> u8 {
    match forward {
        Forward::DsrL2 => 1,
        Forward::DsrIpip => 2,
        Forward::DsrGue => 5,
        Forward::Nat => 3,
        Forward::FullNat => 4,
    }
}

/// What the service remembers of its flows, by its metadata.
#[must_use]
pub fn tracking_of(meta: &ServiceMeta) -> Tracking {
    match meta.tracking {
        1 => Tracking::Moved,
        2 => Tracking::Full,
        _ => Tracking::None,
    }
}

pub(super) fn tracking_code(tracking: Tracking) -> u8 {
    match tracking {
        Tracking::None => 0,
        Tracking::Moved => 1,
        Tracking::Full => 2,
    }
}
