//! Checks in layers: `[defaults.check]`, `[service.check]`, `[service.backend.check]`.
//!
//! A layer says some keys; the others come from the layer below it and at last from
//! [`Check::built_in`]. A layer that names another `type` than the one below starts with fresh
//! type-specific keys: the path of an HTTP check means nothing to another one. The tables `[[check.also]]` of a
//! layer stand in place of those below it.

mod specific;
mod via;

use std::net::IpAddr;
use std::time::Duration;

use serde::Deserialize;

use self::specific::{Specific, misfit};
pub(super) use self::via::{refuse_misplaced_via, settle_via};
use super::fault::{At, Report, Reported};
use super::types::{
    Check, CheckKind, DnsCheck, ExecCheck, GrpcCheck, HttpCheck, Probe, Require, TlsCheck, UdpCheck, Via,
};
use super::walk::Walk;
use super::{keys, value};

/// The word after `type =`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum CheckType {
    None,
    Tcp,
    Http,
    Https,
    Udp,
    Dns,
    Icmp,
    Grpc,
    Exec,
}

impl CheckType {
    /// The type of a check.
    pub fn of(kind: &CheckKind) -> Self {
        match kind {
            CheckKind::None => Self::None,
            CheckKind::Tcp => Self::Tcp,
            CheckKind::Http(_) => Self::Http,
            CheckKind::Https(..) => Self::Https,
            CheckKind::Udp(_) => Self::Udp,
            CheckKind::Dns(_) => Self::Dns,
            CheckKind::Icmp => Self::Icmp,
            CheckKind::Grpc(_) => Self::Grpc,
            CheckKind::Exec(_) => Self::Exec,
        }
    }

    /// A check of this type whose keys are all absent.
    fn fresh(self) -> CheckKind {
        match self {
            Self::None => CheckKind::None,
            Self::Tcp => CheckKind::Tcp,
            Self::Http => CheckKind::Http(HttpCheck::default()),
            Self::Https => CheckKind::Https(HttpCheck::default(), TlsCheck::default()),
            Self::Udp => CheckKind::Udp(UdpCheck::default()),
            Self::Dns => CheckKind::Dns(DnsCheck::default()),
            Self::Icmp => CheckKind::Icmp,
            Self::Grpc => CheckKind::Grpc(GrpcCheck::default()),
            Self::Exec => CheckKind::Exec(ExecCheck::default()),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Tcp => "tcp",
            Self::Http => "http",
            Self::Https => "https",
            Self::Udp => "udp",
            Self::Dns => "dns",
            Self::Icmp => "icmp",
            Self::Grpc => "grpc",
            Self::Exec => "exec",
        }
    }
}

/// What one table says about checks.
#[derive(Debug, Default)]
pub(super) struct Layer {
    pub kind: Option<At<CheckType>>,
    interval: Option<At<Duration>>,
    timeout: Option<At<Duration>>,
    fast_interval: Option<At<Duration>>,
    fast_timeout: Option<At<Duration>>,
    down_interval: Option<At<Duration>>,
    rise: Option<At<u32>>,
    fall: Option<At<u32>>,
    jitter_percent: Option<At<u8>>,
    passive: Option<At<bool>>,
    require: Option<At<Require>>,
    specific: Specific,
    also: Option<Vec<Also>>,
}

/// A table `[[check.also]]`.
#[derive(Debug)]
struct Also {
    kind: At<CheckType>,
    specific: Specific,
}

/// A layer as read, and the type of check it leads to: known even where other keys are faulty.
#[derive(Debug)]
pub(super) struct LayerRead {
    /// `None`: neither this layer nor those below it say one.
    pub check_type: Result<Option<CheckType>, Reported>,
    pub layer: Result<Layer, Reported>,
}

impl LayerRead {
    /// Reads the check table in `parent`, where there is one, over layers that lead to `base_type`.
    pub fn of(
        parent: &Walk<'_, '_>,
        base_type: Result<Option<CheckType>, Reported>,
        report: &Report<'_>,
    ) -> Self {
        let walk = match parent.table(&keys::CHECK_TABLE) {
            Ok(Some(walk)) => walk,
            Ok(None) => {
                return Self {
                    check_type: base_type,
                    layer: Ok(Layer::default()),
                };
            }
            Err(reported) => {
                return Self {
                    check_type: Err(reported),
                    layer: Err(reported),
                };
            }
        };
        let own_type = walk.maybe(&keys::TYPE, value::choice);
        let check_type = own_type.and_then(|own| match own {
            Some(own) => Ok(Some(own.value)),
            None => base_type,
        });
        if let Ok(check_type) = check_type {
            refuse_foreign_keys(&walk, check_type, report);
        }
        Self {
            check_type,
            layer: own_type.and_then(|own_type| Layer::read(&walk, own_type, report)),
        }
    }
}

