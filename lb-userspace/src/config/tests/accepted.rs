use std::path::PathBuf;
use std::time::Duration;

use lb_common::layout::{SERVICE_TAG_TYPE, TAG_TYPE, Tags};

use crate::model::{Forward, Protocol, Scheduler, Tracking};

use super::super::{
    AgentCheck, Announce, Backend, Check, CheckKind, Config, HashKey, Header, HttpCheck, HttpMethod, Machine,
    OnAllDown, OnDown, OnStop, PoolRules, Probe, QueryType, Require, Role, Service, StatusRange, StatusSet,
    Via, XdpMode, example,
};
use super::{BACKEND, HEAD, WEB, parsed};

pub(super) fn checks(config: &Config) -> Vec<&Check> {
    let backends = config.services.iter().flat_map(|service| &service.backends);
    backends.map(|backend| &backend.check).collect()
}

#[test]
fn an_agent_may_start_empty() {
    let Config { agent, services } = parsed(HEAD);
    assert_eq!(services, []);
    assert_eq!(agent.interfaces, ["eth0"]);
    assert_eq!(agent.xdp_mode, XdpMode::Auto);
    assert_eq!(agent.announce, Announce::None);
    assert_eq!(agent.on_stop, OnStop::Keep);
    assert_eq!(agent.api_socket, PathBuf::from("/run/xlb/xlb.sock"));
    assert_eq!(agent.state_dir, PathBuf::from("/var/lib/xlb"));
    assert_eq!(agent.pin_dir, PathBuf::from("/sys/fs/bpf/xlb"));
    assert_eq!(agent.hash_key, None);
    assert_eq!((agent.max_services, agent.max_backends), (1024, 4096));
}

#[test]
fn the_least_service_has_the_defaults() {
    let config = parsed(&format!("{HEAD}{WEB}{BACKEND}"));
    let service = &config.services[0];
    assert_eq!(service.key.to_string(), "192.0.2.10:80/tcp");
    assert_eq!(service.forward, Forward::DsrL2);
    assert_eq!(service.scheduler, Scheduler::Maglev);
    assert_eq!(service.table_size, None);
    let backend = &service.backends[0];
    assert_eq!((backend.port, backend.weight), (80, 1));
    assert_eq!(
        backend.id(service.key).to_string(),
        "10.0.1.11:80 of 192.0.2.10:80/tcp"
    );
    let expected = Check {
        via: Via::Forward,
        ..Check::built_in(Protocol::Tcp)
    };
    assert_eq!(backend.check, expected);
    assert_eq!(backend.check.kind, CheckKind::Tcp);
}

#[test]
fn full_nat_translates_ports_and_remembers_every_flow() {
    let text = format!(
        "{HEAD}snat_addresses = [\"10.0.1.5\"]\nsnat_ports = \"2000-2999\"\n{}{BACKEND}port = 8080\n",
        WEB.replace("dsr-l2", "full-nat")
    );
    let Config { agent, services } = parsed(&text);
    assert_eq!(
        (agent.snat.first_port, agent.snat.last_port, agent.snat.ports()),
        (2000, 2999, 1000)
    );
    let [service] = services.as_slice() else {
        panic!("one service: {services:?}");
    };
    assert_eq!(
        (service.forward, service.rules.tracking),
        (Forward::FullNat, Tracking::Full)
    );
    assert_eq!(service.backends[0].port, 8080);
}

