//! The programs beside the main one, which it jumps to by an array of programs.
//!
//! The kernel empties such an array when no process and no pin holds it any longer. Each loaded version has one of its
//! own, pinned before the version is attached and unpinned after another one took its place, so that at any moment,
//! also where an agent dies, the program on an interface finds what it jumps to.

use std::fs;

use aya::Ebpf;
use aya::maps::{Map, MapData, ProgramArray};

use super::pins::PinDir;
use super::{Error, attach};

/// The array in the object.
const PARTS: &str = "PARTS";
/// The program that translates addresses.
const NAT: &str = "nat";
/// What names of pins begin with; the id of the array follows.
const PIN: &str = "parts_";

/// Loads the programs and puts them into the array.
///
/// # Errors
/// [`Error::Program`], with the verifier's log; [`Error::Map`].
pub(super) fn fill(ebpf: &mut Ebpf) -> Result<(), Error> {
    let program = attach::program_mut(ebpf, NAT)?;
    program.load()?;
    let fd = program.fd()?.try_clone().map_err(|source| Error::Syscall {
        call: "duplicating a descriptor",
        source,
    })?;
    let map = ebpf.map_mut(PARTS).ok_or(Error::MissingMap(PARTS))?;
    let mut parts: ProgramArray<&mut MapData> = map.try_into()?;
    Ok(parts.set(0, &fd, 0)?)
}

/// Pins the array of a loaded version, beside that of the version before.
///
/// # Errors
/// [`Error::Pin`], [`Error::Map`].
pub fn pin(ebpf: &Ebpf, pins: &PinDir) -> Result<(), Error> {
    let (id, map) = array_of(ebpf)?;
    let path = pins.path(&format!("{PIN}{id}"));
    if path.exists() {
        return Ok(());
    }
    Ok(map.pin(&path)?)
}

/// Unpins the arrays of the versions before. To be called when their programs are on no interface any longer.
///
/// # Errors
/// [`Error::Map`], [`Error::Io`].
pub fn unpin_others(ebpf: &Ebpf, pins: &PinDir) -> Result<(), Error> {
    let (id, _) = array_of(ebpf)?;
    let own = format!("{PIN}{id}");
    for entry in fs::read_dir(pins.root()).map_err(Error::io(pins.root()))? {
        let entry = entry.map_err(Error::io(pins.root()))?;
        let name = entry.file_name();
        if name
            .to_str()
            .is_some_and(|name| name.starts_with(PIN) && name != own)
        {
            fs::remove_file(entry.path()).map_err(Error::io(entry.path()))?;
        }
    }
    Ok(())
}

fn array_of(ebpf: &Ebpf) -> Result<(u32, &MapData), Error> {
    let Some(Map::ProgramArray(map)) = ebpf.map(PARTS) else {
        return Err(Error::MissingMap(PARTS));
    };
    Ok((map.info()?.id(), map))
}
