//! The life of an agent: starting, failing backends, orders, reloads, death, adoption, and what it leaves behind.

mod support;

use std::fs;

use anyhow::{Context, ensure};
use lb_tests::lab::LabOptions;
use lb_tests::load::{Load, LoadOptions};
use lb_tests::netns::run;
use lb_tests::pass::Pass;
use lb_tests::privileged;
use lb_tests::process::binary;
use lb_tests::server::Server;
use lb_tests::wait::wait_until;
use nix::sys::signal::Signal;
use support::{FAST, VIP, World, Xlb, addresses, curl, service};

const VIP6: &str = "2001:db8::10";

#[test]
fn a_dead_backend_is_routed_around_and_comes_back() -> anyhow::Result<()> {
    privileged!("a_dead_backend_is_routed_around_and_comes_back");
    let mut world = World::new(LabOptions::default())?;
    let xlb = Xlb::started(&world.lab, "", &world.web(""))?;
    assert_eq!(world.served(40)?, ["b1", "b2", "b3"]);
    world.kill(0)?;
    let b1 = world.lab.backends[0].v4.to_string();
    wait_until("b1 DOWN", || Ok(xlb.backend("web", &b1)?["state"] == "DOWN"))?;
    assert_eq!(xlb.backend("web", &b1)?["check"]["code"], "L4CON");
    assert_eq!(world.served(40)?, ["b2", "b3"]);
    world.revive(0)?;
    wait_until("b1 UP", || Ok(xlb.backend("web", &b1)?["state"] == "UP"))?;
    assert_eq!(world.served(40)?, ["b1", "b2", "b3"]);
    Ok(())
}

#[test]
fn when_all_are_down_the_table_of_before_stays_and_the_first_that_returns_serves() -> anyhow::Result<()> {
    privileged!("when_all_are_down_the_table_of_before_stays_and_the_first_that_returns_serves");
    let mut world = World::of(2)?;
    let xlb = Xlb::started(&world.lab, "", &world.web(""))?;
    for server in &mut world.servers {
        server.take().context("a server")?.kill()?;
    }
    wait_until("all down", || Ok(xlb.service("web")?["all_down"] == true))?;
    let service = xlb.service("web")?;
    assert_ne!(service["table_size"], 0, "{service}");
    assert_eq!(xlb.reason("no_backend")?, 0);
    assert!(curl(&world.lab, VIP, 80, "/").is_err());
    world.revive(1)?;
    wait_until("b2 serves", || Ok(world.served(5)? == ["b2"]))
}

#[test]
fn orders_move_new_connections_and_survive_the_agent() -> anyhow::Result<()> {
    privileged!("orders_move_new_connections_and_survive_the_agent");
    let world = World::new(LabOptions::default())?;
    let mut xlb = Xlb::started(&world.lab, "", &world.web(""))?;
    let [b1, b2, b3] = [0, 1, 2].map(|n: usize| world.lab.backends[n].v4.to_string());
    assert!(
        xlb.verb(&format!("backend drain web {b1}"))?
            .contains("READY -> DRAIN")
    );
    assert_eq!(world.served(40)?, ["b2", "b3"]);
    xlb.verb(&format!("backend maint web {b2}:80"))?;
    assert_eq!(world.served(20)?, ["b3"]);
    let refused = xlb.run(&["backend", "drain", "web", &b3])?;
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--force"));
    assert_eq!(world.served(5)?, ["b3"]);
    xlb.verb(&format!("backend set-weight web {b3} 7"))?;

    xlb.process()?.kill()?;
    xlb.start()?;
    assert_eq!(xlb.backend("web", &b1)?["admin"], "DRAIN");
    assert_eq!(xlb.backend("web", &b2)?["admin"], "MAINT");
    assert_eq!(xlb.backend("web", &b2)?["state"], "UNKNOWN");
    assert_eq!(xlb.backend("web", &b3)?["effective_weight"], 7);
    assert_eq!(world.served(10)?, ["b3"]);
    xlb.verb(&format!("backend ready --host {b1}"))?;
    xlb.verb(&format!("backend ready web {b2}"))?;
    xlb.verb(&format!("backend set-weight web {b3} default"))?;
    wait_until("b2 UP again", || Ok(xlb.backend("web", &b2)?["state"] == "UP"))?;
    assert_eq!(world.served(40)?, ["b1", "b2", "b3"]);
    let unknown = xlb.run(&["backend", "drain", "web", "10.1.1.1"])?;
    assert_eq!(unknown.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("10.1.1.1"));
    Ok(())
}

