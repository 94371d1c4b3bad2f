//! The keys of `[service.limit]`.

use super::{Key, Table};
use crate::config::shape::Shape;

/// A million times the least: more is no limit.
const RATE: Shape = Shape::Integer {
    min: 1,
    max: 10_000_000,
};

pub static LIMIT: Table = Table {
    id: "limit",
    header: "[service.limit]",
    keys: &[
        &NEW_FLOWS,
        &NEW_FLOWS_PER_CLIENT,
        &UDP_PACKETS_PER_CLIENT,
        &CLIENT_PREFIX_V4,
        &CLIENT_PREFIX_V6,
        &DRY_RUN,
    ],
    planned: &[],
};
pub static LIMIT_TABLE: Key = Key::optional(
    "limit",
    Shape::Table(&LIMIT),
    "How much the service takes; what is beyond is dropped.",
);
pub static NEW_FLOWS: Key = Key::optional(
    "new_flows",
    RATE,
    "How many connections a second the service takes, by their SYNs. Segments of connections always pass.",
);
pub static NEW_FLOWS_PER_CLIENT: Key = Key::optional(
    "new_flows_per_client",
    RATE,
    "How many connections a second it takes from one client prefix, by their SYNs.",
);
pub static UDP_PACKETS_PER_CLIENT: Key = Key::optional(
    "udp_packets_per_client",
    RATE,
    "How many datagrams a second it takes from one client prefix.",
);
pub static CLIENT_PREFIX_V4: Key = Key::with_default(
    "client_prefix_v4",
    Shape::Integer { min: 8, max: 32 },
    "32",
    "How many bits of its IPv4 address make a client.",
);
pub static CLIENT_PREFIX_V6: Key = Key::with_default(
    "client_prefix_v6",
    Shape::Integer { min: 16, max: 128 },
    "64",
    "How many bits of its IPv6 address make a client.",
);
pub static DRY_RUN: Key = Key::with_default(
    "dry_run",
    Shape::Boolean,
    "false",
    "Only count what would be dropped.",
);
