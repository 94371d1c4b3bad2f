//! Where the kernel that runs has the fields of its structures, from its own description of its types
//! (Documentation/bpf/btf.rst).

use std::path::Path;

/// Where the kernel describes its types (`CONFIG_DEBUG_INFO_BTF`).
pub const KERNEL: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const HEADER_LEN: usize = 24;

const STRUCT: u32 = 4;
const UNION: u32 = 5;

/// What cannot be found out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{KERNEL}: {0}")]
    Io(#[from] std::io::Error),
    #[error("{KERNEL} is damaged")]
    Damaged,
    #[error("{KERNEL} has no {0}")]
    Missing(String),
}

/// Descriptions of types.
#[derive(Debug)]
pub struct Types {
    bytes: Vec<u8>,
    /// Where each type begins in `bytes`; the first has the number 1.
    places: Vec<usize>,
    strings: usize,
}

impl Types {
    /// Those of the kernel that runs.
    ///
    /// # Errors
    /// [`Error::Io`] where it has none, [`Error::Damaged`].
    pub fn of_kernel() -> Result<Self, Error> {
        Self::parse(std::fs::read(Path::new(KERNEL))?).ok_or(Error::Damaged)
    }

    fn parse(bytes: Vec<u8>) -> Option<Self> {
        let word = |at: usize| word(&bytes, at);
        if bytes.get(..2)? != MAGIC.to_ne_bytes() || word(4)? < HEADER_LEN as u32 {
            return None;
        }
        let base = word(4)? as usize;
        let begin = base + word(8)? as usize;
        let end = begin + word(12)? as usize;
        let strings = base + word(16)? as usize;
        let mut places = Vec::new();
        let mut at = begin;
        while at < end {
            places.push(at);
            let info = word(at + 4)?;
            at += 12 + behind(kind(info), (info & 0xffff) as usize)?;
        }
        Some(Self {
            places,
            strings,
            bytes,
        })
    }

    /// Where the structure has a field, in bytes from its start; fields of structures without a name in it are its own.
    ///
    /// # Errors
    /// [`Error::Missing`].
    pub fn offset(&self, structure: &str, path: &[&str]) -> Result<u32, Error> {
        let missing = || Error::Missing(format!("{structure}.{}", path.join(".")));
        let mut at = self.structure(structure).ok_or_else(missing)?;
        let mut bits = 0;
        for field in path {
            let (offset, of) = self.field(at, field).ok_or_else(missing)?;
            bits += offset;
            at = of;
        }
        if bits % 8 == 0 {
            Ok(bits / 8)
        } else {
            Err(missing())
        }
    }

    /// The structure of this name.
    fn structure(&self, name: &str) -> Option<usize> {
        let is_it = |at: &usize| {
            let found = self.word(at + 4).is_some_and(|info| kind(info) == STRUCT);
            found && self.word(*at).is_some_and(|place| self.is_named(place, name))
        };
        self.places.iter().copied().find(is_it)
    }

    /// Offset in bits, and place of the type, of a field of the structure at a place.
    fn field(&self, at: usize, name: &str) -> Option<(u32, usize)> {
        let info = self.word(at + 4)?;
        if kind(info) != STRUCT && kind(info) != UNION {
            return None;
        }
        let has_bit_fields = info >> 31 != 0;
        for member in 0..(info & 0xffff) as usize {
            let member = at + 12 + member * 12;
            let (named, of, offset) = (self.word(member)?, self.word(member + 4)?, self.word(member + 8)?);
            let offset = if has_bit_fields {
                offset & 0xff_ffff
            } else {
                offset
            };
            let of = *self.places.get((of as usize).checked_sub(1)?)?;
            if named == 0 || self.is_named(named, "") {
                if let Some((inner, of)) = self.field(of, name) {
                    return Some((offset + inner, of));
                }
            } else if self.is_named(named, name) {
                return Some((offset, self.behind_names(of)?));
            }
        }
        None
    }

    /// What a `typedef` stands for.
    fn behind_names(&self, mut at: usize) -> Option<usize> {
        const TYPEDEF: u32 = 8;
        while kind(self.word(at + 4)?) == TYPEDEF {
            at = *self.places.get((self.word(at + 8)? as usize).checked_sub(1)?)?;
        }
        Some(at)
    }

    fn word(&self, at: usize) -> Option<u32> {
        word(&self.bytes, at)
    }

    fn is_named(&self, place: u32, name: &str) -> bool {
        let found = self
            .bytes
            .get(self.strings + place as usize..)
            .unwrap_or_default();
        found
            .strip_prefix(name.as_bytes())
            .is_some_and(|rest| rest.first() == Some(&0))
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

const fn kind(info: u32) -> u32 {
    info >> 24 & 0x1f
}

/// Bytes behind the three words that every type has, by its kind and the length that it says.
fn behind(kind: u32, length: usize) -> Option<usize> {
    Some(match kind {
        // INT, VAR, DECL_TAG.
        1 | 14 | 17 => 4,
        // ARRAY.
        3 => 12,
        STRUCT | UNION => 12 * length,
        // ENUM, FUNC_PROTO.
        6 | 13 => 8 * length,
        // DATASEC, ENUM64.
        15 | 19 => 12 * length,
        // Pointers, qualifiers and names.
        2 | 7..=12 | 16 | 18 => 0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_the_kernels_structures_are_found() {
        let Ok(types) = Types::of_kernel() else {
            eprintln!("SKIPPED fields_of_the_kernels_structures_are_found: this kernel has no {KERNEL}");
            return;
        };
        // Known from the interface to user space: `struct ethhdr`, and `struct tcphdr` with its bit fields.
        assert_eq!(types.offset("ethhdr", &["h_dest"]).unwrap(), 0);
        assert_eq!(types.offset("ethhdr", &["h_proto"]).unwrap(), 12);
        assert_eq!(types.offset("tcphdr", &["window"]).unwrap(), 14);
        // In a union without a name.
        assert_eq!(types.offset("iphdr", &["daddr"]).unwrap(), 16);
        assert!(matches!(types.offset("tcphdr", &["syn"]), Err(Error::Missing(_))));
        assert!(matches!(
            types.offset("ethhdr", &["h_nothing"]),
            Err(Error::Missing(_))
        ));
        assert!(matches!(
            types.offset("no_such_structure", &["a"]),
            Err(Error::Missing(_))
        ));
        // Through a structure that is a field.
        let whole = types.offset("net_device", &["nd_net"]).unwrap();
        assert_eq!(types.offset("net_device", &["nd_net", "net"]).unwrap(), whole);
    }

    #[test]
    fn what_is_damaged_is_refused() {
        let good = super::super::btf::blob(&[1, 1 << 24, 4, 32], b"\0int\0");
        assert!(Types::parse(good.clone()).is_some());
        for len in 0..good.len() {
            // Cut short in the strings, nothing is named; before, it is refused. Neither panics.
            if let Some(types) = Types::parse(good[..len].to_vec()) {
                assert!(types.offset("int", &["x"]).is_err());
            }
        }
        assert!(Types::parse(vec![0; 64]).is_none());
        let mut unknown = good;
        unknown[HEADER_LEN + 7] = 0x1f;
        assert!(Types::parse(unknown).is_none());
    }
}
