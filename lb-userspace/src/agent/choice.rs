//! What is said when other backends than those that serve by verdict take flows, and when that ends.

use std::collections::BTreeMap;

use super::Agent;
use crate::config::Role;
use crate::control::{Desired, DesiredService, Why};
use crate::model::ServiceKey;
use crate::observe::Kind;

/// How the backends of a service were chosen last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Chosen {
    why: Why,
    pub backups: bool,
    spared: usize,
}

impl Chosen {
    fn of(service: &DesiredService) -> Self {
        Self {
            why: service.why,
            // Without any there is nothing to tell of.
            backups: service.backups
                && service
                    .backends
                    .values()
                    .any(|backend| backend.role == Role::Backup),
            spared: service.spared,
        }
    }
}

impl Agent {
    /// Takes note of how backends were chosen, and logs what is different.
    pub(super) fn note_choices(&mut self, desired: &Desired) {
        self.ramping = desired
            .services
            .values()
            .flat_map(|service| service.backends.values())
            .any(|backend| backend.eligible() && backend.steps < crate::control::slow_start::STEPS);
        let mut chosen: BTreeMap<ServiceKey, Chosen> = BTreeMap::new();
        for (key, service) in &desired.services {
            let (before, now) = (
                self.chosen.get(key).copied().unwrap_or_default(),
                Chosen::of(service),
            );
            for (level, line) in differences(before, now) {
                log::log!(level, "service {}: {line}", service.name);
            }
            self.emit_choice(service, before, now);
            chosen.insert(*key, now);
        }
        self.chosen = chosen;
    }
}

impl Agent {
    fn emit_choice(&self, service: &DesiredService, before: Chosen, now: Chosen) {
        let name = service.name.as_str();
        match (before.all_down(), now.all_down()) {
            (false, true) => self.emit_all_down(service),
            (true, false) => self.emit(Kind::AllDownOver.service(name)),
            _ => {}
        }
        let (from, to) = (before.mode(), now.mode());
        if from != to {
            let (from, to) = (from.to_owned(), to.to_owned());
            self.emit(Kind::PoolMode { from, to }.service(name));
        }
    }
}

impl Chosen {
    pub(super) fn all_down(self) -> bool {
        !matches!(self.why, Why::Serving | Why::Panic)
    }

    /// In one word.
    fn mode(self) -> &'static str {
        match self.why {
            Why::Serving if self.backups => "backups",
            Why::Serving => "primaries",
            Why::Panic => "panic",
            Why::Last => "last",
            Why::Sorry => "sorry",
            Why::Nobody => "nobody",
        }
    }
}

fn differences(before: Chosen, now: Chosen) -> Vec<(log::Level, String)> {
    use log::Level::{Error, Info, Warn};
    let mut lines = Vec::new();
    if before.why != now.why {
        lines.push(match now.why {
            Why::Serving => (Info, "its backends serve again".to_owned()),
            Why::Panic => (
                Error,
                "fewer backends serve than panic_threshold: all that are READY and were UP before take flows"
                    .into(),
            ),
            Why::Last => (
                Error,
                "no backend serves; those that did before the failures and are READY keep their flows".into(),
            ),
            Why::Sorry => (Error, "no backend serves; the sorry backend answers".into()),
            Why::Nobody => (
                Error,
                "no backend may take flows; packets are dropped (no_backend)".into(),
            ),
        });
    }
    if before.backups != now.backups {
        lines.push(match now.backups {
            true => (
                Warn,
                "fewer backends serve than the quorum: its backups are used".to_owned(),
            ),
            false => (Info, "the quorum serves again: its backups are left".to_owned()),
        });
    }
    if before.spared < now.spared {
        lines.push((
            Warn,
            format!(
                "no more than max_ejection_percent are taken out: {} that went DOWN take flows on",
                now.spared
            ),
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changed_is_said() {
        let calm = Chosen::default();
        let troubled = Chosen {
            why: Why::Last,
            backups: true,
            spared: 0,
        };
        assert_eq!(differences(calm, calm), []);
        let began = differences(calm, troubled);
        assert_eq!(began.len(), 2, "{began:?}");
        assert!(began.iter().all(|(level, _)| *level <= log::Level::Warn));
        assert_eq!(differences(troubled, troubled), []);
        let ended = differences(troubled, calm);
        assert_eq!(ended.len(), 2, "{ended:?}");
        assert!(ended.iter().all(|(level, _)| *level == log::Level::Info));
        let spared = |spared| Chosen { spared, ..calm };
        assert_eq!(differences(spared(0), spared(2)).len(), 1);
        assert_eq!(differences(spared(2), spared(1)), []);
    }
}
