//! `serve TARGET MODE [limits]`: a resident program that runs TARGET in a sandbox, once for each byte on its input, and
//! writes the elapsed nanoseconds from call to outcome as 8 bytes (native-endian).
//!
//! MODE is `one-shot` (a built sandbox; each run starts and ends an instance), `no-net` (the same with the host's
//! network), `warm` (one instance, many programs) or `prepared` (instances started ahead, each used once). `limits` adds
//! 256 MiB of memory, 64 processes and half a CPU. TARGET lies under `/usr` or `/bin`; the directory of any other is shown
//! read-only in its place. All defaults and the whole hardening are on; the program's streams are `/dev/null`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use sandbox::{Builder, Command, Network, Sandbox, Stdio};
use sandbox_benches::resident::{self, Failure};
use sandbox_benches::tiny::directory_to_show;

/// Deep enough that a caller who pauses between runs never waits.
const PREPARED: usize = 16;
const USAGE: &str = "usage: serve TARGET one-shot|no-net|warm|prepared [limits]";

fn main() -> ExitCode {
    match serve(&std::env::args_os().skip(1).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("serve: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(args: &[OsString]) -> Result<(), Failure> {
    let (target, mode, limits) = match args {
        [target, mode] => (target, mode, false),
        [target, mode, limits] if limits == "limits" => (target, mode, true),
        _ => return Err(USAGE.into()),
    };
    let target = PathBuf::from(target);
    let mut builder = builder(&target, limits);
    match mode.to_str() {
        Some("one-shot") => one_shot(&builder.build()?, &target),
        Some("no-net") => one_shot(&builder.network(Network::Host).build()?, &target),
        Some("warm") => {
            let instance = builder.build()?.start()?;
            resident::serve(|| run(instance.command(&target)))
        }
        Some("prepared") => {
            let sandbox = builder.prepared(PREPARED).build()?;
            one_shot(&sandbox, &target)
        }
        _ => Err(USAGE.into()),
    }
}

fn builder(target: &Path, limits: bool) -> Builder {
    let mut builder = Sandbox::builder();
    if let Some(directory) = directory_to_show(target) {
        builder.bind_read_only(directory, directory);
    }
    if limits {
        let period = Duration::from_millis(100);
        builder.memory_max(256 << 20).pids_max(64).cpu_max(period / 2, period);
    }
    builder
}

fn one_shot(sandbox: &Sandbox, target: &Path) -> Result<(), Failure> {
    resident::serve(|| run(sandbox.command(target)))
}

fn run(mut command: Command) -> Result<(), Failure> {
    let outcome = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    if outcome.status.success() { Ok(()) } else { Err(format!("the target ended with {outcome:?}").into()) }
}
