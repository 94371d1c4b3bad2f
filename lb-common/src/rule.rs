//! The packet rule: to which backend a packet goes while slots move, and what the flow table learns from it.
//!
//! One invariant carries everything:
//!
//! > A flow with no entry in the flow table belongs to `previous` of its slot. Every flow that belongs elsewhere
//! > has an entry.
//!
//! A slot whose `consult` is clear has no such entries: the packet goes to `current` and this module is not
//! asked. For the others [`decide`] says what to do, from the slot, the flow's entry and the packet alone. The
//! BPF program and the model checker share it.
//!
//! ```text
//!              SYN: sent to current                first segment within 64 KiB
//!   (no entry) ───────────────────▶ UNCONFIRMED ──────────────────────────────▶ ESTABLISHED
//!       │                            64 s │  ▲                                  idle timeout ──┐ FIN, RST
//!       │          another connection of  │  │ SYN: sent to current                   ▲        ▼
//!       │          the key lives on       ▼  └─────────────────────────────────────── │ ── CLOSING 60 s
//!       │                             CONTESTED idle timeout                          │
//!       │ any other segment of a slot that moved: it belongs to previous              │
//!       └─────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! The load balancer sees one direction only, so it cannot tell a SYN that opens a connection from a forged one or
//! a late copy. An entry that a SYN made therefore names two backends: that of the SYN ([`Entry::backend`]), for
//! segments that begin within [`CONFIRM_WINDOW`] of it, and that of whatever else uses the same addresses and ports
//! ([`Entry::before`]). QUIC is the same with Initial packets for SYNs and connection ids for sequence numbers.

use crate::layout::Slot;

/// How far behind the sequence number of a SYN the first segment of its connection may begin. A larger initial
/// window than this is not in use anywhere (RFC 6928 has 10 segments).
pub const CONFIRM_WINDOW: u32 = 1 << 16;

/// What an entry's connection has come to. The values are stored in entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// A SYN was sent to the entry's backend; nothing shows yet that a connection came of it.
    Unconfirmed = 0,
    Established = 1,
    /// The client has sent FIN or RST.
    Closing = 2,
    /// Like unconfirmed, and there is another connection, which belongs to [`Entry::before`].
    Contested = 3,
}

impl State {
    /// The state with this number, of which two bits count.
    #[inline(always)]
    #[must_use]
    pub const fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::Unconfirmed,
            1 => Self::Established,
            2 => Self::Closing,
            _ => Self::Contested,
        }
    }

    /// Whether nothing has shown yet that a connection came of the SYN that made the entry.
    #[inline(always)]
    #[must_use]
    pub const fn is_pending(self) -> bool {
        matches!(self, Self::Unconfirmed | Self::Contested)
    }

    /// Whether an entry's state stays although a packet that found it a moment earlier is to write `touched`: a copy
    /// of a SYN does not undo what a segment that overtook it on another CPU has shown.
    #[inline(always)]
    #[must_use]
    pub const fn outlasts(self, touched: Self) -> bool {
        match touched {
            Self::Unconfirmed => !matches!(self, Self::Unconfirmed),
            Self::Contested => !self.is_pending(),
            Self::Established | Self::Closing => false,
        }
    }
}

/// Where a flow stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its slot; while its table is being resized, [`Slot::resizing`].
    pub slot: Slot,
    /// Its table is being resized: every flow that is seen gets an entry, so that each of the two tables may change
    /// meanwhile without another window.
    pub resizing: bool,
    /// Windows of its service are about to end. A SYN whose entry is refused is dropped: it would open a flow that
    /// belongs to `previous` a moment before `previous` is forgotten. The client's next try, a second later, is told
    /// better.
    pub held: bool,
}

/// What the rule must know of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet {
    /// A TCP segment with SYN and without ACK, and its sequence number.
    Syn(u32),
    /// A TCP segment with FIN or RST, and its sequence number.
    Last { sequence: u32, reset: bool },
    /// Any other TCP segment, and its sequence number.
    Data(u32),
    /// A QUIC packet that may open a connection ([`crate::quic::Kind::Initial`]), and the number of its id.
    Initial(u32),
    /// A QUIC packet of a connection that is being opened.
    Handshake,
    /// Any other UDP.
    Datagram,
    /// An ICMP error about a packet of the flow: it is led the flow's way and changes nothing.
    Error,
}

/// What the rule must know of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub backend: u32,
    pub state: State,
    /// Sequence number of the SYN that made it; of QUIC the number of the first packet's id.
    pub isn: u32,
    /// Of a pending entry: where segments go that do not follow its SYN; 0: to `previous`, like those of a flow
    /// without an entry.
    pub before: u32,
}

impl Entry {
    #[inline(always)]
    const fn of(backend: u32, state: State) -> Self {
        Self {
            backend,
            state,
            isn: 0,
            before: 0,
        }
    }

