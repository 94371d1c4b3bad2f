use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::super::keys::{
    self, AGENT_CHECK, ALSO, BACKEND, CHECK, DEFAULTS, Key, ROOT, SERVICE, TABLES, Table,
};
use super::super::shape::Shape;
use super::super::{Config, Faults, example, schema};
use super::parsed;

/// What is wrong with a file, written as JSON.
fn faults_of(text: &Value) -> Vec<String> {
    let text = toml::to_string(text).unwrap();
    match Config::parse(&text) {
        Ok(_) => Vec::new(),
        Err(Faults(faults)) => faults.into_iter().map(|fault| fault.message).collect(),
    }
}

/// A file in which every table occurs.
fn full() -> Value {
    json!({
        "schema": 1,
        "agent": {"interfaces": ["eth0"]},
        "defaults": {"check": {"type": "http"}},
        "service": [{
            "name": "web", "address": "192.0.2.10", "port": 80, "protocol": "tcp", "forward": "dsr-l2",
            "check": {"also": [{"type": "http"}]},
            "agent_check": {"port": 1},
            "limit": {"new_flows": 1, "new_flows_per_client": 1},
            "backend": [{"address": "10.0.1.11", "check": {}, "agent_check": {"port": 2}}],
        }, {
            "name": "api", "address": "192.0.2.11", "port": 80, "protocol": "tcp", "forward": "dsr-l2",
            "pool": "front",
        }],
        "pool": [{
            "name": "front", "check": {"also": [{"type": "http"}]}, "agent_check": {"port": 1},
            "backend": [{"address": "10.0.2.11", "check": {}, "agent_check": {"port": 2}}],
        }],
    })
}

/// Where the tables of one kind are in [`full`].
fn places(table: &Table) -> &'static [&'static str] {
    match table.id {
        "root" => &[""],
        "agent" => &["/agent"],
        "limit" => &["/service/0/limit"],
        "defaults" => &["/defaults"],
        "service" => &["/service/0"],
        "pool" => &["/pool/0"],
        "backend" => &["/service/0/backend/0", "/pool/0/backend/0"],
        "check" => &[
            "/defaults/check",
            "/service/0/check",
            "/service/0/backend/0/check",
            "/pool/0/check",
            "/pool/0/backend/0/check",
        ],
        "agent_check" => &[
            "/service/0/agent_check",
            "/service/0/backend/0/agent_check",
            "/pool/0/agent_check",
        ],
        "also" => &["/service/0/check/also/0", "/pool/0/check/also/0"],
        other => panic!("where is {other}?"),
    }
}

/// The file in which the check tables of `place` have a type that has `key`.
fn fitting(place: &str, key: &Key) -> Value {
    let mut file = full();
    let types = keys::SPECIFIC
        .iter()
        .find(|(specific, _)| specific.name == key.name)
        .map_or(&[][..], |(_, types)| types);
    if let Some(check_type) = types.first() {
        let check = if place.contains("/also/") {
            place
        } else {
            "/defaults/check"
        };
        let mut table = json!({"type": check_type});
        let mandatory = [
            ("udp", "send", json!("x")),
            ("dns", "query", json!(".")),
            ("exec", "command", json!(["/x"])),
        ];
        for (_, name, value) in mandatory.iter().filter(|(of, _, _)| of == check_type) {
            table[name] = value.clone();
        }
        *file.pointer_mut(check).unwrap() = table;
    }
    file
}

/// Every table, every place of it, every key.
fn each_key(mut visit: impl FnMut(&str, &Table, &Key)) {
    for table in TABLES {
        for place in places(table) {
            for key in table.keys {
                visit(place, table, key);
            }
        }
    }
}

#[test]
fn the_full_file_is_valid() {
    assert_eq!(faults_of(&full()), Vec::<String>::new());
}

#[test]
fn every_key_is_read_wherever_its_table_is() {
    each_key(|place, _, key| {
        let mut file = full();
        // No key takes a floating-point number.
        file.pointer_mut(place).unwrap()[key.name] = json!(1.5);
        let wrong = format!("`{}` is a floating-point number", key.name);
        let faults = faults_of(&file);
        assert!(faults.contains(&wrong), "{place}/{}: {faults:?}", key.name);
    });
}

#[test]
fn exactly_the_required_keys_are_required() {
    each_key(|place, table, key| {
        // Required where a service names no pool, or one, or where there is a pool.
        if matches!(
            (table.id, key.name),
            ("service", "backend") | ("root", "pool" | "service")
        ) {
            return;
        }
        let mut file = full();
        let keys = file.pointer_mut(place).unwrap().as_object_mut().unwrap();
        keys.remove(key.name);
        let faults = faults_of(&file);
        assert_eq!(
            !faults.is_empty(),
            key.required,
            "{} {}: {faults:?}",
            table.id,
            key.name
        );
    });
}

#[test]
fn defaults_written_out_change_nothing() {
    each_key(|place, table, key| {
        let Some(default) = key.default else {
            return;
        };
        let without = fitting(place, key);
        let mut with = without.clone();
        let default: Value = toml::from_str(&format!("value = {default}")).unwrap();
        with.pointer_mut(place).unwrap()[key.name] = default["value"].clone();
        let [with, without] = [with, without].map(|file| parsed(&toml::to_string(&file).unwrap()));
        assert_eq!(with, without, "{} {}", table.id, key.name);
    });
}

