//! Which kernels there are, and getting one: packages of Debian, unpacked but never installed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::run;

/// An unpacked kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// As `uname -r` says it there.
    pub release: String,
    /// Holds `boot` and `lib/modules`.
    pub folder: PathBuf,
}

impl Kernel {
    pub fn image(&self) -> PathBuf {
        self.folder.join(format!("boot/vmlinuz-{}", self.release))
    }

    /// The folder that `/lib/modules` is in the machine.
    pub fn modules(&self) -> PathBuf {
        self.folder.join("lib/modules")
    }
}

/// The packages that apt knows of, the newest of each series such as `6.1`, by series.
///
/// # Errors
/// Where apt cannot be asked.
pub fn offered() -> Result<BTreeMap<(u32, u32), String>> {
    let output = Command::new("apt-cache")
        .args(["search", "--names-only", "^linux-image-[0-9].*-amd64$"])
        .output()
        .context("cannot run apt-cache: kernels come as packages of Debian")?;
    ensure!(output.status.success(), "apt-cache search failed");
    Ok(newest(&String::from_utf8_lossy(&output.stdout)))
}

/// From the lines of `apt-cache search`.
fn newest(text: &str) -> BTreeMap<(u32, u32), String> {
    let mut found = BTreeMap::<(u32, u32), String>::new();
    for name in text.lines().filter_map(|line| line.split_whitespace().next()) {
        let Some(series) = series(name) else { continue };
        match found.get(&series) {
            Some(other) if numbers(other) >= numbers(name) => {}
            _ => drop(found.insert(series, name.to_owned())),
        }
    }
    found
}

/// The series of a package that holds a kernel itself, of the flavour for all machines.
fn series(package: &str) -> Option<(u32, u32)> {
    let version = package.strip_prefix("linux-image-")?.strip_suffix("-amd64")?;
    // Flavours for clouds lack 9p, and names of two numbers only name another package.
    let others = ["cloud", "rt", "unsigned", "dbg"];
    if version.split('-').any(|word| others.contains(&word)) {
        return None;
    }
    match numbers(version.split('+').next()?)[..] {
        [major, minor, _, ..] => Some((major, minor)),
        _ => None,
    }
}

/// All numbers in a text.
fn numbers(text: &str) -> Vec<u32> {
    text.split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

/// The packages of the series that are wanted, or of all of them.
///
/// # Errors
/// Where apt does not offer one.
pub fn choose(offered: &BTreeMap<(u32, u32), String>, wanted: &[String]) -> Result<Vec<String>> {
    if wanted.is_empty() {
        ensure!(
            !offered.is_empty(),
            "apt offers no package linux-image-VERSION-amd64; apt-get update?"
        );
        return Ok(offered.values().cloned().collect());
    }
    let mut chosen = Vec::new();
    for text in wanted {
        let series = match numbers(text)[..] {
            [major, minor] => offered.get(&(major, minor)),
            _ => None,
        };
        match series {
            Some(package) => chosen.push(package.clone()),
            None => {
                let series: Vec<String> = offered
                    .keys()
                    .map(|(major, minor)| format!("{major}.{minor}"))
                    .collect();
                bail!(
                    "apt offers no kernel {text}, only {}; a file linux-image-*.deb can be given instead",
                    series.join(", ")
                );
            }
        }
    }
    Ok(chosen)
}

/// Downloads and unpacks a package below `folder`, where it is not there yet.
///
/// # Errors
/// Where apt does not get it, or it holds no kernel.
pub fn fetch(package: &str, folder: &Path) -> Result<Kernel> {
    let own = folder.join(package);
    if let Ok(kernel) = unpacked(&own) {
        return Ok(kernel);
    }
    let download = own.join("download");
    fs::create_dir_all(&download).with_context(|| download.display().to_string())?;
    // Apt's own user may not write there, and the file needs no secrecy.
    run::succeed(
        Command::new("apt-get")
            .args(["-qq", "-o", "APT::Sandbox::User=root", "download", package])
            .current_dir(&download),
    )?;
    let file = fs::read_dir(&download)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|kind| kind == "deb"))
        .with_context(|| format!("apt-get download {package} left no file"))?;
    let kernel = unpack(&file, &own)?;
    fs::remove_dir_all(&download)?;
    Ok(kernel)
}

