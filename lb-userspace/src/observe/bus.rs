//! Where events come together: a bounded ring that many may read and nobody can hold up.
//!
//! A reader keeps the number of the last event it saw and asks for those after it ([`Bus::since`]). Numbers go
//! up by one, so that a reader that was too slow can be told how many it missed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::event::{Draft, Event, Timestamp};

/// How many events are kept for readers.
pub const ROOM: usize = 16_384;

/// The bus; clones are the same bus.
#[derive(Clone, Debug)]
pub struct Bus(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    ring: Mutex<Ring>,
    /// Number of the last event.
    last: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Ring {
    /// Numbered without gaps, the last one `last`.
    events: VecDeque<Arc<Event>>,
    last: u64,
}

/// `GET /v1/events`: the events after the one that was asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Batch {
    pub events: Vec<Event>,
    /// Number of the last event there is: what to ask for next.
    pub last: u64,
    /// Events in between that are not kept any longer.
    pub missed: u64,
}

impl Bus {
    /// A bus that goes on with what an earlier agent kept, in its order.
    #[must_use]
    pub fn with(earlier: impl IntoIterator<Item = Event>) -> Self {
        let mut ring = Ring::default();
        for event in earlier {
            // A gap, as a file that lost lines has: readers count on there being none.
            if event.seq != ring.last + 1 {
                ring.events.clear();
            }
            ring.push(event);
        }
        let last = watch::Sender::new(ring.last);
        Self(Arc::new(Shared {
            ring: Mutex::new(ring),
            last,
        }))
    }

    /// Tells everybody. Never waits. Gives back the event's number.
    pub fn emit(&self, draft: impl Into<Draft>) -> u64 {
        self.emit_at(draft, SystemTime::now())
    }

    /// As [`Bus::emit`], of something that happened at `time`.
    pub fn emit_at(&self, draft: impl Into<Draft>, time: SystemTime) -> u64 {
        let mut ring = self.ring();
        let event = draft.into().at(ring.last + 1, Timestamp::of(time));
        ring.push(event);
        let last = ring.last;
        drop(ring);
        // Of two that emit at one moment the later number stays.
        self.0.last.send_if_modified(|known| {
            let newer = last > *known;
            *known = last.max(*known);
            newer
        });
        last
    }

    /// The events after number `seq`, at most `limit`, the oldest first. A number that was not given out yet (of
    /// an agent whose events were lost) counts as 0.
    #[must_use]
    pub fn since(&self, seq: u64, limit: usize) -> Batch {
        let ring = self.ring();
        let seq = if seq > ring.last { 0 } else { seq };
        let first = ring.events.front().map_or(ring.last + 1, |event| event.seq);
        let missed = first.saturating_sub(seq + 1);
        let skip = usize::try_from(seq.saturating_sub(first - 1)).unwrap_or(usize::MAX);
        let events: Vec<Event> = ring
            .events
            .iter()
            .skip(skip)
            .take(limit)
            .map(|event| Event::clone(event))
            .collect();
        let last = events.last().map_or(ring.last, |event| event.seq);
        Batch { events, last, missed }
    }

    /// Number of the last event.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.ring().last
    }

    /// Waits until there is an event after number `seq`.
    pub async fn beyond(&self, seq: u64) {
        let mut last = self.0.last.subscribe();
        if seq > self.last() {
            return;
        }
        // The sender lives as long as `self`.
        let _ = last.wait_for(|last| *last > seq).await;
    }

    /// How many wait for an event.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.0.last.receiver_count()
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        // A panic cannot leave the ring half changed: it holds whole events only.
        self.0.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    fn push(&mut self, event: Event) {
        if self.events.len() == ROOM {
            self.events.pop_front();
        }
        self.last = event.seq;
        self.events.push_back(Arc::new(event));
    }
}

#[cfg(test)]
mod tests {
    use super::super::event::Kind;
    use super::*;

    fn seqs(batch: &Batch) -> Vec<u64> {
        batch.events.iter().map(|event| event.seq).collect()
    }

    #[test]
    fn readers_get_what_came_after() {
        let bus = Bus::with([]);
        assert_eq!(bus.since(0, 10), Batch::default());
        for _ in 0..3 {
            bus.emit(Kind::Isolated);
        }
        assert_eq!(seqs(&bus.since(0, 10)), [1, 2, 3]);
        let batch = bus.since(1, 1);
        assert_eq!((seqs(&batch), batch.last, batch.missed), (vec![2], 2, 0));
        let batch = bus.since(3, 10);
        assert_eq!((batch.events.len(), batch.last), (0, 3));
    }

    #[test]
    fn the_slow_are_told_what_they_missed() {
        let bus = Bus::with([]);
        for _ in 0..ROOM + 5 {
            bus.emit(Kind::Isolated);
        }
        let batch = bus.since(2, usize::MAX);
        assert_eq!((batch.missed, batch.events.len()), (3, ROOM));
        assert_eq!(batch.events[0].seq, 6);
        assert_eq!(bus.since(5, usize::MAX).missed, 0);
    }

    #[test]
    fn a_number_of_another_life_begins_anew() {
        let bus = Bus::with([]);
        bus.emit(Kind::Isolated);
        assert_eq!(seqs(&bus.since(900, 10)), [1]);
    }

    #[test]
    fn numbers_go_on_from_those_that_were_kept() {
        let kept = |seq| Draft::from(Kind::Isolated).at(seq, Timestamp(seq));
        let bus = Bus::with([kept(3), kept(4), kept(7), kept(8)]);
        assert_eq!(bus.emit(Kind::IsolationOver), 9);
        let batch = bus.since(0, 10);
        assert_eq!((seqs(&batch), batch.missed), (vec![7, 8, 9], 6));
    }

    #[tokio::test]
    async fn a_waiting_reader_wakes() {
        let bus = Bus::with([]);
        let (other, waiting) = (bus.clone(), bus.clone());
        let waiting = tokio::spawn(async move { waiting.beyond(0).await });
        tokio::task::yield_now().await;
        other.emit(Kind::Isolated);
        waiting.await.unwrap();
        bus.beyond(0).await;
        // A number of another life does not wait for ever.
        bus.beyond(900).await;
    }
}
