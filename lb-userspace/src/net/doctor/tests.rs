//! Each finding about interfaces and backends, from made-up facts; and all of them from the kernel.

use super::*;
use crate::net::link::{XdpAttached, XdpMode};
use crate::net::testing::Namespace;
use crate::net::{NextHop, Unresolved};

const KERNEL: (u32, u32) = (6, 18);
const NATIVE: u64 = 0b11;
const TRANSMIT: u64 = 0b100;

/// A physical card with everything as it should be.
fn card() -> Device {
    let link = Link {
        ifindex: 2,
        name: "eth0".to_owned(),
        mac: Some([2, 0, 0, 0, 0, 2]),
        mtu: 1500,
        up: true,
        carrier: true,
        kind: None,
        master: None,
        parent: None,
        vlan: None,
        xdp: None,
        num_rx_queues: 8,
        num_tx_queues: 8,
    };
    Device {
        link,
        driver: Some("ice".to_owned()),
        features: Features {
            lro: Some(false),
            gro: Some(true),
            rx_vlan_strip: Some(false),
            tx_checksum: Some(true),
        },
        channels: Some(Channels {
            rx: 0,
            tx: 0,
            combined: 4,
            max_rx: 0,
            max_tx: 0,
            max_combined: 8,
        }),
        xdp: Some(XdpFeatures::from_bits(NATIVE | TRANSMIT)),
    }
}

fn with(change: impl FnOnce(&mut Device)) -> Device {
    let mut device = card();
    change(&mut device);
    device
}

/// The findings about an interface that are not all right, among others on the same machine.
fn complaints(device: &Device, others: &[Link]) -> Vec<Finding> {
    let mut links = vec![device.link.clone()];
    links.extend_from_slice(others);
    let mut found = interface::judge(device, &links, Some(&[77]), KERNEL, 4);
    found.retain(|finding| finding.severity != Severity::Ok);
    found
}

/// Asserts that there is one complaint, and what it is about; returns its fix.
fn one(found: &[Finding], severity: Severity, topic: &str) -> String {
    let [finding] = found else { panic!("{found:#?}") };
    assert_eq!(
        (finding.severity, finding.topic),
        (severity, topic),
        "{finding:?}"
    );
    finding.fix.clone().unwrap()
}

#[test]
fn whose_a_program_is_decides_what_to_do_with_it() {
    let held = |mode| {
        with(|device| {
            device.link.xdp = Some(XdpAttached { program_id: 78, mode });
        })
    };
    let found = |device: &Device, own| {
        let mut found = interface::judge(device, std::slice::from_ref(&device.link), own, KERNEL, 4);
        found.retain(|finding| finding.topic == "XDP program");
        found
    };
    let native = held(XdpMode::Native);
    let fix = one(&found(&native, Some(&[77])), Severity::Fail, "XDP program");
    assert!(fix.ends_with("xdpdrv off"), "{fix}");
    let generic = held(XdpMode::Generic);
    let fix = one(&found(&generic, Some(&[77])), Severity::Fail, "XDP program");
    assert!(fix.ends_with("xdpgeneric off"), "{fix}");
    assert_eq!(found(&native, Some(&[78]))[0].severity, Severity::Ok);
    // Without permission nobody is told to take off what may be ours.
    assert_eq!(
        one(&found(&native, None), Severity::Warn, "XDP program"),
        "run as root"
    );
}

#[test]
fn nothing_is_said_against_a_good_card() {
    assert_eq!(complaints(&card(), &[]), []);
}

