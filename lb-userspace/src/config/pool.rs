//! What a service says of its backends as a whole, in layers: `[defaults]`, `[[service]]`. What no layer says is
//! [`PoolRules::default`].

use std::time::Duration;

use super::fault::{At, Reported};
use super::keys;
use super::types::{BackupMode, OnAllDown, OnDown, PoolRules};
use super::value;
use super::walk::Walk;
use crate::control::flap::FlapRules;
use crate::model::Tracking;

/// What one table says.
#[derive(Clone, Debug, Default)]
pub(super) struct RulesLayer {
    tracking: Option<At<Tracking>>,
    tcp_idle_timeout: Option<At<Duration>>,
    udp_idle_timeout: Option<At<Duration>>,
    on_down: Option<At<OnDown>>,
    pub on_all_down: Option<At<OnAllDown>>,
    quorum: Option<At<u32>>,
    quorum_hysteresis: Option<At<u32>>,
    backup_mode: Option<At<BackupMode>>,
    panic_threshold_percent: Option<At<u8>>,
    max_ejection_percent: Option<At<u8>>,
    slow_start: Option<At<Duration>>,
    flap_limit: Option<At<u32>>,
    flap_window: Option<At<Duration>>,
    flap_hold: Option<At<Duration>>,
    pub persistence_timeout: Option<At<Duration>>,
    persistence_prefix_v4: Option<At<u8>>,
    persistence_prefix_v6: Option<At<u8>>,
}

impl RulesLayer {
    pub fn read(walk: &Walk<'_, '_>) -> Result<Self, Reported> {
        let tracking = walk.maybe(&keys::TRACKING, value::choice);
        let tcp_idle_timeout = walk.maybe(&keys::TCP_IDLE_TIMEOUT, value::duration);
        let udp_idle_timeout = walk.maybe(&keys::UDP_IDLE_TIMEOUT, value::duration);
        let on_down = walk.maybe(&keys::ON_DOWN, value::choice);
        let on_all_down = walk.maybe(&keys::ON_ALL_DOWN, value::choice);
        let quorum = walk.maybe(&keys::QUORUM, value::integer);
        let quorum_hysteresis = walk.maybe(&keys::QUORUM_HYSTERESIS, value::integer);
        let backup_mode = walk.maybe(&keys::BACKUP_MODE, value::choice);
        let panic_threshold_percent = walk.maybe(&keys::PANIC_THRESHOLD, value::integer);
        let max_ejection_percent = walk.maybe(&keys::MAX_EJECTION_PERCENT, value::integer);
        let slow_start = walk.maybe(&keys::SLOW_START, value::duration);
        let flap_limit = walk.maybe(&keys::FLAP_LIMIT, value::integer);
        let flap_window = walk.maybe(&keys::FLAP_WINDOW, value::duration);
        let flap_hold = walk.maybe(&keys::FLAP_HOLD, value::duration);
        let persistence_timeout = walk.maybe(&keys::PERSISTENCE_TIMEOUT, value::duration);
        let persistence_prefix_v4 = walk.maybe(&keys::PERSISTENCE_PREFIX_V4, value::integer);
        let persistence_prefix_v6 = walk.maybe(&keys::PERSISTENCE_PREFIX_V6, value::integer);
        Ok(Self {
            tracking: tracking?,
            tcp_idle_timeout: tcp_idle_timeout?,
            udp_idle_timeout: udp_idle_timeout?,
            on_down: on_down?,
            on_all_down: on_all_down?,
            quorum: quorum?,
            quorum_hysteresis: quorum_hysteresis?,
            backup_mode: backup_mode?,
            panic_threshold_percent: panic_threshold_percent?,
            max_ejection_percent: max_ejection_percent?,
            slow_start: slow_start?,
            flap_limit: flap_limit?,
            flap_window: flap_window?,
            flap_hold: flap_hold?,
            persistence_timeout: persistence_timeout?,
            persistence_prefix_v4: persistence_prefix_v4?,
            persistence_prefix_v6: persistence_prefix_v6?,
        })
    }

    /// `base` with what this layer says.
    pub fn over(&self, base: &PoolRules) -> PoolRules {
        fn or<T: Copy>(own: Option<At<T>>, base: T) -> T {
            own.map_or(base, |at| at.value)
        }
        let Self {
            tracking,
            tcp_idle_timeout,
            udp_idle_timeout,
            on_down,
            on_all_down,
            quorum,
            quorum_hysteresis,
            backup_mode,
            panic_threshold_percent,
            max_ejection_percent,
            slow_start,
            flap_limit,
            flap_window,
            flap_hold,
            persistence_timeout,
            persistence_prefix_v4,
            persistence_prefix_v6,
        } = *self;
        PoolRules {
            tracking: or(tracking, base.tracking),
            tcp_idle_timeout: or(tcp_idle_timeout, base.tcp_idle_timeout),
            udp_idle_timeout: or(udp_idle_timeout, base.udp_idle_timeout),
            on_down: or(on_down, base.on_down),
            on_all_down: or(on_all_down, base.on_all_down),
            quorum: or(quorum, base.quorum),
            quorum_hysteresis: or(quorum_hysteresis, base.quorum_hysteresis),
            backup_mode: or(backup_mode, base.backup_mode),
            panic_threshold_percent: or(panic_threshold_percent, base.panic_threshold_percent),
            max_ejection_percent: or(max_ejection_percent, base.max_ejection_percent),
            slow_start: slow_start.map(|at| at.value).or(base.slow_start),
            flaps: FlapRules {
                limit: or(flap_limit, base.flaps.limit),
                window: or(flap_window, base.flaps.window),
                hold: or(flap_hold, base.flaps.hold),
            },
            persistence_timeout: persistence_timeout
                .map(|at| at.value)
                .or(base.persistence_timeout),
            persistence_prefix_v4: or(persistence_prefix_v4, base.persistence_prefix_v4),
            persistence_prefix_v6: or(persistence_prefix_v6, base.persistence_prefix_v6),
        }
    }
}
