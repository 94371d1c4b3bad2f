//! What the agent says of what happened: events, history, notifications, metrics, and what outlives a reboot.

mod support;

use std::sync::Arc;

use anyhow::Context;
use lb_tests::cleanup::Folder;
use lb_tests::lab::{Lab, LabOptions};
use lb_tests::server::Server;
use lb_tests::unprivileged;
use lb_tests::wait::wait_for;
use serde_json::Value;
use support::{FAST, Xlb, addresses, service};

const VIP: &str = "192.0.2.10";

/// A client, the load balancer and two backends that serve.
struct World {
    lab: Lab,
    servers: Vec<Option<Server>>,
    _folder: Arc<Folder>,
}

impl World {
    fn new() -> anyhow::Result<Self> {
        let lab = Lab::new(LabOptions {
            backends: 2,
            ..LabOptions::default()
        })?;
        let folder = Arc::new(Folder::new("servers")?);
        let servers = lab
            .backends
            .iter()
            .map(|b| Server::http(b, 80, &folder).map(Some));
        let servers = servers.collect::<anyhow::Result<_>>()?;
        Ok(Self {
            lab,
            servers,
            _folder: folder,
        })
    }

    fn web(&self) -> String {
        let backends = addresses(&self.lab, false);
        service("web", VIP, 80, "tcp", "dsr-l2", FAST, &backends)
    }

    fn kill(&mut self, server: usize) -> anyhow::Result<()> {
        self.servers[server]
            .take()
            .context("it was killed before")?
            .kill()
    }
}

fn events(xlb: &Xlb) -> anyhow::Result<Vec<Value>> {
    let batch: Value = serde_json::from_str(&xlb.verb("events -o json")?)?;
    batch["events"].as_array().cloned().context("no events")
}

/// Waits for an event that is as wanted.
fn event(xlb: &Xlb, what: &str, wanted: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
    let find = || events(xlb)?.into_iter().find(&wanted).context("not there");
    wait_for(what, find).with_context(|| format!("events: {:#?}", events(xlb)))
}

#[test]
fn a_death_and_an_order_are_events_with_their_cause() -> anyhow::Result<()> {
    if unprivileged("a_death_and_an_order_are_events_with_their_cause") {
        return Ok(());
    }
    let mut world = World::new()?;
    let xlb = Xlb::started(&world.lab, "", &world.web())?;
    let started = event(&xlb, "the start", |e| e["kind"] == "agent_started")?;
    assert_eq!(started["detail"]["warm"], false);
    event(&xlb, "attached", |e| e["detail"]["interface"] == "eth0")?;

    world.kill(0)?;
    let [b1, b2] = [0, 1].map(|n: usize| format!("{}:80", world.lab.backends[n].v4));
    let down = event(&xlb, "DOWN", |e| e["detail"]["to"] == "DOWN")?;
    assert_eq!(down["kind"], "backend_state");
    assert_eq!((&down["service"], &down["backend"]), (&"web".into(), &b1.into()));
    assert_eq!(down["detail"]["code"], "L4CON");
    let after = |e: &Value| e["seq"].as_u64() > down["seq"].as_u64();
    let table = event(&xlb, "the table", |e| e["kind"] == "table_switched" && after(e))?;
    assert!(table["detail"]["moved_slots"].as_u64() > Some(0), "{table}");

    xlb.verb(&format!("backend drain web {b2} --force"))?;
    let drain = event(&xlb, "the order", |e| e["kind"] == "backend_admin")?;
    assert_eq!(
        (&drain["backend"], &drain["detail"]["to"]),
        (&b2.into(), &"DRAIN".into())
    );
    let all_down = event(&xlb, "all down", |e| e["kind"] == "all_down")?;
    assert_eq!(all_down["detail"]["kept"], true);
    let said = xlb.verb("events -n 1000")?;
    assert!(
        said.contains("UP -> DOWN (L4CON") && said.contains("READY -> DRAIN"),
        "{said}"
    );
    Ok(())
}
