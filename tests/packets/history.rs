//! The maps over the time: random histories of what is wanted, agents that die in between, and what a death at
//! the wrong moment, or a damaged pin, leaves behind.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use lb_common::layout::{SLAB_SLOTS, TableWord};
use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, TestRunner};
use xlb::config::Config;
use xlb::control::{self, BackendStatus, Desired, Inputs};
use xlb::datapath::apply::{Change, ChangeKind, Dataplane, Foreseen};
use xlb::datapath::clock::monotonic_ns;
use xlb::datapath::identity;
use xlb::datapath::maps::Maps;
use xlb::datapath::pins::PinDir;
use xlb::datapath::simulate::{Options, hops};
use xlb::datapath::slabs::QUARANTINE_NS;
use xlb::datapath::sweep;
use xlb::maglev;
use xlb::model::{AdminState, BackendId, OperState, ServiceKey};

use crate::pins::{PIN_DIR, SIZES, apart, load};
use crate::world::config_of;

const BACKENDS: [(&str, u16); 4] = [
    ("10.0.1.11", 1),
    ("10.0.1.12", 3),
    ("10.0.1.13", 1),
    ("10.0.1.14", 2),
];
const SERVICES: [(&str, &str); 3] = [
    ("one", "192.0.2.10"),
    ("same-address", "192.0.2.10"),
    ("other", "192.0.2.20"),
];

/// What a backend is like at one time; `None`: not configured.
type Wish = Option<BackendStatus>;

/// A state of the world: for each service, its backends. A service without backends is not configured.
type World = [[Wish; BACKENDS.len()]; SERVICES.len()];

fn any_wish() -> impl Strategy<Value = Wish> {
    let state =
        prop_oneof![1 => Just(OperState::Unknown), 2 => Just(OperState::Down), 4 => Just(OperState::Up)];
    let admin =
        prop_oneof![4 => Just(AdminState::Ready), 1 => Just(AdminState::Drain), 1 => Just(AdminState::Maint)];
    let status = (state, admin, any::<bool>()).prop_map(|(state, admin, ever_up)| BackendStatus {
        state,
        admin,
        ever_up: ever_up || state == OperState::Up,
        ..BackendStatus::UNSEEN
    });
    prop::option::weighted(0.7, status)
}

fn any_world() -> impl Strategy<Value = World> {
    let backends = || prop::array::uniform4(any_wish());
    let empty = || Just([None; BACKENDS.len()]);
    prop::array::uniform3(prop_oneof![4 => backends(), 1 => empty()])
}

fn configured(world: &World) -> Option<Config> {
    let backends: Vec<Vec<(&str, u16)>> = world
        .iter()
        .map(|wishes| {
            let there = BACKENDS.iter().zip(wishes).filter(|(_, wish)| wish.is_some());
            there.map(|(backend, _)| *backend).collect()
        })
        .collect();
    let lines: Vec<_> = SERVICES
        .iter()
        .zip([80, 443, 80])
        .zip(&backends)
        .filter(|(_, backends)| !backends.is_empty())
        .map(|(((name, address), port), backends)| {
            (*name, *address, port, "tcp", "dsr-l2", backends.as_slice())
        })
        .collect();
    (!lines.is_empty()).then(|| config_of(&lines, false))
}

fn desired(world: &World, dataplane: &Dataplane) -> Desired {
    let Some(config) = configured(world) else {
        return Desired::default();
    };
    let mut statuses = BTreeMap::new();
    for service in &config.services {
        let at = SERVICES
            .iter()
            .position(|(name, _)| *name == service.name)
            .expect("one of them");
        for backend in &service.backends {
            let which = BACKENDS
                .iter()
                .position(|(address, _)| backend.address.to_string() == *address)
                .expect("one of them");
            statuses.insert(backend.id(service.key), world[at][which].expect("configured"));
        }
    }
    control::desired(&Inputs {
        services: &config.services,
        statuses: &statuses,
        hops: &hops(&config, &Options::default()),
        earlier: &dataplane.earlier(),
        backups: &BTreeSet::new(),
        vlans: config.has_vlans(),
        interfaces: None,
        now: Instant::now(),
    })
}

