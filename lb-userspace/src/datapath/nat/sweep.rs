//! Sweeping the table of translated flows: what is over is taken out, so that its entries and its port are free again.
//!
//! A flow is judged by both of its entries. The forward one goes first: while the reply is there nobody else can have
//! the port. The program changes the table meanwhile, so the forward entry is taken out in one step that gives it back,
//! and put back, where none has taken its place, if it is not the one that was judged. A reply without its forward
//! entry is what an agent left that died between the two; the program makes them the other way round, so one that is
//! older than a moment belongs to nobody.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use lb_common::nat::{self, FORWARD, LEAST_LIFE_NS, NatEntry, NatKey, NatSeen, NatState, REPLY};

use super::NatFlows;
use crate::datapath::clock::Clock;
use crate::datapath::flows::Cursor;
use crate::datapath::{Error, identity};

/// A packet that found its entry may note its time so much later than the entry was read.
const GRACE_NS: u64 = nat::TOUCH_NS + 1_000_000_000;

/// From this part of the table on, in per cent, what waits for an answer or is closed gives way early.
const PRESSED_PERCENT: u64 = 75;

/// What a sweep must know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NatView {
    /// How long flows may be idle, by index of the service. Of others nothing is kept longer than it has to be.
    pub idle_ns: BTreeMap<u32, u64>,
    /// The table is filling up.
    pub pressed: bool,
}

/// What a sweep found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NatReport {
    /// `CLOCK_MONOTONIC`.
    pub ended_ns: u64,
    pub took_ns: u64,
    /// Flows that stayed.
    pub flows: u64,
    /// Those of them that have not ended, by index of the backend.
    pub backends: BTreeMap<u32, u64>,
    /// Of all that stayed: without a packet for ten seconds at least, and waiting for an answer, closing or closed.
    pub fading: u64,
    /// Ports in use, by address of ours.
    pub ports: BTreeMap<IpAddr, u64>,
    /// Flows that were taken out.
    pub removed: u64,
    /// Replies without a flow that were taken out.
    pub orphans: u64,
}

impl NatReport {
    /// Whether a table with room for so many flows is filling up.
    #[must_use]
    pub fn presses(&self, capacity: u32) -> bool {
        self.flows * 100 >= u64::from(capacity) * PRESSED_PERCENT
    }
}

/// How long a flow lives after its last packet.
fn life_ns(state: NatState, service: u32, view: &NatView) -> u64 {
    let idle_ns = view.idle_ns.get(&service).copied().unwrap_or(LEAST_LIFE_NS);
    let life_ns = state.life_ns(idle_ns);
    if view.pressed && matches!(state, NatState::Opening | NatState::Closed) {
        life_ns.min(LEAST_LIFE_NS)
    } else {
        life_ns
    }
}

/// Scans the whole table once. `view` is asked anew for every batch, and `go_on` after every batch: `false` ends the
/// scan early, which then says nothing.
///
/// # Errors
/// [`Error::Syscall`], [`Error::Map`].
pub fn sweep(
    flows: &mut NatFlows,
    view: &dyn Fn() -> Arc<NatView>,
    clock: Clock<'_>,
    go_on: &dyn Fn() -> bool,
) -> Result<Option<NatReport>, Error> {
    let begun_ns = clock();
    let mut report = NatReport::default();
    let mut cursor = Cursor::default();
    loop {
        let more = flows.read_batch(&mut cursor)?;
        let view = view();
        let now_ns = clock();
        for (key, entry) in cursor.entries() {
            match entry.direction {
                FORWARD => report.judge_flow(flows, &view, &key, &entry, now_ns)?,
                REPLY => report.judge_reply(flows, &key, &entry, now_ns)?,
                _ => {}
            }
        }
        if !more {
            break;
        }
        if !go_on() {
            return Ok(None);
        }
    }
    report.ended_ns = clock();
    report.took_ns = report.ended_ns.saturating_sub(begun_ns);
    Ok(Some(report))
}

/// How long ago something was; what is newer than `now_ns` was just now.
fn age(seen: NatSeen, now_ns: u64) -> u64 {
    now_ns.saturating_sub(seen.at_ns())
}

