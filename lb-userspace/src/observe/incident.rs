//! From a verdict to packets that flow elsewhere: the second half of an incident's timeline.
//!
//! After the table was switched, the counters of the backends that took over are read again and again until one
//! has grown. They also count the packets of flows that these backends had before: what is shown is that the
//! service's packets went on, and when at the latest. A packet may have come before it was seen, by as much as
//! `resolution_ms`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::bus::Bus;
use super::event::{Draft, Kind, Timeline, Timestamp};
use crate::datapath::counters::CounterMaps;

/// How many of the backends that took over are looked at.
pub const LOOKED_AT: usize = 16;

/// How often the counters are read, by the time since the switch; after the last step nobody looks any longer.
const PACE: [(Duration, Duration); 3] = [
    (Duration::from_millis(100), Duration::from_millis(2)),
    (Duration::from_secs(1), Duration::from_millis(20)),
    (Duration::from_secs(10), Duration::from_millis(100)),
];

/// Reading takes at most one part in so many of a core.
const SHARE: u32 = 5;

/// Something whose counters can be read; tests have their own.
pub trait Packets: Send + 'static {
    /// Packets sent to the backend with an index so far.
    fn packets(&self, index: u32) -> Option<u64>;
}

impl Packets for Arc<CounterMaps> {
    fn packets(&self, index: u32) -> Option<u64> {
        self.backend(index).ok().map(|counted| counted.packets)
    }
}

/// One incident that waits for its first packet.
#[derive(Debug)]
pub struct Watch {
    /// Whose it is.
    pub about: Draft,
    pub timeline: Timeline,
    /// The backends that took over, by index, with their packets at `begun`.
    pub before: Vec<(u32, u64)>,
    /// When those were read, shortly after the switch.
    pub begun: Instant,
    /// How long after the switch that was.
    pub late: Duration,
}

/// Looks for the first packets, in a task of its own.
#[derive(Clone, Debug)]
pub struct Follower(mpsc::UnboundedSender<Watch>);

impl Follower {
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn spawn(counters: impl Packets, bus: Bus) -> Self {
        let (watches, fresh) = mpsc::unbounded_channel();
        tokio::spawn(follow(fresh, counters, bus));
        Self(watches)
    }

    /// Tells of an incident when its first packet was seen, or none came.
    pub fn watch(&self, watch: Watch) {
        // The task ends with the last sender.
        let _ = self.0.send(watch);
    }
}

async fn follow(mut fresh: mpsc::UnboundedReceiver<Watch>, counters: impl Packets, bus: Bus) {
    let mut watched: Vec<(Watch, Instant)> = Vec::new();
    loop {
        if watched.is_empty() {
            let Some(watch) = fresh.recv().await else { return };
            let begun = watch.begun;
            watched.push((watch, begun));
        }
        while let Ok(watch) = fresh.try_recv() {
            let begun = watch.begun;
            watched.push((watch, begun));
        }
        let began = Instant::now();
        look_at_all(&mut watched, &counters, &bus);
        let now = Instant::now();
        let next = watched
            .iter()
            .filter_map(|(watch, _)| pace(now - watch.begun))
            .min();
        if let Some(next) = next {
            tokio::time::sleep(next.max((now - began) * SHARE)).await;
        }
    }
}

/// One look at each; a counter is read once however many wait for it: backends that die together have the same heirs.
fn look_at_all(watched: &mut Vec<(Watch, Instant)>, counters: &impl Packets, bus: &Bus) {
    let (now, clock) = (Instant::now(), SystemTime::now());
    let mut known: HashMap<u32, Option<u64>> = HashMap::new();
    let mut packets = |index| *known.entry(index).or_insert_with(|| counters.packets(index));
    watched.retain_mut(|(watch, looked)| {
        let done = look(watch, *looked, now, clock, &mut packets);
        *looked = now;
        if done {
            let mut told = watch.about.clone();
            told.kind = Kind::Rerouted(watch.timeline.clone());
            bus.emit(told);
        }
        !done
    });
}

/// Whether an incident's timeline is complete, or as complete as it gets.
fn look(
    watch: &mut Watch,
    looked: Instant,
    now: Instant,
    clock: SystemTime,
    packets: &mut impl FnMut(u32) -> Option<u64>,
) -> bool {
    let grown = |(index, before): &(u32, u64)| packets(*index).is_some_and(|now| now > *before);
    if watch.before.iter().any(grown) {
        watch.timeline.first_packet = Some(Timestamp::of(clock));
        let resolution = now - looked + watch.late;
        watch.timeline.resolution_ms = Some(resolution.as_secs_f64() * 1000.0);
        return true;
    }
    pace(now - watch.begun).is_none()
}

fn pace(since: Duration) -> Option<Duration> {
    PACE.iter()
        .find(|(until, _)| since < *until)
        .map(|(_, pace)| *pace)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// One counter for all indices.
    struct Sent(Arc<AtomicU64>);

    impl Packets for Sent {
        fn packets(&self, _: u32) -> Option<u64> {
            Some(self.0.load(Ordering::Relaxed))
        }
    }

    fn watch() -> Watch {
        Watch {
            about: Kind::Isolated.service("web"),
            timeline: Timeline::default(),
            before: vec![(1, 10), (2, 10)],
            begun: Instant::now(),
            late: Duration::from_millis(1),
        }
    }

    fn told(bus: &Bus) -> Timeline {
        let event = bus.since(0, 10).events.pop().unwrap();
        assert_eq!(event.service.as_deref(), Some("web"));
        match event.kind {
            Kind::Rerouted(timeline) => timeline,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_packet_is_seen_with_its_uncertainty() {
        let (sent, bus) = (Arc::new(AtomicU64::new(10)), Bus::with([]));
        let follower = Follower::spawn(Sent(Arc::clone(&sent)), bus.clone());
        follower.watch(watch());
        tokio::time::sleep(Duration::from_millis(301)).await;
        assert_eq!(bus.last(), 0);
        sent.store(11, Ordering::Relaxed);
        bus.beyond(0).await;
        let timeline = told(&bus);
        assert!(timeline.first_packet.is_some());
        // By then it looks every 20 ms.
        let resolution = timeline.resolution_ms.unwrap();
        assert!((21.0..=23.0).contains(&resolution), "{resolution}");
    }

    #[tokio::test(start_paused = true)]
    async fn where_no_packet_comes_that_is_told() {
        let (sent, bus) = (Arc::new(AtomicU64::new(10)), Bus::with([]));
        let follower = Follower::spawn(Sent(sent), bus.clone());
        follower.watch(watch());
        let begun = Instant::now();
        bus.beyond(0).await;
        assert!(begun.elapsed() >= PACE[2].0);
        assert_eq!(told(&bus), Timeline::default());
    }
}
