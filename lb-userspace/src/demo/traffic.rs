//! Requests through every way to forward, and who served how many.

use std::collections::BTreeMap;

use serde::Serialize;

use super::narrate::Narrator;
use super::scene::{Scene, wait_begun};
use crate::lab::load::{Load, LoadOptions};

const REQUESTS: u64 = 300;

#[derive(Debug, Serialize)]
pub(super) struct Served {
    pub service: String,
    pub address: String,
    pub forward: String,
    pub attempted: usize,
    pub failed: usize,
    pub by_backend: BTreeMap<String, usize>,
    pub kept: bool,
}

pub(super) fn run(scene: &Scene, say: &mut Narrator) -> anyhow::Result<Vec<Served>> {
    say.step("sending requests through each service address");
    let mut all = Vec::new();
    for service in &scene.config.services {
        let options = LoadOptions {
            connections_per_s: 1000,
            ..LoadOptions::new(scene.targets(Some(&service.name)))
        };
        let load = Load::start(&scene.lab.client.netns, options)?;
        wait_begun(&load, REQUESTS)?;
        let attempts = load.finish()?;
        let by_backend = attempts.served();
        let shares: Vec<_> = by_backend
            .iter()
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        say.done(&format!(
            "{:<9}  {:<9} {:<13}  {} requests, {} failed; served by: {}",
            service.name,
            service.forward.to_string(),
            service.address.to_string(),
            attempts.attempted(),
            attempts.failed(),
            shares.join(", ")
        ));
        for (error, count) in attempts.errors() {
            say.done(&format!("  {count} x {error}"));
        }
        all.push(Served {
            service: service.name.clone(),
            address: service.address.to_string(),
            forward: service.forward.to_string(),
            attempted: attempts.attempted(),
            failed: attempts.failed(),
            kept: attempts.failed() == 0 && by_backend.len() == scene.lab.backends.len(),
            by_backend,
        });
    }
    Ok(all)
}