    /// Whether a segment with this sequence number follows the SYN that made the entry.
    #[inline(always)]
    const fn is_followed_by(&self, sequence: u32) -> bool {
        let offset = sequence.wrapping_sub(self.isn);
        offset != 0 && offset <= CONFIRM_WINDOW
    }
}

/// What is to be written to the flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    Nothing,
    /// Time and state of the entry that was found, in place, unless its state [outlasts](State::outlasts) this one.
    Touch(State),
    /// This entry, where there is none yet.
    Insert(Entry),
    /// This entry in place of the one that was found, which stays when it is refused.
    Replace(Entry),
    /// This entry in place of the one that was found, whose backends are gone. Refused: that one is deleted.
    Bury(Entry),
}

/// What to do with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Where it goes. 0: nowhere.
    pub backend: u32,
    pub write: Write,
    /// Where it goes when the entry is refused. If somewhere and it is TCP, the time is noted
    /// ([`crate::layout::FlowControl::refused_ns`]): there may be a flow that nobody has seen.
    pub otherwise: u32,
}

impl Decision {
    #[inline(always)]
    const fn go(backend: u32, write: Write) -> Self {
        Self {
            backend,
            write,
            otherwise: backend,
        }
    }
}

/// What a backend still takes, by its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Packets of its old flows, and SYNs that follow an entry.
    Serves,
    /// Its old flows are answered with a reset in its name (`on_down = "reset"`); it is given no SYN.
    Resets,
    /// Nothing: gone, in maintenance, or DOWN and not kept. An entry that names it is dead.
    Gone,
}

impl Standing {
    /// A bit beside the others in the record of a backend: it takes no new flows.
    pub const CLOSED: u8 = 1 << 2;

    /// How it is stored.
    #[must_use]
    pub const fn bits(self) -> u8 {
        match self {
            Self::Serves => 0,
            Self::Gone => 1,
            Self::Resets => 2,
        }
    }

    #[inline(always)]
    #[must_use]
    pub const fn from_bits(bits: u8) -> Self {
        match bits & !Self::CLOSED {
            0 => Self::Serves,
            2 => Self::Resets,
            _ => Self::Gone,
        }
    }
}

