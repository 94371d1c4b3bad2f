//! Doing what the plan says.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    mount::{MsFlags, mount},
    sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
};

use super::{
    machine::{BPFFS, RustupRequest},
    plan::{COMPILER_PACKAGES, CompilerSource, Step, linker_arguments},
};
use crate::{run, toolchain};

/// A few megabytes. Where rustup's servers are out of reach, some networks answer nothing at all.
const SOURCES_LIMIT: Duration = Duration::from_secs(60);

/// Some hundred megabytes.
const TOOLCHAIN_LIMIT: Duration = Duration::from_secs(300);

/// # Errors
/// When the step did not succeed. Whether all is in place is not our judgement but a second look's.
pub fn carry_out(step: &Step) -> Result<()> {
    match step {
        Step::Compiler { sources, .. } => compiler(sources),
        Step::Linker(missing) => run::succeed(run::cargo().args(linker_arguments(missing))),
        Step::Programs { packages: names, .. } => packages(names),
        Step::MountBpffs => mount_bpffs(),
    }
}

fn compiler(sources: &[CompilerSource]) -> Result<()> {
    for source in sources {
        let done = match source {
            CompilerSource::Rustup(request) => rustup(request),
            CompilerSource::DebianPackages => packages(&COMPILER_PACKAGES),
        };
        if let Err(error) = done {
            eprintln!("warning: {error:#}");
        }
        match toolchain::find_compiler() {
            Ok(found) => {
                eprintln!("compiler for BPF: {} ({})", found.rustc.display(), found.version);
                return Ok(());
            }
            Err(_) if Some(source) != sources.last() => eprintln!("trying Debian's packages instead"),
            Err(missing) => bail!("{missing}"),
        }
    }
    Ok(())
}

fn rustup(request: &RustupRequest) -> Result<()> {
    let limit = match request {
        RustupRequest::Sources { .. } => SOURCES_LIMIT,
        RustupRequest::Toolchain => TOOLCHAIN_LIMIT,
    };
    let program = run::find_program("rustup")
        .or_else(|| toolchain::cargo_home().map(|home| home.join("bin/rustup")))
        .unwrap_or_else(|| PathBuf::from("rustup"));
    run::succeed_within(
        limit,
        Command::new(program)
            .args(request.arguments())
            .env_remove("RUST_BACKTRACE")
            .stdin(Stdio::null()),
    )
}

