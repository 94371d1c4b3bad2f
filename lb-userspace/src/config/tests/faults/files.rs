use std::collections::BTreeSet;

use super::super::super::parse::MAX_CONFIG_BYTES;
use super::super::super::{Config, Fault, Faults, LoadError, MAX_FAULTS, Machine};
use super::super::HEAD;
use super::{agent, check, service, shaped};

#[test]
fn everything_at_once() {
    let text = "▶▶shema = 1\n[agent]\ninterfaces = [▶\"no/interface\"]\non_stop = ▶7\n\
        ▶[[service]]\naddress = \"192.0.2.1\"\nport = ▶80000\nprotocol = \"tcp\"\nforward = ▶\"dsr-gre\"\n\
        [service.check]\nrise = ▶0\n[[service.backend]]\naddress = ▶\"::1\"\nweight = ▶70000\n\
        ▶[[service]]\nname = \"b\"\naddress = \"2001:db8::1\"\nport = 80\nprotocol = \"udp\"\n\
        forward = \"dsr-ipip\"\n▶\"π\" = 1\n";
    check(
        &[(
            "a file full of faults",
            text.to_owned(),
            &[
                "`schema` is missing",
                "unknown key `shema`",
                "no/interface",
                "`on_stop`",
                "`name` is missing",
                "`port` is 80000",
                "`forward` is \"dsr-gre\"",
                "`rise` is 0",
                "a loopback address",
                "`weight` is 70000",
                "the service has no backend",
                "unknown key `π`",
            ],
        )],
        Config::parse,
    );
}

#[test]
fn of_syntax() {
    check(
        &[
            ("no value", format!("{HEAD}on_stop =▶\n"), &["TOML syntax:"]),
            (
                "no quotes",
                format!("{HEAD}on_stop = ▶keep\n"),
                &["TOML syntax: string values must be quoted"],
            ),
            (
                "columns are characters",
                "\"äöü\" = ▶x".to_owned(),
                &["TOML syntax: string values must be quoted"],
            ),
            (
                "a byte order mark is no column",
                "\u{feff}schema = ▶x".to_owned(),
                &["TOML syntax: string values must be quoted"],
            ),
            (
                "two lines, both told",
                format!("{HEAD}on_stop = ▶keep\nannounce = ▶l2\n"),
                &["quoted", "quoted"],
            ),
            (
                "faults before it are told, doubtful ones and those after are not",
                "[agent]\n▶x = 1\non_stop = ▶keep\n[[service]]\n".to_owned(),
                &["unknown key `x`", "quoted"],
            ),
            (
                "a key twice, and everything else",
                service("table_size = 251\n▶table_size = 251\nscheduler = ▶\"maglef\""),
                &[
                    "TOML syntax: duplicate key; expected each key and each table once",
                    "did you mean \"maglev\"?",
                ],
            ),
            (
                "a table twice",
                format!("{HEAD}[▶agent]\n"),
                &["TOML syntax: duplicate key"],
            ),
        ],
        Config::parse,
    );
}

