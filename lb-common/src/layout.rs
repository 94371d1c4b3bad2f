//! The keys and values of the maps.
//!
//! User space compares the layout of a pinned map with what it was compiled for before it uses the pin, and
//! [`LAYOUT_VERSION`] stands for everything that sizes alone cannot show. Every value is `repr(C)` without
//! hidden padding; the assertions at the end lock sizes and alignment.

use crate::cache::Chooser;
use crate::limit::Rate;
use crate::rule::State;

/// Raised when the meaning of a map changes while its sizes stay the same.
pub const LAYOUT_VERSION: u32 = 4;

/// Slots of one slab. A slab is one BPF array of this many 64-bit slots (1 MiB), memory-mapped by the agent;
/// lookup tables lie in slabs side by side.
pub const SLAB_SLOTS: u32 = 131_072;
/// How many slabs there can be.
pub const MAX_SLABS: u32 = 1024;
/// Counters of reasons that the map has room for.
pub const REASON_SLOTS: u32 = 64;
/// Interfaces that the program can be attached to or send by.
pub const MAX_INTERFACES: u32 = 64;
/// `BPF_F_MMAPABLE` (Linux 5.5): the array can be mapped into the agent's memory.
pub const MMAPABLE: u32 = 1 << 10;

/// Address family of a [`ServiceKey`].
pub const FAMILY_V4: u8 = 4;
/// Address family of a [`ServiceKey`].
pub const FAMILY_V6: u8 = 6;

/// What identifies a service in the kernel. Port and protocol 0 mark the address itself: "some service has
/// this address", which the rare paths (ARP, fragments, other protocols) ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct ServiceKey {
    /// Address in network order; an IPv4 address is the last word, the others are 0.
    pub address: [u32; 4],
    /// Port in network order; 0 for every port.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// [`FAMILY_V4`] or [`FAMILY_V6`].
    pub family: u8,
}

/// Buckets of the front of the services.
pub const SERVICE_BUCKETS: u32 = 1 << SERVICE_BUCKET_BITS;
const SERVICE_BUCKET_BITS: u32 = 12;

/// One cache line of the front of the services: the map of services keyed by [`ServiceKey`] is the truth, these
/// spare packets most of its look-ups, which are what costs most on their way. A key that finds its bucket full is in
/// the map alone, and `overflow` says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct ServiceBucket {
    pub doors: [ServiceDoor; 2],
    /// Not 0: some keys of this bucket are in the map alone.
    pub overflow: u64,
    pub reserved: u64,
}

/// One service of a [`ServiceBucket`]. `word` is written last and cleared first, and a door is not used again within
/// a second: a packet sees a whole one or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ServiceDoor {
    /// As [`ServiceKey::address`].
    pub address: [u64; 2],
    /// Bits 0..32 port, protocol and family as they stand in a [`ServiceKey`], 32..64 the index of the service. 0:
    /// empty.
    pub word: u64,
}

impl ServiceKey {
    /// The address as two words.
    #[inline(always)]
    #[must_use]
    pub const fn halves(&self) -> [u64; 2] {
        let [a, b, c, d] = self.address;
        [a as u64 | (b as u64) << 32, c as u64 | (d as u64) << 32]
    }

    /// Port, protocol and family in one word; never 0.
    #[inline(always)]
    #[must_use]
    pub const fn tail(&self) -> u32 {
        self.port as u32 | (self.protocol as u32) << 16 | (self.family as u32) << 24
    }

    /// Its bucket. Operators choose the keys, so the factors need not be secret (they are digits of pi).
    #[inline(always)]
    #[must_use]
    pub const fn bucket(&self) -> u32 {
        let [a, b] = self.halves();
        let sum = a
            .wrapping_mul(0x243F_6A88_85A3_08D3)
            .wrapping_add(b.wrapping_mul(0x1319_8A2E_0370_7345))
            .wrapping_add((self.tail() as u64).wrapping_mul(0xA409_3822_299F_31D1));
        ((sum ^ sum >> 32).wrapping_mul(0x082E_FA98_EC4E_6C89) >> (64 - SERVICE_BUCKET_BITS)) as u32
    }
}

