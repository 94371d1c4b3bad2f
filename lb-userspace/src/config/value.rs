//! Readers of single values: from what TOML holds to what the configuration holds.
//!
//! Each takes its bounds from the key's [`Shape`] and says only what is wrong; what would be right is
//! [`Shape::expected`]. No message repeats a secret.

mod check;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::{Error as DeError, StrDeserializer};
use toml::de::{DeInteger, DeValue};

use super::keys::Key;
use super::nearest;
use super::shape::Shape;
use super::types::{HashKey, StatusRange, Witness};

pub(super) use check::{domain_name, header, payload, regex, server_name, text};

/// Below, a probe would be a busy loop.
pub const DURATION_MIN: Duration = Duration::from_millis(1);
/// Above, a number is a mistake rather than a wish.
pub const DURATION_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// The statuses HTTP knows (RFC 9110 section 15).
const STATUS_MIN: u16 = 100;
const STATUS_MAX: u16 = 599;

/// Reads a value, or says what is wrong with it.
pub(super) type Reader<T> = fn(&Key, &Shape, &DeValue<'_>) -> Result<T, String>;

/// What kind of value it is, for people.
pub(super) fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a floating-point number",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date or a time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// What is wrong with a value of the wrong kind.
pub(super) fn wrong_kind(key: &Key, value: &DeValue<'_>) -> String {
    format!("`{}` is {}", key.name, kind(value))
}

/// Text from the file as it may stand in a message: one line, and not too long.
pub(super) fn quoted(text: &str) -> String {
    const SHOWN_CHARACTERS: usize = 64;
    let mut shown: String = text.chars().take(SHOWN_CHARACTERS).collect();
    if shown.len() < text.len() {
        shown.push_str("...");
    }
    format!("{shown:?}")
}

/// An integer within the shape's bounds.
pub(super) fn integer<T: TryFrom<i64>>(key: &Key, shape: &Shape, value: &DeValue<'_>) -> Result<T, String> {
    let DeValue::Integer(integer) = value else {
        return Err(wrong_kind(key, value));
    };
    let number = number(integer);
    let allowed = |number: &i64| match shape {
        Shape::Integer { min, max } => (min..=max).contains(&number),
        Shape::OneOf(values) => values.iter().any(|&value| i64::from(value) == *number),
        _ => true,
    };
    number
        .filter(allowed)
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| match number {
            Some(number) => format!("`{}` is {number}", key.name),
            None => format!("`{}` is a number that does not fit 64 bits", key.name),
        })
}

fn number(integer: &DeInteger<'_>) -> Option<i64> {
    i64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

/// True or false.
pub(super) fn boolean(key: &Key, _: &Shape, value: &DeValue<'_>) -> Result<bool, String> {
    match value {
        DeValue::Boolean(boolean) => Ok(*boolean),
        _ => Err(wrong_kind(key, value)),
    }
}

/// Any string.
fn string<'v>(key: &Key, value: &'v DeValue<'_>) -> Result<&'v str, String> {
    value.as_str().ok_or_else(|| wrong_kind(key, value))
}

/// One of the words of a [`Shape::Choice`].
pub(super) fn choice<T: for<'de> Deserialize<'de>>(
    key: &Key,
    shape: &Shape,
    value: &DeValue<'_>,
) -> Result<T, String> {
    let text = string(key, value)?;
    let wrong = || format!("`{}` is {}", key.name, quoted(text));
    let Shape::Choice { built, planned } = shape else {
        return Err(wrong());
    };
    if planned.contains(&text) {
        return Err(format!("`{} = \"{text}\"` is not built yet", key.name));
    }
    if !built.contains(&text) {
        return Err(match nearest::nearest(text, built.iter().copied()) {
            Some(word) => format!("{}, did you mean \"{word}\"?", wrong()),
            None => wrong(),
        });
    }
    let deserializer: StrDeserializer<'_, DeError> = text.into_deserializer();
    T::deserialize(deserializer).map_err(|_| wrong())
}

/// A duration with its unit.
pub(super) fn duration(key: &Key, _: &Shape, value: &DeValue<'_>) -> Result<Duration, String> {
    let text = string(key, value)?;
    let duration = humantime::parse_duration(text)
        .map_err(|error| format!("`{}` is {}: {error}", key.name, quoted(text)))?;
    if (DURATION_MIN..=DURATION_MAX).contains(&duration) {
        Ok(duration)
    } else {
        Err(format!("`{}` is {}", key.name, quoted(text)))
    }
}

/// An address that one host can have. Where it may be used is checked by who uses it.
pub(super) fn address(key: &Key, _: &Shape, value: &DeValue<'_>) -> Result<IpAddr, String> {
    let text = string(key, value)?;
    let address: IpAddr = text
        .parse()
        .map_err(|_| format!("`{}` is {}", key.name, quoted(text)))?;
    let wrong = |what: &str| format!("`{}` is {text}, {what}", key.name);
    if address.is_unspecified() {
        return Err(wrong("the unspecified address"));
    }
    if address.is_multicast() {
        return Err(wrong("a multicast address"));
    }
    match address {
        IpAddr::V4(v4) if v4.is_broadcast() => Err(wrong("the broadcast address")),
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            Err(wrong("an IPv4-mapped address: write the IPv4 address itself"))
        }
        _ => Ok(address),
    }
}

