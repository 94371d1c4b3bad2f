//! The numbers, and the table at the end.

use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::connections::Connections;
use super::drain::Drain;
use super::failover::Failover;
use super::restart::Restart;
use super::traffic::Served;

#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    pub connections: Vec<Connections>,
    pub traffic: Vec<Served>,
    pub failover: Vec<Failover>,
    pub drain: Option<Drain>,
    pub restart: Option<Restart>,
    /// What should be gone and is not.
    pub left_behind: Vec<String>,
    pub took_s: f64,
    /// Whether every promise was kept.
    pub kept: bool,
}

impl Report {
    pub fn finish(&mut self, took: Duration) {
        let Self {
            connections,
            traffic,
            failover,
            drain,
            restart,
            left_behind,
            took_s,
            kept,
        } = self;
        *took_s = took.as_secs_f64();
        *kept = left_behind.is_empty()
            && connections.iter().all(|part| part.kept)
            && traffic.iter().all(|part| part.kept)
            && failover.iter().all(|part| part.kept)
            && drain.iter().all(|part| part.kept)
            && restart.iter().all(|part| part.kept);
    }

    pub fn table(&self) -> String {
        let Self {
            connections,
            traffic,
            failover,
            drain,
            restart,
            left_behind,
            took_s,
            kept,
        } = self;
        let mut table = Table::new();
        table.load_style(presets::UTF8_BORDERS_ONLY);
        table.set_header(["what", "attempted", "failed", "measured", "allowed", ""]);
        let verdict = |kept: bool| if kept { "kept" } else { "BROKEN" }.to_owned();
        for Connections {
            event,
            alive,
            broken,
            lost,
            maglev,
            tracked,
            kept,
        } in connections
        {
            table.add_row([
                format!("{event}: {broken} of {alive} flows broken, {lost} lost with their backend"),
                alive.to_string(),
                broken.to_string(),
                format!("{maglev} by Maglev alone"),
                if *tracked { "0" } else { "-" }.into(),
                verdict(*kept),
            ]);
        }
        for Served {
            service,
            address,
            forward,
            attempted,
            failed,
            by_backend,
            kept,
        } in traffic
        {
            table.add_row([
                format!("requests to {service} ({forward}, {address})"),
                attempted.to_string(),
                failed.to_string(),
                format!("{} backends", by_backend.len()),
                "0 failed".into(),
                verdict(*kept),
            ]);
        }
        for Failover {
            settings,
            event,
            connections_per_s: _,
            attempted,
            failed,
            last_failure_ms,
            allowed_ms,
            kept,
        } in failover
        {
            table.add_row([
                format!("{}, checks: {settings}", event.text()),
                attempted.to_string(),
                failed.to_string(),
                last_failure_ms.map_or("no failure".into(), |ms| format!("last after {ms} ms")),
                format!("{allowed_ms} ms"),
                verdict(*kept),
            ]);
        }
        if let Some(Drain {
            backend,
            attempted,
            failed,
            to_drained,
            kept,
        }) = drain
        {
            table.add_row([
                format!("{backend} drained"),
                attempted.to_string(),
                failed.to_string(),
                format!("{to_drained} new to {backend}"),
                "0".into(),
                verdict(*kept),
            ]);
        }
        if let Some(Restart {
            attempted,
            failed,
            adopted,
            kept,
        }) = restart
        {
            table.add_row([
                "agent killed and started again".into(),
                attempted.to_string(),
                failed.to_string(),
                if *adopted { "adopted" } else { "not adopted" }.into(),
                "0 failed".into(),
                verdict(*kept),
            ]);
        }
        table.add_row([
            "left on the machine".into(),
            String::new(),
            String::new(),
            left_behind.len().to_string(),
            "0".into(),
            verdict(left_behind.is_empty()),
        ]);
        for column in [1, 2] {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let verdict = if *kept {
            "every promise kept"
        } else {
            "A PROMISE WAS BROKEN"
        };
        format!("{table}\n{verdict}; {took_s:.0} s")
    }
}
