//! The lab itself, without `xlb` in it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use lb_tests::cleanup::Folder;
use lb_tests::lab::{Lab, LabOptions};
use lb_tests::load::{Load, LoadOptions};
use lb_tests::privileged;
use lb_tests::server::Server;
use lb_tests::wait::wait_until;

#[test]
fn the_client_reaches_the_backends_own_addresses() -> anyhow::Result<()> {
    privileged!("the_client_reaches_the_backends_own_addresses");
    let lab = Lab::new(LabOptions::default())?;
    let folder = Arc::new(Folder::new("lab")?);
    let servers = lab.backends.iter().map(|b| Server::http(b, 80, &folder));
    let servers = servers.collect::<anyhow::Result<Vec<_>>>()?;
    let targets = lab
        .backends
        .iter()
        .flat_map(|b| [IpAddr::from(b.v4), IpAddr::from(b.v6)]);
    let targets: Vec<_> = targets.map(|address| SocketAddr::new(address, 80)).collect();
    let load = Load::start(&lab.client.netns, LoadOptions::new(targets.clone()))?;
    while load.begun() < 600 {
        sleep(Duration::from_millis(10));
    }
    let attempts = load.finish()?;
    assert_eq!(attempts.failed(), 0, "{:?}", attempts.errors());
    for attempt in &attempts.0 {
        let host = &lab.backends[targets.iter().position(|t| *t == attempt.target).unwrap() / 2];
        assert_eq!(attempt.outcome.as_ref(), Ok(&host.name));
    }
    assert_eq!(lab.checksum_errors()?, 0);
    drop(servers);
    Ok(())
}

#[test]
fn a_dead_server_refuses_and_a_cut_machine_is_silent() -> anyhow::Result<()> {
    privileged!("a_dead_server_refuses_and_a_cut_machine_is_silent");
    let lab = Lab::new(LabOptions {
        backends: 2,
        ..LabOptions::default()
    })?;
    let folder = Arc::new(Folder::new("lab")?);
    let first = Server::http(&lab.backends[0], 80, &folder)?;
    let _second = Server::http(&lab.backends[1], 80, &folder)?;
    let once = |address: IpAddr| -> anyhow::Result<String> {
        let options = LoadOptions {
            connections_per_s: 10,
            ..LoadOptions::new(vec![SocketAddr::new(address, 80)])
        };
        let load = Load::start(&lab.client.netns, options)?;
        while load.begun() < 1 {
            sleep(Duration::from_millis(1));
        }
        let attempts = load.finish()?;
        Ok(attempts.0[0].outcome.clone().unwrap_or_else(|error| error))
    };
    first.kill()?;
    lab.cut("b2")?;
    for like in ["10.0.0.0", "::"] {
        let like: IpAddr = like.parse()?;
        let refused = once(lab.backends[0].address(like))?;
        assert!(refused.contains("refused"), "{refused}");
        assert_eq!(once(lab.backends[1].address(like))?, "no answer in time");
    }
    lab.mend("b2")?;
    wait_until("b2 to be back", || Ok(once(lab.backends[1].v4.into())? == "b2"))?;
    Ok(())
}
