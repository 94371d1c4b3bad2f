//! What services ask of clients, in the maps: the words that say what is asked, and the access lists.
//!
//! A list is a map of its own, a prefix tree as large as its prefixes. It is filled before it is put in the place of the
//! one before, which is one store for the program; the kernel lets go of the old one when no packet is in it any
//! longer. Values of trees are [`CLIENT_DENIED`] or 0; the empty prefix says what becomes of clients that no other has.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use aya::maps::{Map, MapData, PerCpuArray};
use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_map_type};
use ipnet::IpNet;
use lb_common::layout::{CLIENT_DENIED, ClientPrefix, Guard, GuardCounters};
use lb_common::limit::Rate;

use super::mmap::Words;
use super::{Error, btf, flows, identity, maps, sys};
use crate::config::{Access, AccessList, Limits};

/// The maps of guards.
pub struct Guards {
    words: Words,
    lists: OwnedFd,
    counters: PerCpuArray<MapData, GuardCounters>,
}

impl Guards {
    pub(super) fn open(guards: &Map, lists: &Map, counters: Map) -> Result<Self, Error> {
        let data = maps::data_of(guards)?;
        let words = data.info()?.max_entries() as usize * WORDS_A_GUARD;
        let words = Words::map(data.fd(), words).map_err(|source| Error::Syscall {
            call: "mmap of what services ask of clients",
            source,
        })?;
        Ok(Self {
            words,
            lists: flows::duplicate(maps::data_of(lists)?.fd())?,
            counters: counters.try_into()?,
        })
    }

    /// Flags of what a service asks, see [`Guard::asks`].
    #[must_use]
    pub fn asks(&self, service: u32) -> u64 {
        self.words.get(service as usize * WORDS_A_GUARD)
    }

    /// Has a service ask this. What is asked is written last where it is more than before, and first where it is
    /// nothing any longer.
    pub fn set(&self, service: u32, guard: &Guard) {
        let Guard {
            asks,
            client_mask: [first, second],
            flows,
            flows_per_client,
            packets_per_client,
        } = *guard;
        let start = service as usize * WORDS_A_GUARD;
        if asks == 0 {
            self.words.set(start, 0);
        }
        let rates = [flows, flows_per_client, packets_per_client];
        let rates = rates.iter().flat_map(|rate| [rate.interval_ns, rate.burst_ns]);
        for (index, word) in [first, second].into_iter().chain(rates).enumerate() {
            self.words.set(start + 1 + index, word);
        }
        self.words.set(start, asks);
    }

    /// Puts a list in the place of the one that a service has, if any.
    ///
    /// # Errors
    /// [`Error::Syscall`] where there is no memory: the list of before stays.
    pub fn put_list(&self, service: u32, list: &AccessList) -> Result<(), Error> {
        let tree = tree_of(list).map_err(|source| Error::Syscall {
            call: "making an access list",
            source,
        })?;
        let fd = tree.as_raw_fd().cast_unsigned();
        sys::update(self.lists.as_fd(), &service, &fd).map_err(|source| Error::Syscall {
            call: "putting an access list in force",
            source,
        })
    }

    /// Frees the list of a service that does not ask for it any longer.
    ///
    /// # Errors
    /// [`Error::Syscall`].
    pub fn drop_list(&self, service: u32) -> Result<(), Error> {
        match sys::delete(self.lists.as_fd(), &service) {
            Err(source) if source.raw_os_error() != Some(libc::ENOENT) => Err(Error::Syscall {
                call: "freeing an access list",
                source,
            }),
            _ => Ok(()),
        }
    }

    /// What all CPUs together counted for a service.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn counters(&self, service: u32) -> Result<GuardCounters, Error> {
        let values = self.counters.get(&service, 0)?;
        Ok(values.iter().fold(GuardCounters::default(), |sum, cpu| {
            let GuardCounters {
                denied,
                over_flows,
                over_client_flows,
                over_client_packets,
            } = *cpu;
            GuardCounters {
                denied: sum.denied + denied,
                over_flows: sum.over_flows + over_flows,
                over_client_flows: sum.over_client_flows + over_client_flows,
                over_client_packets: sum.over_client_packets + over_client_packets,
            }
        }))
    }

    /// Begins the counts of a service anew: its index was another one's.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn clear_counters(&mut self, service: u32) -> Result<(), Error> {
        Ok(self.counters.set(service, maps::zeros()?, 0)?)
    }
}

const WORDS_A_GUARD: usize = size_of::<Guard>() / size_of::<u64>();

