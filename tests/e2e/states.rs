//! States and who is believed: reloads that touch somebody else, and verdicts that an operator does not want followed.

mod support;

use anyhow::Context;
use lb_tests::privileged;
use lb_tests::wait::wait_until;
use serde_json::Value;
use support::{World, Xlb, addresses, service};

fn each(xlb: &Xlb, key: &str) -> anyhow::Result<Vec<Value>> {
    let service = xlb.service("web")?;
    let backends = service["backends"].as_array().context("no backends")?;
    Ok(backends.iter().map(|backend| backend[key].clone()).collect())
}

/// While a verdict takes seconds, a reload follows the other. Were the count lost with each, it would never be reached.
#[test]
fn reloads_take_no_count_from_whom_they_do_not_touch() -> anyhow::Result<()> {
    privileged!("reloads_take_no_count_from_whom_they_do_not_touch");
    let mut world = World::of(2)?;
    let web = world.web("").replace(
        "fast_interval = \"50ms\"",
        "fast_interval = \"700ms\"\nfall = 4\nrise = 4",
    );
    let xlb = Xlb::started(&world.lab, "", &web)?;
    let before = each(&xlb, "changed")?;
    world.kill(0)?;
    let mut reloads = 0;
    let mut reload = || -> anyhow::Result<()> {
        let other = service(
            &format!("other{reloads}"),
            "192.0.2.20",
            81 + reloads,
            "tcp",
            "dsr-l2",
            "type = \"none\"",
            &addresses(&world.lab, false),
        );
        reloads += 1;
        xlb.configure("", &format!("{web}{other}"))?;
        let said = xlb.verb("reload")?;
        assert!(said.contains("added"), "{said}");
        assert!(!said.contains(" web"), "only what changed is said: {said}");
        Ok(())
    };
    wait_until("DOWN", || {
        reload()?;
        Ok(each(&xlb, "state")?[0] == "DOWN")
    })?;
    assert_eq!(each(&xlb, "changed")?[1], before[1]);
    let history = xlb.verb("health history -o json")?;
    assert!(history.contains("L4CON"), "{history}");
    assert!(reloads > 2, "{reloads} reloads within one verdict");
    Ok(())
}

/// Too few serve: those that are DOWN take flows all the same. Whom an operator took out does not.
#[test]
fn nobody_believes_a_verdict_of_many_and_everybody_an_operator() -> anyhow::Result<()> {
    privileged!("nobody_believes_a_verdict_of_many_and_everybody_an_operator");
    let mut world = World::of(4)?;
    let xlb = Xlb::started(&world.lab, "", &world.web("panic_threshold = 60"))?;
    let address = |n: usize| world.lab.backends[n].v4.to_string();
    let (maint, drained) = (address(2), address(3));
    xlb.verb(&format!("backend maint web {maint}"))?;
    xlb.verb(&format!("backend drain web {drained}"))?;
    world.kill(0)?;
    wait_until("panic", || Ok(xlb.service("web")?["selection"] == "panic")).with_context(|| xlb.log())?;
    assert_eq!(each(&xlb, "state")?[0], "DOWN");
    let has_slots = || -> anyhow::Result<Vec<bool>> {
        let shares = each(&xlb, "share_percent")?;
        Ok(shares.iter().map(|share| share.as_f64() > Some(0.0)).collect())
    };
    assert_eq!(has_slots()?, [true, true, false, false]);
    assert!(xlb.verb("status")?.contains("panic_threshold"));
    world.revive(0)?;
    wait_until("the end of it", || {
        Ok(xlb.service("web")?["selection"] == "serving")
    })?;
    assert_eq!(world.served(30)?, ["b1", "b2"]);

    // One serves on, and of the others no more than half of all is taken out.
    xlb.configure("", &world.web("max_ejection_percent = 50"))?;
    let said = xlb.verb("reload")?;
    for change in ["panic_threshold 60 -> 0", "max_ejection_percent 100 -> 50"] {
        assert!(said.contains(change), "{said}");
    }
    xlb.verb(&format!("backend ready web {drained}"))?;
    world.kill(0)?;
    wait_until("the first DOWN", || Ok(each(&xlb, "state")?[0] == "DOWN"))?;
    world.kill(1)?;
    wait_until("the second DOWN", || Ok(each(&xlb, "state")?[1] == "DOWN"))?;
    wait_until("the latest to go on", || {
        Ok(has_slots()? == [false, true, false, true])
    })
    .with_context(|| format!("{:?}\n{}", has_slots(), xlb.log()))
}

