//! What becomes of packets after the program's verdict.

mod support;

use anyhow::{Context, ensure};
use lb_tests::privileged;
use serde_json::Value;
use support::{VIP, World, Xlb, curl};

const COUNTER: &str = "rx_queue_N_xdp_tx_errors";

fn lost(xlb: &Xlb) -> anyhow::Result<u64> {
    let stats: Value =
        serde_json::from_str(&xlb.verb(&format!("stats -o json --pin-dir {}", xlb.pins.display()))?)?;
    let drivers = stats["drivers"].as_array().context("no drivers")?;
    let eth0 = drivers.iter().find(|driver| driver["interface"] == "eth0");
    let counters = eth0.context("no eth0")?["lost"]
        .as_array()
        .context("no counters")?;
    let counter = counters.iter().find(|counter| counter["counter"] == COUNTER);
    counter.context("no such counter")?["packets"]
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

    world.lab.refuse_transmissions();
    ensure!(curl(&world.lab, VIP, 80, "/").is_err(), "nothing arrives");
    let by_kernel = world.lab.tx_errors()?;
    ensure!(by_kernel > 0, "veth took them");
    let (told, measured) = (lost(&xlb)?, scraped(&world)?);
    ensure!(
        told >= by_kernel && measured >= told,
        "{by_kernel} {told} {measured}"
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
