//! Running other programs: the cargo that called us, with a time limit where a network may be silent.

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// The workspace's folder.
pub fn workspace() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own)
}

/// The folder into which cargo builds: the one that this very program lies in.
///
/// # Errors
/// When this program was moved out of a target folder, which cargo marks with a `CACHEDIR.TAG`.
pub fn target_folder() -> Result<PathBuf> {
    let own = env::current_exe().context("cannot tell where this program lies")?;
    own.ancestors()
        .find(|folder| folder.join("CACHEDIR.TAG").exists())
        .map(Path::to_path_buf)
        .with_context(|| format!("{} lies in no target folder of cargo", own.display()))
}

/// The cargo that runs us, in the workspace, without an input to wait for.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace()).stdin(Stdio::null());
    command
}

/// Runs `command` to its end.
///
/// # Errors
/// When it does not start or does not succeed; the text shows the whole command.
pub fn succeed(command: &mut Command) -> Result<()> {
    let text = shown(command);
    let status = command.status().with_context(|| format!("cannot run {text}"))?;
    check(&text, status)
}

/// Runs `command` and kills it after `limit`.
///
/// # Errors
/// As [`succeed`], and when the time is over.
pub fn succeed_within(limit: Duration, command: &mut Command) -> Result<()> {
    const POLL_INTERVAL: Duration = Duration::from_millis(50);

    let text = shown(command);
    let mut child = command.spawn().with_context(|| format!("cannot run {text}"))?;
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return check(&text, status);
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            bail!("{text} did not end within {} s", limit.as_secs());
        }
        thread::sleep(POLL_INTERVAL);
    }
}

/// Where a program of this name lies. The folders of the system's own programs are searched even where `PATH`
/// leaves them out, as it does for users other than root.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// True for root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn check(text: &str, status: ExitStatus) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    bail!("{text} failed ({status})")
}

/// The command as one would type it.
fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str());
    let words: Vec<_> = [name]
        .into_iter()
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_command_is_named_as_one_would_type_it() {
        let error = succeed(Command::new("/bin/sh").args(["-c", "exit 3"])).unwrap_err();
        assert_eq!(error.to_string(), "sh -c exit 3 failed (exit status: 3)");
        let error = succeed(&mut Command::new("/nonexistent/thing")).unwrap_err();
        assert_eq!(error.to_string(), "cannot run thing");
    }

    #[test]
    fn a_silent_command_is_ended() {
        let error = succeed_within(Duration::ZERO, Command::new("sleep").arg("1000")).unwrap_err();
        assert_eq!(error.to_string(), "sleep 1000 did not end within 0 s");
        assert!(succeed_within(Duration::from_secs(1000), &mut Command::new("true")).is_ok());
    }

    #[test]
    fn programs_are_found_outside_of_path() {
        assert!(find_program("sh").is_some());
        assert_eq!(find_program("a-program-of-no-one"), None);
    }
}
