//! The first file system of the machine: busybox and the modules that reach this machine's own root, which becomes the
//! machine's root as well (read only, over 9p, with a layer in memory on top).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::package::Kernel;
use crate::run;

/// What the kernel needs to reach the root; all else it loads itself from there.
const MODULES: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];

const INIT: &str = include_str!("init.sh");

/// Makes the image of a kernel, beside it.
///
/// # Errors
/// Where a module is missing, or a program to make it with.
pub fn make(kernel: &Kernel) -> Result<PathBuf> {
    let root = kernel.folder.join("initramfs");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    for folder in ["bin", "modules", "dev", "proc", "sys"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::copy(busybox()?, root.join("bin/busybox"))?;
    let init = root.join("init");
    fs::write(&init, INIT)?;
    run::succeed(Command::new("chmod").arg("755").arg(&init))?;
    fs::write(root.join("modules/order"), modules(kernel, &root)?)?;

    let image = kernel.folder.join("initramfs.gz");
    let made = Command::new("sh")
        .args(["-c", "find . | busybox cpio -o -H newc | gzip -1 > \"$0\""])
        .arg(&image)
        .current_dir(&root)
        .stderr(Stdio::null())
        .status()?;
    ensure!(made.success(), "{} cannot be made", image.display());
    Ok(image)
}

/// A busybox that needs no libraries.
fn busybox() -> Result<PathBuf> {
    let busybox = run::find_program("busybox").context("busybox is not installed")?;
    ensure!(
        !has_interpreter(&fs::read(&busybox)?),
        "{} needs libraries: install the package busybox-static",
        busybox.display()
    );
    Ok(busybox)
}

/// Whether an ELF file of 64 bits, little-endian, names a program that loads its libraries (`PT_INTERP`).
fn has_interpreter(file: &[u8]) -> bool {
    const INTERPRETER: u64 = 3;
    let number = |at: usize, len: usize| {
        let bytes = file.get(at..at + len).unwrap_or_default();
        bytes
            .iter()
            .rev()
            .fold(0, |number, byte| number << 8 | u64::from(*byte))
    };
    let (table, size, count) = (
        number(32, 8) as usize,
        number(54, 2) as usize,
        number(56, 2) as usize,
    );
    (0..count).any(|index| number(table + index * size, 4) == INTERPRETER)
}

/// Copies the modules and those that they need, and gives back their names in the order in which they go in.
fn modules(kernel: &Kernel, root: &Path) -> Result<String> {
    let modprobe = run::find_program("modprobe").context("modprobe is not installed")?;
    let mut order = String::new();
    let mut copied = BTreeSet::new();
    for module in MODULES {
        let output = Command::new(&modprobe)
            .arg("-d")
            .arg(&kernel.folder)
            .args(["-S", &kernel.release, "--show-depends", module])
            .output()?;
        ensure!(
            output.status.success(),
            "{}: no module {module}: {}",
            kernel.release,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        for file in String::from_utf8_lossy(&output.stdout).lines().filter_map(file) {
            let name = file.file_name().context("a file's name")?.to_string_lossy();
            let name = name.split(".ko").next().unwrap_or_default().to_owned() + ".ko";
            if copied.insert(name.clone()) {
                unpack(file, &root.join("modules").join(&name))?;
                order += &format!("{name}\n");
            }
        }
    }
    Ok(order)
}

/// `insmod FILE`, or `builtin NAME`.
fn file(line: &str) -> Option<&Path> {
    line.strip_prefix("insmod ").map(|path| Path::new(path.trim()))
}

fn unpack(from: &Path, to: &Path) -> Result<()> {
    let kind = from
        .extension()
        .and_then(|kind| kind.to_str())
        .unwrap_or_default();
    let program = match kind {
        "ko" => {
            fs::copy(from, to)?;
            return Ok(());
        }
        "xz" => "xz",
        "zst" => "zstd",
        "gz" => "gzip",
        _ => bail!("{}: packed in a way that is not known", from.display()),
    };
    let status = Command::new(program)
        .arg("-dc")
        .arg(from)
        .stdout(fs::File::create(to)?)
        .status()
        .with_context(|| format!("cannot run {program}"))?;
    ensure!(status.success(), "{program} -dc {} failed", from.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_with_libraries_are_told_from_those_without() {
        // This test has some.
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(has_interpreter(&own));
        assert!(!has_interpreter(b"\x7fELF"));
    }

    #[test]
    fn only_modules_that_are_not_built_in_are_files() {
        assert_eq!(file("insmod /lib/a/9p.ko "), Some(Path::new("/lib/a/9p.ko")));
        assert_eq!(file("builtin virtio_pci"), None);
    }
}
