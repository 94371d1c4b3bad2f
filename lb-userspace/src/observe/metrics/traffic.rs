//! The packet counters of one scrape, read from their pins.

use std::path::Path;

use lb_common::layout::Counters;

use super::Family;
use crate::api::frozen;
use crate::api::types::{DriverStats, LostStats};
use crate::datapath::counters::CounterMaps;
use crate::datapath::maps::add;

/// A service, and where its backends are counted.
#[derive(Clone, Debug)]
pub struct Sender {
    pub service: String,
    /// What backends that it has no longer had counted.
    pub retired: Counters,
    /// Address and port, and index in the maps.
    pub backends: Vec<(String, Option<u32>)>,
}

/// Reads the counters. Blocks for as long as the kernel takes: a system call a backend.
///
/// # Errors
/// Where a map refuses.
pub fn read(maps: &CounterMaps, senders: &[Sender]) -> Result<Vec<Family>, crate::datapath::Error> {
    let mut service_packets = Family::counter("service_packets", "Packets sent to backends of a service.");
    let mut service_bytes = Family::counter("service", "Bytes sent to backends of a service.").bytes();
    let help = "New flows of a service (SYNs seen; an estimate).";
    let mut service_flows = Family::counter("service_new_flows", help);
    let mut packets = Family::counter("backend_packets", "Packets sent to a backend.");
    let mut bytes = Family::counter("backend", "Bytes sent to a backend.").bytes();
    let help = "New flows of a backend (SYNs seen; an estimate).";
    let mut flows = Family::counter("backend_new_flows", help);
    let mut sent = Counters::default();
    for sender in senders {
        let service = ("service", sender.service.as_str());
        let mut total = sender.retired;
        for (place, index) in &sender.backends {
            let counted = match index {
                Some(index) => maps.backend(*index)?,
                None => Counters::default(),
            };
            total = add(&total, &counted);
            let labels = [service, ("backend", place.as_str())];
            packets.row(labels, counted.packets);
            bytes.row(labels, counted.bytes);
            flows.row(labels, counted.new_flows);
        }
        sent = add(&sent, &total);
        service_packets.row([service], total.packets);
        service_bytes.row([service], total.bytes);
        service_flows.row([service], total.new_flows);
    }
    let mut reasons = Family::counter("packets", "Packets by what became of them and why.");
    for reason in frozen::reason_stats(maps.reasons()?, &sent) {
        reasons.row(
            [("reason", &reason.reason), ("verdict", &reason.verdict)],
            reason.packets,
        );
    }
    Ok(vec![
        service_packets,
        service_bytes,
        service_flows,
        packets,
        bytes,
        flows,
        reasons,
    ])
}

/// What was lost after the program's verdict. Blocks for as long as drivers take to say it.
#[must_use]
pub fn lost(interfaces: &[String], pin_dir: &Path) -> Family {
    let help = "Packets that were not sent after the program's verdict, by counters of the driver and tracepoints of the kernel.";
    let mut lost = Family::counter("driver_lost_packets", help);
    for DriverStats {
        interface,
        lost: counts,
    } in frozen::driver_stats(interfaces, pin_dir)
    {
        for LostStats { counter, packets } in counts {
            lost.row([("interface", &interface), ("counter", &counter)], packets);
        }
    }
    lost
}
