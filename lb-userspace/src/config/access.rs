//! Access lists: reading the prefixes of a service, and the rules between them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use toml::de::DeValue;

use super::fault::{Report, Reported};
use super::keys::{self, Key};
use super::shape::Shape;
use super::types::{Access, AccessList};
use super::value::{quoted, wrong_kind};
use super::walk::Walk;

/// Prefixes of one service, `allow` and `deny` together. In the kernel each takes at most 192 bytes.
pub const MAX_PREFIXES: usize = 1 << 20;

/// A prefix, or an address that stands for itself alone.
pub(super) fn prefix(key: &Key, _: &Shape, value: &DeValue<'_>) -> Result<IpNet, String> {
    let text = value.as_str().ok_or_else(|| wrong_kind(key, value))?;
    let wrong = |what: &str| format!("an item of `{}` is {}{what}", key.name, quoted(text));
    let parsed: Result<IpNet, _> = match text.contains('/') {
        true => text.parse().map_err(|_| wrong("")),
        false => text.parse::<IpAddr>().map(IpNet::from).map_err(|_| wrong("")),
    };
    let prefix = parsed?;
    if prefix.trunc() == prefix {
        Ok(prefix)
    } else {
        let network = prefix.trunc();
        Err(wrong(&format!(", which has bits beyond its length: {network}?")))
    }
}

/// The list of a service at `address`; none where it names no prefixes.
pub(super) fn read(
    walk: &Walk<'_, '_>,
    address: Result<IpAddr, Reported>,
    report: &Report<'_>,
) -> Result<Option<AccessList>, Reported> {
    let allow = walk.list(&keys::ALLOW, prefix);
    let deny = walk.list(&keys::DENY, prefix);
    let (allow, deny) = (allow?, deny?);
    if allow.is_none() && deny.is_none() {
        return Ok(None);
    }
    let address = address?;
    let mut prefixes = BTreeMap::new();
    let mut result = Ok(());
    let named = [(allow, Access::Allow), (deny, Access::Deny)];
    for (list, access) in named {
        for at in list.into_iter().flatten() {
            let prefix = at.value;
            if prefix.addr().is_ipv4() != address.is_ipv4() {
                let message = format!("{prefix} is of another address family than the service, {address}");
                result =
                    Err(report.fault_with_rest(at.offset, message, "prefixes that its clients can have"));
            } else if prefixes.insert(prefix, access).is_some() {
                let message = format!("{prefix} is named twice");
                result = Err(report.fault(at.offset, message, "each prefix once, in `allow` or in `deny`"));
            } else if prefixes.len() == MAX_PREFIXES + 1 {
                let message = "the access list of the service is too long";
                let most = format!("at most {MAX_PREFIXES} prefixes");
                result = Err(report.fault(at.offset, message, most));
            }
        }
    }
    result.map(|()| Some(AccessList::new(prefixes)))
}
