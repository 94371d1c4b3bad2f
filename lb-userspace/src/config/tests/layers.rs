use serde_json::{Value, json};

use super::super::keys::{self, CHECK, CHECK_TABLE, DEFAULTS, Key, SPECIFIC};
use super::super::types::{Check, PoolRules};
use super::parsed;

/// Two values of each key that stands in several layers; neither but the second may be the default.
fn samples(key: &Key) -> [Value; 2] {
    match key.name {
        "tracking" => [json!("none"), json!("full")],
        "tcp_idle_timeout" | "udp_idle_timeout" => [json!("2m"), json!("3m")],
        "on_down" => [json!("keep"), json!("rehash")],
        "on_all_down" => [json!("drop"), json!("last")],
        "quorum" | "fall" | "rise" => [json!(4), json!(5)],
        "quorum_hysteresis" => [json!(1), json!(2)],
        "backup_mode" => [json!("first"), json!("all")],
        "panic_threshold" | "max_ejection_percent" => [json!(10), json!(20)],
        "slow_start" | "flap_hold" => [json!("20s"), json!("50s")],
        "flap_limit" => [json!(7), json!(9)],
        "flap_window" => [json!("20m"), json!("30m")],
        "persistence_timeout" => [json!("10m"), json!("20m")],
        "persistence_prefix_v4" => [json!(24), json!(16)],
        "persistence_prefix_v6" => [json!(64), json!(48)],
        "type" => [json!("icmp"), json!("tcp")],
        "interval" => [json!("3s"), json!("4s")],
        "timeout" => [json!("700ms"), json!("800ms")],
        "fast_interval" | "fast_timeout" => [json!("150ms"), json!("160ms")],
        "down_interval" => [json!("5s"), json!("6s")],
        "jitter_percent" => [json!(0), json!(5)],
        "passive" => [json!(false), json!(true)],
        "port" => [json!(8081), json!(8082)],
        "address" => [json!("10.0.9.1"), json!("10.0.9.2")],
        "source" => [json!("10.0.9.3"), json!("10.0.9.4")],
        "via" => [json!("direct"), json!("forward")],
        "method" => [json!("HEAD"), json!("GET")],
        "path" => [json!("/one"), json!("/two")],
        "host" | "sni" => [json!("one.example"), json!("two.example")],
        "headers" => [json!(["X-One: 1"]), json!(["X-Two: 2"])],
        "expect_status" => [json!([201]), json!(["300-399"])],
        "expect_body" | "expect_body_regex" | "expect" | "send" => [json!("one"), json!("two")],
        "tls" => [json!(true), json!(false)],
        "verify" => [json!(false), json!(true)],
        "ca_file" | "client_cert" | "client_key" => [json!("/one.pem"), json!("/two.pem")],
        "query" => [json!("one.example"), json!("two.example")],
        "query_type" => [json!("AAAA"), json!("A")],
        "expect_rcode" => [json!(["NXDOMAIN"]), json!(["NOERROR", "REFUSED"])],
        "expect_address" => [json!(["10.0.9.5"]), json!(["10.0.9.6"])],
        "grpc_service" => [json!("one"), json!("two")],
        "command" => [json!(["/bin/one"]), json!(["/bin/two"])],
        "require" => [json!("any"), json!("all")],
        "also" => [json!([{"type": "icmp"}]), json!([{"type": "tcp", "port": 81}])],
        other => panic!("two values of {other}, please"),
    }
}

/// Where a key of a check may stand, the weakest first.
const CHECK_LAYERS: [&str; 3] = [
    "/defaults/check",
    "/service/0/check",
    "/service/0/backend/0/check",
];
const RULE_LAYERS: [&str; 2] = ["/defaults", "/service/0"];

fn base() -> Value {
    json!({
        "schema": 1,
        "agent": {"interfaces": ["eth0"]},
        "defaults": {"check": {}},
        "service": [{
            "name": "web", "address": "192.0.2.10", "port": 80, "protocol": "tcp", "forward": "dsr-l2",
            "check": {},
            "backend": [{"address": "10.0.1.11", "check": {}}, {"address": "10.0.1.12"}],
        }],
    })
}

