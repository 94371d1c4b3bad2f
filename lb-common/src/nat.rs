//! `nat` and `full-nat`: the table of translated flows, and how long an entry of it lives.
//!
//! A flow has two entries, keyed by the packet as it comes in: one for what the client sends (*forward*), one for what
//! the backend answers (*reply*). The value of each is what its packets become, which is, source and destination
//! exchanged, the key of the other one. No two flows have one reply key: an entry is put in only where there is
//! none, and that decides who gets a port.
//!
//! Each direction notes in its own entry what it has seen, so no packet needs both. Whoever wants to know the state
//! of a flow puts the two together ([`state`]).
//!
//! Elements of a hash map are recycled under their readers. `tag` comes first in the value and is therefore written
//! first: who finds his own tag before and after he read the rest, has read his own entry.

use crate::layout::{FAMILY_V4, FAMILY_V6, FragmentKey, Tags};

/// What identifies the packets of one direction of a flow: addresses, ports and protocol as they come in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct NatKey {
    /// In network order; an IPv4 address is the last word, the others are 0.
    pub source: [u32; 4],
    pub destination: [u32; 4],
    /// Source and destination port as their four bytes stand in the packet.
    pub ports: u32,
    /// [`NatKey::kind`].
    pub kind: u32,
}

impl NatKey {
    /// Family and protocol in one word.
    #[inline(always)]
    #[must_use]
    pub const fn kind(family: u8, protocol: u8) -> u32 {
        (family as u32) << 8 | protocol as u32
    }

    #[inline(always)]
    #[must_use]
    pub const fn protocol(&self) -> u8 {
        self.kind as u8
    }

    /// Source and destination exchanged: the answer to a packet.
    #[inline(always)]
    #[must_use]
    pub const fn turned(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            ports: turn(self.ports),
            kind: self.kind,
        }
    }

    /// What an entry of this key bears in front; never 0. Nobody has to be kept from finding two keys of one tag: it
    /// tells an element from what was there a moment before.
    #[inline(always)]
    #[must_use]
    pub const fn tag(&self) -> u64 {
        let Self {
            source: [a, b, c, d],
            destination: [e, f, g, h],
            ports,
            kind,
        } = *self;
        // Digits of pi.
        let sum = pair(a, b)
            .wrapping_mul(0x243F_6A88_85A3_08D3)
            .wrapping_add(pair(c, d).wrapping_mul(0x1319_8A2E_0370_7345))
            .wrapping_add(pair(e, f).wrapping_mul(0xA409_3822_299F_31D1))
            .wrapping_add(pair(g, h).wrapping_mul(0x082E_FA98_EC4E_6C89))
            .wrapping_add(pair(ports, kind).wrapping_mul(0x4528_21E6_38D0_1377));
        (sum ^ sum >> 32) | 1
    }
}

#[inline(always)]
const fn pair(a: u32, b: u32) -> u64 {
    a as u64 | (b as u64) << 32
}

/// Source and destination port exchanged.
#[inline(always)]
#[must_use]
pub const fn turn(ports: u32) -> u32 {
    ports.rotate_left(16)
}

/// Source and destination port in one word, each in network order.
#[inline(always)]
#[must_use]
pub const fn ports(source: u16, destination: u16) -> u32 {
    source as u32 | (destination as u32) << 16
}

/// Direction of an entry: from the client.
pub const FORWARD: u32 = 1;
/// Direction of an entry: from the backend.
pub const REPLY: u32 = 2;

/// One direction of a flow. All but `seen`, `way`, `way_ns` and `mtu` is written once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct NatEntry {
    /// [`NatKey::tag`] of its key.
    pub tag: u64,
    pub seen: NatSeen,
    /// What the packet becomes.
    pub source: [u32; 4],
    pub destination: [u32; 4],
    pub ports: u32,
    /// Index of the service.
    pub service: u32,
    /// Index of the backend.
    pub backend: u32,
    /// [`FORWARD`] or [`REPLY`].
    pub direction: u32,
    /// Of a reply: where to send it, [`way`].
    pub way: [u64; 2],
    /// When the routing table was last asked for the way, `CLOCK_MONOTONIC`; 0: never.
    pub way_ns: u64,
    /// Longest IP packet of that way; 0: not known.
    pub mtu: u32,
    pub reserved: u32,
    /// Of a reply: the tags of the VLAN that the client's packets come in.
    pub tags: Tags,
}

impl NatEntry {
    /// The key of the other direction's entry. `kind` is that of its own key.
    #[inline(always)]
    #[must_use]
    pub const fn peer(&self, kind: u32) -> NatKey {
        NatKey {
            source: self.source,
            destination: self.destination,
            ports: self.ports,
            kind,
        }
        .turned()
    }
}

