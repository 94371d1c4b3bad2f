//! A table of another size: both tables count until the window ends.

use lb_common::hash;
use lb_common::layout::{Slot, TableWord};
use lb_common::rule::State::{Established, Unconfirmed};

use super::{Bench, data, syn};

/// Puts a second table in force, whose slots are `now`; those of `old`, the one before, are `before`.
fn resize(bench: &Bench, old: TableWord, now: &[Slot], before: &[Slot]) {
    let maps = &bench.world.dataplane.maps;
    // The slab has room behind the tables that the services have.
    let new = TableWord::new(old.slab(), 131_072 - now.len() as u32, now.len() as u32);
    maps.slabs.write(old, before.iter().copied());
    maps.slabs.write(new, now.iter().copied());
    maps.records.set_before(bench.index, old);
    maps.records.set_table(bench.index, new.with(TableWord::RESIZING));
}

#[test]
fn flows_find_their_owner_in_the_table_before() {
    Bench::tcp(|mut bench| {
        let (a, b, c) = (bench.a, bench.b, bench.c);
        let old_table = bench.table();
        let size = old_table.size();
        // Owners alternate, in tables of different sizes: most flows have another owner in the new one.
        let owner = |n: u32| [a, b][n as usize % 2];
        let before: Vec<_> = (0..size).map(|n| Slot::stable(owner(n))).collect();
        let now: Vec<_> = (0..251).map(|n| Slot::stable(owner(n))).collect();
        resize(&bench, old_table, &now, &before);
        let (mut differ, mut agree) = (0, 0);
        for port in 1000..1200 {
            let hash = bench.hash(port);
            let old = owner(hash::slot(hash, size));
            let new = owner(hash::slot(hash, 251));
            assert_eq!(bench.segment("an old flow", data(port, 5)), old);
            assert_eq!(bench.segment("a new one", syn(port + 1000, 5)), {
                let hash = bench.hash(port + 1000);
                owner(hash::slot(hash, 251))
            });
            if old == new {
                agree += 1;
            } else {
                differ += 1;
            }
            assert_eq!(
                bench.known(port),
                Some((old, Established)),
                "every flow that is seen"
            );
        }
        assert!(differ > 50 && agree > 50, "{differ} {agree}");

        // The old owner serves no longer: what has no entry goes to the new table's.
        let gone: Vec<_> = (0..size).map(|_| Slot::new(0, 0, false)).collect();
        resize(&bench, old_table, &now, &gone);
        for port in 3000..3100 {
            let new = owner(hash::slot(bench.hash(port), 251));
            assert_eq!(bench.segment("an old flow of the dead", data(port, 5)), new);
            assert_eq!(bench.known(port), Some((new, Established)));
        }

        // A slot that moved in the table before, or moves in the new one, has entries that count.
        let before: Vec<_> = (0..size).map(|_| Slot::new(a, a, true)).collect();
        let all_a: Vec<_> = (0..251).map(|_| Slot::stable(a)).collect();
        resize(&bench, old_table, &all_a, &before);
        let hash = bench.hash(4000);
        bench.write_entry(4000, hash, c, Established);
        assert_eq!(bench.segment("an entry of before", data(4000, 5)), c);
        let moving: Vec<_> = (0..251).map(|_| Slot::new(b, c, true)).collect();
        resize(&bench, old_table, &moving, &before);
        assert_eq!(bench.segment("a SYN", syn(4001, 5)), b);
        assert_eq!(bench.known(4001), Some((b, Unconfirmed)));
        assert_eq!(bench.segment("an old flow", data(4002, 5)), a);
    });
}

/// The agent takes the mark off before it forgets the table.
#[test]
fn a_resize_that_ended_leaves_one_table() {
    Bench::tcp(|mut bench| {
        let (a, b) = (bench.a, bench.b);
        let old = bench.table();
        let size = old.size() as usize;
        resize(&bench, old, &[Slot::stable(b); 251], &vec![Slot::stable(a); size]);
        assert_eq!(bench.segment("an old flow", data(1, 5)), a);
        let maps = &bench.world.dataplane.maps;
        maps.records.set_before(bench.index, TableWord::NONE);
        assert_eq!(bench.segment("half forgotten", data(2, 5)), b);
        let word = bench.table().place();
        bench.world.dataplane.maps.records.set_table(bench.index, word);
        assert_eq!(bench.segment("one table", data(2, 5)), b);
    });
}
