//! Putting the program on interfaces and taking it off.
//!
//! A link is pinned and its descriptor closed at once: from then on the pin alone holds it, so that `rm -r`
//! of the pin folder detaches everything, whether the agent runs or not.

use std::fs;
use std::os::fd::AsFd;

use aya::Ebpf;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::{XdpLink, XdpMode};
use aya::programs::{ProgramError, Xdp};

use super::Error;
use super::pins::{self, PinDir};
use super::sys::{self, XdpLinkInfo};
use crate::config;

/// Where the program is attached, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    pub interface: String,
    pub ifindex: u32,
    pub native: bool,
    pub program_id: u32,
}

/// What is known of an interface before attaching.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    pub interface: &'a str,
    pub ifindex: u32,
    /// The program that is on it now, and whether it runs in native mode.
    pub present: Option<(u32, bool)>,
}

/// Attaches the program, or replaces our own older one atomically through its pinned link.
///
/// # Errors
/// [`Error::ForeignProgram`] where another program holds the interface, [`Error::PinElsewhere`],
/// [`Error::NativeRefused`],
/// [`Error::Attach`], [`Error::NoLink`].
pub fn attach(
    ebpf: &mut Ebpf,
    program: &'static str,
    pins: &PinDir,
    target: Target<'_>,
    mode: config::XdpMode,
) -> Result<Attachment, Error> {
    let Target {
        interface,
        ifindex,
        present,
    } = target;
    let pin = pins.link(interface);
    let program = program_mut(ebpf, program)?;
    let program_id = program.info()?.id();
    if let Some(info) = own_link(pins, interface)? {
        // Interfaces of two network namespaces may have the same index; the program tells them apart.
        let here = present.filter(|(id, _)| info.ifindex == ifindex && *id == info.program_id);
        if let Some((_, native)) = here {
            let link: XdpLink = FdLink::from(PinnedLink::from_pin(&pin)?).try_into()?;
            // The link stays pinned: dropping our copy of it changes nothing.
            program.attach_to_link(link)?;
            if matches!(
                (mode, native),
                (config::XdpMode::Generic, true) | (config::XdpMode::Native, false)
            ) {
                log::warn!(
                    "interface {interface} stays in {} mode: another one needs a detach first",
                    if native { "native" } else { "generic" }
                );
            }
            return Ok(Attachment {
                interface: interface.into(),
                ifindex,
                native,
                program_id,
            });
        }
        if info.ifindex != 0 {
            return Err(Error::PinElsewhere {
                path: pin,
                ifindex: info.ifindex,
            });
        }
        // The interface was deleted and made again: the link leads nowhere.
        fs::remove_file(&pin).map_err(Error::io(&pin))?;
    }
    if let Some((program_id, _)) = present {
        return Err(Error::ForeignProgram {
            interface: interface.into(),
            program_id,
        });
    }
    let (link, native) = match mode {
        config::XdpMode::Native => match program.attach(interface, XdpMode::Driver) {
            Ok(link) => (link, true),
            Err(source) if refused(&source) => {
                return Err(Error::NativeRefused {
                    interface: interface.into(),
                    source: Box::new(source),
                });
            }
            Err(source) => {
                return Err(Error::Attach {
                    interface: interface.into(),
                    source: Box::new(source),
                });
            }
        },
        config::XdpMode::Generic => (generic(program, interface)?, false),
        config::XdpMode::Auto => match program.attach(interface, XdpMode::Driver) {
            Ok(link) => (link, true),
            Err(error) => {
                log::warn!(
                    "interface {interface}: native XDP is refused ({error}); \
                     using generic mode, which is several times slower"
                );
                (generic(program, interface)?, false)
            }
        },
    };
    let link = program.take_link(link)?;
    let link: FdLink = link.try_into().map_err(|_| Error::NoLink {
        interface: interface.into(),
    })?;
    link.pin(&pin)?;
    Ok(Attachment {
        interface: interface.into(),
        ifindex,
        native,
        program_id,
    })
}

/// Pins the program beside its links, in place of the one before.
///
/// # Errors
/// [`Error::Pin`], [`Error::Io`].
pub fn pin_program(ebpf: &mut Ebpf, program: &'static str, pins: &PinDir) -> Result<(), Error> {
    let program = program_mut(ebpf, program)?;
    let (fresh, place) = (pins.path("program_new"), pins.path("program"));
    if fresh.exists() {
        fs::remove_file(&fresh).map_err(Error::io(&fresh))?;
    }
    program.pin(&fresh)?;
    fs::rename(&fresh, &place).map_err(Error::io(&place))
}

/// A program of an object.
///
/// # Errors
/// [`Error::MissingMap`] where there is none, [`Error::Program`] where it is of another type.
pub fn program_mut<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Xdp, Error> {
    Ok(ebpf
        .program_mut(name)
        .ok_or(Error::MissingMap(name))?
        .try_into()?)
}

/// Loads a program of the object into the kernel.
///
/// # Errors
/// [`Error::Program`], with the verifier's log.
pub fn verify(ebpf: &mut Ebpf, program: &'static str) -> Result<(), Error> {
    let program = program_mut(ebpf, program)?;
    Ok(program.load()?)
}

/// Our own pinned link of an interface, as the kernel sees it. `ifindex` 0: the interface is gone.
///
/// # Errors
/// [`Error::Link`], [`Error::Syscall`].
pub fn own_link(pins: &PinDir, interface: &str) -> Result<Option<XdpLinkInfo>, Error> {
    let pin = pins.link(interface);
    if !pin.exists() {
        return Ok(None);
    }
    let link = sys::open_pin(&pin).map_err(Error::io(&pin))?;
    sys::xdp_link_info(link.as_fd())
        .map(Some)
        .map_err(Error::io(&pin))
}

/// The id of a loaded program.
///
/// # Errors
/// [`Error::Program`].
pub fn program_id(ebpf: &mut Ebpf, program: &'static str) -> Result<u32, Error> {
    let program = program_mut(ebpf, program)?;
    Ok(program.info()?.id())
}

/// Names the pinned link of an interface that was renamed after it, so that its program is known as ours.
/// `present` is the program on the interface: an interface of another network namespace can have its index.
///
/// # Errors
/// [`Error::Io`].
pub fn follow_rename(pins: &PinDir, interface: &str, ifindex: u32, present: u32) -> Result<(), Error> {
    if pins.link(interface).exists() {
        return Ok(());
    }
    for earlier in pins.links()? {
        let link = own_link(pins, &earlier)?;
        if link.is_some_and(|link| link.ifindex == ifindex && link.program_id == present) {
            let pin = pins.link(&earlier);
            fs::rename(&pin, pins.link(interface)).map_err(Error::io(pin))?;
            log::info!("interface {earlier} was renamed to {interface}");
            return Ok(());
        }
    }
    Ok(())
}

/// Takes the program off one interface, at once.
///
/// # Errors
/// [`Error::Io`].
pub fn detach(pins: &PinDir, interface: &str) -> Result<(), Error> {
    let pin = pins.link(interface);
    match pins::unpin(&pin) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::Io {
            path: pin,
            source: error,
        }),
        _ => Ok(()),
    }
}

fn generic(program: &mut Xdp, interface: &str) -> Result<aya::programs::xdp::XdpLinkId, Error> {
    program
        .attach(interface, XdpMode::Skb)
        .map_err(|source| Error::Attach {
            interface: interface.into(),
            source: Box::new(source),
        })
}

fn refused(error: &ProgramError) -> bool {
    let ProgramError::SyscallError(error) = error else {
        return false;
    };
    matches!(
        error.io_error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ERANGE)
    )
}