/// Unpacks a package that the user has.
///
/// # Errors
/// Where it holds no kernel.
pub fn take(file: &Path, folder: &Path) -> Result<Kernel> {
    let name = file.file_stem().context("a file's name")?;
    let own = folder.join(name);
    unpacked(&own).or_else(|_| unpack(file, &own))
}

fn unpack(file: &Path, own: &Path) -> Result<Kernel> {
    run::succeed(Command::new("dpkg-deb").arg("-x").arg(file).arg(own))?;
    // What merged folders of newer releases are for others.
    let (merged, plain) = (own.join("usr/lib/modules"), own.join("lib/modules"));
    if merged.is_dir() && !plain.exists() {
        fs::create_dir_all(own.join("lib"))?;
        fs::rename(merged, plain)?;
    }
    let kernel = found(own)?;
    run::succeed(
        Command::new(run::find_program("depmod").context("depmod is not installed")?)
            .arg("-b")
            .arg(own)
            .arg(&kernel.release),
    )?;
    Ok(kernel)
}

/// One that was unpacked to the end.
fn unpacked(own: &Path) -> Result<Kernel> {
    let kernel = found(own)?;
    let last = kernel.modules().join(&kernel.release).join("modules.dep.bin");
    ensure!(last.exists(), "not unpacked yet");
    Ok(kernel)
}

fn found(own: &Path) -> Result<Kernel> {
    let boot = own.join("boot");
    let image = fs::read_dir(&boot)
        .with_context(|| boot.display().to_string())?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .find_map(|name| Some(name.strip_prefix("vmlinuz-")?.to_owned()));
    Ok(Kernel {
        release: image.with_context(|| format!("no kernel in {}", boot.display()))?,
        folder: own.to_path_buf(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTED: &str = "\
linux-image-6.1.0-47-amd64 - Linux 6.1 for 64-bit PCs (signed)
linux-image-6.1.0-56-amd64 - Linux 6.1 for 64-bit PCs (signed)
linux-image-6.1.0-9-amd64 - Linux 6.1 for 64-bit PCs (signed)
linux-image-6.1.0-57-cloud-amd64 - Linux 6.1 for x86-64 cloud (signed)
linux-image-6.1.0-57-rt-amd64 - Linux 6.1 for 64-bit PCs, PREEMPT_RT (signed)
linux-image-6.12-amd64 - Linux for 64-bit PCs (meta-package)
linux-image-6.12.99+deb12-amd64 - Linux 6.12 for 64-bit PCs (signed)
linux-image-6.12.117+deb12-amd64 - Linux 6.12 for 64-bit PCs (signed)
linux-image-amd64-dbg - Debugging symbols
";

    #[test]
    fn the_newest_package_of_each_series_is_taken() {
        let offered = newest(LISTED);
        let all = choose(&offered, &[]).unwrap();
        assert_eq!(
            all,
            ["linux-image-6.1.0-56-amd64", "linux-image-6.12.117+deb12-amd64"]
        );
        assert_eq!(choose(&offered, &["6.12".into()]).unwrap(), all[1..]);
        let error = choose(&offered, &["5.10".into()]).unwrap_err().to_string();
        assert!(
            error.starts_with("apt offers no kernel 5.10, only 6.1, 6.12"),
            "{error}"
        );
    }

    #[test]
    fn without_lists_of_packages_it_says_what_to_do() {
        let error = choose(&newest(""), &[]).unwrap_err().to_string();
        assert!(error.contains("apt-get update"), "{error}");
    }
}
