use lb_common::layout;

use super::*;
use crate::datapath::record;
use crate::datapath::record::Hop;
use crate::model::{Protocol, ServiceKey};

const HOP: Hop = Hop {
    ifindex: 3,
    destination_mac: [2, 0, 0, 0, 0, 1],
    source_mac: [2, 0, 0, 0, 0, 2],
    mtu: 1500,
};

fn counters(packets: u64) -> Counters {
    Counters {
        packets,
        bytes: packets * 100,
        new_flows: packets / 10,
        redirected: packets / 4,
    }
}

fn member(address: &str, record: Backend) -> Member {
    let place: SocketAddr = address.parse().unwrap();
    let (address, family) = identity::words(place.ip());
    Member {
        place,
        meta: BackendMeta {
            address,
            service: 0,
            port: place.port().to_be(),
            weight: 10,
            family,
            in_use: 1,
            state: 2,
            admin: 0,
            flags: 0,
            check_code: CheckCode::L7ok as u8,
            runtime_weight: 0,
            latency_us: 1234,
        },
        record,
        counted: counters(40),
        slots: 1000,
    }
}

fn service(backends: Vec<Member>) -> Service {
    let key = ServiceKey {
        address: "192.0.2.10".parse().unwrap(),
        port: 80,
        protocol: Protocol::Tcp,
    };
    let mut name = [0; layout::NAME_LEN];
    name[..3].copy_from_slice(b"web");
    Service {
        meta: ServiceMeta {
            key: identity::service_key(&key),
            in_use: 1,
            forward: 2,
            tracking: 1,
            reserved: 0,
            retired: counters(8),
            generation: 5,
            name,
        },
        key,
        last_port: None,
        table_size: 4000,
        refused: RefusedStats::default(),
        quic: None,
        backends,
    }
}

#[test]
fn states_weights_and_checks_are_read_as_they_were_written() {
    let ipip = record::encapsulating(
        &HOP,
        Forward::DsrIpip,
        "10.0.0.1/32".parse().unwrap(),
        "10.0.0.2".parse().unwrap(),
    );
    let mut backend = member("10.0.0.2:80", ipip);
    backend.meta.flags = 1;
    backend.meta.runtime_weight = 3;
    let status = backend_status(&backend, 4000);
    assert_eq!((status.weight, status.effective_weight), (10, 3));
    assert_eq!(
        (status.state, status.admin, status.serving),
        (OperState::Up, AdminState::Ready, true)
    );
    assert_eq!(
        (status.check.code, status.check.latency_ms),
        (CheckCode::L7ok, Some(1.234))
    );
    assert_eq!(status.packet_mtu, Some(1480));
    assert!((status.share_percent - 25.0).abs() < 1e-9);
    assert_eq!(status.unresolved, None);
}

#[test]
fn what_takes_no_new_flows_does_not_serve() {
    let resolved = record::l2(&HOP);
    let of = |change: fn(&mut BackendMeta), record| {
        let mut backend = member("10.0.0.2:80", record);
        change(&mut backend.meta);
        backend_status(&backend, 4000).serving
    };
    assert!(of(|_| {}, resolved));
    assert!(!of(|meta| meta.state = 1, resolved));
    assert!(!of(|meta| meta.state = 0, resolved));
    assert!(!of(|meta| meta.admin = 1, resolved));
    assert!(!of(|meta| meta.admin = 2, resolved));
    assert!(!of(|meta| meta.weight = 0, resolved));
    assert!(!of(|_| {}, Backend::UNRESOLVED));
}

#[test]
fn an_unresolved_backend_says_so_and_knows_no_mtu() {
    let status = backend_status(&member("[2001:db8::2]:80", Backend::UNRESOLVED), 0);
    assert!(status.unresolved.is_some());
    assert_eq!(status.packet_mtu, None);
    assert!(status.share_percent.abs() < 1e-9);
}

#[test]
fn a_service_counts_what_its_removed_backends_sent() {
    let l2 = record::l2(&HOP);
    let service = service(vec![member("10.0.0.2:80", l2), member("10.0.0.3:80", l2)]);
    let status = service_status(&service);
    assert_eq!((status.packets, status.bytes, status.new_flows), (88, 8800, 8));
    assert_eq!((status.name.as_str(), status.forward), ("web", Forward::DsrIpip));
    assert_eq!(
        (status.generation, status.table_size, status.all_down),
        (5, 4000, false)
    );
    let stats = service_stats(&service);
    assert_eq!((stats.packets, stats.backends[1].packets), (88, 40));
}

#[test]
fn forwarded_packets_are_told_apart_by_the_way_they_left() {
    let counts = vec![
        (Reason::Transmitted, 0),
        (Reason::Redirected, 0),
        (Reason::NoBackend, 7),
    ];
    let reasons = reason_stats(counts, &counters(40));
    let said: Vec<_> = reasons
        .iter()
        .map(|r| (r.reason.as_str(), r.verdict.as_str(), r.packets))
        .collect();
    assert_eq!(
        said,
        [
            ("transmitted", "tx", 30),
            ("redirected", "redirect", 10),
            ("no_backend", "drop", 7)
        ]
    );
}

#[test]
fn the_last_beat_is_when_the_agent_was_last_alive() {
    let mut meta = AgentMeta {
        pid: 7,
        started_s: 1_700_000_000,
        alive_s: 1_700_000_060,
        ..AgentMeta::default()
    };
    meta.version[..5].copy_from_slice(b"0.1.0");
    let agent = agent_status(&meta);
    assert!(!agent.running);
    assert_eq!(
        (agent.since.as_str(), agent.version.as_str()),
        ("2023-11-14T22:14:20Z", "0.1.0")
    );
    meta.alive_s = u64::MAX;
    assert!(agent_status(&meta).since.starts_with("2106-"));
}

#[test]
fn a_lock_is_found_by_device_and_inode() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let metadata = file.as_file().metadata().unwrap();
    let locks = || fs::read_to_string("/proc/locks").unwrap();
    assert!(!is_locked(&locks(), &metadata));
    datapath::sys::try_lock(file.as_file()).unwrap();
    assert!(is_locked(&locks(), &metadata));
    let device = metadata.dev();
    let place = format!(
        "{:02x}:{:02x}:{}",
        libc::major(device),
        libc::minor(device),
        metadata.ino()
    );
    let line = |kind: &str, place: &str| format!("1: {kind}  ADVISORY  WRITE 4711 {place} 0 EOF\n");
    assert!(is_locked(&line("FLOCK", &place), &metadata));
    assert!(!is_locked(&line("POSIX", &place), &metadata));
    assert!(!is_locked(&line("FLOCK", "00:2a:5"), &metadata));
}

#[tokio::test]
async fn without_pins_there_is_nothing_to_say() {
    let folder = tempfile::tempdir().unwrap();
    let error = status(&folder.path().join("none")).await.unwrap_err();
    assert!(matches!(error, Error::NothingPinned { .. }), "{error:?}");
    assert!(matches!(
        stats(folder.path()).await,
        Err(Error::NothingPinned { .. })
    ));
}
