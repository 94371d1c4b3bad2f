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
//!       │                            64 s                                        idle timeout ──┐ FIN, RST
//!       │ any other segment of a slot that moved: it belongs to previous              ▲         ▼
//!       └─────────────────────────────────────────────────────────────────────────────┘      CLOSING 60 s
//! ```

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
}

impl State {
    /// The state with this number; what cannot be is [`State::Established`], which is kept longest.
    #[inline(always)]
    #[must_use]
    pub const fn from_bits(bits: u8) -> Self {
        match bits {
            0 => Self::Unconfirmed,
            2 => Self::Closing,
            _ => Self::Established,
        }
    }
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
    /// UDP.
    Datagram,
    /// An ICMP error about a packet of the flow: it is led the flow's way and changes nothing.
    Error,
}

/// What the rule must know of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub backend: u32,
    pub state: State,
    /// Sequence number of the SYN that made it.
    pub isn: u32,
}

/// What is to be written to the flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    Nothing,
    /// Time and state of the entry that was found, in place.
    Touch(State),
    /// An entry of this state and backend, where there is none yet. Refused: the packet goes to `otherwise`.
    Insert(State),
    /// The same, in place of the entry that was found, which is dead or closing. Refused: that entry is deleted,
    /// and the packet goes to `otherwise`.
    Replace(State),
    /// Nothing, but the flow's key is taken by another connection: as good as a refused entry.
    Occupied,
}

/// What to do with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Where it goes, which is also the owner that a new entry names. 0: nobody.
    pub backend: u32,
    pub write: Write,
    /// Where it goes when the entry is refused.
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
        match bits {
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
///   belongs; where `previous` resets its flows it is dropped, and the client's next try may find room.
/// - A SYN that meets an established entry follows it: the owner's own TCP knows whether it is a new connection.
///   One that meets an unconfirmed entry with its own number is a retransmission.
/// - One with another number may not take the entry away from a connection that may be opening: a forged SYN
///   could break it. It goes where the segments after it will go, to `previous`.
/// - A segment that is not within [`CONFIRM_WINDOW`] of an unconfirmed entry's SYN belongs to a flow that was
///   there before that SYN, which was forged or came from ports used again: to `previous`.
/// - A dead entry is replaced by a SYN also where nothing moves: it would come back to life with its backend.
#[inline(always)]
#[must_use]
pub fn decide(
    slot: Slot,
    entry: Option<Entry>,
    packet: Packet,
    standing: impl Fn(u32) -> Standing,
) -> Decision {
    let (current, previous) = (slot.current(), slot.previous());
    let syn = matches!(packet, Packet::Syn(_));
    let moved = previous != current && previous != 0;
    let before = if moved { standing(previous) } else { Standing::Gone };
    // Where a packet of a flow without an entry belongs.
    let home = match before {
        Standing::Serves => previous,
        Standing::Resets if syn => 0,
        Standing::Resets => previous,
        Standing::Gone => current,
    };
    let found = match entry {
        Some(entry) => match standing(entry.backend) {
            Standing::Serves => Some(entry),
            Standing::Resets if !syn => Some(entry),
            _ => None,
        },
        None => None,
    };
    let dead = entry.is_some() && found.is_none();
    let place = |state| {
        if dead {
            Write::Replace(state)
        } else {
            Write::Insert(state)
        }
    };

    match (packet, found) {
        (Packet::Syn(isn), Some(entry)) => match entry.state {
            State::Established => Decision::go(entry.backend, Write::Nothing),
            State::Unconfirmed if entry.isn == isn => Decision::go(entry.backend, Write::Nothing),
            State::Unconfirmed => Decision::go(home, Write::Occupied),
            // The ports are used again.
            State::Closing if current == 0 => Decision::go(0, Write::Nothing),
            State::Closing => Decision {
                backend: current,
                write: Write::Replace(State::Unconfirmed),
                otherwise: home,
            },
        },
        (Packet::Syn(_), None) if current != 0 && (moved || dead) => Decision {
            backend: current,
            write: place(State::Unconfirmed),
            otherwise: home,
        },
        (Packet::Syn(_), None) => Decision::go(current, Write::Nothing),

        (Packet::Data(sequence) | Packet::Last { sequence, .. }, Some(entry)) => {
            let offset = sequence.wrapping_sub(entry.isn);
            let unconfirmed = matches!(entry.state, State::Unconfirmed);
            if unconfirmed && (offset == 0 || offset > CONFIRM_WINDOW) {
                return Decision::go(home, Write::Occupied);
            }
            let state = match (packet, entry.state) {
                (Packet::Last { .. }, _) | (_, State::Closing) => State::Closing,
                _ => State::Established,
            };
            Decision::go(entry.backend, Write::Touch(state))
        }
        // A reset ends the flow: nothing follows that would need an entry.
        (Packet::Last { reset: true, .. }, None) => Decision::go(home, Write::Nothing),
        (Packet::Data(_) | Packet::Last { .. } | Packet::Datagram, None) => {
            if !matches!(before, Standing::Serves) {
                return Decision::go(home, Write::Nothing);
            }
            let state = match packet {
                Packet::Last { .. } => State::Closing,
                _ => State::Established,
            };
            Decision::go(home, place(state))
        }
        (Packet::Datagram, Some(entry)) => Decision::go(entry.backend, Write::Touch(State::Established)),

        // An unconfirmed entry is a moment old or forged.
        (Packet::Error, Some(entry)) if !matches!(entry.state, State::Unconfirmed) => {
            Decision::go(entry.backend, Write::Nothing)
        }
        (Packet::Error, _) => Decision::go(home, Write::Nothing),
    }
}

#[cfg(test)]
mod tests;
