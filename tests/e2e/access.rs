//! Access lists and limits with real clients.

mod support;

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, ensure};
use lb_tests::privileged;
use serde_json::Value;
use support::{VIP, World, Xlb};

/// The client's own address, and one that it gets besides.
const FRIEND: &str = "10.77.0.1";
const FOE: &str = "10.77.0.3";

/// How often the list is replaced by another one.
const RELOADS: u8 = 50;

/// Keys of a service with 5,000 prefixes of nobody here; no two lists have one in common. Every list lets the friend in
/// and keeps the foe out.
fn list(number: u8) -> String {
    let mut deny = String::new();
    for n in 0..5000_u32 {
        let [_, _, b, c] = n.to_be_bytes();
        let _ = write!(deny, "\"{}.{b}.{c}.0/24\", ", 20 + number);
    }
    format!("allow = [\"10.77.0.0/24\"]\ndeny = [{deny}\"{FOE}\"]")
}

/// Whether a request from an address is answered.
fn answered(world: &World, from: &str) -> bool {
    answered_within(world, from, "1")
}

fn answered_within(world: &World, from: &str, seconds: &str) -> bool {
    let client = &world.lab.client.netns;
    let request = format!("curl --silent --fail --max-time {seconds} --interface {from} http://{VIP}/");
    client.run(&request).is_ok()
}

fn refused(xlb: &Xlb, reason: &str) -> anyhow::Result<u64> {
    let stats: Value = serde_json::from_str(&xlb.verb("stats -o json")?)?;
    stats["services"][0]["refused"][reason]
        .as_u64()
        .context("no such count")
}

#[test]
fn lists_of_5000_prefixes_are_replaced_under_traffic() -> anyhow::Result<()> {
    privileged!("lists_of_5000_prefixes_are_replaced_under_traffic");
    let world = World::of(2)?;
    world
        .lab
        .client
        .netns
        .run(&format!("ip address add {FOE}/24 dev eth0"))?;
    let xlb = Xlb::started(&world.lab, "", &world.web(""))?;
    ensure!(
        answered(&world, FRIEND) && answered(&world, FOE),
        "without a list"
    );
    xlb.configure("", &world.web(&list(0)))?;
    let said = xlb.verb("reload")?;
    ensure!(
        said.contains("access list added: 1 prefixes allowed, 5001 denied, other clients denied"),
        "{said}"
    );
    ensure!(answered(&world, FRIEND) && !answered(&world, FOE), "with a list");
    let before = refused(&xlb, "denied")?;
    ensure!(before > 0 && xlb.reason("denied")? == before);

    let over = AtomicBool::new(false);
    let (asked, gaps) = (AtomicU64::new(0), AtomicU64::new(0));
    let (of_foe, leaks) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let friend = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                asked.fetch_add(1, Ordering::Relaxed);
                gaps.fetch_add(u64::from(!answered(&world, FRIEND)), Ordering::Relaxed);
            }
        });
        let foe = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                of_foe.fetch_add(1, Ordering::Relaxed);
                // A SYN every so often; nothing answers one that is dropped.
                leaks.fetch_add(u64::from(answered_within(&world, FOE, "0.05")), Ordering::Relaxed);
            }
        });
        let replaced = (1..=RELOADS).try_for_each(|number| {
            xlb.configure("", &world.web(&list(number)))?;
            let said = xlb.verb("reload")?;
            let change = "access list changed, 5000 prefixes more and 5000 fewer";
            ensure!(said.contains(change), "{said}");
            Ok(())
        });
        over.store(true, Ordering::Relaxed);
        for thread in [friend, foe] {
            thread.join().expect("a client that does not panic");
        }
        replaced
    })?;
    let (asked, gaps) = (asked.into_inner(), gaps.into_inner());
    let (of_foe, leaks) = (of_foe.into_inner(), leaks.into_inner());
    println!(
        "{RELOADS} lists replaced: {asked} requests of the friend, {gaps} refused; {of_foe} of the foe, {leaks} let in"
    );
    ensure!(asked > 0 && gaps == 0, "{gaps} of {asked} requests refused");
    ensure!(of_foe > 0 && leaks == 0, "{leaks} of {of_foe} requests let in");

    xlb.configure("", &world.web(""))?;
    let said = xlb.verb("reload")?;
    ensure!(
        said.contains("access list removed: every client is allowed"),
        "{said}"
    );
    ensure!(answered(&world, FOE), "without a list again");
    Ok(())
}

#[test]
fn limits_count_in_a_dry_run_and_drop_without() -> anyhow::Result<()> {
    privileged!("limits_count_in_a_dry_run_and_drop_without");
    let world = World::of(2)?;
    let service = |dry: bool| {
        let limit = format!("[service.limit]\nnew_flows_per_client = 1\ndry_run = {dry}\n[service.check]\n");
        world.web("").replace("[service.check]\n", &limit)
    };
    let xlb = Xlb::started(&world.lab, "", &service(true))?;
    // Connections faster than one a second, whatever the machine: all in one process.
    let many = |count: usize| {
        let urls = vec![format!("http://{VIP}/"); count].join(" ");
        let client = &world.lab.client.netns;
        client.run(&format!(
            "curl --silent --fail --no-keepalive -H Connection:close --max-time 60 {urls}"
        ))
    };
    many(50)?;
    ensure!(
        refused(&xlb, "client_flow_limit")? > 0,
        "more than one came in a second"
    );
    ensure!(xlb.reason("client_flow_limit")? == 0, "and none was dropped");
    xlb.configure("", &service(false))?;
    let said = xlb.verb("reload")?;
    ensure!(
        said.contains("limits new_flows_per_client 1") && said.contains("dry run"),
        "{said}"
    );
    // SYNs that are dropped come again, so that connections are late and not lost.
    many(4)?;
    ensure!(xlb.reason("client_flow_limit")? > 0, "some were dropped");
    Ok(())
}