#[test]
fn every_word_of_a_choice_is_understood_and_no_planned_one() {
    each_key(|place, _, key| {
        let Shape::Choice { built, planned } = key.shape else {
            return;
        };
        for word in built.iter().chain(planned) {
            let mut file = full();
            file.pointer_mut(place).unwrap()[key.name] = json!(word);
            let faults = faults_of(&file);
            let refused = faults
                .iter()
                .any(|fault| fault.starts_with(&format!("`{} ", key.name)));
            assert_eq!(
                refused,
                planned.contains(word),
                "{}: {word}: {faults:?}",
                key.name
            );
        }
    });
}

#[test]
fn bounds_are_the_shapes() {
    each_key(|place, _, key| {
        let Shape::Integer { min, max } = key.shape else {
            return;
        };
        for (number, fits) in [(min - 1, false), (min, true), (max, true), (max + 1, false)] {
            let mut file = full();
            file.pointer_mut(place).unwrap()[key.name] = json!(number);
            let faults = faults_of(&file);
            let refused = faults.contains(&format!("`{}` is {number}", key.name));
            assert_eq!(refused, !fits, "{place}/{}: {faults:?}", key.name);
        }
    });
}

#[test]
fn no_planned_key_is_built() {
    for table in TABLES {
        for planned in table.planned {
            assert!(table.keys.iter().all(|key| key.name != *planned), "{planned}");
        }
    }
}

#[test]
fn the_schema_has_the_same_keys() {
    let schema = schema();
    for table in TABLES {
        let definition = &schema["$defs"][table.id];
        let in_schema: BTreeSet<_> = definition["properties"]
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        let known: BTreeSet<_> = table.keys.iter().map(|key| key.name).collect();
        assert_eq!(in_schema, known, "{}", table.id);
        assert_eq!(definition["additionalProperties"], json!(false));
        for key in table.keys {
            let required = definition["required"]
                .as_array()
                .unwrap()
                .contains(&json!(key.name));
            assert_eq!(required, key.required, "{} {}", table.id, key.name);
            let property = &definition["properties"][key.name];
            assert_eq!(property["default"].is_null(), key.default.is_none(), "{property}");
            assert_eq!(property["description"], json!(key.doc));
        }
    }
    assert_eq!(schema["$ref"], json!("#/$defs/root"));
}

#[test]
fn each_table_in_a_table_is_defined() {
    for table in TABLES {
        for key in table.keys {
            if let Shape::Table(inner) | Shape::Tables(inner) = key.shape {
                assert!(TABLES.iter().any(|known| known.id == inner.id), "{}", key.name);
            }
        }
    }
    let headers =
        [&ROOT, &DEFAULTS, &SERVICE, &BACKEND, &CHECK, &ALSO, &AGENT_CHECK].map(|table| table.header);
    assert_eq!(headers.iter().collect::<BTreeSet<_>>().len(), headers.len());
    assert_eq!(keys::SERVICES.name, "service");
}

/// The example with every key that is switched off switched on.
fn example_in_full() -> String {
    let lines = example();
    let lines = lines.lines().map(|line| match line.strip_prefix('#') {
        Some(key) if key.starts_with(|first: char| first.is_ascii_lowercase()) => key,
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_example_has_every_key_and_is_valid_with_all_of_them() {
    let text = example_in_full();
    parsed(&text);
    let file: Value = toml::from_str(&text).unwrap();
    // Keys of all tables of one kind together.
    let mut found: BTreeSet<(&str, String)> = BTreeSet::new();
    collect(&ROOT, &file, &mut found);
    for table in TABLES {
        for key in table.keys {
            // The keys that both kinds of checks have are shown once.
            let has = |table: &Table| table.keys.iter().any(|other| other.name == key.name);
            let is_check = [CHECK.id, ALSO.id].contains(&table.id);
            let homes = if is_check && has(&CHECK) && has(&ALSO) {
                vec![CHECK.id, ALSO.id]
            } else {
                vec![table.id]
            };
            let shown = homes
                .iter()
                .any(|home| found.contains(&(*home, key.name.to_owned())));
            assert!(shown, "{} {}", table.id, key.name);
        }
    }
}

fn collect(table: &'static Table, value: &Value, found: &mut BTreeSet<(&str, String)>) {
    for key in table.keys {
        let Some(value) = value.get(key.name) else {
            continue;
        };
        found.insert((table.id, key.name.to_owned()));
        match key.shape {
            Shape::Table(inner) => collect(inner, value, found),
            Shape::Tables(inner) => {
                for item in value.as_array().unwrap() {
                    collect(inner, item, found);
                }
            }
            _ => {}
        }
    }
}

#[test]
fn no_comment_of_the_example_is_wider_than_a_screen() {
    for line in example().lines().filter(|line| !line.starts_with("#hash_key")) {
        assert!(line.chars().count() <= 110, "{line}");
    }
}
