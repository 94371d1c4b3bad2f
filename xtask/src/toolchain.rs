//! Which compiler and linker can build for `bpfel-unknown-none`.
//!
//! Three things have to fit together:
//!
//! - **The compiler** needs the sources of its own standard library (`rust-src`): no `core` is shipped for BPF,
//!   so `-Z build-std=core` compiles it each time. A stable compiler does this under `RUSTC_BOOTSTRAP=1`.
//! - **The linker**, `bpf-linker`, reads the compiler's LLVM bitcode and writes the BPF object with its BTF.
//!   Bitcode is readable only by an LLVM at least as new as the one that wrote it.
//! - **LLVM's shared library**: `bpf-linker` 0.10 brings none and opens the first `libLLVM*` that it finds in the
//!   folders of `LD_LIBRARY_PATH`. We hand it the very library that the chosen compiler itself uses.
//!
//! The build script of `lb-userspace` includes this file as well, so it uses nothing but `std`.

use std::{
    env,
    ffi::OsString,
    fmt, fs, io,
    path::{Path, PathBuf},
    process::Command,
};

/// The version of `bpf-linker` that `cargo xtask setup` installs.
pub const LINKER_VERSION: &str = "0.10.4";

/// The LLVM whose interface `bpf-linker` 0.10.4 calls.
pub const LINKER_LLVM_MAJOR: u32 = 22;

/// The oldest compiler that takes this workspace (`rust-version` in `Cargo.toml`).
pub const OLDEST_RUSTC: (u32, u32) = (1, 95);

/// The toolchain that rustup is asked for where its default one has a newer LLVM than the linker.
pub const PINNED_RUSTUP_TOOLCHAIN: &str = "1.95.0";

const SETUP: &str = "cargo xtask setup";

/// A compiler with the library sources, the linker, and the LLVM library that the linker is to open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BpfToolchain {
    pub compiler: Compiler,
    pub linker: PathBuf,
}

/// A `rustc` with its `cargo` and its library sources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiler {
    pub rustc: PathBuf,
    pub cargo: PathBuf,
    pub version: CompilerVersion,
    /// The `libLLVM` file that this compiler runs on.
    pub llvm_library: PathBuf,
}

/// What `rustc -vV` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompilerVersion {
    pub release: (u32, u32, u32),
    pub llvm: (u32, u32, u32),
}

/// What stands in the way of building for BPF; the text names the command that helps.
#[derive(Debug)]
pub enum Missing {
    /// No compiler that would do. Each one looked at, with the reason against it.
    Compiler { rejected: Vec<(PathBuf, Rejection)> },
    /// `bpf-linker` is not in `PATH` nor in cargo's `bin` folder.
    Linker,
    /// `bpf-linker` is there, but of a version that cannot read what the compiler writes.
    LinkerVersion { path: PathBuf, found: String },
}

/// Why a compiler cannot build for BPF.
#[derive(Debug)]
pub enum Rejection {
    NoLibrarySources,
    NoCargo,
    TooOld(CompilerVersion),
    /// Its bitcode would be unreadable for the linker.
    OtherLlvm(CompilerVersion),
    NoLlvmLibrary {
        searched: Vec<PathBuf>,
    },
    DoesNotRun(io::Error),
    UnknownVersion(String),
}

/// Finds everything the BPF build needs.
///
/// # Errors
/// The first of compiler and linker that is missing.
pub fn find() -> Result<BpfToolchain, Missing> {
    Ok(BpfToolchain {
        compiler: find_compiler()?,
        linker: find_linker()?,
    })
}

