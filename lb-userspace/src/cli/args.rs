//! Arguments that are more than a string.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use ipnet::IpNet;

use crate::api::types::WeightOrder;

/// `ADDRESS[:PORT]` of a backend: `10.0.1.11`, `10.0.1.11:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub address: IpAddr,
    pub port: Option<u16>,
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bare = text
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .map_or_else(|| text.parse(), |inner| inner.parse().map(IpAddr::V6));
        if let Ok(address) = bare {
            return Ok(Self { address, port: None });
        }
        text.parse::<SocketAddr>()
            .map(|place| Self {
                address: place.ip(),
                port: Some(place.port()),
            })
            .map_err(|_| {
                "expected ADDRESS or ADDRESS:PORT, an IPv6 address with port in brackets: [2001:db8::1]:80"
                    .into()
            })
    }
}

/// `N`, `N%` or `default`.
pub(super) fn weight(text: &str) -> Result<WeightOrder, String> {
    let number = |digits: &str| digits.parse::<u16>().ok().filter(|_| !digits.starts_with('+'));
    let order = match (text, text.strip_suffix('%')) {
        ("default", _) => Some(WeightOrder::Default),
        (_, Some(percent)) => number(percent).map(WeightOrder::Percent),
        _ => number(text).map(WeightOrder::Absolute),
    };
    order
        .ok_or_else(|| "expected 0 to 65535, a percentage of the weight in the file (50%), or default".into())
}

/// An address or a network in CIDR notation.
pub(super) fn prefix(text: &str) -> Result<IpNet, String> {
    text.parse()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| "expected an address (10.0.0.1) or a prefix (10.0.0.0/24)".into())
}

/// Seconds, from a tenth to an hour.
pub(super) fn seconds(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|seconds| (0.1..=3600.0).contains(seconds))
        .ok_or_else(|| "expected seconds from 0.1 to 3600".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_are_named_with_and_without_port() {
        let place = |text: &str| text.parse::<Place>().map(|p| (p.address.to_string(), p.port));
        let expected = |address: &str, port| Ok((address.to_owned(), port));
        assert_eq!(place("10.0.1.11"), expected("10.0.1.11", None));
        assert_eq!(place("10.0.1.11:80"), expected("10.0.1.11", Some(80)));
        assert_eq!(place("2001:db8::1"), expected("2001:db8::1", None));
        assert_eq!(place("[2001:db8::1]"), expected("2001:db8::1", None));
        assert_eq!(place("[2001:db8::1]:80"), expected("2001:db8::1", Some(80)));
        for wrong in [
            "",
            "web",
            "10.0.1",
            "10.0.1.11:",
            "10.0.1.11:65536",
            "[10.0.1.11]:80",
            "[::1",
            "10.0.1.11:80:90",
        ] {
            assert!(place(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn weights_are_absolute_relative_or_the_files() {
        assert_eq!(weight("0"), Ok(WeightOrder::Absolute(0)));
        assert_eq!(weight("65535"), Ok(WeightOrder::Absolute(65535)));
        assert_eq!(weight("50%"), Ok(WeightOrder::Percent(50)));
        assert_eq!(weight("default"), Ok(WeightOrder::Default));
        for wrong in ["", "65536", "-1", "+1", "%", "1.5", "50 %", "Default"] {
            assert!(weight(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn prefixes_may_be_addresses() {
        assert_eq!(prefix("10.0.0.1").unwrap().to_string(), "10.0.0.1/32");
        assert_eq!(prefix("2001:db8::/32").unwrap().to_string(), "2001:db8::/32");
        assert!(prefix("10.0.0.0/33").is_err() && prefix("").is_err());
    }

    #[test]
    fn intervals_are_within_reason() {
        assert_eq!(seconds("0.5"), Ok(0.5));
        for wrong in ["0", "-1", "NaN", "inf", "3601", "1s"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
