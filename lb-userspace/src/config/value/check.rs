//! Readers of the values that only checks have.

use hickory_proto::rr::Name;
use hyper::header::{HeaderName, HeaderValue};
use toml::de::DeValue;

use super::{quoted, string};
use crate::config::keys::Key;
use crate::config::shape::Shape;
use crate::config::types::{Header, Pattern};

/// The longest value of the keys that have a size of their own.
const MAX_BYTES: usize = 1024;

/// Headers that a check sends itself, or that would change how the message is framed (RFC 9110, section 7.6.1;
/// RFC 9112, section 6).
const RESERVED_HEADERS: [&str; 8] = [
    "host",
    "connection",
    "content-length",
    "transfer-encoding",
    "upgrade",
    "expect",
    "te",
    "trailer",
];

/// Text that can be an argument of a program: without a zero byte.
pub(in crate::config) fn text(key: &Key, shape: &Shape, value: &DeValue<'_>) -> Result<String, String> {
    let text = string(key, value)?;
    let fits = match shape {
        Shape::Text { max_bytes } => text.len() <= *max_bytes,
        _ => true,
    };
    if text.is_empty() || text.contains('\0') || !fits {
        return Err(format!("`{}` is {}", key.name, quoted(text)));
    }
    Ok(text.to_owned())
}

/// `Name: value`.
pub(in crate::config) fn header(key: &Key, _: &Shape, value: &DeValue<'_>) -> Result<Header, String> {
    let text = string(key, value)?;
    let wrong = |what: &str| format!("an item of `{}` is {}{what}", key.name, quoted(text));
    let (name, value) = text.split_once(':').ok_or_else(|| wrong(""))?;
    let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong(""))?;
    if RESERVED_HEADERS.contains(&name.as_str()) {
        return Err(wrong(", which the check sets itself"));
    }
    let value = value.trim();
    if text.len() > MAX_BYTES || !value.is_ascii() || HeaderValue::from_str(value).is_err() {
        return Err(wrong(""));
    }
    Ok(Header {
        name: name.as_str().to_owned(),
        value: value.to_owned(),
    })
}

/// Text as it is, or bytes after `hex:`.
pub(in crate::config) fn payload(key: &Key, _: &Shape, value: &DeValue<'_>) -> Result<Vec<u8>, String> {
    let text = string(key, value)?;
    let wrong = || format!("`{}` is {}", key.name, quoted(text));
    let bytes = match text.strip_prefix("hex:") {
        None => text.as_bytes().to_vec(),
        Some(digits) => hexadecimal(digits).ok_or_else(wrong)?,
    };
    if bytes.is_empty() || bytes.len() > MAX_BYTES {
        return Err(wrong());
    }
    Ok(bytes)
}

fn hexadecimal(digits: &str) -> Option<Vec<u8>> {
    if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    digits
        .as_bytes()
        .chunks(2)
        .map(|pair| match pair {
            [_, _] => u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok(),
            _ => None,
        })
        .collect()
}

pub(in crate::config) fn regex(key: &Key, _: &Shape, value: &DeValue<'_>) -> Result<Pattern, String> {
    let text = string(key, value)?;
    let wrong = |why: &str| format!("`{}` is {}{why}", key.name, quoted(text));
    if text.is_empty() || text.len() > MAX_BYTES {
        return Err(wrong(""));
    }
    regex::bytes::RegexBuilder::new(text)
        .size_limit(1 << 20)
        .build()
        .map(Pattern)
        .map_err(|error| {
            // The last line says what is wrong, those before it draw where.
            let error = error.to_string();
            let why = error.lines().last().unwrap_or_default();
            wrong(&format!(": {}", why.trim_start_matches("error: ")))
        })
}

/// A domain name as it can be asked for (RFC 1035, section 3.1).
pub(in crate::config) fn domain_name(key: &Key, _: &Shape, value: &DeValue<'_>) -> Result<String, String> {
    let text = string(key, value)?;
    let printable = text.bytes().all(|byte| byte.is_ascii_graphic());
    if text.is_empty() || !printable || Name::from_ascii(text).is_err() {
        return Err(format!("`{}` is {}", key.name, quoted(text)));
    }
    Ok(text.to_owned())
}

/// A name that a TLS server can be asked for: a host name or an address, without a port.
pub(in crate::config) fn server_name(key: &Key, _: &Shape, value: &DeValue<'_>) -> Result<String, String> {
    let text = string(key, value)?;
    match rustls::pki_types::ServerName::try_from(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(format!("`{}` is {}", key.name, quoted(text))),
    }
}
