use proptest::prelude::*;

use super::*;
use crate::config::Config;

const FIRST: &str = "10.0.1.11";
const SECOND: &str = "10.0.1.12";
const THIRD: &str = "10.0.1.13";

/// A configuration of one service with these backends and weights.
fn config(forward: &str, more: &str, backends: &[(&str, u16)]) -> Config {
    let mut text = format!(
        "schema = 1\n[agent]\ninterfaces = [\"lo\"]\n[[service]]\nname = \"web\"\naddress = \"192.0.2.10\"\n\
         port = 80\nprotocol = \"tcp\"\nforward = \"{forward}\"\n{more}\n"
    );
    for (address, weight) in backends {
        text += &format!("[[service.backend]]\naddress = \"{address}\"\nweight = {weight}\n");
    }
    Config::parse(&text).unwrap_or_else(|faults| panic!("{faults}\n{text}"))
}

fn three() -> Config {
    config("dsr-l2", "", &[(FIRST, 1), (SECOND, 1), (THIRD, 1)])
}

const UP: BackendStatus = BackendStatus {
    state: OperState::Up,
    ever_up: true,
    ..BackendStatus::UNSEEN
};
const DOWN: BackendStatus = BackendStatus {
    state: OperState::Down,
    ..UP
};
const NEVER_UP: BackendStatus = BackendStatus {
    ever_up: false,
    ..DOWN
};

fn next_hop(gateway: Option<&str>) -> NextHop {
    NextHop {
        ifindex: 3,
        interface: "eth0".into(),
        below: None,
        destination_mac: [2, 0, 0, 0, 0, 1],
        source_mac: [2, 0, 0, 0, 0, 2],
        source: "10.0.1.1".parse().unwrap(),
        gateway: gateway.map(|address| address.parse().unwrap()),
        mtu: 1500,
    }
}

fn reached(gateway: Option<&str>) -> HopView {
    HopView {
        hop: Ok(next_hop(gateway)),
        last: None,
        doubted: false,
    }
}

fn lost(last: Option<NextHop>) -> HopView {
    HopView {
        hop: Err(Unresolved::NoRoute),
        last,
        doubted: false,
    }
}

/// What is wanted of the only service, when its backends are so, in the order of the file.
fn wanted(
    config: &Config,
    backends: &[(BackendStatus, HopView)],
    earlier_size: Option<u32>,
) -> DesiredService {
    let service = &config.services[0];
    let of_all = || service.backends.iter().zip(backends);
    let desired = desired(&Inputs {
        services: &config.services,
        statuses: &of_all()
            .map(|(b, (status, _))| (b.id(service.key), *status))
            .collect(),
        hops: &of_all().map(|(b, (_, view))| (b.address, view.clone())).collect(),
        earlier: &earlier_size
            .map(|size| (service.key, Earlier { size }))
            .into_iter()
            .collect(),
        backups: &BTreeSet::new(),
        vlans: config.has_vlans(),
        interfaces: None,
        now: Instant::now(),
    });
    desired.services[&service.key].clone()
}

fn with_statuses(statuses: &[BackendStatus], earlier_size: Option<u32>) -> DesiredService {
    let backends: Vec<_> = statuses.iter().map(|status| (*status, reached(None))).collect();
    wanted(&three(), &backends, earlier_size)
}

fn addresses(service: &DesiredService) -> Vec<String> {
    service.candidates.iter().map(|c| c.address.to_string()).collect()
}

#[test]
fn only_what_is_up_ready_weighted_and_reachable_takes_new_flows() {
    let drained = BackendStatus {
        admin: AdminState::Drain,
        ..UP
    };
    let maintained = BackendStatus {
        admin: AdminState::Maint,
        ..UP
    };
    let weightless = BackendStatus {
        runtime_weight: Some(0),
        ..UP
    };
    let unknown = BackendStatus {
        state: OperState::Unknown,
        ..UP
    };
    for out in [drained, maintained, weightless, unknown, DOWN] {
        let service = with_statuses(&[UP, out, UP], None);
        assert_eq!(addresses(&service), [FIRST, THIRD], "{out:?}");
        assert!(!service.all_down);
    }
    let unreachable = [
        (UP, reached(None)),
        (UP, lost(Some(next_hop(None)))),
        (UP, reached(None)),
    ];
    assert_eq!(addresses(&wanted(&three(), &unreachable, None)), [FIRST, THIRD]);
}

