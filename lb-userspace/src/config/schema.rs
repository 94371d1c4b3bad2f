//! The JSON schema of the configuration file, for editors and for programs that write it.

use serde_json::{Map, Value, json};

use super::keys::{Key, ROOT, TABLES, Table};

/// The schema (JSON Schema, draft 2020-12) of what [`super::Config::parse`] accepts.
///
/// What a schema cannot say (families that fit, names that are not given twice) is not in it.
#[must_use]
pub fn schema() -> Value {
    let definitions: Map<String, Value> = TABLES
        .iter()
        .map(|table| (table.id.to_owned(), table_schema(table)))
        .collect();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "xlb.toml",
        "$ref": format!("#/$defs/{}", ROOT.id),
        "$defs": definitions,
    })
}

fn table_schema(table: &Table) -> Value {
    let properties: Map<String, Value> = table
        .keys
        .iter()
        .map(|key| (key.name.to_owned(), key_schema(key)))
        .collect();
    let required: Vec<_> = table
        .keys
        .iter()
        .filter(|key| key.required)
        .map(|key| key.name)
        .collect();
    json!({
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
        "required": required,
    })
}

fn key_schema(key: &Key) -> Value {
    let mut schema = key.shape.schema();
    schema["description"] = json!(key.doc);
    if let Some(default) = key.default.and_then(json_of_toml) {
        schema["default"] = default;
    }
    schema
}

/// The JSON of a TOML value.
fn json_of_toml(text: &str) -> Option<Value> {
    let table: Value = toml::from_str(&format!("value = {text}")).ok()?;
    table.get("value").cloned()
}
