//! Requests about an interface by its name (netdevice(7)).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A request with the name of an interface and nothing else in it.
///
/// # Errors
/// Where no interface can have that name.
pub(crate) fn request_for(interface: &str) -> io::Result<libc::ifreq> {
    // SAFETY: all zeroes is a valid `ifreq`.
    let mut ifreq: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = ifreq.ifr_name.len() - 1;
    if interface.is_empty() || interface.len() > room || interface.contains('\0') {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (byte, value) in ifreq.ifr_name.iter_mut().zip(interface.bytes()) {
        *byte = value as libc::c_char;
    }
    Ok(ifreq)
}

/// Sends a request to the kernel, in the namespace of the calling thread.
///
/// # Safety
/// What `ifreq` holds must be what `request` reads; a pointer in it must be valid for what the kernel
/// reads and writes there.
pub(crate) unsafe fn call(request: libc::Ioctl, ifreq: &mut libc::ifreq) -> io::Result<()> {
    // Any socket will do; this kind needs no permission.
    // SAFETY: no pointers are passed.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: `ifreq` is valid for the call; the caller vouches for what is in it.
    if unsafe { libc::ioctl(socket.as_raw_fd(), request, ifreq) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