/// Finds a compiler: rustup's toolchains first (the newest that fits), then the distribution's.
///
/// # Errors
/// [`Missing::Compiler`] with every compiler looked at.
pub fn find_compiler() -> Result<Compiler, Missing> {
    let mut rejected = Vec::new();
    let mut best: Option<Compiler> = None;
    for sysroot in rustup_sysroots() {
        match examine(&sysroot.join("bin"), &sysroot) {
            Ok(found)
                if best
                    .as_ref()
                    .is_none_or(|b| b.version.release < found.version.release) =>
            {
                best = Some(found);
            }
            Ok(_) => {}
            Err(reason) => rejected.push((sysroot.join("bin/rustc"), reason)),
        }
    }
    if let Some(found) = best {
        return Ok(found);
    }
    let usr = Path::new("/usr");
    if usr.join("bin/rustc").exists() {
        match examine(&usr.join("bin"), usr) {
            Ok(found) => return Ok(found),
            Err(reason) => rejected.push((usr.join("bin/rustc"), reason)),
        }
    }
    Err(Missing::Compiler { rejected })
}

/// Finds a `bpf-linker` of the version that fits.
///
/// # Errors
/// [`Missing::Linker`] or [`Missing::LinkerVersion`].
pub fn find_linker() -> Result<PathBuf, Missing> {
    let mut folders: Vec<PathBuf> = env::var_os("PATH")
        .map(|path| env::split_paths(&path).collect())
        .unwrap_or_default();
    folders.extend(cargo_home().map(|home| home.join("bin")));
    let mut other = None;
    for path in folders
        .into_iter()
        .map(|folder| folder.join("bpf-linker"))
        .filter(|path| path.is_file())
    {
        let found = match Command::new(&path).arg("--version").output() {
            Ok(output) => String::from_utf8_lossy(&output.stdout)
                .trim()
                .replace("bpf-linker ", ""),
            Err(error) => error.to_string(),
        };
        if found.starts_with("0.10.") {
            return Ok(path);
        }
        other.get_or_insert(Missing::LinkerVersion { path, found });
    }
    Err(other.unwrap_or(Missing::Linker))
}

/// Where cargo keeps what it installs.
pub fn cargo_home() -> Option<PathBuf> {
    env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")))
}

impl BpfToolchain {
    /// A command for this toolchain's cargo in which nothing of a surrounding cargo, of clippy or of the user's
    /// own flags is left, so that the object depends on its sources alone.
    ///
    /// `library_folder` is a folder of ours in which the linker finds one LLVM and no other: the
    /// distribution's folder may hold several, and the linker takes the first it sees.
    ///
    /// # Errors
    /// When `library_folder` cannot be written.
    pub fn cargo(&self, library_folder: &Path) -> io::Result<Command> {
        let link = library_folder.join(format!("libLLVM-{}.so", self.compiler.version.llvm.0));
        if fs::read_link(&link).ok().as_deref() != Some(&self.compiler.llvm_library) {
            fs::create_dir_all(library_folder)?;
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(&self.compiler.llvm_library, &link)?;
        }

        let mut command = Command::new(&self.compiler.cargo);
        for (name, _) in env::vars_os() {
            if disturbs_nested_cargo(&name.to_string_lossy()) {
                command.env_remove(name);
            }
        }
        let folder_of_rustc = self.compiler.rustc.parent().map(Path::to_path_buf);
        let path = env::var_os("PATH").unwrap_or_default();
        let path = env::join_paths(folder_of_rustc.into_iter().chain(env::split_paths(&path)))
            .unwrap_or_else(|_| OsString::from("/usr/bin:/bin"));
        command
            .env("RUSTC", &self.compiler.rustc)
            .env("RUSTC_BOOTSTRAP", "1")
            .env("LD_LIBRARY_PATH", library_folder)
            .env("PATH", path);
        Ok(command)
    }
}

