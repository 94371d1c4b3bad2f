//! `xlb backend drain --wait`: until no flow can be left on the backend that nobody has seen.
//!
//! The load balancer does not know of flows that are idle. After one idle timeout all that live have been seen, so
//! this waits for the end of the windows of the backend's slots, and says how many flows are seen on it meanwhile. With
//! `tracking = "full"`, and where addresses are translated, every flow is known: then the wait is over when none is left,
//! and after an idle timeout at the latest, as elsewhere. Translated flows are counted by scans of their table; one that
//! began before the order says nothing.

use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::api::types::{BackendOrder, Status};
use crate::cli::outcome::{Context, Outcome};
use crate::cli::{block_on, human};

/// From one look to the next.
const LOOK: Duration = Duration::from_secs(1);

/// What is known of the flows of the drained backends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
struct Left {
    /// Flows seen on them: by the last sweep, with `tracking = "full"` at this moment.
    remembered_flows: u64,
    /// Until when idle ones may show; RFC 3339, UTC. `null`: all have been seen.
    unseen_flows_until: Option<String>,
    /// The wait was over before the time to wait was.
    done: bool,
    /// How long to wait for known flows to end, in milliseconds; 0: there are none.
    #[serde(skip)]
    known_ms: u64,
    /// Nobody has counted since the order.
    #[serde(skip)]
    uncounted: bool,
}

pub(super) fn run(
    order: &BackendOrder,
    timeout: Option<Duration>,
    context: &Context,
) -> anyhow::Result<Outcome> {
    block_on(async { Ok(context.client.order(order).await?) })?;
    let begun = Instant::now();
    let mut told = None;
    loop {
        let asked = begun.elapsed();
        let status = block_on(async { Ok(context.client.status().await?) })?;
        let mut left = left(&status, order, asked);
        left.done = left.unseen_flows_until.is_none()
            && !left.uncounted
            && begun.elapsed() >= Duration::from_millis(left.known_ms);
        if left.done || timeout.is_some_and(|timeout| begun.elapsed() >= timeout) {
            let shown = context.show(&left, |left, _| format!("{}\n", words(left)))?;
            return Ok(shown.with_code(u8::from(!left.done)));
        }
        if told.as_ref() != Some(&left) {
            eprintln!("{}", words(&left));
            told = Some(left);
        }
        thread::sleep(LOOK);
    }
}

/// What a status says of the backends of an order, which was given at least so long before.
fn left(status: &Status, order: &BackendOrder, since: Duration) -> Left {
    let services = status.services.iter();
    let backends = services
        .filter(|service| order.service.as_ref().is_none_or(|name| *name == service.name))
        .flat_map(|service| service.backends.iter().map(move |backend| (service, backend)))
        .filter(|(_, b)| b.address == order.address && order.port.is_none_or(|port| port == b.port));
    let counted = status.nat.as_ref().is_some_and(|nat| {
        nat.scanned_ms_ago
            .is_some_and(|ago| Duration::from_millis(ago + nat.scan_ms + 1) < since)
    });
    let mut left = Left::default();
    for (service, backend) in backends {
        left.uncounted |= service.forward.translates() && !counted;
        let flows = backend.remembered_flows.unwrap_or(0);
        left.remembered_flows += flows;
        if (service.tracking == "full" || service.forward.translates()) && flows > 0 {
            left.known_ms = left.known_ms.max(service.idle_timeout_ms.unwrap_or(0));
        }
        // RFC 3339 in UTC sorts as time does.
        left.unseen_flows_until = left.unseen_flows_until.max(backend.unseen_flows_until.clone());
    }
    left
}

fn words(left: &Left) -> String {
    let seen = human::count(left.remembered_flows);
    match &left.unseen_flows_until {
        Some(until) => format!("{seen} flows seen on it; idle ones may show until {until}"),
        None => format!("{seen} flows on it, and no others"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::Order;
    use crate::cli::tests::example_status;

    #[test]
    fn the_latest_window_of_all_services_counts() {
        let mut status = example_status();
        let until = |text: &str| Some(text.to_owned());
        for (service, at) in [(0, "2025-01-01T00:15:00.000Z"), (1, "2025-01-01T00:01:00.000Z")] {
            let backend = &mut status.services[service].backends[0];
            backend.address = "10.9.9.9".parse().unwrap();
            backend.remembered_flows = Some(7);
            backend.unseen_flows_until = until(at);
        }
        let mut order = BackendOrder {
            service: None,
            address: "10.9.9.9".parse().unwrap(),
            port: None,
            order: Order::Drain,
            force: false,
        };
        let left = |status: &Status, order: &BackendOrder| left(status, order, Duration::from_secs(5));
        let both = left(&status, &order);
        assert_eq!(both.unseen_flows_until, until("2025-01-01T00:15:00.000Z"));
        assert_eq!(both.remembered_flows, 14);
        assert_eq!(
            words(&both),
            "14 flows seen on it; idle ones may show until 2025-01-01T00:15:00.000Z"
        );
        order.service = Some("dns".into());
        assert_eq!(
            left(&status, &order).unseen_flows_until,
            until("2025-01-01T00:01:00.000Z")
        );
        assert_eq!(left(&status, &order).known_ms, 0);
        status.services[1].backends[0].unseen_flows_until = None;
        assert_eq!(words(&left(&status, &order)), "7 flows on it, and no others");
        // Flows that are all known are waited for.
        status.services[1].tracking = "full".into();
        assert_eq!(left(&status, &order).known_ms, 900_000);
        status.services[1].backends[0].remembered_flows = Some(0);
        assert_eq!(left(&status, &order).known_ms, 0);
        assert_eq!(words(&left(&status, &order)), "0 flows on it, and no others");
    }

    #[test]
    fn translated_flows_are_counted_after_the_order() {
        let mut status = example_status();
        status.services[0].forward = crate::model::Forward::Nat;
        let backend = &mut status.services[0].backends[0];
        backend.address = "10.9.9.9".parse().unwrap();
        backend.remembered_flows = Some(0);
        backend.unseen_flows_until = None;
        let order = BackendOrder {
            service: Some(status.services[0].name.clone()),
            address: "10.9.9.9".parse().unwrap(),
            port: None,
            order: Order::Drain,
            force: false,
        };
        let mut nat = crate::api::types::NatStatus {
            scan_ms: 200,
            ..Default::default()
        };
        for (ago, uncounted) in [
            (None, true),
            (Some(5000), true),
            (Some(4800), true),
            (Some(4798), false),
            (Some(0), false),
        ] {
            nat.scanned_ms_ago = ago;
            status.nat = Some(nat.clone());
            let left = left(&status, &order, Duration::from_secs(5));
            assert_eq!((left.uncounted, left.known_ms), (uncounted, 0), "{ago:?}");
        }
        status.services[0].forward = crate::model::Forward::DsrL2;
        status.nat = None;
        assert!(!left(&status, &order, Duration::from_secs(5)).uncounted);
    }
}