fn mount_bpffs() -> Result<()> {
    mount(
        Some("bpf"),
        BPFFS,
        Some("bpf"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        Some("mode=700"),
    )
    .with_context(|| format!("cannot mount bpffs at {BPFFS}"))?;
    eprintln!("bpffs mounted at {BPFFS}");
    Ok(())
}

/// Installs Debian packages, and lets none of them start a service.
fn packages(names: &[&'static str]) -> Result<()> {
    let mut updated = false;
    if names.iter().any(|name| !is_in_lists(name)) {
        apt_get(&["update"])?;
        updated = true;
    }
    let (known, unknown): (Vec<&str>, Vec<&str>) = names.iter().partition(|name| is_in_lists(name));
    if !known.is_empty() {
        let _signals = ignore_signals()?;
        let _policy = NoServices::enforce(Path::new("/usr/sbin/policy-rc.d"))
            .context("cannot keep packages from starting services")?;
        let had_nginx = Path::new(NGINX_UNIT).exists();
        let mut arguments = vec!["install", "-y", "--no-install-recommends"];
        arguments.extend(&known);
        if let Err(error) = apt_get(&arguments) {
            if updated || interrupted() {
                return Err(error);
            }
            // Old lists name files that the servers have replaced since.
            apt_get(&["update"])?;
            apt_get(&arguments)?;
        }
        if !had_nginx && Path::new(NGINX_UNIT).exists() {
            run::succeed(Command::new("update-rc.d").args(["nginx", "disable"]))?;
        }
    }
    if !unknown.is_empty() {
        bail!("not in the package lists: {}", unknown.join(" "));
    }
    Ok(())
}

/// The one service among our packages. It would start when the machine does.
const NGINX_UNIT: &str = "/lib/systemd/system/nginx.service";

fn is_in_lists(package: &str) -> bool {
    Command::new("apt-cache")
        .args(["show", "--no-all-versions", "-q", package])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    run::succeed(
        Command::new("apt-get")
            .args(["-qq", "-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Use-Pty=0"])
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            // Ubuntu's needrestart would ask which services to restart, or restart them.
            .env("NEEDRESTART_SUSPEND", "1")
            .stdin(Stdio::null()),
    )
}

/// While it lives, no package starts or stops a service: `policy-rc.d` says 101, "forbidden".
///
/// A file of that name that was there is kept beside it and put back.
struct NoServices {
    policy: PathBuf,
}

const OUR_POLICY: &str = "#!/bin/sh\n# While cargo xtask setup of xlb installs packages.\nexit 101\n";

impl NoServices {
    fn enforce(policy: &Path) -> io::Result<Self> {
        let guard = Self {
            policy: policy.to_path_buf(),
        };
        // Ours is there already only after a run that was killed; what it kept is the file to put back.
        let is_ours = fs::read(policy).is_ok_and(|content| content == OUR_POLICY.as_bytes());
        if !is_ours && policy.symlink_metadata().is_ok() {
            fs::rename(policy, guard.kept())?;
        }
        fs::write(policy, OUR_POLICY)?;
        fs::set_permissions(policy, fs::Permissions::from_mode(0o755))?;
        Ok(guard)
    }

    fn kept(&self) -> PathBuf {
        self.policy.with_extension("d.kept-by-xlb")
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        let restored = if self.kept().symlink_metadata().is_ok() {
            fs::rename(self.kept(), &self.policy)
        } else {
            fs::remove_file(&self.policy)
        };
        if let Err(error) = restored {
            eprintln!("warning: cannot restore {}: {error}", self.policy.display());
        }
    }
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// True once a signal has asked us to end while packages were being installed.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Puts the handlers back that were there.
struct IgnoredSignals(Vec<(Signal, SigAction)>);

/// Ctrl-C reaches the whole process group: `apt-get` ends, and we live on to restore what we changed. A handler
/// of our own, since an ignored signal would stay ignored in `apt-get`.
fn ignore_signals() -> Result<IgnoredSignals> {
    extern "C" fn remember(_: std::ffi::c_int) {
        INTERRUPTED.store(true, Ordering::Relaxed);
    }

    let action = SigAction::new(
        SigHandler::Handler(remember),
        SaFlags::SA_RESTART,
        SigSet::empty(),
    );
    let mut ignored = IgnoredSignals(Vec::new());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only stores to an atomic, which is safe at any point.
        let previous = unsafe { sigaction(signal, &action) }?;
        ignored.0.push((signal, previous));
    }
    Ok(ignored)
}

impl Drop for IgnoredSignals {
    fn drop(&mut self) {
        for (signal, previous) in &self.0 {
            // SAFETY: the action is the one that was in force before ours.
            let _ = unsafe { sigaction(*signal, previous) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_that_was_there_comes_back_even_after_a_killed_run() {
        let folder = tempfile::tempdir().unwrap();
        let policy = folder.path().join("policy-rc.d");
        fs::write(&policy, "theirs").unwrap();

        let killed = NoServices::enforce(&policy).unwrap();
        assert_eq!(fs::read_to_string(&policy).unwrap(), OUR_POLICY);
        std::mem::forget(killed);

        drop(NoServices::enforce(&policy).unwrap());
        assert_eq!(fs::read_to_string(&policy).unwrap(), "theirs");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn no_policy_is_left_where_none_was() {
        let folder = tempfile::tempdir().unwrap();
        let policy = folder.path().join("policy-rc.d");
        let guard = NoServices::enforce(&policy).unwrap();
        assert_eq!(policy.metadata().unwrap().permissions().mode() & 0o777, 0o755);
        drop(guard);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_signal_that_we_outlive_is_not_ignored_by_the_programs_we_run() {
        let ignored = ignore_signals().unwrap();
        let status = Command::new("sh").args(["-c", "kill -TERM $$; exit 0"]).status();
        drop(ignored);
        assert!(!status.unwrap().success());
    }
}
