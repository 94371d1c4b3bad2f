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
