//! What a process holds of the kernel: open files, BPF maps and programs.

use std::collections::BTreeSet;
use std::fs;

use anyhow::Context;

/// What a process holds, but for its own memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    pub files: usize,
    /// Ids of maps and programs that it has open.
    pub maps: BTreeSet<u32>,
    pub programs: BTreeSet<u32>,
    /// Bytes that the kernel has for those maps.
    pub kernel: u64,
}

impl Held {
    /// # Errors
    /// Where there is no such process.
    pub fn of(pid: u32) -> anyhow::Result<Self> {
        let mut held = Self::default();
        let folder = format!("/proc/{pid}/fdinfo");
        for file in fs::read_dir(&folder).context(folder)?.flatten() {
            held.files += 1;
            let text = fs::read_to_string(file.path()).unwrap_or_default();
            let field = |name: &str| {
                let mut lines = text.lines();
                lines.find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok())
            };
            let id = |name: &str| field(name).and_then(|id| u32::try_from(id).ok());
            if let Some(map) = id("map_id:") {
                if held.maps.insert(map) {
                    held.kernel += field("memlock:").unwrap_or(0);
                }
            } else if let Some(program) = id("prog_id:") {
                held.programs.insert(program);
            }
        }
        Ok(held)
    }

    /// Those of its maps and programs that the kernel has still.
    #[must_use]
    pub fn left(&self) -> (Vec<u32>, Vec<u32>) {
        let maps = aya::maps::loaded_maps().flatten().map(|map| map.id());
        let programs = aya::programs::loaded_programs()
            .flatten()
            .map(|program| program.id());
        (
            maps.filter(|id| self.maps.contains(id)).collect(),
            programs.filter(|id| self.programs.contains(id)).collect(),
        )
    }
}
