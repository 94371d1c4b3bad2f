//! Who takes flows when things fail: silence that is our own fault, deaths in numbers, backups, sorry backends.

mod support;

use anyhow::{Context, ensure};
use lb_tests::privileged;
use lb_tests::wait::wait_until;
use serde_json::Value;
use support::{FAST, VIP, World, Xlb, addresses, curl};

/// A value of each backend of the service.
fn each(xlb: &Xlb, key: &str) -> anyhow::Result<Vec<Value>> {
    let service = xlb.service("web")?;
    let backends = service["backends"].as_array().context("no backends")?;
    Ok(backends.iter().map(|backend| backend[key].clone()).collect())
}

fn isolated(xlb: &Xlb) -> anyhow::Result<bool> {
    Ok(!xlb.status()?["agent"]["isolated_since"].is_null())
}

fn generation(xlb: &Xlb) -> anyhow::Result<Value> {
    Ok(xlb.service("web")?["generation"].clone())
}

/// The load balancer's cable is pulled, and then its port of the switch leads nowhere while its carrier stays.
#[test]
fn our_own_link_down_and_up_moves_nothing() -> anyhow::Result<()> {
    privileged!("our_own_link_down_and_up_moves_nothing");
    let world = World::of(3)?;
    let xlb = Xlb::started(&world.lab, "", &world.web(""))?;
    let before = generation(&xlb)?;
    let switch = &world.lab.switch;
    for (down, up) in [
        ("link set lb down\n", "link set lb up\n"),
        ("link set lb nomaster\n", "link set lb master br0\n"),
    ] {
        switch.ip(down)?;
        wait_until("isolated", || isolated(&xlb)).with_context(|| xlb.log())?;
        // Long enough for every neighbour entry to fail as well.
        wait_until("the neighbours lost", || {
            let unresolved = each(&xlb, "unresolved")?;
            Ok(unresolved.iter().all(|why| !why.is_null()))
        })?;
        assert_eq!(each(&xlb, "state")?, ["UP", "UP", "UP"], "{down}");
        assert_eq!(each(&xlb, "doubted")?, [true, true, true], "{down}");
        assert!(xlb.verb("status")?.contains("ISOLATED"));
        assert_eq!(generation(&xlb)?, before, "{down}");
        switch.ip(up)?;
        wait_until("the end of it", || Ok(!isolated(&xlb)?)).with_context(|| xlb.log())?;
        wait_until("everybody heard", || {
            let codes = each(&xlb, "check")?;
            Ok(codes.iter().all(|check| check["code"] == "L4OK"))
        })?;
        assert_eq!(generation(&xlb)?, before, "{up}");
    }
    assert_eq!(world.served(40)?, ["b1", "b2", "b3"]);
    let log = xlb.log();
    assert_eq!(log.matches("ISOLATED").count(), 2, "{log}");
    ensure!(!log.contains("UP -> DOWN"), "{log}");
    Ok(())
}

#[test]
fn two_of_three_die_at_once_and_are_out() -> anyhow::Result<()> {
    privileged!("two_of_three_die_at_once_and_are_out");
    let world = World::of(3)?;
    let xlb = Xlb::started(&world.lab, "", &world.web(""))?;
    world.lab.cut("b1")?;
    world.lab.cut("b2")?;
    wait_until("both DOWN", || Ok(each(&xlb, "state")? == ["DOWN", "DOWN", "UP"]))
        .with_context(|| xlb.log())?;
    assert_eq!(world.served(20)?, ["b3"]);
    assert!(!isolated(&xlb)?);
    wait_until("their hosts known to be silent", || {
        Ok(each(&xlb, "host_answers")? == [Value::from(false), Value::from(false), Value::Null])
    })?;
    assert_eq!(each(&xlb, "old_flows")?, ["move", "move", "keep"]);
    world.lab.mend("b1")?;
    world.lab.mend("b2")?;
    wait_until("all UP", || Ok(each(&xlb, "state")? == ["UP", "UP", "UP"]))?;
    assert_eq!(world.served(40)?, ["b1", "b2", "b3"]);
    Ok(())
}