/// What a service of this family asks.
#[must_use]
pub fn guard(is_v4: bool, list: Option<&AccessList>, limits: Option<&Limits>) -> Guard {
    let mut guard = Guard::default();
    if list.is_some() {
        guard.asks |= Guard::LIST;
    }
    if let Some(limits) = limits {
        let rate = |rate: Option<u32>| rate.map_or(Rate::NONE, Rate::per_second);
        guard.asks |= Guard::LIMITS;
        if limits.dry_run {
            guard.asks |= Guard::DRY_RUN;
        }
        guard.flows = rate(limits.new_flows);
        guard.flows_per_client = rate(limits.new_flows_per_client);
        guard.packets_per_client = rate(limits.udp_packets_per_client);
        let bits = match is_v4 {
            true => u128::BITS - u32::BITS + u32::from(limits.client_prefix_v4),
            false => u32::from(limits.client_prefix_v6),
        };
        guard.client_mask = mask(bits);
    }
    guard
}

/// The first bits of an address, as words of memory.
fn mask(bits: u32) -> [u64; 2] {
    let mask = u128::MAX.checked_shl(u128::BITS - bits).unwrap_or(0);
    [(mask >> 64) as u64, mask as u64].map(u64::to_be)
}

/// The tree of a list.
fn tree_of(list: &AccessList) -> io::Result<OwnedFd> {
    let prefixes = list.prefixes();
    let tree = create(prefixes.len() as u32 + 1)?;
    let word = |access| match access {
        Access::Allow => 0_u32,
        Access::Deny => CLIENT_DENIED,
    };
    let anybody = ClientPrefix {
        bits: 0,
        address: [0; 4],
    };
    sys::update(tree.as_fd(), &anybody, &word(list.otherwise()))?;
    for (prefix, access) in prefixes {
        sys::update(tree.as_fd(), &key(prefix), &word(access))?;
    }
    Ok(tree)
}

fn key(prefix: IpNet) -> ClientPrefix {
    let (address, _) = identity::words(prefix.addr());
    let before = match prefix {
        IpNet::V4(_) => u128::BITS - u32::BITS,
        IpNet::V6(_) => 0,
    };
    ClientPrefix {
        bits: before + u32::from(prefix.prefix_len()),
        address,
    }
}

/// A prefix tree that the map of lists takes as one like its template: with BTF, see [`super::slab_map`].
fn create(entries: u32) -> io::Result<OwnedFd> {
    let types = btf::load(&TYPES, STRINGS)?;
    // SAFETY: plain integers, for which all zeros is a value.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    // SAFETY: the union's part for BPF_MAP_CREATE, all of it zero until here.
    let create = unsafe { &mut attr.__bindgen_anon_1 };
    create.map_type = bpf_map_type::BPF_MAP_TYPE_LPM_TRIE as u32;
    create.key_size = size_of::<ClientPrefix>() as u32;
    create.value_size = size_of::<u32>() as u32;
    create.max_entries = entries;
    // A prefix tree must have it.
    create.map_flags = super::pins::NO_PREALLOC;
    for (to, from) in create.map_name.iter_mut().zip(b"access_list") {
        *to = from.cast_signed();
    }
    create.btf_fd = types.as_raw_fd().cast_unsigned();
    create.btf_key_type_id = KEY;
    create.btf_value_type_id = VALUE;
    sys::bpf_fd(bpf_cmd::BPF_MAP_CREATE, &mut attr)
}

const VALUE: u32 = 1;
const KEY: u32 = 2;

/// `u32` and a structure of 20 bytes, as which the kernel wants the keys of a prefix tree; it reads no members.
const STRINGS: &[u8] = b"\0u32\0prefix\0";
const TYPES: [u32; 7] = [
    1,
    btf::INT,
    4,
    32, //
    5,
    btf::STRUCT,
    size_of::<ClientPrefix>() as u32,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_of_both_families_are_bits_of_128() {
        let of = |text: &str| key(text.parse().unwrap());
        let v4 = of("10.1.0.0/16");
        assert_eq!(
            (v4.bits, v4.address),
            (112, [0, 0, 0, u32::from_ne_bytes([10, 1, 0, 0])])
        );
        let v6 = of("2001:db8::/32");
        let first = u32::from_ne_bytes([0x20, 0x01, 0x0d, 0xb8]);
        assert_eq!((v6.bits, v6.address), (32, [first, 0, 0, 0]));
        assert_eq!(of("::/0").bits, 0);
    }

    #[test]
    fn masks_are_the_first_bits() {
        let bytes = |bits: u32| mask(bits).map(u64::to_ne_bytes).concat();
        assert_eq!(bytes(0), [0; 16]);
        assert_eq!(bytes(128), [0xff; 16]);
        assert_eq!(
            bytes(65)[..10],
            [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x80, 0]
        );
    }
}