/// A key of the tree of services of port ranges (BPF_MAP_TYPE_LPM_TRIE): a block of ports of one address and protocol,
/// as long and aligned as a power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct PortPrefix {
    /// How many bits of what follows count: [`PortPrefix::BEFORE_PORT`] and those of the port.
    pub bits: u32,
    /// As [`ServiceKey::address`].
    pub address: [u32; 4],
    /// Protocol, family and port in network order, from the first byte in memory to the last.
    pub ends: u32,
}

impl PortPrefix {
    /// Bits of address, protocol and family.
    pub const BEFORE_PORT: u32 = 144;
    /// All bits.
    pub const WHOLE: u32 = Self::BEFORE_PORT + 16;

    /// [`PortPrefix::ends`] of a key.
    #[inline(always)]
    #[must_use]
    pub const fn ends_of(key: &ServiceKey) -> u32 {
        key.protocol as u32 | (key.family as u32) << 8 | (key.port as u32) << 16
    }
}

impl ServiceDoor {
    #[must_use]
    pub const fn new(key: &ServiceKey, index: u32) -> Self {
        Self {
            address: key.halves(),
            word: key.tail() as u64 | (index as u64) << 32,
        }
    }
}

/// Where the lookup table of a service lies: one 64-bit word, so that one aligned store switches all packets
/// from one generation to the next.
///
/// Bits 0..17 size in slots (0: no table), 17..34 first slot, 34..44 slab, 44..48 the [`Chooser`], 59 [`TableWord::QUIC`], 60
/// [`TableWord::NAT`], 61 [`TableWord::HELD`], 62 [`TableWord::FULL`], 63 [`TableWord::RESIZING`]; the rest is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct TableWord(pub u64);

impl TableWord {
    const FIELD: u64 = (1 << 17) - 1;
    const CHOOSER: u64 = 15 << 44;

    /// Datagrams are QUIC, see [`crate::quic`].
    pub const QUIC: u64 = 1 << 59;
    /// Forward mode `nat` or `full-nat`: every flow has its entries in the table of [`crate::nat`].
    pub const NAT: u64 = 1 << 60;
    /// Windows are about to end: a SYN whose entry is refused is dropped, see [`crate::rule::Place::held`].
    pub const HELD: u64 = 1 << 61;
    /// `tracking = "full"`: every flow of the service has an entry in the cache of flows.
    pub const FULL: u64 = 1 << 62;
    /// The table was resized less than a window ago: [`ServiceRecord::before`] says where flows without an entry
    /// belong.
    pub const RESIZING: u64 = 1 << 63;

    /// No table: nobody serves.
    pub const NONE: Self = Self(0);

    /// `size` is at most 131,071, `offset + size` at most [`SLAB_SLOTS`], `slab` below [`MAX_SLABS`].
    #[must_use]
    pub const fn new(slab: u32, offset: u32, size: u32) -> Self {
        debug_assert!(size < SLAB_SLOTS && offset + size <= SLAB_SLOTS && slab < MAX_SLABS);
        Self((slab as u64) << 34 | (offset as u64) << 17 | size as u64)
    }

    #[inline(always)]
    #[must_use]
    pub const fn size(self) -> u32 {
        (self.0 & Self::FIELD) as u32
    }

    #[inline(always)]
    #[must_use]
    pub const fn offset(self) -> u32 {
        ((self.0 >> 17) & Self::FIELD) as u32
    }

    #[inline(always)]
    #[must_use]
    pub const fn slab(self) -> u32 {
        (self.0 >> 34) as u32 & (MAX_SLABS - 1)
    }

    /// The same table with flags set.
    #[must_use]
    pub const fn with(self, flags: u64) -> Self {
        Self(self.0 | flags)
    }

    /// The same table for a scheduler.
    #[must_use]
    pub const fn chosen_by(self, chooser: Chooser) -> Self {
        Self(self.0 & !Self::CHOOSER | (chooser as u64) << 44)
    }

    #[inline(always)]
    #[must_use]
    pub const fn chooser(self) -> Chooser {
        Chooser::from_bits((self.0 >> 44) as u8 & 15)
    }

    /// The same table without flags: which slots they are.
    #[must_use]
    pub const fn place(self) -> Self {
        Self(self.0 & !(Self::CHOOSER | Self::QUIC | Self::NAT | Self::HELD | Self::FULL | Self::RESIZING))
    }

    #[inline(always)]
    #[must_use]
    pub const fn is_quic(self) -> bool {
        self.0 & Self::QUIC != 0
    }