#[test]
fn the_example_says_what_it_seems_to_say() {
    let config = parsed(&example());
    let [web, dns, api, shop, shop_tls] = config.services.as_slice() else {
        panic!("five services: {config:?}");
    };
    let http = HttpCheck {
        headers: vec![Header {
            name: "accept".to_owned(),
            value: "text/*".to_owned(),
        }],
        method: HttpMethod::Get,
        path: "/healthz".to_owned(),
        host: Some("www.example.com".to_owned()),
        expect_status: StatusSet(vec![
            StatusRange {
                first: 200,
                last: 399,
            },
            StatusRange {
                first: 404,
                last: 404,
            },
        ]),
        ..HttpCheck::default()
    };
    assert_eq!(web.backends[0].check.kind, CheckKind::Http(http.clone()));
    assert_eq!(web.backends[1].check.kind, CheckKind::Http(http));
    assert_eq!(web.backends[1].check.port, Some(8080));
    assert_eq!(dns.key.protocol, Protocol::Udp);

    let through = Probe {
        via: Via::Forward,
        ..also(CheckKind::Tcp)
    };
    assert_eq!(web.backends[1].check.also, [through]);
    let CheckKind::Dns(question) = &dns.backends[0].check.kind else {
        panic!("dns: {dns:?}");
    };
    assert_eq!(
        (question.query.as_str(), question.query_type),
        ("www.example.com", QueryType::Aaaa)
    );
    let CheckKind::Udp(udp) = &dns.backends[1].check.kind else {
        panic!("udp: {dns:?}");
    };
    assert_eq!((udp.send.len(), udp.expect.as_deref()), (12, Some(&[0, 0][..])));
    let kinds: Vec<_> = api.backends.iter().map(|backend| &backend.check.kind).collect();
    let [
        CheckKind::Https(_, tls),
        CheckKind::Grpc(grpc),
        CheckKind::Exec(exec),
    ] = kinds.as_slice()
    else {
        panic!("{kinds:?}");
    };
    assert_eq!(tls.sni.as_deref(), Some("api.example.com"));
    assert_eq!((grpc.service.as_str(), grpc.over_tls), ("example.v1.Api", false));
    assert_eq!(exec.command.len(), 2);
    assert_eq!(shop.pool.as_deref(), Some("front"));
    assert_eq!((shop.backends[0].port, shop_tls.backends[0].port), (80, 443));
    assert_eq!(shop.backends[0].check, shop_tls.backends[0].check);
    assert_eq!(config.warnings(), Vec::<String>::new());
}

fn also(kind: CheckKind) -> Probe {
    Probe {
        kind,
        port: None,
        address: None,
        source: None,
        via: Via::Direct,
    }
}

#[test]
fn checks_beside_the_first_are_those_of_the_strongest_layer() {
    let config = parsed(&format!(
        "{HEAD}[defaults.check]\nrequire = \"any\"\n[[defaults.check.also]]\ntype = \"icmp\"\n\
         {WEB}{BACKEND}\
         [[service.backend]]\naddress = \"10.0.1.12\"\n[service.backend.check]\nrequire = \"all\"\n\
         [[service.backend.check.also]]\ntype = \"tcp\"\nport = 81\n\
         [[service.backend]]\naddress = \"10.0.1.13\"\n[service.backend.check]\nalso = []\n"
    ));
    let [first, second, third] = checks(&config)[..] else {
        panic!("three");
    };
    assert_eq!((&first.kind, first.require), (&CheckKind::Tcp, Require::Any));
    assert_eq!(first.also, [also(CheckKind::Icmp)]);
    let on_81 = Probe {
        port: Some(81),
        ..also(CheckKind::Tcp)
    };
    assert_eq!((second.require, &second.also), (Require::All, &vec![on_81]));
    assert_eq!((third.require, &third.also), (Require::Any, &Vec::new()));
}

#[test]
fn layers_override_key_by_key() {
    let config = parsed(&format!(
        "{HEAD}[defaults.check]\ntype = \"http\"\npath = \"/d\"\nhost = \"d\"\ninterval = \"5s\"\nrise = 5\n\
         {WEB}[service.check]\npath = \"/s\"\nrise = 6\n{BACKEND}[service.backend.check]\nhost = \
                     \"b\"\nfall = 9\n"
    ));
    let check = checks(&config)[0];
    let expected = Check {
        kind: CheckKind::Http(HttpCheck {
            path: "/s".to_owned(),
            host: Some("b".to_owned()),
            ..HttpCheck::default()
        }),
        interval: Duration::from_secs(5),
        rise: 6,
        fall: 9,
        via: Via::Forward,
        ..Check::built_in(Protocol::Tcp)
    };
    assert_eq!(*check, expected);
}