/// MAC addresses and interface of a frame to send: in the low 48 bits of the words destination and source, as they
/// stand in memory, in the high 16 the low and the high half of the interface's index.
#[inline(always)]
#[must_use]
pub const fn way(destination: [u16; 3], source: [u16; 3], ifindex: u32) -> [u64; 2] {
    [join(destination, ifindex), join(source, ifindex >> 16)]
}

#[inline(always)]
const fn join(mac: [u16; 3], half: u32) -> u64 {
    mac[0] as u64 | (mac[1] as u64) << 16 | (mac[2] as u64) << 32 | (half as u64 & 0xffff) << 48
}

/// The interface of a [`way`].
#[inline(always)]
#[must_use]
pub const fn ifindex_of(way: [u64; 2]) -> u32 {
    (way[0] >> 48) as u32 | ((way[1] >> 48) as u32) << 16
}

/// What one direction has seen: flags and the time of its last packet (`CLOCK_MONOTONIC`, nanoseconds) in one aligned
/// word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct NatSeen(pub u64);

impl NatSeen {
    /// Some packet; of a client's TCP one that was no SYN.
    pub const SOME: u64 = 1 << 60;
    /// FIN.
    pub const FIN: u64 = 1 << 61;
    /// The last segment had RST.
    pub const RST: u64 = 1 << 62;
    const TIME: u64 = (1 << 60) - 1;

    /// Nothing yet, at a time.
    #[inline(always)]
    #[must_use]
    pub const fn at(now_ns: u64) -> Self {
        Self(now_ns & Self::TIME)
    }

    #[inline(always)]
    #[must_use]
    pub const fn at_ns(self) -> u64 {
        self.0 & Self::TIME
    }

    #[inline(always)]
    #[must_use]
    pub const fn has(self, flag: u64) -> bool {
        self.0 & flag != 0
    }

    /// After one more packet, whose flags these are. One without RST shows that whoever sent a reset before was
    /// not the connection's own.
    #[inline(always)]
    #[must_use]
    pub const fn and(self, flags: u64, now_ns: u64) -> Self {
        Self(self.0 & (Self::SOME | Self::FIN) | flags | now_ns & Self::TIME)
    }

    /// Whether [`NatSeen::and`] is worth a write: most packets leave the entry's cache line as it is.
    #[inline(always)]
    #[must_use]
    pub const fn wants(self, flags: u64, now_ns: u64) -> bool {
        let after = self.and(flags, now_ns);
        after.0 & !Self::TIME != self.0 & !Self::TIME || now_ns.wrapping_sub(self.at_ns()) > TOUCH_NS
    }
}

/// How exact the time of an entry is.
pub const TOUCH_NS: u64 = 1_000_000_000;

/// What a flow is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NatState {
    /// Not both sides were heard, or the client sent nothing but SYNs.
    Opening,
    Established,
    /// One side has said FIN.
    Closing,
    /// Both sides have.
    Closed,
    /// The last segment of one side was a reset.
    Reset,
}

/// The state of a flow from what its two directions have seen.
#[inline(always)]
#[must_use]
pub const fn state(forward: NatSeen, reply: NatSeen) -> NatState {
    if forward.has(NatSeen::RST) || reply.has(NatSeen::RST) {
        return NatState::Reset;
    }
    match (forward.has(NatSeen::FIN), reply.has(NatSeen::FIN)) {
        (true, true) => NatState::Closed,
        (true, false) | (false, true) => NatState::Closing,
        _ if forward.has(NatSeen::SOME) && reply.has(NatSeen::SOME) => NatState::Established,
        _ => NatState::Opening,
    }
}

impl NatState {
    /// Whether a SYN with the same addresses and ports begins another connection.
    #[inline(always)]
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Closed | Self::Reset)
    }

    /// How long an entry lives after the last packet of either side. `idle_ns` is that of the service. A client
    /// that gets no answer sends its SYN again after 1, 3, 7, 15, 31 and 63 s (RFC 6298, six times in Linux); the
    /// others are what Linux' connection tracking uses.
    #[must_use]
    pub fn life_ns(self, idle_ns: u64) -> u64 {
        const SECOND: u64 = 1_000_000_000;
        match self {
            Self::Established => idle_ns,
            Self::Opening => idle_ns.min(64 * SECOND),
            Self::Closing => idle_ns.min(120 * SECOND),
            Self::Closed => idle_ns.min(60 * SECOND),
            Self::Reset => idle_ns.min(10 * SECOND),
        }
    }
}