    #[inline(always)]
    #[must_use]
    pub const fn is_nat(self) -> bool {
        self.0 & Self::NAT != 0
    }

    #[inline(always)]
    #[must_use]
    pub const fn is_held(self) -> bool {
        self.0 & Self::HELD != 0
    }

    #[inline(always)]
    #[must_use]
    pub const fn is_full(self) -> bool {
        self.0 & Self::FULL != 0
    }

    #[inline(always)]
    #[must_use]
    pub const fn is_resizing(self) -> bool {
        self.0 & Self::RESIZING != 0
    }
}

/// What the program knows of a service: its table, and the table before it while a resize is under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ServiceRecord {
    pub table: TableWord,
    /// [`TableWord::NONE`] unless the table was resized less than a window ago. Written before [`TableWord::RESIZING`]
    /// is set in `table`.
    pub before: TableWord,
}

/// One slot of a lookup table: `{current, previous, consult}` in one aligned 64-bit word.
///
/// Bits 0..32 the backend that takes new flows, 32..63 the backend that flows without an entry belong to, 63
/// whether the flow table must be consulted. Backend 0 is nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Slot(pub u64);

impl Slot {
    const CONSULT: u64 = 1 << 63;

    /// A slot that has not moved: all its flows belong to `backend`.
    #[must_use]
    pub const fn stable(backend: u32) -> Self {
        debug_assert!(backend < 1 << 31);
        Self((backend as u64) << 32 | backend as u64)
    }

    /// A slot of these parts.
    #[must_use]
    pub const fn new(current: u32, previous: u32, consult: bool) -> Self {
        debug_assert!(current < 1 << 31 && previous < 1 << 31);
        Self((consult as u64) << 63 | (previous as u64) << 32 | current as u64)
    }

    /// What counts for a flow while its table is being resized: `now` is its slot in the table in force, `before`
    /// that in the table before. A flow without an entry belongs to `previous` of the latter; 0 there means that
    /// nobody had it. The flow table is consulted for every such flow.
    #[inline(always)]
    #[must_use]
    pub const fn resizing(now: Self, before: Self) -> Self {
        let previous = if before.previous() == 0 {
            now.current()
        } else {
            before.previous()
        };
        Self::new(now.current(), previous, true)
    }

    #[inline(always)]
    #[must_use]
    pub const fn current(self) -> u32 {
        self.0 as u32
    }

    #[inline(always)]
    #[must_use]
    pub const fn previous(self) -> u32 {
        ((self.0 & !Self::CONSULT) >> 32) as u32
    }

    #[inline(always)]
    #[must_use]
    pub const fn consult(self) -> bool {
        self.0 & Self::CONSULT != 0
    }
}

/// What [`Backend::kind`] says: how packets reach the backend.
pub mod kind {
    /// The next hop is not known: packets are dropped.
    pub const UNRESOLVED: u8 = 0;
    /// `dsr-l2`: only the Ethernet header is replaced.
    pub const L2: u8 = 1;
    /// `dsr-ipip` with an outer IPv4 header; the packet inside is IPv4.
    pub const IPV4: u8 = 2;
    /// `dsr-ipip` with an outer IPv6 header; the packet inside is IPv4 or IPv6.
    pub const IPV6: u8 = 3;
    /// `dsr-gue` with an outer IPv4 header; the packet inside is IPv4.
    pub const GUE_V4: u8 = 4;
    /// `dsr-gue` with an outer IPv6 header; the packet inside is IPv4 or IPv6.
    pub const GUE_V6: u8 = 5;
    /// `nat`: the destination becomes the backend.
    pub const NAT: u8 = 8;
    /// `full-nat`: the source becomes an address of ours as well.
    pub const FULL_NAT: u8 = 9;
}

/// The longest outer header: IPv6.
pub const OUTER_LEN: usize = 40;
/// A UDP header, which `dsr-gue` has between outer IP header and packet.
pub const UDP_LEN: usize = 8;
/// The UDP port of GUE (IANA).
pub const GUE_PORT: u16 = 6080;