#[test]
fn all_refuse_and_nobody_has_to_be_asked() -> anyhow::Result<()> {
    privileged!("all_refuse_and_nobody_has_to_be_asked");
    let mut world = World::of(3)?;
    let xlb = Xlb::started(
        &world.lab,
        "witness = \"none\"",
        &world.web("on_all_down = \"drop\""),
    )?;
    for backend in 0..3 {
        world.kill(backend)?;
    }
    wait_until(
        "all DOWN",
        || Ok(each(&xlb, "state")? == ["DOWN", "DOWN", "DOWN"]),
    )?;
    assert!(!isolated(&xlb)?);
    assert_eq!(each(&xlb, "host_answers")?, [true, true, true]);
    assert_eq!(each(&xlb, "old_flows")?, ["keep", "keep", "keep"]);
    assert_eq!(xlb.service("web")?["selection"], "nobody");
    assert!(curl(&world.lab, VIP, 80, "/").is_err());
    Ok(())
}

/// With one backend only the witness can say whose fault silence is.
#[test]
fn the_witness_tells_our_fault_from_the_backends() -> anyhow::Result<()> {
    privileged!("the_witness_tells_our_fault_from_the_backends");
    let world = World::of(1)?;
    for witness in ["10.77.0.1", "fd77::1", "10.77.0.1:9"] {
        let xlb = Xlb::started(
            &world.lab,
            &format!("witness = \"{witness}\""),
            &world.web("on_all_down = \"drop\""),
        )?;
        world.lab.cut("lb")?;
        wait_until("isolated", || isolated(&xlb)).with_context(|| format!("{witness}:\n{}", xlb.log()))?;
        assert_eq!(each(&xlb, "state")?, ["UP"], "{witness}");
        world.lab.mend("lb")?;
        wait_until("the end of it", || Ok(!isolated(&xlb)?))?;
        assert_eq!(each(&xlb, "state")?, ["UP"], "{witness}");
        world.lab.cut("b1")?;
        wait_until("DOWN", || Ok(each(&xlb, "state")? == ["DOWN"]))
            .with_context(|| format!("{witness}:\n{}", xlb.log()))?;
        // The verdict comes a moment before the end of the doubt is noted.
        wait_until("no doubt", || Ok(!isolated(&xlb)?)).with_context(|| xlb.log())?;
        world.lab.mend("b1")?;
        wait_until("UP", || Ok(each(&xlb, "state")? == ["UP"]))?;
        xlb.verb("detach")?;
    }
    Ok(())
}

#[test]
fn backups_join_below_the_quorum_and_the_sorry_backend_comes_last() -> anyhow::Result<()> {
    privileged!("backups_join_below_the_quorum_and_the_sorry_backend_comes_last");
    let mut world = World::of(4)?;
    let sorry = world.lab.backends[3].v4.to_string();
    let text = world
        .web(&format!("quorum = 2\nsorry = \"{sorry}\""))
        .replace(&format!("[[service.backend]]\naddress = \"{sorry}\"\n"), "");
    // The last of the three that are left.
    let xlb = Xlb::started(&world.lab, "", &format!("{text}backup = true\n"))?;
    assert_eq!(each(&xlb, "role")?, ["primary", "primary", "backup", "sorry"]);
    assert_eq!(world.served(40)?, ["b1", "b2"]);
    world.kill(0)?;
    wait_until("the backup in use", || {
        Ok(xlb.service("web")?["backups_in_use"] == true)
    })?;
    assert_eq!(world.served(40)?, ["b2", "b3"]);
    world.kill(1)?;
    wait_until("the backup alone", || Ok(world.served(20)? == ["b3"]))?;
    world.kill(2)?;
    wait_until("the sorry backend", || {
        Ok(xlb.service("web")?["selection"] == "sorry")
    })?;
    assert_eq!(world.served(20)?, ["b4"]);
    for backend in 0..3 {
        world.revive(backend)?;
    }
    wait_until("the primaries again", || {
        let service = xlb.service("web")?;
        Ok(service["selection"] == "serving" && service["backups_in_use"] == false)
    })?;
    wait_until("both", || Ok(world.served(40)? == ["b1", "b2"]))
}