#[test]
fn of_the_machine() {
    let machine = Machine {
        interfaces: BTreeSet::from(["eth0".to_owned(), "lo".to_owned()]),
        addresses: BTreeSet::from(["192.0.2.1".parse().unwrap(), "10.0.0.1".parse().unwrap()]),
        local_ports: Some((32_768, 60_999)),
    };
    check(
        &[
            (
                "an interface that is not there, and a fault elsewhere",
                "schema = 1\n[agent]\ninterfaces = [\"eth0\", ▶\"eth7\"]\non_stop = ▶1".to_owned(),
                &[
                    "the interface \"eth7\" does not exist; expected one of eth0, lo",
                    "`on_stop` is an integer",
                ],
            ),
            (
                "an address of the machine, with its own ports, to rewrite sources to",
                "schema = 1\n[agent]\ninterfaces = [\"eth0\"]\nsnat_addresses = [▶\"10.0.0.1\", \"10.0.0.9\"]".to_owned(),
                &["10.0.0.1 is an address of this machine, whose own connections use the ports 32768 to 60999"],
            ),
            (
                "an address of the machine beside its own ports",
                "schema = 1\n[agent]\ninterfaces = [\"eth0\"]\nsnat_addresses = [\"10.0.0.1\"]\n\
                 snat_ports = \"1024-32767\"\non_stop = ▶1"
                    .to_owned(),
                &["`on_stop` is an integer"],
            ),
            (
                "every port of an own address",
                format!(
                    "{}[service.backend.check]\ntype = \"none\"",
                    shaped("▶\"192.0.2.1\"", "0", "\"dsr-l2\"", "\"10.0.0.2\"")
                ),
                &["192.0.2.1 is an address of this machine and the service takes every port of it"],
            ),
            (
                "an own address as a backend",
                shaped("\"192.0.2.1\"", "80", "\"dsr-l2\"", "▶\"10.0.0.1\""),
                &["10.0.0.1 is an address of this machine: packets leave it"],
            ),
        ],
        |text| Config::parse_for(text, &machine),
    );
}

#[test]
fn a_secret_is_in_no_message() {
    let secret = "5ec2e7".repeat(22);
    let texts = [
        agent(&format!("hash_key = \"{secret}\"")),
        agent(&format!("hash_key = \"{secret}")),
        agent(&format!("hash_key = {secret}")),
        agent(&format!("hash_key = \"{}z\"", &secret[..127])),
        agent(&format!("hash_key = [\"{secret}\"]")),
        agent(&format!("max_services = \"{}\"", &secret[..128])),
    ];
    for text in texts {
        let told = Config::parse(&text).unwrap_err().to_string();
        assert!(!told.contains("5ec2e7"), "{told}");
    }
}

#[test]
fn more_than_can_be_told_are_counted() {
    let many = "[[service]]\n".repeat(MAX_FAULTS);
    let Faults(faults) = Config::parse(&format!("{HEAD}{many}")).unwrap_err();
    assert_eq!(faults.len(), MAX_FAULTS + 1);
    let last = faults.last().map(Fault::to_string).unwrap_or_default();
    assert!(last.contains("there are 5000 more faults"), "{last}");
}

#[test]
fn a_file_is_named_in_each_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("xlb.toml");
    let shown = path.display();

    let told = Config::load(&path).unwrap_err();
    assert!(matches!(told, LoadError::Read { .. }), "{told}");
    assert!(
        told.to_string()
            .starts_with(&format!("cannot read the configuration {shown}: "))
    );

    std::fs::write(&path, "schema = 2\n[agent]\n").unwrap();
    let told = Config::load(&path).unwrap_err().to_string();
    let lines: Vec<_> = told.lines().collect();
    assert_eq!(
        lines,
        [
            format!("{shown}:1:10: `schema` is 2; expected 1"),
            format!(
                "{shown}:2:1: `interfaces` is missing from [agent]; expected a list of at least one, each the \
                     name of a network interface: 1 to 15 bytes without `/`, `:` and spaces"
            ),
        ]
    );

    std::fs::write(&path, b"schema = 1\n# \xff\n").unwrap();
    let told = Config::load(&path).unwrap_err().to_string();
    assert_eq!(
        told,
        format!("{shown}:2:3: not UTF-8; expected a text file in UTF-8")
    );

    std::fs::write(&path, HEAD).unwrap();
    assert!(Config::load(&path).is_ok());
}

#[test]
fn a_text_can_be_too_large() {
    let text = format!("{HEAD}#{}", "é".repeat(MAX_CONFIG_BYTES / 2));
    let told = Config::parse(&text).unwrap_err().to_string();
    assert_eq!(
        told,
        "1:1: the configuration is too large; expected at most 16777216 bytes"
    );

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("xlb.toml");
    std::fs::write(&path, &text).unwrap();
    let told = Config::load(&path).unwrap_err().to_string();
    assert!(told.contains(":1:1: the configuration is too large"), "{told}");
}