#[test]
fn when_all_are_down_those_that_were_up_and_are_ready_stay() {
    let drained = BackendStatus {
        admin: AdminState::Drain,
        ..DOWN
    };
    let service = with_statuses(&[DOWN, NEVER_UP, drained], Some(4093));
    assert!(service.all_down);
    assert_eq!(addresses(&service), [FIRST]);
}

#[test]
fn when_all_are_down_from_the_beginning_nobody_serves() {
    let service = with_statuses(&[DOWN, DOWN, DOWN], None);
    assert!(service.all_down);
    assert_eq!(service.candidates, []);
    let service = with_statuses(&[NEVER_UP, NEVER_UP, NEVER_UP], Some(4093));
    assert_eq!(service.candidates, []);
}

#[test]
fn a_lost_next_hop_keeps_its_last_header_for_the_last_resort() {
    let all = [
        (UP, lost(Some(next_hop(None)))),
        (UP, lost(None)),
        (DOWN, reached(None)),
    ];
    let service = wanted(&three(), &all, Some(4093));
    assert!(service.all_down);
    assert_eq!(addresses(&service), [FIRST, THIRD]);
    let records: Vec<_> = service.backends.values().map(|b| b.record).collect();
    assert_ne!(records[0], Record::UNRESOLVED);
    assert_eq!(records[1], Record::UNRESOLVED);
    assert!(service.backends.values().next().unwrap().unresolved.is_some());
}

#[test]
fn a_next_hop_that_is_lost_in_doubt_takes_nobody_out() {
    let doubted = |last| HopView {
        doubted: true,
        ..lost(last)
    };
    let all = [
        (UP, doubted(Some(next_hop(None)))),
        (UP, doubted(None)),
        (DOWN, doubted(Some(next_hop(None)))),
    ];
    let service = wanted(&three(), &all, Some(4093));
    assert!(!service.all_down);
    assert_eq!(addresses(&service), [FIRST]);
    assert!(service.backends.values().next().unwrap().unresolved.is_some());
}

#[test]
fn a_table_keeps_its_size_until_the_file_names_another() {
    let up = [(UP, reached(None)), (UP, reached(None)), (UP, reached(None))];
    assert_eq!(wanted(&three(), &up, None).size, 4093);
    assert_eq!(wanted(&three(), &up, Some(65521)).size, 65521);
    // A service without a table has no size to keep.
    assert_eq!(wanted(&three(), &up, Some(0)).size, 4093);
    let sized = config("dsr-l2", "table_size = 8191", &[(FIRST, 1)]);
    assert_eq!(wanted(&sized, &up, Some(65521)).size, 8191);
}

#[test]
fn layer_2_does_not_reach_behind_a_router() {
    let routed = [(UP, reached(Some("10.0.1.1"))), (UP, reached(None))];
    let backends = [(FIRST, 1), (SECOND, 1)];
    let service = wanted(&config("dsr-l2", "", &backends), &routed, Some(4093));
    assert_eq!(addresses(&service), [SECOND]);
    let behind = service.backends.values().next().unwrap();
    assert_eq!(behind.record, Record::UNRESOLVED);
    assert!(behind.unresolved.as_ref().unwrap().contains("10.0.1.1"));
    let service = wanted(&config("dsr-ipip", "", &backends), &routed, Some(4093));
    assert_eq!(addresses(&service), [FIRST, SECOND]);
    assert_eq!(service.backends.values().next().unwrap().packet_mtu, Some(1480));
}

