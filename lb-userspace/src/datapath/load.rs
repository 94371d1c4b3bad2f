//! Loading the program with the constants of a configuration.

use aya::maps::MapInfo;
use aya::{Ebpf, EbpfLoader};
use lb_common::cache::WAYS;
use lb_common::hash::HashKey;
use lb_common::layout::MAX_FRAGMENTS;
use lb_common::limit::{CLIENT_BUCKETS, CLIENT_ROWS};
use lb_common::suspect::SYN_PLACES;

use super::pins::{self, PinDir, Pinned};
use super::ranges::BLOCKS_A_RANGE;
use super::{Error, object, parts};
use crate::config::{Agent, MAX_QUIC_IDS};

/// What the program is specialised by; what is off is not even verified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Some service takes every port of its address.
    pub wildcard: bool,
    /// Some service takes a range of ports.
    pub ranged: bool,
    /// ARP and neighbour solicitations for service addresses are answered.
    pub announce: bool,
    /// Some service has `forward = "dsr-gue"`.
    pub gue: bool,
    /// Some service has `outer_sources`.
    pub spread: bool,
    /// Frames may have several buffers; see [`super::has_frags`].
    pub frags: bool,
    /// Decisions are written down (`simulate`).
    pub explain: bool,
    /// Dropped packets can be logged.
    pub trace_drops: bool,
    /// Some service answers for its dead backends with resets (`on_down = "reset"`).
    pub resets: bool,
    /// Echo requests to service addresses are answered.
    pub icmp_echo: bool,
    /// Indices of the interface that the kernel cuts packets in pieces for, and of the one that they come back by; zeros:
    /// there is none.
    pub fragment_by: [u32; 2],
    /// ICMP errors that each CPU may send a second; 0: any number.
    pub icmp_error_rate: u32,
    /// Some service has a scheduler other than `maglev`, or `tracking = "full"`.
    pub choosers: bool,
    /// SYNs that a backend does not seem to answer are noted.
    pub suspects: bool,
    /// Some service has an access list.
    pub guards: bool,
    /// Some service limits new flows, or packets.
    pub limits: bool,
    /// Frames may have VLAN tags.
    pub vlans: bool,
    /// Some service keeps its clients (`persistence_timeout`).
    pub persistent: bool,
    /// Some service has forward mode `nat` or `full-nat`.
    pub nat: bool,
    /// Some service has `quic = true`.
    pub quic: bool,
    /// The kernel's routing table says the way of its replies; else they go back where the flow came from.
    pub nat_routes: bool,
}

/// What an agent lets each CPU send, as many as Linux itself in all (`net.ipv4.icmp_msgs_per_sec`).
pub const ICMP_ERROR_RATE: u32 = 1000;

/// How large the maps are made; maps that are pinned already keep their sizes.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub services: u32,
    pub backends: u32,
    /// Entries of the flow table. Its memory is taken as flows come, but for 16 bytes each, rounded up to a power
    /// of two.
    pub flows: u32,
    /// Flows that the cache of `tracking = "full"` has room for: 16 bytes each, rounded up to a power of two, from the
    /// start.
    pub cached_flows: u32,
    /// Clients that are remembered (`persistence_timeout`): the same.
    pub clients: u32,
    /// Flows of `nat` and `full-nat`; each has two entries. Their memory is taken in the same way.
    pub nat_flows: u32,
}

impl Sizes {
    /// Those that a configuration wants.
    #[must_use]
    pub fn of(agent: &Agent) -> Self {
        Self {
            services: agent.max_services,
            backends: agent.max_backends,
            flows: agent.flow_table_size,
            cached_flows: agent.flow_cache_size,
            clients: agent.client_table_size,
            nat_flows: agent.nat_table_size,
        }
    }
}

/// Loads the program and its maps, the pinned ones from `pins` where they exist.
///
/// # Errors
/// [`Error::Load`].
pub fn load(features: Features, key: &HashKey, sizes: Sizes, pins: Option<&PinDir>) -> Result<Ebpf, Error> {
    load_with(features, key, sizes, pins, pins::ALL)
}

/// Loads the program once more beside the one whose maps are pinned, with only the maps `shared` in common.
///
/// # Errors
/// [`Error::Load`].
pub fn load_beside(
    features: Features,
    key: &HashKey,
    sizes: Sizes,
    pins: &PinDir,
    shared: &[Pinned],
) -> Result<Ebpf, Error> {
    load_with(features, key, sizes, Some(pins), shared)
}

