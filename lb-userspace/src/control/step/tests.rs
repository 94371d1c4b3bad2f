use super::*;

const A: u32 = 1;
const B: u32 = 2;
const C: u32 = 3;
const S: u64 = 1_000_000_000;
const WINDOW: u64 = 900 * S;

struct World {
    gone: Vec<u32>,
    draining: Vec<u32>,
    room: usize,
    refused_ns: u64,
    scan: Option<Scan>,
}

impl Default for World {
    fn default() -> Self {
        Self {
            gone: Vec::new(),
            draining: Vec::new(),
            room: usize::MAX,
            refused_ns: 0,
            scan: None,
        }
    }
}

impl World {
    fn step(&self, tables: &Tables, want: &[u32], now_s: u64) -> Advanced {
        let gone = |b: u32| self.gone.contains(&b);
        advance(
            tables,
            &Step {
                tracking: Tracking::Moved,
                want,
                standing: &|b| if gone(b) { Standing::Gone } else { Standing::Serves },
                takes_new: &|b| !gone(b) && !self.draining.contains(&b),
                now_ns: now_s * S,
                window_ns: WINDOW,
                refused_ns: self.refused_ns,
                room: self.room,
                scan: self.scan.as_ref(),
            },
        )
    }
}

fn table(owners: &[u32]) -> Tables {
    Tables {
        now: Generation::stable(owners),
        ..Tables::default()
    }
}

fn slots(advanced: &Advanced) -> Vec<(u32, u32, bool)> {
    let slots = &advanced.tables.now.slots;
    slots
        .iter()
        .map(|s| (s.current(), s.previous(), s.consult()))
        .collect()
}

#[test]
fn a_slot_goes_through_its_window_and_settles() {
    let mut world = World::default();
    let opened = world.step(&table(&[A, A]), &[A, B], 10);
    assert_eq!(slots(&opened), [(A, A, false), (B, A, true)]);
    assert_eq!(
        (opened.moved, opened.open, opened.until_ns),
        (1, 1, Some(911 * S))
    );

    let still = world.step(&opened.tables, &[A, B], 910);
    assert_eq!(still.tables, opened.tables);

    let held = world.step(&still.tables, &[A, B], 911);
    assert_eq!(slots(&held), slots(&opened));
    assert_eq!(held.tables.held_since_ns, Some(911 * S));
    let settled = world.step(&held.tables, &[A, B], 912);
    assert_eq!(slots(&settled), [(A, A, false), (B, B, true)]);
    assert_eq!((settled.open, settled.settled), (0, 1));
    assert_eq!(settled.tables.held_since_ns, None);

    // A scan that began before that, or found an entry of the slot, says nothing.
    for (begun, found, expected) in [(912, vec![], true), (913, vec![1], true), (913, vec![0], false)] {
        world.scan = Some(Scan {
            begun_ns: begun * S,
            slots: found.into_iter().collect(),
        });
        let next = world.step(&settled.tables, &[A, B], 920);
        assert_eq!(slots(&next)[1], (B, B, expected));
        assert_eq!(next.tables.now.since_ns.is_empty(), !expected);
    }
}

#[test]
fn a_refused_entry_keeps_windows_open() {
    let world = World {
        refused_ns: 500 * S,
        ..World::default()
    };
    let opened = world.step(&table(&[A]), &[B], 10);
    assert_eq!(world.step(&opened.tables, &[B], 1400).tables.held_since_ns, None);
    let held = world.step(&opened.tables, &[B], 1401);
    assert_eq!(slots(&held), [(B, A, true)]);
    assert_eq!(slots(&world.step(&held.tables, &[B], 1402)), [(B, B, true)]);
}

#[test]
fn an_entry_that_is_refused_while_a_window_ends_keeps_it_open() {
    let mut world = World::default();
    let opened = world.step(&table(&[A]), &[B], 10);
    let held = world.step(&opened.tables, &[B], 911);
    assert_eq!(held.tables.held_since_ns, Some(911 * S));
    world.refused_ns = 911 * S;
    let open = world.step(&held.tables, &[B], 912);
    assert_eq!(slots(&open), [(B, A, true)]);
    assert_eq!(open.tables.held_since_ns, None);
}

#[test]
fn a_second_move_does_not_restart_the_window() {
    let world = World::default();
    let first = world.step(&table(&[A]), &[B], 10);
    let second = world.step(&first.tables, &[C], 500);
    assert_eq!(slots(&second), [(C, A, true)]);
    let held = world.step(&second.tables, &[C], 911);
    assert_eq!(slots(&world.step(&held.tables, &[C], 912)), [(C, C, true)]);
}

