//! What a reload changes of a service and of its backends besides who they are: in the words of the file, pure.

use std::fmt::Debug;
use std::time::Duration;

use crate::config::{Backend, PoolRules, Service};
use crate::control::flap::FlapRules;

/// `key WAS -> IS` for each key that differs.
pub(super) fn of_service(was: &Service, is: &Service) -> Vec<String> {
    let mut lines = of_rules(&was.rules, &is.rules);
    if was.scheduler != is.scheduler {
        lines.push(format!("scheduler {} -> {}", was.scheduler, is.scheduler));
    }
    if was.outer_sources != is.outer_sources {
        lines.push("outer sources changed".into());
    }
    if was.quic != is.quic {
        lines.push(format!("quic {} -> {}", was.quic, is.quic));
    }
    lines
}

fn of_rules(was: &PoolRules, is: &PoolRules) -> Vec<String> {
    let said = |rules: &PoolRules| {
        let PoolRules {
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
            flaps: FlapRules { limit, window, hold },
            persistence_timeout,
            persistence_prefix_v4,
            persistence_prefix_v6,
        } = *rules;
        [
            ("tracking", tracking.to_string()),
            ("tcp_idle_timeout", time(tcp_idle_timeout)),
            ("udp_idle_timeout", time(udp_idle_timeout)),
            ("on_down", word(on_down)),
            ("on_all_down", word(on_all_down)),
            ("quorum", quorum.to_string()),
            ("quorum_hysteresis", quorum_hysteresis.to_string()),
            ("backup_mode", word(backup_mode)),
            ("panic_threshold", panic_threshold_percent.to_string()),
            ("max_ejection_percent", max_ejection_percent.to_string()),
            ("slow_start", slow_start.map_or("none".into(), time)),
            ("flap_limit", limit.to_string()),
            ("flap_window", time(window)),
            ("flap_hold", time(hold)),
            (
                "persistence_timeout",
                persistence_timeout.map_or("none".into(), time),
            ),
            ("persistence_prefix_v4", persistence_prefix_v4.to_string()),
            ("persistence_prefix_v6", persistence_prefix_v6.to_string()),
        ]
    };
    let pairs = said(was).into_iter().zip(said(is));
    pairs
        .filter(|((_, was), (_, is))| was != is)
        .map(|((key, was), (_, is))| format!("{key} {was} -> {is}"))
        .collect()
}

/// What of a backend differs, but for its weight.
pub(super) fn of_backend(was: &Backend, is: &Backend) -> Vec<&'static str> {
    let Backend {
        address: _,
        port: _,
        weight: _,
        role,
        tags,
        quic_ids,
        check,
        agent_check,
    } = is;
    let parts = [
        ("role", was.role != *role),
        ("VLAN", was.tags != *tags),
        ("QUIC ids", was.quic_ids != *quic_ids),
        ("check", was.check != *check),
        ("agent check", was.agent_check != *agent_check),
    ];
    let changed = parts.into_iter().filter(|(_, changed)| *changed);
    changed.map(|(what, _)| what).collect()
}

fn time(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

/// The word of the file for one of a choice.
fn word(choice: impl Debug) -> String {
    format!("{choice:?}").to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, OnAllDown};

    #[test]
    fn what_differs_is_said_in_the_words_of_the_file() {
        let was = PoolRules::default();
        let is = PoolRules {
            panic_threshold_percent: 50,
            slow_start: Some(Duration::from_secs(30)),
            on_all_down: OnAllDown::Drop,
            ..was.clone()
        };
        assert_eq!(of_rules(&was, &was), Vec::<String>::new());
        assert_eq!(
            of_rules(&was, &is),
            [
                "on_all_down last -> drop",
                "panic_threshold 0 -> 50",
                "slow_start none -> 30s"
            ]
        );
    }

    #[test]
    fn every_part_of_a_backend_counts() {
        let with = |more: &str| {
            let text = format!(
                "schema = 1\n[agent]\ninterfaces = [\"lo\"]\n[[service]]\nname = \"s\"\naddress = \"192.0.2.1\"\n\
                 port = 80\nprotocol = \"tcp\"\nforward = \"dsr-l2\"\n[[service.backend]]\naddress = \"10.0.1.11\"\n\
                 [[service.backend]]\naddress = \"10.0.1.12\"\n{more}\n"
            );
            let config = Config::parse(&text).unwrap_or_else(|faults| panic!("{faults}"));
            config.services[0].backends[1].clone()
        };
        let was = with("");
        assert_eq!(of_backend(&was, &with("")), Vec::<&str>::new());
        let is =
            with("backup = true\n[service.backend.check]\nrise = 9\n[service.backend.agent_check]\nport = 1");
        assert_eq!(of_backend(&was, &is), ["role", "check", "agent check"]);
    }
}
