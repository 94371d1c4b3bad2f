//! From what is missing to what is to be done. Pure: nothing is looked at and nothing is changed.

use std::fmt;

use super::machine::{BPFFS, Distribution, Findings, NoCompiler, NoLinker, Program, RustupRequest};
use crate::toolchain::{LINKER_VERSION, PINNED_RUSTUP_TOOLCHAIN};

/// Debian's own compiler for web browsers: much newer than its `rustc`, and with the library sources.
pub const COMPILER_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

/// What is to be done, and what we cannot do.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    pub steps: Vec<Step>,
    pub by_hand: Vec<ByHand>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// A compiler for BPF, from the first of these that has one. Never empty.
    Compiler {
        sources: Vec<CompilerSource>,
        rejected: Vec<String>,
    },
    Linker(NoLinker),
    Programs {
        programs: Vec<&'static Program>,
        packages: Vec<&'static str>,
    },
    MountBpffs,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CompilerSource {
    Rustup(RustupRequest),
    DebianPackages,
}

/// Something that this program cannot install here.
#[derive(Debug, PartialEq, Eq)]
pub struct ByHand {
    pub what: String,
    pub command: String,
}

impl Plan {
    pub fn new(findings: &Findings) -> Self {
        let mut plan = Self {
            steps: Vec::new(),
            by_hand: Vec::new(),
        };
        if let Some(compiler) = &findings.compiler {
            plan.add_compiler(compiler, &findings.distribution);
        }
        if let Some(linker) = &findings.linker {
            plan.steps.push(Step::Linker(linker.clone()));
        }
        if !findings.programs.is_empty() {
            plan.add_programs(&findings.programs, &findings.distribution);
        }
        if findings.lacks_bpffs {
            plan.steps.push(Step::MountBpffs);
        }
        plan
    }

    pub fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.by_hand.is_empty()
    }

    pub fn needs_root(&self) -> bool {
        self.steps.iter().any(|step| match step {
            Step::Compiler { sources, .. } => sources.first() == Some(&CompilerSource::DebianPackages),
            Step::Linker(_) => false,
            Step::Programs { .. } | Step::MountBpffs => true,
        })
    }

    /// What to type to do all of it by hand, a command a line.
    pub fn commands(&self) -> String {
        let steps = self.steps.iter().map(Step::command);
        let by_hand = self.by_hand.iter().map(|item| item.command.clone());
        let lines: Vec<String> = steps
            .chain(by_hand)
            .map(|command| format!("  {command}"))
            .collect();
        lines.join("\n")
    }

    fn add_compiler(&mut self, missing: &NoCompiler, distribution: &Distribution) {
        let mut sources: Vec<CompilerSource> = missing
            .rustup
            .iter()
            .cloned()
            .map(CompilerSource::Rustup)
            .collect();
        if *distribution == Distribution::Debian {
            sources.push(CompilerSource::DebianPackages);
        }
        if sources.is_empty() {
            self.by_hand.push(ByHand {
                what: "a Rust compiler with its library sources; rustup (https://rustup.rs) has one"
                    .to_owned(),
                command: RustupRequest::Toolchain.command(),
            });
        } else {
            self.steps.push(Step::Compiler {
                sources,
                rejected: missing.rejected.clone(),
            });
        }
    }

    fn add_programs(&mut self, programs: &[&'static Program], distribution: &Distribution) {
        let packages_of = |program: &Program| match distribution {
            Distribution::Debian => Some(program.debian_packages),
            Distribution::Ubuntu => Some(program.ubuntu_packages),
            Distribution::Other(_) => None,
        };
        let mut packages = Vec::new();
        for program in programs {
            match packages_of(program) {
                Some(names) => packages.extend_from_slice(names),
                None => self.by_hand.push(ByHand {
                    what: format!("{}: {}", program.name, program.purpose),
                    command: format!(
                        "# {}: the package that Debian calls {}",
                        program.name,
                        program.debian_packages.join(" ")
                    ),
                }),
            }
        }
        if !packages.is_empty() {
            self.steps.push(Step::Programs {
                programs: programs.to_vec(),
                packages,
            });
        }
    }
}

impl Step {
    fn command(&self) -> String {
        match self {
            Self::Compiler { sources, .. } => {
                let commands: Vec<String> = sources
                    .iter()
                    .map(|source| match source {
                        CompilerSource::Rustup(request) => request.command(),
                        CompilerSource::DebianPackages => apt_get(&COMPILER_PACKAGES),
                    })
                    .collect();
                commands.join("   # or: ")
            }
            Self::Linker(missing) => format!("cargo {}", linker_arguments(missing).join(" ")),
            Self::Programs { packages, .. } => apt_get(packages),
            Self::MountBpffs => format!("mount -t bpf -o mode=700 bpf {BPFFS}"),
        }
    }
}

fn apt_get(packages: &[&str]) -> String {
    format!("apt-get install --no-install-recommends {}", packages.join(" "))
}

/// The arguments with which cargo installs the linker.
pub fn linker_arguments(missing: &NoLinker) -> Vec<&'static str> {
    let mut arguments = vec!["install", "bpf-linker", "--version", LINKER_VERSION, "--locked"];
    // Without it cargo refuses to write over a file that it did not put there.
    if matches!(missing, NoLinker::OtherVersion(_)) {
        arguments.push("--force");
    }
    arguments
}

impl RustupRequest {
    pub fn arguments(&self) -> Vec<&str> {
        match self {
            Self::Sources { toolchain } => vec!["component", "add", "rust-src", "--toolchain", toolchain],
            Self::Toolchain => vec![
                "toolchain",
                "install",
                PINNED_RUSTUP_TOOLCHAIN,
                "--profile",
                "minimal",
                "--component",
                "rust-src",
                "--no-self-update",
            ],
        }
    }