/// True for the variables with which an outer cargo, rustup or clippy would steer the inner one.
fn disturbs_nested_cargo(name: &str) -> bool {
    const KEPT: [&str; 5] = [
        "CARGO_HOME",
        "CARGO_NET_",
        "CARGO_HTTP_",
        "CARGO_REGISTRIES_",
        "CARGO_TERM_",
    ];
    const CLEARED: [&str; 12] = [
        "HOST",
        "TARGET",
        "PROFILE",
        "DEBUG",
        "OPT_LEVEL",
        "NUM_JOBS",
        "OUT_DIR",
        "MAKEFLAGS",
        "MFLAGS",
        "RUSTFLAGS",
        "RUSTDOC",
        "LD_LIBRARY_PATH",
    ];
    const CLEARED_PREFIXES: [&str; 5] = ["CARGO_", "RUSTC", "RUSTUP_TOOLCHAIN", "CLIPPY_", "DEP_"];

    if KEPT.iter().any(|kept| name.starts_with(kept)) {
        return false;
    }
    name == "CARGO"
        || CLEARED.contains(&name)
        || CLEARED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// The folders of all toolchains that rustup has installed.
fn rustup_sysroots() -> Vec<PathBuf> {
    let home = env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".rustup")));
    let Some(entries) = home.and_then(|home| fs::read_dir(home.join("toolchains")).ok()) else {
        return Vec::new();
    };
    let mut sysroots: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.join("bin/rustc").exists())
        .collect();
    sysroots.sort();
    sysroots
}

fn examine(bin: &Path, sysroot: &Path) -> Result<Compiler, Rejection> {
    let (rustc, cargo) = (bin.join("rustc"), bin.join("cargo"));
    if !sysroot.join("lib/rustlib/src/rust/library/core").exists() {
        return Err(Rejection::NoLibrarySources);
    }
    if !cargo.exists() {
        return Err(Rejection::NoCargo);
    }
    let version = CompilerVersion::of(&rustc)?;
    version.check()?;
    let llvm_library = llvm_library(sysroot, version.llvm.0)?;
    Ok(Compiler {
        rustc,
        cargo,
        version,
        llvm_library,
    })
}

/// The `libLLVM` of a compiler: rustup's toolchains have it in their `lib`, distributions in the folder of the
/// system's libraries.
fn llvm_library(sysroot: &Path, major: u32) -> Result<PathBuf, Rejection> {
    let lib = sysroot.join("lib");
    let multiarch = lib.join(format!("{}-linux-gnu", env::consts::ARCH));
    let versioned = lib.join(format!("llvm-{major}/lib"));
    let searched = vec![lib, multiarch, versioned];
    let prefixes = [
        format!("libLLVM.so.{major}."),
        format!("libLLVM-{major}.so"),
        format!("libLLVM-{major}-"),
    ];
    for folder in &searched {
        let Ok(entries) = fs::read_dir(folder) else {
            continue;
        };
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        // The file with the full version first: the unversioned name in a rustup toolchain is a linker script.
        files.sort_by_key(|path| !path.to_string_lossy().contains("libLLVM.so."));
        let found = files.into_iter().find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            prefixes.iter().any(|prefix| name.starts_with(prefix.as_str()))
        });
        if let Some(found) = found {
            return Ok(found);
        }
    }
    Err(Rejection::NoLlvmLibrary { searched })
}

impl CompilerVersion {
    /// Asks a `rustc` for its version.
    ///
    /// # Errors
    /// When it does not run or its answer cannot be read.
    pub fn of(rustc: &Path) -> Result<Self, Rejection> {
        let output = Command::new(rustc)
            .arg("-vV")
            .env_remove("LD_LIBRARY_PATH")
            .output()
            .map_err(Rejection::DoesNotRun)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Self::parse(&text).ok_or(Rejection::UnknownVersion(text))
    }

    /// Whether this compiler takes the workspace and writes bitcode that the linker reads.
    ///
    /// # Errors
    /// [`Rejection::TooOld`] or [`Rejection::OtherLlvm`].
    pub fn check(self) -> Result<(), Rejection> {
        if (self.release.0, self.release.1) < OLDEST_RUSTC {
            return Err(Rejection::TooOld(self));
        }
        if self.llvm.0 != LINKER_LLVM_MAJOR {
            return Err(Rejection::OtherLlvm(self));
        }
        Ok(())
    }

    /// Reads the output of `rustc -vV`.
    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name))
                .map(str::trim)
        };
        Some(Self {
            release: parse_triple(field("release:")?)?,
            llvm: parse_triple(field("LLVM version:")?)?,
        })
    }
}

