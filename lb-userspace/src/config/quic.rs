//! QUIC: whether a service's datagrams are, and the ids that say which backend a connection has.

use std::collections::HashMap;

use lb_common::quic::{CONFIGS, MAX_SERVER_ID};
use toml::de::DeValue;

use super::fault::{At, Report, Reported};
use super::keys::{self, Key};
use super::shape::Shape;
use super::types::{QuicId, Service};
use super::value::{self, quoted, wrong_kind};
use super::walk::Walk;
use crate::model::Protocol;

/// Ids of one backend: two of each configuration while one takes the place of another. The map of the program has room
/// for so many of each backend.
pub const MAX_IDS: usize = 4;

/// `CONFIG:ID`, the id in hexadecimal.
fn id(key: &Key, _: &Shape, value: &DeValue<'_>) -> Result<QuicId, String> {
    let text = value.as_str().ok_or_else(|| wrong_kind(key, value))?;
    let wrong = |what: &str| format!("an item of `{}` is {}{what}", key.name, quoted(text));
    let (config, digits) = text.split_once(':').ok_or_else(|| wrong(""))?;
    let config: u8 = config.parse().map_err(|_| wrong(""))?;
    if usize::from(config) >= CONFIGS {
        return Err(wrong(": there are the configurations 0 to 6"));
    }
    let digit = |byte: &u8| char::from(*byte).to_digit(16).map(|digit| digit as u8);
    let digits: Option<Vec<u8>> = digits.as_bytes().iter().map(digit).collect();
    let digits = digits
        .filter(|digits| !digits.is_empty() && digits.len().is_multiple_of(2))
        .ok_or_else(|| wrong(""))?;
    let bytes: Vec<u8> = digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    QuicId::new(config, &bytes).ok_or_else(|| wrong(&format!(", which has {} bytes", bytes.len())))
}

/// Whether a service says that its datagrams are QUIC.
pub(super) fn read(
    walk: &Walk<'_, '_>,
    protocol: &Result<At<Protocol>, Reported>,
    report: &Report<'_>,
) -> Result<bool, Reported> {
    let quic = walk.maybe(&keys::QUIC, value::boolean)?;
    if let (Some(quic), Ok(protocol)) = (quic, protocol)
        && quic.value
        && protocol.value != Protocol::Udp
    {
        return Err(report.fault_with_rest(
            quic.offset,
            format!(
                "`quic` is for `protocol = \"udp\"`, and `protocol` is \"{}\"",
                protocol.value
            ),
            "no `quic`",
        ));
    }
    Ok(quic.is_some_and(|quic| quic.value))
}

/// The ids of the backends of one service.
#[derive(Debug, Default)]
pub(super) struct Ids {
    /// Where each was first seen.
    seen: HashMap<QuicId, usize>,
    /// Length, and where the first of them was seen, by configuration.
    lengths: [Option<(u8, usize)>; CONFIGS],
}

impl Ids {
    /// The ids of one backend. `quic`: some service of these backends has `quic = true`.
    pub fn read(
        &mut self,
        walk: &Walk<'_, '_>,
        quic: Result<bool, Reported>,
        report: &Report<'_>,
    ) -> Result<Vec<QuicId>, Reported> {
        let Some(ids) = walk.list(&keys::QUIC_IDS, id)? else {
            return Ok(Vec::new());
        };
        let place = walk.place(&keys::QUIC_IDS).unwrap_or(walk.offset);
        if !quic? {
            return Err(report.fault_with_rest(
                place,
                "`quic_ids` without QUIC: no service with these backends has `quic = true`",
                "`quic = true` in the service, or no `quic_ids`",
            ));
        }
        if ids.len() > MAX_IDS {
            return Err(report.fault_with_rest(
                place,
                format!("the backend has {} QUIC ids", ids.len()),
                format!("at most {MAX_IDS}"),
            ));
        }
        let judged: Vec<_> = ids.iter().map(|id| self.judge(id, report)).collect();
        judged.into_iter().collect::<Result<(), _>>()?;
        Ok(ids.into_iter().map(|id| id.value).collect())
    }

    fn judge(&mut self, id: &At<QuicId>, report: &Report<'_>) -> Result<(), Reported> {
        let At { value, offset } = *id;
        let first = *self.seen.entry(value).or_insert(offset);
        if first != offset {
            return Err(report.fault(
                offset,
                format!("the QUIC id of line {} is {value} too", report.line(first)),
                "each id once in a service",
            ));
        }
        let (length, first) = *self.lengths[usize::from(value.config)].get_or_insert((value.length, offset));
        if length != value.length {
            return Err(report.fault_with_rest(
                offset,
                format!(
                    "the QUIC id {value} has {} bytes, that of line {} of the same configuration {length}",
                    value.length,
                    report.line(first),
                ),
                "ids of one length in each configuration",
            ));
        }
        Ok(())
    }
}

/// What is worth saying of a service that is valid.
pub(super) fn warning(service: &Service) -> Option<String> {
    let without = service.backends.iter().filter(|backend| backend.in_pool());
    let (all, without) = without.fold((0, 0), |(all, without), backend| {
        (all + 1, without + usize::from(backend.quic_ids.is_empty()))
    });
    (service.quic && without > 0 && without < all).then(|| {
        format!(
            "service {}: {without} of {all} backends have no `quic_ids`: their connections end when the client's \
             address changes",
            service.name
        )
    })
}

/// What [`id`] expects, for people.
pub(super) fn expected() -> String {
    format!(
        "a configuration from 0 to {} and an id of 1 to {MAX_SERVER_ID} bytes in hexadecimal, such as \"0:a1b2\"",
        CONFIGS - 1
    )
}
