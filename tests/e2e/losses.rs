//! What becomes of packets after the program's verdict.

mod support;

use anyhow::{Context, ensure};
use lb_tests::lab::LabOptions;
use lb_tests::privileged;
use serde_json::Value;
use support::{VIP, World, Xlb, curl};

const COUNTER: &str = "rx_queue_N_xdp_tx_errors";

/// Tracepoints: not sent back, not taken by another interface, not redirected at all.
const TRANSMITTED: &str = "xdp:xdp_bulk_tx";
const REDIRECTED: &str = "xdp:xdp_devmap_xmit";
const REFUSED: &str = "xdp:xdp_redirect_err";

fn lost(xlb: &Xlb) -> anyhow::Result<u64> {
    lost_by(xlb, "eth0", COUNTER)
}

/// Packets that a counter of an interface has.
fn lost_by(xlb: &Xlb, interface: &str, name: &str) -> anyhow::Result<u64> {
    let stats: Value =
        serde_json::from_str(&xlb.verb(&format!("stats -o json --pin-dir {}", xlb.pins.display()))?)?;
    let drivers = stats["drivers"].as_array().context("no drivers")?;
    let driver = drivers.iter().find(|driver| driver["interface"] == interface);
    let counters = driver.with_context(|| format!("no {interface}"))?["lost"]
        .as_array()
        .context("no counters")?;
    let counter = counters.iter().find(|counter| counter["counter"] == name);
    counter.with_context(|| format!("no {name} in {counters:?}"))?["packets"]
        .as_u64()
        .context("no number")
}

fn scraped(world: &World) -> anyhow::Result<u64> {
    let text = world
        .lab
        .lb
        .netns
        .run("curl --silent --fail http://127.0.0.1:9414/metrics")?;
    let name = format!("xlb_driver_lost_packets_total{{interface=\"eth0\",counter=\"{COUNTER}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&name));
    Ok(line.with_context(|| format!("no {name} in:\n{text}"))?.parse()?)
}

/// ```text
///  client ── switch ── lb (XDP_TX) ── switch takes no frames of XDP: they are lost after the verdict
/// ```
#[test]
fn what_the_driver_loses_is_shown_beside_the_reasons() -> anyhow::Result<()> {
    privileged!("what_the_driver_loses_is_shown_beside_the_reasons");
    let mut world = World::of(2)?;
    let xlb = Xlb::started(&world.lab, "metrics = \"127.0.0.1:9414\"", &world.web(""))?;
    curl(&world.lab, VIP, 80, "/")?;
    ensure!(lost(&xlb)? == 0 && scraped(&world)? == 0, "nothing is lost");
    ensure!(lost_by(&xlb, "eth0", TRANSMITTED)? == 0);

    world.lab.refuse_transmissions();
    ensure!(curl(&world.lab, VIP, 80, "/").is_err(), "nothing arrives");
    let by_kernel = world.lab.tx_errors()?;
    ensure!(by_kernel > 0, "veth took them");
    let (told, measured) = (lost(&xlb)?, scraped(&world)?);
    ensure!(
        told >= by_kernel && measured >= told,
        "{by_kernel} {told} {measured}"
    );
    ensure!(
        lost_by(&xlb, "eth0", TRANSMITTED)? >= by_kernel,
        "the tracepoint tells the same"
    );
    let text = xlb.verb("stats --reasons")?;
    ensure!(
        text.contains("LOST AFTER THE VERDICT") && text.contains(COUNTER),
        "{text}"
    );
    ensure!(
        xlb.reason("transmitted")? >= by_kernel,
        "the program sent them all the same"
    );

    // Without an agent, from the pins.
    xlb.process()?.kill()?;
    let frozen = xlb.verb(&format!("stats --reasons --pin-dir {}", xlb.pins.display()))?;
    ensure!(
        frozen.starts_with("AGENT NOT RUNNING") && frozen.contains(COUNTER),
        "{frozen}"
    );
    ensure!(lost(&xlb)? >= measured);
    Ok(())
}

/// ```text
///  client ── eth0 lb eth1 ── switch takes no long frames; later eth1 is down: no driver is asked any longer
/// ```
#[test]
fn what_is_lost_on_the_way_to_another_interface_is_told_by_tracepoints() -> anyhow::Result<()> {
    privileged!("what_is_lost_on_the_way_to_another_interface_is_told_by_tracepoints");
    let world = World::new(LabOptions {
        backends: 2,
        second_device: true,
        ..LabOptions::default()
    })?;
    let xlb = Xlb::started(&world.lab, "", &world.web(""))?;
    curl(&world.lab, VIP, 80, "/")?;
    ensure!(xlb.reason("redirected")? > 0);
    ensure!(lost_by(&xlb, "eth1", REDIRECTED)? == 0 && lost_by(&xlb, "eth0", REFUSED)? == 0);

    // The other end takes no long frames: the driver finds out.
    world.lab.switch.ip("link set lb1 mtu 200\n")?;
    let long = format!("/{}", "x".repeat(600));
    ensure!(curl(&world.lab, VIP, 80, &long).is_err(), "nothing long arrives");
    ensure!(lost_by(&xlb, "eth1", REDIRECTED)? > 0);
    ensure!(lost_by(&xlb, "eth0", REFUSED)? == 0);

    // An agent would find the backends without a way: its maps alone send on.
    xlb.process()?.kill()?;
    world.lab.lb.netns.ip("link set eth1 down\n")?;
    ensure!(curl(&world.lab, VIP, 80, "/").is_err(), "nothing arrives");
    ensure!(lost_by(&xlb, "eth0", REFUSED)? > 0);
    Ok(())
}