/// The shortest life that an entry can have: before that nobody need look at its peer.
pub const LEAST_LIFE_NS: u64 = 10_000_000_000;

/// Addresses of one family that sources are rewritten to at most.
pub const MAX_SNAT_ADDRESSES: usize = 16;

/// What sources of one family are rewritten to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SnatPool {
    /// How many of `addresses` count.
    pub count: u32,
    /// The lowest port, in the machine's byte order.
    pub first_port: u32,
    /// How many ports from there on.
    pub ports: u32,
    pub reserved: u32,
    /// As in [`NatKey`].
    pub addresses: [[u32; 4]; MAX_SNAT_ADDRESSES],
}

/// The place of the pool of a family.
#[inline(always)]
#[must_use]
pub const fn pool_index(family: u8) -> u32 {
    match family {
        FAMILY_V4 => 0,
        FAMILY_V6 => 1,
        _ => 2,
    }
}

/// How many ports are tried for a flow before it is refused.
pub const PORT_TRIES: u32 = 64;

/// The number of the try `n`, below `space`: side by side in a small pool, so that all of it is tried, else far from
/// each other, so that what is crowded in one place is not met again. `start` is the hash of the flow.
#[inline(always)]
#[must_use]
pub const fn candidate(start: u32, n: u32, space: u32) -> u32 {
    if space <= PORT_TRIES {
        return ((start % space) + n) % space;
    }
    let mixed = start.wrapping_add(n.wrapping_mul(0x9E37_79B9));
    ((mixed as u64 * space as u64) >> 32) as u32
}

/// What each CPU counts for a service of `nat` or `full-nat`, beside what is counted by backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct NatCounters {
    /// Flows that were given entries.
    pub opened: u64,
    /// Packets of backends that were sent on to clients.
    pub replies: u64,
    /// Bytes of their frames as they came in, Ethernet header included.
    pub reply_bytes: u64,
    /// Flows refused because the table was full, or had no memory.
    pub refused_full: u64,
    /// Flows refused because no port was free.
    pub refused_ports: u64,
    /// ICMP errors that were translated, either way.
    pub errors: u64,
}

/// A datagram whose first fragment was translated: what its other fragments become.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct NatFragment {
    /// [`NatFragment::tag_of`] its key; first, as in [`NatEntry`].
    pub tag: u64,
    /// Up to when this counts, `CLOCK_MONOTONIC`.
    pub until_ns: u64,
    pub source: [u32; 4],
    pub destination: [u32; 4],
    /// Index of the service.
    pub service: u32,
    /// Index of the backend.
    pub backend: u32,
    /// [`FORWARD`] or [`REPLY`].
    pub direction: u32,
    /// As in [`NatEntry`].
    pub mtu: u32,
    pub way: [u64; 2],
    /// As in [`NatEntry`].
    pub tags: Tags,
    /// What the ports became: later fragments have none, but who complains about one means this flow.
    pub ports: u32,
    /// As in [`NatKey`].
    pub kind: u32,
}

impl NatFragment {
    /// In the kind of a key: of the fragments as we sent them, and not as they came.
    pub const SENT: u32 = 1 << 16;

    /// What the fragments of this datagram bear in front.
    #[inline(always)]
    #[must_use]
    pub const fn tag_of(key: &FragmentKey) -> u64 {
        NatKey {
            source: key.source,
            destination: key.destination,
            ports: key.identification,
            kind: key.kind,
        }
        .tag()
    }
}

const _: () = {
    assert!(size_of::<NatKey>() == 40 && align_of::<NatKey>() == 4);
    assert!(size_of::<NatEntry>() == 104 && align_of::<NatEntry>() == 8);
    assert!(core::mem::offset_of!(NatEntry, tag) == 0);
    assert!(size_of::<SnatPool>() == 16 + 16 * MAX_SNAT_ADDRESSES);
    assert!(size_of::<NatCounters>() == 48);
    assert!(size_of::<NatFragment>() == 96);
};

#[cfg(feature = "user")]
mod pod {
    //! SAFETY (all): as in [`crate::layout`].
    use super::*;

    macro_rules! pod {
        ($($name:ty),+) => { $(
            // SAFETY: see the module.
            unsafe impl aya::Pod for $name {}
        )+ };
    }
    pod!(NatKey, NatEntry, NatSeen, SnatPool, NatCounters, NatFragment);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;

    const S: u64 = 1_000_000_000;

