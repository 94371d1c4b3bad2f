//! What is on this machine, as far as the set-up cares. Nothing is changed here, and where everything is in
//! place, the looking takes milliseconds.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::Scope;
use crate::{
    run,
    toolchain::{self, CompilerVersion, Missing, Rejection},
};

/// Where the file system for pinned programs and maps is mounted.
pub const BPFFS: &str = "/sys/fs/bpf";

/// What is missing, and what could help.
#[derive(Debug)]
pub struct Findings {
    pub distribution: Distribution,
    pub compiler: Option<NoCompiler>,
    pub linker: Option<NoLinker>,
    pub programs: Vec<&'static Program>,
    pub lacks_bpffs: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Distribution {
    Debian,
    Ubuntu,
    Other(String),
}

/// No compiler here can build for BPF.
#[derive(Debug)]
pub struct NoCompiler {
    /// Each compiler looked at, with the reason against it.
    pub rejected: Vec<String>,
    /// What rustup, where it is installed, may be asked for.
    pub rustup: Option<RustupRequest>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RustupRequest {
    /// The library sources for a toolchain that lacks nothing else.
    Sources { toolchain: String },
    /// A toolchain beside those that do not fit.
    Toolchain,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoLinker {
    Absent,
    OtherVersion(String),
}

/// A program that the tests call.
#[derive(Debug, PartialEq, Eq)]
pub struct Program {
    pub name: &'static str,
    pub purpose: &'static str,
    /// Called to see whether it runs, where being there is not enough.
    probe: Option<&'static str>,
    pub debian_packages: &'static [&'static str],
    pub ubuntu_packages: &'static [&'static str],
}

const fn program(name: &'static str, package: &'static [&'static str], purpose: &'static str) -> Program {
    Program {
        name,
        purpose,
        probe: None,
        debian_packages: package,
        ubuntu_packages: package,
    }
}

pub static PROGRAMS: [Program; 13] = [
    program("nginx", &["nginx-light"], "web server of the backends"),
    program("curl", &["curl"], "web client"),
    program("iperf3", &["iperf3"], "bulk traffic"),
    program("dnsmasq", &["dnsmasq-base"], "name server of the backends, UDP"),
    program("dig", &["bind9-dnsutils"], "name client"),
    program("tcpdump", &["tcpdump"], "reads the captures as others would"),
    Program {
        name: "bpftool",
        purpose: "shows what is attached and pinned",
        // Ubuntu's is a script that looks for the program of the running kernel.
        probe: Some("version"),
        debian_packages: &["bpftool"],
        ubuntu_packages: &["linux-tools-common", "linux-tools-generic"],
    },
    program(
        "ethtool",
        &["ethtool"],
        "switches offloads of the test interfaces",
    ),
    program("ip", &["iproute2"], "links, addresses and routes"),
    program("ping", &["iputils-ping"], "reachability beside the services"),
    program("traceroute", &["traceroute"], "the hops of a packet's way"),
    program("ps", &["procps"], "looks for processes left over"),
    program("nsenter", &["util-linux"], "runs programs in a namespace"),
];

/// What `cargo xtask bench` compares with, and measures with; what is missing is left out there.
pub static ALTERNATIVES: [Program; 8] = [
    program("nginx", &["nginx-light"], "web server of the backends"),
    program("curl", &["curl"], "web client"),
    program(
        "/usr/lib/nginx/modules/ngx_stream_module.so",
        &["libnginx-mod-stream"],
        "nginx as a load balancer to compare with",
    ),
    program("haproxy", &["haproxy"], "load balancer to compare with"),
    program("keepalived", &["keepalived"], "checks of IPVS to compare with"),
    program("ipvsadm", &["ipvsadm"], "IPVS to compare with"),
    program("nft", &["nftables"], "nftables to compare with"),
    program("wrk", &["wrk"], "client that measures web servers"),
];

/// What `cargo xtask kernels` makes its machines with.
pub static MACHINES: [Program; 4] = [
    program("qemu-system-x86_64", &["qemu-system-x86"], "emulates machines"),
    program("busybox", &["busybox-static"], "first programs of a machine"),
    program("depmod", &["kmod"], "sorts a kernel's modules"),
    program("xz", &["xz-utils"], "unpacks a kernel's modules"),
];

/// Those of `programs` that are not here.
pub fn missing(programs: &'static [Program]) -> Findings {
    Findings {
        distribution: distribution(),
        compiler: None,
        linker: None,
        programs: programs.iter().filter(|program| !program.is_here()).collect(),
        lacks_bpffs: false,
    }
}

/// Looks for everything in `scope`.
///
/// # Errors
/// When the system cannot be asked.
pub fn look(scope: Scope) -> Result<Findings> {
    Ok(Findings {
        distribution: distribution(),
        compiler: match toolchain::find_compiler() {
            Err(Missing::Compiler { rejected }) => Some(no_compiler(&rejected)),
            Ok(_) | Err(_) => None,
        },
        linker: match toolchain::find_linker() {
            Ok(_) => None,
            Err(Missing::LinkerVersion { found, .. }) => Some(NoLinker::OtherVersion(found)),
            Err(_) => Some(NoLinker::Absent),
        },
        programs: match scope {
            Scope::Toolchain | Scope::Demo => Vec::new(),
            Scope::Everything => PROGRAMS.iter().filter(|program| !program.is_here()).collect(),
        },
        lacks_bpffs: match scope {
            Scope::Toolchain => false,
            Scope::Demo | Scope::Everything => !has_bpffs()?,
        },
    })
}

impl Program {
    fn is_here(&self) -> bool {
        let Some(path) = run::find_program(self.name) else {
            return false;
        };
        let Some(argument) = self.probe else {
            return true;
        };
        Command::new(path)
            .arg(argument)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    }
}

fn has_bpffs() -> Result<bool> {
    if !Path::new(BPFFS).exists() {
        return Ok(false);
    }
    let found = statfs(BPFFS).with_context(|| format!("cannot ask what is mounted at {BPFFS}"))?;
    Ok(found.filesystem_type() == BPF_FS_MAGIC)
}

fn distribution() -> Distribution {
    Distribution::parse(&fs::read_to_string("/etc/os-release").unwrap_or_default())
}

impl Distribution {
    /// Reads `os-release(5)`. Those made from Debian or Ubuntu count as what they are made from.
    fn parse(os_release: &str) -> Self {
        let value = |key: &str| {
            os_release
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
                .map_or("", |value| value.trim_matches('"'))
        };
        let (id, like) = (value("ID"), value("ID_LIKE"));
        let is = |name: &str| id == name || like.split_whitespace().any(|word| word == name);
        if is("ubuntu") {
            Self::Ubuntu
        } else if is("debian") {
            Self::Debian
        } else {
            Self::Other(id.to_owned())
        }
    }
}

fn no_compiler(rejected: &[(PathBuf, Rejection)]) -> NoCompiler {
    NoCompiler {
        rejected: rejected
            .iter()
            .map(|(path, reason)| format!("{}: {reason}", path.display()))
            .collect(),
        rustup: run::find_program("rustup")
            .or_else(|| toolchain::cargo_home().map(|home| home.join("bin/rustup")))
            .filter(|rustup| rustup.exists())
            .map(|_| {
                let lacking_sources = rejected.iter().filter_map(|(rustc, reason)| {
                    let fits = matches!(reason, Rejection::NoLibrarySources)
                        && CompilerVersion::of(rustc).is_ok_and(|version| version.check().is_ok());
                    fits.then(|| toolchain_name(rustc)).flatten()
                });
                request(
                    &lacking_sources.collect::<Vec<_>>(),
                    env::var("RUSTUP_TOOLCHAIN").ok().as_deref(),
                )
            }),
    }
}

/// `.../toolchains/NAME/bin/rustc` -> NAME
fn toolchain_name(rustc: &Path) -> Option<String> {
    let sysroot = rustc.parent()?.parent()?;
    if sysroot.parent()?.file_name()? != "toolchains" {
        return None;
    }
    sysroot.file_name()?.to_str().map(str::to_owned)
}

/// Among the toolchains that lack only the sources, the one in use is the one to complete.
fn request(lacking_sources: &[String], in_use: Option<&str>) -> RustupRequest {
    lacking_sources
        .iter()
        .find(|name| Some(name.as_str()) == in_use)
        .or(lacking_sources.first())
        .map_or(RustupRequest::Toolchain, |name| RustupRequest::Sources {
            toolchain: name.clone(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distributions_are_told_by_id_and_by_what_they_are_made_from() {
        for (text, expected) in [
            ("NAME=\"Debian GNU/Linux\"\nID=debian\n", Distribution::Debian),
            ("ID=ubuntu\nID_LIKE=debian\n", Distribution::Ubuntu),
            ("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n", Distribution::Ubuntu),
            (
                "VERSION_ID=\"40\"\nID=fedora\n",
                Distribution::Other("fedora".to_owned()),
            ),
            ("", Distribution::Other(String::new())),
        ] {
            assert_eq!(Distribution::parse(text), expected, "{text:?}");
        }
    }

    #[test]
    fn the_toolchain_in_use_is_completed_before_others() {
        let names = || vec!["1.95.0-x".to_owned(), "stable-x".to_owned()];
        let sources = |name: &str| RustupRequest::Sources {
            toolchain: name.to_owned(),
        };
        assert_eq!(request(&names(), Some("stable-x")), sources("stable-x"));
        assert_eq!(request(&names(), Some("nightly-x")), sources("1.95.0-x"));
        assert_eq!(request(&[], Some("stable-x")), RustupRequest::Toolchain);
    }

    #[test]
    fn only_rustups_compilers_have_a_toolchain_name() {
        let name = |path: &str| toolchain_name(Path::new(path));
        assert_eq!(
            name("/root/.rustup/toolchains/stable-x/bin/rustc").as_deref(),
            Some("stable-x")
        );
        assert_eq!(name("/usr/bin/rustc"), None);
    }
}