#[test]
fn a_weight_of_the_runtime_wins_over_the_file() {
    let config = config("dsr-l2", "", &[(FIRST, 10), (SECOND, 10), (THIRD, 0)]);
    let weighted = |runtime_weight| BackendStatus { runtime_weight, ..UP };
    let backends = [
        (weighted(Some(3)), reached(None)),
        (weighted(None), reached(None)),
        (weighted(Some(5)), reached(None)),
    ];
    let service = wanted(&config, &backends, None);
    let weights: Vec<_> = service.candidates.iter().map(|c| c.weight).collect();
    assert_eq!(weights, [3, 10, 5]);
}

fn any_status() -> impl Strategy<Value = BackendStatus> {
    let state = prop_oneof![
        Just(OperState::Unknown),
        Just(OperState::Down),
        Just(OperState::Up)
    ];
    let admin = prop_oneof![
        Just(AdminState::Ready),
        Just(AdminState::Drain),
        Just(AdminState::Maint)
    ];
    (state, admin, prop::option::of(0..3_u16), any::<bool>()).prop_map(
        |(state, admin, runtime_weight, ever_up)| BackendStatus {
            state,
            admin,
            runtime_weight,
            // The agent says so with the first UP.
            ever_up: ever_up || state == OperState::Up,
            ..BackendStatus::default()
        },
    )
}

fn any_view() -> impl Strategy<Value = HopView> {
    let gateway = prop_oneof![3 => Just(None), 1 => Just(Some("10.0.1.1"))];
    let last = prop::option::of(gateway.clone().prop_map(next_hop));
    prop_oneof![3 => gateway.prop_map(reached), 1 => last.prop_map(lost)]
}

proptest! {
    #[test]
    fn nobody_serves_who_must_not(
        backends in proptest::collection::vec((any_status(), any_view(), 0..3_u16), 3),
        forward in prop_oneof![Just("dsr-l2"), Just("dsr-ipip")],
        earlier_size in prop::option::of(prop_oneof![Just(0), Just(4093)]),
    ) {
        let weights: Vec<_> = [FIRST, SECOND, THIRD].into_iter().zip(backends.iter().map(|b| b.2)).collect();
        let states: Vec<_> = backends.iter().map(|(status, view, _)| (*status, view.clone())).collect();
        let service = wanted(&config(forward, "", &weights), &states, earlier_size);
        for candidate in &service.candidates {
            let (_, backend) = service
                .backends
                .iter()
                .find(|(id, _)| (id.address, id.port) == (candidate.address, candidate.port))
                .expect("a backend of the service");
            prop_assert_eq!(backend.status.admin, AdminState::Ready);
            prop_assert!(backend.status.ever_up);
            prop_assert!(backend.effective_weight() > 0);
            prop_assert_eq!(candidate.weight, u32::from(backend.effective_weight()));
            prop_assert_ne!(backend.record, Record::UNRESOLVED);
            // Who is DOWN serves only where nobody else can.
            prop_assert!(service.all_down || backend.eligible());
        }
        let eligible = service.backends.values().filter(|backend| backend.eligible()).count();
        prop_assert_eq!(service.all_down, eligible == 0);
        if eligible > 0 {
            prop_assert_eq!(service.candidates.len(), eligible);
        }
        let owners = owners(&service, service.size);
        prop_assert_eq!(owners.iter().all(Option::is_some), !service.candidates.is_empty());
    }
}

#[test]
fn a_backend_that_cannot_be_encapsulated_to_takes_no_flows() {
    let config = config("dsr-ipip", "", &[(FIRST, 1)]);
    let mut hop = next_hop(None);
    hop.source = "2001:db8::1".parse().unwrap();
    let view = HopView {
        hop: Ok(hop),
        last: None,
        doubted: false,
    };
    let service = wanted(&config, &[(UP, view)], None);
    assert!(service.candidates.is_empty());
    let backend = service.backends.values().next().unwrap();
    let why = backend.unresolved.as_deref().unwrap();
    assert!(why.contains("no address of its family"), "{why}");
}