#[test]
fn a_killed_agent_costs_no_request_and_the_next_one_adopts() -> anyhow::Result<()> {
    privileged!("a_killed_agent_costs_no_request_and_the_next_one_adopts");
    let world = World::new(LabOptions::default())?;
    let mut xlb = Xlb::started(&world.lab, "", &world.web(""))?;
    let target = format!("{VIP}:80").parse()?;
    let load = Load::start(&world.lab.client.netns, LoadOptions::new(vec![target]))?;
    let begun = |count: u64| wait_until("requests", || Ok(load.begun() >= count));
    begun(300)?;
    let before = xlb.service("web")?;
    xlb.process()?.kill()?;
    let kept = xlb.status()?;
    assert_eq!(kept["agent"]["running"], false);
    assert!(xlb.verb("status")?.starts_with("AGENT NOT RUNNING since"));
    begun(load.begun() + 300)?;
    xlb.start()?;
    begun(load.begun() + 300)?;
    let after = xlb.service("web")?;
    let attempts = load.finish()?;
    assert_eq!(attempts.failed(), 0, "{:?}", attempts.errors());
    assert_eq!(after["generation"], before["generation"]);
    assert!(after["packets"].as_u64() > before["packets"].as_u64());
    Ok(())
}

/// The indices of those that are gone are not free before their flows have ended.
#[test]
fn an_agent_that_finds_no_room_for_new_backends_goes_on_with_the_others() -> anyhow::Result<()> {
    privileged!("an_agent_that_finds_no_room_for_new_backends_goes_on_with_the_others");
    let mut world = World::of(3)?;
    let room = "max_backends = 3";
    let mut xlb = Xlb::started(&world.lab, room, &world.web(""))?;
    assert_eq!(world.served(40)?, ["b1", "b2", "b3"]);
    xlb.process()?.kill()?;
    let third = &addresses(&world.lab, false)[2];
    xlb.configure(room, &world.web("").replace(third.as_str(), "10.77.0.99"))?;
    xlb.start()?;
    ensure!(xlb.log().contains("too many backends"), "{}", xlb.log());
    wait_until("the third gone", || Ok(world.served(40)? == ["b1", "b2"])).with_context(|| xlb.log())?;
    world.kill(0)?;
    wait_until("the first one out", || {
        Ok(xlb.backend("web", &addresses(&world.lab, false)[0])?["state"] == "DOWN")
    })
    .with_context(|| xlb.log())?;
    assert_eq!(world.served(40)?, ["b2"]);
    let told = xlb.log().matches("too many backends").count();
    assert_eq!(told, 1, "{}", xlb.log());
    Ok(())
}

#[test]
fn a_reload_takes_a_good_configuration_and_refuses_a_bad_one() -> anyhow::Result<()> {
    privileged!("a_reload_takes_a_good_configuration_and_refuses_a_bad_one");
    let world = World::new(LabOptions::default())?;
    let all = addresses(&world.lab, false);
    let web = |backends: &[String]| service("web", VIP, 80, "tcp", "dsr-l2", FAST, backends);
    let xlb = Xlb::started(&world.lab, "", &web(&all[..2]))?;
    assert_eq!(world.served(40)?, ["b1", "b2"]);

    xlb.configure("intervall = 3", &web(&all).replace("dsr-l2", "dsr-l3"))?;
    let refused = xlb.run(&["reload"])?;
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{text}");
    assert!(text.contains("intervall") && text.contains("dsr-l3"), "{text}");
    assert!(text.contains(&format!("{}:", xlb.config.display())), "{text}");
    assert_eq!(world.served(20)?, ["b1", "b2"]);

    let second = service("second", "192.0.2.20", 80, "tcp", "dsr-l2", FAST, &all);
    xlb.configure("", &format!("{}{second}", web(&all[1..])))?;
    let said = xlb.verb("reload")?;
    assert!(said.contains(&format!("backend {}:80 removed", all[0])), "{said}");
    assert_eq!(world.served(40)?, ["b2", "b3"]);
    curl(&world.lab, "192.0.2.20", 80, "/")?;
    assert!(xlb.verb("reload")?.contains("nothing to change"));

    xlb.configure("", &web(&all))?;
    xlb.process()?.signal(Signal::SIGHUP)?;
    wait_until("the reload", || {
        Ok(xlb.status()?["services"].as_array().map(Vec::len) == Some(1))
    })?;
    wait_until("b1", || Ok(world.served(20)? == ["b1", "b2", "b3"]))
}