/// A backend as the program sees it: ready-made headers to copy in front of the packet. One cache line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Backend {
    /// One of [`kind`].
    pub kind: u8,
    /// What it still takes: [`crate::rule::Standing::bits`], and [`crate::rule::Standing::CLOSED`].
    pub standing: u8,
    /// The longest IP packet, with the outer header, that the outgoing interface takes.
    pub mtu: u16,
    /// The interface to send by, in the machine's byte order.
    pub ifindex: u32,
    /// The Ethernet header: destination, source, type of the outer packet (unused for [`kind::L2`], which
    /// keeps the packet's own).
    pub ethernet: [u16; 7],
    /// For [`kind::IPV4`] and [`kind::GUE_V4`]: sum of the outer header with its length and type of service as zero, see
    /// [`crate::checksum::ipv4_from_seed`].
    pub checksum_seed: u16,
    /// The outer header as it goes on the wire, with lengths, traffic class and checksum left 0. With `outer_sources`
    /// the source address has zeros where bits of the flow's hash go, all within its last two bytes; a mask of them, in
    /// memory order, is the low end of the last word for [`kind::IPV4`], `checksum_seed` for [`kind::IPV6`]. For
    /// [`kind::NAT`] and [`kind::FULL_NAT`]: two words of address and one of the port, see [`Backend::translation`].
    pub outer: [u64; OUTER_LEN / 8],
}

impl Backend {
    /// Address, and port in network order (0: that of the packet), that `nat` and `full-nat` translate to.
    #[inline(always)]
    #[must_use]
    pub const fn translation(&self) -> ([u32; 4], u16) {
        let [a, b, c, ..] = self.outer;
        ([a as u32, (a >> 32) as u32, b as u32, (b >> 32) as u32], c as u16)
    }

    /// Bits of the outer source address that follow the flow, in memory order.
    #[must_use]
    pub const fn outer_mask(&self) -> u16 {
        match self.kind {
            kind::IPV4 => self.outer[OUTER_LEN / 8 - 1] as u16,
            kind::IPV6 => self.checksum_seed,
            _ => 0,
        }
    }

    /// A backend that nothing can be sent to.
    pub const UNRESOLVED: Self = Self {
        kind: kind::UNRESOLVED,
        standing: 0,
        mtu: 0,
        ifindex: 0,
        ethernet: [0; 7],
        checksum_seed: 0,
        outer: [0; OUTER_LEN / 8],
    };

    /// How many words it has.
    pub const WORDS: usize = size_of::<Self>() / size_of::<u64>();

    /// The record as it stands in memory.
    #[must_use]
    pub const fn words(&self) -> [u64; Self::WORDS] {
        let [a, b, c, d, e] = self.outer;
        let [low, high] = self.ethernet_words();
        let first = self.kind as u64
            | (self.standing as u64) << 8
            | (self.mtu as u64) << 16
            | (self.ifindex as u64) << 32;
        [first, low, high, a, b, c, d, e]
    }

    /// The record that stands in memory so.
    #[must_use]
    pub const fn from_words([first, low, high, a, b, c, d, e]: [u64; Self::WORDS]) -> Self {
        Self {
            kind: first as u8,
            standing: (first >> 8) as u8,
            mtu: (first >> 16) as u16,
            ifindex: (first >> 32) as u32,
            ethernet: [
                low as u16,
                (low >> 16) as u16,
                (low >> 32) as u16,
                (low >> 48) as u16,
                high as u16,
                (high >> 16) as u16,
                (high >> 32) as u16,
            ],
            checksum_seed: (high >> 48) as u16,
            outer: [a, b, c, d, e],
        }
    }

    /// The Ethernet header as it stands in memory; the last two bytes belong to nothing.
    #[inline(always)]
    #[must_use]
    pub const fn ethernet_words(&self) -> [u64; 2] {
        let [a, b, c, d, e, f, g] = self.ethernet;
        [word([a, b, c, d]), word([e, f, g, self.checksum_seed])]
    }
}

const fn word([a, b, c, d]: [u16; 4]) -> u64 {
    a as u64 | (b as u64) << 16 | (c as u64) << 32 | (d as u64) << 48
}

/// Up to two VLAN tags as they stand in a frame: in the low half the outer one, or the only one, in the high half the
/// inner one, each its type and its control information (IEEE 802.1Q section 9.3); 0 where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Tags(pub u64);

/// Type of a tag of IEEE 802.1Q.
pub const TAG_TYPE: u16 = 0x8100;
/// Type of a service tag of IEEE 802.1ad, which stands before one of [`TAG_TYPE`].
pub const SERVICE_TAG_TYPE: u16 = 0x88A8;

