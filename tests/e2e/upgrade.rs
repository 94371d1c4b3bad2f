//! An agent that finds the pins of another version.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::Context;
use lb_tests::privileged;
use lb_tests::wait::wait_until;
use support::{World, Xlb};
use xlb::datapath::maps::Maps;
use xlb::datapath::pins::PinDir;

fn pins(folder: &Path) -> anyhow::Result<BTreeSet<String>> {
    let names = fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect()
}

/// The number of the layout is all that tells it from this one: nothing in it may be read.
#[test]
fn pins_of_an_older_layout_are_refused_and_forward_on() -> anyhow::Result<()> {
    privileged!("pins_of_an_older_layout_are_refused_and_forward_on");
    let world = World::of(2)?;
    let mut xlb = Xlb::started(&world.lab, "", &world.web(""))?;
    assert_eq!(world.served(20)?, ["b1", "b2"]);
    xlb.process()?.kill()?;
    {
        let mut maps = Maps::open(&PinDir::open(&xlb.pins)?)?;
        let mut meta = maps.agent_meta.get(&0, 0)?;
        meta.layout = 1;
        maps.agent_meta.set(0, meta, 0)?;
    }
    let before = pins(&xlb.pins)?;
    xlb.spawn()?;
    let said = "has layout version 1, this version needs layout version";
    wait_until("the agent to refuse", || Ok(xlb.log().contains(said))).with_context(|| xlb.log())?;
    let status = xlb.process()?.wait()?;
    assert_eq!(status.code(), Some(1), "{}", xlb.log());
    assert!(
        xlb.log().contains("run `xlb detach` with the old version"),
        "{}",
        xlb.log()
    );
    assert_eq!(pins(&xlb.pins)?, before, "nothing was made or taken away");
    assert_eq!(world.served(20)?, ["b1", "b2"], "the old program forwards on");
    for verb in ["status", "stats"] {
        let pins = xlb.pins.display().to_string();
        let output = xlb.run(&[verb, "--pin-dir", &pins])?;
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(4), "{complaint}");
        assert!(complaint.contains(said), "{complaint}");
    }
    Ok(())
}