#[test]
fn on_stop_decides_and_detach_leaves_nothing() -> anyhow::Result<()> {
    privileged!("on_stop_decides_and_detach_leaves_nothing");
    let world = World::of(1)?;
    let xdp = || {
        world
            .lab
            .lb
            .netns
            .run("ip -details link show eth0")
            .map(|text| text.contains("prog/xdp"))
    };

    let mut xlb = Xlb::started(&world.lab, "", &world.web(""))?;
    assert!(xlb.process()?.stop()?.success());
    assert!(xlb.log().contains("on_stop = \"keep\""), "{}", xlb.log());
    assert_eq!(world.served(3)?, ["b1"]);
    xlb.start()?;
    let program = xlb.status()?["interfaces"][0]["program_id"].clone();
    let known = || world.lab.lb.netns.run(&format!("bpftool prog show id {program}"));
    assert!(known()?.contains("xdp"));
    xlb.verb("detach")?;
    assert!(xlb.process()?.wait()?.success());
    assert!(!xlb.pins.exists() && !xdp()?);
    wait_until("the kernel to let go of the program", || Ok(known().is_err()))?;
    assert!(!xlb.socket.exists());

    // Without an agent the pins are enough.
    xlb.start()?;
    xlb.process()?.kill()?;
    xlb.verb("detach")?;
    assert!(!xlb.pins.exists() && !xdp()?);
    let nothing = xlb.run(&["status"])?;
    assert_eq!(nothing.status.code(), Some(4));

    xlb.configure("on_stop = \"detach\"", &world.web(""))?;
    xlb.start()?;
    assert!(xlb.process()?.stop()?.success());
    assert!(!xlb.pins.exists() && !xdp()?);
    Ok(())
}

#[test]
fn break_glass_detaches_without_our_binary() -> anyhow::Result<()> {
    privileged!("break_glass_detaches_without_our_binary");
    let world = World::of(1)?;
    let xlb = Xlb::started(&world.lab, "", &world.web(""))?;
    run(std::process::Command::new("rm").arg("-r").arg(&xlb.pins))?;
    // The kernel frees a link whose last pin is gone in its own time.
    wait_until("the program off", || {
        let link = world.lab.lb.netns.run("ip -details link show eth0")?;
        Ok(!link.contains("prog/xdp"))
    })?;
    wait_until("the agent's word", || {
        Ok(xlb.status()?["agent"]["detached"] == true)
    })?;
    assert!(xlb.log().contains("its pin was removed"), "{}", xlb.log());
    Ok(())
}

#[test]
fn a_second_agent_and_a_foreign_program_are_refused() -> anyhow::Result<()> {
    privileged!("a_second_agent_and_a_foreign_program_are_refused");
    let world = World::of(1)?;
    let foreign = Pass::attach(&world.lab.lb.netns, &["eth0"])?;
    let mut xlb = Xlb::new(&world.lab, "", &world.web(""))?;
    xlb.spawn()?;
    assert_eq!(xlb.process()?.wait()?.code(), Some(1));
    let log = xlb.log();
    assert!(log.contains("already has an XDP program (id "), "{log}");
    assert!(fs::read_dir(&xlb.pins).map_or(true, |mut entries| entries.next().is_none()));
    drop(foreign);

    xlb.start()?;
    let second = world
        .lab
        .lb
        .netns
        .command(binary("xlb")?)
        .args(["agent", "--config"])
        .arg(&xlb.config)
        .output()?;
    assert_eq!(second.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&second.stderr).contains("another agent"),
        "{second:?}"
    );
    assert_eq!(world.served(3)?, ["b1"]);
    Ok(())
}

