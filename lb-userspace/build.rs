//! Builds the XDP programs of `lb-ebpf` for the BPF target and puts the objects into `OUT_DIR`, where the
//! library embeds them. `xtask/src/toolchain.rs` says which compiler and linker do it.

#[path = "../xtask/src/toolchain.rs"]
#[expect(dead_code, reason = "the set-up in xtask uses more of it")]
mod toolchain;

use object::build::elf;
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

const PROGRAMS: [&str; 7] = [
    "lb",
    "decap",
    "losses",
    "mss",
    "harness",
    "flowbench",
    "yardstick",
];

/// Those that take frames of several buffers (`xdp.frags`, Linux 5.18): they are there once more for kernels that do not
/// know the word, as `NAME_plain`.
const WITH_FRAGS: [&str; 4] = ["lb", "decap", "harness", "yardstick"];
const PROFILE: &str = "bpf";

fn main() -> ExitCode {
    for path in [
        "build.rs",
        "../xtask/src/toolchain.rs",
        "../lb-ebpf/src",
        "../lb-ebpf/Cargo.toml",
        "../lb-common/src",
        "../lb-common/Cargo.toml",
        "../Cargo.toml",
        "../Cargo.lock",
    ] {
        println!("cargo::rerun-if-changed={path}");
    }
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            for line in reason.lines() {
                println!("cargo::error={line}");
            }
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    let out_dir = PathBuf::from(variable("OUT_DIR")?);
    let workspace = PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("..");
    let bpf_target = match variable("CARGO_CFG_TARGET_ENDIAN")?.as_str() {
        "big" => "bpfeb-unknown-none",
        _ => "bpfel-unknown-none",
    };

    let toolchain = toolchain::find().map_err(|missing| missing.to_string())?;
    let target_dir = shared_target_dir(&out_dir);
    let rustflags = [
        format!("--cfg=bpf_target_arch=\"{}\"", variable("CARGO_CFG_TARGET_ARCH")?),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // Instructions of 2019 (Linux 5.1): 32-bit arithmetic and jumps.
        "-Ctarget-cpu=v3".to_owned(),
        format!("-Clinker={}", toolchain.linker.display()),
    ];
    let status = toolchain
        .cargo(&target_dir.join("llvm"))
        .map_err(|error| format!("cannot write to {}: {error}", target_dir.display()))?
        .current_dir(&workspace)
        .args([
            "build",
            "--locked",
            "--package",
            "lb-ebpf",
            "--bins",
            "--profile",
            PROFILE,
        ])
        .args(["--target", bpf_target, "-Zbuild-std=core"])
        .arg("--target-dir")
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags.join("\u{1f}"))
        .status()
        .map_err(|error| format!("{} does not run: {error}", toolchain.compiler.cargo.display()))?;
    if !status.success() {
        return Err(format!(
            "the XDP programs did not build ({status}); the messages of their compiler {} are below",
            toolchain.compiler.rustc.display()
        ));
    }

    for program in PROGRAMS {
        let from = target_dir.join(bpf_target).join(PROFILE).join(program);
        let object = fs::read(&from).map_err(|error| format!("{}: {error}", from.display()))?;
        let object = without_debug_info(&object).map_err(|error| format!("{}: {error}", from.display()))?;
        let write = |name: &str, object: &[u8]| {
            fs::write(out_dir.join(name), object).map_err(|error| format!("cannot write {name}: {error}"))
        };
        write(program, &object)?;
        if WITH_FRAGS.contains(&program) {
            let plain = without_frags(object).ok_or(format!("{program} has no section `xdp.frags`"))?;
            write(&format!("{program}_plain"), &plain)?;
        }
    }
    Ok(())
}

/// The object without what only debuggers read, four fifths of it: it is part of our program, and the loader reads all of it
/// at each start. What the kernel is told of types and lines (BTF) was made of that, and stays.
fn without_debug_info(object: &[u8]) -> object::build::Result<Vec<u8>> {
    let mut builder = elf::Builder::read(object)?;
    for section in &mut builder.sections {
        let name = section.name.as_slice();
        section.delete |= name.starts_with(b".debug_") || name.starts_with(b".rel.debug_");
    }
    builder.delete_orphans();
    // LLVM has all names in one table, the writer has those of sections apart.
    let names = builder.sections.add();
    names.name = b".shstrtab"[..].into();
    names.sh_type = object::elf::SHT_STRTAB;
    names.data = elf::SectionData::SectionString;
    let mut stripped = Vec::new();
    builder.write(&mut stripped)?;
    Ok(stripped)
}

/// The object with its programs in a section `xdp`: the name, wherever it stands in a table of strings, ends earlier.
fn without_frags(mut object: Vec<u8>) -> Option<Vec<u8>> {
    const LONG: &[u8] = b"xdp.frags\0";
    let places: Vec<usize> = (0..object.len())
        .filter(|at| object[*at..].starts_with(LONG))
        .collect();
    for at in &places {
        object[at + "xdp".len()] = 0;
    }
    (!places.is_empty()).then_some(object)
}

/// One folder for all profiles, and for check and clippy: the objects do not differ between them. It lies in the
/// target folder, whose mark is the `CACHEDIR.TAG` that cargo puts there.
fn shared_target_dir(out_dir: &Path) -> PathBuf {
    out_dir
        .ancestors()
        .find(|folder| folder.join("CACHEDIR.TAG").exists())
        .unwrap_or(out_dir)
        .join("bpf")
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|error| format!("cargo did not set {name}: {error}"))
}