#[test]
fn a_slot_that_moves_back_settles_at_once() {
    let world = World::default();
    let first = world.step(&table(&[A]), &[B], 10);
    let back = world.step(&first.tables, &[A], 20);
    assert_eq!(slots(&back), [(A, A, true)]);
    assert_eq!(back.tables.now.since_ns.get(0), Some(20 * S));
}

#[test]
fn flows_without_an_entry_pass_to_current_when_their_owner_is_gone() {
    let world = World {
        gone: vec![A],
        ..World::default()
    };
    let opened = World::default().step(&table(&[A, A]), &[B, A], 10);
    // A SYN that was refused an entry while A was going went to B: these are B's now, also when C is wanted.
    let dead = world.step(&opened.tables, &[C, C], 20);
    assert_eq!(slots(&dead), [(C, B, true), (C, C, true)]);
}

#[test]
fn when_nobody_takes_new_flows_old_ones_keep_their_owner() {
    let world = World {
        draining: vec![A],
        ..World::default()
    };
    let drained = world.step(&table(&[A]), &[0], 10);
    assert_eq!(slots(&drained), [(0, A, true)]);
    assert_eq!(slots(&world.step(&drained.tables, &[B], 20)), [(B, A, true)]);
    assert_eq!(slots(&world.step(&table(&[0]), &[B], 20)), [(B, B, false)]);
}

#[test]
fn moves_that_can_wait_wait_for_room() {
    let world = World {
        room: 1,
        draining: vec![B],
        ..World::default()
    };
    let step = world.step(&table(&[A, A, B, B]), &[C, C, C, C], 10);
    assert_eq!(
        slots(&step),
        [(C, A, true), (A, A, false), (C, B, true), (C, B, true)]
    );
    assert_eq!((step.moved, step.waiting), (3, 1));
}

#[test]
fn a_stable_slot_whose_owner_is_gone_is_looked_at_until_it_has_no_entries() {
    let world = World {
        gone: vec![A],
        ..World::default()
    };
    let dead = world.step(&table(&[A]), &[B], 10);
    assert_eq!(slots(&dead), [(B, B, true)]);
    assert_eq!(dead.tables.now.since_ns.get(0), Some(10 * S));
    let scanned = World {
        scan: Some(Scan {
            begun_ns: 11 * S,
            ..Scan::default()
        }),
        ..World::default()
    };
    assert_eq!(slots(&scanned.step(&dead.tables, &[B], 20)), [(B, B, false)]);
}

#[test]
fn a_resize_keeps_both_tables_for_a_window() {
    let world = World::default();
    let resized = world.step(&table(&[A, B]), &[B, B, A], 10);
    assert_eq!(slots(&resized), [(B, B, false), (B, B, false), (A, A, false)]);
    let before = resized.tables.before.as_ref().unwrap();
    assert_eq!((before.since_ns, before.slots.len()), (10 * S, 2));

    let held = world.step(&resized.tables, &[B, B, A], 911);
    assert_eq!((held.open, held.tables.held_since_ns), (3, Some(911 * S)));
    let over = world.step(&held.tables, &[B, B, A], 912);
    assert_eq!(slots(&over), [(B, B, true), (B, B, true), (A, A, true)]);
    assert!(over.tables.before.is_none());
}

#[test]
fn changes_during_a_resize_do_not_prolong_it() {
    let resized = World::default().step(&table(&[A, B, 0]), &[B, B, A, A], 10);
    let world = World {
        gone: vec![A],
        ..World::default()
    };
    let changed = world.step(&resized.tables, &[B, B, C, B], 500);
    assert_eq!(
        slots(&changed),
        [(B, B, false), (B, B, false), (C, C, false), (B, B, false)]
    );
    assert_eq!(changed.moved, 2);
    let before = changed.tables.before.as_ref().unwrap();
    // Nobody had the third slot: somebody must, and stay the same.
    assert_eq!(
        before.slots,
        [Slot::new(A, B, false), Slot::stable(B), Slot::new(0, C, false)]
    );
    let held = world.step(&changed.tables, &[B, B, C, B], 911);
    let over = world.step(&held.tables, &[B, B, C, B], 912);
    assert!(over.tables.before.is_none());
}

#[test]
fn without_tracking_a_table_is_replaced() {
    let tables = table(&[A, B]);
    let step = Step {
        tracking: Tracking::None,
        want: &[B, B],
        standing: &|_| Standing::Serves,
        takes_new: &|_| true,
        now_ns: S,
        window_ns: WINDOW,
        refused_ns: 0,
        room: 0,
        scan: None,
    };
    let next = advance(&tables, &step);
    assert_eq!((next.tables, next.moved, next.open), (table(&[B, B]), 1, 0));
}