/// `1.97.0-nightly` -> (1, 97, 0); a missing part counts as 0.
fn parse_triple(text: &str) -> Option<(u32, u32, u32)> {
    let mut parts = text.split('-').next()?.split('.');
    let major = parts.next()?.parse().ok()?;
    let minor = parts.next().unwrap_or("0").parse().ok()?;
    let patch = parts.next().unwrap_or("0").parse().ok()?;
    Some((major, minor, patch))
}

impl fmt::Display for CompilerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ((major, minor, patch), (llvm_major, llvm_minor, llvm_patch)) = (self.release, self.llvm);
        write!(
            f,
            "{major}.{minor}.{patch} with LLVM {llvm_major}.{llvm_minor}.{llvm_patch}"
        )
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compiler { rejected } => {
                writeln!(f, "no Rust compiler here can build for bpfel-unknown-none:")?;
                for (path, reason) in rejected {
                    writeln!(f, "  {}: {reason}", path.display())?;
                }
                write!(f, "install one with: {SETUP}")
            }
            Self::Linker => {
                write!(
                    f,
                    "bpf-linker is in neither PATH nor cargo's bin folder; install it with: {SETUP}"
                )
            }
            Self::LinkerVersion { path, found } => write!(
                f,
                "{} is version {found}, but {LINKER_VERSION} is needed; install it with: {SETUP}",
                path.display()
            ),
        }
    }
}

impl std::error::Error for Missing {}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoLibrarySources => {
                write!(
                    f,
                    "has no library sources (rustup component rust-src, Debian package rust-web-src)"
                )
            }
            Self::NoCargo => write!(f, "has no cargo beside it (Debian package cargo-web)"),
            Self::TooOld(version) => {
                write!(
                    f,
                    "is {version}; {}.{} or later is needed",
                    OLDEST_RUSTC.0, OLDEST_RUSTC.1
                )
            }
            Self::OtherLlvm(version) => {
                write!(
                    f,
                    "is {version}; bpf-linker {LINKER_VERSION} works with LLVM {LINKER_LLVM_MAJOR}"
                )
            }
            Self::NoLlvmLibrary { searched } => {
                write!(f, "comes without libLLVM; looked in")?;
                searched
                    .iter()
                    .try_for_each(|folder| write!(f, " {}", folder.display()))
            }
            Self::DoesNotRun(error) => write!(f, "does not run: {error}"),
            Self::UnknownVersion(text) => write!(f, "says a version that cannot be read: {text:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_stable_and_nightly_compilers_are_read() {
        let text = "rustc 1.97.0-nightly (abc 2026-05-01)\nrelease: 1.97.0-nightly\nLLVM version: 22.1.4\n";
        assert_eq!(
            CompilerVersion::parse(text),
            Some(CompilerVersion {
                release: (1, 97, 0),
                llvm: (22, 1, 4)
            })
        );
        assert_eq!(parse_triple("22.1"), Some((22, 1, 0)));
        assert_eq!(CompilerVersion::parse("release: 1.97.0\n"), None);
    }

    #[test]
    fn a_nested_cargo_sees_neither_clippy_nor_our_own_flags() {
        for name in [
            "RUSTC",
            "RUSTC_WORKSPACE_WRAPPER",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_TARGET_DIR",
            "CARGO",
            "TARGET",
        ] {
            assert!(disturbs_nested_cargo(name), "{name}");
        }
        for name in [
            "CARGO_HOME",
            "CARGO_NET_OFFLINE",
            "CARGO_TERM_COLOR",
            "HOME",
            "PATH",
            "HTTPS_PROXY",
        ] {
            assert!(!disturbs_nested_cargo(name), "{name}");
        }
    }

    #[test]
    fn a_missing_compiler_names_each_candidate_and_the_command_that_helps() {
        let missing = Missing::Compiler {
            rejected: vec![(PathBuf::from("/x/rustc"), Rejection::NoLibrarySources)],
        };
        let text = missing.to_string();
        assert!(
            text.contains("/x/rustc: has no library sources") && text.contains(SETUP),
            "{text}"
        );
    }
}