impl Tags {
    pub const NONE: Self = Self(0);

    /// One more tag, inside of those there are: at most two.
    #[must_use]
    pub const fn within(self, kind: u16, vlan: u16) -> Self {
        let tag = kind.to_be() as u64 | (vlan.to_be() as u64) << 16;
        Self(if self.0 == 0 { tag } else { self.0 | tag << 32 })
    }

    #[inline(always)]
    #[must_use]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    #[inline(always)]
    #[must_use]
    pub const fn are_two(self) -> bool {
        self.0 >> 32 != 0
    }

    /// Bytes they take in a frame.
    #[inline(always)]
    #[must_use]
    pub const fn bytes(self) -> usize {
        (!self.is_none() as usize + self.are_two() as usize) * 4
    }

    /// The numbers of their VLANs, the outer one first.
    #[must_use]
    pub const fn vlans(self) -> [Option<u16>; 2] {
        const fn vlan(tag: u32) -> Option<u16> {
            if tag == 0 {
                None
            } else {
                Some(u16::from_be((tag >> 16) as u16) & 0xfff)
            }
        }
        [vlan(self.0 as u32), vlan((self.0 >> 32) as u32)]
    }
}

/// What identifies a flow in the flow table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct FlowKey {
    /// Address of the client in network order; an IPv4 address is the last word, the others are 0.
    pub source: [u32; 4],
    /// Source and destination port as their four bytes stand in the packet.
    pub ports: u32,
    /// Index of the service.
    pub service: u32,
}

/// An entry of the flow table. `owner` changes only by an update of the map; `seen` is also written in place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FlowEntry {
    pub owner: FlowOwner,
    pub seen: FlowSeen,
    /// Sequence number of the SYN that made the entry, in the machine's byte order.
    pub isn: u32,
    /// [`crate::rule::Entry::before`].
    pub before: u32,
}

/// The tag (the flow's hash) and the backend of an entry in one aligned word: elements of a hash map are recycled
/// under their readers, so a reader takes this word once and compares the tag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct FlowOwner(pub u64);

impl FlowOwner {
    #[inline(always)]
    #[must_use]
    pub const fn new(hash: u32, backend: u32) -> Self {
        Self((hash as u64) << 32 | backend as u64)
    }

    #[inline(always)]
    #[must_use]
    pub const fn hash(self) -> u32 {
        (self.0 >> 32) as u32
    }

    #[inline(always)]
    #[must_use]
    pub const fn backend(self) -> u32 {
        self.0 as u32
    }
}

/// State and time of an entry's last packet in one aligned word: bits 62..64 the state, 0..62 nanoseconds of
/// `CLOCK_MONOTONIC`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct FlowSeen(pub u64);

impl FlowSeen {
    const TIME: u64 = (1 << 62) - 1;

    #[inline(always)]
    #[must_use]
    pub const fn new(state: State, at_ns: u64) -> Self {
        Self((state as u64) << 62 | at_ns & Self::TIME)
    }

    #[inline(always)]
    #[must_use]
    pub const fn state(self) -> State {
        State::from_bits((self.0 >> 62) as u8)
    }

    #[inline(always)]
    #[must_use]
    pub const fn at_ns(self) -> u64 {
        self.0 & Self::TIME
    }
}

/// What program and agent tell each other about the flow table, by service. Memory-mapped. The program takes from
/// the allowances without atomic instructions, so they are approximate; without an agent that renews them they run
/// out, entries are refused, and nothing moves or breaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FlowControl {
    /// `CLOCK_MONOTONIC` of the last refusal that keeps windows open; 0: none yet. Written by the program.
    pub refused_ns: u64,
    /// How many entries SYNs may still make.
    pub syn_left: u64,
    /// How many entries other TCP segments may still make.
    pub data_left: u64,
    /// How many entries UDP may still make.
    pub udp_left: u64,
}

/// What each CPU counts about the flow table, by service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FlowCounters {
    /// Packets that found an entry.
    pub hits: u64,
    /// Entries made by SYNs.
    pub inserted_syn: u64,
    /// Entries made by other TCP segments.
    pub inserted_data: u64,
    /// Entries made by UDP.
    pub inserted_udp: u64,
    /// Entries not made because the allowance was used up.
    pub refused_allowance: u64,
    /// Entries not made because the table was full, or had no memory.
    pub refused_full: u64,
    /// Packets whose key another connection's unconfirmed entry has.
    pub occupied: u64,
    /// Resets sent in the name of a backend that is DOWN (`on_down = "reset"`).
    pub resets: u64,
    /// `tracking = "full"`: flows that lost their way in the cache to another.
    pub evicted: u64,
    /// Connections whose place in the nursery was taken, so that their hash chose instead of the scheduler.
    pub crowded: u64,
}