/// Reports keys that a check of the type `check_type` does not have.
fn refuse_foreign_keys(walk: &Walk<'_, '_>, check_type: Option<CheckType>, report: &Report<'_>) {
    let this_type = match check_type {
        Some(own) => format!("the type of this check is \"{}\"", own.name()),
        None => "this table has no `type`".to_owned(),
    };
    for (key, types) in keys::SPECIFIC {
        if check_type.is_some_and(|own| types.contains(&own.name())) {
            continue;
        }
        if let Some(offset) = walk.place(key) {
            let name = key.name;
            let types: Vec<_> = types.iter().map(|name| format!("\"{name}\"")).collect();
            let types = types.join(" or ");
            report.fault_with_rest(
                offset,
                format!("`{name}` is for checks of type {types}, and {this_type}"),
                format!("`type = {types}` with it, or no `{name}`"),
            );
        }
    }
}

impl Also {
    fn read(walk: &Walk<'_, '_>, report: &Report<'_>) -> Result<Self, Reported> {
        let kind = walk.need(&keys::ALSO_TYPE, value::choice);
        if let Ok(kind) = kind {
            refuse_foreign_keys(walk, Some(kind.value), report);
        }
        let specific = Specific::read(walk, report);
        Ok(Self {
            kind: kind?,
            specific: specific?,
        })
    }

    fn probe(&self) -> Probe {
        let base = Probe {
            kind: self.kind.value.fresh(),
            port: None,
            address: None,
            source: None,
            via: Via::Auto,
        };
        self.specific.over(self.kind.value, &base)
    }
}

impl Layer {
    fn read(walk: &Walk<'_, '_>, kind: Option<At<CheckType>>, report: &Report<'_>) -> Result<Self, Reported> {
        let interval = walk.maybe(&keys::INTERVAL, value::duration);
        let timeout = walk.maybe(&keys::TIMEOUT, value::duration);
        let fast_interval = walk.maybe(&keys::FAST_INTERVAL, value::duration);
        let fast_timeout = walk.maybe(&keys::FAST_TIMEOUT, value::duration);
        let down_interval = walk.maybe(&keys::DOWN_INTERVAL, value::duration);
        let rise = walk.maybe(&keys::RISE, value::integer);
        let fall = walk.maybe(&keys::FALL, value::integer);
        let jitter_percent = walk.maybe(&keys::JITTER_PERCENT, value::integer);
        let passive = walk.maybe(&keys::PASSIVE, value::boolean);
        let require = walk.maybe(&keys::REQUIRE, value::choice);
        let specific = Specific::read(walk, report);
        let also = Self::read_also(walk, report);
        Ok(Self {
            kind,
            interval: interval?,
            timeout: timeout?,
            fast_interval: fast_interval?,
            fast_timeout: fast_timeout?,
            down_interval: down_interval?,
            rise: rise?,
            fall: fall?,
            jitter_percent: jitter_percent?,
            passive: passive?,
            require: require?,
            specific: specific?,
            also: also?,
        })
    }

    fn read_also(walk: &Walk<'_, '_>, report: &Report<'_>) -> Result<Option<Vec<Also>>, Reported> {
        if walk.place(&keys::ALSO_TABLES).is_none() {
            return Ok(None);
        }
        let tables = walk.tables(&keys::ALSO_TABLES)?.into_iter();
        let read: Vec<_> = tables.map(|walk| Also::read(&walk?, report)).collect();
        read.into_iter().collect::<Result<_, _>>().map(Some)
    }

    /// `base` with what this layer says.
    pub fn over(&self, base: &Check) -> Check {
        fn or<T: Copy>(own: Option<At<T>>, base: T) -> T {
            own.map_or(base, |at| at.value)
        }
        let probe = Probe {
            kind: base.kind.clone(),
            port: base.port,
            address: base.address,
            source: base.source,
            via: base.via,
        };
        let check_type = or(self.kind, CheckType::of(&base.kind));
        let Probe {
            kind,
            port,
            address,
            source,
            via,
        } = self.specific.over(check_type, &probe);
        Check {
            kind,
            interval: or(self.interval, base.interval),
            timeout: or(self.timeout, base.timeout),
            fast_interval: or(self.fast_interval, base.fast_interval),
            fast_timeout: or(self.fast_timeout, base.fast_timeout),
            down_interval: self.down_interval.map(|at| at.value).or(base.down_interval),
            rise: or(self.rise, base.rise),
            fall: or(self.fall, base.fall),
            jitter_percent: or(self.jitter_percent, base.jitter_percent),
            passive: or(self.passive, base.passive),
            port,
            address,
            source,
            via,
            also: match &self.also {
                Some(also) => also.iter().map(Also::probe).collect(),
                None => base.also.clone(),
            },
            require: or(self.require, base.require),
        }
    }
}

