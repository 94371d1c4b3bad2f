//! What the pinned maps take of the kernel's memory, and a process of the machine's.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _};
use std::path::Path;

use aya::maps::MapData;

/// Bytes of all maps that are pinned in a folder and in those below it, slabs of tables included. From Linux 6.4 on that
/// is what they use, before what they could at most.
///
/// # Errors
/// Where the folder cannot be read.
pub fn of_maps(folder: &Path) -> io::Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            sum += of_maps(&path)?;
        } else if let Ok(map) = MapData::from_pin(&path) {
            // Programs and links are pinned there as well; a map may be gone meanwhile.
            sum += of_map(&map).unwrap_or(0);
        }
    }
    Ok(sum)
}

/// Bytes of one map: `memlock` of its `fdinfo`.
///
/// # Errors
/// Where `/proc` does not say.
pub fn of_map(map: &MapData) -> io::Result<u64> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd()))?;
    let memlock = info.lines().find_map(|line| line.strip_prefix("memlock:"));
    memlock
        .and_then(|bytes| bytes.trim().parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no memlock in fdinfo"))
}

/// Bytes of a process that are in memory, the maps that it has mapped included.
///
/// # Errors
/// Where there is no such process, or `/proc` does not say.
pub fn of_process(pid: u32) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok())
        .map(|kib| kib * 1024)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no VmRSS in status"))
}

/// Gives memory that this process does not use any longer back to the system, where the C library keeps it.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no pointers are passed, and it may be called at any time, by any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_takes_memory() {
        assert!(of_process(std::process::id()).expect("/proc") > 1_000_000);
    }
}
