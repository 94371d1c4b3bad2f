//! The machine: qemu, which emulates it entirely, so it runs where virtual machines cannot.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use super::image;
use super::package::Kernel;
use crate::run;

/// What is run inside, and how long it may take there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Also the name of the files that it leaves.
    pub name: String,
    pub limit: Duration,
    /// Words of a shell's command.
    pub command: Vec<String>,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Exit status; 124 where its time was over. `None`: it did not begin, or the machine died.
    pub status: Option<i32>,
    pub seconds: Option<u64>,
    pub log: String,
}

const PROLOGUE: &str = include_str!("inside.sh");

/// Boots a kernel, has it run `jobs` in `folder` one after the other, and switches it off.
///
/// # Errors
/// Where the machine cannot be made, or is not off in time.
pub fn run(kernel: &Kernel, folder: &Path, jobs: &[Job], environment: &[(&str, &str)]) -> Result<Vec<Ended>> {
    const BOOT: Duration = Duration::from_secs(300);

    let initramfs = image::make(kernel)?;
    let results = kernel.folder.join("results");
    if results.exists() {
        fs::remove_dir_all(&results)?;
    }
    fs::create_dir_all(&results)?;
    fs::write(
        results.join("inside.sh"),
        script(kernel, folder, jobs, environment),
    )?;

    let limit: Duration = jobs.iter().map(|job| job.limit).sum();
    // On a console that is a file, so that what the kernel says of a crash can be read.
    let console = results.join("console");
    let ran = run::succeed_within(limit + BOOT, &mut qemu(kernel, &initramfs, &results, &console));
    ran.with_context(|| format!("Linux {}, console: {}", kernel.release, console.display()))?;
    Ok(jobs.iter().map(|job| ended(&results, &job.name)).collect())
}

/// Where a job's output is.
pub fn log_of(kernel: &Kernel, job: &str) -> PathBuf {
    kernel.folder.join("results").join(format!("{job}.log"))
}

fn qemu(kernel: &Kernel, initramfs: &Path, results: &Path, console: &Path) -> Command {
    let share = |id: &str, folder: &Path, options: &str| {
        let folder = folder.display();
        [
            "-fsdev".to_owned(),
            format!("local,id={id},path={folder},security_model=none{options}"),
            "-device".to_owned(),
            format!("virtio-9p-pci,fsdev={id},mount_tag={id}"),
        ]
    };
    // Others use this machine too, and an emulated one takes all that it gets.
    let mut command = Command::new("nice");
    command.args(["-n", "10", "qemu-system-x86_64"]);
    command.args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max,la57=off"]);
    command.args(["-smp", "2", "-m", "3072", "-nodefaults", "-no-reboot"]);
    command.args(["-display", "none"]);
    command.arg("-serial").arg(format!("file:{}", console.display()));
    command.arg("-kernel").arg(kernel.image());
    command.arg("-initrd").arg(initramfs);
    command.args(["-append", "console=ttyS0 quiet panic=-1 rdinit=/init"]);
    command.args(share("root", Path::new("/"), ",readonly=on,multidevs=remap"));
    command.args(share("results", results, ""));
    command.stdin(Stdio::null());
    command
}

/// The shell script that the first process becomes.
fn script(kernel: &Kernel, folder: &Path, jobs: &[Job], environment: &[(&str, &str)]) -> String {
    let mut text = PROLOGUE.to_owned();
    let modules = quoted(&kernel.modules().display().to_string());
    let _ = writeln!(text, "mount --bind {modules} /lib/modules");
    let _ = writeln!(text, "cd {}", quoted(&folder.display().to_string()));
    for (name, value) in environment {
        let _ = writeln!(text, "export {name}={}", quoted(value));
    }
    for Job { name, limit, command } in jobs {
        let words: Vec<String> = command.iter().map(|word| quoted(word)).collect();
        let _ = writeln!(text, "job {name} {} {}", limit.as_secs(), words.join(" "));
    }
    text + "busybox poweroff -f\n"
}

/// One word for a shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

fn ended(results: &Path, job: &str) -> Ended {
    let read = |kind: &str| fs::read(results.join(format!("{job}.{kind}"))).unwrap_or_default();
    let number = |kind: &str| String::from_utf8_lossy(&read(kind)).trim().parse::<u64>().ok();
    Ended {
        status: number("status").and_then(|status| i32::try_from(status).ok()),
        seconds: number("seconds"),
        log: String::from_utf8_lossy(&read("log")).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_runs_every_job_and_then_switches_the_machine_off() {
        let kernel = Kernel {
            release: "6.1.0-1-amd64".into(),
            folder: "/k".into(),
        };
        let job = Job {
            name: "one".into(),
            limit: Duration::from_secs(7),
            command: ["sh", "-c", "echo 'a b'"].map(String::from).to_vec(),
        };
        let script = script(&kernel, Path::new("/w"), &[job], &[("A", "it's")]);
        let ends = [
            "mount --bind '/k/lib/modules' /lib/modules",
            "cd '/w'",
            "export A='it'\\''s'",
            "job one 7 'sh' '-c' 'echo '\\''a b'\\'''",
            "busybox poweroff -f\n",
        ];
        assert!(script.ends_with(&ends.join("\n")), "{script}");
    }

    #[test]
    fn a_job_that_left_nothing_did_not_run() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(ended(folder.path(), "one").status, None);
        fs::write(folder.path().join("one.status"), "101\n").unwrap();
        fs::write(folder.path().join("one.log"), "said\n").unwrap();
        let ended = ended(folder.path(), "one");
        assert_eq!(
            (ended.status, ended.seconds, &*ended.log),
            (Some(101), None, "said\n")
        );
    }
}