#[test]
fn each_fault_of_an_interface_is_found() {
    use Severity::{Fail, Warn};
    let down = with(|device| device.link.up = false);
    assert_eq!(one(&complaints(&down, &[]), Fail, "link"), "ip link set eth0 up");
    let unplugged = with(|device| device.link.carrier = false);
    one(&complaints(&unplugged, &[]), Fail, "link");

    let jumbo = with(|device| device.link.mtu = 70_000);
    one(&complaints(&jumbo, &[]), Warn, "MTU");

    let one_queue = |max_combined| {
        with(|device| {
            let channels = device.channels.as_mut().unwrap();
            channels.combined = 1;
            channels.max_combined = max_combined;
        })
    };
    assert_eq!(
        one(&complaints(&one_queue(8), &[]), Warn, "queues"),
        "ethtool -L eth0 combined 4"
    );
    let fix = one(&complaints(&one_queue(1), &[]), Warn, "queues");
    assert!(!fix.contains("ethtool"), "{fix}");

    let lro = with(|device| device.features.lro = Some(true));
    assert_eq!(
        one(&complaints(&lro, &[]), Warn, "LRO"),
        "ethtool -K eth0 lro off"
    );
}

#[test]
fn a_generic_program_needs_gro_off_but_takes_any_mtu() {
    let old_driver = with(|device| {
        device.xdp = Some(XdpFeatures::from_bits(0));
        device.link.mtu = 70_000;
    });
    let found = complaints(&old_driver, &[]);
    let topics: Vec<_> = found.iter().map(|finding| finding.topic).collect();
    assert_eq!(topics, ["XDP mode", "GRO"]);
    assert_eq!(found[1].fix.as_deref(), Some("ethtool -K eth0 gro off"));
}

#[test]
fn without_an_answer_of_the_kernel_the_driver_decides() {
    let unknown = |driver: Option<&str>| {
        with(|device| {
            device.xdp = None;
            device.driver = driver.map(str::to_owned);
        })
    };
    assert!(unknown(Some("ice")).native((5, 15)));
    assert!(!unknown(Some("e1000")).native((5, 15)));
    assert!(!unknown(None).native((5, 15)));
}

#[test]
fn stripped_tags_matter_where_there_are_vlans() {
    let stripping = with(|device| device.features.rx_vlan_strip = Some(true));
    assert_eq!(complaints(&stripping, &[]), []);
    let vlan = |parent| Link {
        ifindex: 9,
        name: "eth0.100".to_owned(),
        kind: Some("vlan".to_owned()),
        parent: Some(parent),
        ..card().link
    };
    assert_eq!(complaints(&stripping, &[vlan(3)]), []);
    assert_eq!(
        one(
            &complaints(&stripping, &[vlan(2)]),
            Severity::Warn,
            "VLAN stripping"
        ),
        "ethtool -K eth0 rxvlan off"
    );
}

#[test]
fn members_of_bonds_and_bridges_are_found() {
    let member = with(|device| device.link.master = Some(9));
    let above = |kind: &str| Link {
        ifindex: 9,
        name: format!("{kind}0"),
        kind: Some(kind.to_owned()),
        ..card().link
    };
    let fix = one(
        &complaints(&member, &[above("bond")]),
        Severity::Fail,
        "membership",
    );
    assert!(fix.contains("interfaces = [\"bond0\"]"), "{fix}");
    one(
        &complaints(&member, &[above("bridge")]),
        Severity::Warn,
        "membership",
    );
    assert_eq!(complaints(&member, &[above("vrf")]), []);
}

#[test]
fn a_program_of_others_is_found_and_our_own_is_not_in_the_way() {
    let holding = |program_id| {
        with(|device| {
            device.link.xdp = Some(XdpAttached {
                mode: XdpMode::Native,
                program_id,
            });
        })
    };
    assert_eq!(complaints(&holding(77), &[]), []);
    let fix = one(&complaints(&holding(78), &[]), Severity::Fail, "XDP program");
    assert!(fix.contains("bpftool prog show id 78"), "{fix}");
}