impl NatReport {
    fn judge_flow(
        &mut self,
        flows: &mut NatFlows,
        view: &NatView,
        key: &NatKey,
        entry: &NatEntry,
        now_ns: u64,
    ) -> Result<(), Error> {
        let is_young = age(entry.seen, now_ns) <= LEAST_LIFE_NS + GRACE_NS;
        if is_young && !entry.seen.has(NatSeen::FIN | NatSeen::RST) {
            self.stays(key, entry, false);
            return Ok(());
        }
        let peer = entry.peer(key.kind);
        let reply = flows.get(&peer)?.filter(|reply| reply.peer(key.kind) == *key);
        let (state, idle_ns) = judged(entry, reply.as_ref(), now_ns);
        if is_young {
            self.stays(key, entry, state.is_over());
            return Ok(());
        }
        if idle_ns <= life_ns(state, entry.service, view).saturating_add(GRACE_NS) {
            self.fading += u64::from(state != NatState::Established && idle_ns > LEAST_LIFE_NS);
            self.stays(key, entry, state.is_over());
            return Ok(());
        }
        match flows.take(key)? {
            None => return Ok(()),
            Some(taken) if taken.seen != entry.seen => {
                // A packet came meanwhile. Where one made the flow anew its entry is the one that counts.
                flows.add(key, taken)?;
                self.stays(key, &taken, false);
                return Ok(());
            }
            Some(_) => {}
        }
        if reply.is_some() && flows.get(key)?.is_none() {
            flows.remove(&peer)?;
        }
        self.removed += 1;
        Ok(())
    }

    fn judge_reply(
        &mut self,
        flows: &mut NatFlows,
        key: &NatKey,
        entry: &NatEntry,
        now_ns: u64,
    ) -> Result<(), Error> {
        if age(entry.seen, now_ns) <= LEAST_LIFE_NS + GRACE_NS {
            return Ok(());
        }
        let forward = flows.get(&entry.peer(key.kind))?;
        let owned = forward.is_some_and(|forward| forward.peer(key.kind) == *key);
        if !owned && flows.get(key)?.is_some_and(|now| now.seen == entry.seen) {
            flows.remove(key)?;
            self.orphans += 1;
        }
        Ok(())
    }

    /// `is_over`: its connection has ended, and its entry is there for what is still on its way.
    fn stays(&mut self, key: &NatKey, entry: &NatEntry, is_over: bool) {
        self.flows += 1;
        if !is_over {
            *self.backends.entry(entry.backend).or_default() += 1;
        }
        if entry.source != key.source
            && let Some(address) = identity::address(entry.source, (key.kind >> 8) as u8)
        {
            *self.ports.entry(address).or_default() += 1;
        }
    }
}

/// The state of a flow, and how long it has been without a packet. One without a reply entry gets no answers.
fn judged(forward: &NatEntry, reply: Option<&NatEntry>, now_ns: u64) -> (NatState, u64) {
    let forward_age = age(forward.seen, now_ns);
    match reply {
        Some(reply) => (
            nat::state(forward.seen, reply.seen),
            forward_age.min(age(reply.seen, now_ns)),
        ),
        None => (NatState::Closed, forward_age),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn view(pressed: bool) -> NatView {
        NatView {
            idle_ns: BTreeMap::from([(3, 900 * S)]),
            pressed,
        }
    }

    #[test]
    fn under_pressure_what_nobody_uses_gives_way_and_nothing_else() {
        for (state, usual_s, pressed_s) in [
            (NatState::Opening, 64, 10),
            (NatState::Established, 900, 900),
            (NatState::Closing, 120, 120),
            (NatState::Closed, 60, 10),
            (NatState::Reset, 10, 10),
        ] {
            assert_eq!(life_ns(state, 3, &view(false)), usual_s * S, "{state:?}");
            assert_eq!(life_ns(state, 3, &view(true)), pressed_s * S, "{state:?}");
            assert_eq!(
                life_ns(state, 4, &view(false)),
                10 * S,
                "{state:?}: of a service that is gone"
            );
        }
    }

    #[test]
    fn either_side_keeps_a_flow_alive() {
        let at = |seen_s: u64| NatEntry {
            seen: NatSeen::at(seen_s * S).and(NatSeen::SOME, seen_s * S),
            ..NatEntry::default()
        };
        assert_eq!(
            judged(&at(5), Some(&at(90)), 100 * S),
            (NatState::Established, 10 * S)
        );
        assert_eq!(
            judged(&at(90), Some(&at(5)), 100 * S),
            (NatState::Established, 10 * S)
        );
        assert_eq!(judged(&at(90), None, 100 * S), (NatState::Closed, 10 * S));
    }

    #[test]
    fn three_quarters_press() {
        let report = |flows| NatReport {
            flows,
            ..NatReport::default()
        };
        assert!(!report(749).presses(1000));
        assert!(report(750).presses(1000));
    }
}