/// An address to listen at, with a port that clients can know.
pub(super) fn listen(key: &Key, _: &Shape, value: &DeValue<'_>) -> Result<SocketAddr, String> {
    let text = string(key, value)?;
    let address = text.parse().ok();
    address
        .filter(|address: &SocketAddr| address.port() != 0)
        .ok_or_else(|| format!("`{}` is {}", key.name, quoted(text)))
}

/// A range of ports.
pub(super) fn ports(key: &Key, _: &Shape, value: &DeValue<'_>) -> Result<(u16, u16), String> {
    let text = string(key, value)?;
    let range = text
        .split_once('-')
        .and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
    range
        .filter(|(first, last)| *first > 0 && first <= last)
        .ok_or_else(|| format!("`{}` is {}", key.name, quoted(text)))
}

/// The port of a service: the first, and where there are several the last. 0: all of them.
pub(super) fn service_port(
    key: &Key,
    shape: &Shape,
    value: &DeValue<'_>,
) -> Result<(u16, Option<u16>), String> {
    if matches!(value, DeValue::Integer(_)) {
        let one = Shape::Integer {
            min: 0,
            max: u16::MAX.into(),
        };
        return integer(key, &one, value).map(|port| (port, None));
    }
    let (first, last) = ports(key, shape, value)?;
    Ok((first, (last > first).then_some(last)))
}

/// An address that packets from the network can be sent to.
pub(super) fn routable_address(key: &Key, shape: &Shape, value: &DeValue<'_>) -> Result<IpAddr, String> {
    let address = address(key, shape, value)?;
    let wrong = |what: &str| format!("`{}` is {address}, {what}", key.name);
    if address.is_loopback() {
        return Err(wrong(
            "a loopback address: packets from the network cannot reach it",
        ));
    }
    match address {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Err(wrong(
            "a link-local address: it means nothing without an interface",
        )),
        _ => Ok(address),
    }
}

/// Who is asked whether we are connected.
pub(super) fn witness(key: &Key, shape: &Shape, value: &DeValue<'_>) -> Result<Witness, String> {
    match string(key, value)? {
        "gateway" => return Ok(Witness::Gateway),
        "none" => return Ok(Witness::None),
        text => {
            if let Ok(place) = text.parse::<SocketAddr>() {
                return match place.port() {
                    0 => Err(format!("`{}` is {text}, whose port is 0", key.name)),
                    _ => Ok(Witness::Port(place)),
                };
            }
        }
    }
    routable_address(key, shape, value).map(Witness::Host)
}

/// An absolute path other than `/`.
pub(super) fn path(key: &Key, shape: &Shape, value: &DeValue<'_>) -> Result<PathBuf, String> {
    let text = string(key, value)?;
    let wrong = |what: &str| Err(format!("`{}` is {}, {what}", key.name, quoted(text)));
    if !text.starts_with('/') {
        return wrong("a relative path");
    }
    if text.contains('\0') {
        return wrong("which contains a zero byte");
    }
    if PathBuf::from(text).components().count() < 2 {
        return wrong("the root of the file system");
    }
    match shape {
        Shape::Path { max_bytes } if text.len() > *max_bytes => wrong(&format!("{} bytes long", text.len())),
        _ => Ok(PathBuf::from(text)),
    }
}