#[test]
fn another_type_resets_what_belongs_to_the_old_one() {
    let config = parsed(&format!(
        "{HEAD}[defaults.check]\ntype = \"http\"\npath = \"/d\"\nport = 81\n\
         {WEB}[service.check]\ntype = \"tcp\"\n{BACKEND}\
         [[service.backend]]\naddress = \"10.0.1.12\"\n[service.backend.check]\ntype = \"http\"\n"
    ));
    let kinds: Vec<_> = checks(&config).iter().map(|check| check.kind.clone()).collect();
    assert_eq!(kinds, [CheckKind::Tcp, CheckKind::Http(HttpCheck::default())]);
    assert!(checks(&config).iter().all(|check| check.port == Some(81)));
}

#[test]
fn the_same_type_again_resets_nothing() {
    let config = parsed(&format!(
        "{HEAD}[defaults.check]\ntype = \"http\"\npath = \"/d\"\n{WEB}[service.check]\n\
                     type = \"http\"\n{BACKEND}"
    ));
    let CheckKind::Http(http) = &checks(&config)[0].kind else {
        panic!("http");
    };
    assert_eq!(http.path, "/d");
}

#[test]
fn udp_is_not_checked_unless_told() {
    let udp = WEB.replace("tcp", "udp");
    let config = parsed(&format!("{HEAD}{udp}{BACKEND}"));
    assert_eq!(checks(&config)[0].kind, CheckKind::None);
    let config = parsed(&format!("{HEAD}[defaults.check]\ntype = \"tcp\"\n{udp}{BACKEND}"));
    assert_eq!(checks(&config)[0].kind, CheckKind::Tcp);
}

#[test]
fn every_port_with_a_port_to_check_or_no_check() {
    let any = WEB.replace("80", "0");
    for check in ["port = 22", "type = \"none\""] {
        parsed(&format!("{HEAD}{any}[service.check]\n{check}\n{BACKEND}"));
        parsed(&format!("{HEAD}{any}{BACKEND}[service.backend.check]\n{check}\n"));
        parsed(&format!("{HEAD}[defaults.check]\n{check}\n{any}{BACKEND}"));
    }
}

#[test]
fn families_that_fit() {
    for (address, forward, backend) in [
        ("192.0.2.1", "dsr-l2", "10.0.0.1"),
        ("192.0.2.1", "dsr-ipip", "10.0.0.1"),
        ("192.0.2.1", "dsr-ipip", "2001:db8::1"),
        ("2001:db8::2", "dsr-l2", "2001:db8::1"),
        ("2001:db8::2", "dsr-ipip", "2001:db8::1"),
    ] {
        let service = WEB.replace("192.0.2.10", address).replace("dsr-l2", forward);
        parsed(&format!(
            "{HEAD}{service}{}",
            BACKEND.replace("10.0.1.11", backend)
        ));
    }
}

#[test]
fn one_address_with_several_ports_and_protocols() {
    let second = WEB.replace("web", "b").replace("tcp", "udp");
    let third = WEB.replace("web", "c").replace("80", "0");
    let check = "[service.check]\nport = 80\n";
    parsed(&format!(
        "{HEAD}{WEB}{BACKEND}{second}{BACKEND}{third}{check}{BACKEND}"
    ));
}

#[test]
fn numbers_in_every_notation() {
    let config = parsed(&format!("{HEAD}max_services = 0x10\nmax_backends = 1_000\n"));
    assert_eq!((config.agent.max_services, config.agent.max_backends), (16, 1000));
}

#[test]
fn a_hash_key_is_read_and_not_shown() {
    let config = parsed(&format!("{HEAD}hash_key = \"{}0F\"\n", "00".repeat(63)));
    let mut expected = [0; HashKey::BYTES];
    expected[63] = 15;
    assert_eq!(config.agent.hash_key, Some(HashKey(expected)));
    let shown = format!("{config:?}");
    assert!(
        shown.contains("HashKey(secret)") && !shown.contains("15"),
        "{shown}"
    );
}