/// What is asked of a client before its packet goes to a backend, by service. Memory-mapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Guard {
    /// 0: nothing. A combination of the constants below.
    pub asks: u64,
    /// Which bits of an address, as in [`ServiceKey::halves`], make a client.
    pub client_mask: [u64; 2],
    pub flows: Rate,
    pub flows_per_client: Rate,
    pub packets_per_client: Rate,
}

impl Guard {
    /// Whether the service's access list lets it in. The list is there before this is set.
    pub const LIST: u64 = 1;
    /// Whether it comes too often.
    pub const LIMITS: u64 = 2;
    /// With [`Guard::LIMITS`]: what comes too often is counted, and passes.
    pub const DRY_RUN: u64 = 4;
}

/// A prefix of clients in an access list, as the kernel's prefix trees want it. Addresses of both families have 128
/// bits, as in [`ServiceKey::address`]: an IPv4 prefix is 96 bits longer there, the first 96 are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct ClientPrefix {
    /// How many bits of the address count.
    pub bits: u32,
    pub address: [u32; 4],
}

/// What a prefix says: its clients are denied. Others are allowed.
pub const CLIENT_DENIED: u32 = 1;

/// What each CPU counts about refused clients, by service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct GuardCounters {
    /// Packets of clients that the access list denies.
    pub denied: u64,
    /// SYNs beyond the limit of the service. These three: also in a dry run, where they pass.
    pub over_flows: u64,
    /// SYNs beyond that of their client.
    pub over_client_flows: u64,
    /// Datagrams beyond that of their client.
    pub over_client_packets: u64,
}

/// What each CPU counts for a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counters {
    /// Packets sent to the backend.
    pub packets: u64,
    /// Bytes of their frames as they came in, Ethernet header included.
    pub bytes: u64,
    /// TCP segments with SYN and without ACK: an upper bound of the connections begun.
    pub new_flows: u64,
    /// Packets that left by another interface than they came in by; part of `packets`.
    pub redirected: u64,
}

/// An interface that the program answers ARP and neighbour solicitations on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Interface {
    pub mac: [u16; 3],
    pub reserved: u16,
}

/// How many datagrams in fragments can be on their way at once.
pub const MAX_FRAGMENTS: u32 = 8192;

/// A datagram whose fragments follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct FragmentKey {
    /// As [`ServiceKey::address`].
    pub source: [u32; 4],
    pub destination: [u32; 4],
    /// As it stands in the packet.
    pub identification: u32,
    /// Family, shifted left by 8, and IPv4's protocol.
    pub kind: u32,
}

/// Where the first fragment of a datagram went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct FragmentPlace {
    /// Up to when this counts, in nanoseconds since boot.
    pub until_ns: u64,
    /// Of the backend's record at that time.
    pub fingerprint: u64,
    /// Index of the backend; 0: to the kernel.
    pub index: u32,
    /// Hash of the flow.
    pub hash: u32,
    /// Index of the service.
    pub service: u32,
    pub reserved: u32,
}

/// What the program decided about the last packet; written only where the load-time constant
/// `EXPLAIN` is set, by `simulate`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Decision {
    pub reason: u32,
    /// Index of the service plus 1; 0 for none.
    pub service: u32,
    /// Index of the backend; 0 for none.
    pub backend: u32,
    pub reserved: u32,
}

/// Longest name of a service, in bytes.
pub const NAME_LEN: usize = 64;

/// What user space keeps beside [`ServiceRecord`], so that the next agent, and `status` without one, know
/// what the tables mean. The program never reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ServiceMeta {
    pub key: ServiceKey,
    /// 0: this index is free.
    pub in_use: u8,
    /// 1 `dsr-l2`, 2 `dsr-ipip`, 3 `nat`, 4 `full-nat`, 5 `dsr-gue`.
    pub forward: u8,
    /// 0 `none`, 1 `moved`, 2 `full`.
    pub tracking: u8,
    pub reserved: u8,
    /// Counts of the backends that were removed: the service's own never go back.
    pub retired: Counters,
    /// How often the table was replaced.
    pub generation: u64,
    /// UTF-8, padded with zeros.
    pub name: [u8; NAME_LEN],
}