#[test]
fn a_veth_needs_its_peer() {
    let veth = |xdp| {
        with(|device| {
            device.link.kind = Some("veth".to_owned());
            device.driver = Some("veth".to_owned());
            device.xdp = xdp;
        })
    };
    let taking_part = veth(Some(XdpFeatures::from_bits(NATIVE | TRANSMIT)));
    assert_eq!(complaints(&taking_part, &[]), []);
    let alone = veth(Some(XdpFeatures::from_bits(NATIVE)));
    one(&complaints(&alone, &[]), Severity::Fail, "veth peer");
    one(&complaints(&veth(None), &[]), Severity::Warn, "veth peer");
}

const BACKEND: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 1, 11));
const BACKEND_V6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x11));

fn hop(mtu: u32, gateway: Option<IpAddr>) -> NextHop {
    NextHop {
        ifindex: 2,
        interface: "eth0".to_owned(),
        below: None,
        destination_mac: [2, 0, 0, 0, 0, 11],
        source_mac: [2, 0, 0, 0, 0, 2],
        source: "10.0.1.1".parse().unwrap(),
        gateway,
        mtu,
    }
}

fn backend(address: IpAddr, forward: Forward) -> BackendToCheck {
    BackendToCheck {
        service: "web".to_owned(),
        address,
        forward,
    }
}

fn backend_complaints(backend: &BackendToCheck, hop: Result<NextHop, Unresolved>) -> Vec<Finding> {
    let hops = NextHops::from([(backend.address, hop)]);
    let backends = std::slice::from_ref(backend);
    let mut found = backends::judge(backends, &hops, &card(), &BTreeMap::new(), KERNEL);
    found.retain(|finding| finding.severity != Severity::Ok);
    found
}

#[test]
fn a_backend_needs_a_next_hop_that_suits_its_mode() {
    use Forward::{DsrIpip, DsrL2};
    let router = Some("10.0.1.254".parse().unwrap());
    let direct = backend_complaints(&backend(BACKEND, DsrL2), Ok(hop(1500, None)));
    assert_eq!(direct, []);
    let routed = backend_complaints(&backend(BACKEND, DsrL2), Ok(hop(1500, router)));
    one(&routed, Severity::Fail, "next hop");
    let tunneled = backend_complaints(&backend(BACKEND, DsrIpip), Ok(hop(1520, router)));
    assert_eq!(tunneled, []);
    let unresolved = backend_complaints(&backend(BACKEND, DsrIpip), Err(Unresolved::NoRoute));
    one(&unresolved, Severity::Fail, "next hop");
}

#[test]
fn encapsulation_needs_room() {
    use Forward::{DsrIpip, DsrL2};
    for (address, forward, enough) in [
        (BACKEND, DsrL2, 1500),
        (BACKEND, DsrIpip, 1520),
        (BACKEND_V6, DsrIpip, 1540),
    ] {
        let backend = backend(address, forward);
        assert_eq!(backend_complaints(&backend, Ok(hop(enough, None))), []);
        let tight = backend_complaints(&backend, Ok(hop(enough - 1, None)));
        let fix = one(&tight, Severity::Warn, "MTU headroom");
        assert!(
            fix.starts_with(&format!("ip link set eth0 mtu {enough}")),
            "{fix}"
        );
    }
}

#[test]
fn a_backend_of_several_services_is_told_once() {
    let mut other = backend(BACKEND, Forward::DsrIpip);
    other.service = "mail".to_owned();
    let backends = [backend(BACKEND, Forward::DsrIpip), other];
    let hops = NextHops::from([(BACKEND, Ok(hop(1520, None)))]);
    let found = backends::judge(&backends, &hops, &card(), &BTreeMap::new(), KERNEL);
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].what.contains("(mail, web)"), "{found:#?}");
}

