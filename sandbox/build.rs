//! Compiles init, the freestanding PID 1 of every sandbox, for the library to embed.
//!
//! `$RUSTC` builds it for `$TARGET` without `core`'s panics, a C library or a runtime: a static file of a few KiB whose
//! whole memory is known. No further tool is needed, so `cargo package` and offline builds work.

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::{env, fs};

const SOURCES: [&str; 7] = [
    "init/main.rs",
    "init/arch/mod.rs",
    "init/arch/x86_64.rs",
    "init/exec.rs",
    "init/landlock.rs",
    "init/reap.rs",
    "src/init/protocol.rs",
];
const FLAGS: [&str; 13] = [
    "--edition=2024",
    "--crate-type=bin",
    "--crate-name=init",
    "-Copt-level=s",
    "-Cpanic=abort",
    "-Crelocation-model=static",
    // No global offset table, which would be a page of memory for each init.
    "-Crelro-level=off",
    "-Cstrip=symbols",
    "-Clink-arg=-nostartfiles",
    "-Clink-arg=-nostdlib",
    "-Clink-arg=-static",
    "-Clink-arg=-no-pie",
    "-Clink-arg=-Wl,--build-id=none,-z,noseparate-code,-z,noexecstack,--gc-sections",
];

fn main() -> ExitCode {
    for source in SOURCES {
        println!("cargo::rerun-if-changed={source}");
    }
    match compile() {
        Ok(path) => {
            println!("cargo::rustc-env=SANDBOX_INIT_ELF={}", path.display());
            ExitCode::SUCCESS
        }
        Err(why) => {
            println!("cargo::error=cannot compile init: {why}");
            ExitCode::FAILURE
        }
    }
}

fn compile() -> Result<PathBuf, String> {
    let variable = |name| env::var_os(name).ok_or_else(|| format!("{name} is not set"));
    let output = PathBuf::from(variable("OUT_DIR")?).join("init");
    let linker = env::var_os("RUSTC_LINKER");
    let mut rustc = Command::new(variable("RUSTC")?);
    rustc.arg("init/main.rs").args(FLAGS).arg("--target").arg(variable("TARGET")?).arg("-o").arg(&output);
    if let Some(linker) = linker {
        rustc.arg("-C").arg([std::ffi::OsStr::new("linker="), &linker].into_iter().collect::<std::ffi::OsString>());
    }
    let status = rustc.status().map_err(|error| format!("cannot run rustc: {error}"))?;
    if !status.success() {
        return Err(format!("rustc ended with {status}"));
    }
    let size = fs::metadata(&output).map_err(|error| format!("no output: {error}"))?.len();
    if size > 64 << 10 {
        return Err(format!("{size} bytes, far more than a freestanding init needs"));
    }
    Ok(output)
}
