//! The few BPF system calls that aya has no function for.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya::Pod;
use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_link_info};

/// `bpf(2)`.
fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i64> {
    // SAFETY: `attr` is a valid attribute block of the size given; pointers in it outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_int,
            std::ptr::from_mut(attr),
            size_of::<bpf_attr>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// A command of `bpf(2)` that gives back a descriptor.
///
/// # Errors
/// What the system call returns.
pub(super) fn bpf_fd(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    // SAFETY: the kernel gave us a descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// What the kernel says of an XDP link.
#[derive(Clone, Copy, Debug)]
pub struct XdpLinkInfo {
    pub program_id: u32,
    /// 0 once the interface is gone.
    pub ifindex: u32,
}

/// Asks the kernel about an XDP link (`BPF_OBJ_GET_INFO_BY_FD`, Linux 5.8 for links).
///
/// # Errors
/// What the system call returns.
pub fn xdp_link_info(link: BorrowedFd<'_>) -> io::Result<XdpLinkInfo> {
    // SAFETY: both are plain integers, for which all zeros is a value.
    let (mut attr, mut info): (bpf_attr, bpf_link_info) = unsafe { std::mem::zeroed() };
    attr.info.bpf_fd = link.as_raw_fd().cast_unsigned();
    attr.info.info = std::ptr::from_mut(&mut info) as u64;
    attr.info.info_len = size_of::<bpf_link_info>() as u32;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    // SAFETY: the caller gave an XDP link, for which the kernel fills this part.
    let ifindex = unsafe { info.__bindgen_anon_1.xdp.ifindex };
    Ok(XdpLinkInfo {
        program_id: info.prog_id,
        ifindex,
    })
}

/// Takes a link off its interface at once (`BPF_LINK_DETACH`, Linux 5.9), whoever else holds it. Without this the
/// kernel does it some time after the last holder let go.
///
/// # Errors
/// What the system call returns; `ENOLINK` where it is off already.
pub fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: plain integers, for which all zeros is a value.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    attr.link_detach.link_fd = link.as_raw_fd().cast_unsigned();
    bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr).map(|_| ())
}

/// Looks a key up and deletes it in one step (`BPF_MAP_LOOKUP_AND_DELETE_ELEM`; for hash maps Linux 5.14). `K` and
/// `V` must have the sizes of the map's keys and values.
///
/// # Errors
/// What the system call returns; `ENOENT` where the key is not there.
pub(super) fn lookup_and_delete<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    key: &K,
    value: &mut V,
) -> io::Result<()> {
    // SAFETY: plain integers, for which all zeros is a value.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    // SAFETY: the union's part for operations on one element, all of it zero until here.
    let element = unsafe { &mut attr.__bindgen_anon_2 };
    element.map_fd = map.as_raw_fd().cast_unsigned();
    element.key = std::ptr::from_ref(key) as u64;
    element.__bindgen_anon_1.value = std::ptr::from_mut(value) as u64;
    bpf(bpf_cmd::BPF_MAP_LOOKUP_AND_DELETE_ELEM, &mut attr).map(|_| ())
}

/// Puts a value in the place of the one that a key has (`BPF_MAP_UPDATE_ELEM`). `K` and `V` must have the sizes of the
/// map's keys and values; for a map of maps the value is a descriptor.
///
/// # Errors
/// What the system call returns.
pub(super) fn update<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<()> {
    // SAFETY: plain integers, for which all zeros is a value.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    // SAFETY: the union's part for operations on one element, all of it zero until here.
    let element = unsafe { &mut attr.__bindgen_anon_2 };
    element.map_fd = map.as_raw_fd().cast_unsigned();
    element.key = std::ptr::from_ref(key) as u64;
    element.__bindgen_anon_1.value = std::ptr::from_ref(value) as u64;
    bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr).map(|_| ())
}

/// Deletes a key (`BPF_MAP_DELETE_ELEM`). `K` must have the size of the map's keys.
///
/// # Errors
/// What the system call returns; `ENOENT` where the key is not there.
pub(super) fn delete<K: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<()> {
    // SAFETY: plain integers, for which all zeros is a value.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    // SAFETY: the union's part for operations on one element, all of it zero until here.
    let element = unsafe { &mut attr.__bindgen_anon_2 };
    element.map_fd = map.as_raw_fd().cast_unsigned();
    element.key = std::ptr::from_ref(key) as u64;
    bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attr).map(|_| ())
}

/// What [`lookup_batch`] read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Batch {
    /// How many keys and values.
    pub count: usize,
    /// Nothing follows.
    pub last: bool,
}

/// Reads keys and values of a hash map (`BPF_MAP_LOOKUP_BATCH`, Linux 5.6) from a position that the call before gave
/// (`None`: from the beginning), as many as there is room for, whole buckets only. `K` and `V` must have the sizes of
/// the map's keys and values.
///
/// # Errors
/// What the system call returns; `ENOSPC` where the next bucket alone has more than there is room for.
pub(super) fn lookup_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    position: Option<&u32>,
    next: &mut u32,
    keys: &mut [K],
    values: &mut [V],
) -> io::Result<Batch> {
    // SAFETY: plain integers, for which all zeros is a value.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    attr.batch.in_batch = position.map_or(0, |position| std::ptr::from_ref(position) as u64);
    attr.batch.out_batch = std::ptr::from_mut(next) as u64;
    attr.batch.keys = keys.as_mut_ptr() as u64;
    attr.batch.values = values.as_mut_ptr() as u64;
    attr.batch.count = keys.len().min(values.len()) as u32;
    attr.batch.map_fd = map.as_raw_fd().cast_unsigned();
    let last = match bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) {
        Ok(_) => false,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
        Err(error) => return Err(error),
    };
    // SAFETY: the part of the union that was filled above, where the kernel wrote the count.
    let count = unsafe { attr.batch.count } as usize;
    Ok(Batch { count, last })
}

/// Opens a pinned object (`BPF_OBJ_GET`).
///
/// # Errors
/// What the system call returns.
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: plain integers, for which all zeros is a value.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    bpf_fd(bpf_cmd::BPF_OBJ_GET, &mut attr)
}

/// Whether a path lies on a BPF file system (`BPF_FS_MAGIC`).
///
/// # Errors
/// What `statfs` returns.
pub fn is_bpffs(path: &Path) -> io::Result<bool> {
    let stat = nix::sys::statfs::statfs(path)?;
    Ok(stat.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC)
}

/// Takes an exclusive lock on an open file or folder, without waiting.
///
/// # Errors
/// `WouldBlock` where another process holds it.
pub fn try_lock(file: &std::fs::File) -> io::Result<()> {
    // SAFETY: a valid descriptor; flock has no memory effects.
    let result = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
