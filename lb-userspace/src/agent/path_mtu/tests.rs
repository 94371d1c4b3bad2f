use std::net::Ipv4Addr;

use super::*;
use crate::config::Config;
use crate::net::NextHop;
use crate::net::path_mtu::Spread;

const KEY: HashKey = HashKey([
    0x243F_6A88_85A3_08D3,
    0x1319_8A2E_0370_7344,
    0xA409_3822_299F_31D0,
    0x082E_FA98_EC4E_6C89,
    0x4528_21E6_38D0_1377,
    0xBE54_66CF_34E9_0C6C,
    0xC0AC_29B7_C97C_50DD,
    0x3F84_D5B5_B547_0917,
]);

const BACKEND: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 1, 11));
const OURS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 5));

fn services() -> Vec<Service> {
    let service = |name: &str, address: &str, forward: &str, more: &str| {
        format!(
            "[[service]]\nname = \"{name}\"\naddress = \"{address}\"\nport = 443\nprotocol = \"tcp\"\n\
             forward = \"{forward}\"\n{more}\n[service.check]\ntype = \"none\"\n\
             [[service.backend]]\naddress = \"{BACKEND}\"\n"
        )
    };
    let text = [
        "schema = 1\n[agent]\ninterfaces = [\"eth0\"]\n".to_owned(),
        service("ipip", "192.0.2.20", "dsr-ipip", ""),
        service("gue", "192.0.2.60", "dsr-gue", ""),
        service("l2", "192.0.2.10", "dsr-l2", ""),
        service("range", "192.0.2.70", "dsr-ipip", "").replace("port = 443", "port = \"400-500\""),
    ]
    .concat();
    Config::parse(&text)
        .unwrap_or_else(|faults| panic!("{faults}\n{text}"))
        .services
}

fn view(mtu: u32) -> HopView {
    HopView {
        hop: Ok(NextHop {
            ifindex: 3,
            interface: "eth0".into(),
            below: None,
            destination_mac: [2; 6],
            source_mac: [4; 6],
            source: OURS,
            gateway: None,
            mtu,
        }),
        last: None,
        doubted: false,
    }
}

fn flow(service: [u8; 4]) -> Quoted {
    Quoted {
        client: [203, 0, 113, 7].into(),
        service: service.into(),
        protocol: 6,
        ports: [0x12, 0x67, 0x01, 0xbb],
    }
}

fn ipip() -> Notice {
    Notice {
        source: OURS,
        backend: BACKEND,
        gue: false,
        mtu: 1400,
        spread: None,
        flow: Some(flow([192, 0, 2, 20])),
    }
}

fn gue() -> Notice {
    let flow = flow([192, 0, 2, 60]);
    let port = hash_of(&flow, &KEY) as u16 | 0xC000;
    Notice {
        gue: true,
        spread: Some(Spread::Port(port)),
        flow: Some(flow),
        ..ipip()
    }
}

#[test]
fn only_packets_that_we_send_count() {
    let services = services();
    let hop = view(1500);
    let judged = |notice: &Notice| is_ours(notice, &services, &KEY, Some(&hop));
    assert!(judged(&ipip()));
    assert!(judged(&gue()));
    assert!(judged(&Notice { flow: None, ..ipip() }), "eight bytes quoted");
    let in_range = Notice {
        flow: Some(flow([192, 0, 2, 70])),
        ..ipip()
    };
    assert!(judged(&in_range), "a port of a range");
    let other: IpAddr = [10, 0, 0, 6].into();
    let refused = [
        (
            "from elsewhere",
            Notice {
                source: other,
                ..ipip()
            },
        ),
        (
            "to somebody else",
            Notice {
                backend: other,
                ..ipip()
            },
        ),
        ("no narrower than the interface", Notice { mtu: 1500, ..ipip() }),
        (
            "of a service that does not encapsulate",
            Notice {
                flow: Some(flow([192, 0, 2, 10])),
                ..ipip()
            },
        ),
        (
            "of a service that encapsulates otherwise",
            Notice {
                flow: Some(flow([192, 0, 2, 60])),
                ..ipip()
            },
        ),
        (
            "to another port",
            Notice {
                flow: Some(Quoted {
                    ports: [0x12, 0x67, 0, 80],
                    ..flow([192, 0, 2, 20])
                }),
                ..ipip()
            },
        ),
        (
            "to a port past the range",
            Notice {
                flow: Some(Quoted {
                    ports: [0x12, 0x67, 0x01, 0xf5],
                    ..flow([192, 0, 2, 70])
                }),
                ..ipip()
            },
        ),
        (
            "over UDP",
            Notice {
                flow: Some(Quoted {
                    protocol: 17,
                    ..flow([192, 0, 2, 20])
                }),
                ..ipip()
            },
        ),
        (
            "a port that another flow bears",
            Notice {
                flow: Some(Quoted {
                    ports: [0x12, 0x68, 0x01, 0xbb],
                    ..flow([192, 0, 2, 60])
                }),
                ..gue()
            },
        ),
        (
            "a port of a flow that is not told",
            Notice { flow: None, ..gue() },
        ),
    ];
    for (shows, notice) in refused {
        assert!(!judged(&notice), "{shows}");
    }
    assert!(!is_ours(&ipip(), &services, &KEY, None), "no way is known");
}

#[test]
fn what_was_learned_is_narrowed_never_widened_and_forgotten_in_time() {
    let start = Instant::now();
    let later = |minutes: u64| start + Duration::from_secs(60 * minutes);
    let mut learned = Learned::default();
    assert!(learned.learn(BACKEND, 1400, start));
    assert!(
        !learned.learn(BACKEND, 1400, later(1)),
        "no news, but it lives on"
    );
    assert!(learned.learn(BACKEND, 1300, later(2)));
    assert!(
        !learned.learn(BACKEND, 1400, later(5)),
        "wider: no router says that"
    );
    assert!(!learned.forget(later(11)));
    assert_eq!(learned.0[&BACKEND].mtu, 1300);
    assert!(learned.forget(later(12)), "ten minutes after it was said last");
    assert!(!learned.forget(later(13)));
    assert!(learned.0.is_empty());
}

#[test]
fn only_the_way_that_is_narrow_is_narrowed() {
    let other: IpAddr = [10, 0, 1, 12].into();
    let mut hops: BTreeMap<IpAddr, HopView> = [(BACKEND, view(1500)), (other, view(1500))].into();
    let mut learned = Learned::default();
    assert!(matches!(learned.narrowed(&hops), Cow::Borrowed(_)));
    learned.learn(BACKEND, 1400, Instant::now());
    let mtus = |hops: &BTreeMap<IpAddr, HopView>| -> Vec<u32> {
        hops.values()
            .map(|view| view.hop.as_ref().expect("a next hop").mtu)
            .collect()
    };
    assert_eq!(mtus(&learned.narrowed(&hops)), [1400, 1500]);
    assert_eq!(mtus(&hops), [1500, 1500], "the kernel's stays as it is");
    hops.insert(BACKEND, view(1300));
    assert_eq!(
        mtus(&learned.narrowed(&hops)),
        [1300, 1500],
        "the interface is narrower"
    );
    hops.remove(&BACKEND);
    assert_eq!(mtus(&learned.narrowed(&hops)), [1500]);
}
