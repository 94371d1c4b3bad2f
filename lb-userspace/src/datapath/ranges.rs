//! Services of a range of ports.
//!
//! A packet whose port is no service's own asks a prefix tree over address, protocol, family and port. A range is made
//! up of blocks that are as long and as aligned as a power of two: [`BLOCKS_A_RANGE`] at most. Blocks that are new are
//! written before those that are too many go, so that a port of both is never nobody's.

use std::collections::BTreeMap;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Map, MapData, MapError};
use lb_common::layout::{PortPrefix, ServiceKey};

use super::Error;

/// The most blocks that a range of ports takes.
pub const BLOCKS_A_RANGE: u32 = 30;

/// The tree, and what is in it.
#[derive(Debug)]
pub struct Ranges {
    tree: LpmTrie<MapData, [u32; 5], u32>,
    written: BTreeMap<PortPrefix, u32>,
}

impl Ranges {
    pub(super) fn open(map: Map) -> Result<Self, Error> {
        let tree: LpmTrie<_, [u32; 5], u32> = map.try_into()?;
        let mut written = BTreeMap::new();
        for entry in tree.iter() {
            let (key, index) = entry?;
            let [a, b, c, d, ends] = key.data();
            let block = PortPrefix {
                bits: key.prefix_len(),
                address: [a, b, c, d],
                ends,
            };
            written.insert(block, index);
        }
        Ok(Self { tree, written })
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.written.is_empty()
    }

    /// The index of the service whose range has the port of a key.
    #[must_use]
    pub fn find(&self, key: &ServiceKey) -> Option<u32> {
        let ends = PortPrefix::ends_of(key);
        let has = |block: &PortPrefix| {
            let port = ends.to_le_bytes();
            let own = block.ends.to_le_bytes();
            let shift = PortPrefix::WHOLE - block.bits;
            let number = |bytes: [u8; 4]| u16::from_be_bytes([bytes[2], bytes[3]]) >> shift.min(15);
            block.address == key.address
                && port[..2] == own[..2]
                && (shift > 15 || number(port) == number(own))
        };
        let found = self.written.iter().filter(|(block, _)| has(block));
        found.max_by_key(|(block, _)| block.bits).map(|(_, index)| *index)
    }

    /// The last port of each service of a range, by its index.
    #[must_use]
    pub fn last_ports(&self) -> BTreeMap<u32, u16> {
        let mut last = BTreeMap::new();
        for (block, index) in &self.written {
            let [_, _, high, low] = block.ends.to_le_bytes();
            let rest = (1_u32 << (PortPrefix::WHOLE - block.bits).min(16)) - 1;
            let port = u16::from_be_bytes([high, low]) | rest as u16;
            let known = last.entry(*index).or_insert(port);
            *known = port.max(*known);
        }
        last
    }

    /// The blocks that have to be written so that the tree holds `wanted`.
    pub(super) fn missing(&self, wanted: &BTreeMap<PortPrefix, u32>) -> Vec<(PortPrefix, u32)> {
        let there = |block: &PortPrefix, index: &u32| self.written.get(block) == Some(index);
        let missing = wanted.iter().filter(|(block, index)| !there(block, index));
        missing.map(|(block, index)| (*block, *index)).collect()
    }

    /// The blocks that have to go so that the tree holds nothing but `wanted`.
    pub(super) fn stale(&self, wanted: &BTreeMap<PortPrefix, u32>) -> Vec<PortPrefix> {
        let blocks = self.written.keys();
        blocks
            .filter(|block| !wanted.contains_key(block))
            .copied()
            .collect()
    }

    /// # Errors
    /// What the kernel says, a full tree among it.
    pub(super) fn insert(&mut self, block: PortPrefix, index: u32) -> Result<(), MapError> {
        self.tree.insert(&key(&block), index, 0)?;
        self.written.insert(block, index);
        Ok(())
    }

    /// # Errors
    /// What the kernel says.
    pub(super) fn remove(&mut self, block: &PortPrefix) -> Result<(), MapError> {
        match self.tree.remove(&key(block)) {
            Err(error) if !matches!(error, MapError::KeyNotFound) => Err(error),
            _ => {
                self.written.remove(block);
                Ok(())
            }
        }
    }
}

fn key(block: &PortPrefix) -> Key<[u32; 5]> {
    let [a, b, c, d] = block.address;
    Key::new(block.bits, [a, b, c, d, block.ends])
}

/// The blocks of the ports from that of `first` to `last`.
pub(super) fn blocks(first: &ServiceKey, last: u16) -> Vec<PortPrefix> {
    let (mut port, last) = (u32::from(u16::from_be(first.port)), u32::from(last));
    let mut blocks = Vec::new();
    while port <= last {
        let aligned = if port == 0 {
            16
        } else {
            port.trailing_zeros().min(16)
        };
        let length = (last - port + 1).ilog2().min(aligned);
        let start = ServiceKey {
            port: (port as u16).to_be(),
            ..*first
        };
        blocks.push(PortPrefix {
            bits: PortPrefix::WHOLE - length,
            address: first.address,
            ends: PortPrefix::ends_of(&start),
        });
        port += 1 << length;
    }
    blocks
}

#[cfg(test)]
mod tests {
    use lb_common::layout::FAMILY_V4;

    use super::*;

    fn at(port: u16) -> ServiceKey {
        ServiceKey {
            address: [0, 0, 0, 7],
            port: port.to_be(),
            protocol: 6,
            family: FAMILY_V4,
        }
    }

    /// First port and number of ports of each block.
    fn of(first: u16, last: u16) -> Vec<(u16, u32)> {
        let block = |block: PortPrefix| {
            let [_, _, high, low] = block.ends.to_le_bytes();
            (
                u16::from_be_bytes([high, low]),
                1 << (PortPrefix::WHOLE - block.bits),
            )
        };
        blocks(&at(first), last).into_iter().map(block).collect()
    }

    #[test]
    fn a_range_is_made_up_of_aligned_blocks_without_a_gap() {
        assert_eq!(of(8000, 8000), [(8000, 1)]);
        assert_eq!(of(8000, 8100), [(8000, 64), (8064, 32), (8096, 4), (8100, 1)]);
        assert_eq!(of(1, 65534).len(), BLOCKS_A_RANGE as usize);
        assert_eq!(of(1, 65535).len(), 16);
        for (first, last) in [(1, 65535), (1, 65534), (1023, 1025), (40_000, 65535), (7, 9)] {
            let mut next = u32::from(first);
            for (start, length) in of(first, last) {
                assert_eq!(u32::from(start), next, "{first}-{last}");
                assert_eq!(u32::from(start) % length, 0, "{first}-{last}");
                next += length;
            }
            assert_eq!(next, u32::from(last) + 1, "{first}-{last}");
        }
    }
}