#[test]
fn an_interface_that_returns_is_attached_again() -> anyhow::Result<()> {
    privileged!("an_interface_that_returns_is_attached_again");
    let world = World::new(LabOptions {
        backends: 1,
        second_device: true,
        ..LabOptions::default()
    })?;
    let lab = &world.lab;
    let backends = addresses(lab, false);
    let web = service("web", VIP, 80, "tcp", "dsr-l2", FAST, &backends);
    let extra = "interfaces = [\"eth0\", \"extra0\"]";
    lab.lb
        .netns
        .ip("link add extra0 type veth peer name extra1\nlink set extra0 up\nlink set extra1 up\n")?;
    let xlb = Xlb::started(lab, extra, &web)?;
    assert_eq!(curl(lab, VIP, 80, "/")?.trim(), "b1");
    let program = |xlb: &Xlb| -> anyhow::Result<bool> {
        Ok(xlb.status()?["interfaces"][1]["mode"] == "native"
            && lab
                .lb
                .netns
                .run("ip -details link show extra0")?
                .contains("prog/xdp"))
    };
    assert!(program(&xlb)?);
    lab.lb.netns.ip("link del extra0\n")?;
    wait_until("its loss", || {
        Ok(xlb.status()?["interfaces"][1]["mode"] == "detached")
    })?;
    lab.lb
        .netns
        .ip("link add extra0 type veth peer name extra1\nlink set extra0 up\nlink set extra1 up\n")?;
    wait_until("its return", || program(&xlb))
}

#[test]
fn interfaces_follow_reloads_renames_and_restarts() -> anyhow::Result<()> {
    privileged!("interfaces_follow_reloads_renames_and_restarts");
    let world = World::of(1)?;
    let netns = &world.lab.lb.netns;
    let web = world.web("");
    let program = |name: &str| -> anyhow::Result<Option<u64>> {
        let links: serde_json::Value = serde_json::from_str(&netns.run(&format!("ip -j link show {name}"))?)?;
        Ok(links[0]["xdp"]["prog"]["id"].as_u64())
    };
    netns.ip("link add extra0 type veth peer name extra1\nlink set extra0 up\nlink set extra1 up\n")?;
    let mut xlb = Xlb::started(&world.lab, "", &web)?;
    assert_eq!(program("extra0")?, None);

    xlb.configure("interfaces = [\"eth0\", \"extra0\"]", &web)?;
    assert!(xlb.verb("reload")?.contains("attached to extra0"));
    let attached = program("extra0")?;
    ensure!(attached.is_some());

    netns.ip("link set extra0 down\nlink set extra0 name extra9\nlink set extra9 up\n")?;
    let renamed = "interfaces = [\"eth0\", \"extra9\"]";
    xlb.configure(renamed, &web)?;
    xlb.verb("reload")?;
    assert_eq!(program("extra9")?, attached);
    assert_eq!(xlb.status()?["interfaces"][1]["mode"], "native");
    assert_eq!(xlb.status()?["agent"]["detached"], false);

    xlb.process()?.kill()?;
    xlb.configure("", &web)?;
    xlb.start()?;
    wait_until("the end on extra9", || Ok(program("extra9")?.is_none()))?;
    assert_eq!(world.served(3)?, ["b1"]);
    Ok(())
}

#[test]
fn a_reload_that_fails_changes_nothing_and_can_be_repeated() -> anyhow::Result<()> {
    privileged!("a_reload_that_fails_changes_nothing_and_can_be_repeated");
    let world = World::new(LabOptions::default())?;
    let netns = &world.lab.lb.netns;
    netns.ip("link add extra0 type veth peer name extra1\nlink set extra0 up\nlink set extra1 up\n")?;
    let xlb = Xlb::started(&world.lab, "", &world.web(""))?;
    let all = addresses(&world.lab, false);
    xlb.verb(&format!("backend drain web {}", all[2]))?;

    let foreign = Pass::attach(netns, &["extra0"])?;
    let fewer = service("web", VIP, 80, "tcp", "dsr-l2", FAST, &all[..1]);
    xlb.configure("announce = \"l2\"\ninterfaces = [\"eth0\", \"extra0\"]", &fewer)?;
    let output = xlb.run(&["reload"])?;
    assert_eq!(output.status.code(), Some(1));
    ensure!(String::from_utf8_lossy(&output.stderr).contains("extra0"));
    assert_eq!(world.served(40)?, ["b1", "b2"]);
    assert_eq!(xlb.backend("web", &all[2])?["admin"], "DRAIN");
    assert_eq!(xlb.status()?["interfaces"][0]["mode"], "native");

    drop(foreign);
    wait_until("room on extra0", || {
        Ok(!netns.run("ip -details link show extra0")?.contains("prog/xdp"))
    })?;
    xlb.verb("reload")?;
    assert_eq!(world.served(20)?, ["b1"]);
    assert_eq!(xlb.status()?["interfaces"][1]["mode"], "native");
    Ok(())
}