#[test]
fn what_is_allowed_and_worth_saying() {
    let config = parsed(&format!(
        "{HEAD}{WEB}table_size = 251\n[service.check]\ninterval = \"100ms\"\ntimeout = \"100ms\"\n\
         [[service.backend]]\naddress = \"10.0.0.1\"\nweight = 0\n\
         [[service.backend]]\naddress = \"10.0.0.2\"\nweight = 0\n\
         [[service.backend]]\naddress = \"10.0.0.3\"\nweight = 0\n\
         [service.backend.check]\ntype = \"none\"\n"
    ));
    let told = config.warnings();
    let expected = [
        "web: a lookup table of 251 slots for 3 backends is less than 100 a backend",
        "web: every backend has weight 0",
        "web: 1 of 3 backends are not checked",
        "`fast_interval` is longer than `interval` for 2 of 3",
        "`fast_timeout` is longer than `timeout` for 2 of 3",
    ];
    assert_eq!(told.len(), expected.len(), "{told:?}");
    for (told, expected) in told.iter().zip(expected) {
        assert!(told.contains(expected), "{told:?} lacks {expected:?}");
    }
    assert_eq!(parsed(HEAD).warnings().len(), 1);
}

#[test]
fn this_machine_has_a_loopback() {
    let machine = Machine::read().unwrap();
    assert!(machine.interfaces.contains("lo"), "{machine:?}");
}

#[test]
fn rules_of_a_service_come_from_it_else_from_the_defaults() {
    let config = parsed(&format!(
        "{HEAD}[defaults]\nquorum = 2\nslow_start = \"30s\"\non_down = \"keep\"\n{WEB}quorum = 3\n{BACKEND}"
    ));
    let expected = PoolRules {
        quorum: 3,
        slow_start: Some(Duration::from_secs(30)),
        on_down: OnDown::Keep,
        ..PoolRules::default()
    };
    assert_eq!(config.services[0].rules, expected);
}

#[test]
fn a_service_that_keeps_its_clients_remembers_every_flow() {
    let config = parsed(&format!(
        "{HEAD}[defaults]\npersistence_timeout = \"10m\"\npersistence_prefix_v4 = 24\n{WEB}{BACKEND}"
    ));
    let service = &config.services[0];
    assert_eq!(service.tracking(), Tracking::Full);
    assert!(config.has_choosers() && config.keeps_clients());
    let kept = service.persistence();
    assert_eq!(kept.timeout_ns, 600_000_000_000);
    assert_eq!(kept.mask, [0, 0, 0, u32::from_ne_bytes([255, 255, 255, 0])]);
    let without = parsed(&format!("{HEAD}{WEB}{BACKEND}"));
    assert!(!without.has_choosers() && !without.keeps_clients());
    assert_eq!(without.services[0].tracking(), Tracking::Moved);
}

#[test]
fn a_sorry_backend_is_not_checked_and_changes_what_happens_when_all_are_down() {
    let config = parsed(&format!(
        "{HEAD}{WEB}sorry = \"10.0.1.99\"\n{BACKEND}[[service.backend]]\naddress = \"10.0.1.12\"\nbackup = true\n"
    ));
    let service = &config.services[0];
    assert_eq!(service.rules.on_all_down, OnAllDown::Sorry);
    let roles: Vec<_> = service.backends.iter().map(|backend| backend.role).collect();
    assert_eq!(roles, [Role::Primary, Role::Backup, Role::Sorry]);
    assert_eq!(service.backends[2].check.kind, CheckKind::None);
    assert_eq!(config.warnings(), Vec::<String>::new());
    let last = parsed(&format!(
        "{HEAD}{WEB}sorry = \"10.0.1.99\"\non_all_down = \"last\"\n{BACKEND}"
    ));
    assert_eq!(last.services[0].rules.on_all_down, OnAllDown::Last);
}