    /// A connection as the two directions see it: who sends what.
    fn after(packets: &[(u32, u64)]) -> NatState {
        let (mut forward, mut reply) = (NatSeen::at(S), NatSeen::at(S));
        for (direction, flags) in packets {
            let side = if *direction == FORWARD {
                &mut forward
            } else {
                &mut reply
            };
            *side = side.and(*flags, 2 * S);
        }
        state(forward, reply)
    }

    #[test]
    fn a_connection_goes_through_its_states() {
        use NatState::*;
        let (f, r) = (FORWARD, REPLY);
        let (syn, some) = (0, NatSeen::SOME);
        let (fin, rst) = (some | NatSeen::FIN, some | NatSeen::RST);
        let open = [(f, syn), (r, some), (f, some)];
        let with = |rest: &[(u32, u64)]| after(&[&open[..], rest].concat());
        assert_eq!(after(&open[..1]), Opening, "SYN");
        assert_eq!(after(&open[..2]), Opening, "SYN answered");
        assert_eq!(with(&[]), Established);
        assert_eq!(with(&[(f, fin)]), Closing, "the client is done");
        assert_eq!(with(&[(r, fin)]), Closing, "the backend is done");
        assert_eq!(
            with(&[(f, fin), (r, some)]),
            Closing,
            "half-closed, data flows on"
        );
        assert_eq!(with(&[(f, fin), (r, fin)]), Closed);
        assert_eq!(with(&[(f, fin), (r, fin), (f, some)]), Closed, "the last ACK");
        assert_eq!(with(&[(r, rst)]), Reset);
        assert_eq!(
            with(&[(r, rst), (r, some)]),
            Established,
            "it was not the backend's"
        );
        assert_eq!(after(&[(f, some)]), Opening, "a segment out of nowhere");
    }

    #[test]
    fn lives_never_exceed_the_idle_timeout() {
        use NatState::*;
        for state in [Opening, Established, Closing, Closed, Reset] {
            assert!(state.life_ns(5 * S) <= 5 * S);
            assert!(state.life_ns(u64::MAX) >= LEAST_LIFE_NS);
        }
        assert_eq!(Established.life_ns(900 * S), 900 * S);
    }

    #[test]
    fn a_small_pool_is_tried_whole() {
        for space in 1..=PORT_TRIES {
            let tried: BTreeSet<u32> = (0..PORT_TRIES)
                .map(|n| candidate(0xdead_beef, n, space))
                .collect();
            assert_eq!(tried.len() as u32, space);
        }
    }

    #[test]
    fn a_large_pool_is_tried_in_different_places() {
        for start in [0, 1, u32::MAX, 0x1234_5678] {
            let tried: BTreeSet<u32> = (0..PORT_TRIES).map(|n| candidate(start, n, 64_512)).collect();
            assert!(tried.len() as u32 >= PORT_TRIES - 1, "{tried:?}");
        }
    }

    proptest! {
        #[test]
        fn a_candidate_is_in_the_pool(start: u32, n in 0..PORT_TRIES, space in 1_u32..16 * 65_536) {
            prop_assert!(candidate(start, n, space) < space);
        }

        #[test]
        fn a_key_turned_twice_is_itself(source: [u32; 4], destination: [u32; 4], ports: u32, kind: u32) {
            let key = NatKey { source, destination, ports, kind };
            prop_assert_eq!(key.turned().turned(), key);
            prop_assert_ne!(key.tag(), 0);
        }

        #[test]
        fn a_way_gives_back_its_interface(a: [u16; 3], b: [u16; 3], ifindex: u32) {
            let way = way(a, b, ifindex);
            prop_assert_eq!(ifindex_of(way), ifindex);
            prop_assert_eq!(way[0] as u16, a[0]);
            prop_assert_eq!((way[1] >> 32) as u16, b[2]);
        }

        #[test]
        fn time_and_flags_do_not_touch(now_ns in 0..1_u64 << 60, later_ns in 0..1_u64 << 60) {
            let seen = NatSeen::at(now_ns).and(NatSeen::SOME | NatSeen::FIN, later_ns);
            prop_assert_eq!(seen.at_ns(), later_ns);
            prop_assert!(seen.has(NatSeen::FIN) && seen.has(NatSeen::SOME) && !seen.has(NatSeen::RST));
        }
    }

    #[test]
    fn most_packets_write_nothing() {
        let seen = NatSeen::at(S).and(NatSeen::SOME, S);
        assert!(!seen.wants(NatSeen::SOME, S + S / 2));
        assert!(seen.wants(NatSeen::SOME, 3 * S));
        assert!(seen.wants(NatSeen::SOME | NatSeen::FIN, S + 1));
    }
}