    fn command(&self) -> String {
        format!("rustup {}", self.arguments().join(" "))
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.steps.is_empty() {
            writeln!(f, "To be installed:")?;
            self.steps.iter().try_for_each(|step| step.fmt(f))?;
        }
        if !self.by_hand.is_empty() {
            writeln!(f, "Missing, and not to be installed from here:")?;
        }
        for item in &self.by_hand {
            writeln!(f, "  {}\n      {}", item.what, item.command)?;
        }
        Ok(())
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compiler { rejected, .. } => {
                writeln!(
                    f,
                    "  a Rust compiler with its library sources, for the XDP programs"
                )?;
                for line in rejected {
                    writeln!(f, "    ({line})")?;
                }
            }
            Self::Linker(NoLinker::Absent) => {
                writeln!(f, "  bpf-linker {LINKER_VERSION}, which links the XDP programs")?;
            }
            Self::Linker(NoLinker::OtherVersion(found)) => {
                writeln!(
                    f,
                    "  bpf-linker {LINKER_VERSION} in place of {found}, which does not fit"
                )?;
            }
            Self::Programs { programs, .. } => {
                writeln!(f, "  programs that the tests call:")?;
                for program in programs {
                    writeln!(f, "    {:<8} {}", program.name, program.purpose)?;
                }
            }
            Self::MountBpffs => {
                writeln!(
                    f,
                    "  bpffs, mounted at {BPFFS}, where programs and maps are pinned"
                )?;
            }
        }
        writeln!(f, "      {}", self.command())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::machine::PROGRAMS, *};

    fn nothing_missing(distribution: Distribution) -> Findings {
        Findings {
            distribution,
            compiler: None,
            linker: None,
            programs: Vec::new(),
            lacks_bpffs: false,
        }
    }

    fn no_compiler(rustup: Option<RustupRequest>) -> Option<NoCompiler> {
        Some(NoCompiler {
            rejected: vec!["/x/rustc: has no library sources".to_owned()],
            rustup,
        })
    }

    fn programs(names: &[&str]) -> Vec<&'static Program> {
        PROGRAMS
            .iter()
            .filter(|program| names.contains(&program.name))
            .collect()
    }

    #[test]
    fn where_nothing_is_missing_nothing_is_said_or_done() {
        let plan = Plan::new(&nothing_missing(Distribution::Debian));
        assert!(plan.is_empty() && !plan.needs_root());
        assert_eq!(plan.to_string(), "");
    }

    #[test]
    fn a_fresh_debian_gets_everything_and_is_told_what_and_why() {
        let plan = Plan::new(&Findings {
            compiler: no_compiler(Some(RustupRequest::Sources {
                toolchain: "stable-x".to_owned(),
            })),
            linker: Some(NoLinker::Absent),
            programs: programs(&["nginx", "bpftool"]),
            lacks_bpffs: true,
            ..nothing_missing(Distribution::Debian)
        });
        assert!(plan.needs_root());
        assert_eq!(
            plan.to_string(),
            "\
To be installed:
  a Rust compiler with its library sources, for the XDP programs
    (/x/rustc: has no library sources)
      rustup component add rust-src --toolchain stable-x   # or: apt-get install --no-install-recommends rustc-web cargo-web rust-web-src
  bpf-linker 0.10.4, which links the XDP programs
      cargo install bpf-linker --version 0.10.4 --locked
  programs that the tests call:
    nginx    web server of the backends
    bpftool  shows what is attached and pinned
      apt-get install --no-install-recommends nginx-light bpftool
  bpffs, mounted at /sys/fs/bpf, where programs and maps are pinned
      mount -t bpf -o mode=700 bpf /sys/fs/bpf
"
        );
    }

    #[test]
    fn ubuntu_has_no_compiler_package_and_other_packages_for_bpftool() {
        let mut findings = Findings {
            compiler: no_compiler(None),
            programs: programs(&["bpftool"]),
            ..nothing_missing(Distribution::Ubuntu)
        };
        let plan = Plan::new(&findings);
        assert_eq!(plan.steps.len(), 1);
        assert_eq!(
            plan.commands(),
            "  apt-get install --no-install-recommends linux-tools-common linux-tools-generic\n  \
             rustup toolchain install 1.95.0 --profile minimal --component rust-src --no-self-update"
        );

        findings.compiler = no_compiler(Some(RustupRequest::Toolchain));
        let plan = Plan::new(&findings);
        assert!(plan.by_hand.is_empty());
        let Step::Compiler { sources, .. } = &plan.steps[0] else {
            panic!("{plan:?}");
        };
        assert_eq!(*sources, [CompilerSource::Rustup(RustupRequest::Toolchain)]);
    }

    #[test]
    fn elsewhere_every_missing_program_is_named() {
        let plan = Plan::new(&Findings {
            programs: programs(&["dig", "curl"]),
            ..nothing_missing(Distribution::Other("fedora".to_owned()))
        });
        assert!(plan.steps.is_empty() && !plan.is_empty());
        let text = plan.to_string();
        assert!(
            text.contains("dig: name client") && text.contains("bind9-dnsutils"),
            "{text}"
        );
        assert!(text.contains("curl: web client"), "{text}");
    }

    #[test]
    fn a_linker_of_another_version_is_written_over() {
        let missing = NoLinker::OtherVersion("0.13.0".to_owned());
        assert!(linker_arguments(&missing).contains(&"--force"));
        let plan = Plan::new(&Findings {
            linker: Some(missing),
            ..nothing_missing(Distribution::Ubuntu)
        });
        assert!(!plan.needs_root());
        assert!(plan.to_string().contains("in place of 0.13.0"), "{plan}");
    }
}