/// Every backend of every service is UP.
const ALL_UP: World = [[Some(BackendStatus {
    state: OperState::Up,
    ever_up: true,
    ..BackendStatus::UNSEEN
}); BACKENDS.len()]; SERVICES.len()];

/// Nothing is configured.
const NOTHING: World = [[None; BACKENDS.len()]; SERVICES.len()];

type Picture = (
    BTreeMap<ServiceKey, (u32, Vec<u32>)>,
    BTreeMap<BackendId, Option<u32>>,
);

fn picture(dataplane: &Dataplane) -> Picture {
    let services = dataplane.earlier();
    let tables = services
        .iter()
        .map(|(key, earlier)| (*key, (earlier.size, dataplane.owners(key))));
    let remembered = dataplane.remembered();
    let indices = remembered.keys().map(|id| (*id, dataplane.index_of(id)));
    (tables.collect(), indices.collect())
}

fn check(dataplane: &Dataplane, desired: &Desired) -> Result<(), TestCaseError> {
    let (tables, indices) = picture(dataplane);
    prop_assert!(tables.keys().eq(desired.services.keys()));
    let wanted = desired
        .services
        .values()
        .flat_map(|service| service.backends.keys());
    prop_assert!(indices.keys().eq(wanted.collect::<BTreeSet<_>>()));
    let unique: BTreeSet<_> = indices.values().flatten().collect();
    prop_assert_eq!(unique.len(), indices.len());
    for (key, service) in &desired.services {
        let allowed: BTreeSet<_> = service
            .candidates
            .iter()
            .map(|c| {
                let id = BackendId {
                    service: *key,
                    address: c.address,
                    port: c.port,
                };
                indices[&id].expect("an index")
            })
            .collect();
        let owners: BTreeSet<_> = tables[key].1.iter().copied().collect();
        let (_, slots) = &tables[key];
        if service.candidates.is_empty() {
            // Nobody takes new flows; old ones may stay where they are.
            prop_assert!(slots.is_empty() || owners == BTreeSet::from([0]));
        } else {
            prop_assert_eq!(owners, allowed);
            prop_assert_eq!(slots.len(), service.size as usize);
        }
    }
    let mut keys = BTreeSet::new();
    for key in desired.services.keys() {
        keys.insert(identity::service_key(key));
        keys.insert(identity::address_key(key.address));
    }
    let found = dataplane.maps.services.keys().map(BTreeSet::from_iter);
    prop_assert_eq!(found.expect("the keys"), keys);
    Ok(())
}

fn pins() -> PinDir {
    PinDir::create(Path::new(PIN_DIR)).expect("a folder")
}

fn fresh() -> Dataplane {
    let pins = pins();
    let maps = Maps::of(&mut load(&pins), SIZES, Some(&pins)).expect("maps");
    Dataplane::adopt(maps, monotonic_ns()).expect("empty maps")
}

fn next_agent(now_ns: u64) -> Dataplane {
    Dataplane::adopt(Maps::open(&pins()).expect("pinned maps"), now_ns).expect("adopting")
}

/// A full scan of the flow table.
fn sweep(dataplane: &mut Dataplane, now_ns: u64) {
    let mut flows = dataplane.maps.flows.try_clone().expect("the flow table");
    let view = Arc::new(dataplane.view(&|| now_ns));
    let report = sweep::sweep(&mut flows, &|| Arc::clone(&view), &|| now_ns, &|| true);
    let report = report.expect("a scan").expect("all of it");
    dataplane.take_scan(Arc::new(report)).expect("its report");
}

/// What happens: another state of the world, so long after the last, then perhaps a sweep, and the agent's death.
type Happening = (World, u64, bool, bool);