#[test]
fn the_agent_check_of_a_backend_overrides_the_services() {
    let config = parsed(&format!(
        "{HEAD}{WEB}[service.agent_check]\nport = 8081\ninterval = \"5s\"\n{BACKEND}\
         [[service.backend]]\naddress = \"10.0.1.12\"\n[service.backend.agent_check]\n\
         port = 9\nsend = \"hex:0a\"\n"
    ));
    let [first, second] = config.services[0].backends.as_slice() else {
        panic!("two backends");
    };
    let expected = AgentCheck {
        port: 8081,
        address: None,
        interval: Duration::from_secs(5),
        timeout: Duration::from_secs(1),
        send: Vec::new(),
        source: None,
    };
    assert_eq!(first.agent_check.as_ref(), Some(&expected));
    let expected = AgentCheck {
        port: 9,
        send: vec![b'\n'],
        ..expected
    };
    assert_eq!(second.agent_check.as_ref(), Some(&expected));
    let config = parsed(&format!("{HEAD}{WEB}{BACKEND}"));
    assert_eq!(config.services[0].backends[0].agent_check, None);
}

#[test]
fn a_pool_gives_its_services_the_same_backends_and_checks() {
    let pool = "[[pool]]\nname = \"front\"\n[pool.check]\nport = 8080\nrise = 7\n\
                [[pool.backend]]\naddress = \"10.0.1.11\"\nweight = 3\n[[pool.backend]]\naddress = \"10.0.1.12\"\n";
    let second = WEB
        .replace("web", "tls")
        .replace("= 80", "= 443")
        .replace("tcp", "udp");
    let named = "pool = \"front\"\n";
    let config = parsed(&format!("{HEAD}{pool}{WEB}{named}{second}{named}"));
    let [web, tls] = config.services.as_slice() else {
        panic!("two services: {config:?}");
    };
    assert_eq!(web.pool.as_deref(), Some("front"));
    let without_port = |service: &Service| -> Vec<_> {
        let backends = service.backends.iter();
        backends
            .map(|backend| Backend {
                port: 0,
                ..backend.clone()
            })
            .collect()
    };
    assert_eq!(
        without_port(web),
        without_port(tls),
        "UDP beside TCP is checked as TCP is"
    );
    assert_eq!((web.backends[0].port, tls.backends[0].port), (80, 443));
    assert_eq!((web.backends[0].weight, web.backends[0].check.rise), (3, 7));
    assert_eq!(web.backends[0].check.kind, CheckKind::Tcp);
}

#[test]
fn a_port_taken_out_of_a_wider_service_is_said() {
    let service = |name: &str, address: &str, port: &str, protocol: &str| {
        format!(
            "[[service]]\nname = \"{name}\"\naddress = \"{address}\"\nport = {port}\nprotocol = \"{protocol}\"\n\
             forward = \"dsr-l2\"\n[service.check]\ntype = \"none\"\n{BACKEND}"
        )
    };
    let told = |services: &[String]| -> Vec<String> {
        let told = parsed(&format!("{HEAD}{}", services.concat())).warnings();
        told.into_iter()
            .filter(|told| told.contains("takes port"))
            .collect()
    };
    let all = service("all", "192.0.2.10", "0", "tcp");
    let web = service("web", "192.0.2.10", "80", "tcp");
    assert_eq!(
        told(&[all.clone(), web]),
        ["service web: takes port 80 out of service all, which has every port of 192.0.2.10"]
    );
    let others = [
        all,
        service("udp", "192.0.2.10", "80", "udp"),
        service("elsewhere", "192.0.2.11", "80", "tcp"),
    ];
    assert_eq!(told(&others), Vec::<String>::new());
    let range = service("range", "192.0.2.10", "\"8000-8100\"", "tcp");
    let inside = service("inside", "192.0.2.10", "8050", "tcp");
    let beside = service("beside", "192.0.2.10", "8101", "tcp");
    assert_eq!(
        told(&[range, inside, beside]),
        ["service inside: takes port 8050 out of service range, which has ports 8000-8100 of 192.0.2.10"]
    );
}

