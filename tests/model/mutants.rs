//! One rule broken on purpose: the checker must notice each.

use lb_common::rule::{self, Decision, Entry, Packet, Place, Standing, State, Write};

macro_rules! mutants {
    ($($(#[doc = $doc:literal])+ $name:ident = $seed:literal,)+) => {
        /// What is broken.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Mutant {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Mutant {
            /// Each with the history that the search begins with, because one near it shows the mutant, and in words.
            pub const ALL: &[(Self, u64, &str)] = &[$((Self::$name, $seed, concat!($($doc),+)),)+];
        }
    };
}

mutants! {
    /// A SYN to a moved slot makes no entry.
    NoEntryForSyn = 1,
    /// A segment of an old flow makes no entry.
    NoEntryForData = 3,
    /// A SYN takes every entry away.
    AnySynWins = 2,
    /// The entry of a SYN counts as established at once.
    NoSequenceNumber = 2,
    /// A SYN that meets a closing entry forgets whose it was.
    ClosingForgotten = 2,
    /// A segment that does not follow an entry's SYN goes home and leaves no trace.
    ContestedForgotten = 17,
    /// A retransmitted SYN does not keep its entry alive.
    RetransmissionIgnored = 47,
    /// A reset that answers a forged SYN's answer ends the other connection too.
    ResetEndsBoth = 32,
    /// An entry whose backend is gone stays.
    DeadStays = 96,
    /// A flow that is seen during a resize gets an entry only where its owner differs.
    ResizeTracksLess = 17,
    /// A full table throws an entry out.
    Evict = 2,
    /// An entry that another CPU made meanwhile is overwritten.
    InsertOverwrites = 152,
    /// A retransmitted SYN that is written after the first segment makes the entry unconfirmed again.
    TouchedBack = 237,
    /// The program does not note refused entries.
    RefusalNotNoted = 1,
    /// The step does not look at refused entries.
    RefusalForgotten = 1,
    /// A window lasts no time.
    NoWindow = 1,
    /// A window ends without holding the service first.
    NoHold = 529,
    /// A slot is stable as soon as its window is over.
    NoScan = 2,
    /// A scan that began before the window was over will do.
    ScanTooEarly = 6,
    /// A slot is stable although it has entries of its own owner.
    OwnEntriesStay = 6,
    /// `previous` stays where it is when it is gone.
    DeathKeepsPrevious = 1,
    /// A stable slot whose owner is gone is stable at once.
    DeathForgetsEntries = 5,
    /// A backend is marked as gone before the tables lead elsewhere, and as serving after they lead there.
    StandingFirst = 35,
    /// During a resize the table in force is published before the one before it.
    TablesSwapped = 5,
    /// After a restart open windows count as old.
    RestartForgets = 3,
    /// The sweep does not put back what changed while it was taken out.
    NotPutBack = 2,
    /// The sweep takes an entry at the very moment when its flow has been idle for long enough.
    NoGrace = 9,
    /// The sweep takes a contested entry for an unconfirmed one.
    ContestedExpires = 14,
    /// The sweep takes any entry of a settled slot that names its owner, also one that names another beside it.
    SharedRedundant = 5,
    /// An index of a backend that is gone is given to another one at once.
    IndexAtOnce = 22,
    /// An index is given to another one a second after it was left, whatever entries say.
    IndexUnscanned = 32,
    /// A service that is added again may get the index it had at once.
    ServiceIndexAtOnce = 484,
    /// The table of a service that an agent died while removing counts as one that never had entries.
    FoundClean = 955,
    /// The index of a service is used again a second after it was left, whatever entries are there.
    ServiceIndexUnscanned = 3081,
    /// A hint stays good when the program writes another entry.
    HintsOutliveEntries = 23,
    /// A hint stays good for ever, so that nobody sees that its flow lives.
    HintsForever = 2,
    /// A hint is made of what holds when it is written, not of what held before its entry was looked up.
    HintsStampedLate = 383,
    /// A Handshake packet of QUIC does not confirm the entry of the Initial one.
    HandshakeConfirmsNothing = 33,
    /// A short header of QUIC confirms it, though it comes before the handshake.
    ShortHeaderConfirms = 196,
}

const fn established(entry: Entry) -> Entry {
    Entry {
        state: State::Established,
        ..entry
    }
}

impl Mutant {
    /// The rule, with what this mutant breaks in it.
    pub fn decide(
        self,
        mut place: Place,
        entry: Option<Entry>,
        packet: Packet,
        standing: impl Fn(u32) -> Standing + Copy,
    ) -> Decision {
        match self {
            Self::ResizeTracksLess => place.resizing = false,
            Self::HandshakeConfirmsNothing if packet == Packet::Handshake => {
                return rule::decide(place, entry, Packet::Datagram, standing);
            }
            Self::ShortHeaderConfirms if packet == Packet::Datagram => {
                return rule::decide(place, entry, Packet::Handshake, standing);
            }
            Self::AnySynWins if matches!(packet, Packet::Syn(_)) => {
                let mut decision = rule::decide(place, None, packet, standing);
                if let (true, Write::Insert(new)) = (entry.is_some(), decision.write) {
                    decision.write = Write::Replace(new);
                }
                return decision;
            }
            _ => {}
        }
        let mut decision = rule::decide(place, entry, packet, standing);
        let syn = matches!(packet, Packet::Syn(_));
        let found = entry.map(|entry| entry.state);
        decision.write = match (self, decision.write) {
            (Self::NoEntryForSyn, Write::Insert(_)) if syn => Write::Nothing,
            (Self::NoEntryForData, Write::Insert(_)) if !syn => Write::Nothing,
            (Self::NoSequenceNumber, Write::Insert(new)) => Write::Insert(established(new)),
            (Self::NoSequenceNumber, Write::Replace(new)) => Write::Replace(established(new)),
            (Self::NoSequenceNumber, Write::Bury(new)) => Write::Bury(established(new)),
            (Self::ClosingForgotten, Write::Replace(new)) if syn && found == Some(State::Closing) => {
                Write::Replace(Entry { before: 0, ..new })
            }
            (Self::ContestedForgotten, Write::Replace(_)) if !syn && found.is_some_and(State::is_pending) => {
                Write::Nothing
            }
            (Self::RetransmissionIgnored, Write::Touch(_)) if syn => Write::Nothing,
            (Self::ResetEndsBoth, Write::Replace(_))
                if matches!(packet, Packet::Last { reset: true, .. }) =>
            {
                Write::Touch(State::Closing)
            }
            (Self::DeadStays, Write::Bury(_)) => Write::Nothing,
            (_, write) => write,
        };
        decision
    }
}