/// A file in which checks are of a type that has `key`, and have what `key` does not go without.
fn fitting(key: &Key) -> Value {
    let mut file = base();
    let specific = SPECIFIC.iter().find(|(specific, _)| specific.name == key.name);
    let of_type = match (key.name, specific) {
        // Else the type would be another one.
        ("type", _) => "tcp",
        (_, Some((_, types))) => types[0],
        _ => "http",
    };
    let mut check = json!({"type": of_type});
    let needed: &[(&str, Value)] = match (of_type, key.name) {
        ("udp", _) => &[("send", json!("x"))],
        ("dns", _) => &[("query", json!("."))],
        ("exec", _) => &[("command", json!(["/x"]))],
        ("grpc", "verify" | "ca_file" | "sni") => &[("tls", json!(true))],
        (_, "require") => &[("also", json!([{"type": "icmp"}]))],
        _ => &[],
    };
    for (name, value) in needed {
        check[name] = value.clone();
    }
    file["defaults"]["check"] = check;
    file
}

/// Puts a value into a table, with what does not go without it.
fn say(table: &mut Value, key: &Key, value: &Value) {
    table[key.name] = value.clone();
    match key.name {
        "client_cert" => table["client_key"] = json!("/key.pem"),
        "client_key" => table["client_cert"] = json!("/cert.pem"),
        _ => {}
    }
}

/// What rules and check of the first backend are with these values in these tables.
fn meaning(mut file: Value, key: &Key, said: &[(&str, &Value)]) -> (PoolRules, Check) {
    for (place, value) in said {
        let table = file.pointer_mut(place).unwrap_or_else(|| panic!("no {place}"));
        say(table, key, value);
    }
    let text = toml::to_string(&file).unwrap();
    let service = parsed(&text).services.remove(0);
    (service.rules, service.backends[0].check.clone())
}

fn goes_through(layers: &[&str], key: &Key, file: &Value) {
    let [first, second] = samples(key);
    let of = |said: &[(&str, &Value)]| meaning(file.clone(), key, said);
    let (weakest, strongest) = (layers[0], layers[layers.len() - 1]);
    let meant = of(&[(strongest, &first)]);
    assert_ne!(meant, of(&[]), "{} = {first} changes something", key.name);
    for layer in layers {
        assert_eq!(of(&[(layer, &first)]), meant, "{} = {first} in {layer}", key.name);
    }
    let other = of(&[(weakest, &second)]);
    assert_ne!(meant, other, "{} = {second}", key.name);
    for (n, weaker) in layers.iter().enumerate() {
        for stronger in &layers[n + 1..] {
            let both = of(&[(weaker, &first), (stronger, &second)]);
            assert_eq!(both, other, "{} in {weaker}, overridden in {stronger}", key.name);
        }
    }
}

#[test]
fn every_rule_of_the_defaults_holds_until_a_service_says_otherwise() {
    let rules = DEFAULTS.keys.iter().filter(|key| key.name != CHECK_TABLE.name);
    for key in rules {
        let mut file = base();
        if key.name == keys::PERSISTENCE_PREFIX_V4.name || key.name == keys::PERSISTENCE_PREFIX_V6.name {
            file["service"][0]["persistence_timeout"] = json!("5m");
        }
        goes_through(&RULE_LAYERS, key, &file);
    }
}

#[test]
fn every_key_of_a_check_holds_until_a_service_or_a_backend_says_otherwise() {
    for key in CHECK.keys {
        goes_through(&CHECK_LAYERS, key, &fitting(key));
    }
}

#[test]
fn what_one_backend_says_is_not_said_of_the_next() {
    for key in CHECK.keys {
        let [first, _] = samples(key);
        let mut file = fitting(key);
        let without = parsed(&toml::to_string(&file).unwrap());
        say(&mut file["service"][0]["backend"][0]["check"], key, &first);
        let with = parsed(&toml::to_string(&file).unwrap());
        let check = |config: &super::super::Config, n: usize| config.services[0].backends[n].check.clone();
        assert_eq!(check(&with, 1), check(&without, 1), "{}", key.name);
        assert_ne!(check(&with, 0), check(&without, 0), "{}", key.name);
    }
}