#[test]
fn without_confirmation_the_program_comes_off_again() -> anyhow::Result<()> {
    privileged!("without_confirmation_the_program_comes_off_again");
    let world = World::of(1)?;
    let mut xlb = Xlb::new(&world.lab, "", &world.web(""))?.with_arguments(&["--attach-confirm", "2s"]);
    xlb.start()?;
    wait_until("the end of patience", || {
        Ok(xlb.status()?["agent"]["detached"] == true)
    })?;
    assert!(
        !world
            .lab
            .lb
            .netns
            .run("ip -details link show eth0")?
            .contains("prog/xdp")
    );
    let late = xlb.run(&["confirm"])?;
    assert_eq!(late.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&late.stderr).contains("too late"));
    xlb.process()?.stop()?;

    let mut xlb = Xlb::new(&world.lab, "", &world.web(""))?.with_arguments(&["--attach-confirm", "600s"]);
    xlb.start()?;
    xlb.process()?.stop()?;
    let link = world.lab.lb.netns.run("ip -details link show eth0")?;
    assert!(
        !link.contains("prog/xdp"),
        "stopped without a confirmation: {link}"
    );
    xlb.start()?;
    ensure!(xlb.status()?["agent"]["confirm_within_s"].is_number());
    xlb.verb("confirm")?;
    ensure!(xlb.status()?["agent"]["confirm_within_s"].is_null());
    assert_eq!(world.served(3)?, ["b1"]);
    Ok(())
}

#[test]
fn dropped_packets_are_traced_with_their_reason() -> anyhow::Result<()> {
    privileged!("dropped_packets_are_traced_with_their_reason");
    let mut world = World::of(1)?;
    world.kill(0)?;
    let mut xlb = Xlb::new(&world.lab, "", &world.web(""))?.with_arguments(&["--trace-drops", "1"]);
    xlb.start()?;
    assert!(curl(&world.lab, VIP, 80, "/").is_err());
    wait_until("the line", || {
        Ok(xlb
            .log()
            .contains("dropped no_backend: from 10.77.0.1 to 192.0.2.10"))
    })?;
    assert_eq!(xlb.log().matches("dropped no_backend").count(), 1);
    ensure!(xlb.reason("no_backend")? >= 1);
    Ok(())
}