#[test]
fn a_backend_that_comes_up_takes_its_weight_slowly() -> anyhow::Result<()> {
    privileged!("a_backend_that_comes_up_takes_its_weight_slowly");
    let mut world = World::of(2)?;
    let xlb = Xlb::started(&world.lab, "", &world.web("slow_start = \"5s\""))?;
    assert_eq!(
        each(&xlb, "slow_start_percent")?,
        [Value::Null, Value::Null],
        "not at the start"
    );
    world.kill(0)?;
    wait_until("DOWN", || Ok(each(&xlb, "state")?[0] == "DOWN"))?;
    let before = generation(&xlb)?.as_u64().context("a number")?;
    world.revive(0)?;
    let mut shares = Vec::new();
    wait_until("the whole weight", || {
        let status = xlb.service("web")?;
        let backend = &status["backends"][0];
        if backend["state"] != "UP" {
            return Ok(false);
        }
        shares.push(backend["share_percent"].as_f64().context("a share")?);
        Ok(backend["slow_start_percent"].is_null())
    })?;
    wait_until("its share", || {
        let share = each(&xlb, "share_percent")?[0].as_f64();
        Ok(share.is_some_and(|share| (49.0..51.0).contains(&share)))
    })?;
    assert!(
        shares.iter().any(|share| (1.0..40.0).contains(share)),
        "{shares:?}"
    );
    assert!(shares.is_sorted(), "{shares:?}");
    // Tables in which slots only settled are generations too.
    let events: Value = serde_json::from_str(&xlb.verb("events -o json")?)?;
    let events = events["events"].as_array().context("events")?;
    let moving = events.iter().filter(|event| {
        let generation = event["detail"]["generation"].as_u64();
        event["kind"] == "table_switched" && generation.is_some_and(|generation| generation > before)
    });
    let steps = moving.count();
    assert!((2..=10).contains(&steps), "{steps} tables");
    Ok(())
}

/// Two services share their backends; a third joins later.
#[test]
fn backends_of_a_pool_are_one_in_all_its_services() -> anyhow::Result<()> {
    privileged!("backends_of_a_pool_are_one_in_all_its_services");
    let mut world = World::of(2)?;
    let backends: String = addresses(&world.lab, false)
        .iter()
        .map(|address| format!("[[pool.backend]]\naddress = \"{address}\"\nweight = 10\n"))
        .collect();
    let pool = format!("[[pool]]\nname = \"front\"\n[pool.check]\n{FAST}\n{backends}");
    let service = |n: u8| {
        format!(
            "[[service]]\nname = \"s{n}\"\naddress = \"192.0.2.{n}0\"\nport = 80\nprotocol = \"tcp\"\n\
             forward = \"dsr-l2\"\npool = \"front\"\n"
        )
    };
    let two = format!("{pool}{}{}", service(1), service(2));
    let xlb = Xlb::started(&world.lab, "", &two)?;
    let b1 = world.lab.backends[0].v4.to_string();
    let state = |service: &str| -> anyhow::Result<_> {
        let backend = xlb.backend(service, &b1)?;
        Ok(["state", "admin", "effective_weight"].map(|key| backend[key].clone()))
    };
    let up = [Value::from("UP"), Value::from("READY"), Value::from(10)];
    assert_eq!((state("s1")?, state("s2")?), (up.clone(), up.clone()));
    world.kill(0)?;
    wait_until("DOWN in both", || {
        Ok(state("s1")?[0] == "DOWN" && state("s2")?[0] == "DOWN")
    })?;
    world.revive(0)?;
    wait_until("UP in both", || Ok(state("s1")? == up && state("s2")? == up))?;

    // By the name of a service, and by that of the pool.
    let said = xlb.verb(&format!("backend drain s2 {b1}"))?;
    assert_eq!(said.matches("READY -> DRAIN").count(), 2, "{said}");
    xlb.verb(&format!("backend set-weight front {b1} 50%"))?;
    let drained = [Value::from("UP"), Value::from("DRAIN"), Value::from(5)];
    assert_eq!((state("s1")?, state("s2")?), (drained.clone(), drained.clone()));
    assert!(xlb.verb("status")?.contains("5 (file 10)"));

    // A service that joins finds them as they are; one that leaves takes nothing along.
    let before = xlb.backend("s2", &b1)?["changed"].clone();
    xlb.configure("", &format!("{pool}{}{}", service(2), service(3)))?;
    xlb.verb("reload")?;
    assert_eq!((state("s2")?, state("s3")?), (drained.clone(), drained));
    assert_eq!(xlb.backend("s2", &b1)?["changed"], before);
    xlb.verb(&format!("backend ready --host {b1}"))?;
    xlb.verb(&format!("backend set-weight s3 {b1} default"))?;
    assert_eq!((state("s2")?, state("s3")?), (up.clone(), up.clone()));
    world.kill(0)?;
    wait_until("DOWN in both", || {
        Ok(state("s2")?[0] == "DOWN" && state("s3")?[0] == "DOWN")
    })
}