fn any_happening() -> impl Strategy<Value = Happening> {
    // A moment, or longer than a window.
    let millis = prop_oneof![4 => 0..1500_u64, 1 => 0..2_000_000_u64];
    let (sweeps, dies) = (prop::bool::weighted(0.5), prop::bool::weighted(0.2));
    (any_world(), millis, sweeps, dies)
}

/// Who had an index that nobody has, and since when, in nanoseconds.
type Removed = BTreeMap<u32, (BackendId, u64)>;

/// What was said beforehand is what was done. `before`: the tables of before.
fn as_foreseen(
    foreseen: &Foreseen,
    changes: &[Change],
    before: &BTreeMap<ServiceKey, (u32, Vec<u32>)>,
    dataplane: &Dataplane,
) -> Result<(), TestCaseError> {
    prop_assert_eq!(&foreseen.changes, changes);
    let (tables, _) = picture(dataplane);
    let sizes: BTreeMap<ServiceKey, u32> = tables.iter().map(|(key, (size, _))| (*key, *size)).collect();
    prop_assert_eq!(&foreseen.sizes, &sizes);
    for (key, (_, owners)) in &tables {
        let index = dataplane.index_of_service(key).expect("it is there");
        let known = before.get(key).map(|(_, before)| before);
        if let (Some(moving), Some(before)) = (foreseen.moving.get(&index), known) {
            let moved: Vec<bool> = before
                .iter()
                .zip(owners)
                .map(|(before, after)| before != after)
                .collect();
            prop_assert_eq!(moving, &moved);
        }
    }
    Ok(())
}

#[test]
fn the_maps_follow_every_history() {
    apart(|| {
        let histories = proptest::collection::vec(any_happening(), 1..12);
        let mut runner = TestRunner::new(Cases {
            cases: 24,
            failure_persistence: None,
            ..Cases::default()
        });
        let result = runner.run(&histories, |history| {
            let mut dataplane = fresh();
            let mut now_ns = monotonic_ns();
            let mut scanned_ns = 0;
            let mut removed = Removed::new();
            for (world, millis, sweeps, dies) in history {
                now_ns += millis * 1_000_000;
                let clock = || now_ns;
                let (_, before) = picture(&dataplane);
                let wanted = desired(&world, &dataplane);
                let foreseen = dataplane.foresee(&wanted, &clock).expect("a plan");
                let (tables, _) = picture(&dataplane);
                let changes = dataplane.apply(&wanted, &clock).expect("writing");
                check(&dataplane, &wanted)?;
                as_foreseen(&foreseen, &changes, &tables, &dataplane)?;
                let (_, after) = picture(&dataplane);
                for (id, index) in &before {
                    match after.get(id) {
                        Some(same) => prop_assert_eq!(same, index, "an index stays with its backend"),
                        None => drop(removed.insert(index.expect("an index"), (*id, now_ns))),
                    }
                }
                for (id, index) in after.iter().filter(|(id, _)| !before.contains_key(id)) {
                    if let Some((was, since_ns)) = removed.remove(&index.expect("an index")) {
                        let scanned = scanned_ns >= since_ns + QUARANTINE_NS;
                        prop_assert!(was == *id || scanned, "{} has an index too early", id);
                    }
                }
                prop_assert_eq!(dataplane.apply(&wanted, &clock).expect("writing"), []);
                if dies {
                    let before = picture(&dataplane);
                    dataplane = next_agent(now_ns);
                    prop_assert_eq!(picture(&dataplane), before);
                    prop_assert_eq!(dataplane.apply(&wanted, &clock).expect("writing"), []);
                    // What was removed before rests from this moment on.
                    removed.values_mut().for_each(|(_, since_ns)| *since_ns = now_ns);
                }
                if sweeps {
                    sweep(&mut dataplane, now_ns);
                    scanned_ns = now_ns;
                }
            }
            drop(dataplane);
            fs::remove_dir_all(PIN_DIR).expect("rm -r");
            Ok(())
        });
        result.unwrap_or_else(|failure| panic!("{failure}"));
    });
}

