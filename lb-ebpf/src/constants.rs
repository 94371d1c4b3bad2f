//! Constants that the loader sets before the verifier sees the program: what is switched off is removed.

use aya_ebpf::Global;
use lb_common::hash::{HashKey, KEY_WORDS};

/// Not 0: some service takes every port of its address.
#[unsafe(no_mangle)]
pub static WILDCARD: Global<u8> = Global::new(0);

/// Not 0: some service takes a range of ports.
#[unsafe(no_mangle)]
pub static RANGED: Global<u8> = Global::new(0);

/// Not 0: ARP requests and neighbour solicitations for service addresses are answered.
#[unsafe(no_mangle)]
pub static ANNOUNCE: Global<u8> = Global::new(0);

/// Not 0: some service has `forward = "dsr-gue"`.
#[unsafe(no_mangle)]
pub static GUE: Global<u8> = Global::new(0);

/// Not 0: some service has `outer_sources`.
#[unsafe(no_mangle)]
pub static SPREAD: Global<u8> = Global::new(0);

/// Not 0: every decision is written down for `simulate`.
#[unsafe(no_mangle)]
pub static EXPLAIN: Global<u8> = Global::new(0);

/// Not 0: dropped packets are logged, as many as the map `TRACE_LEFT` allows.
#[unsafe(no_mangle)]
pub static TRACE_DROPS: Global<u8> = Global::new(0);

/// Index of the interface that takes what is to be cut in pieces, and of the other end of its pair, which the pieces come
/// in by; 0: there is none.
#[unsafe(no_mangle)]
pub static FRAGMENT_BY: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub static FRAGMENTS_FROM: Global<u32> = Global::new(0);

/// Not 0: some service has `on_down = "reset"`.
#[unsafe(no_mangle)]
pub static RESETS: Global<u8> = Global::new(0);

/// Not 0: frames may have several buffers, and the kernel tells how long they are.
#[unsafe(no_mangle)]
pub static FRAGS: Global<u8> = Global::new(0);

/// Not 0: echo requests to service addresses are answered.
#[unsafe(no_mangle)]
pub static ICMP_ECHO: Global<u8> = Global::new(0);

/// How many ICMP errors each CPU may send a second; 0: any number.
#[unsafe(no_mangle)]
pub static ICMP_ERROR_RATE: Global<u32> = Global::new(0);

/// Not 0: some service has a scheduler other than `maglev`, or `tracking = "full"`.
#[unsafe(no_mangle)]
pub static CHOOSERS: Global<u8> = Global::new(0);

/// Not 0: SYNs that a backend does not seem to answer are noted.
#[unsafe(no_mangle)]
pub static SUSPECTS: Global<u8> = Global::new(0);

/// Not 0: frames with VLAN tags are looked into, and backends may be in a VLAN.
#[unsafe(no_mangle)]
pub static VLANS: Global<u8> = Global::new(0);
/// Not 0: some service keeps its clients (`persistence_timeout`).
#[unsafe(no_mangle)]
pub static PERSISTENT: Global<u8> = Global::new(0);
/// Not 0: some service has forward mode `nat` or `full-nat`.
#[unsafe(no_mangle)]
pub static NAT: Global<u8> = Global::new(0);

/// Not 0: the kernel's routing table is asked for the way of replies.
#[unsafe(no_mangle)]
pub static NAT_ROUTES: Global<u8> = Global::new(0);

/// Not 0: some service has `quic = true`.
#[unsafe(no_mangle)]
pub static QUIC: Global<u8> = Global::new(0);

/// Not 0: some service has an access list.
#[unsafe(no_mangle)]
pub static GUARDED: Global<u8> = Global::new(0);

/// Not 0: some service limits new flows, or packets.
#[unsafe(no_mangle)]
pub static LIMITED: Global<u8> = Global::new(0);

/// Not 0: none of [`CHOOSERS`], [`GUARDED`], [`LIMITED`], [`NAT`], [`QUIC`], [`SPREAD`] and [`VLANS`] is set, which [`crate::fast`]
/// would ask about for each packet.
#[unsafe(no_mangle)]
pub static PLAIN: Global<u8> = Global::new(0);

/// Whether [`CHOOSERS`] is set.
#[inline(always)]
pub fn choosers() -> bool {
    CHOOSERS.load() != 0
}

/// The secret of the hash.
#[unsafe(no_mangle)]
pub static HASH_KEY: HashKey = HashKey([0; KEY_WORDS]);

/// [`HashKey::second`] of the secret.
#[unsafe(no_mangle)]
pub static SECOND_KEY: HashKey = HashKey([0; KEY_WORDS]);

/// The words of the second key.
#[inline(always)]
pub fn second_key() -> HashKey {
    // SAFETY: a valid, aligned reference; volatile because the loader writes the value after compilation.
    let word = |index: usize| unsafe { core::ptr::read_volatile(&raw const SECOND_KEY.0[index]) };
    HashKey([word(0), word(1), word(2), word(3), word(4), word(5), word(6), 0])
}

/// The key words an IPv4 flow needs; the others are not even loaded.
#[inline(always)]
pub fn hash_key_v4() -> HashKey {
    HashKey([word(0), 0, 0, 0, word(4), word(5), word(6), 0])
}

/// The key words an IPv6 flow needs.
#[inline(always)]
pub fn hash_key_v6() -> HashKey {
    HashKey([word(0), word(1), word(2), word(3), word(4), word(5), word(6), 0])
}

#[inline(always)]
fn word(index: usize) -> u64 {
    // SAFETY: a valid, aligned reference; volatile because the loader writes the value after compilation.
    unsafe { core::ptr::read_volatile(&raw const HASH_KEY.0[index]) }
}
