//! What the value of a key may be: said to people ([`Shape::expected`]) and to editors
//! ([`Shape::schema`]). Reading values is the business of [`super::value`].

use serde_json::{Value, json};

use super::keys::Table;

/// What a value may be.
#[derive(Debug)]
pub enum Shape {
    Boolean,
    Integer {
        min: i64,
        max: i64,
    },
    /// One of these integers.
    OneOf(&'static [u32]),
    /// One of these strings; `planned` are words of the design whose feature is not built.
    Choice {
        built: &'static [&'static str],
        planned: &'static [&'static str],
    },
    /// From [`super::value::DURATION_MIN`] to [`super::value::DURATION_MAX`].
    Duration,
    Address,
    /// An address with a prefix length, or without one for itself alone.
    Prefix,
    /// `gateway`, `none`, an address, or an address and a port.
    Witness,
    /// An address to listen at, with its port.
    Listen,
    /// Absolute.
    Path {
        max_bytes: usize,
    },
    /// The name of a service.
    Name,
    /// The name of a network interface.
    Interface,
    /// 64 bytes in hexadecimal.
    HashKey,
    /// `FIRST-LAST`.
    Ports,
    /// A port, 0 for all of them, or `FIRST-LAST`.
    ServicePort,
    HttpPath,
    Host,
    /// A configuration of QUIC ids, and a server id of it.
    QuicId,
    /// An HTTP status or a range of them.
    Status,
    /// A header of an HTTP request, `Name: value`.
    Header,
    /// Not empty.
    Text {
        max_bytes: usize,
    },
    /// Text, or bytes in hexadecimal.
    Payload,
    Regex,
    DomainName,
    ServerName,
    /// At least one item.
    List {
        item: &'static Self,
        unique: bool,
    },
    Table(&'static Table),
    Tables(&'static Table),
}

impl Shape {
    /// What is expected, for the end of a sentence that begins with "expected".
    #[must_use]
    pub fn expected(&self) -> String {
        match self {
            Self::Boolean => "true or false".to_owned(),
            Self::Integer { min, max } if min == max => format!("{min}"),
            Self::Integer { min, max } => format!("an integer from {min} to {max}"),
            Self::OneOf(values) => format!("one of {}", join(values.iter().map(u32::to_string))),
            Self::Choice { built, .. } => {
                let words = built.iter().map(|word| format!("\"{word}\""));
                if built.len() == 1 {
                    join(words)
                } else {
                    format!("one of {}", join(words))
                }
            }
            Self::Duration => "a duration from \"1ms\" to \"1day\", such as \"2s\" or \"200ms\"".to_owned(),
            Self::Address => "an IPv4 or IPv6 address, such as \"192.0.2.10\" or \"2001:db8::10\"".to_owned(),
            Self::Prefix => {
                "a prefix, such as \"192.0.2.0/24\" or \"2001:db8::/32\", or an address".to_owned()
            }
            Self::Witness => {
                "\"gateway\", \"none\", an address, or an address and a port such as \"192.0.2.1:22\""
                    .to_owned()
            }
            Self::Listen => "an address with a port, such as \"127.0.0.1:9414\" or \"[::1]:9414\"".to_owned(),
            Self::Path { max_bytes } => format!("an absolute path of at most {max_bytes} bytes"),
            Self::Name => {
                "1 to 63 letters, digits, `.`, `_` and `-`, the first a letter or a digit".to_owned()
            }
            Self::Interface => {
                "the name of a network interface: 1 to 15 bytes without `/`, `:` and spaces".to_owned()
            }
            Self::HashKey => "128 hexadecimal digits (64 bytes), not all zero".to_owned(),
            Self::Ports => "a range of ports from 1 to 65535, such as \"1024-65535\"".to_owned(),
            Self::ServicePort => "an integer from 0 to 65535, or a range such as \"8000-8100\"".to_owned(),
            Self::HttpPath => {
                "a path that begins with `/`, of at most 2048 printable ASCII characters without spaces"
                    .to_owned()
            }
            Self::Host => "a host name or an address, with `:PORT` or without".to_owned(),
            Self::QuicId => super::quic::expected(),
            Self::Status => "a status from 100 to 599, or a range such as \"200-299\"".to_owned(),
            Self::Header => {
                "a header such as \"Name: value\", of printable ASCII, and none of Host, Connection, \
                 Content-Length, Transfer-Encoding, Upgrade, Expect, TE, Trailer"
                    .to_owned()
            }
            Self::Text { max_bytes } => format!("text of 1 to {max_bytes} bytes without a zero byte"),
            Self::Payload => {
                "1 to 1024 bytes: text, or \"hex:\" and two hexadecimal digits a byte".to_owned()
            }
            Self::Regex => "a regular expression (https://docs.rs/regex) of at most 1024 bytes".to_owned(),
            Self::DomainName => {
                "a domain name in ASCII, such as \"www.example.com\", or \".\" for the root".to_owned()
            }
            Self::ServerName => "a host name or an address, without a port".to_owned(),
            Self::List { item, .. } => format!("a list of at least one, each {}", item.expected()),
            Self::Table(table) => format!("a table, {}", table.header),
            Self::Tables(table) => format!("tables, {}", table.header),
        }
    }

    /// The JSON schema of the value.
    #[must_use]
    pub fn schema(&self) -> Value {
        match self {
            Self::Boolean => json!({"type": "boolean"}),
            Self::Integer { min, max } => json!({"type": "integer", "minimum": min, "maximum": max}),
            Self::OneOf(values) => json!({"enum": values}),
            Self::Choice { built, .. } => json!({"enum": built}),
            Self::Duration => json!({"type": "string", "pattern": "^ *[0-9].*[a-zµ] *$"}),
            Self::Address => json!({"type": "string", "anyOf": [{"format": "ipv4"}, {"format": "ipv6"}]}),
            Self::Prefix => json!({"type": "string", "pattern": "^[0-9A-Fa-f.:]+(/[0-9]{1,3})?$"}),
            Self::Witness => json!({"type": "string", "pattern": "^[0-9A-Za-z.:\\[\\]]+$"}),
            Self::Listen => json!({"type": "string", "pattern": "^.+:[0-9]+$"}),
            Self::Path { max_bytes } => {
                json!({"type": "string", "pattern": "^/.", "maxLength": max_bytes})
            }
            Self::Name => json!({"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"}),
            Self::Interface => json!({"type": "string", "pattern": "^[^/:\\s]{1,15}$"}),
            Self::HashKey => json!({"type": "string", "pattern": "^[0-9A-Fa-f]{128}$"}),
            Self::Ports => json!({"type": "string", "pattern": "^[0-9]{1,5}-[0-9]{1,5}$"}),
            Self::ServicePort => json!({"anyOf": [
                {"type": "integer", "minimum": 0, "maximum": 65535},
                {"type": "string", "pattern": "^[0-9]{1,5}-[0-9]{1,5}$"},
            ]}),
            Self::HttpPath => json!({"type": "string", "pattern": "^/[!-~]*$", "maxLength": 2048}),
            Self::Host => json!({"type": "string", "pattern": "^[A-Za-z0-9._:\\[\\]-]+$", "maxLength": 259}),
            Self::QuicId => json!({"type": "string", "pattern": "^[0-6]:([0-9A-Fa-f]{2}){1,8}$"}),
            Self::Status => json!({"anyOf": [
                {"type": "integer", "minimum": 100, "maximum": 599},
                {"type": "string", "pattern": "^[1-5][0-9][0-9]-[1-5][0-9][0-9]$"},
            ]}),
            Self::Header => json!({"type": "string", "pattern": "^[A-Za-z0-9!#$%&'*+.^_`|~-]+:[ -~]*$"}),
            Self::Text { max_bytes } => json!({"type": "string", "minLength": 1, "maxLength": max_bytes}),
            Self::Payload => json!({"type": "string", "minLength": 1, "maxLength": 2052}),
            Self::Regex => json!({"type": "string", "format": "regex", "minLength": 1, "maxLength": 1024}),
            Self::DomainName => json!({"type": "string", "pattern": "^[!-~]+$", "maxLength": 255}),
            Self::ServerName => json!({"type": "string", "pattern": "^[A-Za-z0-9._:-]+$", "maxLength": 253}),
            Self::List { item, unique } => {
                json!({"type": "array", "minItems": 1, "uniqueItems": unique, "items": item.schema()})
            }
            Self::Table(table) => json!({"$ref": format!("#/$defs/{}", table.id)}),
            Self::Tables(table) => {
                json!({"type": "array", "items": {"$ref": format!("#/$defs/{}", table.id)}})
            }
        }
    }
}

fn join(words: impl Iterator<Item = String>) -> String {
    words.collect::<Vec<_>>().join(", ")
}
