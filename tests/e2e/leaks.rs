//! What an agent holds does not grow with what it does, and nothing of it is left after `detach`.

mod support;

use anyhow::{Context, ensure};
use lb_tests::held::Held;
use lb_tests::lab::{Lab, LabOptions};
use lb_tests::privileged;
use lb_tests::wait::wait_until;
use support::{FAST, World, Xlb, addresses, service};
use xlb::datapath::memory;

const VIP6: &str = "2001:db8::10";
/// Orders until everything is there that will be.
const FIRST: usize = 60;
const ORDERS: usize = 300;
/// Bytes by which the agent may grow: what allocators keep, and its history of events.
const SLACK: u64 = 8 << 20;

#[test]
fn hundreds_of_changes_leave_the_agent_as_it_was() -> anyhow::Result<()> {
    privileged!("hundreds_of_changes_leave_the_agent_as_it_was");
    let world = World::of(2)?;
    let xlb = Xlb::started(&world.lab, "", &world.web("table_size = 251"))?;
    let pid = xlb.process()?.pid();
    let b1 = world.lab.backends[0].v4;
    let turn = |orders: usize| {
        (0..orders).try_for_each(|n| {
            let weight = if n % 2 == 0 { "3" } else { "default" };
            xlb.verb(&format!("backend set-weight web {b1} {weight}"))
                .map(drop)
        })
    };
    turn(FIRST)?;
    let (before, bytes) = (Held::of(pid)?, memory::of_process(pid)?);
    let generation = xlb.service("web")?["generation"].as_u64().context("a number")?;
    turn(ORDERS)?;
    let switched = xlb.service("web")?["generation"].as_u64().context("a number")? - generation;
    ensure!(switched >= ORDERS as u64, "only {switched} tables");
    // A command line that is leaving has a connection to it.
    wait_until("its files to be as before", || {
        let now = Held::of(pid)?;
        Ok(now.files <= before.files && now.maps == before.maps && now.programs == before.programs)
    })
    .with_context(|| format!("before {before:?}, now {:?}", Held::of(pid)))?;
    assert_eq!(Held::of(pid)?.kernel, before.kernel);
    let grown = memory::of_process(pid)?.saturating_sub(bytes);
    println!("{switched} tables: {bytes} bytes, then {grown} more");
    ensure!(grown < SLACK, "{bytes} bytes, then {grown} more");
    Ok(())
}

/// Addresses, groups, routes and rules of the load balancer.
fn network(lab: &Lab) -> anyhow::Result<String> {
    let shows = [
        "ip -o addr show",
        "ip maddr show",
        "ip route show table all",
        "ip -6 route show table all",
        "ip rule show",
    ];
    let said = shows.iter().map(|show| lab.lb.netns.run(show));
    Ok(said.collect::<anyhow::Result<Vec<_>>>()?.join("\n"))
}

#[test]
fn detach_leaves_no_program_map_pin_route_or_address() -> anyhow::Result<()> {
    privileged!("detach_leaves_no_program_map_pin_route_or_address");
    let world = World::new(LabOptions {
        backends: 2,
        on_link: true,
        decap: true,
        ..LabOptions::default()
    })?;
    let before = network(&world.lab)?;
    let (v4, v6) = (addresses(&world.lab, false), addresses(&world.lab, true));
    let services = [
        service("web", support::VIP, 80, "tcp", "dsr-ipip", FAST, &v4),
        service("web6", VIP6, 80, "tcp", "dsr-ipip", FAST, &v6),
    ];
    let xlb = Xlb::started(&world.lab, "announce = \"l2\"", &services.concat())?;
    ensure!(network(&world.lab)? != before, "its groups are not there");
    let held = Held::of(xlb.process()?.pid())?;
    ensure!(!held.maps.is_empty() && !held.programs.is_empty(), "{held:?}");
    xlb.verb("detach")?;
    ensure!(xlb.process()?.wait()?.success());
    ensure!(!xlb.pins.exists() && !xlb.socket.exists());
    wait_until("the kernel to let go", || Ok(held.left() == (vec![], vec![])))
        .with_context(|| format!("left of {held:?}: {:?}", held.left()))?;
    let link = world.lab.lb.netns.run("ip -details link show eth0")?;
    ensure!(!link.contains("prog/xdp"), "{link}");
    wait_until("the network as before", || Ok(network(&world.lab)? == before))
        .with_context(|| format!("before:\n{before}\nnow:\n{:?}", network(&world.lab)))
}