/// What user space keeps beside [`Backend`]: the identity behind an index, and its states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct BackendMeta {
    /// Address in network order; an IPv4 address is the last word.
    pub address: [u32; 4],
    /// Index of the service.
    pub service: u32,
    /// Port in network order.
    pub port: u16,
    /// Weight from the configuration.
    pub weight: u16,
    /// [`FAMILY_V4`] or [`FAMILY_V6`].
    pub family: u8,
    /// 0: this index is free.
    pub in_use: u8,
    /// 0 UNKNOWN, 1 DOWN, 2 UP.
    pub state: u8,
    /// 0 READY, 1 DRAIN, 2 MAINT.
    pub admin: u8,
    /// Bit 0: `runtime_weight` stands in place of `weight`. Bit 1: it was UP at some time.
    pub flags: u8,
    /// Index of the check's result code.
    pub check_code: u8,
    /// Weight set at runtime.
    pub runtime_weight: u16,
    /// Latency of the last check in microseconds.
    pub latency_us: u32,
}

/// What user space keeps of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct AgentMeta {
    /// [`LAYOUT_VERSION`] of the agent that made the maps.
    pub layout: u32,
    /// Process id of the last agent, in its own pid namespace.
    pub pid: u32,
    /// When it started, in seconds since 1970.
    pub started_s: u64,
    /// When it was last alive, in seconds since 1970; written every second.
    pub alive_s: u64,
    /// Its version, padded with zeros.
    pub version: [u8; 32],
}

const _: () = {
    assert!(size_of::<ServiceKey>() == 20 && align_of::<ServiceKey>() == 4);
    assert!(size_of::<ServiceBucket>() == 64 && align_of::<ServiceBucket>() == 64);
    assert!(size_of::<ServiceDoor>() == 24);
    assert!(size_of::<TableWord>() == 8);
    assert!(size_of::<ServiceRecord>() == 16 && align_of::<ServiceRecord>() == 8);
    assert!(size_of::<Slot>() == 8);
    assert!(size_of::<Backend>() == 64 && align_of::<Backend>() == 8);
    assert!(size_of::<Tags>() == 8);
    assert!(size_of::<Counters>() == 32);
    assert!(size_of::<FlowKey>() == 24 && align_of::<FlowKey>() == 4);
    assert!(size_of::<FlowEntry>() == 24 && align_of::<FlowEntry>() == 8);
    assert!(size_of::<FlowControl>() == 32);
    assert!(size_of::<FlowCounters>() == 80);
    assert!(size_of::<Interface>() == 8);
    assert!(size_of::<Guard>() == 72);
    assert!(size_of::<ClientPrefix>() == 20 && align_of::<ClientPrefix>() == 4);
    assert!(size_of::<PortPrefix>() == 24);
    assert!(size_of::<GuardCounters>() == 32);
    assert!(size_of::<Decision>() == 16);
    assert!(size_of::<FragmentKey>() == 40);
    assert!(size_of::<FragmentPlace>() == 32);
    assert!(size_of::<ServiceMeta>() == 128);
    assert!(size_of::<BackendMeta>() == 36);
    assert!(size_of::<AgentMeta>() == 56);
    assert!(size_of::<crate::hash::HashKey>() == 64);
};

#[cfg(feature = "user")]
mod pod {
    //! SAFETY (all): `repr(C)` or `repr(transparent)`, of integers only, without hidden padding (the sizes
    //! asserted above are the sums of the fields), so every byte may be read and any bytes are a value.
    use super::*;

