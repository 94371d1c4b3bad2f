//! What the agent says of what happened: events, history, notifications, metrics, and what outlives a reboot.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail, ensure};
use lb_tests::cleanup::{Cleanup, Folder};
use lb_tests::load::{Load, LoadOptions};
use lb_tests::netns::run;
use lb_tests::privileged;
use lb_tests::wait::{wait_for, wait_until};
use serde_json::Value;
use support::{VIP, World, Xlb, curl};
use xlb::model::{CheckCode, OperState};
use xlb::observe::history::Answer;
use xlb::observe::{Timeline, Timestamp};

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
    privileged!("a_death_and_an_order_are_events_with_their_cause");
    let mut world = World::of(2)?;
    let xlb = Xlb::started(&world.lab, "", &world.web(""))?;
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

#[test]
fn an_incident_has_its_course_and_outlives_a_reboot() -> anyhow::Result<()> {
    privileged!("an_incident_has_its_course_and_outlives_a_reboot");
    let mut world = World::of(2)?;
    let mut xlb = Xlb::started(&world.lab, "", &world.web(""))?;
    let b1 = world.lab.backends[0].v4.to_string();
    let load = Load::start(
        &world.lab.client.netns,
        LoadOptions::new(vec![format!("{VIP}:80").parse()?]),
    )?;
    wait_until("requests", || Ok(load.begun() >= 100))?;
    world.kill(0)?;
    let rerouted = event(&xlb, "the course", |e| e["kind"] == "rerouted")?;
    drop(load.finish()?);
    let timeline: Timeline = serde_json::from_value(rerouted["detail"].clone())?;
    let course = [
        timeline.last_good,
        timeline.first_bad,
        Some(timeline.verdict),
        timeline.table_switched,
        timeline.first_packet,
    ];
    let course: Vec<Timestamp> = course.into_iter().flatten().collect();
    assert!(course.len() == 5 && course.is_sorted(), "{timeline:?}");
    assert!(
        timeline.moved_slots > 0 && timeline.resolution_ms.is_some(),
        "{timeline:?}"
    );

    let file = xlb.folder.file("state/events.jsonl");
    wait_until("the event on disk", || {
        Ok(fs::read_to_string(&file)?.contains("rerouted"))
    })?;
    reboot(&world, &xlb)?;
    xlb.start()?;
    let history: Answer = serde_json::from_str(&xlb.verb(&format!("health history web {b1} -o json"))?)?;
    let [backend] = &history.backends[..] else {
        bail!("{history:?}")
    };
    assert_eq!((backend.state, backend.failures), (OperState::Down, 1));
    assert!(
        backend.availability.is_some_and(|a| a > 0.0 && a < 1.0),
        "{backend:?}"
    );
    let down = backend
        .verdicts
        .iter()
        .find(|verdict| verdict.to == OperState::Down);
    let down = down.context("no verdict")?;
    assert_eq!(down.timeline.as_ref(), Some(&timeline));
    assert_eq!(
        down.results.last().map(|probe| probe.code),
        Some(CheckCode::L4con)
    );
    let said = xlb.verb("health history web")?;
    assert!(
        said.contains("table switched") && said.contains("AVAILABILITY"),
        "{said}"
    );
    let unknown = xlb.run(&["health", "history", "web", "10.9.9.9"])?;
    assert_eq!(unknown.status.code(), Some(1));
    Ok(())
}

/// The value of one metric, labels and all as they stand in the text.
fn metric(text: &str, name: &str) -> anyhow::Result<f64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value = line.with_context(|| format!("no {name} in\n{text}"))?;
    Ok(value.parse()?)
}

/// The names of all metrics of a scrape, without the endings of counters.
fn names_of(text: &str) -> BTreeSet<String> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types
        .filter_map(|line| line.split_once(' '))
        .map(|(name, _)| name.to_owned())
        .collect()
}

/// The metrics in the table of the documentation.
fn documented() -> BTreeSet<String> {
    let rows = include_str!("../../docs/operations.md")
        .lines()
        .filter(|line| line.starts_with("| `xlb_"));
    let names = rows.flat_map(|line| line.split('|').nth(1).unwrap_or_default().split(','));
    names
        .map(|name| name.trim().trim_matches('`'))
        .map(|name| name.strip_suffix("_total").unwrap_or(name).to_owned())
        .collect()
}

