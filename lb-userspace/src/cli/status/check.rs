//! `xlb status --check`: one line and an exit status, after the guidelines for Nagios plugins.

use serde::Serialize;

use super::{counted, is_missing};
use crate::api::types::{ServiceStatus, Status};
use crate::cli::outcome::{Context, Outcome};
use crate::cli::{human, message};

/// The verdict; its number is the exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
enum Verdict {
    Ok = 0,
    Warning = 1,
    Critical = 2,
    Unknown = 3,
}

#[derive(Debug, Serialize)]
struct Answer {
    verdict: Verdict,
    message: String,
}

/// An agent that does not answer is a verdict too, no error.
pub(super) fn run(status: anyhow::Result<Status>, context: &Context) -> anyhow::Result<Outcome> {
    let answer = judge(status);
    let outcome = context.show(&answer, |answer, _| {
        let word = match answer.verdict {
            Verdict::Ok => "OK",
            Verdict::Warning => "WARNING",
            Verdict::Critical => "CRITICAL",
            Verdict::Unknown => "UNKNOWN",
        };
        format!("XLB {word} - {}\n", human::printable(&answer.message))
    })?;
    Ok(outcome.with_code(answer.verdict as u8))
}

fn judge(status: anyhow::Result<Status>) -> Answer {
    let status = match status {
        Ok(status) => status,
        Err(error) => {
            return Answer {
                verdict: Verdict::Unknown,
                message: message(&error),
            };
        }
    };
    if !status.agent.running {
        return Answer {
            verdict: Verdict::Unknown,
            message: format!(
                "agent not running since {}; {}",
                status.agent.since,
                match status
                    .interfaces
                    .iter()
                    .all(|interface| interface.mode == "detached")
                {
                    true => "nothing is forwarded",
                    false => "forwarding goes on with frozen states, dead backends are not taken out",
                }
            ),
        };
    }
    let mut critical = Vec::new();
    if status.agent.detached {
        critical.push("the agent is detached".to_owned());
    }
    if let Some(since) = &status.agent.isolated_since {
        critical.push(format!("isolated since {since}: nothing answers"));
    }
    for interface in status
        .interfaces
        .iter()
        .filter(|interface| interface.mode == "detached")
    {
        critical.push(format!("nothing is attached to {}", interface.name));
    }
    let mut warning = Vec::new();
    let (mut serving, mut total) = (0, 0);
    for service in &status.services {
        serving += service.backends.iter().filter(|backend| backend.serving).count();
        total += counted(service).count();
        if service.all_down || !service.backends.iter().any(|backend| backend.serving) {
            critical.push(format!("service {} has no serving backend", service.name));
        } else {
            warning.extend(missing(service));
        }
    }
    let verdict = match (critical.is_empty(), warning.is_empty()) {
        (false, _) => Verdict::Critical,
        (true, false) => Verdict::Warning,
        (true, true) => Verdict::Ok,
    };
    critical.append(&mut warning);
    if critical.is_empty() {
        critical.push(human::counted(status.services.len(), "service"));
    }
    Answer {
        verdict,
        message: format!("{}; {serving} of {total} backends serve", critical.join(", ")),
    }
}

fn missing(service: &ServiceStatus) -> impl Iterator<Item = String> {
    service
        .backends
        .iter()
        .filter(|backend| is_missing(backend))
        .map(|backend| {
            let place = human::place(backend.address, backend.port);
            match &backend.unresolved {
                Some(_) => format!("{place} of {} cannot be reached", service.name),
                None => format!("{place} of {} is {}", service.name, backend.state),
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::{example_backend, example_status};
    use crate::model::{AdminState, OperState};

    fn verdict(change: impl FnOnce(&mut Status)) -> (Verdict, String) {
        let mut status = example_status();
        status.services[0].backends = vec![example_backend("10.0.1.11"), example_backend("10.0.1.12")];
        status.services.truncate(1);
        change(&mut status);
        let answer = judge(Ok(status));
        (answer.verdict, answer.message)
    }

    #[test]
    fn all_well() {
        let (verdict, message) = verdict(|_| {});
        assert_eq!(
            (verdict, message.as_str()),
            (Verdict::Ok, "1 service; 2 of 2 backends serve")
        );
    }

    #[test]
    fn one_backend_down_warns_and_names_it() {
        let (verdict, message) = verdict(|status| {
            let backend = &mut status.services[0].backends[1];
            backend.state = OperState::Down;
            backend.serving = false;
        });
        assert_eq!(verdict, Verdict::Warning);
        assert_eq!(message, "10.0.1.12:80 of web is DOWN; 1 of 2 backends serve");
    }

    #[test]
    fn a_backend_that_was_taken_out_is_no_fault() {
        let (verdict, _) = verdict(|status| {
            let backend = &mut status.services[0].backends[1];
            backend.admin = AdminState::Maint;
            backend.state = OperState::Unknown;
            backend.serving = false;
        });
        assert_eq!(verdict, Verdict::Ok);
    }

    #[test]
    fn no_serving_backend_or_nothing_attached_is_critical() {
        let nobody = verdict(|status| {
            status.services[0]
                .backends
                .iter_mut()
                .for_each(|b| b.serving = false);
        });
        assert_eq!(nobody.0, Verdict::Critical);
        assert!(
            nobody.1.starts_with("service web has no serving backend"),
            "{}",
            nobody.1
        );
        let detached = verdict(|status| status.agent.detached = true);
        assert_eq!(detached.0, Verdict::Critical);
        let interface = verdict(|status| status.interfaces[0].mode = "detached".into());
        assert_eq!(interface.0, Verdict::Critical);
        assert!(interface.1.contains("eth0"), "{}", interface.1);
    }

    #[test]
    fn without_an_agent_nothing_is_known() {
        let frozen = verdict(|status| status.agent.running = false);
        assert_eq!(frozen.0, Verdict::Unknown);
        let answer = judge(Err(anyhow::anyhow!("nobody answers")));
        assert_eq!(
            (answer.verdict as u8, answer.message.as_str()),
            (3, "nobody answers")
        );
    }
}
