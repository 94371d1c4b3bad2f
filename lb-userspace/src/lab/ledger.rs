//! Who was alive when, and whose fault the end of a flow was. Pure: time is an argument.

use std::fmt;
use std::time::Instant;

use serde::Serialize;

use super::wire::Name;
use crate::model::Protocol;

/// A flow that ended against its client's will.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// Index of the service in the stage's list.
    pub service: usize,
    pub protocol: Protocol,
    /// The client's port.
    pub port: u16,
    /// Who answered first.
    pub backend: Name,
    pub last_answer: Instant,
    pub ended: Instant,
    pub cause: Cause,
}

/// What a client saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// RST, or the end of the stream.
    Reset,
    /// Somebody else answered.
    WrongServer,
    /// An answer with another number.
    Sequence,
    /// No answer.
    Timeout,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Reset => "reset",
            Self::WrongServer => "wrong server",
            Self::Sequence => "wrong sequence number",
            Self::Timeout => "no answer",
        })
    }
}

/// Whether a flow need not have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// Its backend lived all the time.
    Broken,
    /// Its backend died, or was judged dead where that ends flows by design.
    Lost,
}

/// What ends flows of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// All its flows are lost.
    Dead,
    /// It lives, but its checks say otherwise: UDP is sent elsewhere, connections stay.
    Unheard,
}

/// When backends were dead.
#[derive(Clone, Debug, Default)]
pub struct Ledger(Vec<Span>);

#[derive(Clone, Copy, Debug)]
struct Span {
    backend: Name,
    death: Death,
    from: Instant,
    /// `None`: still.
    until: Option<Instant>,
}

impl Ledger {
    /// To be called before the deed.
    pub fn died(&mut self, backend: Name, death: Death, now: Instant) {
        self.0.push(Span {
            backend,
            death,
            from: now,
            until: None,
        });
    }

    /// To be called after the deed.
    pub fn returned(&mut self, backend: Name, now: Instant) {
        for span in self.0.iter_mut().filter(|span| span.backend == backend) {
            span.until.get_or_insert(now);
        }
    }

    /// Whether flows of a backend can go on.
    #[must_use]
    pub fn lives(&self, backend: Name) -> bool {
        !self
            .0
            .iter()
            .any(|span| span.backend == backend && span.death == Death::Dead && span.until.is_none())
    }

    /// Lost is what had its backend dead at any time since its last answer.
    #[must_use]
    pub fn judge(&self, end: &End) -> Judgement {
        let lost = self.0.iter().any(|span| {
            span.backend == end.backend
                && (span.death == Death::Dead || end.protocol == Protocol::Udp)
                && span.from <= end.ended
                && span.until.is_none_or(|until| until >= end.last_answer)
        });
        if lost { Judgement::Lost } else { Judgement::Broken }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_flows_whose_backend_was_dead_since_their_last_answer_are_lost() {
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let (one, other) = (Name::new("b1"), Name::new("b2"));
        let mut ledger = Ledger::default();
        ledger.died(one, Death::Dead, at(10));
        assert!(!ledger.lives(one) && ledger.lives(other));
        ledger.returned(one, at(20));
        ledger.died(other, Death::Unheard, at(10));
        assert!(ledger.lives(one) && ledger.lives(other));
        let judge = |backend, protocol, last, ended| {
            ledger.judge(&End {
                service: 0,
                protocol,
                port: 1,
                backend,
                last_answer: at(last),
                ended: at(ended),
                cause: Cause::Reset,
            })
        };
        let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
        assert_eq!(judge(one, tcp, 9, 11), Judgement::Lost);
        assert_eq!(judge(one, tcp, 9, 30), Judgement::Lost);
        assert_eq!(judge(one, tcp, 19, 30), Judgement::Lost);
        assert_eq!(judge(one, tcp, 5, 9), Judgement::Broken);
        assert_eq!(judge(one, tcp, 21, 30), Judgement::Broken);
        assert_eq!(judge(other, tcp, 9, 30), Judgement::Broken);
        assert_eq!(judge(other, udp, 9, 30), Judgement::Lost);
        assert_eq!(judge(other, udp, 5, 9), Judgement::Broken);
    }
}