fn load_with(
    features: Features,
    key: &HashKey,
    sizes: Sizes,
    pins: Option<&PinDir>,
    pinned: &[Pinned],
) -> Result<Ebpf, Error> {
    let flag = u8::from;
    let Features {
        wildcard,
        ranged,
        announce,
        gue,
        spread,
        frags,
        explain,
        trace_drops,
        resets,
        icmp_echo,
        fragment_by: [fragment_by, fragments_from],
        icmp_error_rate,
        choosers,
        suspects,
        guards,
        limits,
        vlans,
        persistent,
        nat,
        nat_routes,
        quic,
    } = features;
    let plain = flag(!(choosers | guards | limits | nat | quic | spread | vlans));
    let (with_nat, nat_routes) = (flag(nat), flag(nat_routes));
    let (resets, choosers, suspects) = (flag(resets), flag(choosers), flag(suspects));
    let (vlans, gue) = (flag(vlans), flag(gue));
    let (guarded, limited) = (flag(guards), flag(limits));
    let persistent = flag(persistent);
    let quic = flag(quic);
    let spread = flag(spread);
    let object = if frags { object::LB } else { object::LB_PLAIN };
    let frags = flag(frags);
    let second = key.second();
    let flow_lines = lines(pins, &pins::CACHE, sizes.cached_flows)?;
    let client_lines = lines(pins, &pins::CLIENTS, sizes.clients)?;
    let (wildcard, announce, explain, trace) =
        (flag(wildcard), flag(announce), flag(explain), flag(trace_drops));
    let icmp_echo = flag(icmp_echo);
    let ranged = flag(ranged);
    let mut loader = EbpfLoader::new();
    loader
        .override_global("PLAIN", &plain, true)
        .override_global("WILDCARD", &wildcard, true)
        .override_global("RANGED", &ranged, true)
        .override_global("ANNOUNCE", &announce, true)
        .override_global("GUE", &gue, true)
        .override_global("SPREAD", &spread, true)
        .override_global("FRAGS", &frags, true)
        .override_global("EXPLAIN", &explain, true)
        .override_global("TRACE_DROPS", &trace, true)
        .override_global("RESETS", &resets, true)
        .override_global("ICMP_ECHO", &icmp_echo, true)
        .override_global("FRAGMENT_BY", &fragment_by, true)
        .override_global("FRAGMENTS_FROM", &fragments_from, true)
        .override_global("ICMP_ERROR_RATE", &icmp_error_rate, true)
        .override_global("CHOOSERS", &choosers, true)
        .override_global("SUSPECTS", &suspects, true)
        .override_global("VLANS", &vlans, true)
        .override_global("GUARDED", &guarded, true)
        .override_global("PERSISTENT", &persistent, true)
        .override_global("LIMITED", &limited, true)
        .override_global("NAT", &with_nat, true)
        .override_global("NAT_ROUTES", &nat_routes, true)
        .override_global("QUIC", &quic, true)
        .override_global("HASH_KEY", &key.0, true)
        .override_global("SECOND_KEY", &second.0, true)
        .override_global("CACHE_LINES", &flow_lines, true)
        .map_max_entries("CACHE", flow_lines)
        .override_global("CLIENT_LINES", &client_lines, true)
        .map_max_entries("CLIENTS", client_lines)
        .map_max_entries("PERSISTENCE", sizes.services)
        .map_max_entries("CLIENT_COUNTERS", sizes.services)
        // A service and the mark of its address are two entries.
        .map_max_entries("SERVICES", sizes.services * 2)
        // No memory is taken before a range needs it.
        .map_max_entries("RANGES", sizes.services * BLOCKS_A_RANGE)
        .map_max_entries("RECORDS", sizes.services)
        .map_max_entries("FLOWS", sizes.flows)
        .map_max_entries("NAT_FLOWS", sizes.nat_flows * 2)
        .map_max_entries("NAT_COUNTERS", sizes.services)
        .map_max_entries("NAT_FRAGMENTS", if features.nat { 2 * MAX_FRAGMENTS } else { 1 })
        .map_max_entries("FLOW_CONTROL", sizes.services)
        .map_max_entries("GUARDS", sizes.services)
        .map_max_entries("LISTS", sizes.services)
        .map_max_entries("GUARD_COUNTERS", sizes.services)
        .map_max_entries("LIMIT_SERVICES", sizes.services)
        .map_max_entries(
            "LIMIT_CLIENTS",
            if features.limits {
                CLIENT_BUCKETS * CLIENT_ROWS
            } else {
                1
            },
        )
        .map_max_entries("FLOW_COUNTERS", sizes.services)
        .map_max_entries("QUIC_SERVERS", sizes.backends * MAX_QUIC_IDS as u32)
        .map_max_entries("QUIC_LENGTHS", sizes.services)
        .map_max_entries("QUIC_COUNTERS", sizes.services)
        // Index 0 is nobody.
        .map_max_entries("BACKENDS", sizes.backends + 1)
        .map_max_entries("TAGS", sizes.backends + 1)
        .map_max_entries("LOADS", sizes.backends + 1)
        .map_max_entries("CURSORS", sizes.services)
        .map_max_entries("SYNS_SEEN", if features.suspects { SYN_PLACES } else { 1 })
        .map_max_entries("SYNS", sizes.backends + 1)
        .map_max_entries("SIGNS", sizes.backends + 1)
        .map_max_entries("COUNTERS", sizes.backends + 1);
    let paths: Vec<_> = pins
        .map(|dir| {
            pinned
                .iter()
                .filter(|p| !p.map.is_empty())
                .map(|p| (p.map, dir.path(p.pin)))
                .collect()
        })
        .unwrap_or_default();
    for (map, path) in &paths {
        loader.map_pin_path(map, path.as_path());
    }
    let mut ebpf = loader.load(object)?;
    if nat {
        parts::fill(&mut ebpf)?;
    }
    Ok(ebpf)
}

/// Lines of a cache: those of the pinned one, else a power of two with room for so many.
fn lines(pins: Option<&PinDir>, cache: &Pinned, ways: u32) -> Result<u32, Error> {
    match pins.map(|dir| dir.path(cache.pin)) {
        Some(path) if path.exists() => Ok(MapInfo::from_pin(path)?.max_entries()),
        _ => Ok(ways.div_ceil(WAYS as u32).next_power_of_two()),
    }
}