#[test]
fn announced_addresses_are_resolved_by_a_client_on_the_link() -> anyhow::Result<()> {
    privileged!("announced_addresses_are_resolved_by_a_client_on_the_link");
    let world = World::new(LabOptions {
        backends: 2,
        on_link: true,
        decap: true,
        ..LabOptions::default()
    })?;
    let (v4, v6) = (addresses(&world.lab, false), addresses(&world.lab, true));
    let services = [
        service("web", VIP, 80, "tcp", "dsr-ipip", FAST, &v4),
        service("web6", VIP6, 80, "tcp", "dsr-ipip", FAST, &v6),
    ]
    .concat();
    let xlb = Xlb::started(&world.lab, "announce = \"l2\"", &services)?;
    for address in [VIP, VIP6] {
        curl(&world.lab, address, 80, "/")?;
    }
    let link = world.lab.lb.netns.run("ip link show eth0")?;
    let own = link
        .split("link/ether ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next())
        .context("a MAC")?;
    for address in [VIP, VIP6] {
        let neighbor = world.lab.client.netns.run(&format!("ip neigh show {address}"))?;
        assert!(neighbor.contains(own), "{neighbor} is not {own}");
    }
    ensure!(xlb.reason("arp_reply")? + xlb.reason("neighbor_reply")? > 0);
    let groups = || {
        world
            .lab
            .lb
            .netns
            .run("ip maddr show dev eth0")
            .map(|text| text.contains("33:33:ff:00:00:10"))
    };
    assert!(groups()?);
    xlb.verb("detach")?;
    wait_until("the group's end", || Ok(!groups()?))
}

#[test]
fn a_multicast_group_goes_with_the_last_address_that_needs_it() -> anyhow::Result<()> {
    privileged!("a_multicast_group_goes_with_the_last_address_that_needs_it");
    let world = World::new(LabOptions {
        backends: 1,
        on_link: true,
        decap: true,
        ..LabOptions::default()
    })?;
    let v6 = addresses(&world.lab, true);
    // Addresses that end in the same 24 bits share a group.
    let [one, other] = [VIP6, "2001:db8:1::10"].map(|address| {
        service(
            &address.replace(':', "-"),
            address,
            80,
            "tcp",
            "dsr-ipip",
            FAST,
            &v6,
        )
    });
    let announce = "announce = \"l2\"";
    let xlb = Xlb::started(&world.lab, announce, &format!("{one}{other}"))?;
    let joined = || -> anyhow::Result<bool> {
        let groups = world.lab.lb.netns.run("ip maddr show dev eth0")?;
        Ok(groups.contains("33:33:ff:00:00:10"))
    };
    assert!(joined()?);
    xlb.configure(announce, &one)?;
    xlb.verb("reload")?;
    assert!(joined()?);
    xlb.configure("", &one)?;
    xlb.verb("reload")?;
    assert!(!joined()?);
    xlb.configure(announce, &one)?;
    xlb.verb("reload")?;
    assert!(joined()?);
    Ok(())
}

#[test]
fn generic_mode_and_a_second_device_carry_traffic() -> anyhow::Result<()> {
    privileged!("generic_mode_and_a_second_device_carry_traffic");
    let world = World::new(LabOptions {
        second_device: true,
        ..LabOptions::default()
    })?;
    let _other = Pass::attach(&world.lab.lb.netns, &["eth1"])?;
    let web = world.web("");
    let xlb = Xlb::started(&world.lab, "", &web)?;
    assert_eq!(world.served(40)?, ["b1", "b2", "b3"]);
    ensure!(xlb.reason("redirected")? > 0, "nothing was redirected");
    assert_eq!(xlb.reason("transmitted")?, 0);
    xlb.verb("detach")?;
    drop(xlb);
    drop(world);

    let world = World::new(LabOptions::default())?;
    let xlb = Xlb::started(&world.lab, "xdp_mode = \"generic\"", &world.web(""))?;
    assert_eq!(xlb.status()?["interfaces"][0]["mode"], "generic");
    assert_eq!(world.served(40)?, ["b1", "b2", "b3"]);
    assert_eq!(world.lab.checksum_errors()?, 0);
    Ok(())
}

#[test]
fn a_silent_backend_is_found_and_other_ports_are_left_alone() -> anyhow::Result<()> {
    privileged!("a_silent_backend_is_found_and_other_ports_are_left_alone");
    let world = World::new(LabOptions::default())?;
    let own = Server::http(&world.lab.lb, 8080, &world.folder)?;
    let xlb = Xlb::started(&world.lab, "", &world.web(""))?;
    assert_eq!(curl(&world.lab, "10.77.0.2", 8080, "/")?.trim(), "lb");
    world.lab.client.netns.run("ping -c 1 -W 2 10.77.0.2")?;
    world.lab.cut("b2")?;
    let b2 = world.lab.backends[1].v4.to_string();
    wait_until("b2 DOWN", || Ok(xlb.backend("web", &b2)?["state"] == "DOWN"))?;
    assert_eq!(world.served(30)?, ["b1", "b3"]);
    world.lab.mend("b2")?;
    wait_until("b2 UP", || Ok(xlb.backend("web", &b2)?["serving"] == true))?;
    assert_eq!(world.served(40)?, ["b1", "b2", "b3"]);
    assert_eq!(world.lab.tx_errors()?, 0);
    drop(own);
    Ok(())
}
