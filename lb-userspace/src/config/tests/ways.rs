//! Which way probes take where the file does not say.

use super::super::Via;
use super::accepted::checks;
use super::{BACKEND, HEAD, WEB, parsed};

/// Mode of the service, address of the backend, lines of its check, and the way of the probes.
#[test]
fn probes_go_the_way_of_packets_where_they_can() {
    let cases = [
        ("dsr-ipip", "10.0.1.11", "", Via::Forward),
        ("dsr-gue", "10.0.1.11", "", Via::Forward),
        ("nat", "10.0.1.11", "", Via::Direct),
        ("dsr-l2", "10.0.1.11", "type = \"http\"", Via::Forward),
        ("dsr-l2", "10.0.1.11", "via = \"direct\"", Via::Direct),
        ("dsr-l2", "10.0.1.11", "port = 80", Via::Forward),
        ("dsr-l2", "10.0.1.11", "port = 81", Via::Direct),
        ("dsr-l2", "10.0.1.11", "address = \"10.0.2.11\"", Via::Direct),
        ("dsr-l2", "10.0.1.11", "type = \"icmp\"", Via::Direct),
        (
            "dsr-l2",
            "10.0.1.11",
            "type = \"dns\"\nquery = \"a.example\"",
            Via::Direct,
        ),
        ("dsr-ipip", "2001:db8::11", "", Via::Direct),
        ("dsr-ipip", "2001:db8::11", "source = \"10.0.0.5\"", Via::Forward),
    ];
    for (forward, address, check, expected) in cases {
        let service = WEB.replace("dsr-l2", forward);
        let backend = BACKEND.replace("10.0.1.11", address);
        let config = parsed(&format!("{HEAD}{service}[service.check]\n{check}\n{backend}"));
        assert_eq!(checks(&config)[0].via, expected, "{forward} {address} {check}");
        let config = parsed(&format!(
            "{HEAD}{service}{backend}[service.backend.check]\n{check}\n"
        ));
        assert_eq!(checks(&config)[0].via, expected, "{forward} {address} {check}");
    }
}

#[test]
fn probes_of_every_port_and_of_tagged_backends_go_straight() {
    let any = WEB.replace("80", "0");
    let config = parsed(&format!("{HEAD}{any}[service.check]\nport = 22\n{BACKEND}"));
    assert_eq!(checks(&config)[0].via, Via::Direct);
    let config = parsed(&format!("{HEAD}{WEB}{BACKEND}vlan = 100\n"));
    assert_eq!(checks(&config)[0].via, Via::Direct);
}

#[test]
fn what_a_service_says_a_backend_takes_back() {
    let config = parsed(&format!(
        "{HEAD}{WEB}[service.check]\nvia = \"direct\"\n{BACKEND}[service.backend.check]\nvia = \"auto\"\n"
    ));
    assert_eq!(checks(&config)[0].via, Via::Forward);
}