/// The rule. What each case does, and why:
///
/// - Where nothing moves (`current == previous`) an entry is followed and none is made: a flow without one
///   belongs to `previous`, which is `current`.
/// - A SYN goes to `current` and its entry says so. Refused, it goes to `previous`, where a flow without an entry
///   belongs; where `previous` resets its flows, or [`Place::held`], it is dropped, and the client's next try may
///   find room.
/// - A SYN that meets an established entry follows it: the owner's own TCP knows whether it is a new connection.
///   One that meets a pending entry with about its own number is a retransmission, and keeps it alive: the last of
///   a client's comes a minute after the first.
/// - One with another number may not take the entry away from a connection that may be opening: a forged SYN
///   could break it. It goes where the segments after it will go, and the entry says so.
/// - One that meets a closing entry opens another connection, on `current`; but the client may have closed only its
///   half, and this SYN may be forged: the old connection stays with its owner, as [`Entry::before`].
/// - A segment that does not follow the SYN of a pending entry belongs to a flow that was there before that SYN. That
///   flow is then known as well as one with an entry of its own.
/// - A reset that follows it (a client's answer to the answer to a forged SYN) ends what the SYN began, and no more: a
///   connection that was being opened when its slot moved is not led to where that SYN went.
/// - An entry whose backends are gone is replaced also where nothing moves: it would come back to life with them.
/// - Of QUIC an Initial packet is the SYN. The client sends further ones with the id that the server chose, or Handshake
///   packets, before any other: they confirm the entry, and what else comes belongs to a connection of before.
#[inline(always)]
#[must_use]
pub fn decide(
    place: Place,
    entry: Option<Entry>,
    packet: Packet,
    standing: impl Fn(u32) -> Standing,
) -> Decision {
    let (current, previous) = (place.slot.current(), place.slot.previous());
    let syn = matches!(packet, Packet::Syn(_) | Packet::Initial(_));
    let moved = previous != 0 && (previous != current || place.resizing);
    let before = if moved { standing(previous) } else { Standing::Gone };
    // Where a packet of a flow without an entry belongs.
    let home = match before {
        Standing::Serves => previous,
        Standing::Resets if syn => 0,
        Standing::Resets => previous,
        Standing::Gone => current,
    };
    let serves = |backend| match standing(backend) {
        Standing::Serves => true,
        Standing::Resets => !syn,
        Standing::Gone => false,
    };
    let (mut found, mut dead, mut orphan) = (None, false, false);
    if let Some(mut entry) = entry {
        if !entry.state.is_pending() || (entry.before != 0 && !serves(entry.before)) {
            entry.before = 0;
        }
        if serves(entry.backend) {
            found = Some(entry);
        } else if entry.before != 0 {
            // The connection that the SYN began is lost, the other one lives.
            orphan = true;
            found = Some(Entry::of(entry.before, State::Established));
        } else {
            dead = true;
        }
    }
    let put = |entry| {
        if dead {
            Write::Bury(entry)
        } else {
            Write::Insert(entry)
        }
    };
    // A packet of another connection than the one that a pending entry was made for.
    let beside = |entry: Entry, state| {
        if entry.before != 0 {
            return Decision::go(entry.before, Write::Touch(state));
        }
        if !matches!(before, Standing::Serves) {
            return Decision::go(home, Write::Nothing);
        }
        let write = Write::Replace(Entry {
            before: home,
            state,
            ..entry
        });
        Decision::go(home, write)
    };
    let touch = |entry: Entry, state| {
        if orphan {
            Write::Replace(Entry::of(entry.backend, state))
        } else {
            Write::Touch(state)
        }
    };

    match (packet, found) {
        (Packet::Initial(number), Some(entry)) if entry.state.is_pending() => {
            let state = if number == entry.isn {
                entry.state
            } else {
                State::Established
            };
            Decision::go(entry.backend, Write::Touch(state))
        }
        (Packet::Syn(isn) | Packet::Initial(isn), Some(entry)) => match entry.state {
            State::Established => Decision::go(entry.backend, Write::Nothing),
            State::Closing if current == 0 => Decision::go(0, Write::Nothing),
            State::Closing => Decision {
                backend: current,
                write: Write::Replace(Entry {
                    backend: current,
                    state: State::Unconfirmed,
                    isn,
                    before: entry.backend,
                }),
                otherwise: 0,
            },
            state if entry.isn == isn || entry.is_followed_by(isn) => {
                Decision::go(entry.backend, Write::Touch(state))
            }
            state if entry.before != 0 => Decision::go(entry.before, Write::Touch(state)),
            _ if home == 0 => Decision::go(0, Write::Nothing),
            _ => Decision {
                backend: home,
                write: Write::Replace(Entry {
                    before: home,
                    ..entry
                }),
                otherwise: 0,
            },
        },
        (Packet::Syn(isn) | Packet::Initial(isn), None) if current != 0 && (moved || dead) => Decision {
            backend: current,
            write: put(Entry {
                isn,
                ..Entry::of(current, State::Unconfirmed)
            }),
            otherwise: if moved && place.held { 0 } else { home },
        },
        (Packet::Syn(_) | Packet::Initial(_), None) => Decision::go(current, Write::Nothing),

        (Packet::Data(sequence) | Packet::Last { sequence, .. }, Some(entry)) => {
            let last = matches!(packet, Packet::Last { .. });
            if !entry.state.is_pending() {
                let ends = last || matches!(entry.state, State::Closing);
                let state = if ends { State::Closing } else { State::Established };
                return Decision::go(entry.backend, touch(entry, state));
            }
            if entry.is_followed_by(sequence) {
                let write = match packet {
                    Packet::Last { reset: true, .. } if entry.before != 0 => {
                        Write::Replace(Entry::of(entry.before, State::Established))
                    }
                    // There may be another one that nobody has seen.
                    Packet::Last { reset: true, .. } => Write::Nothing,
                    Packet::Last { .. } => Write::Touch(State::Closing),
                    _ => Write::Touch(State::Established),
                };
                return Decision::go(entry.backend, write);
            }
            // The life of an unconfirmed entry is enough for a connection that ends.
            let state = if last { entry.state } else { State::Contested };
            beside(entry, state)
        }
        (Packet::Datagram, Some(entry)) if entry.state.is_pending() => beside(entry, State::Contested),
        // A reset ends the flow: nothing follows that would need an entry.
        (Packet::Last { reset: true, .. }, None) => Decision::go(home, Write::Nothing),
        (Packet::Data(_) | Packet::Last { .. } | Packet::Handshake | Packet::Datagram, None) => {
            let known = match before {
                Standing::Serves => true,
                Standing::Resets => false,
                Standing::Gone => dead && home != 0,
            };
            if !known {
                return Decision::go(home, Write::Nothing);
            }
            let state = match packet {
                Packet::Last { .. } => State::Closing,
                _ => State::Established,
            };
            Decision::go(home, put(Entry::of(home, state)))
        }
        (Packet::Handshake | Packet::Datagram, Some(entry)) => {
            Decision::go(entry.backend, touch(entry, State::Established))
        }

        (Packet::Error, Some(entry)) if !entry.state.is_pending() => {
            Decision::go(entry.backend, Write::Nothing)
        }
        // A pending entry is a moment old or forged.
        (Packet::Error, Some(entry)) if entry.before != 0 => Decision::go(entry.before, Write::Nothing),
        (Packet::Error, _) => Decision::go(home, Write::Nothing),
    }
}

#[cfg(test)]
mod tests;