#[test]
fn metrics_and_notifications_say_what_status_says() -> anyhow::Result<()> {
    privileged!("metrics_and_notifications_say_what_status_says");
    let mut world = World::of(2)?;
    let told = Folder::new("notify")?;
    let program = told.file("program");
    let file = told.file("told");
    fs::write(&program, format!("#!/bin/sh\ncat >> {}\n", file.display()))?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let agent = format!(
        "metrics = \"127.0.0.1:9414\"\nnotify = [\"{}\"]",
        program.display()
    );
    let xlb = Xlb::started(&world.lab, &agent, &world.web(""))?;
    let [b1, b2] = [0, 1].map(|n: usize| world.lab.backends[n].v4.to_string());
    let scrape = || {
        let answer = world
            .lab
            .lb
            .netns
            .run("curl -sS --fail http://127.0.0.1:9414/metrics")?;
        ensure!(answer.trim_end().ends_with("# EOF"), "{answer}");
        Ok::<_, anyhow::Error>(answer)
    };
    for _ in 0..20 {
        curl(&world.lab, VIP, 80, "/")?;
    }
    let counted = xlb.service("web")?;
    let text = wait_for("a scrape of these requests", || {
        let text = scrape()?;
        let packets = metric(&text, "xlb_service_packets_total{service=\"web\"}")?;
        ensure!(
            Some(packets) == counted["packets"].as_f64(),
            "{packets}, {counted}"
        );
        Ok(text)
    })?;
    let (told, documented) = (names_of(&text), documented());
    let unknown: Vec<_> = told.difference(&documented).collect();
    assert!(unknown.is_empty(), "not in docs/operations.md: {unknown:?}");
    // Those of features that this configuration does not use are left out of the text.
    let elsewhere = |name: &&String| {
        !["xlb_flow_cache_", "xlb_clients", "xlb_nat_"]
            .iter()
            .any(|of| name.starts_with(of))
    };
    let missing: Vec<_> = documented.difference(&told).filter(elsewhere).collect();
    assert!(missing.is_empty(), "in docs/operations.md alone: {missing:?}");
    let of = |name: &str, backend: &str, more: &str| {
        metric(
            &text,
            &format!("xlb_{name}{{service=\"web\",backend=\"{backend}:80\"{more}}}"),
        )
    };
    for backend in [&b1, &b2] {
        let known = xlb.backend("web", backend)?;
        assert_eq!(
            Some(of("backend_packets_total", backend, "")?),
            known["packets"].as_f64()
        );
        assert_eq!(
            Some(of("backend_bytes_total", backend, "")?),
            known["bytes"].as_f64()
        );
        assert_eq!(of("backend_state", backend, ",state=\"UP\"")?, 1.0);
        assert_eq!(of("backend_state", backend, ",state=\"DOWN\"")?, 0.0);
        assert!(of("check_results_total", backend, ",code=\"L4OK\"")? > 0.0);
    }
    let forwarded = metric(&text, "xlb_packets_total{reason=\"transmitted\",verdict=\"tx\"}")?;
    assert_eq!(Some(forwarded), counted["packets"].as_f64());
    assert_eq!(
        metric(
            &text,
            "xlb_interface_attached{interface=\"eth0\",mode=\"native\"}"
        )?,
        1.0
    );

    world.kill(0)?;
    event(&xlb, "DOWN", |e| e["detail"]["to"] == "DOWN")?;
    xlb.verb(&format!("backend drain web {b2} --force"))?;
    let scrape = || {
        world
            .lab
            .lb
            .netns
            .run("curl -sS --fail http://127.0.0.1:9414/metrics")
    };
    wait_for("the metrics of it", || {
        let text = scrape()?;
        let of = |name: &str| metric(&text, &format!("xlb_{name}"));
        ensure!(
            of(&format!(
                "backend_state{{service=\"web\",backend=\"{b1}:80\",state=\"DOWN\"}}"
            ))? == 1.0
        );
        ensure!(
            of(&format!(
                "backend_admin_state{{service=\"web\",backend=\"{b2}:80\",state=\"DRAIN\"}}"
            ))? == 1.0
        );
        ensure!(of("service_all_down{service=\"web\"}")? == 1.0);
        ensure!(of("service_table_switches_total{service=\"web\"}")? >= 1.0);
        Ok(())
    })?;
    wait_for("the notifications", || {
        let text = fs::read_to_string(&file)?;
        let told: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let known = events(&xlb)?;
        ensure!(told.iter().all(|event| known.contains(event)), "{told:#?}");
        let has = |kind: &str, to: &str| told.iter().any(|e| e["kind"] == kind && e["detail"]["to"] == to);
        ensure!(
            has("backend_state", "DOWN") && has("backend_admin", "DRAIN"),
            "{told:#?}"
        );
        ensure!(told.iter().any(|event| event["kind"] == "all_down"), "{told:#?}");
        Ok(())
    })
}

