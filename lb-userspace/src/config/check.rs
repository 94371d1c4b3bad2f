//! Checks in layers: `[defaults.check]`, `[service.check]`, `[service.backend.check]`.
//!
//! A layer says some keys; the others come from the layer below it and at last from
//! [`Check::built_in`]. A layer that names another `type` than the one below starts with fresh
//! type-specific keys: the path of an HTTP check means nothing to another one.

use std::net::IpAddr;
use std::time::Duration;

use serde::Deserialize;

use super::fault::{At, Report, Reported};
use super::types::{Check, CheckKind, HttpCheck, HttpMethod, StatusRange, StatusSet};
use super::walk::Walk;
use super::{keys, value};

/// The word after `type =`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum CheckType {
    None,
    Tcp,
    Http,
}

impl CheckType {
    /// The type of a check.
    pub fn of(kind: &CheckKind) -> Self {
        match kind {
            CheckKind::None => Self::None,
            CheckKind::Tcp => Self::Tcp,
            CheckKind::Http(_) => Self::Http,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Tcp => "tcp",
            Self::Http => "http",
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
    port: Option<At<u16>>,
    address: Option<At<IpAddr>>,
    method: Option<At<HttpMethod>>,
    path: Option<At<String>>,
    host: Option<At<String>>,
    expect_status: Option<StatusSet>,
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
            layer: own_type.and_then(|own_type| Layer::read(&walk, own_type)),
        }
    }
}

/// Reports keys that a check of the type `check_type` does not have.
fn refuse_foreign_keys(walk: &Walk<'_, '_>, check_type: Option<CheckType>, report: &Report<'_>) {
    let this_type = match check_type {
        Some(CheckType::Http) => return,
        Some(other) => format!("the type of this check is \"{}\"", other.name()),
        None => "this table has no `type`".to_owned(),
    };
    for key in [&keys::METHOD, &keys::PATH, &keys::HOST, &keys::EXPECT_STATUS] {
        if let Some(offset) = walk.place(key) {
            let name = key.name;
            report.fault_with_rest(
                offset,
                format!("`{name}` is for checks of type \"http\", and {this_type}"),
                format!("`type = \"http\"` with it, or no `{name}`"),
            );
        }
    }
}

impl Layer {
    fn read(walk: &Walk<'_, '_>, kind: Option<At<CheckType>>) -> Result<Self, Reported> {
        let interval = walk.maybe(&keys::INTERVAL, value::duration);
        let timeout = walk.maybe(&keys::TIMEOUT, value::duration);
        let fast_interval = walk.maybe(&keys::FAST_INTERVAL, value::duration);
        let fast_timeout = walk.maybe(&keys::FAST_TIMEOUT, value::duration);
        let down_interval = walk.maybe(&keys::DOWN_INTERVAL, value::duration);
        let rise = walk.maybe(&keys::RISE, value::integer);
        let fall = walk.maybe(&keys::FALL, value::integer);
        let jitter_percent = walk.maybe(&keys::JITTER_PERCENT, value::integer);
        let port = walk.maybe(&keys::CHECK_PORT, value::integer);
        let address = walk.maybe(&keys::CHECK_ADDRESS, value::address);
        let method = walk.maybe(&keys::METHOD, value::choice);
        let path = walk.maybe(&keys::PATH, value::http_path);
        let host = walk.maybe(&keys::HOST, value::host);
        let expect_status = walk.list(&keys::EXPECT_STATUS, value::status);
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
            port: port?,
            address: address?,
            method: method?,
            path: path?,
            host: host?,
            expect_status: expect_status?.map(status_set),
        })
    }

    fn type_over(&self, base: &Check) -> CheckType {
        self.kind
            .map_or_else(|| CheckType::of(&base.kind), |kind| kind.value)
    }

    /// `base` with what this layer says.
    pub fn over(&self, base: &Check) -> Check {
        fn or<T: Copy>(own: Option<At<T>>, base: T) -> T {
            own.map_or(base, |at| at.value)
        }
        Check {
            kind: self.kind_over(base),
            interval: or(self.interval, base.interval),
            timeout: or(self.timeout, base.timeout),
            fast_interval: or(self.fast_interval, base.fast_interval),
            fast_timeout: or(self.fast_timeout, base.fast_timeout),
            down_interval: self.down_interval.map(|at| at.value).or(base.down_interval),
            rise: or(self.rise, base.rise),
            fall: or(self.fall, base.fall),
            jitter_percent: or(self.jitter_percent, base.jitter_percent),
            port: self.port.map(|at| at.value).or(base.port),
            address: self.address.map(|at| at.value).or(base.address),
        }
    }

    fn kind_over(&self, base: &Check) -> CheckKind {
        match (self.type_over(base), &base.kind) {
            (CheckType::None, _) => CheckKind::None,
            (CheckType::Tcp, _) => CheckKind::Tcp,
            (CheckType::Http, CheckKind::Http(http)) => CheckKind::Http(self.http_over(http.clone())),
            (CheckType::Http, _) => CheckKind::Http(self.http_over(HttpCheck::default())),
        }
    }

    fn http_over(&self, base: HttpCheck) -> HttpCheck {
        HttpCheck {
            method: self.method.map_or(base.method, |at| at.value),
            path: self.path.as_ref().map_or(base.path, |at| at.value.clone()),
            host: self.host.as_ref().map(|at| at.value.clone()).or(base.host),
            expect_status: self
                .expect_status
                .as_ref()
                .map_or(base.expect_status, StatusSet::clone),
        }
    }
}

fn status_set(items: Vec<At<StatusRange>>) -> StatusSet {
    StatusSet(items.into_iter().map(|at| at.value).collect())
}

/// Reports what does not fit together in `check`, which `layers` (the strongest first) have made.
///
/// Probes of one backend never overlap, so a `timeout` longer than the `interval` would silently
/// stretch the interval. `fast_timeout` may be longer than `fast_interval`: a backend that refuses is
/// then found out fast, and one that is silent still has the time to answer.
pub(super) fn refuse_misfits(check: &Check, layers: &[&Layer], report: &Report<'_>) {
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

/// The place of the first of some keys in the strongest layer that has one.
fn first(layers: &[&Layer], keys: impl Fn(&Layer) -> [Option<At<Duration>>; 2]) -> Option<usize> {
    layers
        .iter()
        .find_map(|layer| keys(layer).into_iter().flatten().next())
        .map(|at| at.offset)
}