#[test]
fn a_backend_that_flaps_is_held_down_until_an_operator_says_otherwise() -> anyhow::Result<()> {
    privileged!("a_backend_that_flaps_is_held_down_until_an_operator_says_otherwise");
    let mut world = World::of(2)?;
    let keys = "flap_limit = 1\nflap_window = \"10m\"\nflap_hold = \"10m\"";
    let xlb = Xlb::started(&world.lab, "", &world.web(keys))?;
    let state = |expected: &str| {
        wait_until(expected, || Ok(each(&xlb, "state")?[0] == expected)).with_context(|| xlb.log())
    };
    world.kill(0)?;
    state("DOWN")?;
    world.revive(0)?;
    state("UP")?;
    assert_eq!(each(&xlb, "held_until")?[0], Value::Null);
    world.kill(0)?;
    state("DOWN")?;
    world.revive(0)?;
    wait_until("checks that pass", || {
        Ok(each(&xlb, "check")?[0]["code"] == "L4OK")
    })?;
    assert_ne!(each(&xlb, "held_until")?[0], Value::Null);
    assert_eq!(each(&xlb, "state")?[0], "DOWN");
    assert!(xlb.verb("status")?.contains("HELD DOWN until"));
    assert_eq!(world.served(20)?, ["b2"]);
    // READY it is already: said again, it releases.
    xlb.verb(&format!("backend ready web {}", world.lab.backends[0].v4))?;
    state("UP")?;
    assert_eq!(each(&xlb, "held_until")?[0], Value::Null);
    wait_until("both", || Ok(world.served(40)? == ["b1", "b2"]))
}

#[test]
fn faults_of_a_reload_are_a_list_for_programs() -> anyhow::Result<()> {
    privileged!("faults_of_a_reload_are_a_list_for_programs");
    let world = World::of(1)?;
    let xlb = Xlb::started(&world.lab, "", &world.web(""))?;
    xlb.configure("", &world.web("quorum = 0\nsorrow = 1"))?;
    let output = xlb.run(&["reload", "-o", "json"])?;
    assert_eq!(output.status.code(), Some(1));
    let answer: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(answer["faults"].as_array().map(Vec::len), Some(2), "{answer}");
    let said = xlb.verb(&format!(
        "backend set-weight web {} 50%",
        world.lab.backends[0].v4
    ))?;
    assert!(
        said.contains("nothing to change") || said.contains("weight 1 -> 1"),
        "{said}"
    );
    Ok(())
}