/// What a reboot takes away: the agent, at once, and everything pinned.
fn reboot(world: &World, xlb: &Xlb) -> anyhow::Result<()> {
    xlb.process()?.kill()?;
    fs::remove_dir_all(&xlb.pins)?;
    // The kernel lets go of the link of a process that died in a moment of its own.
    wait_until("a bare interface", || {
        let link = world.lab.lb.netns.run("ip -details link show eth0")?;
        Ok(!link.contains("prog/xdp"))
    })
}

#[test]
fn orders_survive_a_reboot_from_the_moment_they_are_answered() -> anyhow::Result<()> {
    privileged!("orders_survive_a_reboot_from_the_moment_they_are_answered");
    let mut world = World::of(2)?;
    let mut xlb = Xlb::started(&world.lab, "", &world.web(""))?;
    let [b1, b2] = [0, 1].map(|n: usize| world.lab.backends[n].v4.to_string());
    xlb.verb(&format!("backend set-weight web {b2} 7"))?;
    xlb.verb(&format!("backend drain web {b1}"))?;
    let since = xlb.backend("web", &b1)?["changed"].clone();
    reboot(&world, &xlb)?;
    xlb.start()?;
    let back = xlb.backend("web", &b1)?;
    assert_eq!((&back["admin"], &back["state"]), (&"DRAIN".into(), &"UP".into()));
    // Nobody saw it change.
    assert_eq!(back["changed"], since);
    assert_eq!(xlb.backend("web", &b2)?["effective_weight"], 7);

    // A verdict of before the reboot does not outlive the first result after it.
    reboot(&world, &xlb)?;
    world.kill(1)?;
    xlb.start()?;
    assert_eq!(xlb.backend("web", &b2)?["state"], "DOWN");
    let down = event(&xlb, "DOWN", |e| e["detail"]["to"] == "DOWN")?;
    assert_eq!(down["detail"]["from"], "UP");

    // A torn checkpoint: the one before it says the same of the first order.
    xlb.verb(&format!("backend set-weight web {b2} 8 --force"))?;
    reboot(&world, &xlb)?;
    let checkpoint = xlb.folder.file("state/checkpoint");
    let whole = fs::read(&checkpoint)?;
    fs::write(&checkpoint, &whole[..whole.len() / 2])?;
    xlb.start()?;
    assert_eq!(xlb.backend("web", &b1)?["admin"], "DRAIN");
    assert!(xlb.log().contains("torn or damaged"), "{}", xlb.log());
    assert!(xlb.folder.file("state/checkpoint.damaged").exists());
    Ok(())
}

/// A small file system, until the guard goes.
fn small_disk(folder: &Path) -> anyhow::Result<Cleanup> {
    fs::create_dir_all(folder)?;
    let place = folder.to_path_buf();
    run(Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=64k", "xlb-test"])
        .arg(&place))?;
    Ok(Cleanup::new(move || {
        let _ = run(Command::new("umount").arg("-l").arg(place));
    }))
}

#[test]
fn a_full_disk_is_said_and_stops_nothing() -> anyhow::Result<()> {
    privileged!("a_full_disk_is_said_and_stops_nothing");
    let world = World::of(2)?;
    let mut xlb = Xlb::new(&world.lab, "", &world.web(""))?;
    let state = xlb.folder.file("state");
    let disk = small_disk(&state)?;
    // One page after the other, until none is left.
    let page = [0; 4096];
    let full = (0..64).any(|n| fs::write(state.join(format!("ballast-{n}")), page).is_err());
    ensure!(full, "the disk is larger than it was asked for");
    xlb.start()?;
    let b1 = world.lab.backends[0].v4.to_string();
    let said = xlb.run(&["backend", "drain", "web", &b1])?;
    ensure!(said.status.success());
    let text = [said.stdout, said.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(
        text.contains("READY -> DRAIN") && text.contains("state_dir"),
        "{text}"
    );
    let status = xlb.status()?;
    assert!(
        status["agent"]["warnings"].to_string().contains("state_dir"),
        "{status}"
    );
    event(&xlb, "the complaint", |e| {
        e["kind"] == "state_dir" && e["detail"]["writable"] == false
    })?;

    for n in 0..64 {
        let _ = fs::remove_file(state.join(format!("ballast-{n}")));
    }
    let said = xlb.verb(&format!("backend ready web {b1}"))?;
    assert!(!said.contains("state_dir"), "{said}");
    event(&xlb, "the end of it", |e| {
        e["kind"] == "state_dir" && e["detail"]["writable"] == true
    })?;
    wait_until("no warning", || {
        Ok(!xlb.status()?["agent"]["warnings"]
            .to_string()
            .contains("state_dir"))
    })?;
    xlb.process()?.stop()?;
    drop(disk);
    Ok(())
}
