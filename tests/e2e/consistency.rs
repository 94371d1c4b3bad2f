//! The short form of `cargo xtask bench consistency`: a few events under hundreds of live flows.

use anyhow::ensure;
use lb_tests::bench::consistency::{CONTROL, Plan, broken, faults, perform};
use lb_tests::privileged;

#[test]
fn no_flow_is_broken_whose_backend_lives_and_without_tracking_some_are() -> anyhow::Result<()> {
    privileged!("no_flow_is_broken_whose_backend_lives_and_without_tracking_some_are");
    let plan = Plan::short();
    let run = perform(&plan)?;
    ensure!(
        run.outcomes.len() == plan.events.len() && run.answers > 0,
        "{run:#?}"
    );
    // The positive control: the events do break flows of whoever forgets them.
    ensure!(broken(&run, CONTROL) > 0, "{run:#?}");
    let kept: Vec<&str> = plan
        .stage
        .arms
        .iter()
        .map(|arm| arm.name)
        .filter(|arm| *arm != CONTROL)
        .collect();
    if kept.is_empty() {
        println!("tracking = \"moved\" is not there: only the control was run");
    } else {
        ensure!(faults(&run).is_empty(), "{:#?}\n{run:#?}", faults(&run));
    }
    Ok(())
}