    macro_rules! pod {
        ($($name:ty),+) => { $(
            // SAFETY: see the module.
            unsafe impl aya::Pod for $name {}
        )+ };
    }
    pod!(
        ServiceKey,
        ServiceBucket,
        ServiceDoor,
        TableWord,
        ServiceRecord,
        Slot,
        Backend,
        Tags,
        Counters,
        FlowKey,
        FlowEntry,
        FlowOwner,
        FlowSeen,
        FlowControl,
        FlowCounters,
        Interface,
        Guard,
        ClientPrefix,
        GuardCounters,
        Decision,
        ServiceMeta,
        BackendMeta,
        AgentMeta,
        crate::client::Persistence,
        crate::client::ClientCounters,
        crate::hash::HashKey
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_words_of_a_record_are_its_memory() {
        let record = Backend {
            kind: 1,
            standing: 2,
            mtu: 0x0403,
            ifindex: 0x0807_0605,
            ethernet: std::array::from_fn(|n| ((2 * n + 9) | (2 * n + 10) << 8) as u16),
            checksum_seed: 0x1817,
            outer: std::array::from_fn(|n| {
                u64::from_le_bytes(std::array::from_fn(|m| (25 + 8 * n + m) as u8))
            }),
        };
        // SAFETY: plain integers without padding, as the size shows, of the same size.
        let memory: [u8; size_of::<Backend>()] = unsafe { core::mem::transmute(record) };
        assert!(
            (1..).zip(memory).all(|(n, byte): (u8, u8)| n == byte),
            "{memory:?}"
        );
        assert_eq!(record.words().map(u64::to_ne_bytes).concat(), memory);
        assert_eq!(Backend::from_words(record.words()), record);
    }

    #[test]
    fn services_spread_over_their_buckets() {
        let mut load = vec![0_u32; SERVICE_BUCKETS as usize];
        for n in 0..1024_u32 {
            let key = ServiceKey {
                address: [0, 0, 0, u32::to_be(0xC000_0200 + n / 4)],
                port: (80 + n as u16 % 4).to_be(),
                protocol: 6,
                family: FAMILY_V4,
            };
            load[key.bucket() as usize] += 1;
        }
        // Chance alone puts 2.1 keys of 1024 (one in 4096 buckets) beside two others.
        let beyond: u32 = load.iter().map(|n| n.saturating_sub(2)).sum();
        assert!(beyond <= 12, "{beyond} of 1024 keys find their bucket full");
    }

    proptest! {
        #[test]
        fn a_table_word_gives_back_its_parts(slab in 0..MAX_SLABS, offset in 0..SLAB_SLOTS, size in 0..SLAB_SLOTS) {
            prop_assume!(offset + size <= SLAB_SLOTS);
            let word = TableWord::new(slab, offset, size);
            prop_assert_eq!((word.slab(), word.offset(), word.size()), (slab, offset, size));
            let flagged = word.with(TableWord::QUIC | TableWord::HELD | TableWord::FULL | TableWord::RESIZING);
            prop_assert_eq!((flagged.slab(), flagged.offset(), flagged.size()), (slab, offset, size));
            prop_assert_eq!(flagged.place(), word);
            prop_assert_eq!((flagged.is_held(), flagged.is_full(), flagged.is_resizing()), (true, true, true));
            prop_assert_eq!((flagged.is_quic(), word.is_quic()), (true, false));
            prop_assert_eq!((word.is_held(), word.is_full(), word.is_resizing()), (false, false, false));
            prop_assert_eq!(word == TableWord::NONE, slab == 0 && offset == 0 && size == 0);
        }

        #[test]
        fn a_stable_slot_has_one_owner(backend in 0..1_u32 << 31) {
            let slot = Slot::stable(backend);
            prop_assert_eq!((slot.current(), slot.previous(), slot.consult()), (backend, backend, false));
        }
    }

    #[test]
    fn tags_stand_in_the_order_of_the_frame() {
        let one = Tags::NONE.within(TAG_TYPE, 100);
        assert_eq!(one.0.to_le_bytes(), [0x81, 0, 0, 100, 0, 0, 0, 0]);
        assert_eq!((one.bytes(), one.vlans()), (4, [Some(100), None]));
        let two = Tags::NONE.within(SERVICE_TAG_TYPE, 200).within(TAG_TYPE, 0xfff);
        assert_eq!(two.0.to_le_bytes(), [0x88, 0xa8, 0, 200, 0x81, 0, 0x0f, 0xff]);
        assert_eq!((two.bytes(), two.vlans()), (8, [Some(200), Some(0xfff)]));
        assert_eq!((Tags::NONE.bytes(), Tags::NONE.vlans()), (0, [None, None]));
    }

    #[test]
    fn consult_is_not_part_of_previous() {
        let slot = Slot(Slot::stable(7).0 | 1 << 63);
        assert_eq!((slot.current(), slot.previous(), slot.consult()), (7, 7, true));
    }
}
