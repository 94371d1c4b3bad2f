//! Making a slab: an array map that the outer map takes as one like its template.
//!
//! Before Linux 6.2 the kernel notes for every map whether its values have a timer, and answers differently for
//! maps with and without BTF (`timer_off` in `bpf_map_meta_equal`, kernel/bpf/map_in_map.c). The template of the
//! outer map has BTF, from the object; so a slab gets BTF too, three types written by hand.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_map_type};
use lb_common::layout::{MMAPABLE, SLAB_SLOTS, Slot};

use super::{Error, btf, sys};

/// A slab with BTF.
///
/// # Errors
/// [`Error::Syscall`].
pub fn create() -> Result<OwnedFd, Error> {
    let btf = btf::load(&TYPES, STRINGS).map_err(|source| Error::Syscall {
        call: "loading the BTF of a slab",
        source,
    })?;
    create_map(btf.as_fd()).map_err(|source| Error::Syscall {
        call: "making a slab of lookup tables",
        source,
    })
}

fn create_map(btf: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: plain integers, for which all zeros is a value.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    // SAFETY: the union's part for BPF_MAP_CREATE, all of it zero until here.
    let create = unsafe { &mut attr.__bindgen_anon_1 };
    create.map_type = bpf_map_type::BPF_MAP_TYPE_ARRAY as u32;
    create.key_size = size_of::<u32>() as u32;
    create.value_size = size_of::<Slot>() as u32;
    create.max_entries = SLAB_SLOTS;
    create.map_flags = MMAPABLE;
    for (to, from) in create.map_name.iter_mut().zip(b"slab") {
        *to = from.cast_signed();
    }
    create.btf_fd = btf.as_raw_fd().cast_unsigned();
    create.btf_key_type_id = KEY;
    create.btf_value_type_id = SLOT;
    sys::bpf_fd(bpf_cmd::BPF_MAP_CREATE, &mut attr)
}

/// Ids of the types, which count from 1.
const KEY: u32 = 1;
const WORD: u32 = 2;
const SLOT: u32 = 3;

/// `u32`, `u64` and `struct slot { u64 word; }`.
const STRINGS: &[u8] = b"\0u32\0u64\0slot\0word\0";
const TYPES: [u32; 14] = [
    1,
    btf::INT,
    4,
    32, //
    5,
    btf::INT,
    8,
    64, //
    9,
    btf::STRUCT | 1,
    8,
    14,
    WORD,
    0,
];