/// What is said of a service's table, without what only a plan knows.
fn tables(answer: &Value) -> anyhow::Result<Vec<Value>> {
    let services = answer["services"].as_array().context("no services")?;
    let told = |service: &Value| ["name", "kind", "moved_slots", "slots"].map(|key| service[key].clone());
    Ok(services
        .iter()
        .map(|service| Value::from(told(service).to_vec()))
        .collect())
}

/// The lines for people that are not about slots.
fn others(answer: &Value) -> anyhow::Result<Vec<Value>> {
    let changes = answer["changes"].as_array().context("no changes")?;
    let about_slots = |line: &Value| line.as_str().is_some_and(|line| line.contains(" slots "));
    Ok(changes
        .iter()
        .filter(|line| !about_slots(line))
        .cloned()
        .collect())
}

#[test]
fn a_plan_changes_nothing_and_says_what_the_reload_then_does() -> anyhow::Result<()> {
    privileged!("a_plan_changes_nothing_and_says_what_the_reload_then_does");
    let world = World::of(3)?;
    let web = world.web("");
    let third = format!(
        "[[service.backend]]\naddress = \"{}\"\n",
        world.lab.backends[2].v4
    );
    let two = web.replace(&third, "");
    let mut xlb = Xlb::started(&world.lab, "", &two)?;
    let plan = |xlb: &Xlb, more: &[&str]| -> anyhow::Result<(Option<i32>, Value)> {
        let output = xlb.run(&[&["plan", "-o", "json"], more].concat())?;
        Ok((output.status.code(), serde_json::from_slice(&output.stdout)?))
    };
    let (code, nothing) = plan(&xlb, &[])?;
    assert_eq!(
        (code, &nothing["changed"]),
        (Some(0), &Value::from(false)),
        "{nothing}"
    );
    assert!(xlb.verb("plan")?.contains("nothing to change"));

    // Flows of slots that moved are known.
    xlb.verb(&format!("backend drain web {}", world.lab.backends[0].v4))?;
    assert_eq!(world.served(60)?, ["b2"]);
    let other = service(
        "other",
        "192.0.2.20",
        81,
        "tcp",
        "dsr-l2",
        "type = \"none\"",
        &addresses(&world.lab, false),
    );
    let slower = world
        .web("quorum = 2")
        .replace("fast_timeout = \"100ms\"", "fast_timeout = \"100ms\"\nfall = 2");
    let three = format!("{slower}{other}");
    xlb.configure("", &three)?;
    let before = xlb.status()?;
    let (code, planned) = plan(&xlb, &[])?;
    assert_eq!(
        (code, &planned["changed"]),
        (Some(3), &Value::from(true)),
        "{planned}"
    );
    let up = format!("{}:80 of web", world.lab.backends[2].v4);
    assert!(
        planned["counted_as_up"]
            .as_array()
            .is_some_and(|all| all.contains(&up.clone().into())),
        "{planned}"
    );
    let flows = planned["services"].as_array().context("services")?.iter();
    let flows: Vec<_> = flows.map(|service| &service["flows_in_moved_slots"]).collect();
    assert!(
        flows
            .iter()
            .any(|flows| flows.as_u64().is_some_and(|flows| flows > 0)),
        "{planned}"
    );
    assert!(
        planned["memory"]["maps_bytes_after"].as_u64() >= planned["memory"]["maps_bytes"].as_u64(),
        "{planned}"
    );
    let after = xlb.status()?;
    for key in ["generation", "table_size", "name"] {
        assert_eq!(before["services"][0][key], after["services"][0][key]);
    }
    assert_eq!(after["services"].as_array().map(Vec::len), Some(1));

    let done: Value = serde_json::from_str(&xlb.verb("reload -o json")?)?;
    assert_eq!(tables(&done)?, tables(&planned)?, "{planned}\n{done}");
    assert_eq!(others(&done)?, others(&planned)?, "{planned}\n{done}");
    assert_eq!(plan(&xlb, &[])?.0, Some(0));

    // Another file, a bad one, and nobody to ask.
    let file = xlb.folder.file("other.toml");
    std::fs::copy(&xlb.config, &file)?;
    let path = file.to_str().context("a path")?;
    assert_eq!(plan(&xlb, &[path])?.0, Some(0));
    let text = std::fs::read_to_string(&file)?;
    std::fs::write(&file, text.replace("quorum = 2", "quorrum = 2"))?;
    let refused = xlb.run(&["plan", path])?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("quorrum") && said.contains(path), "{said}");
    xlb.process()?.kill()?;
    assert_eq!(xlb.run(&["plan"])?.status.code(), Some(4));
    xlb.start()
}
