//! `cargo xtask kernels`: other kernels than this machine's, each booted in an emulated machine (qemu without
//! hardware support), with this machine's own files as its root, and tested there.
//!
//! Not part of `cargo xtask test`: emulation makes every test about ten times as slow.
//!
//! ```text
//!  package  ─▶ apt-get download, dpkg-deb -x      target/kernels/PACKAGE/{boot,lib/modules}
//!  image    ─▶ busybox, modules for 9p            target/kernels/PACKAGE/initramfs.gz
//!  machine  ─▶ qemu; inside: the jobs             target/kernels/PACKAGE/results/*.{log,status,seconds}
//! ```

mod image;
mod jobs;
mod machine;
mod package;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use comfy_table::{Table, presets};

use self::machine::{Ended, Job};
use self::package::Kernel;
use crate::{
    run,
    setup::{self, Scope},
};

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// A series such as 6.1, of which the newest is taken that apt offers, or a file linux-image-*.deb. Can be given
    /// several times; every series that apt offers when absent.
    #[arg(long, value_name = "VERSION")]
    kernel: Vec<String>,
    /// Only these tests.
    #[arg(long, value_name = "TEST", value_delimiter = ',')]
    only: Vec<String>,
    /// All packets and all combinations of features that `cargo xtask test` has: hours.
    #[arg(long)]
    long: bool,
    /// How long COMMAND may take.
    #[arg(long, value_name = "N", default_value_t = 60)]
    minutes: u64,
    /// Install what is missing without asking.
    #[arg(long)]
    yes: bool,
    /// Run this instead of the tests, as root, in the workspace's folder.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// # Errors
/// Where a kernel cannot be had or booted, or a test fails on one.
pub fn run(options: &Options) -> Result<()> {
    setup::require_root("kernels")?;
    setup::ensure(Scope::Everything, options.yes, "kernels")?;
    setup::ensure_machines(options.yes)?;
    let kernels = kernels(&options.kernel)?;
    if !options.command.is_empty() {
        return command(&kernels, options);
    }

    let names = jobs::names();
    if let Some(other) = options.only.iter().find(|name| !names.contains(&name.as_str())) {
        bail!("there is no test {other}, only {}", names.join(", "));
    }
    let mut jobs = jobs::all(&jobs::build()?)?;
    jobs.retain(|job| options.only.is_empty() || options.only.contains(&job.name));
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    let names = jobs.iter().map(|job| job.name.clone());
    table.set_header(
        ["kernel".to_owned()]
            .into_iter()
            .chain(names)
            .chain(["largest program".to_owned()]),
    );
    let mut wrong = Vec::new();
    for kernel in &kernels {
        eprintln!("Linux {}", kernel.release);
        let results = machine::run(
            kernel,
            &run::workspace().join("tests"),
            &jobs,
            &environment(options),
        )?;
        table.add_row(row(kernel, &jobs, &results, &mut wrong));
    }
    println!("{table}");
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    Ok(())
}

/// One line of the table; what went wrong is added to `wrong`.
fn row(kernel: &Kernel, jobs: &[Job], results: &[Ended], wrong: &mut Vec<String>) -> Vec<String> {
    let mut cells = vec![kernel.release.clone()];
    let mut largest = None;
    for (job, ended) in jobs.iter().zip(results) {
        let (cell, is_well) = jobs::verdict(ended);
        largest = largest.or(jobs::verified_instructions(&ended.log));
        cells.push(cell);
        if !is_well {
            wrong.push(format!(
                "Linux {}, {}: {} (see {})",
                kernel.release,
                job.name,
                jobs::failed(&ended.log).join(", "),
                machine::log_of(kernel, &job.name).display()
            ));
        }
    }
    cells.push(largest.map_or_else(
        || "-".to_owned(),
        |count| format!("{count} instructions verified"),
    ));
    cells
}

/// Runs what the user wants, and shows what it printed.
fn command(kernels: &[Kernel], options: &Options) -> Result<()> {
    let mut failed = Vec::new();
    for kernel in kernels {
        let job = Job {
            name: "command".into(),
            limit: Duration::from_secs(60 * options.minutes),
            command: options.command.clone(),
        };
        eprintln!("Linux {}", kernel.release);
        let results = machine::run(kernel, run::workspace(), &[job], &environment(options))?;
        for ended in results {
            print!("{}", ended.log);
            if ended.status != Some(0) {
                failed.push(format!("Linux {}: status {:?}", kernel.release, ended.status));
            }
        }
    }
    if !failed.is_empty() {
        bail!("{}", failed.join("\n"));
    }
    Ok(())
}

fn kernels(wanted: &[String]) -> Result<Vec<Kernel>> {
    let folder = run::target_folder()?.join("kernels");
    let (files, series): (Vec<String>, Vec<String>) = wanted
        .iter()
        .cloned()
        .partition(|text| Path::new(text).extension().is_some_and(|kind| kind == "deb"));
    let mut kernels = Vec::new();
    if files.is_empty() || !series.is_empty() {
        for package in package::choose(&package::offered()?, &series)? {
            kernels.push(package::fetch(&package, &folder)?);
        }
    }
    for file in files {
        let path = PathBuf::from(&file);
        kernels.push(package::take(&path, &folder).with_context(|| file.clone())?);
    }
    Ok(kernels)
}

/// What the tests are told by: that the machine is slow, so few packets and few combinations of features, and how many
/// may run side by side.
fn environment(options: &Options) -> Vec<(&'static str, &'static str)> {
    let mut variables = vec![("RUST_TEST_THREADS", "2")];
    if !options.long {
        variables.push(("XLB_SHORT", "1"));
    }
    variables
}