#[test]
fn other_interfaces_must_be_able_to_send() {
    let judge = |ours: &Device, xdp: Option<u64>, driver: &str| {
        let target = with(|device| {
            device.link.ifindex = 3;
            device.link.name = "eth1".to_owned();
            device.driver = Some(driver.to_owned());
            device.xdp = xdp.map(XdpFeatures::from_bits);
        });
        let egress = BTreeMap::from([(3, target)]);
        let found = backends::judge(&[], &NextHops::new(), ours, &egress, KERNEL);
        (found[0].severity, found[0].topic)
    };
    let (ok, warn, fail) = (Severity::Ok, Severity::Warn, Severity::Fail);
    let native = card();
    let topic = "redirect target";
    assert_eq!(judge(&native, Some(NATIVE | TRANSMIT), "ice"), (ok, topic));
    assert_eq!(judge(&native, Some(NATIVE), "ice"), (fail, topic));
    assert_eq!(judge(&native, Some(0), "802.1Q VLAN Support"), (fail, topic));
    assert_eq!(judge(&native, None, "ice"), (warn, topic));
    assert_eq!(judge(&native, None, "bridge"), (fail, topic));
    let generic = with(|device| device.xdp = Some(XdpFeatures::from_bits(0)));
    assert_eq!(judge(&generic, Some(0), "bridge"), (ok, topic));
}

#[test]
fn the_whole_machine_is_looked_at() {
    let Some((balancer, peer)) = Namespace::pair_or_skip("the_whole_machine_is_looked_at") else {
        return;
    };
    balancer.ip("address add 10.0.0.1/24 dev eth0");
    peer.ip("address add 10.0.0.2/24 dev eth0");
    balancer.run(|| async {
        let backends = ["10.0.0.2", "10.0.0.99", "192.0.2.1"]
            .map(|address| backend(address.parse().unwrap(), Forward::DsrIpip));
        let pin_dir = tempfile::tempdir().unwrap();
        let checkup = Checkup {
            interface: "eth0",
            backends: &backends,
            interfaces: &[],
            pin_dir: pin_dir.path(),
            fragments: None,
            own_programs: Some(&[]),
        };
        let found = findings(&checkup).await.unwrap();
        let judged = |topic: &str, about: &str| {
            found
                .iter()
                .find(|finding| finding.topic == topic && finding.what.contains(about))
                .unwrap_or_else(|| panic!("nothing about {topic} {about}: {found:#?}"))
                .severity
        };
        assert_eq!(judged("kernel", ""), Severity::Ok);
        assert_eq!(judged("bpffs", ""), Severity::Fail);
        assert_eq!(judged("link", "eth0"), Severity::Ok);
        assert_eq!(judged("XDP mode", "native (veth)"), Severity::Ok);
        assert_ne!(judged("veth peer", ""), Severity::Ok);
        assert_eq!(judged("next hop", "10.0.0.2"), Severity::Ok);
        assert_eq!(judged("next hop", "10.0.0.99"), Severity::Fail);
        assert_eq!(judged("next hop", "192.0.2.1"), Severity::Fail);
        assert_eq!(judged("MTU headroom", "1480"), Severity::Warn);

        let checkup = Checkup {
            interface: "eth9",
            ..checkup
        };
        let found = findings(&checkup).await.unwrap();
        let last = found.last().unwrap();
        assert_eq!(
            (last.severity, last.fix.as_deref()),
            (Severity::Fail, Some("choose one of: eth0"))
        );
    });
}

#[test]
fn answers_come_by_an_interface_with_the_program() {
    let address: IpAddr = "10.0.1.11".parse().unwrap();
    let hops = NextHops::from([(address, Ok(hop(1500, None)))]);
    let said = |forward, interfaces: &[&str]| {
        let interfaces: Vec<String> = interfaces.iter().map(|name| (*name).to_owned()).collect();
        let found = backends::answers(&[backend(address, forward)], &hops, &interfaces);
        found
            .into_iter()
            .map(|finding| finding.severity)
            .collect::<Vec<_>>()
    };
    for forward in [Forward::Nat, Forward::FullNat] {
        assert_eq!(said(forward, &["eth0"]), [Severity::Ok]);
        assert_eq!(said(forward, &["eth1"]), [Severity::Fail]);
    }
    assert_eq!(said(Forward::DsrIpip, &["eth1"]), []);
}
