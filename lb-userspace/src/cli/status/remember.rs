//! Flows and clients that are remembered, as `xlb status` shows them.

use std::fmt::Write;

use crate::api::types::{FlowCacheStatus, MemoryStatus, PersistenceStatus};
use crate::cli::human;

pub(super) fn cache_lines(cache: &FlowCacheStatus) -> String {
    let FlowCacheStatus {
        capacity,
        flows,
        memory_bytes,
        evicted,
        crowded,
    } = cache;
    let mut text = format!(
        "\nflow cache {} of {} flows ({})\n",
        human::count(*flows),
        human::count(*capacity),
        human::bytes(*memory_bytes),
    );
    if evicted + crowded > 0 {
        let _ = writeln!(
            text,
            "  {} lost their place, {} were chosen for by their hash",
            human::count(*evicted),
            human::count(*crowded),
        );
    }
    text
}

pub(super) fn memory_line(memory: &MemoryStatus) -> String {
    let MemoryStatus {
        agent_bytes,
        maps_bytes,
    } = *memory;
    let agent = match agent_bytes {
        0 => String::new(),
        bytes => format!("the agent {}, ", human::bytes(bytes)),
    };
    format!("\nmemory: {agent}maps {}\n", human::bytes(maps_bytes))
}

/// A line under those of a service.
pub(super) fn client_lines(persistence: &PersistenceStatus) -> String {
    let PersistenceStatus {
        timeout_s,
        prefix,
        clients,
        room,
        remembered: _,
        kept,
        moved,
        refused,
    } = persistence;
    let mut text = format!(
        "  persistence: clients of /{prefix} for {}; {} remembered, {} new flows led to where their client was",
        human::span(std::time::Duration::from_secs_f64(*timeout_s)),
        human::count(*clients),
        human::count(*kept),
    );
    if *moved > 0 {
        let _ = write!(text, ", {} to another backend", human::count(*moved));
    }
    text += "\n";
    if *refused > 0 {
        let _ = writeln!(
            text,
            "  NO ROOM for {} clients: the room for {} is that of client_table_size",
            human::count(*refused),
            human::count(*room),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_shown_with_what_became_of_them() {
        let mut persistence = PersistenceStatus {
            timeout_s: 600.0,
            prefix: 24,
            clients: 1200,
            room: 65_536,
            remembered: 1300,
            kept: 5000,
            moved: 0,
            refused: 0,
        };
        assert_eq!(
            client_lines(&persistence),
            "  persistence: clients of /24 for 10m; 1,200 remembered, 5,000 new flows led to where their client was\n"
        );
        (persistence.moved, persistence.refused) = (7, 3);
        let text = client_lines(&persistence);
        assert!(text.contains(", 7 to another backend\n"), "{text}");
        assert!(text.contains("NO ROOM for 3 clients"), "{text}");
    }

    #[test]
    fn a_cache_says_how_full_it_is_and_what_it_lost() {
        let mut cache = FlowCacheStatus {
            capacity: 262_144,
            flows: 1000,
            memory_bytes: 4 << 20,
            evicted: 0,
            crowded: 0,
        };
        let quiet = cache_lines(&cache);
        assert!(quiet.contains("1,000 of 262,144 flows"), "{quiet}");
        assert_eq!(quiet.lines().count(), 2);
        cache.evicted = 5;
        assert!(cache_lines(&cache).contains("5 lost their place, 0 were chosen"));
    }
}
