//! Types written by hand (Documentation/bpf/btf.rst), for the few maps that are made without an object file.

use std::io;
use std::os::fd::OwnedFd;

use aya_obj::generated::{bpf_attr, bpf_cmd};

use super::sys;

/// Kinds of types, where they stand in a type's second word.
pub const INT: u32 = 1 << 24;
pub const STRUCT: u32 = 4 << 24;

/// Loads types into the kernel. Of each: offset of its name in `strings`, kind and count of members, size; then for an
/// integer its bits, for each member name, type and offset. Types count from 1.
///
/// # Errors
/// What the system call returns.
pub fn load(types: &[u32], strings: &[u8]) -> io::Result<OwnedFd> {
    let blob = blob(types, strings);
    // SAFETY: plain integers, for which all zeros is a value.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    // SAFETY: the union's part for BPF_BTF_LOAD, all of it zero until here.
    let load = unsafe { &mut attr.__bindgen_anon_7 };
    load.btf = blob.as_ptr() as u64;
    load.btf_size = blob.len() as u32;
    sys::bpf_fd(bpf_cmd::BPF_BTF_LOAD, &mut attr)
}

pub(super) fn blob(types: &[u32], strings: &[u8]) -> Vec<u8> {
    let types_len = (types.len() * 4) as u32;
    let mut blob = Vec::new();
    blob.extend(0xeb9f_u16.to_ne_bytes());
    // Version, flags.
    blob.extend([1, 0]);
    // Length of the header; offsets from its end and lengths of types and strings.
    for word in [24, 0, types_len, types_len, strings.len() as u32] {
        blob.extend(word.to_ne_bytes());
    }
    for word in types {
        blob.extend(word.to_ne_bytes());
    }
    blob.extend(strings);
    blob
}
