//! `xlb decap` on a backend: whose packets it unwraps, and that it leaves all others alone.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, ensure};
use lb_tests::agent::Agent;
use lb_tests::cleanup::Folder;
use lb_tests::config::{Config, FAST_CHECK, every_way};
use lb_tests::lab::{Lab, LabOptions, VIPS_V4, VIPS_V6};
use lb_tests::load::{Attempts, Load, LoadOptions};
use lb_tests::server::Server;
use lb_tests::unprivileged;
use lb_tests::wait::wait_until;

fn requests(lab: &Lab, address: IpAddr, count: u64) -> anyhow::Result<Attempts> {
    let load = Load::start(
        &lab.client.netns,
        LoadOptions::new(vec![SocketAddr::new(address, 80)]),
    )?;
    wait_until("the requests", || Ok(load.begun() >= count))?;
    load.finish()
}

/// Counts by outcome of the first backend.
fn count(lab: &Lab, outcome: &str) -> anyhow::Result<u64> {
    let status = lab.backends[0].decap_status()?;
    let counts = &status["interfaces"][0]["counts"];
    counts[outcome]
        .as_u64()
        .with_context(|| format!("no {outcome} in {status:#}"))
}

#[test]
fn only_packets_of_the_load_balancers_named_are_unwrapped() -> anyhow::Result<()> {
    if unprivileged("only_packets_of_the_load_balancers_named_are_unwrapped") {
        return Ok(());
    }
    let lab = Lab::new(LabOptions {
        backends: 1,
        decap: true,
        ..LabOptions::default()
    })?;
    let folder = Arc::new(Folder::new("decap")?);
    let _server = Server::http(&lab.backends[0], 80, &folder)?;
    let services = every_way(&lab.backends);
    let config = Config {
        check: FAST_CHECK.into(),
        services,
        ..Config::default()
    };
    let _agent = Agent::running(&lab.lb.netns, &config)?;
    for address in [IpAddr::from(VIPS_V4[1]), VIPS_V6[1].into(), VIPS_V4[2].into()] {
        let before = count(&lab, "decapsulated")?;
        let attempts = requests(&lab, address, 20)?;
        ensure!(attempts.failed() == 0, "{address}: {:?}", attempts.errors());
        ensure!(count(&lab, "decapsulated")? >= before + 20, "{address}");
    }
    // Another load balancer is to be trusted from now on; ours is foreign.
    lab.backends[0].unwrap_from(&["10.77.0.99".into(), "fd77::99".into()])?;
    for address in [IpAddr::from(VIPS_V4[1]), VIPS_V6[1].into(), VIPS_V4[2].into()] {
        let before = (count(&lab, "decapsulated")?, count(&lab, "not_from_us")?);
        let attempts = requests(&lab, address, 5)?;
        assert_eq!(attempts.failed(), attempts.attempted(), "{address}");
        let after = (count(&lab, "decapsulated")?, count(&lab, "not_from_us")?);
        assert_eq!(after.0, before.0, "{address}");
        ensure!(after.1 >= before.1 + 5, "{address}: {after:?}");
    }
    // What is not encapsulated is none of its business.
    let attempts = requests(&lab, lab.backends[0].v4.into(), 5)?;
    assert_eq!(attempts.failed(), 0, "{:?}", attempts.errors());
    Ok(())
}