/// Reports what does not fit the backend at `address` in its `check`, which `layers` (the strongest first) have made.
pub(super) fn refuse_foreign_source(check: &Check, layers: &[&Layer], address: IpAddr, report: &Report<'_>) {
    let own = |layer: &&Layer| layer.specific.source;
    let also = layers.iter().find_map(|layer| layer.also.as_ref());
    let sources = also.into_iter().flatten().map(|also| also.specific.source);
    let places = [layers.iter().find_map(own)].into_iter().chain(sources);
    let probes = check
        .also
        .iter()
        .map(|probe| (probe.via, probe.address, probe.source));
    let probes = [(check.via, check.address, check.source)]
        .into_iter()
        .chain(probes);
    for ((via, probed, source), place) in probes.zip(places) {
        // It asks the service address, which may be of another family.
        if via == Via::Forward {
            continue;
        }
        let probed = probed.unwrap_or(address);
        let (Some(source), Some(place)) = (source, place) else {
            continue;
        };
        if source.is_ipv4() != probed.is_ipv4() {
            report.fault_with_rest(
                place.offset,
                format!("probes of {probed} cannot come from {source}"),
                "two addresses of one family",
            );
        }
    }
}

/// Reports what does not fit together in `check`, which `layers` (the strongest first) have made.
///
/// Probes of one backend never overlap, so a `timeout` longer than the `interval` would silently
/// stretch the interval. `fast_timeout` may be longer than `fast_interval`: a backend that refuses is
/// then found out fast, and one that is silent still has the time to answer.
pub(super) fn refuse_misfits(check: &Check, layers: &[&Layer], report: &Report<'_>) {
    refuse_incomplete(check, layers, report);
    let intervals = [
        (
            keys::INTERVAL.name,
            Some(check.interval),
            first(layers, |layer| [layer.timeout, layer.interval]),
        ),
        (
            keys::DOWN_INTERVAL.name,
            check.down_interval,
            first(layers, |layer| [layer.timeout, layer.down_interval]),
        ),
    ];
    for (name, interval, offset) in intervals {
        let (Some(interval), Some(offset)) = (interval, offset) else {
            continue;
        };
        if check.timeout > interval {
            let timeout = humantime::format_duration(check.timeout);
            let interval = humantime::format_duration(interval);
            report.fault_with_rest(
                offset,
                format!("`timeout` ({timeout}) is longer than `{name}` ({interval}): probes would overlap"),
                format!("`timeout` to be at most `{name}`"),
            );
        }
    }
}

/// Reports probes that lack something.
fn refuse_incomplete(check: &Check, layers: &[&Layer], report: &Report<'_>) {
    let own = layers.iter().find_map(|layer| layer.kind);
    let also = layers.iter().find_map(|layer| layer.also.as_ref());
    let also_offsets = also.into_iter().flatten().map(|also| Some(also.kind.offset));
    let offsets = [own.map(|kind| kind.offset)].into_iter().chain(also_offsets);
    let kinds = [&check.kind]
        .into_iter()
        .chain(check.also.iter().map(|probe| &probe.kind));
    for (kind, offset) in kinds.zip(offsets) {
        if let (Some((message, expected)), Some(offset)) = (misfit(kind), offset) {
            report.fault_with_rest(offset, message, expected);
        }
    }
    if let (CheckKind::None, Some(first)) = (&check.kind, also.and_then(|also| also.first())) {
        report.fault_with_rest(
            first.kind.offset,
            "the check beside it has the type \"none\"",
            "another type there, or no [[check.also]]",
        );
    }
}

/// The place of the first of some keys in the strongest layer that has one.
fn first(layers: &[&Layer], keys: impl Fn(&Layer) -> [Option<At<Duration>>; 2]) -> Option<usize> {
    layers
        .iter()
        .find_map(|layer| keys(layer).into_iter().flatten().next())
        .map(|at| at.offset)
}