/// The name of a service.
pub(super) fn name(key: &Key, _: &Shape, value: &DeValue<'_>) -> Result<String, String> {
    let text = string(key, value)?;
    let starts_well = text.starts_with(|first: char| first.is_ascii_alphanumeric());
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if starts_well && text.len() <= 63 && text.bytes().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err(format!("`{}` is {}", key.name, quoted(text)))
    }
}

/// The name of a network interface (`dev_valid_name` of the kernel).
pub(super) fn interface(key: &Key, _: &Shape, value: &DeValue<'_>) -> Result<String, String> {
    let text = string(key, value)?;
    let forbidden = |character: char| {
        character == '/' || character == ':' || character.is_whitespace() || character.is_control()
    };
    if text.is_empty() || text.len() > 15 || text == "." || text == ".." || text.contains(forbidden) {
        return Err(format!("an item of `{}` is {}", key.name, quoted(text)));
    }
    Ok(text.to_owned())
}

/// The secret of the flow hash.
pub(super) fn hash_key(key: &Key, _: &Shape, value: &DeValue<'_>) -> Result<HashKey, String> {
    let text = string(key, value)?;
    if let Some(index) = text.chars().position(|character| !character.is_ascii_hexdigit()) {
        return Err(format!(
            "character {} of `{}` is no hexadecimal digit",
            index + 1,
            key.name
        ));
    }
    // Only ASCII from here on: a byte is a character.
    let mut bytes = [0; HashKey::BYTES];
    if text.len() != 2 * bytes.len() {
        return Err(format!("`{}` has {} digits", key.name, text.len()));
    }
    for (byte, index) in bytes.iter_mut().zip((0..text.len()).step_by(2)) {
        *byte = u8::from_str_radix(&text[index..index + 2], 16)
            .map_err(|_| format!("`{}` is not hexadecimal", key.name))?;
    }
    if bytes == [0; HashKey::BYTES] {
        return Err(format!("`{}` is all zero, which is no secret", key.name));
    }
    Ok(HashKey(bytes))
}

/// The path and query of an HTTP request (RFC 9112 section 3.2.1), safe to put into its first line.
pub(super) fn http_path(key: &Key, _: &Shape, value: &DeValue<'_>) -> Result<String, String> {
    let text = string(key, value)?;
    let printable = text.bytes().all(|byte| byte.is_ascii_graphic());
    if text.starts_with('/') && printable && text.len() <= 2048 {
        Ok(text.to_owned())
    } else {
        Err(format!("`{}` is {}", key.name, quoted(text)))
    }
}

/// A Host header (RFC 9110 section 7.2).
pub(super) fn host(key: &Key, _: &Shape, value: &DeValue<'_>) -> Result<String, String> {
    let text = string(key, value)?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:[]".contains(&byte);
    if !text.is_empty() && text.len() <= 259 && text.bytes().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err(format!("`{}` is {}", key.name, quoted(text)))
    }
}

/// A status or a range of them.
pub(super) fn status(key: &Key, _: &Shape, value: &DeValue<'_>) -> Result<StatusRange, String> {
    let within = |status: i64| {
        u16::try_from(status)
            .ok()
            .filter(|status| (STATUS_MIN..=STATUS_MAX).contains(status))
    };
    let (range, shown) = match value {
        DeValue::Integer(integer) => {
            let status = number(integer).and_then(within);
            (
                status.map(|status| StatusRange {
                    first: status,
                    last: status,
                }),
                integer.as_str().to_owned(),
            )
        }
        DeValue::String(text) => (status_range(text, within), quoted(text)),
        _ => return Err(wrong_kind(key, value)),
    };
    range.ok_or_else(|| format!("an item of `{}` is {shown}", key.name))
}

fn status_range(text: &str, within: impl Fn(i64) -> Option<u16>) -> Option<StatusRange> {
    let (first, last) = text.split_once('-')?;
    let digits = |text: &str| text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(first) || !digits(last) {
        return None;
    }
    let first = within(first.parse().ok()?)?;
    let last = within(last.parse().ok()?)?;
    (first <= last).then_some(StatusRange { first, last })
}