#[test]
fn vlans_are_switched_on_by_a_backend_too() {
    let vlans = |agent: &str, backend: &str| {
        let config = Config::parse(&format!("{HEAD}{agent}{WEB}{BACKEND}{backend}")).unwrap();
        (config.has_vlans(), config.services[0].backends[0].tags)
    };
    let one = Tags::NONE.within(TAG_TYPE, 100);
    let two = Tags::NONE.within(SERVICE_TAG_TYPE, 200).within(TAG_TYPE, 100);
    assert_eq!(vlans("", ""), (false, None));
    assert_eq!(vlans("vlans = true\n", ""), (true, None));
    assert_eq!(vlans("", "vlan = 100\n"), (true, Some(one)));
    assert_eq!(vlans("", "vlan = 100\nvlan_outer = 200\n"), (true, Some(two)));
}

#[test]
fn ids_of_quic() {
    let udp = WEB.replace("\"tcp\"", "\"udp\"");
    let with = |service: &str, backend: &str| {
        parsed(&format!(
            "{HEAD}{udp}{service}{BACKEND}{backend}[[service.backend]]\naddress = \"10.0.1.12\"\n"
        ))
    };
    assert!(!with("", "").has_quic() && !with("quic = false\n", "").has_quic());
    let config = with(
        "quic = true\n",
        "quic_ids = [\"0:C4605e\", \"6:0102030405060708\"]\n",
    );
    assert!(config.has_quic());
    let said: Vec<String> = config.services[0].backends[0]
        .quic_ids
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(said, ["0:c4605e", "6:0102030405060708"]);
    let warned = |config: &Config| {
        config
            .warnings()
            .iter()
            .any(|told| told.contains("1 of 2 backends have no"))
    };
    assert!(warned(&config) && !warned(&with("quic = true\n", "")));
}

#[test]
fn ids_of_a_pool_count_where_a_service_is_quic() {
    let service = |name: &str, protocol: &str, quic: &str| {
        format!(
            "[[service]]\nname = \"{name}\"\naddress = \"192.0.2.10\"\nport = 443\nprotocol = \"{protocol}\"\n\
             forward = \"dsr-l2\"\npool = \"p\"\n{quic}"
        )
    };
    let pool = "[[pool]]\nname = \"p\"\n[pool.check]\ntype = \"none\"\n[[pool.backend]]\naddress = \"10.0.1.11\"\n\
                quic_ids = [\"0:a1\"]\n";
    let tcp = service("tcp", "tcp", "");
    let udp = service("udp", "udp", "quic = true\n");
    let config = parsed(&format!("{HEAD}{pool}{tcp}{udp}"));
    assert_eq!(config.services.len(), 2);
    let without = Config::parse(&format!("{HEAD}{pool}{tcp}")).unwrap_err();
    assert!(
        without
            .to_string()
            .contains("no service with these backends has `quic = true`")
    );
}

#[test]
fn answers_that_would_be_missed_are_said() {
    let service = |name: &str, port: u16, forward: &str| {
        format!(
            "[[service]]\nname = \"{name}\"\naddress = \"192.0.2.10\"\nport = {port}\nprotocol = \"tcp\"\n\
             forward = \"{forward}\"\n{BACKEND}"
        )
    };
    let config = parsed(&format!(
        "{HEAD}{}{}",
        service("a", 80, "nat"),
        service("b", 81, "dsr-ipip")
    ));
    let backend: std::net::IpAddr = "10.0.1.11".parse().unwrap();
    assert_eq!(config.translated_backends(), [backend].into());
    let by = |name: &str| config.answers_missed(&[(backend, name.to_owned())].into());
    assert_eq!(by("eth0"), Vec::<String>::new());
    let [told] = &by("eth1")[..] else {
        panic!("one warning")
    };
    assert!(
        told.contains("service a: backend 10.0.1.11 is reached by eth1"),
        "{told}"
    );
}