#[test]
fn an_agent_that_died_before_a_key_or_after_it_is_cleared_up_after() {
    apart(|| {
        let mut dataplane = fresh();
        let wanted = desired(&ALL_UP, &dataplane);
        dataplane.apply(&wanted, &monotonic_ns).expect("writing");
        // Metadata without keys: where a service is added the keys come last, where it is removed they go first.
        let all: Vec<_> = dataplane.maps.services.keys().expect("the keys");
        for key in all {
            dataplane.maps.services.remove(&key).expect("removing");
        }
        drop(dataplane);
        let mut dataplane = next_agent(monotonic_ns());
        let nothing = desired(&NOTHING, &dataplane);
        let changes = dataplane
            .apply(&nothing, &monotonic_ns)
            .expect("removing the rest");
        assert!(changes.iter().all(|change| change.kind == ChangeKind::Removed));
        assert_eq!(changes.len(), SERVICES.len());
        check(&dataplane, &nothing).expect("nothing left");
        // And where the service is wanted, its keys come back.
        let wanted = desired(&ALL_UP, &dataplane);
        dataplane.apply(&wanted, &monotonic_ns).expect("writing");
        check(&dataplane, &wanted).expect("all of it");
    });
}

#[test]
fn a_slab_that_was_not_pinned_is_made_anew() {
    apart(|| {
        let mut dataplane = fresh();
        let wanted = desired(&ALL_UP, &dataplane);
        dataplane.apply(&wanted, &monotonic_ns).expect("writing");
        drop(dataplane);
        fs::remove_file(pins().slab(0)).expect("a slab");
        let mut dataplane = next_agent(monotonic_ns());
        assert!(dataplane.earlier().values().all(|earlier| earlier.size == 0));
        let wanted = desired(&ALL_UP, &dataplane);
        dataplane.apply(&wanted, &monotonic_ns).expect("writing");
        check(&dataplane, &wanted).expect("all of it");
        assert!(pins().slab(0).exists());
    });
}

#[test]
fn a_damaged_table_word_is_built_anew() {
    apart(|| {
        let mut dataplane = fresh();
        let wanted = desired(&ALL_UP, &dataplane);
        dataplane.apply(&wanted, &monotonic_ns).expect("writing");
        let beyond_the_slab = TableWord(u64::from(SLAB_SLOTS - 1) << 17 | 4093);
        for (index, word) in [u64::MAX, beyond_the_slab.0].into_iter().enumerate() {
            dataplane.maps.records.set_table(index as u32, TableWord(word));
        }
        drop(dataplane);
        let mut dataplane = next_agent(monotonic_ns());
        let wanted = desired(&ALL_UP, &dataplane);
        dataplane.apply(&wanted, &monotonic_ns).expect("writing");
        check(&dataplane, &wanted).expect("all of it");
        assert!(
            dataplane
                .earlier()
                .values()
                .all(|earlier| earlier.size == maglev::SIZES[4])
        );
    });
}

#[test]
fn a_backend_of_a_service_that_is_gone_is_forgotten() {
    apart(|| {
        let mut dataplane = fresh();
        let wanted = desired(&ALL_UP, &dataplane);
        dataplane.apply(&wanted, &monotonic_ns).expect("writing");
        for index in 0..SERVICES.len() as u32 {
            let mut meta = dataplane.maps.service_meta.get(&index, 0).expect("metadata");
            meta.in_use = 0;
            dataplane.maps.service_meta.set(index, meta, 0).expect("writing");
        }
        drop(dataplane);
        // The next services get the indices of those, but not their backends.
        let mut dataplane = next_agent(monotonic_ns());
        let mut one = NOTHING;
        one[2][0] = ALL_UP[2][0];
        let wanted = desired(&one, &dataplane);
        dataplane.apply(&wanted, &monotonic_ns).expect("writing");
        drop(dataplane);
        let dataplane = next_agent(monotonic_ns());
        assert_eq!(dataplane.remembered().len(), 1);
        check(&dataplane, &wanted).expect("one service with one backend");
    });
}
