//! The demo as users run it: it keeps its promises, and leaves nothing behind whatever happens to it.

use std::fs;
use std::process::Command;
use std::sync::Arc;

use anyhow::ensure;
use lb_tests::cleanup::{Folder, left_by};
use lb_tests::privileged;
use lb_tests::process::{Process, binary};
use lb_tests::wait::wait_until;
use nix::sys::signal::Signal;

#[test]
fn the_demo_shows_traffic_and_writes_its_numbers() -> anyhow::Result<()> {
    privileged!("the_demo_shows_traffic_and_writes_its_numbers");
    let folder = Arc::new(Folder::new("demo")?);
    let json = folder.file("numbers.json");
    let mut command = Command::new(binary("xlb")?);
    command.args(["demo", "--only", "traffic", "--json"]).arg(&json);
    let demo = Process::spawn("demo", &mut command, &folder)?;
    let status = demo.wait()?;
    ensure!(status.success(), "{status}:\n{}", demo.log());
    ensure!(demo.log().contains("every promise kept"), "{}", demo.log());
    let numbers: serde_json::Value = serde_json::from_str(&fs::read_to_string(json)?)?;
    assert_eq!(numbers["kept"], true);
    assert_eq!(numbers["traffic"].as_array().map(Vec::len), Some(5));
    assert_eq!(left_by(demo.pid()), Vec::<String>::new());
    Ok(())
}

#[test]
fn an_interrupted_demo_cleans_up() -> anyhow::Result<()> {
    privileged!("an_interrupted_demo_cleans_up");
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let folder = Arc::new(Folder::new("demo")?);
        let mut command = Command::new(binary("xlb")?);
        let demo = Process::spawn("demo", command.args(["demo", "--only", "restart"]), &folder)?;
        wait_until("the agent to be killed", || {
            Ok(demo.log().contains("AGENT NOT RUNNING"))
        })?;
        ensure!(
            !left_by(demo.pid()).is_empty(),
            "there is nothing to clean up yet:\n{}",
            demo.log()
        );
        demo.signal(signal)?;
        assert_eq!(demo.wait()?.code(), Some(130), "{}", demo.log());
        assert_eq!(left_by(demo.pid()), Vec::<String>::new());
    }
    Ok(())
}

#[test]
fn what_a_killed_demo_leaves_the_next_run_sweeps_up() -> anyhow::Result<()> {
    privileged!("what_a_killed_demo_leaves_the_next_run_sweeps_up");
    let folder = Arc::new(Folder::new("demo")?);
    let mut command = Command::new(binary("xlb")?);
    let demo = Process::spawn("demo", command.args(["demo", "--only", "drain"]), &folder)?;
    wait_until("the agent to run", || Ok(demo.log().contains("attached to")))?;
    demo.kill()?;
    ensure!(!left_by(demo.pid()).is_empty());
    let mut command = Command::new(binary("xlb")?);
    let second = Process::spawn("second", command.args(["demo", "--only", "drain"]), &folder)?;
    ensure!(second.wait()?.success(), "{}", second.log());
    assert_eq!(left_by(demo.pid()), Vec::<String>::new());
    Ok(())
}
